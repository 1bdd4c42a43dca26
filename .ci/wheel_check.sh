#!/usr/bin/env bash
# What a user gets: build the sdist and from it the wheel, install the wheel alone into a clean environment, and run a
# short search there, from a directory that has nothing of this repository. Needs `make install` for the build tool.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=(search merging evaluators zoo)

say() { printf -- '-- %s\n' "$*"; }

# A copy is built, never the checkout: a stale build/ or egg-info there would bring files back that are long deleted.
say "build the sdist, and the wheel from it"
mkdir "$work/source"
cp -R "${packages[@]/#/$repo/}" "$repo/pyproject.toml" "$repo/README.md" "$repo/LICENSE" "$work/source"
find "$work/source" -name __pycache__ -type d -prune -exec rm -rf {} +
"$repo/.venv/bin/python" -m build --outdir "$work/dist" "$work/source" >"$work/build.log" 2>&1 || {
    tail -n 40 "$work/build.log"
    exit 1
}
wheel=$(echo "$work"/dist/*.whl)

say "every file of the packages is in it: $(basename "$wheel")"
"$repo/.venv/bin/python" -P - "$wheel" "$work/source" "${packages[@]}" <<'PYTHON'
import pathlib, sys, zipfile

wheel, source, *packages = sys.argv[1:]
inside = set(zipfile.ZipFile(wheel).namelist())
root = pathlib.Path(source)
files = {path.relative_to(root).as_posix() for name in packages for path in (root / name).rglob("*") if path.is_file()}
missing = sorted(files - inside)
foreign = sorted(name for name in inside - files if ".dist-info/" not in name)
if missing or foreign:
    sys.exit(f"The wheel lacks {missing} and holds {foreign} besides; see [tool.setuptools] in pyproject.toml.")
print(f"{len(files)} files")
PYTHON

say "install it into a clean environment"
"$repo/.venv/bin/python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -qq --disable-pip-version-check -c "$repo/constraints.txt" "$wheel"
"$work/venv/bin/python" -m pip check --disable-pip-version-check

# The packages' names are common ones, so the directory that the search is run from holds a decoy by one of them.
mkdir -p "$work/elsewhere/search"
echo 'raise ImportError("the search package of the working directory was imported instead of the installed one")' \
    >"$work/elsewhere/search/__init__.py"
cd "$work/elsewhere"
export PARETOMERGE_CACHE="$work/cache" HF_HUB_OFFLINE=1
unset PYTHONPATH
command=$work/venv/bin/paretomerge

say "the packages come from that environment"
"$work/venv/bin/python" -P - "${packages[@]}" <<'PYTHON'
import importlib, pathlib, sys

prefix = pathlib.Path(sys.prefix).resolve()
for name in sys.argv[1:]:
    file = pathlib.Path(importlib.import_module(name).__file__).resolve()
    if prefix not in file.parents:
        sys.exit(f"{name} was imported from {file}, which is outside of {prefix}")
    print(f"{name}: {file.relative_to(prefix)}")
PYTHON

say "a short search with it"
"$command" zoo build skills-nano
"$command" run "$repo/configs/nano.yaml" --runs "$work/runs" --set search.budget.candidates=12
run=$(echo "$work"/runs/*/)
"$command" status "$run" --json >"$work/status.json"
"$work/venv/bin/python" -P - "$work/status.json" <<'PYTHON'
import json, sys

status = json.load(open(sys.argv[1], encoding="utf-8"))
counts = {name: count for name, count in status["candidates"].items() if isinstance(count, int)}
print(f"budget {status['budget']}, candidates {counts}, front of {len(status['front'])}, chosen {status['chosen']}")
if status["budget"] != 12 or counts["done"] < 12 or counts["failed"] or counts["running"]:
    sys.exit("expected the 12 candidates of the budget, all of them done")
if not status["front"] or status["chosen"] is None:
    sys.exit("expected a front, and a candidate chosen from it")
PYTHON
