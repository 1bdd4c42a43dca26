import json
import logging
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search import pareto
from search.optimizers import registry
from search.optimizers.contract import Asked, Box, Genome, OptimizerError, Outcome, Settings, Told, Trial, replay
from search.optimizers.gp import Gp, lower_fence
from search.optimizers.nsga import Nsga2, divisions
from search.optimizers.optuna_study import Memory, demoted

MODELS = ("gp", "tpe", "nsga2", "nsga3")


def settings(box, objectives=1, **more):
    more = {"seed": 0, "budget": 100, "reference": (-2.0,) * objectives, **more}
    return Settings(box=box, objectives=objectives, **more)


def build(name, box, objectives=1, options=None, **more):
    return registry.build(name, settings(box, objectives, options=options or {}, **more))


def genome(values, categories=()):
    return Genome(tuple(float(value) for value in values), tuple(categories))


def bowl(point, center=0.4):
    return -float(np.mean((np.asarray(point.values) - center) ** 2))


def tell_some(optimizer, box, count, evaluate, seed=0):
    """Random points and what they scored; returns the log."""
    random = np.random.default_rng(seed)
    log = []
    for id in range(count):
        point = genome(
            random.random(box.continuous), random.integers(0, np.asarray(box.categories, dtype=int)).tolist()
        )
        log.append(Told(Trial(id, point), Outcome("complete", evaluate(point))))
        optimizer.tell(*log[-1])
    return log


# outcomes


vectors = st.lists(st.floats(-10, 10), min_size=2, max_size=2).map(np.asarray)


@given(vectors, st.lists(vectors, min_size=1, max_size=6).map(np.asarray))
def test_a_censored_candidate_is_dominated_and_no_better_than_it_looked(partial, front):
    lowered = demoted(partial, front)
    assert (lowered <= partial).all()
    assert (lowered < front).all(axis=1).any()
    if (partial < front - 0.05).all(axis=1).any():
        assert (lowered == partial).all()


def test_a_censored_candidate_is_lowered_as_little_as_possible():
    front = np.asarray([[1.0, 0.0], [0.0, 1.0]])
    assert demoted(np.asarray([0.1, 1.3]), front) == pytest.approx([0.0, 1.0], abs=2e-3)
    assert demoted(np.asarray([1.3, -0.2]), front) == pytest.approx([1.0, -0.2], abs=2e-3)


def test_what_a_model_is_told():
    memory = Memory(settings(Box(1), 2), imputes_failures=True)

    def told(id, outcome):
        return memory.add(Trial(id, genome([id / 100])), outcome)

    assert told(0, Outcome("failed")) is None, "nothing is known yet that it could be as bad as"
    assert told(1, Outcome("censored", (0.5, 0.5))) is None
    assert told(2, Outcome("complete", (0.2, 0.8))).utilities.tolist() == [0.2, 0.8]
    assert told(3, Outcome("complete", (0.9, 0.1), violations=(0.7, -1.0))).violations == (0.7, -1.0)
    failure = told(4, Outcome("failed"))
    assert failure.utilities.tolist() == [0.2, 0.1]
    assert failure.violations == (1.0, 1.0)
    assert told(5, Outcome("complete", (math.nan, 1.0))).utilities.tolist() == [0.2, 0.1], "as good as failed"
    assert told(6, Outcome("duplicate", (0.2, 0.8), of=2)) is None, "known already"
    assert told(7, Outcome("duplicate", (0.3, 0.3), of=99)).utilities.tolist() == [0.3, 0.3], "never told here"
    censored = told(8, Outcome("censored", (0.9, 0.05)))
    assert censored.utilities[0] < 0.3, "feasible ones are what a candidate is stopped for"
    assert told(9, Outcome("complete", (0.5, 0.5), violations=(math.inf, 2.0))).violations == (2.0, 2.0)
    assert genome([0.09]) in memory
    assert genome([0.5]) not in memory


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_genes_without_effect_are_not_learnt_from(name):
    """Two histories that differ only where it makes no difference lead to one proposal, and that is canonical."""
    box = Box(3, (2,))

    def canonical(point):
        return point if point.categories[0] == 0 else Genome((*point.values[:2], 0.5), point.categories)

    one, other = (build(name, box, canonical=canonical, options=_few(name)) for _ in range(2))
    random = np.random.default_rng(0)
    for id in range(12):
        point = genome(random.random(3), [id % 2])
        outcome = Outcome("complete", (bowl(canonical(point)),))
        one.tell(Trial(id, point), outcome)
        other.tell(Trial(id, canonical(point)), outcome)
    for id in range(12, 14):
        proposal = one.ask(id, ())
        assert proposal == other.ask(id, ()) == canonical(proposal)


