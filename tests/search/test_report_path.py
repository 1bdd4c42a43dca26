"""A search through paths as people see it: page, terminal, card and dashboard say what the recipes say."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from report_pages import Page, page_of, page_with
from rich.console import Console

from search.dashboard import genes
from search.dashboard.figures import figures
from search.dashboard.genes import Parameters
from search.report.choice import choice_data, print_choice
from search.report.console import print_results
from search.report.facts import Facts
from search.report.hop_texts import STEP, counts_text, in_steps, path_rows, path_text
from search.report.layers import layers_section
from search.report.path import path_section, paths_of
from search.report.shown_candidate import heading
from search.report.summary import summary
from search.results import Results
from search.schema import FirstConfig
from search.space import Hop, outside_of, path_of

SyntheticRun = Callable[..., Results]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, synthetic_run: SyntheticRun) -> Results:
    """Two models of six layers, twice over, with scales; as if the last member of the front had been chosen."""
    found = synthetic_run(
        tmp_path_factory.mktemp("paths") / "run", candidates=30, space={"data_flow": {"repetitions": 2}},
        search={"finalists": 4},
    )  # fmt: skip
    chosen = max(found.front)
    path = path_of(found.recipe(chosen))
    assert len({hop.alias for hop in path}) == 2 and any(hop.scale != 1.0 for hop in path)  # so that it shows something
    return replace(found, chosen=chosen)


@pytest.fixture(scope="module")
def unscaled(tmp_path_factory: pytest.TempPathFactory, synthetic_run: SyntheticRun) -> Results:
    return synthetic_run(
        tmp_path_factory.mktemp("unscaled") / "run", candidates=12, finished=False,
        space={"data_flow": {"repetitions": 1, "scales": "off"}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(results: Results) -> Page:
    return page_of(results)


def shown(path: tuple[Hop, ...]) -> list[Hop]:
    """With its scales as they are shown."""
    return [hop._replace(scale=in_steps(hop.scale) / STEP) for hop in path]


def test_every_candidate_is_what_its_recipe_says(results: Results) -> None:
    paths = paths_of(Facts(results))
    assert paths is not None and not paths.left_out and not paths.unreadable
    assert set(paths.candidates) == {each.id for each in results.candidates if each.duplicate_of is None}
    for id in paths.candidates:
        recipe = results.recipe(id)
        assert paths.hops(id) == shown(path_of(recipe))
        outside = outside_of(recipe)
        assert (f"outside the layers {outside}" in paths.counts(id)) == (outside != paths.models[0])
    assert paths.models[0] == "string" and paths.layers == 6
    every = [in_steps(hop.scale) for id in paths.candidates for hop in path_of(results.recipe(id))]
    assert paths.scales == (min(every), max(every)) and paths.longest == max(
        len(paths.hops(id)) for id in paths.candidates
    )


def test_the_page_shows_the_chosen_path_without_a_script_too(results: Results, page: Page) -> None:
    assert results.chosen is not None
    path = path_of(results.recipe(results.chosen))
    assert f"{heading(Facts(results), results.chosen)}: {counts_text(path)}" in page.text
    assert path_text(path, 24, cut=False) in page.text
    assert page.tables["The path, block by block of the result"][1:] == path_rows(path)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"path-0", "path-says", "path-text", "path-candidate", "path-other"} <= ids
    assert "layers-candidate" not in ids and "layers" not in page.data
    assert page.data["path"]["shown"] == results.chosen
    assert "folded into its weights" in page.text


def test_the_words_for_a_path_come_before_whoever_says_them(results: Results) -> None:
    found = page_of(results).scripts
    signs = ("A path through the layers in words", "const says = (id, place)", "The path of any candidate")
    order = [next(place for place, (_, text) in enumerate(found) if sign in text) for sign in signs]
    assert order == sorted(order)


def test_paths_without_scales_have_no_drawing_of_them(unscaled: Results) -> None:
    page = page_with(unscaled, path_section)
    assert page.data["path"]["ends"] == [STEP, STEP] and "scales:" not in page.text
    assert not any("s" in each for each in page.data["path"]["candidates"].values())
    assert layers_section(Facts(unscaled)) is None


def test_a_run_that_merges_weights_has_no_path(
    tmp_path_factory: pytest.TempPathFactory, synthetic_run: SyntheticRun
) -> None:
    merged = synthetic_run(tmp_path_factory.mktemp("merged") / "run", candidates=10)
    assert path_section(Facts(merged)) is None and layers_section(Facts(merged)) is not None
    out = io.StringIO()
    print_results(merged, Console(file=out, width=80))
    assert "Path of candidate" not in out.getvalue()


def test_a_path_that_is_another_one_now_is_said_and_the_others_are_drawn(results: Results) -> None:
    changed = [
        replace(each, recipe_hash="0" * 64) if each.id == results.chosen else each for each in results.candidates
    ]
    section = path_section(Facts(replace(results, candidates=tuple(changed))))
    assert section is not None and "was scored as recipe 000000000000" in section.body
    assert str(results.chosen) not in section.data["path"]["candidates"]


def test_a_page_with_less_room_has_fewer_paths(results: Results) -> None:
    facts = Facts(results)
    whole = path_section(facts)
    facts.room = 0.5
    half = path_section(facts)
    assert whole is not None and half is not None
    sizes = [len(json.dumps(each.data["path"]["candidates"])) for each in (half, whole)]
    assert 0 < sizes[0] <= 0.55 * sizes[1] and "are left out" in half.body and "are left out" not in whole.body
    assert str(results.chosen) in half.data["path"]["candidates"]


def test_a_terminal_says_it(results: Results) -> None:
    assert results.chosen is not None
    path = path_of(results.recipe(results.chosen))
    out = io.StringIO()
    print_results(results, Console(file=out, width=400))
    assert f"Path of candidate {results.chosen}, chosen: {path_text(path)}" in out.getvalue()
    out = io.StringIO()
    print_choice(results, results.chosen, "the largest", Console(file=out, width=80))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert [line for line in lines if line in path_rows(path)] == path_rows(path)
    data = choice_data(results, results.chosen, "the largest")
    assert [Hop(each["model"], each["layer"], each["scale"]) for each in data["path"]] == list(path)
    assert "coefficients" not in data


def test_the_dashboard_draws_it(results: Results, unscaled: Results) -> None:
    found = dict(figures(results))["recipe"]
    assert results.chosen is not None
    path = path_of(results.recipe(results.chosen))
    scatters = [each for each in found.data if each.type == "scatter" and each.mode == "markers"]
    marks = {x: y for each in scatters for x, y in zip(each.x, each.y, strict=True)}
    assert [marks[at] for at in range(len(path))] == [hop.layer for hop in path]
    rises = [each for each in found.data if each.type == "bar"]
    bars = {x: 1.0 + y for each in rises for x, y in zip(each.x, each.y, strict=True)}
    assert [bars[at] for at in range(len(path))] == pytest.approx([hop.scale for hop in path])
    assert not any(each.type == "bar" for each in dict(figures(unscaled))["recipe"].data)


def test_the_dashboard_names_slots_or_shares_of_them(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    every = Parameters(results.stages, 30)
    last = next(each for each in reversed(results.candidates) if each.state == "complete")
    path = path_of(results.recipe(last.id))
    named = every.of(last.stage, last.genome)
    assert sum(value is True for name, value in named.items() if name.startswith("include")) == len(path) - 2
    assert sum(name.startswith("scale") for name in named) == len(path)
    assert every.of(0, results.candidates[0].genome) == {}  # the base is no point of the space
    monkeypatch.setattr(genes, "MOST_PARAMETERS", 10)
    few = Parameters(results.stages, 30)
    assert len(few) == 8 and "means over the depth" in few.thinned
    shares = few.of(last.stage, last.genome)
    own = [value for name, value in named.items() if name.startswith("include[r0 language.")]
    assert shares["include[r0 language]"] == pytest.approx(sum(own) / len(own), abs=1e-9)
    ends = few.distributions["include[r0 language]"]
    assert (ends.low, ends.high) == (0.0, 1.0)


def test_the_settings_say_what_paths_may_be_like(page: Page, unscaled: Results) -> None:
    rows = dict(page.tables["Settings"])
    assert rows["data-flow space"] == (
        "layers of string and language; 2 repetitions, all of a model, then all of the next; in this order; "
        "scales 0.4 to 1.5, one for every hop; ends fixed; at most twice the layers of string; indicators by choice"
    )
    assert "no scales" in dict(page_of(unscaled).tables["Settings"])["data-flow space"]


def test_of_two_searches_each_says_which_it_is(results: Results) -> None:
    first = FirstConfig(name="evolved", search=results.config.search)
    hybrid = replace(results, config=results.config.model_copy(update={"first": first}))
    assert "first/report.html in the run's directory is its report" in " ".join(summary(Facts(hybrid)))
    assert "first/report.html" not in " ".join(summary(Facts(results)))
    closed = results.config.search.model_copy(update={"holdout": False})
    none = {split: {} if split == "holdout" else scores for split, scores in results.scores.items()}
    alone = replace(results, config=results.config.model_copy(update={"search": closed}), scores=none)
    said = " ".join(summary(Facts(replace(alone, started=replace(results.started, of_hybrid=True)))))
    assert "This is the first of two searches: the second one has it as an expert." in said
    assert "It has no holdout score yet" in " ".join(summary(Facts(alone)))
