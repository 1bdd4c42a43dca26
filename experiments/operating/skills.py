"""Addition, subtraction and forgetting on the skills models: what is measured, and the tables of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zoo
from evaluators.contract import Split
from experiments.diagnosing.gaps import Records
from experiments.operating import items
from experiments.operating.bench import Bench
from experiments.operating.choosing import best, most_kept, within
from experiments.operating.rows import Rows
from experiments.operating.tuning import FINE_TUNES, fine_tuned

SEEDS = (0, 1, 2)

SUMS = tuple(round(0.1 * step, 1) for step in range(1, 15))
"""λ of a sum of two experts."""

TAKEN = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""λ of what is taken off the base."""

TAKEN_HARM = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""The same of compliance with harmful requests, which the base has in full."""

PARTS = (0.6, 0.8, 1.0, 1.2)
"""Coefficients of string and of refusal, each."""

GONE = (0.5, 0.25, 0.1)
"""Unlearned: at most this share of the base's accuracy is left."""

HARMLESS_FLOOR = REFUSED_FLOOR = 0.95


def bench(
    records: Records, part: str, seed: int, members: Sequence[str], more: Mapping[str, Path] | None = None
) -> Bench:
    """The skills models of a seed with the evaluators of all operations.

    Args:
        records: where scores and data are kept.
        part: the operation.
        seed: of the family.
        members: of the zoo, beside the base.
        more: further models.
    """
    where = f"zoo://skills@{seed}"
    models = {name: zoo.resolve(f"{where}/{name}") for name in ("base", *members)} | dict(more or {})
    data = items.write(records.folder / "data")
    data |= {name: zoo.resolve(f"{where}/data/{name}") for name in ("string", "language")}
    specs: dict[str, dict[str, Any]] = {
        name: {"type": "exact_match", "data": str(path), "metric": "accuracy"} for name, path in data.items()
    }
    return Bench(records, part, "skills", seed, models, specs)


def _held(one: Bench, expression: str, names: Sequence[str], split: Split = "holdout") -> dict[str, float]:
    return {name: one.score(expression, name, split) for name in names}


def addition(records: Records) -> str:
    """string + language, λ chosen on search items."""
    rows = Rows(("λ", "string", "language", "mean", "kept"))
    for seed in SEEDS:
        small = compact(records, seed, ("string", "language"))
        one = bench(records, "addition", seed, ("string", "language"), small)

        def mean(value: float, one: Bench = one) -> float:
            return sum(_held(one, f"{value:g}*(string + language)", ("string", "language"), "search").values()) / 2

        chosen = best({value: mean(value) for value in SUMS})
        for title, expression, value in (
            ("`base`", "base", None),
            ("`string`", "string", None),
            ("`language`", "language", None),
            ("`string + language`", "string + language", None),
            ("`0.5*(string + language)`, the average", "0.5*(string + language)", None),
            ("`λ*(string + language)`", f"{chosen:g}*(string + language)", chosen),
            ("the same, from vectors with 5 % error", f"{chosen:g}*(string_5 + language_5)", chosen),
        ):
            found = _held(one, expression, ("string", "language", "kept"))
            row = found | {"mean": (found["string"] + found["language"]) / 2}
            rows.add(title, row if value is None else row | {"λ": value})
    return rows.markdown("holdout", ("λ",))


def compact(records: Records, seed: int, members: Sequence[str]) -> dict[str, Path]:
    """Members of the zoo as vectors of a store with a budget of 5 %, made once: ``string_5`` and so on."""
    from merging.opening import open_model
    from merging.vectors.store import Store
    from search.vector_options import parse_coding
    from search.vector_work import extracted

    store = Store(records.folder / f"vectors-{seed}")
    made = {}
    for member in members:
        name = f"{member}_5"
        if name not in store.names():
            named = {"base": f"zoo://skills@{seed}/base", "expert": f"zoo://skills@{seed}/{member}"}
            base = open_model(zoo.resolve(named["base"]))
            expert = open_model(zoo.resolve(named["expert"]), base)
            extracted(store, name, base, expert, named, parse_coding(0.05, None, None, False), None)
        made[name] = store.folder(name)
    return made