def _few(name):
    return {"population": 6} if name.startswith("nsga") else {"startup": 6}


@pytest.mark.parametrize("name", (*MODELS, "grid"))
def test_a_small_space_is_walked_through_without_repeats(name):
    box = Box(0, (3, 2, 2))
    optimizer = build(name, box, 1)
    proposed = []
    for id in range(12):
        proposed.append(optimizer.ask(id, ()))
        optimizer.tell(Trial(id, proposed[-1]), Outcome("complete", (float(sum(proposed[-1].categories)),)))
    assert len(set(proposed)) == 12


@pytest.mark.parametrize("name", MODELS)
def test_the_first_proposal_is_the_start(name):
    center = genome([0.2, 0.9], [1])
    optimizer = build(name, Box(2, (3,)), 2, center=center)
    assert optimizer.ask(0, ()) == center
    around = [optimizer.ask(id, (Trial(0, center),)) for id in range(1, 200)]
    assert center not in around
    assert np.mean([point.values for point in around], axis=0) == pytest.approx([0.2, 0.9], abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gp", "tpe"])
def test_pending_trials_keep_others_away(name):
    away, near = [], []
    for seed in range(3):
        box = Box(3)
        optimizer = build(name, box, seed=seed)
        tell_some(optimizer, box, 24, lambda point: (bowl(point),), seed)
        pending = Trial(100, optimizer.ask(100, ()))
        for id in (101, 102):
            near.append(math.dist(optimizer.ask(id, ()).values, pending.genome.values))
            away.append(math.dist(optimizer.ask(id, (pending,)).values, pending.genome.values))
    assert np.mean(away) > 1.2 * np.mean(near)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpe", "nsga2", "nsga3"])
def test_the_feasible_share_rises(name):
    """The best utilities are where the constraint is broken."""
    optimizer, feasible = build(name, Box(4), 2, options=_few(name), center=genome([0.8] * 4)), []
    for id in range(120):
        point = optimizer.ask(id, ())
        broken = float(np.mean(point.values)) - 0.6
        utilities = (bowl(point, 1.0), bowl(point, 0.8))
        optimizer.tell(Trial(id, point), Outcome("complete", utilities, violations=(broken,)))
        feasible.append(broken <= 0)
    assert np.mean(feasible[:7]) < 0.3
    assert np.mean(feasible[-40:]) > 0.55


@pytest.mark.parametrize("name", MODELS)
def test_nothing_global_is_touched(name, capfd):
    """Neither torch's generator nor logging nor warnings; and nothing is printed."""
    import optuna
    import torch

    logger = logging.getLogger("optuna")
    before = (torch.get_rng_state().tolist(), logger.level, list(logger.handlers), list(warnings.filters))
    capfd.readouterr()
    box = Box(2, (2,))
    optimizer = build(name, box, 2, options=_few(name))
    tell_some(optimizer, box, 14, lambda point: (bowl(point), bowl(point, 0.6)))
    optimizer.ask(50, (Trial(49, genome([0.1, 0.2], [0])),))
    assert (torch.get_rng_state().tolist(), logger.level, list(logger.handlers), list(warnings.filters)) == before
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == logger.level


def test_options_are_read_without_importing_optuna():
    code = (
        "import sys, json; from search.optimizers import registry\n"
        "for name in ('gp', 'tpe', 'nsga2', 'nsga3'): registry.validate(name, {})\n"
        "print(json.dumps([name in sys.modules for name in ('optuna', 'torch')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, False]


@pytest.mark.parametrize(
    ("name", "options"),
    [("gp", {"startup": 1}), ("gp", {"windw": 9}), ("tpe", {"candidates": 0}), ("nsga2", {"crossover": "spx"})],
)
def test_options_that_do_not_fit_are_named(name, options):
    with pytest.raises(OptimizerError, match=next(iter(options))):
        build(name, Box(2), options=options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gp", "tpe"])
def test_asks_leave_no_trace(name):
    """What was proposed and never became of anything does not change the next proposal."""
    box = Box(3, (2,))
    one, other = build(name, box), build(name, box)
    for optimizer in (one, other):
        tell_some(optimizer, box, 14, lambda point: (bowl(point),))
    one.ask(70, ())
    assert one.ask(71, ()) == other.ask(71, ())


# gp


@pytest.mark.slow
def test_gp_finds_a_smooth_optimum_in_few_evaluations():
    reached = {}
    for name in ("gp", "random"):
        optimizer, found = build(name, Box(3)), []
        for id in range(24):
            point = optimizer.ask(id, ())
            found.append(bowl(point, 0.7))
            optimizer.tell(Trial(id, point), Outcome("complete", (found[-1],)))
        reached[name] = max(found)
    assert reached["gp"] > -1e-3
    assert reached["gp"] > 0.1 * reached["random"], "ten times closer"


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [1, 2])
def test_gp_beats_random_search_clearly(objectives):
    """40 evaluations of noisy five-dimensional bowls."""
    volumes = {"gp": [], "random": []}
    for name, found in volumes.items():
        for seed in range(3):
            random, points = np.random.default_rng(seed), []
            optimizer = build(name, Box(5), objectives, seed=seed)
            for id in range(40):
                point = optimizer.ask(id, ())
                points.append([1 + 4 * bowl(point, center) for center in (0.7, 0.4)[:objectives]])
                noisy = np.asarray(points[-1]) + 0.02 * random.standard_normal(objectives)
                optimizer.tell(Trial(id, point), Outcome("complete", tuple(noisy.tolist())))
            found.append(pareto.hypervolume(points, [0.0] * objectives))
    assert min(volumes["gp"]) > max(volumes["random"])
    assert 1 - np.mean(volumes["gp"]) < 0.6 * (1 - np.mean(volumes["random"]))


@pytest.mark.slow
def test_gp_learns_where_merges_fail():
    """Half of the space fails, and the scores rise towards it."""
    optimizer, failed = build("gp", Box(2), options={"startup": 4}), []
    for id in range(22):
        point = optimizer.ask(id, ())
        failed.append(point.values[0] > 0.6)
        outcome = Outcome("failed") if failed[-1] else Outcome("complete", (point.values[0],))
        optimizer.tell(Trial(id, point), outcome)
    assert any(failed)
    assert np.mean(failed[-10:]) <= 0.5
    assert not all(failed[-4:])


@pytest.mark.slow
def test_gp_sees_no_more_than_its_window_and_keeps_the_front():
    box = Box(2)
    optimizer = Gp(settings(box, 2, options={"window": 20}))
    log = tell_some(optimizer, box, 60, lambda point: (bowl(point, 0.3), bowl(point, 0.6)))
    front = np.flatnonzero(pareto.nondominated([told.outcome.utilities for told in log]))
    seen = [trial.number for trial in optimizer._trials()]
    assert len(seen) == 20
    assert seen == sorted(set(seen))
    assert set(front[-10:].tolist()) <= set(seen)
    others = [number for number in range(60) if number not in front]
    assert set(others[-(20 - min(10, len(front))) :]) <= set(seen)
    assert optimizer.diagnosis() == {"observations": 60.0, "fitted": 20.0, "singular": 0.0}
    assert optimizer.ask(60, ()) in box


def test_gp_is_not_flattened_by_a_broken_merge():
    """Utilities that are worse by orders of magnitude are shown at the fence; every trial has as many constraints."""
    box = Box(2)
    optimizer = Gp(settings(box))
    tell_some(optimizer, box, 15, lambda point: (bowl(point),))
    optimizer.tell(Trial(50, genome([0.0, 1.0])), Outcome("complete", (-1e9,), violations=(0.5, -0.5)))
    shown = optimizer._trials()
    worst = max(trial.values[0] for trial in shown)
    assert shown[-1].values[0] == worst < 10
    assert [len(trial.constraints) for trial in shown] == [2] * 16
    assert shown[-1].constraints == {"0": 0.5, "1": -0.5}


def test_gp_proposes_although_a_fit_is_singular(monkeypatch):
    import torch
    from optuna.samplers import GPSampler

    def singular(*arguments):
        torch.linalg.cholesky(torch.zeros(2, 2))

    box = Box(3)
    optimizer = build("gp", box)
    tell_some(optimizer, box, 12, lambda point: (bowl(point),))
    monkeypatch.setattr(GPSampler, "sample_relative", singular)
    assert optimizer.ask(12, ()) in box
    assert optimizer.diagnosis()["singular"] == 1


def test_gp_fits_fewer_trials_of_many_genes():
    assert Gp(settings(Box(200)))._window == 125
    assert Gp(settings(Box(18)))._window == 300


def test_the_lower_fence_is_tukeys():
    values = np.arange(101.0)[:, None]
    assert lower_fence(values) == pytest.approx([25 - 3 * 50])
    assert lower_fence(np.ones((5, 2))) == pytest.approx([1.0, 1.0])


# nsga


@given(st.integers(2, 4), st.integers(2, 200))
def test_directions_are_no_more_than_individuals(objectives, population):
    parts = divisions(objectives, population)
    assert parts == 1 or math.comb(parts + objectives - 1, objectives - 1) <= population
    assert math.comb(parts + objectives, objectives - 1) > population
    assert divisions(1, population) == 1


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_nsga_breeds_what_it_was_told(name):
    """The first generation is what was injected: its best become parents."""
    box = Box(10, (4,))
    optimizer = build(name, box, 2, {"population": 6, "crossover": "uniform"})
    for id in range(6):
        good = id < 3
        point = genome([0.111 * (1 + id % 3) if good else 0.9] * 10, [2 if good else 1])
        optimizer.tell(Trial(id, point), Outcome("complete", (1.0 + id, 1.0 - id) if good else (-9.0, -9.0 - id)))
    for id in range(6, 9):  # a second generation of worse ones: the parents are the elite of both
        optimizer.tell(Trial(id, genome([0.5 + 0.01 * id] * 10, [0])), Outcome("complete", (-5.0, -5.0)))
    genes, categories = [], []
    for id in range(20, 60):
        child = optimizer.ask(id, ())
        genes += [round(value, 3) in (0.111, 0.222, 0.333) for value in child.values]
        categories.append(child.categories[0] == 2)
    assert np.mean(genes) > 0.5
    assert np.mean(categories) > 0.7


def test_nsga2_keeps_the_elite_of_parents_and_children():
    box, population = Box(3), 8
    optimizer = Nsga2(settings(box, 2, options={"population": population}))
    log = tell_some(optimizer, box, 3 * population, lambda point: (bowl(point, 0.2), bowl(point, 0.8)))
    kept = {tuple(-value for value in trial.values) for trial in optimizer._rows}
    points = [told.outcome.utilities for told in log]
    ranks = pareto.ranks(points)
    worst_kept = max(rank for rank, point in zip(ranks, points, strict=True) if point in kept)
    assert len(kept) == population
    lost = [rank for rank, point in zip(ranks, points, strict=True) if point not in kept]
    assert min(lost) >= worst_kept, "elitism: whoever went is of no better rank than whoever stayed"


def test_nsga3_keeps_individuals_along_its_directions():
    """On a front with far more points near one end than elsewhere, both ends and the middle survive: it would not if
    utilities were taken for losses."""
    optimizer = build("nsga3", Box(1), 2, {"population": 8})
    angles = [0.0, 0.01, 0.02, 0.03, 0.8, 1.5, math.pi / 2, 0.05]
    for id, angle in enumerate(angles):
        optimizer.tell(Trial(id, genome([angle / 2])), Outcome("complete", (math.cos(angle), math.sin(angle))))
    for id, angle in enumerate([0.06, 0.07, 0.08, 0.09, 0.10, 0.11, 0.12, 0.13], len(angles)):
        optimizer.tell(Trial(id, genome([angle / 2])), Outcome("complete", (math.cos(angle), math.sin(angle))))
    kept = sorted(2 * trial.params["value 0"] for trial in optimizer._rows)
    assert len(kept) == 8
    assert kept[0] < 0.05
    assert any(0.7 < angle < 0.9 for angle in kept)
    assert kept[-1] == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("crossover", ["sbx", "blx", "uniform"])
def test_nsga_breeds_from_corners_of_a_large_box(crossover):
    """Parents at the bounds in many genes: Optuna by itself would draw children for ever."""
    box = Box(120)
    optimizer = build("nsga2", box, 2, {"population": 4, "crossover": crossover})
    for id in range(4):
        corner = genome(np.arange(120) % 4 < id)
        optimizer.tell(Trial(id, corner), Outcome("complete", (float(id), -float(id))))
    for id in range(10, 20):
        assert optimizer.ask(id, ()) in box


def test_nsga_forgets_old_generations():
    box = Box(2)
    optimizer = Nsga2(settings(box, 2, options={"population": 8}))
    tell_some(optimizer, box, 300, lambda point: (bowl(point, 0.2), bowl(point, 0.8)))
    assert len(optimizer._rows) < 16


@pytest.mark.parametrize("name", ["nsga2", "nsga3"])
def test_nsga_replays_across_generations_that_close_while_children_are_out(name):
    box = Box(4, (3,))
    optimizer, log, pending = build(name, box, 3, {"population": 5}), [], []
    for id in range(40):
        asked = Asked(Trial(id, optimizer.ask(id, tuple(pending))), tuple(pending))
        log.append(asked)
        pending.append(asked.trial)
        if len(pending) > 4:
            done = pending.pop((7 * id) % 5)
            log.append(Told(done, Outcome("complete", tuple(bowl(done.genome, c) for c in (0.2, 0.5, 0.8)))))
            optimizer.tell(*log[-1])
    assert replay(build(name, box, 3, {"population": 5}), log) == []
