"""What a run is made of, as its first event says it: everything that a later start must find unchanged."""

from __future__ import annotations

from collections.abc import Mapping

from evaluators.contract import SPLITS
from search.config import LoadedConfig
from search.events import LOG_VERSION, RunStarted
from search.finals import holdout_hashes
from search.objectives import clusters_of
from search.optimizers import registry as optimizers
from search.schema import Config
from search.setup import Setup
from search.stages import Stage
from search.standing import Schedule
from search.workers.identity import evaluator_identity


def beginning(
    loaded: LoadedConfig,
    setup: Setup,
    stages: list[Stage],
    schedule: Schedule,
    threads: int,
    borders: Mapping[str, list[int]],
) -> RunStarted:
    """The first event of a run with this config over these models and data.

    Args:
        loaded: the config.
        setup: made from it.
        stages: of the search.
        schedule: when candidates are proposed and told.
        threads: CPU threads of each worker.
        borders: of the space's blocks, where they were placed.
    """
    checkpoints = setup.sources.checkpoints
    return RunStarted(
        config=loaded.config.model_dump(mode="json"),
        sources={alias: ref.content for alias, ref in setup.sources.refs.items()},
        paths={alias: str(each.path.absolute()) for alias, each in checkpoints.items()},
        groups=[str(group) for group in setup.sources.layout.groups],
        tensors=_tensors(loaded.config, setup),
        objectives=setup.objectives.as_data(),
        evaluators={
            name: evaluator_identity(loaded, name, each.fingerprint) for name, each in setup.evaluators.items()
        },
        engine=setup.engine_fingerprint,
        threads=threads,
        stage_ends=[stage.end for stage in stages if stage.end is not None],
        reference=list(setup.objectives.reference),
        items={
            name: {split: list(evaluator.items(split).ids) for split in SPLITS}
            for name, evaluator in setup.evaluators.items()
        },
        clusters={
            name: {id: of for split in SPLITS for id, of in (clusters_of(evaluator, split) or {}).items()}
            for name, evaluator in setup.evaluators.items()
            if any(clusters_of(evaluator, split) for split in SPLITS)
        },
        constraints=setup.constraints.as_data(),
        metrics={
            f"{name}.{each.name}": {"direction": each.direction, "low": each.low, "high": each.high}
            for name, evaluator in setup.evaluators.items()
            for each in evaluator.metrics
        },
        plugins=_plugins(loaded),
        holdouts=holdout_hashes(setup.evaluators),
        folder=str(loaded.path.parent.absolute()),
        version=LOG_VERSION,
        made_by={alias: recipe.to_yaml() for alias, recipe in setup.made_by.items()},
        calibration="" if setup.calibration is None else setup.calibration.fingerprint,
        schedule=schedule.kind,
        window=schedule.window,
        borders=dict(borders),
        of_hybrid=loaded.of_first,
    )


def _tensors(config: Config, setup: Setup) -> dict[str, str]:
    """Tensor -> group, where the space needs it."""
    if config.space.granularity != "tensor":
        return {}
    layout = setup.sources.layout
    return {name: str(layout.group(name)) for name in layout.names}


def _plugins(loaded: LoadedConfig) -> dict[str, str]:
    """An optimizer of the user's own -> hash of its source: a changed one proposes otherwise."""
    name = loaded.config.search.optimizer.name
    if name in optimizers.BUILT_IN:
        return {}
    return {name: optimizers.source_hash(name, folder=loaded.path.parent)}
