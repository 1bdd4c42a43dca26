"""Several workers: what must not depend on who finishes first, and what must not be lost whoever does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from fake_searches import EVALUATORS, TARGETS, FakeWorker, Killed, config, content, start

from merging.recipe import Recipe
from search import pareto
from search.budget import Progress
from search.errors import Interrupted, SearchError
from search.events import Asked, BudgetSpent, EvaluationStarted, Incident, RungReached, Settled, Told
from search.optimizers.contract import Outcome
from search.patience import SHORTEST, Patience
from search.racing import Racer
from search.schema import Budget, Config, PlateauConfig
from search.standing import Schedule
from search.store import Store
from search.workers.contract import Done, Note, Task
from search.workers.evaluation import CandidateFailed, Evaluation

RACING = {"rungs": [60, 110], "alpha": 0.3}
HALVING = {"rungs": [10, 20], "rule": "halving"}


class DisorderlyPool:
    """So many workers, and chance decides who is done next: some are overtaken by many, as in real life."""

    gpus = 0.5

    def __init__(self, slots: int, seed: int, worker: FakeWorker, notes: bool = False) -> None:
        self.slots = slots
        self.tasks: list[Task] = []
        self.most = 0
        self._chance = random.Random(seed)
        self._worker = worker
        self._notes = notes

    def submit(self, task: Task) -> None:
        assert all(each.candidate != task.candidate for each in self.tasks), "one task of a candidate at a time"
        self.tasks.append(task)
        self.most = max(self.most, len(self.tasks))
        assert len(self.tasks) <= self.slots

    def wait(self, timeout: float | None = None) -> list[Done]:
        assert self.tasks, "nobody is working, so nothing will ever come"
        count = self._chance.randint(1, len(self.tasks))
        arrived = self._chance.sample(self.tasks, count)
        return [self._done(task) for task in arrived]

    def close(self) -> None:
        self.tasks.clear()

    def _done(self, task: Task) -> Done:
        self.tasks.remove(task)
        try:
            result: Evaluation | CandidateFailed = self._worker.evaluate(task.recipe, task.split, task.items)
        except CandidateFailed as failure:
            result = failure
        return Done(task, result, (Note("worker lost", "it died"),) if self._notes else ())


def fails(recipe: Recipe) -> bool:
    return int(recipe.hash[:2], 16) < 25


def searched(
    folder: Path, settings: Config, seed: int, slots: int, schedule: Schedule, kills: random.Random | None = None
) -> tuple[list[Any], int]:
    """What a search left behind, and how many kills it went through."""
    folder.mkdir()
    killed = 0
    while True:
        pool = DisorderlyPool(slots, seed + killed, FakeWorker(fails))
        at = None if kills is None else kills.randint(2, 30)
        try:
            start(
                folder, settings, FakeWorker(), at, after=bool(kills and kills.random() < 0.5), pool=pool,
                schedule=schedule,
            )  # fmt: skip
        except Killed:
            killed += 1
        else:
            return content(folder), killed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "fidelity"),
    [
        ("sms_emoa", RACING),
        pytest.param("sms_emoa", HALVING, marks=pytest.mark.slow),
        pytest.param("auto", RACING, marks=pytest.mark.slow),
        pytest.param("cma", "off", marks=pytest.mark.slow),
        pytest.param("nsga2", "off", marks=pytest.mark.slow),
        pytest.param("tpe", "off", marks=pytest.mark.slow),
    ],
)
def test_strict_is_the_same_whoever_finishes_first(optimizer: str, fidelity: Any, tmp_path: Path) -> None:
    settings = config(optimizer, 50, fidelity, methods=["task_arithmetic", "slerp"], method_blocks=2)
    schedule = Schedule("strict", 4)
    found = [sorted_content(searched(tmp_path / str(seed), settings, seed, 4, schedule)[0]) for seed in range(3)]
    assert found[0] == found[1] == found[2]
    # fewer workers than the window, as after a node was lost: slower, and the same
    assert sorted_content(searched(tmp_path / "fewer", settings, 9, 2, schedule)[0]) == found[0]
    fire, kills = searched(tmp_path / "fire", settings, 5, 4, schedule, random.Random(1))
    assert kills > 3
    assert sorted_content(fire) == found[0]


def sorted_content(found: list[Any]) -> list[Any]:
    """Told and asked in the order of the log, which must agree; rungs arrive in any order."""
    told, asked, items, rungs = found
    return [told, asked, items, sorted(rungs, key=lambda each: (each[0], each[1]))]


@pytest.mark.slow
def test_a_strict_window_of_one_is_one_worker(tmp_path: Path) -> None:
    settings = config("sms_emoa", 40, RACING)
    (tmp_path / "inline").mkdir()
    start(tmp_path / "inline", settings, FakeWorker(fails))
    assert searched(tmp_path / "pool", settings, 3, 8, Schedule("strict", 1))[0] == content(tmp_path / "inline")


def test_strict_tells_exactly_what_is_due_before_it_asks(tmp_path: Path) -> None:
    searched(tmp_path / "run", config("random", 40), 1, 5, Schedule("strict", 5))
    store = Store.open(tmp_path / "run", read_only=True)
    told: list[int] = []
    for event in store.events(Asked, Told):
        if isinstance(event, Asked):
            assert told == list(range(max(0, event.candidate - 4)))
        elif isinstance(event, Told):
            told.append(event.candidate)
    assert told == list(range(40))
    assert list(store.events(Settled)), "nobody ever finished before its turn, so this test shows nothing"
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", [pytest.param("off", marks=pytest.mark.slow), RACING])
def test_steady_never_waits_and_loses_nothing(fidelity: Any, tmp_path: Path) -> None:
    settings = config("sms_emoa", 60, fidelity)
    found, kills = searched(tmp_path / "run", settings, 2, 6, Schedule("steady"), random.Random(3))
    assert kills > 3  # and every one of these starts replayed the log without a difference: `start` asserts it
    told = [each[0] for each in found[0]]
    assert sorted(told) == list(range(60))
    assert told != list(range(60))
    store = Store.open(tmp_path / "run", read_only=True)
    candidates = store.candidates()
    points = [each for each in candidates if each.state == "complete"]
    scores = store.scores("search")
    front = pareto.nondominated([[scores[each.id][f"{name}.accuracy"][0] for name in "ab"] for each in points])
    hashes = [each.recipe_hash for each, on in zip(points, front, strict=True) if on]
    assert len(hashes) == len(set(hashes)), "a recipe is twice on the front"
    begun = [each for each in store.events(EvaluationStarted) if isinstance(each, EvaluationStarted)]
    assert len(begun) <= kills * 6
    store.close()


def test_every_worker_is_kept_busy_and_a_recipe_under_way_is_not_scored_twice(tmp_path: Path) -> None:
    # nearly everything is one recipe, so that candidates wait for each other
    settings = config("random", 60, coefficient=[0.5, 0.5000000000001])
    for kind in ("strict", "steady"):
        worker = FakeWorker()
        pool = DisorderlyPool(5, 4, worker)
        folder = tmp_path / kind
        folder.mkdir()
        start(folder, settings, worker, pool=pool, schedule=Schedule(kind, 5))  # type: ignore[arg-type]
        assert pool.most == 5
        assert len(worker.evaluated) == len(set(worker.evaluated))
        store = Store.open(folder, read_only=True)
        first = {each.recipe_hash: each.id for each in reversed(store.candidates())}
        repeats = [each for each in store.candidates() if each.state == "duplicate"]
        assert len(repeats) > 20
        assert all(each.duplicate_of == first[each.recipe_hash] for each in repeats)
        store.close()


def test_a_tidy_stop_waits_for_what_is_under_way(tmp_path: Path) -> None:
    settings = config("random", 40)
    calls = iter([False] * 6)
    pool = DisorderlyPool(4, 0, FakeWorker())
    with pytest.raises(Interrupted):
        start(
            tmp_path, settings, FakeWorker(), should_stop=lambda: next(calls, True), pool=pool,
            schedule=Schedule("steady"),
        )  # fmt: skip
    assert not pool.tasks
    store = Store.open(tmp_path, read_only=True)
    assert all(each.state != "running" for each in store.candidates())
    assert list(store.events())[-1].kind == "interrupted"
    store.close()


def test_trouble_is_logged_and_costs_nothing(tmp_path: Path) -> None:
    start(
        tmp_path, config("random", 15), FakeWorker(), pool=DisorderlyPool(2, 0, FakeWorker(), notes=True),
        schedule=Schedule("strict", 2),
    )  # fmt: skip
    store = Store.open(tmp_path, read_only=True)
    incidents = [each for each in store.events(Incident) if isinstance(each, Incident)]
    assert {each.candidate for each in incidents} == {
        each.id for each in store.candidates() if each.state == "complete"
    }
    assert {each.what for each in incidents} == {"worker lost"}
    store.close()


def test_a_candidate_that_always_ends_the_process_has_failed_in_the_end(tmp_path: Path) -> None:
    """The out-of-memory killer, a crash in compiled code: nothing says so but a start that has no end."""
    settings = config("random", 20)

    (tmp_path / "calm").mkdir()
    start(tmp_path / "calm", settings, FakeWorker())
    calm = Store.open(tmp_path / "calm", read_only=True)
    deadly = calm.candidates()[7].recipe_hash
    calm.close()

    class Deadly(FakeWorker):
        def evaluate(self, recipe: Recipe, *rest: Any) -> Evaluation:
            if recipe.hash == deadly:
                raise Killed
            return super().evaluate(recipe, *rest)

    (tmp_path / "run").mkdir()
    starts = 0
    while True:
        starts += 1
        try:
            start(tmp_path / "run", settings, Deadly(), patience=Patience(attempts=3))
        except Killed:
            continue
        break
    assert starts == 4
    store = Store.open(tmp_path / "run", read_only=True)
    states = {each.id: (each.state, each.reason) for each in store.candidates()}
    store.close()
    assert states[7] == ("failed", "its evaluation was begun 3 times, and every time the process ended before it")
    assert sorted(id for id, (state, _) in states.items() if state == "failed") == [7]
    assert len(states) == 20


def test_a_process_that_ended_by_itself_is_no_sign_against_what_it_evaluated(tmp_path: Path) -> None:
    """A full disk, Ctrl-C twice: only what a process never came back from counts."""
    settings = config("random", 12)
    ending = True

    class Ending(FakeWorker):
        def evaluate(self, recipe: Recipe, *rest: Any) -> Evaluation:
            if ending:
                raise Killed
            return super().evaluate(recipe, *rest)

    for _ in range(8):
        with pytest.raises(Killed):
            start(tmp_path, settings, Ending(), patience=Patience(attempts=3), let_go=True)
    for _ in range(2):  # and what a kill adds stays
        with pytest.raises(Killed):
            start(tmp_path, settings, Ending(), patience=Patience(attempts=3))
    ending = False
    start(tmp_path, settings, Ending(), patience=Patience(attempts=3), let_go=True)
    store = Store.open(tmp_path, read_only=True)
    assert {each.state for each in store.candidates()} == {"complete"}
    store.close()


def grow(settings: Config, **budget: Any) -> Config:
    search = settings.search.model_copy(update={"budget": Budget(**{"candidates": 500, **budget})})
    return settings.model_copy(update={"search": search})


def ends(folder: Path) -> list[BudgetSpent]:
    store = Store.open(folder, read_only=True)
    found = [each for each in store.events(BudgetSpent) if isinstance(each, BudgetSpent)]
    store.close()
    return found


def test_whichever_limit_comes_first_ends_it_and_a_grown_one_goes_on(tmp_path: Path) -> None:
    settings = config("random", 500)
    pool_seconds = 0.1  # what FakeWorker says that an evaluation takes; the pool keeps half a GPU busy
    for limit, budget, more in (
        ("candidates", {"candidates": 20}, {"candidates": 25}),
        ("items", {"items": 320 * 20}, {"items": 320 * 25}),
        ("gpu_hours", {"gpu_hours": 20 * 0.5 * pool_seconds / 3600}, {"gpu_hours": 25 * 0.5 * pool_seconds / 3600}),
    ):
        folder = tmp_path / limit
        folder.mkdir()
        for wanted, each in ((20, budget), (20, budget), (25, more)):
            pool = DisorderlyPool(1, 0, FakeWorker())
            start(folder, grow(settings, **each), FakeWorker(), pool=pool, schedule=Schedule("strict", 1))
            store = Store.open(folder, read_only=True)
            assert wanted <= len(store.candidates()) <= wanted + 1, limit
            store.close()
        assert [each.limit for each in ends(folder)] == [limit, limit], "said once each time, not at every start"


def test_hours_are_those_of_searching_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"wall": 1.7e9, "monotonic": 100.0}

    class Slow(FakeWorker):
        def evaluate(self, recipe: Recipe, *rest: Any) -> Evaluation:
            clock["monotonic"] += 600.0
            clock["wall"] -= 1e6  # somebody sets the clock back every time
            return super().evaluate(recipe, *rest)

    monkeypatch.setattr("time.monotonic", lambda: clock["monotonic"])
    monkeypatch.setattr("time.time", lambda: clock["wall"])
    settings = config("random", 500)
    start(tmp_path, grow(settings, hours=2.0), Slow())
    clock["monotonic"] += 1e6  # a night without searching costs nothing
    start(tmp_path, grow(settings, hours=2.0), Slow())
    start(tmp_path, grow(settings, hours=3.0), Slow())
    store = Store.open(tmp_path, read_only=True)
    assert len(store.candidates()) == 18
    store.close()
    assert [each.detail for each in ends(tmp_path)] == ["2 hours", "3 hours"]


def test_a_plateau_ends_the_last_stage_only(tmp_path: Path) -> None:
    settings = config("random", 500)
    plateau = {"candidates": 30, "gain": 0.01}
    start(tmp_path, grow(settings, candidates=400, plateau=plateau), FakeWorker())
    assert [each.limit for each in ends(tmp_path)] == ["plateau"]
    store = Store.open(tmp_path, read_only=True)
    told = [each for each in store.events(Told) if isinstance(each, Told)]
    store.close()
    last = max(each.stage for each in told)
    in_last = [each for each in told if each.stage == last]
    assert 30 < len(in_last) < 300

    def hypervolume(events: list[Told]) -> float:
        points = [each.outcome.utilities for each in events if each.outcome.state == "complete"]
        return pareto.hypervolume(points, (0.0, 0.0))

    assert hypervolume(told) <= 1.01 * hypervolume(told[:-30])
    assert hypervolume(told[:-1]) > 1.01 * hypervolume(told[:-31]) or len(in_last) == 31


def test_too_many_failures_stop_a_pool_too(tmp_path: Path) -> None:
    pool = DisorderlyPool(3, 0, FakeWorker(lambda recipe: True))
    with pytest.raises(SearchError, match=r"the last 20 candidates failed.*NaN"):
        start(tmp_path, config("random", 90), FakeWorker(), pool=pool, schedule=Schedule("steady"))


def test_patience() -> None:
    patience = Patience("auto", 3)
    assert patience.limit() is None
    patience.observe(4.0)
    assert patience.limit() == SHORTEST
    patience.observe(100.0)
    patience.observe(50.0)
    assert patience.limit() == 2000.0
    assert patience.limit(size=3.0) == 6000.0
    assert Patience(7.0).limit(size=9.0) == 7.0
    assert (patience.is_over(2), patience.is_over(3), Patience(None).is_over(99)) == (False, True, False)


def test_nobody_pays_for_a_hypervolume_that_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 points in eight objectives it takes a second, and it would be computed after every candidate."""
    asked = []
    real = pareto.hypervolume
    monkeypatch.setattr(pareto, "hypervolume", lambda *given: asked.append(given) or real(*given))
    progress = Progress([0.0, 0.0], 0)
    for id in range(20):
        progress.note(Told(id, 0, Outcome("complete", (0.1 + id / 40, 0.9 - id / 40))))
    assert progress.reached(Budget(candidates=50), 0.0) is None and not asked
    plateau = PlateauConfig(candidates=10, gain=0.99)
    spent = progress.reached(Budget(candidates=50, plateau=plateau), 0.0)
    assert spent is not None and spent.limit == "plateau" and len(asked) == 2
    assert progress.reached(Budget(candidates=50, plateau=plateau), 0.0) == spent and len(asked) == 2


def test_a_candidate_that_fails_on_its_last_rung_has_cost_each_rung_once(tmp_path: Path) -> None:
    class LastItemIsBroken(FakeWorker):
        def evaluate(self, recipe: Recipe, split: Any, items: Any = None) -> Evaluation:
            found = super().evaluate(recipe, split, items)
            for scores in found.scores.values():
                scores.values["accuracy"][[each == last for each in scores.ids]] = float("nan")
            return found

    settings = config("random", 40, RACING)
    rungs = Racer(EVALUATORS, TARGETS, settings.search.fidelity).rungs
    last = next(iter(rungs[-1].values()))[-1]
    start(tmp_path, settings, LastItemIsBroken())
    store = Store.open(tmp_path, read_only=True)
    told = [each for each in store.events(Told) if isinstance(each, Told)]
    reached: dict[int, int] = {}
    for each in store.events(RungReached):
        assert isinstance(each, RungReached)
        reached[each.candidate] = each.rung + 1
    store.close()
    failed = [each for each in told if each.outcome.state == "failed" and reached.get(each.candidate)]
    assert failed, "the broken item must be met on a last rung, or this shows nothing"
    for each in failed:
        assert each.busy == pytest.approx(0.1 * (reached[each.candidate] + 1))
