"""A merge in a few lines, for people: who, by which method, how much of each.

.. code-block:: yaml

    base: models/base
    experts: {math: models/math, code: models/code, toxic: models/toxic}
    derived: {clean: base - 1.0*toxic, mild: math + 0.3*(code - math)}   # further experts, in terms of others
    method: ties
    vectors: math + 0.5*code          # or coefficients: {math: 1, code: 0.5}
    parameters: {density: 0.3}        # of the method; what is a source's own holds for every source
    sources: {code: {density: 0.2}}   # of one source
    groups:                           # elsewhere otherwise: kinds, blocks, ranges of blocks
      mlp.0-7: {parameters: {scale: 0.5}}
      embedding: {method: linear, coefficients: {math: 1}}
    lines: {alpha: 0.5, beta: 0.5}    # on top: LiNeS, ExPO
    expo: 0.2
    calibration: {items: 256, inputs: {math: {data: math.jsonl}}}   # for methods that look at inputs
    dtype: bfloat16
    tokenizer: union

Blocks of several models make a deeper one, each with a scale on the hidden state before it:

.. code-block:: yaml

    base: models/base
    experts: {math: models/math, code: models/code}
    method: passthrough
    layers: [{math: [0, 3]}, {code: [1, 4]}]
    scales: [1, 1, 1, 0.8, 1, 1]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from merging import derived as derived_experts
from merging.configs import ReadInputs, Resolve, find_model, find_tokenizer, load_yaml, read_text, tokenizer_path
from merging.expressions import coefficients, expand, task_vectors
from merging.layout import Layout
from merging.methods.contract import CALIBRATION, DELTA_SCALE, Method, suggest
from merging.methods.registry import canonical_recipe, get
from merging.recipe import DTYPES, KINDS, Assignment, Group, Layers, MergingError, Recipe, Value, layers_of, scales_of
from merging.restack import pruned, restack
from merging.scaling import expo, lines
from merging.sources import BASE, Sources

_WHAT = ("coefficients", "method", "parameters", "sources", "vectors")
_TOP = (
    *("base", "calibration", "derived", "dtype", "experts", "expo", "groups", "layers", "lines", "scales", "tokenizer"),
    *_WHAT,
)

_SELECTOR = re.compile(r"^(?:(?P<stack>[^/]+)/)?(?P<kind>[a-z]+|\*)(?:\.(?P<first>\d+)(?:-(?P<last>\d+))?)?$")


def read_merge(
    path: Path | str,
    resolve: Resolve | None = None,
    *,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    read_inputs: ReadInputs | None = None,
) -> tuple[Recipe, Sources]:
    """Read a short merge config, and load its models.

    Args:
        path: the YAML file. Model paths in it are relative to its folder, or else to the working directory.
        resolve: finds a model that is named in another way than by its folder; None for what it does not know.
        tokenizer: instead of what the config says.
        allow_pickle: also read pickled weights.
        read_inputs: see :func:`merging.configs.read_config`.

    Raises:
        MergingError: an unknown key, method, model or parameter, each with a suggestion, or a value that is wrong.
    """
    path = Path(path)
    data = _mapping(load_yaml(read_text(path), path), str(path))
    _known(data, _TOP, str(path))
    if not isinstance(data.get("base"), str) or not isinstance(data.get("method"), str):
        missing = "base" if not isinstance(data.get("base"), str) else "method"
        raise MergingError(
            f"{path}: expected a {missing}: {'the folder of a model' if missing == 'base' else 'a name'}"
        )
    if data.get("dtype") not in {None, *DTYPES}:
        raise MergingError(f"{path}: expected dtype to be one of {', '.join(DTYPES)}, found {data['dtype']!r}")
    experts = {str(alias): str(each) for alias, each in _mapping(data.get("experts"), f"{path}, experts").items()}
    derived = _derived(data.get("derived"), experts, path)
    chosen = find_tokenizer(tokenizer or data.get("tokenizer"), path.parent, resolve)
    sources = Sources.load(
        find_model(data["base"], path.parent, resolve),
        {alias: find_model(each, path.parent, resolve) for alias, each in experts.items()},
        tokenizer=chosen,
        allow_pickle=allow_pickle,
    )
    layers, scales = _stacked(data, experts, path)
    view = restack(sources, layers)
    groups = _groups(data, view.layout, tuple(experts), tuple(derived), path)
    groups = groups if layers is None else _placed(groups, layers)
    groups = {group: derived_experts.as_linear(each, derived) for group, each in groups.items()}
    left = {alias for each in groups.values() for alias, _ in each.sources if alias in derived}
    sources, refs = derived_experts.joined([name for name in derived if name in left], derived, sources)
    recipe = Recipe(
        base=BASE,
        sources=refs,
        groups=_calibrated(groups, data, sources, path, read_inputs),
        dtype=data.get("dtype"),
        layers=layers,
        tokenizer=sources.tokenizer,
        tokenizer_path=tokenizer_path(sources, chosen),
        scales=scales,
    )
    return pruned(canonical_recipe(_scaled(recipe, data, view.layout, path)), view.layout), sources


def _stacked(
    data: Mapping[str, Any], experts: Mapping[str, str], path: Path
) -> tuple[Layers | None, tuple[float, ...] | None]:
    """The blocks of the result and their scales, as far as the config says any."""
    given, scales = data.get("layers"), data.get("scales")
    if given is not None and data.get("derived"):
        raise MergingError(
            f"{path}: expected layers or derived, found both; write what is derived as a model, and take its blocks"
        )
    where = "layers"
    try:
        layers = None if given is None else layers_of(given, (BASE, *experts))
        where = "scales"
        return layers, None if scales is None else scales_of(scales, layers)
    except MergingError as error:
        raise MergingError(f"{path}, {where}: {error}") from error


def _placed(groups: Mapping[Group, Assignment], layers: Layers) -> dict[Group, Assignment]:
    """The groups of a stack, each block's with the models alone that give the block; what lies outside the blocks is
    that of the first block's model, where a method takes one model and several are there."""

    def placed(group: Group, assignment: Assignment) -> Assignment:
        own = layers[0 if group.depth is None else group.depth]
        sources = assignment.sources
        if group.depth is not None:
            sources = tuple(each for each in sources if each[0] in own)
        if get(assignment.method).needs.maximum == 1 and len(sources) != 1:
            sources = tuple((alias, ()) for alias in own)
        return replace(assignment, sources=sources)

    return {group: placed(group, each) for group, each in groups.items()}


