"""A diagnosis on a terminal and on a page: every number in its place, and nothing that a stranger's text could do."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import yaml
from planted_diagnosis import ATTENTION, DEPTHS, MLP, Reason, Verdict, diagnosed, finding_of, name_of
from rich.console import Console

from merging.diagnose import Diagnosis, Measures
from merging.diagnose.verdicts import verdict
from merging.methods import is_ready
from merging.recipe import Group
from search.diagnosis import page
from search.diagnosis.console import print_finding
from search.diagnosis.finding import suggested_space
from search.diagnosis.heatmaps import ends_of, grid_of_groups, grid_of_tensors
from search.diagnosis.page import MOST_BYTES, render, write_page
from search.diagnosis.quantities import (
    COSINE,
    EFFECTIVE_RANK,
    NORM_RATIO,
    OVERLAP,
    QUANTITIES,
    SIGN_CONFLICT,
    largest,
    shown_quantities,
    weighty,
)
from search.space_schema import Blocks, SpaceConfig

PAIR = ("one", "two")


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    return diagnosed(tmp_path_factory.mktemp("models") / "planted", density=0.5)


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def cells_of(text: str, id: str) -> dict[tuple[str, str], float | None]:
    """(row, column) -> the number that the drawing has there."""
    trace = next(each for each in data_of(text)["figures"] if each["id"] == id)["traces"][0]
    return {
        (row, column): trace["z"][place][across]
        for place, row in enumerate(trace["y"])
        for across, column in enumerate(trace["x"])
    }


def shown(diagnosis: Diagnosis, width: int = 80, **more: Any) -> str:
    out = io.StringIO()
    print_finding(finding_of(diagnosis), Console(file=out, width=width), **more)
    return out.getvalue()


# -- the page ----------------------------------------------------------------------------------------------------------


def test_heat_maps_have_every_number_in_its_place(diagnosis: Diagnosis) -> None:
    text = render(finding_of(diagnosis))
    cosines, conflicts = cells_of(text, "cosine-0"), cells_of(text, "sign-conflict-0")
    overlaps, norms = cells_of(text, "overlap-0"), cells_of(text, "norm-ratio-1")
    assert cosines["attention", "1"] == pytest.approx(-1.0)
    assert conflicts["attention", "1"] == 1.0
    assert cosines["embedding", "outside"] == pytest.approx(1.0)
    assert conflicts["embedding", "outside"] == 0.0
    assert cosines["embedding", "0"] is None
    for depth in range(DEPTHS):
        assert cosines["mlp", str(depth)] == 0.0  # they change halves of their own
        assert overlaps["mlp", str(depth)] == 0.0
        assert norms["mlp", str(depth)] == pytest.approx(
            diagnosis.groups[Group("mlp", depth)].norm_ratio["two"], rel=1e-3
        )
    # of ranks there is one for each expert, by group and by tensor
    ranks = cells_of(text, "effective-rank-tensors-0")
    expected = diagnosis.tensors[name_of(2, MLP)].effective_rank["one"]
    assert ranks["mlp.up_proj", "2"] == pytest.approx(expected, rel=1e-3)
    assert ("self_attn.q_proj", "1") in ranks


def test_tables_hold_the_numbers_of_the_drawings(diagnosis: Diagnosis) -> None:
    text = render(finding_of(diagnosis))
    rows = re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", text)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert ["attention.1", "−1.000"] in cells
    assert ["attention.1", "100 %"] in cells
    whole = diagnosis.whole
    assert any(row[0] == "one × two" and row[1] == COSINE.text(whole.cosine[PAIR]) for row in cells)
    chance = f"{OVERLAP.text(whole.overlap[PAIR])} ({OVERLAP.text(whole.overlap_chance[PAIR])})"
    assert any(chance in row for row in cells)


def test_a_page_lets_nothing_in_and_holds_no_path(diagnosis: Diagnosis, tmp_path: Path) -> None:
    verdict = Verdict("</script><img src=x>", (Reason("<b>bold</b> \u202e"),), ('"&',))
    finding = replace(
        finding_of(
            replace(diagnosis, references={"one": str(tmp_path / "deep")}, notes=(f"{tmp_path / 'deep'} is far away",)),
            verdict=verdict,
        ),
        references={"base": str(tmp_path / "deep" / "start"), "one": "zoo://f/one"},
    )
    path = write_page(finding, tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    markup = text[: text.index("<script")]
    assert "Content-Security-Policy" in markup and "default-src &#x27;none&#x27;" in markup
    assert "<img" not in markup and "<b>bold" not in markup and "\u202e" not in markup
    assert "&lt;/script&gt;&lt;img" in markup
    assert "deep is far away" in markup
    assert str(tmp_path) not in text and ">start<" in markup and "zoo://f/one" in markup
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_hostile_names_of_tensors_are_only_text(diagnosis: Diagnosis) -> None:
    evil = "model.layers.0.</script><script>alert(1)</script>%{x}.weight"
    named = replace(
        diagnosis,
        tensors={**diagnosis.tensors, evil: diagnosis.tensors[name_of(0, MLP)]},
        places={**diagnosis.places, evil: Group("mlp", 0)},
    )
    text = render(finding_of(named))
    assert "<script>alert" not in text
    found = cells_of(text, "cosine-tensors-0")
    assert any("&lt;script&gt;" in row for row, _ in found)


@pytest.mark.slow
def test_pages_of_large_models_stay_small(diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of tensors are given up first, then pairs; and the page says so."""
    aliases = tuple(f"expert-{number}" for number in range(5))
    pairs = list(combinations(aliases, 2))
    measures = Measures(
        1000, 1.0, dict.fromkeys(aliases, 0.123456), dict.fromkeys(aliases, 0.0123456),
        cosine=dict.fromkeys(pairs, 0.01234567), z=dict.fromkeys(pairs, 123.4567),
        sign_conflict={**dict.fromkeys(pairs, 0.4567), "all": 0.512345}, overlap=dict.fromkeys(pairs, 0.1234567),
        overlap_chance=dict.fromkeys(pairs, 0.111), effective_rank=dict.fromkeys(aliases, 1234.567),
    )  # fmt: skip
    groups = [Group(kind, depth) for depth in range(20) for kind in ("attention", "mlp")]
    modules = [(depth, number) for depth in range(20) for number in range(12)]
    places = {f"model.layers.{depth}.m{number}.weight": Group("mlp", depth) for depth, number in modules}
    large = replace(
        diagnosis, aliases=aliases, whole=measures, kinds=dict.fromkeys(("attention", "mlp"), measures),
        groups=dict.fromkeys(groups, measures), tensors=dict.fromkeys(places, measures), places=places,
    )  # fmt: skip
    whole = render(finding_of(large))
    assert len(whole.encode()) < MOST_BYTES and "cosine-tensors-0" in whole
    monkeypatch.setattr(page, "MOST_BYTES", len(whole.encode()) - 1)
    groups_alone = render(finding_of(large))
    assert "cosine-tensors-0" not in groups_alone and "expert-3 × expert-4" in groups_alone
    monkeypatch.setattr(page, "MOST_BYTES", len(groups_alone.encode()) - 1)
    fewer = render(finding_of(large))
    assert len([each for each in data_of(fewer)["figures"] if each["id"].startswith("cosine-")]) == 6
    assert "The first 6 of 10 are drawn" in fewer


