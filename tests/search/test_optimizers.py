import hashlib
import subprocess
import sys
import warnings

import numpy as np
import pytest

from search import pareto
from search.optimizers import registry
from search.optimizers.cma import Coordinates
from search.optimizers.contract import Box, Genome, Optimizer, OptimizerError, Outcome, Settings, Trial
from search.optimizers.scalarise import Scorer
from search.optimizers.sms_emoa import SmsEmoa


def settings(box=Box(4), objectives=2, **more):  # noqa: B008
    more = {"seed": 0, "budget": 200, "reference": (0.0,) * objectives, **more}
    return Settings(box=box, objectives=objectives, **more)


def two_spheres(genome):
    """Front: the segment between the optima at .25 and .75, u = (1 - t², 1 - (1 - t)²)."""
    values = np.asarray(genome.values)
    wrong = 0.2 * sum(choice != 1 for choice in genome.categories)
    return tuple(float(1 - 4 * np.mean((values - optimum) ** 2) - wrong) for optimum in (0.25, 0.75))


def exact_volume():
    """Of two_spheres beyond (0, 0): ∫ over the first utility of the best second one = 5/6."""
    t = np.linspace(0, 1, 20001)
    return float(np.trapezoid((1 - (1 - t) ** 2), t**2))


def search(name, budget, seed, evaluate=two_spheres, box=Box(4, (3, 3)), **more):  # noqa: B008
    optimizer = registry.build(name, settings(box, seed=seed, budget=budget, **more))
    points = []
    for id in range(budget):
        genome = optimizer.ask(id, ())
        points.append(evaluate(genome))
        optimizer.tell(Trial(id, genome), Outcome("complete", points[-1]))
    return optimizer, points


def test_sms_emoa_finds_a_known_front():
    assert exact_volume() == pytest.approx(5 / 6, abs=1e-6)
    ours, theirs = [], []
    for seed in range(3):
        for name, found in (("sms_emoa", ours), ("random", theirs)):
            _, points = search(name, 300, seed)
            found.append(pareto.hypervolume(points, [0, 0]) / exact_volume())
    assert min(ours) > 0.93
    assert min(ours) > max(theirs) + 0.15


def test_sms_emoa_with_one_objective_keeps_the_best():
    optimizer, points = search("sms_emoa", 120, 0, lambda genome: two_spheres(genome)[:1], objectives=1)
    kept = sorted(float(each.utilities[0]) for each in optimizer.population)
    assert kept == sorted(point[0] for point in points)[-len(kept) :]


def told(optimizer, id, utilities, state="complete", **more):
    genome = Genome((id / 100, 0.5, 0.5, 0.5))
    optimizer.tell(Trial(id, genome), Outcome(state, utilities, **more))


def population(optimizer):
    return {each.id for each in optimizer.population}


def test_sms_emoa_drops_infeasible_then_dominated_then_the_least_contribution():
    optimizer = SmsEmoa(settings(options={"population": 3}))
    told(optimizer, 1, (9.0, 9.0), violations=(0.5, -1.0))
    told(optimizer, 2, (1.0, 5.0))
    told(optimizer, 3, (5.0, 1.0))
    told(optimizer, 4, (0.5, 0.5))
    assert population(optimizer) == {2, 3, 4}
    told(optimizer, 5, (3.0, 3.0))
    assert population(optimizer) == {2, 3, 5}
    told(optimizer, 6, (3.1, 2.9))  # alone with 5 in the middle; 5 x 6 leaves the least behind
    assert population(optimizer) in ({2, 3, 5}, {2, 3, 6})
    told(optimizer, 7, (8.0, 8.0), violations=(0.1,))
    assert 7 not in population(optimizer)


def test_only_complete_new_results_enter_the_population():
    optimizer = SmsEmoa(settings(options={"population": 3}))
    told(optimizer, 1, (), "failed")
    told(optimizer, 2, (9.0, 9.0), "censored")
    told(optimizer, 3, (9.0, 9.0), "duplicate", of=2)
    told(optimizer, 4, (float("nan"), 1.0))
    assert population(optimizer) == set()
    told(optimizer, 5, (1.0, 1.0))
    assert population(optimizer) == {5}


