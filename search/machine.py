"""What ``paretomerge doctor`` says of the machine: a list of findings, and what to do about those that are broken.

Nothing is loaded on a device, nothing is asked of a network, and no token's value is read out.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["ok", "note", "broken"]

OURS = ("search", "merging", "evaluators", "zoo")
"""Our packages; generic names, which others may have too."""

MAIN = (
    "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "optuna", "cma", "cmaes", "moocore",
    "pydantic", "typer", "rich", "plotly", "matplotlib", "huggingface_hub", "datasets", "lm-eval",
)  # fmt: skip
"""Packages whose versions decide what a run does, or whether it runs."""

EXTRAS = {
    "ray": ("ray",),
    "trackers": ("tensorboard", "wandb"),
    "dashboard": ("optuna_dashboard",),
    "large": ("accelerate",),
    "vllm": ("vllm",),
}
"""Extra -> modules that it brings."""


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        section: heading under which it is printed.
        name: of the thing.
        state: "ok"; "note": nothing is broken, but it is good to know; "broken".
        value: what was found.
        do: what to do, where something is to be done.
        facts: numbers for machines.
    """

    section: str
    name: str
    state: State
    value: str
    do: str = ""
    facts: dict[str, int | float | str | bool | None] = {}  # noqa: RUF012 - never changed


def look(progress: Callable[[str], None] = lambda section: None) -> list[Finding]:
    """Everything about this machine.

    Args:
        progress: told each section before it is looked at; devices take seconds, since torch is imported.
    """
    from search import machine_storage

    sections: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("versions", versions),
        ("names", names),
        ("devices", devices),
        ("disk", machine_storage.disk),
        ("hub", hub),
        ("extras", extras),
        ("terminal", terminal),
    )
    found: list[Finding] = []
    for section, looker in sections:
        progress(section)
        found.extend(looker())
    return found


def versions() -> Iterator[Finding]:
    """Python, this project, and the packages that matter, against what is declared and what was tested."""
    good = sys.version_info >= (3, 11)
    yield Finding(
        "versions", "python", "ok" if good else "broken", f"{platform.python_version()}, {platform.platform()}",
        "" if good else "install Python 3.11 or newer",
    )  # fmt: skip
    own = _version("paretomerge")
    if own is None:
        do = "install it: pip install ."
        yield Finding("versions", "paretomerge", "broken", "not installed, only on the path", do)
    else:
        yield Finding("versions", "paretomerge", "ok", own)
    wanted, tested = declared(), pinned_versions()
    for name in MAIN:
        yield _package(name, wanted.get(name, ""), tested.get(name))


def _package(name: str, wanted: str, tested: str | None) -> Finding:
    from packaging.specifiers import SpecifierSet

    found = _version(name)
    if found is None:
        return Finding("versions", name, "broken", "not installed", f"pip install '{name}{wanted}'")
    plain = found.partition("+")[0]  # torch's "+cpu" says which build it is
    if wanted and not SpecifierSet(wanted).contains(plain, prereleases=True):
        return Finding("versions", name, "broken", f"{found}, expected {wanted}", f"pip install '{name}{wanted}'")
    if tested is not None and plain != tested:
        return Finding("versions", name, "note", f"{found}; tested with {tested}", "", {"tested": tested})
    return Finding("versions", name, "ok", f"{found}{', as tested' if tested else ''}", "", {"tested": tested})


def declared() -> dict[str, str]:
    """Package -> the versions that this project declares to need; empty where it is not installed."""
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires("paretomerge") or []
    except metadata.PackageNotFoundError:
        return {}
    needed = [Requirement(text) for text in texts if "extra ==" not in text]
    return {each.name: str(each.specifier) for each in needed}


def pinned_versions() -> dict[str, str]:
    """Package -> the version that the tests ran with."""
    import json
    from importlib import resources

    found: dict[str, str] = json.loads((resources.files("search") / "tested_versions.json").read_text("utf-8"))
    return found


def names() -> Iterator[Finding]:
    """Who owns the names of our packages: generic ones, that another package or a folder here may take."""
    owners = _owners()
    home = Path(__file__).resolve().parents[1]
    for name in OURS:
        others = sorted(set(owners.get(name, ())) - {"paretomerge"})
        spec = util.find_spec(name)
        place = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
        if others:
            whose = f"also of {', '.join(others)}"
            do = f"pip uninstall {' '.join(others)}, or use an environment of its own: both cannot work"
            yield Finding("names", name, "broken", whose, do)
        elif place is None or place.parent != home:
            where = "nowhere" if place is None else str(place)
            do = "rename what is found first on the path (PYTHONPATH, or the folder that you are in)"
            yield Finding("names", name, "broken", f"found at {where}, not at {home / name}", do)
        elif (shadow := _in_the_way(name, home)) is not None:
            do = "harmless for `paretomerge` itself; python started here with -c or -m would take it for ours"
            yield Finding("names", name, "note", f"{shadow} has the same name", do)
        else:
            yield Finding("names", name, "ok", "ours")


def _owners() -> dict[str, set[str]]:
    """Our names -> the distributions that bring something of that name. ``metadata.packages_distributions`` looks at
    every file of every distribution, for seconds."""
    found: dict[str, set[str]] = {name: set() for name in OURS}
    for each in metadata.distributions():
        tops = each.read_text("top_level.txt")
        listed = "\n" + (tops if tops is not None else each.read_text("RECORD") or "")
        for name in OURS:
            ends = ("\n",) if tops is not None else ("/", ".py,")
            if any(f"\n{name}{end}" in f"{listed}\n" for end in ends):
                found[name].add(each.metadata["Name"])
    return found


