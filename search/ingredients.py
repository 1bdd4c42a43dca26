"""What a run merges, made ready: the inputs that experts are calibrated on, and the virtual experts.

Everything is kept in the user's cache, by what it depends on: a second start finds it there, and loads no model for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evaluators import registry
from evaluators.contract import Evaluator, EvaluatorError
from merging.recipe import MergingError, Recipe, SourceRef
from search import virtual
from search.algebra import searched_experts
from search.calibration import calibrated, choices_of, options_of, searches_calibrated, settings_of
from search.config import LoadedConfig
from search.errors import SearchError
from search.fidelity import nested_order
from search.kept_inputs import load_samples, save_samples
from search.live_experts import LiveExperts
from search.positions import Location
from search.schema import VirtualConfig
from search.space.methods import example, searched
from search.virtual import Say, derived_of, made_of, members, needs_calibration

if TYPE_CHECKING:
    from evaluators.calibration import Drawn, InputsOptions
    from merging import Materializer, Sources
    from merging.calibration import CollectedCalibration, Samples

_LOG = logging.getLogger("paretomerge")


class Gathered(NamedTuple):
    """What a run merges.

    Attributes:
        sources: base, experts, derived and virtual experts.
        made_by: derived or virtual expert -> its recipe.
        calibration: of the experts, where a method of the space looks at inputs; collected by :func:`collect`.
    """

    sources: Sources
    made_by: dict[str, Recipe]
    calibration: CollectedCalibration | None


def gather(
    loaded: LoadedConfig, sources: Sources, evaluators: Mapping[str, Evaluator], *, make: bool, say: Say
) -> Gathered:
    """Read or record what the experts are calibrated on, and make the derived and the virtual ones.

    Args:
        loaded: the config.
        sources: base and experts.
        evaluators: the config's.
        make: otherwise only what can be checked without running a model is checked.
        say: told one line a step.

    Raises:
        SearchError: something is missing, or cannot be made; points at its line.
        MergingError: a model refuses its inputs.
    """
    config = loaded.config
    if not made_of(config) and not searches_calibrated(config) and config.first is None:
        return Gathered(sources, {}, None)
    inputs = Inputs(loaded, sources, evaluators, say)
    inputs.check()
    recipes: dict[str, Recipe] = {}
    whole = sources
    own, heirs = virtual.in_turn(config)
    try:
        for each in (derived_of(config), own):  # the latter may be made of the former
            more = inputs.recipes(each, whole, recipes, planned=not make)
            whole = virtual.make(loaded, whole, more, inputs.collected, say) if make else whole
            recipes |= more
        if not make:
            return Gathered(sources, recipes, None)
        if config.first is not None:
            recipes[config.first.name] = _choice(loaded)
            whole = _with_choice(loaded, whole, evaluators, say)
            more = inputs.recipes(heirs, whole, recipes)
            whole = virtual.make(loaded, whole, more, inputs.collected, say)
            recipes |= more
        calibration = inputs.calibration(calibrated(config)) if searches_calibrated(config) else None
    finally:
        inputs.close()
    return Gathered(whole, recipes, calibration)


def _choice(loaded: LoadedConfig) -> Recipe:
    if loaded.first is None:
        raise loaded.error(
            ("first", "name"),
            "the first search has not chosen yet, so there are no weights of this name; `paretomerge run` begins with "
            "that search",
        )
    return loaded.first


def _with_choice(loaded: LoadedConfig, sources: Sources, evaluators: Mapping[str, Evaluator], say: Say) -> Sources:
    """The models with what the first search has chosen among them; made on the inputs that it had."""
    from search.hybrid import first_of

    assert loaded.config.first is not None
    inputs = Inputs(first_of(loaded), sources, evaluators, say)
    inputs.check()
    try:
        return virtual.make(loaded, sources, {loaded.config.first.name: _choice(loaded)}, inputs.collected, say)
    finally:
        inputs.close()


def named_refs(sources: Sources, made_by: Mapping[str, Recipe]) -> dict[str, SourceRef]:
    """Alias -> model, as recipes name it; of one that was not made yet, nothing but its recipe."""
    planned = {alias: SourceRef("", f"made by {each.hash}") for alias, each in made_by.items()}
    found = planned | sources.refs
    return {alias: replace(ref, made_by=made_by.get(alias)) for alias, ref in found.items()}


def collect(loaded: LoadedConfig, calibration: CollectedCalibration, materializer: Materializer, say: Say) -> None:
    """Collect what the calibrated methods of the space need, as far as the cache does not have it.

    Args:
        loaded: the config.
        calibration: of all experts.
        materializer: over a live model that holds the base; it does so afterwards.
        say: told one line a step.

    Raises:
        MergingError: the model refuses its inputs, or the cache cannot be written.
    """
    space, (experts, _) = loaded.config.space, searched_experts(loaded.config)
    assignments = [
        example(searched(each, len(experts), space.normalize, calibration.fingerprint), experts)
        for each in choices_of(loaded.config)
        if needs_calibration(each.name)
    ]
    calibration.collect(materializer, assignments, notify=say)


class Inputs:
    """Calibration inputs of a run's experts. A model is loaded when something has to be run, and not before."""

    def __init__(self, loaded: LoadedConfig, sources: Sources, evaluators: Mapping[str, Evaluator], say: Say) -> None:
        """Args as in :func:`gather`."""
        self._loaded = loaded
        self._sources = sources
        self._evaluators = evaluators
        self._say = say
        self._rows: dict[str, list[Drawn]] = {}
        self._samples: dict[str, Samples] = {}
        settings = loaded.config.engine
        self._live = LiveExperts(sources, loaded.config.models.dtype, settings.device, settings.batch_tokens)

    def check(self) -> None:
        """Read the rows of data files, and compare them with what judges the run.

        Raises:
            SearchError: a file that is missing or bad, or an item of a holdout among its rows.
        """
        for alias in calibrated(self._loaded.config):
            self.check_expert(alias)

    def check_expert(self, alias: str) -> None:
        """As :meth:`check`, of one expert."""
        from evaluators.calibration import draw_rows, overlap

        settings, options = settings_of(self._loaded.config), self._options(alias)
        if options.data is None:
            return
        try:
            rows = self._rows[alias] = draw_rows(options, settings.items, settings.seed)
            blind = [name for name, each in self._evaluators.items() if not overlap(rows, each, name)]
        except EvaluatorError as error:
            raise self._error(alias, error) from error
        for name in blind:
            _LOG.warning("note: whether inputs of %s are in the holdout of %s cannot be told: see to it", alias, name)

    def recipes(
        self, made: Mapping[str, VirtualConfig], sources: Sources, known: Mapping[str, Recipe], planned: bool = False
    ) -> dict[str, Recipe]:
        """Of some derived or virtual experts.

        Args:
            made: which.
            sources: the models, and those of ``known`` where they are made.
            known: the recipes of what they may be made of.
            planned: without the inputs: nothing can be made by them.
        """
        config, found = self._loaded.config, {}
        refs = named_refs(sources, known)
        for name, each in made.items():
            given: dict[str, str] = {}
            if needs_calibration(each.method) and not planned:
                given = {"fingerprint": self.calibration(members(each, config)).fingerprint}
            found[name] = virtual.recipe_of(each, config, sources.layout.groups, refs, **given)
        return found

    def calibration(self, aliases: Sequence[str]) -> CollectedCalibration:
        """Of some experts; nothing is collected yet.

        Raises:
            SearchError: two experts are one model, with different inputs; or as :meth:`samples`.
        """
        from merging.calibration import CollectedCalibration

        found: dict[str, tuple[str, Samples]] = {}
        for alias in aliases:
            own = self.samples(alias)
            other, samples = found.setdefault(self._sources.refs[alias].content, (alias, own))
            if samples.hash != own.hash:
                raise self._error(
                    alias,
                    SearchError(
                        f"the experts {other!r} and {alias!r} have the same weights, and different inputs; name the "
                        "same inputs for both, or leave one of them out"
                    ),
                )
        return CollectedCalibration({content: samples for content, (_, samples) in found.items()})

    def collected(self, recipe: Recipe) -> CollectedCalibration | None:
        """What a recipe over the run's experts needs, None where it needs nothing."""
        assignments = {*recipe.groups.values(), *recipe.tensors.values()}
        needing = [each for each in assignments if needs_calibration(each.method)]
        if not needing:
            return None
        calibration = self.calibration(
            [alias for alias in recipe.sources if alias in self._loaded.config.models.experts]
        )
        calibration.collect(self._live.materializer, needing, notify=self._say)
        return calibration

    def samples(self, alias: str) -> Samples:
        """The inputs of an expert: from the cache, or read or recorded under its own weights.

        Raises:
            SearchError: the model cannot be run on them, or nothing was recorded.
        """
        if alias not in self._samples:
            from merging.virtual import locked

            place = self._place(alias)
            found = load_samples(place)
            if found is None:
                wait = partial(self._say, f"inputs of {alias}: another process records them; waiting")
                with locked(place, wait):
                    found = load_samples(place) or self._recorded(alias, place)
            self._samples[alias] = found
        return self._samples[alias]

    def close(self) -> None:
        """Let the model go."""
        self._live.close()

    def _recorded(self, alias: str, place: Path) -> Samples:
        from evaluators.calibration import read_inputs, record_inputs
        from merging.calibration import Samples

        options, settings = self._options(alias), settings_of(self._loaded.config)
        try:
            engine = self._live.engine(alias)
            if options.data is not None:
                self._say(f"calibration: reading inputs of {alias} from {_shown(options)}")
                given = read_inputs(options, engine, settings.items, settings.seed, rows=self._rows[alias])
            else:
                ids = self._ids(str(options.evaluator))
                self._say(f"calibration: recording {alias} on {len(ids)} items of the evaluator {options.evaluator}")
                given = record_inputs(self._evaluators[str(options.evaluator)], engine, ids)
            found = Samples.of(given)
        except (EvaluatorError, MergingError) as error:
            raise self._error(alias, error) from error
        save_samples(place, found)
        return found

    def _options(self, alias: str) -> InputsOptions:
        options = options_of(self._loaded.config, alias)
        return type(options).model_validate(
            self._loaded.resolved(type(options), options.model_dump(exclude_unset=True))
        )

    def _ids(self, evaluator: str) -> list[str]:
        """A stratified draw from the search split, by content and seed: a larger one holds a smaller one."""
        settings = settings_of(self._loaded.config)
        items = self._evaluators[evaluator].items("search")
        return [items.ids[place] for place in nested_order(items, settings.seed)[: settings.items]]

    def _place(self, alias: str) -> Path:
        """Where the inputs of an expert are kept: under all that they depend on."""
        from merging.calibration.store import default_cache
        from merging.code import code_hash

        config, options = self._loaded.config, self._options(alias)
        if options.data is not None:
            said: list[object] = [options.model_dump(mode="json", exclude={"data"})]
            said += [[row.texts, row.media, row.read, list(map(dict, row.messages))] for row in self._rows[alias]]
        else:
            name = str(options.evaluator)
            kind = str(config.evaluators[name]["type"])
            own = None if kind in registry.BUILT_IN else registry.source_hash(kind, folder=self._loaded.path.parent)
            said = [self._evaluators[name].fingerprint, own, self._ids(name)]
        refs = self._sources.refs
        models = [refs["base"].content, refs[alias].content, config.models.dtype, config.engine.device]
        models.append(_files_hash(self._sources.path))
        code = code_hash(Path(registry.__file__).parent)  # who asks, and how it is written down
        text = json.dumps([code, models, said], sort_keys=True)
        return default_cache() / "inputs" / hashlib.sha256(text.encode()).hexdigest()[:32]

    def _error(self, alias: str, error: Exception) -> Exception:
        given = self._loaded.config.calibration is not None and alias in self._loaded.config.calibration.inputs
        location: Location = ("calibration", "inputs", alias) if given else ("models", "experts", alias)
        return self._loaded.error(location, str(error) if given else f"calibration: {error}")


def _files_hash(folder: Path) -> str:
    """Of all that stands beside a model's weights and may shape its inputs: config, tokenizer, processor."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in {".json", ".txt", ".model", ".jinja"}:
            digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _shown(options: InputsOptions) -> str:
    data = options.data
    return data.name if isinstance(data, Path) else "a table"