def test_one_expert_has_no_pairs(diagnosis: Diagnosis) -> None:
    alone = replace(
        diagnosis,
        aliases=("one",),
        whole=_alone(diagnosis.whole),
        groups={group: _alone(each) for group, each in diagnosis.groups.items()},
        kinds={kind: _alone(each) for kind, each in diagnosis.kinds.items()},
        tensors={name: _alone(each) for name, each in diagnosis.tensors.items()},
    )
    assert shown_quantities(alone) == [NORM_RATIO, EFFECTIVE_RANK]
    text = render(finding_of(alone))
    assert "sign-conflict" not in text and "norm-ratio-0" in text
    assert "one × two" not in shown(alone) and "thousandths" in shown(alone)


def _alone(measures: Measures) -> Measures:
    return Measures(
        measures.elements, measures.base_norm, {"one": measures.norm["one"]}, {"one": measures.norm_ratio["one"]},
        effective_rank={alias: value for alias, value in measures.effective_rank.items() if alias == "one"},
    )  # fmt: skip


# -- colours -----------------------------------------------------------------------------------------------------------


def test_colours_end_where_nearly_all_weights_do(diagnosis: Diagnosis) -> None:
    small = replace(diagnosis.whole, elements=1, cosine={PAIR: -0.9}, overlap={PAIR: 1.0})
    large = replace(diagnosis.whole, elements=1000, cosine={PAIR: 0.25})
    scopes = {"small": small, "large": large}
    assert list(weighty(scopes)) == ["large"]
    assert ends_of(COSINE, scopes, [PAIR], diagnosis) == (-0.25, 0.0, 0.25)
    # and noise does not fill the scale
    assert ends_of(COSINE, {"quiet": replace(large, cosine={PAIR: 0.01})}, [PAIR], diagnosis) == (-0.1, 0.0, 0.1)


def test_the_middle_of_overlaps_is_chance(diagnosis: Diagnosis) -> None:
    low, middle, high = ends_of(OVERLAP, {"whole": diagnosis.whole}, [PAIR], diagnosis)
    assert middle == pytest.approx(diagnosis.whole.overlap_chance[PAIR])
    assert low >= 0.0 and high > middle


