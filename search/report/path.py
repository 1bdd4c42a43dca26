"""The report's section on paths through layers: the hops of any candidate, alone or beside those of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merging.recipe import Recipe
from search.errors import SearchError
from search.report.coefficients import ROOM, Encoded, Fitted, fitted, kept
from search.report.facts import Facts, without_paths
from search.report.figures import Data
from search.report.hop_texts import (
    MANY_PARTS,
    PATH_HEADER,
    STEP,
    counts_text,
    hops_in,
    in_steps,
    path_rows,
    path_text,
    stretches,
)
from search.report.markup import Html, element, join, table
from search.report.section import Section
from search.report.shown_candidate import heading, missing_text, offered
from search.schema import Config
from search.space.hops import Hop, outside_of

TITLE = "Path through the layers"
NAME = "path"
SCRIPTS = ("hops",)
"""What says a path in words, wherever on the page a candidate's recipe is said."""

_LOOKS = (("●", "circle", "front"), ("■", "square", "chosen"), ("◆", "diamond", "reference"),
          ("▲", "triangle-up", "baseline"), ("▼", "triangle-down", "recommended"), ("✚", "cross", "muted"))  # fmt: skip
_ROW = 18
"""Pixels of a layer in the drawing, as long as it does not become too high."""


@dataclass(frozen=True)
class Paths(Fitted):
    """The paths of the candidates that a page has room for.

    Of each candidate, ``h``: [hops joined to stretches × 3] index of the model, first and last layer, flat; ``s``: the
    scales in whole :data:`search.report.hop_texts.STEP`, a single number where all are the same, left out where they
    are 1; ``o``: index of the model outside the layers, left out where it is model A.

    Attributes:
        models: aliases, model A first.
        layers: how many each of them has.
    """

    models: tuple[str, ...]
    layers: int

    def hops(self, id: int) -> list[Hop]:
        """A candidate's path, its scales as they are shown."""
        encoded = self.candidates[id]
        flat = encoded["h"]
        stops = [
            (self.models[model], layer)
            for model, first, last in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
            for layer in range(first, last + 1)
        ]
        scales = encoded.get("s", STEP)
        each = scales if isinstance(scales, list) else [scales] * len(stops)
        return [Hop(alias, layer, scale / STEP) for (alias, layer), scale in zip(stops, each, strict=True)]

    def counts(self, id: int) -> str:
        """What a candidate's path amounts to, in words."""
        outside = self.candidates[id].get("o", 0)
        return counts_text(self.hops(id)) + (f"; outside the layers {self.models[outside]}" if outside else "")

    @property
    def scales(self) -> tuple[int, int]:
        """The smallest and the largest scale of all, and 1 between them, in whole steps."""
        known = [value for each in self.candidates.values() for value in _listed(each.get("s", STEP))]
        return min([STEP, *known]), max([STEP, *known])

    @property
    def longest(self) -> int:
        """Hops of the longest path."""
        return max(len(self.hops(id)) for id in self.candidates)


def is_path(config: Config) -> bool:
    """Whether a run searches paths through layers."""
    return config.space.data_flow is not None


def path_scripts(facts: Facts) -> tuple[str, ...]:
    """What a section needs that says recipes, before its own script."""
    return SCRIPTS if is_path(facts.results.config) else ()


def path_section(facts: Facts) -> Section | None:
    """The path of the pick, which the reader may exchange for another candidate; None before the first score, and where
    the run searches no paths.

    Raises:
        SearchError: this version cannot build the run's spaces.
    """
    if facts.pick is None or not is_path(facts.results.config):
        return None
    paths = kept(facts, NAME, lambda: paths_of(facts))
    if paths is None or not paths.candidates:
        reasons = [] if paths is None else list(paths.unreadable.values())
        text = without_paths(reasons[0], facts.results) if reasons else "No recipe is known."
        return Section(TITLE, element("p", text))
    shown = facts.pick if facts.pick in paths.candidates else next(iter(paths.candidates))
    unread = [paths.unreadable[id] for id in [facts.pick] if id in paths.unreadable]
    hops = paths.hops(shown)
    body = [
        *(element("p", without_paths(each, facts.results), class_="note") for each in unread),
        _controls(facts, shown),
        element("p", f"{heading(facts, shown)}: {paths.counts(shown)}", id="path-says", role="status", class_="note"),
        element("p", element("code", path_text(hops, MANY_PARTS, cut=False), id="path-text")),
        _figure(facts, paths, shown),
    ]
    data = {NAME: _data(facts, paths, shown)}
    return Section(TITLE, join(body), data=data, scripts=(*SCRIPTS, NAME), styles=("details",))


