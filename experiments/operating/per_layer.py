"""Does unlearning by layer and kind of module lose less than unlearning by one number? A search, and the λ curve."""

from __future__ import annotations

from pathlib import Path

from experiments.diagnosing.gaps import Records
from experiments.operating import items
from experiments.operating.bench import Bench
from experiments.operating.choosing import most_kept
from experiments.operating.rows import Rows
from experiments.operating.skills import GONE, SEEDS, TAKEN, bench
from merging.recipe import Recipe

CONFIG = Path(__file__).with_name("unlearn.yaml")


def per_layer(records: Records) -> str:
    """The most that is kept at equal unlearning, both chosen on selection items."""
    rows = Rows(("string", "kept", *items.KEPT))
    for seed in SEEDS:
        one = bench(records, "subtraction", seed, ("string",))
        base = one.score("base", "string", "selection")
        among: dict[str, list[str | Recipe]] = {
            "one λ": [f"base - {value:g}*string" for value in TAKEN],
            "searched": list(finalists(records, seed)),
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


def finalists(records: Records, seed: int) -> list[Recipe]:
    """What the search ended with on one training seed; it goes on where it was stopped."""
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
    return [results.recipe(id) for id in results.finalists]
