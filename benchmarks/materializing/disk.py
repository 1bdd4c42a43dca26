"""Merges from disk to disk, as a user runs them: ``paretomerge merge`` and mergekit, on the same configs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from family import WEIGHTS, Family
from safetensors import safe_open

MERGEKIT = "0.1.5"

_HERE = Path(__file__).parent
_OURS = (sys.executable, "-c", "from search.cli import main; main()", "merge")


@dataclass(frozen=True)
class Usage:
    """What a process used, its children included.

    Attributes:
        cpu: seconds, user and system.
        wall: seconds.
        peak: bytes of resident memory, of the largest process.
    """

    cpu: float
    wall: float
    peak: int


def used(command: Sequence[str | Path]) -> Usage:
    """Run a command on one thread and say what it used.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen([str(each) for each in command], stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            tail = said.read().decode(errors="replace")[-3000:]
            raise SystemExit(f"{' '.join(str(each) for each in command)} failed:\n{tail}")
    return Usage(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024)


def config(method: str, family: Family) -> str:
    """A merge as mergekit's YAML."""
    models = []
    for number, expert in enumerate(family.experts):
        parameters = {"weight": round(0.3 + 0.05 * number, 2)}
        if method == "ties":
            parameters["density"] = round(0.3 + 0.05 * number, 2)
        models.append({"model": str(expert), "parameters": parameters})
    data = {"merge_method": method, "base_model": str(family.base), "models": models, "dtype": "bfloat16"}
    return yaml.safe_dump(data, sort_keys=False)


def environment(folder: Path) -> Path:
    """The interpreter of an environment that holds mergekit, made where it is not there.

    Raises:
        SystemExit: it cannot be made.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing mergekit {MERGEKIT} into {folder} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        requirements = _HERE / "mergekit.txt"
        installed = subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=False)
        if installed.returncode:
            shutil.rmtree(folder)
            raise SystemExit(
                f"mergekit could not be installed from {requirements}; see above. Give an environment that has it "
                "(--mergekit VENV), or leave it out (--no-mergekit)"
            )
    return python


def compare(families: Sequence[Family], python: Path | None, rounds: int, scratch: Path) -> dict[str, Any]:
    """Both tools on the same configs: what each process used, and how far the results are apart.

    Args:
        families: the same family with few and with many experts.
        python: interpreter of mergekit's environment; None measures ours alone.
        rounds: runs of each; the least CPU time and the least wall time count. The two alternate.
        scratch: folder for configs and results; what is written is removed.
    """
    found: dict[str, Any] = {"rows": []}
    script = None if python is None else python.parent / "mergekit-yaml"
    if python is not None:
        found["mergekit import"] = _best(
            [used([python, "-c", "import mergekit.scripts.run_yaml"]) for _ in range(rounds)]
        )
    found["our import"] = _best([used([sys.executable, "-c", _IMPORTS]) for _ in range(rounds)])
    for family in families:
        for method in ("task_arithmetic", "ties"):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                written = Path(folder, "config.yaml")
                written.write_text(config(method, family), encoding="utf-8")
                runs: dict[str, list[Usage]] = {"ours": [], "mergekit": []}
                for _ in range(rounds):
                    outs = {name: Path(folder, name) for name in runs}
                    for out in outs.values():
                        shutil.rmtree(out, ignore_errors=True)
                    runs["ours"].append(used([*_OURS, written, outs["ours"]]))
                    if script is not None:
                        runs["mergekit"].append(used([script, written, outs["mergekit"], "--no-copy-tokenizer"]))
                row: dict[str, Any] = {"method": method, "experts": len(family.experts)}
                row |= {name: _best(each) for name, each in runs.items() if each}
                if python is not None:
                    row["differing"] = differing(outs["ours"], outs["mergekit"])
                if python is not None and family is families[0]:
                    row["in memory"] = _in_memory(python, written, rounds, Path(folder))
                found["rows"].append(row)
    return found


def differing(one: Path, other: Path) -> float:
    """Share of the elements in which two results are not the same number."""
    unequal = total = 0
    with safe_open(one / WEIGHTS, framework="pt") as ours, safe_open(_weights(other), framework="pt") as theirs:
        names: list[str] = ours.keys()
        for name in names:
            a, b = ours.get_tensor(name), theirs.get_tensor(name)
            unequal += int(torch.ne(a, b).sum())
            total += a.numel()
    return unequal / total


def _weights(folder: Path) -> Path:
    """The only file of weights, whatever its name."""
    (file,) = folder.glob("*.safetensors")
    return file


def _in_memory(python: Path, written: Path, rounds: int, folder: Path) -> dict[str, float]:
    result = folder / "times.json"
    used([python, _HERE / "mergekit_in_memory.py", written, str(rounds), result])
    times = json.loads(result.read_text(encoding="utf-8"))
    return {"cpu": min(cpu for cpu, _ in times), "wall": min(wall for _, wall in times)}


def _best(runs: Sequence[Usage]) -> dict[str, float]:
    return asdict(
        Usage(min(each.cpu for each in runs), min(each.wall for each in runs), min(each.peak for each in runs))
    )


_IMPORTS = "import search.cli.merge, merging.configs, merging.export"
