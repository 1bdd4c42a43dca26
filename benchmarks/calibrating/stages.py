"""One stage of the calibration benchmark: ``python stages.py JOB.json RESULT.json``.

A process of its own for every stage, so that peak memory is the stage's. What one stage collects is on disk, and the
next finds it there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch  # noqa: E402

from benchmarks.materializing.machine import memory  # noqa: E402
from merging.calibration import CollectedCalibration, Samples  # noqa: E402
from merging.materialize import Materializer, load_model  # noqa: E402
from merging.methods.contract import CALIBRATION  # noqa: E402
from merging.methods.registry import get  # noqa: E402
from merging.recipe import Assignment, Group, Recipe  # noqa: E402
from merging.sources import Sources  # noqa: E402

PLAIN = "task_arithmetic"
DTYPE = "float32"
"""Of the live model: a processor without bfloat16 arithmetic runs it two to three times as fast as bfloat16."""


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        what: ``collect``, ``product`` or ``virtual``.
        base: folder of the base.
        experts: alias -> folder.
        cache: where statistics and virtual experts are kept.
        method: that is measured.
        blocks: of the model that it merges; the rest stays the base. None: the whole model.
        inputs: of each expert.
        length: tokens of an input.
        vocabulary: tokens are drawn from.
        rounds: candidates that are timed.
        compile: mode of the materialiser for the candidates.
        device: of the live model.
        threads: of the processor.
    """

    what: str
    base: str
    experts: dict[str, str]
    cache: str
    method: str
    blocks: int | None
    inputs: int
    length: int
    vocabulary: int
    rounds: int = 3
    compile: str = "always"
    device: str = "cpu"
    threads: int = 1


