import numpy as np
import pytest
from scipy import optimize

from search import pareto
from search.optimizers import prescreen as module
from search.optimizers import registry
from search.optimizers.conformance import OptimizerConformance
from search.optimizers.contract import Box, Genome, OptimizerError, Outcome, Settings, Trial
from search.optimizers.prescreen import Prescreened
from search.optimizers.surrogates import GaussianProcess, Quadratic


@pytest.mark.slow
class TestQuadraticPrescreen(OptimizerConformance):
    name = "sms_emoa"
    options = {"prescreen": "quadratic", "prescreen_quality": -9.0, "prescreen_proposals": 5}  # noqa: RUF012
    objectives = (1, 2)
    boxes = (Box(3, (3, 2)), Box(1), Box(0, (3,)), Box(0))
    killed_boxes = (Box(3, (3, 2)),)
    asks = 40
    learning_budget = 60
    learning_seeds = 2


@pytest.mark.slow
class TestGaussianProcessPrescreen(OptimizerConformance):
    name = "sms_emoa"
    options = {"prescreen": "gp", "prescreen_proposals": 3}  # noqa: RUF012
    objectives = (2,)
    boxes = (Box(3, (3, 2)), Box(0, (3,)), Box(0))
    killed_boxes = (Box(3, (3, 2)),)
    asks = 40
    kills = 3
    learning_budget = 60
    learning_seeds = 2


def settings(box, objectives=2, **more):
    more = {"seed": 0, "budget": 200, "reference": (0.0,) * objectives, **more}
    return Settings(box=box, objectives=objectives, **more)


def two_spheres(genome):
    values = np.asarray(genome.values)
    wrong = 0.2 * sum(choice != 1 for choice in genome.categories)
    return tuple(float(1 - 4 * np.mean((values - optimum) ** 2) - wrong) for optimum in (0.25, 0.75))


def search(options, budget, seed, evaluate=two_spheres, box=Box(10, (3, 3)), **more):  # noqa: B008
    start = Genome((0.5,) * box.continuous, (0,) * len(box.categories))
    optimizer = registry.build(
        "sms_emoa", settings(box, seed=seed, budget=budget, center=start, options=options, **more)
    )
    trials = []
    for id in range(budget):
        trial = Trial(id, optimizer.ask(id, ()))
        trials.append((trial, evaluate(trial.genome)))
        optimizer.tell(trial, Outcome("complete", trials[-1][1]))
    return optimizer, trials


def needed(options, seed, level=0.68):
    """Evaluations until the hypervolume of the front reaches a level, 240 at most."""
    start = Genome((0.5,) * 10, (0, 0))
    optimizer = registry.build("sms_emoa", settings(Box(10, (3, 3)), seed=seed, center=start, options=options))
    points = []
    for id in range(240):
        trial = Trial(id, optimizer.ask(id, ()))
        points.append(two_spheres(trial.genome))
        optimizer.tell(trial, Outcome("complete", points[-1]))
        if pareto.hypervolume(points, [0, 0]) >= level:
            break
    return len(points)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["quadratic", "gp"])
def test_a_smooth_problem_needs_fewer_evaluations(kind):
    seeds = range(3 if kind == "quadratic" else 2)
    screened = [needed({"prescreen": kind}, seed) for seed in seeds]
    plain = [needed({}, seed) for seed in seeds]
    assert np.mean(screened) < 0.75 * np.mean(plain)


@pytest.mark.parametrize("kind", ["quadratic", pytest.param("gp", marks=pytest.mark.slow)])
def test_noise_is_found_out_and_the_search_is_the_one_without(kind):
    def noise(genome):
        return tuple(np.random.default_rng(int(1e9 * sum(genome.values))).random(2).tolist())

    screened, trials = search({"prescreen": kind}, 80, 0, noise)
    _, plain = search({}, 80, 0, noise)
    assert trials == plain
    diagnosis = screened.diagnosis()
    assert diagnosis["prescreen"] == f"{kind} off: the models are poor"
    assert diagnosis["screened"] == 0.0
    assert max(diagnosis["r2_0"], diagnosis["r2_1"]) < 0.3


