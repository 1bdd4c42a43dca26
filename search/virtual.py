"""Virtual and derived experts: what a config says of them, checked, and made when a run is set up.

A virtual expert is a merge of the config's experts, with float32 weights, in the user's cache; from then on the search
treats it as one expert more. Its own recipe goes into every recipe that uses it, so that a winner can be made again
where the cache is gone. A derived expert is one by task arithmetic, written as an expression. Virtual experts may be
made of derived ones, which are made first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from merging.recipe import Assignment, Group, MergingError, Recipe, SourceRef, Value
from search.first_config import alone
from search.positions import Location, Problem, did_you_mean
from search.schema import Config, VirtualConfig
from search.space.methods import PLANNED

if TYPE_CHECKING:
    from merging import Sources
    from merging.calibration.contract import Calibration
    from search.config import LoadedConfig

Say = Callable[[str], None]

DERIVED = "task_arithmetic"
"""The method that makes derived experts."""

CHOICE = "the choice of the first search"
"""What is said of the expert that it gives to the search after it."""

ALONE = " alone"
"""How the labels of virtual experts end, as baselines."""


def forms_of(config: Config) -> dict[str, dict[str, float]]:
    """Derived expert -> expert -> coefficient of its task vector.

    Raises:
        MergingError: expressions that mean nothing.
    """
    from merging.expressions import expand

    return expand(config.models.derived, config.models.experts) if config.models.derived else {}


def modelled(config: Config) -> tuple[str, ...]:
    """The derived experts that have to be models of their own: those that the search gives coefficients to, and those
    that virtual experts are made of, in the first search of a hybrid too, which may choose a merge of them. The others
    are written out wherever they are named. A path has no coefficients, and takes whole models."""
    space, derived = config.space, config.models.derived
    if space.data_flow is not None:
        return tuple(derived)
    searched = () if space.expression is not None else derived if space.experts is None else space.experts
    named = {*searched, *(alias for each in config.models.virtual.values() for alias in each.of or ())}
    if config.first is not None:
        named |= {*modelled(alone(config))}
    return tuple(name for name in derived if name in named)


def derived_of(config: Config) -> dict[str, VirtualConfig]:
    """The derived experts that have to be models of their own, each as the merge that it is.

    Raises:
        MergingError: expressions that mean nothing.
    """
    forms = forms_of(config)
    return {
        name: VirtualConfig(method=DERIVED, of=list(forms[name]) or None, coefficients=forms[name] or 0.0)
        for name in modelled(config)
    }


def made_of(config: Config) -> dict[str, VirtualConfig]:
    """All experts that are made by themselves: derived, then virtual ones. What a first search chooses is not among
    them: it is there when that search has ended.

    Raises:
        MergingError: expressions that mean nothing.
    """
    return {**derived_of(config), **config.models.virtual}


def in_turn(config: Config) -> tuple[dict[str, VirtualConfig], dict[str, VirtualConfig]]:
    """The virtual experts, those that are made of what a first search chooses apart: they are made after it."""
    heirs = {name for name, each in config.models.virtual.items() if {*(each.of or ())} & {*evolved(config)}}
    parts: tuple[dict[str, VirtualConfig], dict[str, VirtualConfig]] = ({}, {})
    for name, each in config.models.virtual.items():
        parts[name in heirs][name] = each
    return parts


def experts_of(config: Config) -> tuple[str, ...]:
    """All models beside the base: the experts, then the derived ones that are models, then the virtual ones, then what
    a first search chooses."""
    return (*config.models.experts, *modelled(config), *config.models.virtual, *evolved(config))


def evolved(config: Config) -> tuple[str, ...]:
    """The name of what a first search chooses; () where there is none."""
    return () if config.first is None else (config.first.name,)


def place_of(name: str, config: Config) -> Location:
    """Where a config says what an expert is made of."""
    if name in evolved(config):
        return ("first", "name")
    return ("models", "derived" if name in config.models.derived else "virtual", name)


def kind_of(name: str, config: Config) -> str:
    """What to call an expert that is made, for people."""
    if name in evolved(config):
        return "expert"
    return "derived expert" if name in config.models.derived else "virtual expert"


def told(name: str, config: Config) -> str:
    """What an expert is made of, for people."""
    if name in evolved(config):
        return CHOICE
    if name in config.models.derived:
        return config.models.derived[name]
    virtual = config.models.virtual[name]
    return f"{virtual.method} of {', '.join(members(virtual, config))}"


def members(virtual: VirtualConfig, config: Config) -> tuple[str, ...]:
    """The experts that a virtual one is made of, in the order in which its method sees them."""
    return tuple(config.models.experts) if virtual.of is None else tuple(virtual.of)


def references(config: Config) -> dict[str, str]:
    """Alias -> the model as the config names it; of a virtual expert, of what it is made."""
    made = {name: told(name, config) for name in (*config.models.derived, *config.models.virtual, *evolved(config))}
    return {"base": config.models.base, **config.models.experts, **made}


def _looks_at_inputs(method: str) -> bool:
    """As :func:`needs_calibration`; not of a method that there is none of, which is said elsewhere."""
    try:
        return needs_calibration(method)
    except MergingError:
        return False


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
    """What is wrong with the derived and virtual experts, and with naming them elsewhere."""
    models = config.models
    wrong = list(_wrong_expressions(config))
    yield from wrong
    if wrong:
        return  # what is made of them cannot be judged
    for name, virtual in models.virtual.items():
        location: Location = ("models", "virtual", name)
        if name in models.experts or name == "base" or name in models.derived:
            what = "the base model" if name == "base" else "an expert" if name in models.experts else "a derived expert"
            yield Problem(location, f"{name!r} is the name of {what}; give the virtual expert another", at_key=True)
        found = list(_wrong_names(virtual, config, location))
        yield from found
        if not found:
            try:
                assignment_of(virtual, config)
            except MergingError as error:
                yield Problem((*location, "method"), str(error))


def _wrong_expressions(config: Config) -> Iterator[Problem]:
    from merging.expressions import expand, task_vectors

    models = config.models
    names = (*models.experts, *models.derived)
    found = False
    for name, text in models.derived.items():
        location: Location = ("models", "derived", name)
        if name in models.experts or name == "base":
            what = "the base model" if name == "base" else "an expert"
            yield Problem(location, f"{name!r} is the name of {what}; give the derived expert another", at_key=True)
            found = True
            continue
        try:
            task_vectors(text, names)
        except MergingError as error:
            yield Problem(location, str(error))
            found = True
    if found or not models.derived:
        return
    try:
        forms = expand(models.derived, models.experts)
    except MergingError as error:
        at = next((each for each in models.derived if f" {each} ->" in str(error)), next(iter(models.derived)))
        yield Problem(("models", "derived", at), str(error))
        return
    for name, form in forms.items():
        if not form:
            yield Problem(("models", "derived", name), "this is the base itself; leave it out, or name an expert in it")


def _wrong_names(virtual: VirtualConfig, config: Config, location: Location) -> Iterator[Problem]:
    known = {**config.models.experts, **config.models.derived, **dict.fromkeys(evolved(config), CHOICE)}
    of = members(virtual, config)
    for index, alias in enumerate(of):
        if alias in known and alias not in config.models.experts and _looks_at_inputs(virtual.method):
            what = "derived" if alias in config.models.derived else CHOICE
            yield Problem(
                (*location, "of", index),
                f"{alias!r} is {what}, and {virtual.method} looks at inputs of what it merges, of which it has none; "
                "name experts",
            )
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
    sources = {
        alias: SourceRef(
            named[alias] if refs[alias].made_by is None else f"virtual/{alias}",
            refs[alias].content,
            refs[alias].made_by,
        )
        for alias in ("base", *members(virtual, config))
    }
    assignment = assignment_of(virtual, config, fingerprint)
    return Recipe("base", sources, dict.fromkeys(groups, assignment), dtype=DTYPE)


def make(
    loaded: LoadedConfig,
    sources: Sources,
    recipes: Mapping[str, Recipe],
    calibration: Callable[[Recipe], Calibration | None],
    say: Say,
) -> Sources:
    """The models with the derived or virtual experts among them; made where they are not in the cache.

    Args:
        loaded: the config.
        sources: the models that they are made of.
        recipes: of each.
        calibration: what a recipe needs, collected; None where it needs nothing. Called only where it is made.
        say: told one line a step.

    Raises:
        SearchError: one cannot be made; points at its line.
    """
    from merging.virtual import make as make_one

    folders = {}
    for name, recipe in recipes.items():
        what = f"{kind_of(name, loaded.config)} {name}"
        try:
            made = make_one(
                recipe,
                sources,
                calibration=partial(calibration, recipe),
                live_dtype=loaded.config.models.dtype,
                on_wait=partial(say, f"{what}: another process makes it; waiting"),
            )
        except MergingError as error:
            raise loaded.error(place_of(name, loaded.config), str(error)) from error
        folders[name] = made.folder
        how = "from the cache" if made.seconds is None else f"made in {made.seconds:.1f} s"
        say(f"{what}: {told(name, loaded.config)}, {how}")
    return sources.joined(folders) if folders else sources