class Stage:
    """The models of a job, loaded."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.method = get(job.method)
        experts: dict[str, Path | str] = {alias: Path(path) for alias, path in job.experts.items()}
        self.sources = Sources.load(Path(job.base), experts)
        self.model = load_model(Path(job.base), dtype=DTYPE, device=job.device)
        self.calibration = CollectedCalibration(self._samples(), Path(job.cache) / "calibration")
        self.materializer = self._materializer("never")
        self.loaded = memory()

    def collect(self) -> dict[str, Any]:
        """Run the models for the statistics of the job's method, which are of the whole model."""
        before = _bytes(Path(self.job.cache))
        spent = self._timed(lambda: self.calibration.collect(self.materializer, [self.assignment()]))
        return {**spent, "disk": _bytes(Path(self.job.cache)) - before, "tokens": self.job.inputs * self.job.length}

    def product(self) -> dict[str, Any]:
        """What the method computes once, and a candidate then, against one of task arithmetic."""
        if self.method.needs.calibration:
            self.calibration.collect(self.materializer, [self.assignment()])
        # Another scale than 1, so that the base is read as well, where that is no other product.
        changed = {} if "scale" in self.method.fixed else {"scale": 0.9}
        own = self._recipe(dict.fromkeys(self.merged(), self.assignment(**changed)))
        self.materializer.apply(self._plain(0.3))
        first = self._timed(lambda: self.materializer.apply(own))
        self.materializer.apply(self._plain(0.4))
        again = self._timed(lambda: self.materializer.apply(own))
        self._remake(self.job.compile)
        return {
            "product": first["busy"] - again["busy"],
            "wall": first["wall"] - again["wall"],
            **self._candidates({"own": [own] * len(self._many()), "plain": self._many()}),
            **{name: again[name] for name in ("loaded", "peak")},
        }

    def virtual(self) -> dict[str, Any]:
        """The method's merge as a virtual expert: making it, and candidates of the experts and it."""
        from merging.virtual import make

        if self.method.needs.calibration:
            self.calibration.collect(self.materializer, [self.assignment()])
        recipe = self._recipe(dict.fromkeys(self.merged(), self.assignment()))
        made: list[Any] = []
        cache = Path(self.job.cache)
        spent = self._timed(
            lambda: made.append(make(recipe, self.sources, calibration=lambda: self.calibration, cache=cache))
        )
        self._remake(self.job.compile)
        alone = self._candidates({"plain": self._many()})
        self._remake(self.job.compile, self.sources.joined({"virtual": made[0].folder}))
        return {**spent, **alone, **self._candidates({"own": self._many([*self.job.experts, "virtual"])})}

    def merged(self) -> list[Group]:
        """The groups of the job's blocks; every group of the model where all are merged."""
        blocks = self.job.blocks
        groups = self.sources.layout.groups
        return [each for each in groups if blocks is None or (each.depth is not None and each.depth < blocks)]

    def assignment(self, **shared: Any) -> Assignment:
        """The method at its defaults but for what is given."""
        if self.method.needs.calibration:
            shared[CALIBRATION.name] = self.calibration.fingerprint
        one_each = {each.name for each in self.method.parameters if each.per_source and each.default is None}
        own: dict[str, Any] = dict.fromkeys(one_each, 1.0)
        return Assignment.of(self.job.method, dict.fromkeys(self.job.experts, own), **shared)

    def _plain(self, coefficient: float, aliases: Iterable[str] | None = None) -> Recipe:
        own = {alias: {"coefficient": coefficient} for alias in aliases or self.job.experts}
        return self._recipe(dict.fromkeys(self.merged(), Assignment.of(PLAIN, own)))

    def _many(self, aliases: Iterable[str] | None = None) -> list[Recipe]:
        """Candidates of task arithmetic, no two alike; the first, which may have to build kernels, is not counted."""
        return [self._plain(0.2 + 0.01 * number, aliases) for number in range(self.job.rounds + 1)]

    def _recipe(self, groups: dict[Group, Assignment]) -> Recipe:
        base = dict.fromkeys(self.sources.layout.groups, Assignment.of(PLAIN, {}))
        return Recipe("base", self.sources.refs, {**base, **groups}, dtype=DTYPE)

    def _candidates(self, kinds: dict[str, list[Recipe]]) -> dict[str, float]:
        """Kind -> least CPU seconds of a candidate that rewrites everything: kinds take turns."""
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(len(next(iter(kinds.values())))):
            for kind, recipes in kinds.items():
                spent = self._timed(lambda: self.materializer.apply(recipes[number]))  # noqa: B023
                times[kind].append(spent["busy"])
        return {kind: min(found[1:]) for kind, found in times.items()}

    def _remake(self, mode: Any, sources: Sources | None = None) -> None:
        """A new materialiser of the same live model, perhaps over other sources."""
        self.materializer.apply(self._recipe({}))
        self.sources = sources or self.sources
        self.materializer = self._materializer(mode)

    def _materializer(self, mode: Any) -> Materializer:
        return Materializer(self.sources, self.model, compile=mode, calibration=self.calibration)

    def _samples(self) -> dict[str, Samples]:
        """Content -> random tokens: costs do not depend on what they say."""
        job, found = self.job, {}
        for number, alias in enumerate(job.experts):
            generator = torch.Generator().manual_seed(number)
            drawn = torch.randint(job.vocabulary, (job.inputs, 1, job.length), generator=generator)
            found[self.sources.refs[alias].content] = Samples.of([{"input_ids": tokens} for tokens in drawn])
        return found

    def _timed(self, work: Any) -> dict[str, float]:
        busy, wall = time.process_time(), time.perf_counter()
        work()
        return {
            "busy": time.process_time() - busy,
            "wall": time.perf_counter() - wall,
            "loaded": self.loaded["VmRSS"],
            "peak": memory()["VmHWM"],
        }


def _bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) if folder.is_dir() else 0


def main() -> None:
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    torch.set_num_threads(job.threads)
    stage = Stage(job)
    Path(sys.argv[2]).write_text(json.dumps(getattr(stage, job.what)()), encoding="utf-8")


if __name__ == "__main__":
    main()
