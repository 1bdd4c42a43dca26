"""The analogy on the speech models, over training seeds, against synthetic only and the oracle."""

from __future__ import annotations

from typing import Any

import zoo
from experiments.diagnosing.families import FAMILIES
from experiments.diagnosing.gaps import Records
from experiments.operating.bench import Bench
from experiments.operating.choosing import best
from experiments.operating.rows import Rows
from experiments.speech_analogy import KEPT, LAMBDAS, TARGET

SEEDS = (0, 1, 2)
MADE = "specific_made"
ANALOGY = "specific_syn + {:g}*(general_real - general_syn)"
SUM = "specific_syn + {:g}*general_real"


def analogy(records: Records) -> str:
    """WER on real speech of the specific domain, λ chosen on search utterances."""
    rows = Rows(("λ", "WER", "capped WER", "general, capped", "gap closed"))
    for seed in SEEDS:
        one = _bench(records, seed)
        synthetic = one.score("specific_syn", TARGET, "holdout")
        oracle = one.score("specific_real", TARGET, "holdout")
        for title, expression in {
            "`base`": "base",
            "`specific_syn`: synthetic only": "specific_syn",
            "`general_real`": "general_real",
            "`specific_real`: the oracle": "specific_real",
        }.items():
            rows.add(title, _row(one, expression))
        for title, written in {"the analogy": ANALOGY, "without the subtraction": SUM}.items():
            errors = {
                value: one.score(MADE, TARGET, "search", {MADE: written.format(value)}) for value in LAMBDAS
            }  # fmt: skip
            chosen = best({value: -error for value, error in errors.items()})
            found = _row(one, MADE, {MADE: written.format(chosen)})
            closed = (synthetic - found["capped WER"]) / (synthetic - oracle)
            shown = written.replace("{:g}", "λ")
            rows.add(f"`{shown}`: {title}", found | {"λ": chosen, "gap closed": closed})
    return rows.markdown("holdout", ("λ",))


def _row(one: Bench, expression: str, derived: dict[str, str] | None = None) -> dict[str, float]:
    return {
        "WER": one.score(expression, TARGET, "holdout", derived, metric="wer"),
        "capped WER": one.score(expression, TARGET, "holdout", derived),
        "general, capped": one.score(expression, KEPT, "holdout", derived),
    }


def _bench(records: Records, seed: int) -> Bench:
    where, task = f"zoo://speech@{seed}", FAMILIES["speech"].task
    members = ("base", "specific_syn", "general_real", "general_syn", "specific_real")
    specs: dict[str, dict[str, Any]] = {
        name: {
            "type": task.kind, "metric": task.metric, **task.options, "data": str(zoo.resolve(f"{where}/data/{name}"))
        }
        for name in (TARGET, KEPT)
    }  # fmt: skip
    models = {name: zoo.resolve(f"{where}/{name}") for name in members}
    return Bench(records, "analogy", "speech", seed, models, specs)