def test_sms_emoa_is_bounded_in_memory():
    optimizer, _ = search("sms_emoa", 700, 0, options={"population": 5})
    assert len(optimizer.population) == 5
    assert not optimizer._asked
    assert len(optimizer._told) <= 512


def test_pending_and_known_points_are_not_proposed_again():
    box = Box(0, (4, 5))
    optimizer = registry.build("sms_emoa", settings(box))
    seen = []
    for id in range(14):
        genome = optimizer.ask(id, tuple(Trial(i, each) for i, each in enumerate(seen) if i % 2))
        seen.append(genome)
        if id % 2 == 0:
            optimizer.tell(Trial(id, genome), Outcome("complete", (float(id), -float(id))))
    assert len(set(seen)) == len(seen)


def test_the_center_is_proposed_first_and_only_once():
    center = Genome((0.2, 0.4, 0.6, 0.8))
    optimizer = registry.build("sms_emoa", settings(center=center))
    assert optimizer.ask(0, ()) == center
    optimizer.tell(Trial(0, center), Outcome("failed"))
    assert optimizer.ask(1, ()) != center
    known = registry.build("sms_emoa", settings(center=center))
    known.tell(Trial(0, center), Outcome("complete", (1.0, 1.0)))
    assert known.ask(1, ()) != center


def sphere(genome):
    return (-float(np.sum((np.asarray(genome.values) - 0.8) ** 2)) - 0.5 * sum(c != 2 for c in genome.categories),)


def test_cma_converges_on_a_sphere_with_categories():
    _, points = search("cma", 400, 1, sphere, box=Box(5, (3, 4)), objectives=1)
    assert max(points)[0] > -0.01


@pytest.mark.slow
def test_cma_restarts_with_twice_the_population_where_it_has_converged():
    optimizer, points = search("cma", 1500, 0, sphere, box=Box(2), objectives=1)
    assert optimizer._restart > 0
    assert optimizer._strategy.popsize >= 2 * 6
    assert max(points)[0] > -1e-9
    steady, _ = search("cma", 1500, 0, sphere, box=Box(2), objectives=1, options={"restarts": False})
    assert steady._restart == 0


def test_cma_follows_the_weights_to_different_ends_of_a_front():
    t = 1 / (1 + np.sqrt(8))  # where 8 t² = (1 - t)²
    for weights, expected in (((8.0, 1.0), (1 - t**2, 1 - (1 - t) ** 2)), ((1.0, 8.0), (1 - (1 - t) ** 2, 1 - t**2))):
        optimizer, _ = search("cma", 300, 0, box=Box(4), weights=weights)
        last = [two_spheres(optimizer.ask(id, ())) for id in range(300, 310)]
        assert np.mean(last, axis=0) == pytest.approx(expected, abs=0.03)


def test_cma_starts_at_the_best_point_it_was_told():
    optimizer = registry.build("cma", settings(objectives=1, options={"sigma0": 0.01}))
    for id, (value, utility) in enumerate([(0.1, 1.0), (0.9, 3.0), (0.5, 2.0)]):
        optimizer.tell(Trial(id, Genome((value,) * 4)), Outcome("complete", (utility,)))
    optimizer.tell(Trial(8, Genome((0.0,) * 4)), Outcome("complete", (9.0,), violations=(1.0,)))
    optimizer.tell(Trial(9, Genome((1.0,) * 4)), Outcome("censored", (9.0,)))
    optimizer.ask(10, ())
    assert optimizer._strategy.x0 == pytest.approx([0.9] * 4)


def test_cma_that_starts_in_the_middle_learns_from_its_own_proposals_alone():
    def proposals(told):
        options = {"start": "middle", "popsize": 6}
        center = Genome((0.9,) * 4, (2,))
        optimizer = registry.build("cma", settings(Box(4, (3,)), objectives=1, options=options, center=center))
        found = []
        for id in range(20):
            if told:
                better = Genome((0.1 + 0.001 * id,) * 4, (0,))
                optimizer.tell(Trial(900 + id, better), Outcome("complete", (99.0,)))
            found.append(optimizer.ask(id, ()))
            optimizer.tell(Trial(id, found[-1]), Outcome("complete", sphere(found[-1])))
        return optimizer, found

    optimizer, found = proposals(told=True)
    assert optimizer._strategy.x0[:4] == pytest.approx([0.5] * 4)
    assert found == proposals(told=False)[1]


