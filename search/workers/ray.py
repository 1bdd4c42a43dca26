"""Workers as actors of Ray: on this machine, or on a cluster.

The driver is the only writer, and the only one who decides. An actor that dies is not restarted by Ray but by
:class:`search.workers.crew.CrewPool`: Ray keeps raising for seconds while it restarts one, and would set it up without
asking what it runs. Nothing is uploaded: every node has this package installed, which is the first thing that a worker
is asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.config import LoadedConfig
from search.errors import SearchError
from search.schema import WorkersConfig
from search.workers.contract import Task
from search.workers.crew import Answer, CrewPool, WorkerLost
from search.workers.evaluation import Evaluation
from search.workers.identity import Identity
from search.workers.ray_actor import Home, Mistake, Scorer, environment, raised
from search.workers.ray_home import RayHome

Say = Callable[[str], None]

_CONNECT = 20.0  # seconds to reach the head of a cluster

_STARTS = 3  # of a Ray on this machine

_OBJECTS = 200 * 2**20  # bytes for what goes between processes: scores, which are small


def open_ray_pool(
    loaded: LoadedConfig, settings: WorkersConfig, folder: Path, threads: int, expected: Identity, say: Say
) -> CrewPool:
    """Start or join Ray, start the workers, and wait for the first one.

    Args:
        loaded: the run's config.
        settings: how many workers, and where.
        folder: the run directory. Ray puts the folder that it is started from before the packages of its workers, and
            that may hold a package called ``search``; this one does not.
        threads: CPU threads of each worker.
        expected: what every worker must be like.
        say: told one line for what takes long.

    Raises:
        SearchError: Ray is not installed, cannot be started or reached, or has no room; a worker is not what it must
            be.
        MergingError, EvaluatorError, ZooError: the set-up of a worker found a mistake.
    """
    gpus = gpus_of(loaded, settings)
    ray = _imported()
    began = Path.cwd()
    home, joined = None, not ray.is_initialized()
    if joined:
        home = RayHome() if settings.address is None else None
        try:
            if settings.address is not None:
                with loaded.placing("workers", "address"):
                    check_address(settings.address)
            _connect(ray, settings, folder, threads, gpus, home)
        except BaseException:
            if home is not None:
                home.close()
            raise
    crew = RayCrew(ray, loaded, Home(environment(threads), threads, str(began)), gpus, home, joined=joined)
    try:
        slots = _slots(ray, loaded, settings, gpus)
        say(f"starting {slots} worker{'s' if slots > 1 else ''} with Ray")
        pool = CrewPool(crew, slots, expected, gpus=gpus, attempts=settings.attempts, say=say)
        pool.open()
    except BaseException:
        crew.close()
        raise
    return pool


def gpus_of(loaded: LoadedConfig, settings: WorkersConfig) -> float:
    """GPUs of each worker.

    Raises:
        SearchError: the engine is on a GPU, and workers are to have none.
    """
    wanted = loaded.config.engine.device.startswith("cuda")
    if settings.gpus is None:
        return 1.0 if wanted else 0.0
    if wanted and settings.gpus == 0.0:
        raise loaded.error(("workers", "gpus"), "expected > 0, since engine.device is cuda; or set engine.device: cpu")
    if settings.gpus > 1.0 and settings.gpus != int(settings.gpus):
        raise loaded.error(("workers", "gpus"), f"expected a fraction of one GPU or whole ones, found {settings.gpus}")
    return settings.gpus


class RayCrew:
    """A :class:`search.workers.crew.Crew` of actors."""

    def __init__(
        self,
        ray: Any,
        loaded: LoadedConfig,
        home: Home,
        gpus: float,
        own: RayHome | None = None,
        *,
        joined: bool = True,
    ) -> None:
        """Args:
        ray: the module, connected.
        loaded: the run's config.
        home: what each actor is given.
        gpus: that each takes.
        own: where Ray keeps its files, if it was started here; it then ends with the crew.
        joined: this process was connected for this crew, and is to leave with it.
        """
        self._ray = ray
        self._loaded = loaded
        self._home = home
        self._own = own
        self._joined = joined
        # Ray itself starts no second one: an actor that it restarts was not asked what it runs
        self._actor = ray.remote(Scorer).options(
            # a GPU is scarce, and whoever has one needs no CPU reserved
            num_cpus=0 if gpus else home.threads,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
        )

    def start(self) -> Any:
        """See :class:`search.workers.crew.Crew`."""
        return self._actor.remote(self._home)

    def identify(self, worker: Any) -> Any:
        """See :class:`search.workers.crew.Crew`."""
        return worker.identify.remote()

    def set_up(self, worker: Any) -> Any:
        """See :class:`search.workers.crew.Crew`."""
        return worker.set_up.remote(self._loaded)

    def evaluate(self, worker: Any, task: Task) -> Any:
        """See :class:`search.workers.crew.Crew`."""
        return worker.evaluate.remote(task)

    def wait(self, refs: Sequence[Any], seconds: float) -> list[Any]:
        """See :class:`search.workers.crew.Crew`."""
        with self._translated():
            ready, rest = self._ray.wait(list(refs), num_returns=1, timeout=seconds)
            if ready and rest:
                ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return list(ready)

    def answer(self, ref: Any) -> Any:
        """See :class:`search.workers.crew.Crew`."""
        errors = self._ray.exceptions
        try:
            with self._translated():
                answer = self._ray.get(ref)
        except errors.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except errors.RayActorError as error:
            if error.actor_init_failed:  # nothing is done there but importing
                raise SearchError(
                    f"a worker cannot run what the driver runs ({_last_line(error)}). Install the same version of "
                    "paretomerge on every node, and see that no other package called search, merging, evaluators or "
                    "zoo comes before it (docs/distributed.md)."
                ) from error
            of_its_node = error.preempted or "its node has died" in str(error)
            raise WorkerLost("its node has died" if of_its_node else _in_short(error), innocent=of_its_node) from error
        except errors.RayError as error:
            raise WorkerLost(_in_short(error)) from error
        if isinstance(answer, Mistake):
            raise raised(answer)
        if isinstance(answer, Answer) and answer.evaluation is not None:
            return answer._replace(evaluation=_owned(answer.evaluation))
        return answer

    def kill(self, worker: Any) -> None:
        """See :class:`search.workers.crew.Crew`."""
        with contextlib.suppress(Exception):  # it, or all of Ray, may be gone already
            self._ray.kill(worker, no_restart=True)

    def close(self) -> None:
        """See :class:`search.workers.crew.Crew`."""
        if self._joined:
            self._ray.shutdown()
        if self._own is not None:
            self._own.close()
            self._own = None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (self._ray.exceptions.RaySystemError, self._ray.exceptions.LocalRayletDiedError) as error:
            raise SearchError(
                f"Ray itself has ended on this machine ({_in_short(error)}). What is stored is safe: run the same "
                "command again."
            ) from error


def _imported() -> Any:
    """The module. What it would send or upload unasked is switched off, and a signal handler that it sets undone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: beside any other work they would stand still
    # what its daemons say of dead workers would be printed to stdout; the log of the run has it
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise SearchError(
            f"workers: kind: ray needs the package ray, which cannot be imported here ({error}): "
            "pip install paretomerge[ray]"
        ) from error
    return ray


