"""Whether a model can be run on inputs, tried once before anything is built on them."""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.calibration.inputs import Input
from evaluators.contract import Engine, EvaluatorError


def check_runs(engine: Engine, inputs: Sequence[Input], source: str) -> None:
    """Run the first input of each kind (by the names of its arguments) through the live module.

    Args:
        engine: one without a module in this process is believed.
        inputs: as they were recorded or read.
        source: where they come from, for messages.

    Raises:
        EvaluatorError: the module does not take them.
    """
    if engine.model is None:
        return
    kinds = {tuple(one): one for one in reversed(inputs)}
    with engine.forward() as module:
        for one in kinds.values():
            try:
                module(**{name: value.to(engine.device) for name, value in one.items()})
            except Exception as error:  # models raise what they like for inputs that are none of theirs
                lines = str(error).strip().splitlines()
                raise EvaluatorError(
                    f"{source}: {type(module).__name__} cannot be run on {', '.join(one)} ({type(error).__name__}: "
                    f"{lines[0] if lines else 'no message'}); calibrate on inputs of the kind that this model takes: "
                    "name another evaluator, or a data file of texts, images or recordings"
                ) from error
