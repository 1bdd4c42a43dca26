"""Does unlearning by layer and kind of module lose less than unlearning by one number? A search, and the λ curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.diagnosing.gaps import Records
from experiments.operating import items
from experiments.operating.bench import Bench
from experiments.operating.choosing import most_kept
from experiments.operating.rows import Rows
from experiments.operating.skills import GONE, SEEDS, TAKEN, bench
from merging.recipe import Recipe

CONFIG = Path(__file__).with_name("unlearn.yaml")
SLACK = 0.01
OBJECTIVES = ("gone.score", "kept.accuracy")


def per_layer(records: Records) -> str:
    """The most that is kept at equal unlearning, both chosen on selection items."""
    rows = Rows(("string", "kept", *items.KEPT))
    for seed in SEEDS:
        one = bench(records, "subtraction", seed, ("string",))
        base = one.score("base", "string", "selection")
        among: dict[str, list[str | Recipe]] = {
            "one λ": [f"base - {value:g}*string" for value in TAKEN],
            "searched": list(front(records, seed)),
        }
        rows.add("`base`", _row(one, "base"))
        for share in GONE:
            for title, merges in among.items():
                points = {
                    place: (one.score(each, "string", "selection"), one.score(each, "kept", "selection"))
                    for place, each in enumerate(merges)
                }
                chosen = most_kept(points, share * base)
                rows.add(
                    f"at most {100 * share:g} % left: {title}", {} if chosen is None else _row(one, merges[chosen])
                )
    return rows.markdown("holdout")


def _row(one: Bench, merge: str | Recipe) -> dict[str, float]:
    found = {name: one.score(merge, name, "holdout") for name in ("string", "kept")}
    return found | {stratum: one.score(merge, "kept", "holdout", stratum=stratum) for stratum in items.KEPT}


def front(records: Records, seed: int) -> list[Recipe]:
    """Candidates of the search of one training seed that no other beats by more than SLACK in both objectives on search
    items: a front alone may have gaps where a level lies. The search goes on where it was stopped."""
    from search.config import load_config
    from search.results import Results
    from search.run import Run

    where = f"zoo://skills@{seed}"
    loaded = load_config(
        CONFIG,
        [
            f"models.base={where}/base",
            f"models.experts.string={where}/string",
            f"evaluators.gone.data={where}/data/string",
            f"evaluators.kept.data={records.folder.resolve() / 'data' / 'kept'}",
        ],
    )
    folder = records.folder / f"unlearn-{seed}"
    results = Results.load(folder) if (folder / "run.db").exists() else None
    budget = loaded.config.search.budget
    if results is None or results.state != "finished" or results.config.search.budget != budget:
        Run(loaded, folder).execute()
        results = Results.load(folder)
    scores = {id: each for id, each in results.scores["search"].items() if set(OBJECTIVES) <= set(each)}
    points = [[each[name][0] for name in OBJECTIVES] for each in scores.values()]
    return [results.recipe(id) for id, keep in zip(scores, near_front(points, SLACK), strict=True) if keep]


def near_front(points: Sequence[Sequence[float]], slack: float) -> list[bool]:
    """Which points no other beats by more than ``slack`` in every coordinate; more is better."""
    values = np.array(points)
    beaten = (values[None, :, :] > values[:, None, :] + slack).all(axis=2).any(axis=1)
    return [not each for each in beaten]