def subtraction(records: Records) -> str:
    """base − λ·string: what goes with it, at which λ."""
    rows = Rows(("λ", "string", "kept", *items.KEPT, "language"))
    for seed in SEEDS:
        one = bench(records, "subtraction", seed, ("string",))
        points = {
            value: (one.score(f"base - {value:g}*string", "string", "selection"),
                    one.score(f"base - {value:g}*string", "kept", "selection"))
            for value in TAKEN
        }  # fmt: skip
        rows.add("`base`", _lost(one, "base"))
        for share in GONE:
            chosen = most_kept(points, share * one.score("base", "string", "selection"))
            title = f"`base - λ*string`, at most {100 * share:g} % left"
            rows.add(title, {} if chosen is None else _lost(one, f"base - {chosen:g}*string") | {"λ": chosen})
    return rows.markdown("holdout", ("λ",))


def _lost(one: Bench, expression: str) -> dict[str, float]:
    found = _held(one, expression, ("string", "kept", "language"))
    return found | {stratum: one.score(expression, "kept", "holdout", stratum=stratum) for stratum in items.KEPT}


def harm(records: Records) -> str:
    """Compliance with harmful requests taken off the base, by two vectors that stand for it."""
    rows = Rows(("λ", "complied", "refused", "harmless", "kept", "string"))
    names = ("complied", "refused", "harmless", "kept", "string")
    vectors = {"harmful": "base - {:g}*harmful", "difference": "base - {:g}*(jailbroken - refusal)"}
    for seed in SEEDS:
        made = {
            name: fine_tuned(records.folder / "models", FINE_TUNES[name], seed) for name in ("harmful", "jailbroken")
        }
        one = bench(records, "harm", seed, ("refusal",), made)
        rows.add("`base`", _held(one, "base", names))
        rows.add("`refusal`, the expert", _held(one, "refusal", names))
        for written in vectors.values():
            points = {
                value: (one.score(written.format(value), "complied", "search"),
                        one.score(written.format(value), "harmless", "search"))
                for value in TAKEN_HARM
            }  # fmt: skip
            chosen = most_kept(points, 0.05)
            title = f"`{written.replace('{:g}', 'λ')}`"
            found = {} if chosen is None else _held(one, written.format(chosen), names) | {"λ": chosen}
            rows.add(title, found)
    return rows.markdown("holdout", ("λ",))


def forgetting(records: Records) -> str:
    """One skill after another, against merges of the two experts."""
    rows = Rows(("a", "b", "string", "refused", "harmless", "kept"))
    names = ("string", "refused", "harmless", "kept")
    sequential = ("refusal_then_string", "refusal_then_string_harmless", "string_then_refusal")
    titles = {
        "refusal_then_string": "string learned after refusal, replay as the zoo's",
        "refusal_then_string_harmless": "string learned after refusal, replay without harmful requests",
        "string_then_refusal": "refusal learned after string",
    }
    for seed in SEEDS:
        made = {name: fine_tuned(records.folder / "models", FINE_TUNES[name], seed) for name in sequential}
        one = bench(records, "forgetting", seed, ("string", "refusal"), made)
        for title, expression in {
            "`base`": "base", "`string`": "string", "`refusal`": "refusal",
            **{titles[name]: name for name in sequential},
            "`string + refusal`": "string + refusal",
        }.items():  # fmt: skip
            rows.add(title, _held(one, expression, names))
        floors = (REFUSED_FLOOR, HARMLESS_FLOOR)
        for title, candidates in {
            "`a*(string + refusal)`": [(value, value) for value in SUMS[3:12]],
            "`a*string + b*refusal`": [(a, b) for a in PARTS for b in PARTS],
        }.items():
            points = {
                pair: list(_held(one, _sum(*pair), ("string", "refused", "harmless"), "search").values())
                for pair in candidates
            }
            a, b = within(points, floors)
            rows.add(title, _held(one, _sum(a, b), names) | {"a": a, "b": b})
    return rows.markdown("holdout", ("a", "b"))


def _sum(a: float, b: float) -> str:
    return f"{a:g}*string + {b:g}*refusal"