def _derived(section: Any, experts: Mapping[str, str], path: Path) -> dict[str, dict[str, float]]:
    """Name -> expert -> coefficient, of the config's named expressions."""
    where = f"{path}, derived"
    given = {str(name): text for name, text in _mapping(section, where).items()}
    for name, text in given.items():
        if not isinstance(text, str):
            raise MergingError(f"{where}, {name}: expected an expression such as a + 0.5*(b - c), found {text!r}")
    try:
        return expand(given, experts)
    except MergingError as error:
        raise MergingError(f"{where}: {error}") from error


def _calibrated(
    groups: dict[Group, Assignment],
    data: Mapping[str, Any],
    sources: Sources,
    path: Path,
    read_inputs: ReadInputs | None,
) -> dict[Group, Assignment]:
    """The groups, those whose methods look at inputs with the fingerprint of the calibration data."""
    needing = sorted({each.method for each in groups.values() if get(each.method).needs.calibration})
    given = data.get("calibration")
    if not needing:
        if given is not None:
            raise MergingError(f"{path}: calibration is given, and no method here looks at inputs; leave it out")
        return groups
    if given is None or read_inputs is None:
        raise MergingError(
            f"{path}: method {needing[0]} needs calibration data; give calibration: {{inputs: {{expert: {{data: "
            "file}}}, a few hundred unlabelled inputs for each expert"
        )
    fingerprint = read_inputs(_mapping(given, f"{path}, calibration"), sources, data.get("dtype"))

    def named(assignment: Assignment) -> Assignment:
        parameters = dict(assignment.parameters) | {CALIBRATION.name: fingerprint}
        return replace(assignment, parameters=tuple(sorted(parameters.items())))

    return {group: named(each) if each.method in needing else each for group, each in groups.items()}


def _groups(
    data: Mapping[str, Any], layout: Layout, experts: tuple[str, ...], derived: tuple[str, ...], path: Path
) -> dict[Group, Assignment]:
    """Every group has the whole merge's entries, and over them those of each override that selects it, in order."""
    everywhere = _assignment(data, experts, derived, str(path), data)
    entries: dict[Group, Mapping[str, Any]] = dict.fromkeys(layout.groups, data)
    groups = dict.fromkeys(layout.groups, everywhere)
    for selector, override in _mapping(data.get("groups"), f"{path}, groups").items():
        where = f"{path}, groups, {selector}"
        _known(_mapping(override, where), _WHAT, where)
        for group in _selected(str(selector), layout, where):
            entries[group] = _merged(entries[group], override, where)
            groups[group] = _assignment(entries[group], experts, derived, where, override)
    return groups