def test_a_diagonal_cma_converges_and_keeps_no_covariances():
    def stretched(genome):
        weights = np.geomspace(1, 100, len(genome.values))
        return (-float(np.sum(weights * (np.asarray(genome.values) - 0.7) ** 2)),)

    optimizer, points = search("cma", 1500, 0, stretched, box=Box(40), objectives=1, options={"diagonal": True})
    assert max(points)[0] > 0.05 * max(points[:10])[0]
    wide, _ = search("cma", 8, 0, stretched, box=Box(4000), objectives=1, options={"diagonal": True, "popsize": 4})
    for strategy in (optimizer._strategy, wide._strategy):
        assert strategy.sm.variances.ndim == 1  # 4000 × 4000 numbers would be 128 MB


def test_cma_learns_from_a_better_point_found_elsewhere():
    def reached(tell):
        optimizer = registry.build("cma", settings(Box(30), objectives=1, options={"sigma0": 0.02}))
        best = -np.inf
        for id in range(100):
            genome = optimizer.ask(id, ())
            best = max(best, sphere(genome)[0])
            optimizer.tell(Trial(id, genome), Outcome("complete", sphere(genome)))
            if tell and id == 20:
                other = Genome((0.75,) * 30)
                optimizer.tell(Trial(999, other), Outcome("complete", sphere(other)))
        return best

    assert reached(True) > reached(False) + 0.5


@pytest.mark.parametrize("state", ["failed", "censored", "infeasible"])
def test_cma_ranks_what_is_no_result_behind_every_result(state):
    """The half of the box that yields nothing looks best by its utilities; it must be left all the same."""
    optimizer = registry.build("cma", settings(Box(3), objectives=1))
    for id in range(300):
        genome = optimizer.ask(id, ())
        x = genome.values[0]
        outcome = Outcome("complete", (x,))
        if x > 0.5:
            outcome = {
                "failed": Outcome("failed"),
                "censored": Outcome("censored", (x,)),
                "infeasible": Outcome("complete", (x,), violations=(x - 0.5,)),
            }[state]
        optimizer.tell(Trial(id, genome), outcome)
    last = [optimizer.ask(id, ()).values[0] for id in range(300, 310)]
    assert 0.35 < np.mean(last) < 0.55


def test_a_duplicate_of_a_censored_trial_is_censored():
    scorer = Scorer(settings(objectives=1))
    assert scorer.score(1, Outcome("censored", (9.0,))).rank == 2
    assert scorer.score(2, Outcome("duplicate", (9.0,), of=1)).rank == 2
    assert scorer.score(3, Outcome("duplicate", (9.0,), of=2)).rank == 2
    assert scorer.score(4, Outcome("duplicate", (9.0,), of=7)).rank == 0
    assert scorer.score(5, Outcome("complete", (np.inf,))).rank == 3


def test_cma_is_quiet_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cma_signals.in").write_text("{'timeout': 0}")  # pycma would obey it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search("cma", 200, 0)
    assert capfd.readouterr() == ("", "")
    assert [each.name for each in tmp_path.iterdir()] == ["cma_signals.in"]


def test_coordinates_go_back_and_forth():
    for box in (Box(3, (4, 1, 2)), Box(1), Box(0, (3,)), Box(0)):
        coordinates = Coordinates(box)
        assert len(coordinates.low) >= 2
        genome = Genome(tuple(0.1 * i for i in range(box.continuous)), tuple(count - 1 for count in box.categories))
        assert coordinates.genome(coordinates.point(genome)) == genome
        assert coordinates.genome(coordinates.high + 0.4) in box
        assert coordinates.genome(coordinates.low - 0.4) in box


def test_random_draws_depend_on_seed_and_id_alone():
    one, other = (registry.build("random", settings(seed=5)) for _ in range(2))
    assert one.ask(3, ()) == other.ask(3, (Trial(1, Genome((0.5,) * 4)),))
    assert one.ask(3, ()) != one.ask(4, ())
    values = np.asarray([one.ask(id, ()).values for id in range(2000)])
    assert values.mean(axis=0) == pytest.approx([0.5] * 4, abs=0.03)
    assert values.var(axis=0) == pytest.approx([1 / 12] * 4, abs=0.01)