@pytest.mark.slow
def test_it_says_how_good_its_models_are():
    optimizer, _ = search({"prescreen": "quadratic"}, 20, 0)
    assert optimizer.diagnosis() == {"prescreen": "quadratic off: too few points", "screened": 0.0}
    optimizer, _ = search({"prescreen": "quadratic"}, 120, 0)
    diagnosis = optimizer.diagnosis()
    assert diagnosis["prescreen"] == "quadratic on"
    assert 0.8 < diagnosis["r2_0"] <= 1.0
    assert 40 < diagnosis["screened"] <= 96


def test_memory_stays_flat(monkeypatch):
    monkeypatch.setitem(module.WINDOW, "quadratic", 50)
    optimizer, _ = search({"prescreen": "quadratic", "prescreen_proposals": 4}, 120, 0, box=Box(3))
    assert optimizer.diagnosis()["screened"] > 60
    assert not optimizer._taken
    assert not optimizer._inner._asked
    assert len(optimizer._evaluated) == 50


@pytest.mark.slow
def test_it_learns_where_a_constraint_breaks():
    """The unconstrained front lies beyond the border; the feasible one is found sooner than without a model."""

    def found(options):
        optimizer = registry.build("sms_emoa", settings(Box(6), options=options, center=Genome((0.1,) * 6)))
        feasible, late = [], []
        for id in range(100):
            trial = Trial(id, optimizer.ask(id, ()))
            broken = float(np.mean(trial.genome.values)) - 0.2
            outcome = Outcome("complete", two_spheres(trial.genome), violations=(-1.0, broken))
            optimizer.tell(trial, outcome)
            feasible += [outcome.utilities] if broken <= 0 else []
            late.append(max(0.0, broken))
        return pareto.hypervolume(feasible, [-1, -1]), np.mean(late[60:])

    volume, broken = found({"prescreen": "quadratic"})
    assert volume > found({})[0]
    assert broken < 0.01  # it may try the border, and leaves the rest beyond it alone


def test_genes_of_no_effect_do_not_blur_the_model():
    """Of four values three count only under category 0."""

    def canonical(genome):
        first = genome.values[:1]
        return genome if genome.categories[0] == 0 else Genome((*first, 0.5, 0.5, 0.5), genome.categories)

    seen = []
    inner = registry.build("sms_emoa", settings(Box(4, (2,))))
    wrapped = Prescreened(inner, settings(Box(4, (2,)), canonical=canonical, options={"prescreen": "quadratic"}))
    fitted, model = [], wrapped._model
    wrapped._model = lambda genomes, *rest: (fitted.append(list(genomes)), model(genomes, *rest))[1]
    for id in range(30):
        trial = Trial(id, wrapped.ask(id, ()))
        seen.append(trial.genome)
        wrapped.tell(trial, Outcome("complete", (0.5, 0.5)))
    assert len(fitted[-1]) >= 24
    assert fitted[-1] == [canonical(each) for each in seen[: len(fitted[-1])]]
    assert any(canonical(each) != each for each in seen)


def test_an_optimizer_whose_proposals_cannot_be_dropped_is_refused():
    plain = settings(Box(4), options={"prescreen": "gp"})
    with pytest.raises(OptimizerError, match=r"forget.*found Random"):
        Prescreened(registry.build("random", settings(Box(4))), plain)
    with pytest.raises(OptimizerError, match="no option 'prescreen'"):
        registry.build("catcma", plain)
    with pytest.raises(OptimizerError, match="prescreen = 'gauss'"):
        registry.build("sms_emoa", settings(Box(4), options={"prescreen": "gauss"}))


BOX = Box(3, (3,))