def test_every_tensor_of_a_block_has_a_place_of_its_own(diagnosis: Diagnosis) -> None:
    for grid in (grid_of_groups(diagnosis), grid_of_tensors(diagnosis)):
        assert grid is not None
        assert len(set(grid.cells.values())) == len(grid.cells)
    assert grid_of_groups(diagnosis).columns == ["outside", "0", "1", "2"]
    many = {f"model.layers.0.mlp.experts.{number}.up.weight": Group("mlp", 0) for number in range(100)}
    crowded = replace(diagnosis, places=many, tensors=dict.fromkeys(many, diagnosis.whole))
    assert grid_of_tensors(crowded) is None


# -- the terminal ------------------------------------------------------------------------------------------------------


def test_the_verdict_comes_first_and_the_worst_group_is_named(diagnosis: Diagnosis) -> None:
    text = shown(diagnosis)
    lines = text.splitlines()
    assert lines[0] == "They can merge."
    assert "little conflict, but for one layer" in lines[1]
    worst = next(line for line in lines if "attention.1" in line)
    assert "100 %" in worst and "−1.000" in worst and "one × two" in worst
    assert max(map(len, lines)) <= 80
    heading = next(place for place, line in enumerate(lines) if line.startswith("Sign conflict in per cent"))
    columns, *rows = lines[heading + 1 : heading + 4]
    assert columns.split() == ["0", "1", "2"]
    attention = next(row for row in rows if row.startswith("attention")).split()
    assert attention[2] == "100"


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_any_quantity_has_a_map(diagnosis: Diagnosis, quantity: Any, width: int) -> None:
    text = shown(diagnosis, width, quantity=quantity)
    rows = [line for line in text.splitlines() if line.startswith("attention  ")]
    assert len(rows) == 1
    assert quantity.title in text


def test_deep_models_are_drawn_with_a_sign_a_depth(diagnosis: Diagnosis) -> None:
    groups = {Group("mlp", depth): replace(diagnosis.whole, norm_ratio={"one": depth / 100}) for depth in range(100)}
    deep = replace(diagnosis, groups=groups)
    lines = shown(deep, 60, quantity=NORM_RATIO).splitlines()
    row = next(line for line in lines if line.startswith("mlp  "))
    assert len(row) <= 60 and row[5] == "▁" and row.rstrip()[-1] == "█"
    assert "".join(sorted(row[5:].rstrip())) == row[5:].rstrip()  # longer and longer with the depth
    assert "2 depths a sign" in lines[lines.index(row) + 1]


def test_a_terminal_obeys_nobody(diagnosis: Diagnosis) -> None:
    out = io.StringIO()
    verdict = Verdict("\x1b]0;title\x07 [red]loud[/red]", (Reason("\x1b[2J"),), ("[link=x]y[/link]",))
    print_finding(finding_of(diagnosis, verdict=verdict), Console(file=out, width=80, force_terminal=False))
    assert "\x1b" not in out.getvalue() and "\x07" not in out.getvalue()
    assert "[red]loud[/red]" in out.getvalue() and "[link=x]y[/link]" in out.getvalue()


def test_the_worst_are_told_by_their_numbers(diagnosis: Diagnosis) -> None:
    (group, pair, value), *others = largest(diagnosis, SIGN_CONFLICT, 10)
    assert (str(group), pair, value) == ("attention.1", PAIR, 1.0)
    assert [each[2] for each in others] == sorted((each[2] for each in others), reverse=True)


def test_json_holds_all_of_it(diagnosis: Diagnosis) -> None:
    data = json.loads(json.dumps(finding_of(diagnosis).as_data()))
    assert data["format"] == "paretomerge-diagnose/1"
    assert data["models"]["one"] == "models/one"
    assert Diagnosis.from_data(data["diagnosis"]).whole == diagnosis.whole
    assert "curves" not in data


def test_what_is_suggested_is_a_space_of_a_config(diagnosis: Diagnosis) -> None:
    said = suggested_space(verdict(diagnosis))
    for text in (said, suggested_space(Verdict())):  # type: ignore[arg-type]
        space = SpaceConfig.model_validate(yaml.safe_load(text)["space"])
        assert all(is_ready(str(each)) for each in space.methods)
    assert space.granularity == Blocks(blocks="auto") and space.coefficient == (0.0, 1.2)
    assert indent(said, "    ") in shown_by(diagnosis, verdict(diagnosis))


def shown_by(diagnosis: Diagnosis, words: Any) -> str:
    out = io.StringIO()
    print_finding(finding_of(diagnosis, verdict=words), Console(file=out, width=120))
    return out.getvalue()


def test_numbers_are_written_as_people_read_them() -> None:
    assert [COSINE.text(value) for value in (None, -0.0001, -0.25, 1.0)] == ["–", "0.000", "−0.250", "1.000"]
    assert SIGN_CONFLICT.text(0.456) == "46 %"
    assert name_of(0, ATTENTION).endswith("q_proj.weight")
