"""What scores candidates: models, evaluators and engine of a config, loaded and checked."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evaluators import registry
from evaluators.contract import Evaluator, EvaluatorError
from merging.recipe import MergingError, Recipe, SourceRef
from search.config import LoadedConfig
from search.constraints import Constraints
from search.events import LOG_VERSION
from search.objectives import Objectives
from search.positions import Location, did_you_mean
from search.schema import Config
from search.space.methods import PLANNED
from search.splits import check_disjoint
from search.stages import Stage, build_stages
from search.virtual import Say

if TYPE_CHECKING:
    from torch import nn

    from evaluators.contract import Engine
    from merging import Materializer, Sources
    from merging.arena import Home
    from merging.calibration import CollectedCalibration
    from merging.calibration.contract import Calibration
    from merging.dataflow import PathMaterializer

_LOG = logging.getLogger("paretomerge")

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Live(NamedTuple):
    """A live model of this process.

    Attributes:
        materializer: writes recipes into it, or lays paths through the models' layers in it.
        engine: asks it.
    """

    materializer: Materializer | PathMaterializer
    engine: Engine


@dataclass
class Setup:
    """Everything that scores candidates, ready to work.

    Attributes:
        sources: the models, virtual experts among them.
        evaluators: name -> evaluator, prepared where there is a live model.
        objectives: resolved.
        constraints: resolved.
        engine_fingerprint: what of the engine scores depend on; "" where only a worker can know it (vLLM).
        made_by: derived or virtual expert -> its recipe.
        calibration: statistics on the experts' inputs, where a method of the space needs any.
        live: what stands over the live model; None where others score the candidates.
    """

    sources: Sources
    evaluators: dict[str, Evaluator]
    objectives: Objectives
    constraints: Constraints
    engine_fingerprint: str
    made_by: dict[str, Recipe] = field(default_factory=dict)
    calibration: Calibration | None = None
    live: Live | None = None

    @property
    def materializer(self) -> Materializer | PathMaterializer:
        """Brings the live model to recipes."""
        return self._live.materializer

    @property
    def engine(self) -> Engine:
        """Asks the live model."""
        return self._live.engine

    @property
    def _live(self) -> Live:
        if self.live is None:
            raise RuntimeError("this set-up was made with live=False: there is no live model in this process")
        return self.live

    @cached_property
    def refs(self) -> dict[str, SourceRef]:
        """Alias -> model, as recipes name it; of a virtual expert that was not made yet, nothing but the recipe."""
        from search.ingredients import named_refs

        return named_refs(self.sources, self.made_by)


def stages_of(
    config: Config,
    setup: Setup,
    ends: Sequence[int] | None = None,
    version: int = LOG_VERSION,
    borders: Mapping[str, Sequence[int]] | None = None,
) -> list[Stage]:
    """The stages of a config over the models that were loaded.

    Args:
        config: the run's.
        setup: with its sources.
        ends, version, borders: see :func:`search.stages.build_stages`.
    """
    layout = setup.sources.layout
    tensors = {name: layout.group(name) for name in layout.names}
    fingerprint = setup.calibration.fingerprint if setup.calibration is not None else PLANNED
    return build_stages(
        config,
        layout.groups,
        setup.refs,
        ends,
        version=version,
        tensors=tensors,
        calibration=fingerprint,
        borders=borders,
    )


def set_up(
    loaded: LoadedConfig,
    threads: int | None = None,
    *,
    make: bool = True,
    live: bool = True,
    home: Home = "auto",
    say: Say = _LOG.info,
) -> Setup:
    """Load models, data and engine, and check all of it.

    Args:
        loaded: the config.
        threads: CPU threads; the config's, or torch's own choice, if None.
        make: make the virtual experts, and collect what calibrated methods need; otherwise only check that it can be
            done: candidates cannot be materialised then.
        live: have a live model here that scores candidates; otherwise others do, and this process only proposes and
            remembers: whether evaluators take the engine is checked by those others.
        home: where the live model's sources are kept; one of several workers of a machine takes ``shared``: see
            :func:`merging.arena.hold`.
        say: told one line for every step that takes long.

    Raises:
        SearchError, MergingError, EvaluatorError, ZooError: what is wrong, and where.
    """
    import torch

    from merging import Sources
    from search.ingredients import gather

    config = loaded.config
    torch.set_num_threads(threads or config.engine.threads or torch.get_num_threads())
    evaluators = build_evaluators(loaded)
    check_disjoint(evaluators)
    objectives = Objectives.of(loaded, evaluators)
    constraints = Constraints.of(loaded, evaluators)
    base, experts = model_paths(loaded)
    sources, made_by, calibration = gather(loaded, Sources.load(base, experts), evaluators, make=make, say=say)
    for note in sources.notes:
        _LOG.warning("note: %s", note)
    model = _open_model(loaded, base, sources, calibration, home, say) if live else None
    if model is not None:
        prepare_evaluators(loaded, evaluators, model.engine)
        fingerprint = model.engine.fingerprint
    else:
        if calibration is not None and make:
            _collect_once(loaded, base, sources, calibration, say)
        fingerprint = _planned_fingerprint(loaded, base)
    return Setup(sources, evaluators, objectives, constraints, fingerprint, made_by, calibration, model)


def _open_model(
    loaded: LoadedConfig,
    base: Path,
    sources: Sources,
    calibration: CollectedCalibration | None,
    home: Home,
    say: Say,
) -> Live:
    """The live model, what writes into it and what asks it."""
    from evaluators import open_engine
    from merging import Materializer, load_model
    from search.ingredients import collect

    settings = loaded.config.engine
    spread = _device_map(loaded)
    model = load_model(base, dtype=loaded.config.models.dtype, device=settings.device, device_map=spread)
    materializer: Materializer | PathMaterializer
    if loaded.config.space.data_flow is not None:
        materializer = _paths(loaded, sources, model, home)
    else:
        materializer = Materializer(sources, model, home=home)
        if calibration is not None:
            collect(loaded, calibration, materializer, say)
            materializer.calibration = calibration
    engine = open_engine(
        model,
        base,
        kind=settings.kind,
        batch_tokens=settings.batch_tokens,
        device=settings.device if spread is None else None,
        tensors=materializer.tensors,
        vllm=settings.vllm,
    )
    return Live(materializer, engine)


def _paths(loaded: LoadedConfig, sources: Sources, model: nn.Module, home: Home) -> PathMaterializer:
    """What lays paths through the models' layers."""
    from merging.dataflow import PathMaterializer, residual_writers

    flow = loaded.config.space.data_flow
    try:
        found = PathMaterializer(sources, model, home=home)
    except MergingError as error:
        raise loaded.error(("space", "data_flow"), str(error)) from error
    try:
        if flow is not None and flow.scales != "off":
            residual_writers(sources)
    except MergingError as error:
        raise loaded.error(("space", "data_flow", "scales"), str(error)) from error
    return found


