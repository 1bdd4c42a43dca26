"""The presets of published searches: what they say is what their headers say, and what was published."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from evaluators import ExactMatch
from evaluators.exact_match import ExactMatchOptions
from merging.recipe import Group, SourceRef
from search.config import LoadedConfig, load_config
from search.optimizers.cma import Cma
from search.space import PathSpace
from search.stages import Stage, build_optimizer, build_stages
from search.statistics import wilson
from search.virtual import experts_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LAYERS = {"lfs_112": 40}
PRESETS = {
    "evollm_jp_ps": (3 * 2, 0, 9),
    "evollm_jp_a": (3 * 2, 0, 9),
    "evollm_jp_ps_layerwise": (34 * 3 * 2, 0, 19),
    "merge3_lite": (3 * 2, 0, None),
    "lfs_112": (12 * (3 + 1), 12, None),
}
"""name -> continuous genes, choices, CMA-ES' population."""
HEADINGS = ("hardware", "time", "cost", "disk", "command", "Licences", "Published", "Acceptance", "Traps")


def decoder(layers: int, *, tied: bool = False) -> list[Group]:
    inside = [Group(kind, depth) for depth in range(layers) for kind in ("attention", "mlp", "norm")]
    return [Group("embedding"), Group("norm"), *([] if tied else [Group("head")]), *inside]


def full_stage(loaded: LoadedConfig, groups: list[Group]) -> Stage:
    refs = {name: SourceRef(name, f"sha256:{name}") for name in ("base", *loaded.config.models.experts)}
    stages = build_stages(loaded.config, groups, refs)
    assert [stage.name for stage in stages] == ["baselines", "full"]
    return stages[-1]


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> LoadedConfig:
    return load_config(CONFIGS / f"{request.param}.yaml")


def test_it_has_the_published_genes_and_population(preset: LoadedConfig) -> None:
    name = preset.path.stem
    numbers, choices, population = PRESETS[name]
    stage = full_stage(preset, decoder(LAYERS.get(name, 32)))
    assert (stage.space.box.continuous, len(stage.space.box.categories)) == (numbers, choices)
    if population is None:
        return
    optimizer = build_optimizer(preset.config, stage, 1000, 1)
    assert isinstance(optimizer, Cma)
    first = optimizer.ask(13, ())
    strategy = optimizer._strategy
    assert strategy.popsize == population
    assert strategy.sigma == pytest.approx(1 / 6)
    assert all(0.0 <= value <= 1.0 for value in first.values)
    assert strategy.x0[: stage.space.box.continuous] == pytest.approx([0.5] * numbers)


def test_its_methods_are_those_of_the_time(preset: LoadedConfig) -> None:
    """DARE's task vectors are divided by the density, agreeing ones are added up undivided: mergekit of March 2024."""
    if preset.path.stem == "lfs_112":
        return
    stage = full_stage(preset, decoder(32))
    middle = stage.space.decode(stage.space.center())
    found = {assignment.method: dict(assignment.parameters) for assignment in middle.groups.values()}
    assert list(found) == ["dare_ties"]
    wanted = {"convention": "paper", "rescale": True, "normalize": False, "scale": 1.0}
    assert wanted.items() <= found["dare_ties"].items()
    assert {gene.bounds for gene in stage.space.genes} == {(0.0, 1.0)}


def test_its_budget_is_the_published_one_beside_the_baselines(preset: LoadedConfig) -> None:
    trials = {"merge3_lite": 7 * 25, "lfs_112": 500 - 13}.get(preset.path.stem, 1000)
    stages = build_stages(
        preset.config,
        decoder(32),
        {name: SourceRef(name, f"sha256:{name}") for name in ("base", *preset.config.models.experts)},
    )
    assert preset.config.search.budget.candidates - len(stages[0].fixed) == trials
    assert "dare_ties λ=1" in [label for label, _ in stages[0].fixed]


def test_its_header_says_what_people_must_know(preset: LoadedConfig) -> None:
    _has_all_headings(preset.path)


def _has_all_headings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\nname:")]
    places = [header.index(f"# {heading}") for heading in HEADINGS]
    assert places == sorted(places)
    assert f"paretomerge run configs/{path.name}" in header
    assert "reckoned, not run" in header


@pytest.mark.parametrize("name", ["evollm_jp_dfs", "evollm_jp_hybrid"])
def test_data_flow_is_searched_as_published(name: str) -> None:
    """192 slots, two of which are fixed: an indicator for the others, a scale for all; 100 generations of 128."""
    loaded = load_config(CONFIGS / f"{name}.yaml")
    models = ("base", *experts_of(loaded.config))
    refs = {alias: SourceRef(alias, f"sha256:{alias}") for alias in models}
    baselines, full = build_stages(loaded.config, decoder(32), refs)
    assert isinstance(full.space, PathSpace)
    assert len(full.space.slots) == 192 and full.space.depth == 64
    assert full.space.box.continuous == 190 + 192 and not full.space.box.categories
    settings = loaded.config.search
    assert settings.budget.candidates - len(baselines.fixed) == 100 * 128
    assert (settings.fidelity.minibatch, settings.fidelity.redraw) == (200, 128)
    optimizer = build_optimizer(loaded.config, full, 12_800, 1)
    assert isinstance(optimizer, Cma)
    optimizer.ask(len(baselines.fixed), ())
    assert (optimizer._strategy.popsize, optimizer._strategy.sigma) == (128, pytest.approx(1 / 6))
    _has_all_headings(loaded.path)


