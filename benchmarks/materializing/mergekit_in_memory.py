"""Candidates by mergekit's in-memory API, run by the interpreter of its environment: the nearest it has to a search.

    python mergekit_in_memory.py CONFIG.yaml ROUNDS RESULT.json

As its own evolutionary search does it: the graph is planned, is executed, and every tensor that it yields is copied
into a parameter that is there already. Files are mapped, and their pages are in memory, before the first round; weights
and densities change from round to round. ``MergePlanner.plan_in_memory`` itself raises a TypeError in 0.1.5 for every
merge method (``ReturnTensor`` refuses the type of their tasks), so the planned tasks are executed without that wrapper.
"""

import json
import sys
import time
from pathlib import Path

import torch
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner


def main() -> None:
    data, rounds = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2])
    torch.set_num_threads(1)
    options = MergeOptions(quiet=True)
    LoaderCache().setup(options=options)
    live: dict[str, torch.Tensor] = {}
    times = []
    for number in range(rounds + 1):  # the first allocates the parameters and is not counted
        for model in data["models"]:
            for name in model["parameters"]:
                model["parameters"][name] = 0.2 + (0.5 * model["parameters"][name] + 0.13 * number) % 0.6
        busy, wall = time.process_time(), time.perf_counter()
        _candidate(data, options, live)
        times.append([time.process_time() - busy, time.perf_counter() - wall])
    Path(sys.argv[3]).write_text(json.dumps(times[1:]), encoding="utf-8")


@torch.no_grad()
def _candidate(data: dict, options: MergeOptions, live: dict[str, torch.Tensor]) -> None:
    config = MergeConfiguration.model_validate(data)
    architecture = get_architecture_info(config, options)
    cache = LoaderCache()
    for model in config.referenced_models():
        cache.get(model)
    planner = MergePlanner(config, architecture, options=options, out_model_config=config.base_model.config())
    planner._plan()
    names = {task: weight.name for weight, task in planner._tensors}
    for task, tensor in Executor(list(names), math_device="cpu", storage_device="cpu").run(quiet=True):
        name = names[task]
        if name in live:
            live[name].copy_(tensor)
        else:
            live[name] = tensor.clone()


if __name__ == "__main__":
    main()
