"""The tables of docs/size_effect.md, put where the page says: between ``<!-- NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from experiments.sizing import tables
from experiments.sizing.cells import Cell
from experiments.sizing.plan import MERGES

_BLOCK = re.compile(r"(?P<head><!-- (?P<name>[a-z]+) -->\n)(?:(?!<!-- ).)*(?P<tail>\n<!-- end -->)", re.DOTALL)


def blocks(cells: Sequence[Cell]) -> dict[str, str]:
    """Every table and list by its name."""
    merges = "\n\n".join(
        f"{tables.merge_table(cells, experts, worst=False)}\n\n{tables.merge_table(cells, experts, worst=True)}"
        for experts in MERGES
    )
    return {
        "seeds": tables.seeds_table(cells),
        "answer": tables.answer(cells),
        "matching": tables.matching_table(cells),
        "merges": merges,
        "skills": f"{tables.skills_table(cells)}\n\n{tables.chosen_table(cells)}",
        "weights": tables.weights_table(cells),
    }


def filled(text: str, found: Mapping[str, str]) -> str:
    """A page with its blocks as they are now.

    Raises:
        SystemExit: the page names a block that there is not, or has not all of them.
    """
    names = [match["name"] for match in _BLOCK.finditer(text)]
    if sorted(names) != sorted(found):
        raise SystemExit(
            f"the page has to have each of these blocks once, as <!-- NAME -->: {', '.join(found)}; found "
            f"{', '.join(names) or 'none'}"
        )
    return _BLOCK.sub(lambda match: f"{match['head']}\n{found[match['name']]}\n{match['tail']}", text)


def printed(found: Mapping[str, str]) -> str:
    """All of it, for a terminal."""
    heads = {
        "seeds": "The answer", "answer": "", "matching": "How well the sizes are matched", "merges": "Arm by arm",
        "skills": "Skill by skill", "weights": "How the task vectors lie",
    }  # fmt: skip
    return "\n\n".join(f"### {heads[name]}\n\n{text}" if heads[name] else text for name, text in found.items())