def _merged(data: Mapping[str, Any], override: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Entries with those of an override over them; another method starts without parameters."""
    kept = dict(data)
    if override.get("method", data["method"]) != data["method"]:
        kept |= {"parameters": None, "sources": None}
    if "vectors" in override or "coefficients" in override:
        kept |= {"vectors": None, "coefficients": None}
    merged = kept | dict(override)
    merged["parameters"] = _mapping(kept.get("parameters"), where) | _mapping(override.get("parameters"), where)
    ours, theirs = _mapping(kept.get("sources"), where), _mapping(override.get("sources"), where)
    merged["sources"] = {
        alias: _mapping(ours.get(alias), where) | _mapping(theirs.get(alias), where) for alias in {**ours, **theirs}
    }
    return merged


def _assignment(
    data: Mapping[str, Any], experts: tuple[str, ...], derived: tuple[str, ...], where: str, written: Mapping[str, Any]
) -> Assignment:
    """What some entries say.

    Args:
        data: the entries.
        experts: the models that there are besides the base.
        derived: names of expressions; they take part where they are named, and not among "all experts".
        where: for messages.
        written: those of the entries that stand there; the others were inherited.
    """
    method = get(str(data["method"]))
    weights = _coefficients(data, experts, derived, method, where)
    own = {each.name for each in method.parameters if each.per_source}
    shared: dict[str, Value] = dict(_mapping(data.get("parameters"), f"{where}, parameters"))
    known = {each.name for each in method.parameters} | {DELTA_SCALE.name}
    _known(shared, tuple(known - {"coefficient"}), f"{where}, method {method.name}")
    for_all = {name: shared.pop(name) for name in own & shared.keys()}
    sources = {
        alias: for_all | ({} if weight is None else {"coefficient": weight}) for alias, weight in weights.items()
    }
    for alias, values in _mapping(data.get("sources"), f"{where}, sources").items():
        inherited = alias not in _mapping(written.get("sources"), where)
        if inherited and alias not in weights:  # of the whole merge, but it takes no part here
            continue
        _known({alias: values}, tuple(weights), f"{where}, sources")
        mine = _mapping(values, f"{where}, sources, {alias}")
        _known(mine, tuple(own - {"coefficient"}), f"{where}, sources, {alias}")
        sources[alias] |= mine
    return Assignment.of(method.name, sources, **shared)


def _coefficients(
    data: Mapping[str, Any], experts: tuple[str, ...], derived: tuple[str, ...], method: Method, where: str
) -> dict[str, Value | None]:
    """Alias -> coefficient of the models that take part; None for a method that has none, or its default."""
    declared = next((each for each in method.parameters if each.per_source and each.name == "coefficient"), None)
    text, given = data.get("vectors"), data.get("coefficients")
    if text is not None and given is not None:
        raise MergingError(f"{where}: expected one of vectors and coefficients, found both")
    everyone = (*experts, *derived, BASE)
    if text is not None and not isinstance(text, str):
        raise MergingError(f"{where}: expected vectors to be an expression such as a + 0.5*b, found {text!r}")
    if text is not None:
        try:
            read = task_vectors(text, everyone[:-1]) if method.needs.base else coefficients(text, everyone)
        except MergingError as error:
            raise MergingError(f"{where}, vectors: {error}") from error
        found: dict[str, Any] = dict(read)
    elif isinstance(given, Mapping):
        _known(given, everyone, f"{where}, coefficients")
        found = {str(alias): value for alias, value in given.items()}
    elif given is not None:
        found = dict.fromkeys(experts, given)
    else:
        found = dict.fromkeys(experts)
        if declared is not None and declared.default is None:
            raise MergingError(
                f"{where}: method {method.name} needs vectors, such as {' + '.join(experts) or 'a + 0.5*b'}, or "
                "coefficients, a number for all experts or one for each; found neither"
            )
    if declared is None and any(value not in (None, 0, 1) for value in found.values()):
        raise MergingError(f"{where}: method {method.name} has no coefficients; it merges its sources alike")
    if declared is None:
        return {alias: None for alias, value in found.items() if value != 0}
    return found


def _selected(selector: str, layout: Layout, where: str) -> list[Group]:
    """The groups that ``attention``, ``mlp.3``, ``mlp.0-7``, ``*.0`` or ``encoder/mlp`` means."""
    match = _SELECTOR.match(selector)
    if match is None or match["kind"] not in {*KINDS, "*"}:
        raise MergingError(
            f"{where}: expected a kind ({', '.join(KINDS)}, or * for all), alone or with blocks, such as mlp, mlp.3 or "
            f"*.0-7{suggest((match or {'kind': selector})['kind'], KINDS)}"
        )
    first = None if match["first"] is None else int(match["first"])
    last = first if match["last"] is None else int(match["last"])
    found = [
        group
        for group in layout.groups
        if match["kind"] in {"*", group.kind}
        and match["stack"] in {None, group.stack}
        and (first is None or (group.depth is not None and last is not None and first <= group.depth <= last))
    ]
    if not found:
        known = ", ".join(dict.fromkeys(group.kind for group in layout.groups))
        raise MergingError(f"{where}: the model has no such group; it has {known}, and blocks {_depths(layout)}")
    return found


def _depths(layout: Layout) -> str:
    return ", ".join(f"{stack}/0-{layout.depth(stack) - 1}".lstrip("/") for stack in layout.stacks) or "none"


def _scaled(recipe: Recipe, data: Mapping[str, Any], layout: Layout, path: Path) -> Recipe:
    if data.get("lines") is not None:
        given = _mapping(data["lines"], f"{path}, lines")
        _known(given, ("alpha", "beta"), f"{path}, lines")
        if given.keys() != {"alpha", "beta"}:
            raise MergingError(f"{path}: expected lines: {{alpha: …, beta: …}}, found {given!r}")
        recipe = lines(recipe, layout, given["alpha"], given["beta"])
    return recipe if data.get("expo") is None else expo(recipe, data["expo"])


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise MergingError(f"{where}: expected a mapping, found {value!r}")
    return dict(value or {})


def _known(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in known:
            raise MergingError(f"{where}: unknown key {key!r}{suggest(str(key), known)}")
