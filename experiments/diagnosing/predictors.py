"""What might foretell a pair's gap: diagnostics of the weights alone, of unlabelled inputs, and of a few scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments.diagnosing.families import Family
from experiments.diagnosing.gaps import Records, Row, title

if TYPE_CHECKING:
    from torch import Tensor, nn

    from experiments.diagnosing.bench import Bench
    from merging.diagnose.results import Diagnosis

INPUTS = 64
"""Search items of each expert that what needs data may see."""

_ANSWER = 4
"""Last tokens of a text whose logits are compared: those of the answer."""

Costs = Literal["weights", "inputs", "scores"]


@dataclass(frozen=True)
class Predictor:
    """One number of a pair.

    Attributes:
        title: of its row.
        costs: what has to be there to know it.
        worse: +1 if a larger number was expected to mean a larger gap, −1 if a smaller one.
        foretold: whether that was written down before anything was computed.
    """

    title: str
    costs: Costs
    worse: int
    foretold: bool = True


PREDICTORS = {
    "norm_ratio": Predictor("‖τ‖/‖θ0‖, the larger", "weights", +1),
    "imbalance": Predictor("‖τ‖, larger over smaller", "weights", +1),
    "cosine": Predictor("absolute cosine", "weights", +1),
    "sign_conflict": Predictor("sign conflict", "weights", +1),
    "sign_conflict_weighted": Predictor("sign conflict, weighted", "weights", +1),
    "overlap_lift": Predictor("overlap / chance", "weights", +1),
    "subspace_left": Predictor("left subspace overlap / chance", "weights", +1),
    "subspace_right": Predictor("right subspace overlap / chance", "weights", +1),
    "stable_rank": Predictor("stable rank, mean", "weights", +1),
    "effective_rank": Predictor("effective rank, mean", "weights", +1),
    "alignment": Predictor("subspace alignment, mean", "weights", -1),
    "interference_ratio": Predictor("singular task interference", "weights", +1),
    "disentanglement_half": Predictor("disentanglement error, λ 0.5", "inputs", +1),
    "disentanglement_one": Predictor("disentanglement error, λ 1", "inputs", +1),
    "variance_ratio": Predictor("activation variance, average / experts", "inputs", -1),
    "cka": Predictor("CKA of the two experts, mean over blocks", "inputs", -1),
    "cka_merged": Predictor("CKA of their average with them", "inputs", -1),
    "tolerated": Predictor("DARE drop that keeps 98 %, mean", "scores", -1),
    "average_gap": Predictor(f"the gap at λ 0.5, {INPUTS} items", "scores", +1),
    "look_gap": Predictor(f"the gap at λ 0.8, {INPUTS} items", "scores", +1, foretold=False),
}

_LOOKS = {"average_gap": 0.5, "look_gap": 0.8}


def measure(
    records: Records, name: str, family: Family, seed: int, bench: Callable[[], Bench], say: Callable[[str], None]
) -> None:
    """Measure the predictors of the pairs of one family and seed that are not known yet.

    Args:
        records: where they are kept.
        name, family, seed: which.
        bench: opens the models; called where something is to be measured.
        say: told one line a pair.
    """
    known = records.read("predictors", name, seed)
    for a, b in family.pairs:
        held = known.get(title(a, b))
        missing = [key for key in _LOOKS if held is not None and key not in held]
        if held is not None and missing:
            held |= {key: _look(bench(), a, b, _LOOKS[key]) for key in missing}
            records.add("predictors", name, seed, title(a, b), held)
    wanted = [pair for pair in family.pairs if title(*pair) not in known]
    if not wanted:
        return
    outputs = {expert: _outputs(bench(), expert) for expert in family.experts}
    dropped = {expert: _tolerated(bench(), expert) for expert in family.experts}
    for a, b in wanted:
        start = time.process_time()
        row = of_weights(bench(), a, b) | _of_inputs(bench(), {each: outputs[each] for each in (a, b)})
        row |= {"tolerated": (dropped[a] + dropped[b]) / 2}
        row |= {key: _look(bench(), a, b, value) for key, value in _LOOKS.items()}
        row["seconds"] = round(time.process_time() - start, 2)
        records.add("predictors", name, seed, title(a, b), row)
        say(f"{name} {seed}  {title(a, b):28} predictors, {row['seconds']:.0f} s")


def of_weights(bench: Bench, a: str, b: str) -> Row:
    """The diagnosis of the two experts alone, as numbers, and as the data of which the verdict is made."""
    from merging.diagnose import diagnose

    found = diagnose(bench.pair(a, b))
    return numbers(found) | {"diagnosis": found.as_data(tensors=False)}


def numbers(found: Diagnosis) -> Row:
    """The predictors that need the weights alone, of a diagnosis of two experts."""
    whole, pair = found.whole, found.pairs[0]

    def mean(values: Mapping[str, float]) -> float:
        return sum(values.values()) / len(values)

    return {
        "norm_ratio": max(whole.norm_ratio.values()),
        "imbalance": whole.imbalance,
        "cosine": abs(whole.cosine[pair]),
        "sign_conflict": whole.sign_conflict[pair],
        "sign_conflict_weighted": whole.sign_conflict_weighted[pair],
        "overlap_lift": whole.overlap_lift[pair],
        "subspace_left": whole.subspace_left[pair] / whole.subspace_left_chance[pair],
        "subspace_right": whole.subspace_right[pair] / whole.subspace_right_chance[pair],
        "stable_rank": mean(whole.stable_rank),
        "effective_rank": mean(whole.effective_rank),
        "alignment": mean(whole.alignment),
        "interference_ratio": whole.interference_ratio,
    }


def _of_inputs(bench: Bench, outputs: Mapping[str, Callable[[nn.Module], Tensor]]) -> Row:
    from merging.diagnose.probes import check_activations, disentanglement

    distance = "relative" if bench.task.kind == "reward_pairs" else "disagreement"
    apart = disentanglement(bench.materializer, outputs, lambdas=(0.5, 1.0), distance=distance)
    a, b = outputs
    checked = check_activations(
        bench.materializer, lambda model: [each(model) for each in outputs.values()], {a: 0.5, b: 0.5}
    )
    blocks = checked.blocks

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "disentanglement_half": apart.means[0],
        "disentanglement_one": apart.means[1],
        "variance_ratio": min(each.variance_ratio for each in blocks),
        "cka": mean([each.similarity[a, b] for each in blocks]),
        "cka_merged": mean([each.similarity[one, "merged"] for each in blocks for one in (a, b)]),
    }


def _outputs(bench: Bench, expert: str) -> Callable[[nn.Module], Tensor]:
    """What a live model gives for an expert's inputs: the logits of classes, or of a text's last tokens."""
    import torch

    from evaluators.calibration import record_inputs
    from merging.calibration import Samples

    bench.apply({expert: 1.0})
    evaluator = bench.evaluators[expert]
    ids = evaluator.items("search").ids[:INPUTS]
    batches = list(Samples.of(record_inputs(evaluator, bench.engine, ids, prepared=True)).batches(INPUTS))

    def give(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([_rows(model(**batch).logits) for batch in batches])

    return give


def _rows(logits: Tensor) -> Tensor:
    """[rows, classes] of a batch's logits, none of them padded."""
    return logits if logits.ndim == 2 else logits[:, -_ANSWER:].flatten(0, 1)


def _tolerated(bench: Bench, expert: str) -> float:
    from merging.diagnose.curves import redundancy

    found = redundancy(
        bench.materializer,
        lambda _: bench.asked(expert, INPUTS),
        expert,
        drops=(0.1, 0.3, 0.5, 0.7, 0.9),
        variants=("dare",),
    )
    return found.tolerated()


def _look(bench: Bench, a: str, b: str, value: float) -> float:
    """1 − mean of the two retentions at one λ, on a few search items."""
    from experiments.diagnosing.gaps import retention

    left = []
    for each in (a, b):
        scores = []
        for coefficients in ({}, {each: 1.0}, {a: value, b: value}):
            bench.apply(coefficients)
            scores.append(bench.asked(each, INPUTS))
        left.append(retention(scores[2], scores[0], scores[1]))
    return 1.0 - sum(left) / 2
