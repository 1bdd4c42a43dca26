"""What an evaluator asks a model about some items, as inputs of the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from evaluators.calibration.inputs import Input
from evaluators.calibration.recorder import Recorder
from evaluators.calibration.running import check_runs
from evaluators.contract import Engine, Evaluator, EvaluatorError, Split

_JUDGES: tuple[Split, ...] = ("selection", "holdout")


def record_inputs(
    evaluator: Evaluator,
    engine: Engine,
    ids: Sequence[str],
    *,
    prepared: bool = False,
) -> list[Input]:
    """Score some items with the weights that are live, throw the scores away, and keep what the model was asked.

    Args:
        evaluator: any, also one that knows nothing but the contract. A copy of it is prepared here.
        engine: over the model with the expert's weights: what it writes is part of the inputs.
        ids: of the evaluator's search split.
        prepared: whether the evaluator has been prepared for this engine already, so that it is asked as it is.

    Returns:
        Keyword arguments of the module's ``forward``, one mapping an input: first dimension 1, on the CPU, nothing
        padded, each once, in the order of the asking. An item may give several (choices, the two answers of a pair);
        an evaluator that looks at whole splits (similarity) gives those of all items of the split. Reference answers,
        labels and verdicts are in none of them.

    Raises:
        EvaluatorError: no ids, or ids of a split that judges; the evaluator cannot be asked so; it asked nothing.
    """
    if not ids:
        raise EvaluatorError("calibration needs at least one item to record, and none was named; raise `items`")
    for split in _JUDGES:
        seen = set(evaluator.items(split).ids).intersection(ids)
        if seen:
            raise EvaluatorError(
                f'calibration asks for the item "{min(seen)}" of the split {split}, which judges what the search '
                "finds; record items of the search split"
            )
    recorder = Recorder(engine)
    if not prepared:
        evaluator = copy.copy(evaluator)
        evaluator.prepare(recorder)
    with recorder.recording():
        evaluator.score(recorder, ids)
    if not len(recorder.inputs):
        raise EvaluatorError(
            f"{type(evaluator).__name__} asked the model nothing about {len(ids)} items, so that there are no inputs "
            "to calibrate on; name another evaluator, or a data file"
        )
    inputs = recorder.inputs.all()
    check_runs(engine, inputs, f"calibration on what {type(evaluator).__name__} asks")
    return inputs
