"""What scores candidates: models, evaluators and engine of a config, loaded and checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators import registry
from evaluators.contract import Evaluator, EvaluatorError
from merging.recipe import Recipe, SourceRef
from search.config import LoadedConfig
from search.constraints import Constraints
from search.events import LOG_VERSION
from search.objectives import Objectives
from search.schema import Config
from search.space.methods import PLANNED
from search.splits import check_disjoint
from search.stages import Stage, build_stages
from search.virtual import Say

if TYPE_CHECKING:
    from evaluators.contract import Engine
    from merging import Materializer, Sources
    from merging.calibration.contract import Calibration

_LOG = logging.getLogger("paretomerge")


@dataclass
class Setup:
    """Everything that scores candidates, ready to work.

    Attributes:
        sources: the models, virtual experts among them.
        materializer: writes recipes into the live model.
        engine: asks the live model.
        evaluators: name -> prepared evaluator.
        objectives: resolved.
        constraints: resolved.
        made_by: virtual expert -> its recipe.
        calibration: statistics on the experts' inputs, where a method of the space needs any.
    """

    sources: Sources
    materializer: Materializer
    engine: Engine
    evaluators: dict[str, Evaluator]
    objectives: Objectives
    constraints: Constraints
    made_by: dict[str, Recipe] = field(default_factory=dict)
    calibration: Calibration | None = None

    @cached_property
    def refs(self) -> dict[str, SourceRef]:
        """Alias -> model, as recipes name it; of a virtual expert that was not made yet, nothing but the recipe."""
        planned = {alias: SourceRef("", f"made by {each.hash}") for alias, each in self.made_by.items()}
        found = planned | self.sources.refs
        return {alias: replace(ref, made_by=self.made_by.get(alias)) for alias, ref in found.items()}


def stages_of(
    config: Config, setup: Setup, ends: Sequence[int] | None = None, version: int = LOG_VERSION
) -> list[Stage]:
    """The stages of a config over the models that were loaded.

    Args:
        config: the run's.
        setup: with its sources.
        ends, version: see :func:`search.stages.build_stages`.
    """
    layout = setup.sources.layout
    tensors = {name: layout.group(name) for name in layout.names}
    fingerprint = setup.calibration.fingerprint if setup.calibration is not None else PLANNED
    return build_stages(
        config, layout.groups, setup.refs, ends, version=version, tensors=tensors, calibration=fingerprint
    )


def set_up(loaded: LoadedConfig, threads: int | None = None, *, make: bool = True, say: Say = _LOG.info) -> Setup:
    """Load models, data and engine, and check all of it.

    Args:
        loaded: the config.
        threads: CPU threads; the config's, or torch's own choice, if None.
        make: make the virtual experts, and collect what calibrated methods need; otherwise only check that it can be
            done: candidates cannot be materialised then.
        say: told one line for every step that takes long.

    Raises:
        SearchError, MergingError, EvaluatorError, ZooError: what is wrong, and where.
    """
    import torch

    from evaluators import open_engine
    from merging import Materializer, Sources, load_model
    from search.ingredients import collect, gather

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
    model = load_model(base, dtype=config.models.dtype, device=config.engine.device)
    materializer = Materializer(sources, model)
    if calibration is not None:
        collect(loaded, calibration, materializer, say)
        materializer.calibration = calibration
    settings = config.engine
    engine = open_engine(
        model,
        base,
        kind=settings.kind,
        batch_tokens=settings.batch_tokens,
        device=settings.device,
        tensors=materializer.tensors,
        vllm=settings.vllm,
    )
    prepare_evaluators(loaded, evaluators, engine)
    return Setup(sources, materializer, engine, evaluators, objectives, constraints, made_by, calibration)


def model_paths(loaded: LoadedConfig) -> tuple[Path, dict[str, Path]]:
    """Folders of the base and of every expert.

    Raises:
        SearchError: one is not there; points at its line.
    """
    import zoo

    def find(location: tuple[str | int, ...], reference: str) -> Path:
        try:
            path = loaded.resolve(reference)
        except zoo.ZooError as error:
            raise loaded.error(location, str(error)) from error
        if not path.is_dir():
            raise loaded.error(location, f"expected a folder with a model, found nothing at {path}")
        return path

    models = loaded.config.models
    experts = {name: find(("models", "experts", name), path) for name, path in models.experts.items()}
    return find(("models", "base"), models.base), experts


def build_evaluators(loaded: LoadedConfig) -> dict[str, Evaluator]:
    """The config's evaluators, their data read.

    Raises:
        SearchError: data that is missing or bad; points at the evaluator's line.
    """
    import zoo

    result: dict[str, Evaluator] = {}
    for name in loaded.config.evaluators:
        try:
            kind, options = loaded.evaluator_options(name)
            result[name] = registry.build(kind, options, folder=loaded.path.parent)
        except (EvaluatorError, zoo.ZooError) as error:
            raise loaded.error(("evaluators", name), str(error)) from error
    return result


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
