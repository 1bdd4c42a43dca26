"""A search over the nano family whose evaluators do what tests ask of them, once or always."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

TRAPS = '''
"""exact_match that counts its calls, and dies, hangs or waits where a file says so."""
import ctypes, os, signal, time
from pathlib import Path
from evaluators.exact_match import ExactMatch, ExactMatchOptions


class Trapped(ExactMatch):
    Options = ExactMatchOptions

    def score(self, engine, ids):
        folder = Path(os.environ["PARETOMERGE_TEST_TRAPS"])
        with (folder / "calls").open("a") as file:
            file.write(f"{os.getpid()} {len(ids)}\\n")
        self.spring(folder)
        return super().score(engine, ids)

    @staticmethod
    def spring(folder):
        for trap in sorted(folder.glob("*.once")):
            try:
                trap.rename(trap.with_suffix(f".{os.getpid()}"))  # one process takes it
            except FileNotFoundError:
                continue
            what = trap.stem.split("-")[0]
            if what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "sleep":
                time.sleep(1000)
            if what == "hang":
                ctypes.PyDLL(None).sleep(1000)  # holds the interpreter lock: nothing of Python runs meanwhile
        always = folder / "always"
        if always.exists():
            os.kill(os.getpid(), signal.SIGSEGV)
        slow = folder / "slow"
        if slow.exists():
            time.sleep(float(slow.read_text()))
'''

CONFIG = """
name: nano
models:
  base: zoo://skills-nano/base
  experts: {string: zoo://skills-nano/string, language: zoo://skills-nano/language}
evaluators:
  string: {type: "traps.py:Trapped", data: zoo://skills-nano/data/string}
  language: {type: exact_match, data: zoo://skills-nano/data/language}
objectives: [string.accuracy, language.accuracy]
space: {granularity: {knots: 2}, kinds: [[attention], [mlp], [norm, embedding, head]]}
search: {optimizer: sms_emoa, seed: 0, budget: {candidates: 24}, finalists: 4}
engine: {threads: 1}
"""


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nano_zoo: Path) -> Path:
    """See :func:`set_traps`."""
    monkeypatch.setenv("PARETOMERGE_TEST_TRAPS", str(tmp_path / "traps"))
    return set_traps(tmp_path)


@pytest.fixture(scope="module")
def trapped_once(tmp_path_factory: pytest.TempPathFactory, nano_zoo: Path) -> Iterator[Path]:
    """The same, for all tests of a module."""
    folder = set_traps(tmp_path_factory.mktemp("trapped"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARETOMERGE_TEST_TRAPS", str(folder / "traps"))
        yield folder


def set_traps(folder: Path) -> Path:
    """A folder with ``config.yaml``, and one for traps, ``traps/``: a file there that is called ``die-1.once`` ends the
    next worker that scores, ``sleep…`` and ``hang…`` hold it up; ``always`` ends each, ``slow`` says seconds."""
    (folder / "traps").mkdir()
    (folder / "traps.py").write_text(TRAPS)
    (folder / "config.yaml").write_text(CONFIG)
    return folder
