"""Weights & Biases: offline unless the config says otherwise; ``wandb sync`` uploads what lies in the run directory.

The run's id and how far it was told lie in ``wandb/run.json``, written after every candidate: a resumed search goes on
with the same id, from the first candidate that W&B has not heard of.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from search.errors import SearchError
from search.events import RunStarted
from search.schema import Config
from search.trackers.mirror import FrontTable, Row
from search.trackers.tensorboard import tagged

FOLDER = "wandb"
BOOKMARK = "run.json"


class WandbOptions(BaseModel):
    """Options of ``trackers: wandb``.

    Attributes:
        mode: offline: files in the run directory, nothing leaves this machine; online: sent as it happens, for which
            `wandb login` must have been run.
        project: W&B's.
        entity: user or team; the logged-in user's own if None.
        group: of runs that belong together.
        tags: of the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["offline", "online"] = "offline"
    project: str = "paretomerge"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


class WandbSink:
    """See the module docstring, and :class:`search.trackers.mirror.Sink`."""

    def __init__(self, folder: Path, config: Config, options: WandbOptions) -> None:
        self._folder = folder
        self._config = config
        self._options = options
        self._run: Any = None
        self._id = ""
        self._objectives: frozenset[str] = frozenset()

    def open(self, started: RunStarted, told: Collection[int]) -> int:
        """See :class:`search.trackers.mirror.Sink`."""
        import wandb

        self._objectives = frozenset(each["name"] for each in started.objectives)
        first = self._read_bookmark(told)
        options = self._options
        if options.mode == "online" and not wandb.api.api_key:  # W&B would ask for it on the terminal, and wait
            raise SearchError("wandb: mode: online needs an account; run `wandb login` first, or take mode: offline")
        self._run = wandb.init(
            id=self._id,
            name=self._folder.resolve().name,
            project=options.project,
            entity=options.entity,
            group=options.group,
            tags=options.tags,
            mode=options.mode,
            dir=str(self._folder),
            resume="allow",
            reinit="create_new",
            config=self._config.model_dump(mode="json"),
            # nothing but what this tracker logs: no terminal output, source code, host name or machine's load
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )
        self._write_bookmark(first)
        return first

    def write(self, row: Row) -> None:
        """See :class:`search.trackers.mirror.Sink`."""
        numbers = tagged(row, self._objectives)
        self._run.log({"candidate": row.candidate, "state": row.state, **numbers}, step=row.candidate, commit=True)
        self._write_bookmark(row.candidate + 1)

    def finish(self, table: FrontTable, last: int) -> None:
        """See :class:`search.trackers.mirror.Sink`."""
        import wandb

        columns: list[str | int] = [*table.columns]
        # into the summary, where it takes no step of its own: a grown budget goes on with the next candidate's
        self._run.summary["front"] = wandb.Table(columns=columns, data=table.rows)

    def flush(self) -> None:
        """See :class:`search.trackers.mirror.Sink`. W&B's own process writes as it is told."""

    def close(self) -> None:
        """See :class:`search.trackers.mirror.Sink`."""
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def _read_bookmark(self, told: Collection[int]) -> int:
        """The first candidate that W&B has not heard of; of a log that it knows nothing of, a new run's first."""
        try:
            found = json.loads((self._folder / FOLDER / BOOKMARK).read_text(encoding="utf-8"))
            self._id, first = str(found["id"]), int(found["next"])
        except (OSError, ValueError, KeyError, TypeError):
            self._id, first = "", 0
        if not self._id.isalnum() or not 0 <= first <= max(told, default=-1) + 1:
            self._id, first = secrets.token_hex(8), 0
        return first

    def _write_bookmark(self, first: int) -> None:
        path = self._folder / FOLDER / BOOKMARK
        path.parent.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"id": self._id, "next": first}), encoding="utf-8")
        new.replace(path)