def test_the_registry_names_what_it_can_build():
    assert set(registry.optimizers()) >= set(registry.BUILT_IN)
    for name in registry.BUILT_IN:
        assert isinstance(registry.build(name, settings()), Optimizer)
    assert "sigma0" in registry.options_model("cma").model_fields


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("smsemoa", {}, "did you mean 'sms_emoa'"),
        ("cma", {"options": {"sigma": 0.1}}, "did you mean 'sigma0'"),
        ("cma", {"options": {"sigma0": -1.0, "popsize": "many"}}, "popsize = 'many'.*sigma0 = -1.0"),
        ("random", {"options": {"sigma0": 0.1}}, "takes no options"),
        ("cma", {"reference": (0.0,)}, "reference point with 2 numbers"),
        ("cma", {"weights": (1.0, -1.0)}, "weights"),
        ("cma", {"center": Genome((0.5,))}, "center inside the box"),
        ("cma", {"budget": 0}, "budget"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, change, message):
    with pytest.raises(OptimizerError, match=message):
        registry.build(name, settings(**change))


def test_another_number_of_utilities_is_refused():
    for name in ("cma", "sms_emoa"):
        with pytest.raises(OptimizerError, match="expected 2 utilities"):
            registry.build(name, settings()).tell(Trial(0, Genome((0.5,) * 4)), Outcome("complete", (1.0,)))


class Plugin:
    def __init__(self, given):
        self.given = given

    def ask(self, id, pending):
        return Genome((0.5,) * 4)

    def tell(self, trial, outcome):
        pass


def test_other_packages_add_optimizers(monkeypatch):
    class Point:
        value = "package:Plugin"

        def __init__(self, load):
            self.load = load

    def broken():
        raise ImportError("no such thing")

    monkeypatch.setattr(registry, "_plugins", lambda: {"theirs": Point(lambda: Plugin), "broken": Point(broken)})
    assert "theirs" in registry.optimizers()
    assert isinstance(registry.build("theirs", settings()), Plugin)
    with pytest.raises(OptimizerError, match="takes no options"):
        registry.build("theirs", settings(options={"a": 1}))
    with pytest.raises(OptimizerError, match=r"package:Plugin.*no such thing"):
        registry.build("broken", settings())


SOURCE = """
from pydantic import BaseModel
from search.optimizers.contract import Genome

class Options(BaseModel):
    step: float = 0.5

class Middle:
    Options = Options

    def __init__(self, settings):
        self.step = settings.options["step"]

    def ask(self, id, pending):
        return Genome((self.step,) * 4)

    def tell(self, trial, outcome):
        pass
"""


def test_a_file_adds_an_optimizer(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    optimizer = registry.build("mine.py:Middle", settings(options={"step": 0.25}), folder=tmp_path)
    assert optimizer.ask(0, ()) == Genome((0.25,) * 4)
    assert registry.validate(f"{tmp_path}/mine.py:Middle", {}) == {"step": 0.5}
    assert registry.source_hash("mine.py:Middle", folder=tmp_path) == hashlib.sha256(SOURCE.encode()).hexdigest()
    with pytest.raises(OptimizerError, match="did you mean 'Middle'"):
        registry.build("mine.py:Midle", settings(), folder=tmp_path)
    with pytest.raises(OptimizerError, match="there is none"):
        registry.build("yours.py:Middle", settings(), folder=tmp_path)
    (tmp_path / "broken.py").write_text("import no_such_module_at_all")
    for _ in range(2):  # a failed import leaves nothing behind that a second one would take
        with pytest.raises(OptimizerError, match="cannot be imported: ModuleNotFoundError"):
            registry.build("broken.py:Middle", settings(), folder=tmp_path)


def test_naming_optimizers_imports_none_of_them():
    heavy = "{'cma', 'cmaes', 'optuna', 'torch'}"
    code = (
        "import sys, search.optimizers.registry as r; [r.options_model(name) for name in r.optimizers()]; "
        f"print({heavy} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