def sample(count, seed, box=BOX):
    random = np.random.default_rng(seed)
    return [
        Genome(
            tuple(random.random(box.continuous).tolist()), tuple(int(random.integers(each)) for each in box.categories)
        )
        for _ in range(count)
    ]


def quadratic_truth(genome):
    x, y, z = genome.values
    return x * y - 2 * z**2 + 0.3 * (genome.categories[0] == 1) + x * (genome.categories[0] == 2)


def test_a_quadratic_is_recovered_by_the_quadratic():
    genomes = sample(80, 0)
    model = Quadratic(BOX, genomes, np.asarray([quadratic_truth(each) for each in genomes]))
    fresh = sample(50, 1)
    assert model.quality > 0.999
    assert model.predict(fresh) == pytest.approx([quadratic_truth(each) for each in fresh], abs=0.02)


def wavy(genome):
    return float(np.sin(6 * genome.values[0]) + 0.5 * (genome.categories[0] == 1))


@pytest.mark.parametrize("box", [Box(3, (3,)), Box(30, (3,))], ids=str)
def test_a_gaussian_process_finds_out_which_genes_count(box):
    genomes, fresh = sample(150, 0, box), sample(80, 1, box)
    model = GaussianProcess(box, genomes, np.asarray([wavy(each) for each in genomes]))
    truth = np.asarray([wavy(each) for each in fresh])
    share = 1 - ((model.predict(fresh) - truth) ** 2).mean() / truth.var()
    assert abs(share - model.quality) < 0.15  # the quality that it claims holds on fresh points
    if box.continuous == 3:
        assert share > 0.98
        assert model.parameters[0] > model.parameters[1:3].max() + 2
    else:
        assert model.parameters.shape == (4,)


@pytest.mark.parametrize("kind", [Quadratic, GaussianProcess])
def test_claimed_quality_holds_under_noise(kind):
    """Leave-one-out R2 of a signal in noise is near what fresh noisy points show, and of noise alone near 0."""
    random = np.random.default_rng(5)
    genomes, fresh = sample(150, 2), sample(400, 3)
    noisy = np.asarray([quadratic_truth(each) for each in genomes]) + random.normal(0, 0.4, len(genomes))
    truth = np.asarray([quadratic_truth(each) for each in fresh]) + random.normal(0, 0.4, len(fresh))
    model = kind(BOX, genomes, noisy)
    share = 1 - ((model.predict(fresh) - truth) ** 2).mean() / truth.var()
    assert model.quality == pytest.approx(share, abs=0.12)
    assert abs(kind(BOX, genomes, random.normal(size=len(genomes))).quality) < 0.15
    assert kind(BOX, genomes, np.ones(len(genomes))).quality == 0.0


def test_leave_one_out_is_what_leaving_one_out_gives():
    genomes = sample(25, 4)
    targets = np.asarray([quadratic_truth(each) for each in genomes]) + np.random.default_rng(0).normal(0, 0.2, 25)
    model = GaussianProcess(BOX, genomes, targets)
    centered = (targets - targets.mean()) / targets.std()
    covariance, _, _ = model._covariance(model.parameters)
    errors = []
    for index in range(25):
        rest = np.delete(np.arange(25), index)
        weights = np.linalg.solve(covariance[np.ix_(rest, rest)], centered[rest])
        errors.append(centered[index] - covariance[index, rest] @ weights)
    others = [centered[index] - np.delete(centered, index).mean() for index in range(25)]
    assert model.quality == pytest.approx(1 - np.sum(np.square(errors)) / np.sum(np.square(others)))


def test_the_gradient_of_the_likelihood_is_its_slope():
    genomes = sample(20, 6)
    model = GaussianProcess(BOX, genomes, np.asarray([wavy(each) for each in genomes]))
    at = model._prior + np.random.default_rng(0).normal(0, 0.5, len(model._prior))
    slope = optimize.approx_fprime(at, lambda each: model._loss(each)[0], 1e-6)
    assert model._loss(at)[1] == pytest.approx(slope, abs=1e-3)
