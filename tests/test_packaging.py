"""What the repository promises about its files: short, portable, named after what they hold, all of them packaged."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("search", "merging", "evaluators", "zoo")
LONGEST = 450  # lines; about 400 is the aim

# Joined from pieces, so that this file holds none of what it looks for.
MACHINE_PATH = re.compile(
    r"(?<![\w.}>~/-])/(?:" + "|".join(["work", "root", "farm", "tmp", r"home/\w+", r"Users/\w+"]) + r")\b"
)
REGISTRY = re.compile(
    "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "download" + r"\.pytorch", "file:" + "///"])
)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Path -> text of every file that is tracked, or would be by `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: there is no list of the project's own files")
    found = {}
    for name in filter(None, listed.split("\0")):
        try:
            found[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # binary; or deleted and not committed yet
    return found


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def lines_with(pattern: re.Pattern[str], texts: dict[str, str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_files_are_short(texts: dict[str, str]) -> None:
    lengths = {name: text.count("\n") for name, text in texts.items() if name.endswith(".py")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_file_is_named_utils(texts: dict[str, str]) -> None:
    parts = {name: {Path(part).stem.lower() for part in Path(name).parts} for name in texts}
    assert [name for name, stems in parts.items() if stems & {"util", "utils", "helpers", "misc"}] == []


def test_names_of_test_files_are_unique(texts: dict[str, str]) -> None:
    names = [Path(name).name for name in texts if Path(name).name.startswith("test_") and name.endswith(".py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_no_path_of_a_machine(texts: dict[str, str]) -> None:
    assert lines_with(MACHINE_PATH, texts) == []


def test_no_address_of_a_package_registry(texts: dict[str, str]) -> None:
    assert lines_with(REGISTRY, texts) == []


def test_the_patterns_find_what_they_look_for() -> None:
    bad = ["cd /" + "work/main", "open('/" + "tmp/x')", "/" + "home/ann/models", "=/" + "root"]
    fine = ["https://github.com/a/work/tmp", "runs/work", "~/work", "a/home/b", "$HOME/work", "docs/../tmp", "and/or"]
    assert [text for text in bad if not MACHINE_PATH.search(text)] == []
    assert [text for text in fine if MACHINE_PATH.search(text)] == []
    assert REGISTRY.search("--index-url https://" + "py" + "pi.org/simple")


def test_every_file_of_the_packages_goes_into_the_wheel(texts: dict[str, str], project: dict) -> None:
    globs = project["tool"]["setuptools"]["package-data"]
    left_out = []
    for name in texts:
        package, _, _ = name.partition("/")
        if package not in PACKAGES or name.endswith(".py"):
            continue
        # setuptools reads a pattern relative to the innermost folder that is a package (has an __init__.py).
        home = next(folder for folder in Path(name).parents if (ROOT / folder / "__init__.py").is_file())
        patterns = globs.get("*", []) + globs.get(".".join(home.parts), [])
        if not any(fnmatch.fnmatch(Path(name).relative_to(home).as_posix(), pattern) for pattern in patterns):
            left_out.append(name)
    assert left_out == []


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()) == []


def test_only_the_packages_are_importable_from_the_root() -> None:
    """The root is on sys.path in an editable install, so any other package there would shadow someone's."""
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(PACKAGES)


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "constraints.txt holds exact pins only: name==version"
    return {canonicalize_name(name): version for name, version in pins}


def test_every_requirement_has_a_tested_version_within_its_range(project: dict) -> None:
    extras = project["project"]["optional-dependencies"]
    own, development = extras["dev"][0], extras["dev"][1:]
    declared = project["project"]["dependencies"] + development
    declared += [text for name in Requirement(own).extras for text in extras[name]]
    pins = constraints()
    for text in declared:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt has no version of {name}; see the head of that file"
        assert requirement.specifier.contains(pins[name]), f"{text} rules out the tested {pins[name]}"


def test_the_constraints_hold_no_local_build() -> None:
    assert {name: version for name, version in constraints().items() if "+" in version} == {}


def test_the_console_script_is_the_only_one_and_resolves() -> None:
    scripts = [entry for entry in metadata.distribution("paretomerge").entry_points if entry.group == "console_scripts"]
    assert [(entry.name, entry.value) for entry in scripts] == [("paretomerge", "search.cli:main")]
    assert callable(scripts[0].load())
