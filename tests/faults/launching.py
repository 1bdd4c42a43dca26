"""Runs of ``paretomerge`` in processes that start at once: forked from one that has imported everything.

Most of a short run is importing torch and transformers. A hundred starts would spend ten minutes on it, so a server
process imports them once and forks for every run. The forked process runs the command line from its first line to its
last, in a working directory, with environment and faults of its own; whoever asked may kill it at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]

Fault = tuple[str, Mapping[str, Any]]
"""Name of a function of :mod:`injecting`, and its arguments."""

DEFECT = 70
"""Exit status of a process that ended with a traceback."""


class Started:
    """A run under way.

    Attributes:
        pid: its process.
    """

    def __init__(self, launcher: Launcher, pid: int, output: Path) -> None:
        self._launcher, self.pid, self._output = launcher, pid, output
        self._status: int | None = None

    @property
    def status(self) -> int | None:
        """None while it runs, else its exit status, or minus the signal that ended it."""
        if self._status is None:
            self._status = self._launcher.ask(do="poll", pid=self.pid)
        return self._status

    @property
    def output(self) -> str:
        """What it has printed so far, on both channels."""
        return self._output.read_text(errors="replace")

    def wait(self, seconds: float = 240.0) -> int:
        """Its status, once it has ended.

        Raises:
            TimeoutError: it is still running after so many seconds; it is killed.
        """
        deadline = time.monotonic() + seconds
        while self.status is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"a run has not ended after {seconds:.0f} s. It printed:\n{self.output}")
            time.sleep(0.005)
        assert self._status is not None
        return self._status

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> int:
        """``kill -9``, and its status: not -9 where it had ended before."""
        self.signal(signal.SIGKILL)
        return self.wait()


class Launcher:
    """The server, from here. A context manager; at its end every run that is still under way is killed."""

    def __init__(self, warm: Sequence[str], folder: Path) -> None:
        """Start the server.

        Args:
            warm: a command line that needs every module that later ones will need; run once, its result thrown away.
            folder: where it is run.
        """
        environment = {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)),
        }
        self._outputs = tempfile.TemporaryDirectory(prefix="faults-")
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,  # the Ctrl-C of whoever runs this is not theirs
            text=True,
        )
        output = self._output()
        problem = self.ask(do="warm", argv=list(warm), cwd=str(folder), output=str(output))
        if problem:
            said = output.read_text(errors="replace")
            self.close()
            raise RuntimeError(f"`paretomerge {' '.join(warm)}` ended with {problem}:\n{said}")

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(
        self,
        *argv: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        faults: Sequence[Fault] = (),
    ) -> Started:
        """Run a command line in a process of its own.

        Args:
            argv: after the word ``paretomerge``.
            folder: its working directory.
            environment: what is added to the environment.
            faults: what goes wrong in it.
        """
        output = self._output()
        pid = self.ask(
            do="start",
            argv=list(argv),
            cwd=str(folder),
            environment=dict(environment or {}),
            faults=[[name, dict(arguments)] for name, arguments in faults],
            output=str(output),
        )
        return Started(self, pid, output)

    def ask(self, **request: Any) -> Any:
        """One request to the server, and its answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError("the process that starts the runs has ended")
        return json.loads(answer)

    def close(self) -> None:
        """End the server, and with it what it started."""
        if self._server.stdin is not None and not self._server.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._server.stdin.close()
        self._server.wait()
        if self._server.stdout is not None:
            self._server.stdout.close()
        self._outputs.cleanup()

    def _output(self) -> Path:
        self._count += 1
        path = Path(self._outputs.name) / str(self._count)
        path.touch()
        return path


class _Server:
    """The other end: answers requests, reaps what it started."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._ended: dict[int, int] = {}

    def serve(self, answers: int) -> None:
        for line in sys.stdin:
            request = json.loads(line)
            answer = getattr(self, f"_{request.pop('do')}")(**request)
            os.write(answers, (json.dumps(answer) + "\n").encode())
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _start(
        self, argv: list[str], cwd: str, environment: dict[str, str], faults: list[Any], output: str
    ) -> int:  # fmt: skip
        pid = os.fork()
        if pid == 0:
            _run(argv, cwd, environment, faults, output)
        self._running.add(pid)
        return pid

    def _poll(self, pid: int) -> int | None:
        if pid in self._running:
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                return None
            self._running.remove(pid)
            self._ended[pid] = os.waitstatus_to_exitcode(status)
        return self._ended[pid]

    def _warm(self, argv: list[str], cwd: str, output: str) -> int:
        """Import here what a run of this command imports there: this process itself must have no state of a run."""
        here, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run(argv, cwd, {}, [["name_modules", {"to": there}]], output)
        os.close(there)
        names = []
        while select.select([here], [], [])[0]:
            part = os.read(here, 1 << 16)
            if not part:
                break
            names.append(part)
        os.close(here)
        _, status = os.waitpid(pid, 0)
        import importlib

        for name in b"".join(names).decode().split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        return os.waitstatus_to_exitcode(status)


def _run(argv: list[str], cwd: str, environment: dict[str, str], faults: list[Any], output: str) -> NoReturn:
    """What the forked process does, to its end."""
    status = DEFECT
    try:
        handle = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(cwd)
        os.environ.update(environment)
        import injecting

        for name, arguments in faults:
            getattr(injecting, name)(**arguments)
        from search.cli import run_command

        status = run_command(argv)
        injecting.at_the_end()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.modules["launching"] = sys.modules["__main__"]
    answering = os.dup(1)
    os.dup2(2, 1)  # what anybody prints must not look like an answer
    os.set_inheritable(answering, False)
    _Server().serve(answering)
