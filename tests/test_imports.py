"""Which package may import which, read from the source; and what must stay light, by running it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("search", "merging", "evaluators", "zoo")

# What each package may never import, at its top or inside a function. zoo may score its models with evaluators.
FORBIDDEN = {
    "merging": {"search", "evaluators", "zoo"},
    "evaluators": {"search", "merging", "zoo"},
    "zoo": {"search"},
}
# Ask and tell: no model, no file, no database, no process.
NOT_IN_OPTIMIZERS = {"torch", "transformers", "sqlite3", "merging", "evaluators", "zoo", "subprocess", "pickle"}
NOT_FOR_HELP = {"torch", "transformers", "safetensors", "tokenizers", "cma", "moocore", "plotly"}
# A registry names what it imports lazily: "package.module:Attribute".
LAZY_REFERENCE = re.compile(r"^[a-z_]\w*(\.\w+)*:[A-Za-z_]\w*$")


@dataclass(frozen=True)
class Import:
    """One imported module, or one name of a module (``name`` is "" for a plain import)."""

    file: str
    line: int
    module: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}{':' + self.name if self.name else ''}"

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Every import of a module, inside functions too, with the lazy ones: import_module("x"), and "x.y:Name"."""
    path = Path(file).with_suffix("").parts
    home = path[:-1]
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(home[: len(home) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield from (Import(file, node.lineno, module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield Import(file, node.lineno, node.args[0].value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and LAZY_REFERENCE.match(node.value):
            module, _, name = node.value.partition(":")
            if module.partition(".")[0] in PACKAGES:
                yield Import(file, node.lineno, module, name)


def imports_under(folder: str) -> list[Import]:
    found: list[Import] = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        found += imports_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    return found


def source_of(dotted: str) -> Path | None:
    """The file of one of our modules."""
    path = ROOT.joinpath(*dotted.split("."))
    files = [path.with_suffix(".py"), path / "__init__.py"]
    return next((file for file in files if file.is_file()), None)


def public_names(source: Path) -> set[str] | None:
    """The literal __all__ of a module; None where it has none."""
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return set(ast.literal_eval(node.value))
    return None


def private(imported: Import) -> str:
    """Why an import from another package reaches behind its public names; "" when it does not."""
    parts = [*imported.module.split("."), imported.name]
    if any(part.startswith("_") for part in parts if part):
        return f"{imported}, which is private"
    if imported.module.startswith("merging.methods.") or is_plug_in(imported):
        return f"{imported}, an implementation that only its registry should name"
    source = source_of(imported.module)
    if source is None:
        return f"{imported}, which does not exist"
    names = public_names(source)
    submodule = source_of(f"{imported.module}.{imported.name}") if imported.name else None
    if imported.name and names is not None and submodule is None and imported.name not in names:
        return f"{imported}, which is not in that module's __all__"
    return ""


def is_plug_in(imported: Import) -> bool:
    """Whether this module holds one evaluator (exact_match, say), rather than the package's machinery."""
    reference = re.compile(rf"""["']{re.escape(imported.module)}:\w+["']""")
    registry = ROOT / "evaluators" / "registry.py"
    return registry.is_file() and reference.search(registry.read_text(encoding="utf-8")) is not None


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running ``code`` from the repository root."""
    ending = "\nimport json as _json, sys as _sys; print('\\n@' + _json.dumps(sorted(_sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.rpartition("\n@")[2])}


def test_the_reader_of_imports_sees_every_way_to_import() -> None:
    source = """
import torch.nn as nn
from merging.recipe import Recipe
def later():
    from . import knots
    from ..space import Space
    importlib.import_module("evaluators.registry")
TABLE = {"x": "search.store:Store", "file": "search.jsonl", "note": "see: this"}
"""
    seen = {(found.module, found.name) for found in imports_of(source, "search/optimizers/cma.py")}
    assert seen == {
        ("torch.nn", ""),
        ("merging.recipe", "Recipe"),
        ("search.optimizers", "knots"),
        ("search.space", "Space"),
        ("evaluators.registry", ""),
        ("search.store", "Store"),
    }


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_import_in_one_direction(package: str) -> None:
    assert [str(found) for found in imports_under(package) if found.package in FORBIDDEN[package]] == []


def test_search_uses_merging_and_evaluators_by_their_public_names() -> None:
    foreign = [found for found in imports_under("search") if found.package in {"merging", "evaluators"}]
    assert [reason for found in foreign if (reason := private(found))] == []


def test_the_check_of_public_names_can_fail() -> None:
    assert "private" in private(Import("search/loop.py", 1, "merging.recipe", "_digest"))
    assert "registry" in private(Import("search/loop.py", 1, "merging.methods.slerp", "SLERP"))
    assert "does not exist" in private(Import("search/loop.py", 1, "merging.recipes", "Recipe"))
    assert private(Import("search/loop.py", 1, "merging.recipe", "Recipe")) == ""


def test_optimizers_do_no_io_and_know_no_models() -> None:
    assert [str(found) for found in imports_under("search/optimizers") if found.package in NOT_IN_OPTIMIZERS] == []


def test_optimizers_load_no_torch_through_anything_they_import() -> None:
    folder = ROOT / "search" / "optimizers"
    # The conformance class is for tests: it may use pytest and hypothesis. Optuna brings SQLAlchemy, which
    # brings sqlite3: its glue is imported where a sampler is built.
    left_out = {"__init__", "conformance", "optuna_table"}
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem not in left_out)
    modules = modules_after("\n".join(f"import search.optimizers.{name}" for name in names))
    assert modules & {"torch", "transformers", "sqlite3"} == set()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["zoo", "--help"]], ids=" ".join)
def test_help_is_light(arguments: list[str]) -> None:
    modules = modules_after(
        f"import sys\nsys.argv = ['paretomerge', *{arguments!r}]\nfrom search.cli import main\n"
        "try:\n    code = main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "assert not code, f'help exits with {code}'"
    )
    assert "search" in modules
    assert modules & NOT_FOR_HELP == set()