def _connect(ray: Any, settings: WorkersConfig, folder: Path, threads: int, gpus: float, home: RayHome | None) -> None:
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if home is None:
        options |= {"address": settings.address or "auto"}
    else:
        options |= {"address": "local", "include_dashboard": False, "_temp_dir": str(home.path)}
        options |= {"object_store_memory": _OBJECTS}
        if not gpus:
            options |= {"num_cpus": threads * (settings.count or 1), "num_gpus": 0}
    folder = folder.absolute()
    before = Path.cwd()
    try:
        os.chdir(folder)
        with _own_signals():
            _start(ray, options, attempts=1 if home is None else _STARTS)
    except SearchError:
        raise
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, and what its processes die of
        where = f"the cluster at {settings.address} cannot be joined" if home is None else "Ray cannot be started here"
        raise SearchError(f"workers: {where}: {_in_short(error)}") from error
    finally:
        os.chdir(before)


def _start(ray: Any, options: dict[str, Any], attempts: int) -> None:
    """Ray gives itself 30 s to start, which a busy machine may not have for it the first time."""
    for left in reversed(range(attempts)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise


def check_address(address: str, seconds: float = _CONNECT) -> None:
    """Whether a cluster can be joined there: Ray tries for minutes to reach one that is not there.

    Args:
        address: as ``workers.address`` says.
        seconds: to wait for an answer.

    Raises:
        SearchError: nobody listens at host:port, or it is an address of Ray's client.
    """
    if address.startswith("ray://"):
        raise SearchError(
            f"{address} is an address of Ray's client, through which the driver cannot tell who died. Run paretomerge "
            "on a node of the cluster, with address: auto, or host:port of its head"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return  # a word of Ray's own, such as auto
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            pass
    except (OSError, OverflowError) as error:
        raise SearchError(
            f"the cluster at {address} cannot be joined ({error}); expected the address of its head, as `ray start "
            "--head` printed it"
        ) from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Put back what Ray takes: its handler ends the process on SIGTERM where ours finishes tidily."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _slots(ray: Any, loaded: LoadedConfig, settings: WorkersConfig, gpus: float) -> int:
    """How many workers.

    Raises:
        SearchError: there are not the GPUs that they need.
    """
    found = float(ray.cluster_resources().get("GPU", 0.0)) if gpus else math.inf
    count = settings.count or (int(found / gpus + 1e-9) if gpus else 1)
    short = settings.address is None and count * gpus > found + 1e-9  # a cluster may grow
    if gpus and (count < 1 or short):
        wanted = f"{count} workers with {gpus:g} GPUs each" if count else f"a worker with {gpus:g} GPUs"
        where = "here" if settings.address is None else "there"
        raise loaded.error(
            ("workers", "gpus") if settings.gpus is not None else ("workers",),
            f"expected room for {wanted}, and Ray finds {found:g} GPUs {where}; take fewer workers, let them share a "
            "GPU (gpus: 0.5), or set engine.device: cpu",
        )
    return count


def _owned(evaluation: Evaluation) -> Evaluation:
    """Scores in memory of this process: Ray's arrays are read-only, and keep room in its object store."""
    scores = {
        name: replace(
            each,
            values={metric: values.copy() for metric, values in each.values.items()},
            weights={metric: values.copy() for metric, values in each.weights.items()},
        )
        for name, each in evaluation.scores.items()
    }
    return replace(evaluation, scores=scores)


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_BY_NUMBER = re.compile(r"(class_name|actor_id|pid|name|namespace|ip): |The actor died unexpectedly")


def _in_short(error: BaseException) -> str:
    """What Ray says of an error, without the colours, numbers and advice of its logs."""
    text = _COLOURS.sub("", str(error)).partition("There are some potential root causes")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = " ".join(line for line in lines if not _BY_NUMBER.match(line)) or " ".join(lines)
    return said[:300].rstrip(". ") or type(error).__name__


def _last_line(error: BaseException) -> str:
    return _COLOURS.sub("", str(error)).strip().splitlines()[-1].strip()[:300]
