"""``paretomerge check``."""

from __future__ import annotations

from search.cli.options import ConfigArgument, SetOption


def check(config: ConfigArgument, set: SetOption = None) -> None:
    """Check a config, its models and its data, without starting anything.

    All errors of the file come at once, each with its line and column.
    """
    from search.calibration import calibrated, options_of, settings_of
    from search.config import load_config
    from search.racing import Racer
    from search.setup import set_up, stages_of
    from search.virtual import members

    loaded = load_config(config, set or [])
    setup = set_up(loaded, make=False)
    stages = stages_of(loaded.config, setup)
    print(f"{config}: good")
    print(f"  models      base and {', '.join(loaded.config.models.experts)}")
    for name, virtual in loaded.config.models.virtual.items():
        print(f"  virtual     {name}: {virtual.method} of {', '.join(members(virtual, loaded.config))}")
    for alias in calibrated(loaded.config):
        options = options_of(loaded.config, alias)
        whence = f"the evaluator {options.evaluator}" if options.data is None else "data of its own"
        print(f"  calibration {alias}: {settings_of(loaded.config).items} inputs at most, from {whence}")
    for name, evaluator in setup.evaluators.items():
        counts = ", ".join(f"{len(evaluator.items(split))} {split}" for split in ("search", "selection", "holdout"))
        print(f"  evaluator   {name}: {', '.join(each.name for each in evaluator.metrics)}; items: {counts}")
    print(f"  objectives  {', '.join(setup.objectives.names)}")
    for each in setup.constraints.names:
        print(f"  constraint  {each}")
    rungs = Racer(setup.evaluators, setup.objectives, loaded.config.search.fidelity).rungs
    sizes = [sum(len(ids) for ids in rung.values()) for rung in rungs]
    print(f"  rungs       {', '.join(str(sum(sizes[: place + 1])) for place in range(len(sizes)))} items")
    print(f"  optimizer   {loaded.config.search.optimizer.name}")
    budget = loaded.config.search.budget.candidates
    start = 0
    for stage in stages:
        end = min(budget, budget if stage.end is None else stage.end)
        box = stage.space.box
        genes = f"{box.continuous} continuous and {len(box.categories)} categorical genes"
        print(f"  stage       {stage.name}: {end - start} candidates" + ("" if stage.fixed else f", {genes}"))
        start = end