def _collect_once(
    loaded: LoadedConfig, base: Path, sources: Sources, calibration: CollectedCalibration, say: Say
) -> None:
    """Put what calibrated methods need into the cache, where workers find it. The live model for it is let go."""
    from merging import Materializer, load_model
    from search.ingredients import collect

    config = loaded.config
    model = load_model(base, config.models.dtype, config.engine.device, _device_map(loaded))
    collect(loaded, calibration, Materializer(sources, model, home="mmap"), say)


def _device_map(loaded: LoadedConfig) -> str | None:
    """Where the config gives a worker several devices, all that it sees hold the model together."""
    return "auto" if (loaded.config.workers.gpus or 0.0) > 1.0 else None


def _planned_fingerprint(loaded: LoadedConfig, base: Path) -> str:
    """The fingerprint that the engine has where it runs, told from settings alone; "" where it cannot be."""
    from evaluators import open_engine
    from merging.skeleton import load_skeleton

    settings = loaded.config.engine
    if settings.kind != "hf":
        return ""
    model = load_skeleton(base, dtype=loaded.config.models.dtype)
    engine = open_engine(model, base, kind="hf", batch_tokens=settings.batch_tokens, device=settings.device)
    return engine.fingerprint


def model_paths(loaded: LoadedConfig) -> tuple[Path, dict[str, Path]]:
    """Folders of the base and of every expert.

    Raises:
        SearchError: one is not there; points at its line.
    """
    models = loaded.config.models
    experts = {name: model_path(loaded, ("models", "experts", name), path) for name, path in models.experts.items()}
    return model_path(loaded, ("models", "base"), models.base), experts


def model_path(loaded: LoadedConfig, location: Location, reference: str) -> Path:
    """Folder of one model.

    Args:
        loaded: the config.
        location: where it names the model.
        reference: as it stands there.

    Raises:
        SearchError: it is not there; points at its line.
    """
    import zoo

    try:
        path = loaded.resolve(reference)
    except (zoo.ZooError, MergingError) as error:
        raise loaded.error(location, str(error)) from error
    if not path.is_dir():
        hint = ""
        if path.is_file():
            hint = "; that is a file: give the folder that holds config.json"
        elif _HUB_NAME.fullmatch(reference):
            hint = f". If that is a name on the Hugging Face Hub: hf download {reference} --local-dir {reference}"
        else:
            places = {path.parent, (loaded.path.parent / path).parent}
            near = {each.name for place in places if place.is_dir() for each in place.iterdir() if each.is_dir()}
            hint = "." + did_you_mean(path.name, sorted(near))
        raise loaded.error(location, f"expected a folder with a model, found nothing at {path}{hint.removesuffix('.')}")
    return path


def build_evaluators(loaded: LoadedConfig) -> dict[str, Evaluator]:
    """The config's evaluators, their data read.

    Raises:
        SearchError: data that is missing or bad; points at the evaluator's line.
    """
    return {name: build_evaluator(loaded, name) for name in loaded.config.evaluators}


def build_evaluator(loaded: LoadedConfig, name: str) -> Evaluator:
    """One of the config's evaluators, its data read.

    Raises:
        SearchError: data that is missing or bad; points at the evaluator's line.
    """
    import zoo

    try:
        kind, options = loaded.evaluator_options(name)
        return registry.build(kind, options, folder=loaded.path.parent)
    except (EvaluatorError, zoo.ZooError) as error:
        raise loaded.error(
            _named_in(str(error), loaded.config.evaluators[name], ("evaluators", name)), str(error)
        ) from error


def _named_in(message: str, value: object, location: Location) -> Location:
    """Which option an error speaks of: the one whose text is the longest that stands in the message; the evaluator
    itself where none does."""
    found = [(0, location)]

    def look(value: object, location: Location) -> None:
        if isinstance(value, str) and len(value) > 3 and value in message:
            found.append((len(value), location))
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in pairs:
            if key != "type":
                look(each, (*location, key))

    look(value, location)
    return max(found, key=lambda each: each[0])[1]


def prepare_evaluators(loaded: LoadedConfig, evaluators: Mapping[str, Evaluator], engine: Engine) -> None:
    """Let every evaluator check and tokenise its data.

    Raises:
        SearchError: data that this engine cannot use; points at the evaluator's line.
    """
    for name, evaluator in evaluators.items():
        try:
            evaluator.prepare(engine)
        except EvaluatorError as error:
            raise loaded.error(("evaluators", name), str(error)) from error
