"""Does a larger model merge better? Three widths of one family with matched experts, over training seeds.

    for seed in 0 1 2; do for width in 64 112 192; do paretomerge zoo build skills-w$width --seed $seed; done; done
    python experiments/size_effect.py --folder runs/size_effect
    python experiments/size_effect.py --tables --page docs/size_effect.md --images docs/images

Merges of string + language, string + refusal, and all three: the average; one λ of 11; TIES and DARE-TIES as published
and with λ of 7; a coefficient for each expert, from a grid of 25 or 64. Everything is chosen on 128 search items of
each skill, by the mean of the retentions (one arm: by the smallest), and reported on 512 holdout items of each.
Retention is (merge − base) / (own expert − base) on the expert's own skill.

Written down before anything was merged: the question is answered by one number, mean retention at the best single λ,
mean of the three merges, and one test of it (experiments/sizing/trend.py). All other trends are descriptions, and their
p-values are not corrected for being many.

Sizes and seeds that are not built are left out. Everything is kept in --folder as soon as it is there: the same command
goes on where it was. About 4 CPU-minutes a seed on one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from experiments.diagnosing.gaps import Records  # noqa: E402
from experiments.sizing.plan import LARGER, SIZES  # noqa: E402

if TYPE_CHECKING:
    from experiments.diagnosing.bench import Bench


def main() -> int:
    arguments = _arguments()
    records = Records(arguments.folder)
    if not arguments.tables:
        for seed in arguments.seeds:
            for name in arguments.families:
                _cell(records, name, seed)
    _print(records, arguments)
    return 0


def _cell(records: Records, name: str, seed: int) -> None:
    """One size and training seed: what is not known yet; nothing where it is not built."""
    from experiments.sizing import measure
    from zoo import cache as built
    from zoo.builder import missing
    from zoo.references import build_command
    from zoo.registry import family

    spec = family(name)
    if missing(built.seed_folder(spec, seed), spec):
        print(f"{name} {seed}  is left out: it is not built. Run: {build_command(spec, seed)}", flush=True)
        return

    @cache
    def bench() -> Bench:
        return measure.opened(name, seed)

    measure.measure(records, name, seed, bench, lambda line: print(line, flush=True))


def _print(records: Records, arguments: argparse.Namespace) -> None:
    from experiments.sizing import page, picture
    from experiments.sizing.cells import read

    cells = read(records, arguments.families, arguments.seeds)
    if not cells:
        print(f"\n{arguments.folder} has no size and seed that is measured whole.")
        return
    found = page.blocks(cells)
    print(f"\n{page.printed(found)}")
    if arguments.page is not None:
        text = page.filled(arguments.page.read_text(encoding="utf-8"), found)
        arguments.page.write_text(text, encoding="utf-8")
        print(f"\nwrote {arguments.page}")
    if arguments.images is not None:
        for path in picture.write(cells, arguments.images):
            print(f"\nwrote {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "size_effect")
    parser.add_argument("--families", nargs="+", default=list(SIZES), choices=[*SIZES, *LARGER], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of training")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--page", type=Path, help="a page whose tables are brought up to date")
    parser.add_argument("--images", type=Path, help="a folder to write the picture to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