def test_the_hybrids_first_search_is_that_of_the_preset() -> None:
    hybrid, preset = (load_config(CONFIGS / f"{name}.yaml").config for name in ("evollm_jp_hybrid", "evollm_jp_a"))
    assert hybrid.first is not None
    assert (hybrid.first.space, hybrid.first.search) == (preset.space, preset.search)
    assert (hybrid.models, hybrid.evaluators, hybrid.objectives) == (
        preset.models,
        preset.evaluators,
        preset.objectives,
    )
    flow = load_config(CONFIGS / "evollm_jp_dfs.yaml").config
    assert hybrid.space.data_flow is not None and flow.space.data_flow is not None
    assert hybrid.space.data_flow.model_copy(update={"models": flow.space.data_flow.models}) == flow.space.data_flow
    assert flow.evaluators == preset.evaluators


@pytest.mark.parametrize(
    ("right", "shown"), [(130, "52.0 [45.8, 58.1]"), (131, "52.4 [46.2, 58.5]"), (75, "30.0 [24.7, 35.9]")]
)
def test_published_intervals_are_wilsons(right: int, shown: str) -> None:
    low, high = wilson(right, 250)
    assert f"{100 * right / 250:.1f} [{100 * low:.1f}, {100 * high:.1f}]" == shown
    texts = [(CONFIGS / f"{name}.yaml").read_text(encoding="utf-8") for name in ("evollm_jp_ps", "evollm_jp_a")]
    assert any(shown in text for text in texts)


def test_the_evaluator_asks_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt, stop words, splits and the way to read a number, from a hub that is played here."""
    import datasets

    rows = {
        "SakanaAI/gsm8k-ja-test_250-1319": [{"question": f"問{at}", "answer_number": at} for at in range(250, 1319)],
        "sbintuitions/MGSM_ja": [{"question": f"問{at}", "answer_number": at} for at in range(250)],
    }

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> object:
        return datasets.Dataset.from_list(rows[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_config(CONFIGS / "evollm_jp_a.yaml")
    kind, given = loaded.evaluator_options("mgsm_ja")
    assert kind == "exact_match"
    assert given["language"].code == "ja" and given["language"].fasttext.name == "lid.176.ftz"
    options = ExactMatchOptions.model_validate({**given, "language": None})
    evaluator = ExactMatch(options)
    assert {split: len(evaluator.items(split)) for split in ("search", "selection", "holdout")} == {
        "search": 869, "selection": 200, "holdout": 250
    }  # fmt: skip
    template = options.prompt.template
    assert template.endswith("一歩一歩考えましょう。\n\n### 指示:\n{question}\n\n### 応答:")
    assert options.stop == ("Instruction:", "Instruction", "Response:", "Response")
    assert (options.extract, options.max_new_tokens) == ("sakana-compat", 1024)
    assert [metric.name for metric in evaluator.metrics] == ["accuracy", "accuracy_last_number"]


def test_the_minis_search_as_the_presets_do() -> None:
    for name in PRESETS:
        large, small = load_config(CONFIGS / f"{name}.yaml"), load_config(CONFIGS / f"{name}_mini.yaml")
        assert small.config.name == f"{large.config.name}-mini"
        for key in ("coefficient", "density", "kinds", "shared_density", "normalize", "method_kinds", "methods"):
            assert getattr(small.config.space, key) == getattr(large.config.space, key), key
        one, two = small.config.search, large.config.search
        assert (one.optimizer.name, one.per_expert_share) == (two.optimizer.name, two.per_expert_share)
        assert (one.fidelity.rule, one.fidelity.minibatch) == (two.fidelity.rule, two.fidelity.minibatch)
        differing = {key for key, value in two.optimizer.options.items() if one.optimizer.options[key] != value}
        assert differing <= {"popsize", "prescreen"}


def test_the_minis_genes() -> None:
    tied = decoder(4, tied=True)
    for name, genes in (("evollm_jp_ps", 6), ("evollm_jp_a", 6), ("evollm_jp_ps_layerwise", 30), ("lfs_112", 30)):
        stage = full_stage(load_config(CONFIGS / f"{name}_mini.yaml"), tied)
        assert len(stage.space.genes) == genes
        assert (
            Counter(gene.role for gene in stage.space.genes)["coefficient"]
            == {6: 3, 30: {"lfs_112": 18}.get(name, 15)}[genes]
        )