def paths_of(facts: Facts, room: int = ROOM) -> Paths | None:
    """The paths of as many candidates as there is room for; None where there is no candidate.

    Raises:
        SearchError: the spaces of the run cannot be built.
    """
    space = facts.results.stages[-1].space
    if not space.is_path:
        return None
    models = {alias: index for index, alias in enumerate(space.models)}
    fitting = fitted(facts, lambda _, recipe: encode(recipe, models), room)
    if fitting is None:
        return None
    return Paths(fitting.candidates, fitting.left_out, fitting.unreadable, tuple(models), space.layers)


def encode(recipe: Recipe, models: dict[str, int]) -> Encoded:
    """A path in few bytes: see :class:`Paths`.

    Args:
        recipe: one whose every block is one layer of one model.
        models: alias -> index; new ones are added.

    Raises:
        SearchError: a recipe that is no path.
    """
    hops = hops_in(recipe)
    if hops is None:
        raise SearchError("expected a path through layers, found a recipe that merges weights")
    flat: list[int] = []
    for each in stretches(hops, scaled=False):
        flat += [models.setdefault(each.alias, len(models)), each.first, each.last]
    encoded: Encoded = {"h": flat}
    scales = [in_steps(each.scale) for each in hops]
    if set(scales) != {STEP}:
        encoded["s"] = scales[0] if len(set(scales)) == 1 else scales
    if outside := models.setdefault(outside_of(recipe), len(models)):
        encoded["o"] = outside
    return encoded


def _controls(facts: Facts, shown: int) -> Html:
    first = element("option", heading(facts, shown), value=str(shown))
    return element(
        "div",
        element("label", "Candidate ", element("select", first, id="path-candidate")),
        element("label", "Compare with ", element("select", element("option", "nothing", value=""), id="path-other")),
        class_="controls",
    )


def _figure(facts: Facts, paths: Paths, shown: int) -> Html:
    scaled = paths.scales != (STEP, STEP)
    height = 90 + min(380, max(150, _ROW * paths.layers)) + (120 if scaled else 0)
    first = paths.models[0]
    keys = [
        (letter, f"--{colour}", alias if place else f"{alias}, model A")
        for place, (alias, (letter, _, colour)) in enumerate(zip(paths.models, _looks(paths), strict=True))
    ]
    keys += [("┈", "--muted", f"{first} as it is"), ("○", "--muted", "hollow, and dashes: what it is compared with")]
    legend = [
        element("li", element("span", letter, style=f"color:var({colour})", aria_hidden="true"), " ", text)
        for letter, colour, text in keys
    ]
    return element(
        "figure",
        element("ul", legend, class_="legend"),
        element(
            "div",
            element(
                "div", class_="plot", id="path-0", role="img", style=f"height:{height}px",
                aria_label="The layers of a path, hop by hop; they are in the table below it",
            ),
            class_="plots",
        ),
        element("figcaption", _caption(facts, paths, scaled)),
        element(
            "details",
            element("summary", "The numbers of this figure"),
            element("div", numbers(paths.hops(shown)), id="path-table"),
        ),
    )  # fmt: skip


def numbers(hops: Sequence[Hop]) -> Html:
    """The table of one path; the script writes that of another one in the same way."""
    return table("The path, block by block of the result", PATH_HEADER, path_rows(hops), tall=True)


def _caption(facts: Facts, paths: Paths, scaled: bool) -> str:
    text = (
        "A hop is one application of a layer, and one block of the result: hops across, from the input on, and up the "
        "layer that each of them is in its own model (0 is next to the input). Embedding, head and final norm are "
        f"{paths.models[0]}'s, where nothing else is said. On the dotted line the layers of "
        f"{paths.models[0]} stand in their own order; below it a layer comes later than it does there, above it "
        "earlier. "
    )
    if scaled:
        text += (
            "The bars below are scales: what the hidden state is multiplied by before the hop, 1 where nothing is "
            "changed. An export has a block for every hop, the scales folded into its weights. "
        )
    return (text + "A candidate that is picked anywhere on this page is shown here too. "
            + missing_text(facts, paths)).strip()  # fmt: skip


def _data(facts: Facts, paths: Paths, shown: int) -> Data:
    return {
        "models": list(paths.models),
        "looks": [[symbol, colour] for _, symbol, colour in _looks(paths)],
        "layers": paths.layers,
        "longest": paths.longest,
        "ends": list(paths.scales),
        "candidates": {str(id): each for id, each in paths.candidates.items()},
        **offered(facts, paths.candidates, shown),
    }


def _looks(paths: Paths) -> list[tuple[str, str, str]]:
    """(letter, symbol, colour) of every model."""
    return [_LOOKS[place % len(_LOOKS)] for place in range(len(paths.models))]


def _listed(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]
