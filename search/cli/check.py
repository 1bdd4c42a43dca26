"""``paretomerge check``."""

from __future__ import annotations

from search.cli.options import ConfigArgument, SetOption


def check(config: ConfigArgument, set: SetOption = None) -> None:
    """Check a config, its models and its data, without starting anything.

    All errors of the file come at once, each with its line and column.
    """
    from search.config import load_config
    from search.setup import set_up
    from search.stages import build_stages

    loaded = load_config(config, set or [])
    setup = set_up(loaded)
    stages = build_stages(loaded.config, setup.sources.layout.groups, setup.sources.refs)
    print(f"{config}: good")
    print(f"  models      base and {', '.join(loaded.config.models.experts)}")
    for name, evaluator in setup.evaluators.items():
        counts = ", ".join(f"{len(evaluator.items(split))} {split}" for split in ("search", "selection", "holdout"))
        print(f"  evaluator   {name}: {', '.join(each.name for each in evaluator.metrics)}; items: {counts}")
    print(f"  objectives  {', '.join(setup.objectives.names)}")
    budget = loaded.config.search.budget.candidates
    start = 0
    for stage in stages:
        end = min(budget, budget if stage.end is None else stage.end)
        box = stage.space.box
        genes = f"{box.continuous} continuous and {len(box.categories)} categorical genes"
        print(f"  stage       {stage.name}: {end - start} candidates" + ("" if stage.fixed else f", {genes}"))
        start = end
