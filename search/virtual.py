"""Virtual experts: what a config says of them, checked, and made when a run is set up.

A virtual expert is a merge of the config's experts, with float32 weights, in the user's cache; from then on the search
treats it as one expert more. Its own recipe goes into every recipe that uses it, so that a winner can be made again
where the cache is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from merging.recipe import Assignment, Group, MergingError, Recipe, SourceRef, Value
from search.positions import Location, Problem, did_you_mean
from search.schema import Config, VirtualConfig
from search.space.methods import PLANNED

if TYPE_CHECKING:
    from merging import Sources
    from merging.calibration.contract import Calibration
    from search.config import LoadedConfig

Say = Callable[[str], None]

ALONE = " alone"
"""How the labels of virtual experts end, as baselines."""


def experts_of(config: Config) -> tuple[str, ...]:
    """All aliases that a search gives coefficients to: the experts, then the virtual ones."""
    return (*config.models.experts, *config.models.virtual)


def members(virtual: VirtualConfig, config: Config) -> tuple[str, ...]:
    """The experts that a virtual one is made of, in the order in which its method sees them."""
    return tuple(config.models.experts) if virtual.of is None else tuple(virtual.of)


def references(config: Config) -> dict[str, str]:
    """Alias -> the model as the config names it; of a virtual expert, of what it is made."""
    made = {
        name: f"{virtual.method} of {', '.join(members(virtual, config))}"
        for name, virtual in config.models.virtual.items()
    }
    return {"base": config.models.base, **config.models.experts, **made}


def needs_calibration(method: str) -> bool:
    """Whether a method looks at inputs.

    Raises:
        MergingError: there is no such method.
    """
    from merging.methods import get

    return get(method).needs.calibration


def assignment_of(virtual: VirtualConfig, config: Config, fingerprint: str = PLANNED) -> Assignment:
    """What its method does to every group.

    Args:
        virtual: one of the config's.
        config: the run's.
        fingerprint: of its calibration data, where the method needs any.

    Raises:
        MergingError: no such method, or it does not take these experts or parameters.
    """
    from merging.methods import CALIBRATION, canonical, get, suggest

    method = get(virtual.method)
    own = {each.name: each for each in method.parameters if each.per_source}
    shared: dict[str, Value] = dict(virtual.parameters)
    if "coefficient" in shared:
        raise MergingError("coefficients stand under `coefficients`, not among the parameters")
    per_source = {name: shared.pop(name) for name in own.keys() & shared.keys()}
    if virtual.coefficients is not None and "coefficient" not in own:
        raise MergingError(f"{virtual.method} has no coefficients; it merges its experts alike. Leave them out")
    sources: dict[str, dict[str, Value]] = {}
    for alias in members(virtual, config):
        sources[alias] = dict(per_source)
        if "coefficient" in own:
            sources[alias]["coefficient"] = _coefficient(virtual, alias, own["coefficient"].default)
    known = {each.name for each in method.parameters}
    for name in shared.keys() - known - {"delta_scale"}:
        raise MergingError(
            f"{virtual.method} has no parameter {name!r}{suggest(name, sorted(known - {'coefficient'}))}"
        )
    if method.needs.calibration:
        shared[CALIBRATION.name] = fingerprint
    return canonical(Assignment.of(virtual.method, sources, **shared))


def _coefficient(virtual: VirtualConfig, alias: str, default: Value | None) -> Value:
    given = virtual.coefficients
    if isinstance(given, dict):
        return given.get(alias, 0.0)
    return given if given is not None else 1.0 if default is None else default


def problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the virtual experts, and with naming them elsewhere."""
    models = config.models
    for name, virtual in models.virtual.items():
        location: Location = ("models", "virtual", name)
        if name in models.experts or name == "base":
            what = "the base model" if name == "base" else "an expert"
            yield Problem(location, f"{name!r} is the name of {what}; give the virtual expert another", at_key=True)
        found = list(_wrong_names(virtual, config, location))
        yield from found
        if not found:
            try:
                assignment_of(virtual, config)
            except MergingError as error:
                yield Problem((*location, "method"), str(error))


def _wrong_names(virtual: VirtualConfig, config: Config, location: Location) -> Iterator[Problem]:
    known = config.models.experts
    of = members(virtual, config)
    for index, alias in enumerate(of):
        if alias in config.models.virtual and alias not in known:
            yield Problem((*location, "of", index), f"{alias!r} is virtual itself; name the experts that it is made of")
        elif alias not in known:
            hint = did_you_mean(alias, known)
            there = ", ".join(known)
            yield Problem((*location, "of", index), f"there is no expert {alias!r}; there are: {there}.{hint}")
        elif alias in of[:index]:
            yield Problem((*location, "of", index), f"the expert {alias!r} is named twice")
    if isinstance(virtual.coefficients, dict):
        for alias in virtual.coefficients:
            if alias not in of:
                hint = did_you_mean(alias, of)
                message = f"{alias!r} is none of the experts that it merges ({', '.join(of)}).{hint}"
                yield Problem((*location, "coefficients", alias), message, at_key=True)


def recipe_of(
    virtual: VirtualConfig,
    config: Config,
    groups: Sequence[Group],
    refs: Mapping[str, SourceRef],
    fingerprint: str = PLANNED,
) -> Recipe:
    """The merge that a virtual expert is. It names its parents as the config does, not where they lie on this machine.

    Args:
        virtual, config, fingerprint: as in :func:`assignment_of`.
        groups: of the models' layout.
        refs: alias -> model.
    """
    from merging.virtual import DTYPE

    named = references(config)
    sources = {alias: SourceRef(named[alias], refs[alias].content) for alias in ("base", *members(virtual, config))}
    assignment = assignment_of(virtual, config, fingerprint)
    return Recipe("base", sources, dict.fromkeys(groups, assignment), dtype=DTYPE)


def make(
    loaded: LoadedConfig,
    sources: Sources,
    recipes: Mapping[str, Recipe],
    calibration: Callable[[Recipe], Calibration | None],
    say: Say,
) -> Sources:
    """The models with the virtual experts among them; made where they are not in the cache.

    Args:
        loaded: the config.
        sources: base and experts.
        recipes: of every virtual expert.
        calibration: what a recipe needs, collected; None where it needs nothing. Called only where it is made.
        say: told one line a step.

    Raises:
        SearchError: one cannot be made; points at its line.
    """
    from merging.virtual import make as make_one

    folders = {}
    for name, recipe in recipes.items():
        virtual = loaded.config.models.virtual[name]
        try:
            made = make_one(
                recipe,
                sources,
                calibration=partial(calibration, recipe),
                live_dtype=loaded.config.models.dtype,
                on_wait=partial(say, f"virtual expert {name}: another process makes it; waiting"),
            )
        except MergingError as error:
            raise loaded.error(("models", "virtual", name), str(error)) from error
        folders[name] = made.folder
        how = "from the cache" if made.seconds is None else f"made in {made.seconds:.1f} s"
        say(f"virtual expert {name}: {virtual.method} of {', '.join(members(virtual, loaded.config))}, {how}")
    return sources.joined(folders) if folders else sources