def _in_the_way(name: str, home: Path) -> Path | None:
    """A package or module of that name in the current folder, which is not ours."""
    here = Path.cwd()
    if here.resolve() == home:
        return None
    return next((each for each in (here / name / "__init__.py", here / f"{name}.py") if each.is_file()), None)


def devices() -> Iterator[Finding]:
    """Processors, memory, GPUs, compiler."""
    import psutil

    memory = psutil.virtual_memory()
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    some = f"{usable} of {cores}" if usable != cores else str(cores)
    yield Finding("devices", "cores", "ok", some, "", {"cores": usable})
    free = {"bytes": memory.total, "free": memory.available}
    yield Finding("devices", "memory", "ok", f"{size(memory.total)}, {size(memory.available)} free", "", {**free})
    yield from _gpus()
    compiler = next((path for each in ("g++", "clang++", "c++") if (path := shutil.which(each))), None)
    if compiler is None:
        do = "apt-get install g++, for speed on large models; without one the same candidates are made eagerly"
        yield Finding("devices", "compiler", "note", "no g++, clang++ or c++", do)
    else:
        yield Finding("devices", "compiler", "ok", f"{compiler}, {_first_line(compiler, '--version')}")


def _gpus() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding("devices", "gpu", "broken", f"torch cannot be imported: {error}", "reinstall torch (pytorch.org)")
        return
    if not torch.cuda.is_available():
        seen = Path("/dev/nvidia0").exists()
        state: State = "note" if seen else "ok"
        do = "install torch's CUDA build (pytorch.org), or look at CUDA_VISIBLE_DEVICES" if seen else ""
        yield Finding(
            "devices", "gpu", state, "one is there, torch cannot use it" if seen else "none; CPUs are used", do
        )
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        words = f"{facts.name}, {size(facts.total_memory)}"
        yield Finding("devices", f"cuda:{index}", "ok", words, "", {"bytes": facts.total_memory})


def hub() -> Iterator[Finding]:
    """Whether the Hugging Face Hub may be asked, and whether there is a token. Its value is never shown."""
    offline = [
        name
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
    ]
    where = f"offline ({', '.join(offline)})" if offline else "online, where it is asked for"
    yield Finding("hub", "state", "ok", where, "", {"offline": bool(offline)})
    if os.environ.get("HF_ENDPOINT"):
        yield Finding("hub", "address", "note", "another one, in HF_ENDPOINT")
    source = _token_source()
    said = "none: enough for public models, not for `export --push`" if source is None else f"there, from {source}"
    yield Finding("hub", "token", "ok", said, "", {"token": source is not None})


def _token_source() -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return f"the environment ({name})"
    try:
        from huggingface_hub import get_token
    except ImportError:
        return None
    return "the hub's login" if get_token() else None


def extras() -> Iterator[Finding]:
    """Optional parts: installed or not, and how to get them."""
    for extra, modules in EXTRAS.items():
        missing = [each for each in modules if util.find_spec(each) is None]
        do = f"pip install 'paretomerge[{extra}]'" if missing else ""
        if extra == "vllm" and missing:
            do += ", in an environment of its own (docs/engines.md)"
        value = f"without {', '.join(missing)}" if missing else "installed"
        yield Finding("extras", extra, "ok", value, do, {"installed": not missing})
    for program, what in (("espeak-ng", "`paretomerge zoo build speech`"), ("chromium", "the report's browser tests")):
        path = shutil.which(program) or (shutil.which("chromium-browser") if program == "chromium" else None)
        value = path or f"not there; only for {what}"
        yield Finding("extras", program, "ok", value, "", {"installed": path is not None})
    for group in ("evaluators", "methods", "optimizers"):
        found = sorted({each.name for each in metadata.entry_points(group=f"paretomerge.{group}")})
        if found:
            yield Finding("extras", f"plug-ins: {group}", "note", f"{', '.join(found)}: code of other packages")


def terminal() -> Iterator[Finding]:
    """What this terminal can show, and settings that change how things run."""
    encoding = (sys.stdout.encoding or "ascii").lower()
    good = encoding.replace("-", "") == "utf8"
    do = "" if good else "set PYTHONUTF8=1 or a UTF-8 locale, such as LANG=C.UTF-8, to see it as it is meant"
    yield Finding("terminal", "encoding", "ok" if good else "note", encoding, do)
    columns = shutil.get_terminal_size().columns
    kind = os.environ.get("TERM", "none")
    plain = ", without colours (NO_COLOR)" if os.environ.get("NO_COLOR") else ""
    yield Finding("terminal", "terminal", "ok", f"{kind}, {columns} columns{plain}")
    given = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PARETOMERGE_CACHE", "HF_HOME", "PYTHONPATH")
    for name in given:
        if name in os.environ:
            yield Finding("terminal", name, "ok", os.environ[name] or "empty")


def size(count: float) -> str:
    """``12.3 GB``."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _first_line(program: str, *arguments: str) -> str:
    import subprocess

    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "which does not answer"
    return next(iter(done.stdout.splitlines()), "")
