"""Whether the models fit into the memory that is free now, by the same arithmetic as ``paretomerge plan``."""

from __future__ import annotations

from dataclasses import replace

import torch

from merging.memory import free_memory, free_on
from merging.sizes import ModelSizes
from search.checks.subject import Subject
from search.path_memory import in_memory
from search.placement import Machine, Work, place
from search.virtual import evolved, made_of


def check_memory(subject: Subject, sizes: ModelSizes, device: str) -> None:
    """Warn where base, experts, live model and what it takes to run it will not fit. What lies elsewhere, on a cluster,
    is not judged.

    Args:
        subject: the config.
        sizes: of its models.
        device: one that is here.
    """
    config = subject.config
    if config.workers.address is not None or not config.engine.device.startswith(torch.device(device).type):
        return
    ray = config.workers.kind == "ray"
    on_gpus = torch.device(device).type == "cuda"
    numbers = range(torch.cuda.device_count()) if ray and on_gpus else [torch.device(device).index or 0]
    devices = tuple(free_on(torch.device("cuda", number)) for number in numbers) if on_gpus else ()
    made = dict.fromkeys(made_of(config), 4 * sizes.parameters)  # float32
    made |= dict.fromkeys(evolved(config), sizes.live)
    work = Work(
        batch_tokens=config.engine.batch_tokens,
        workers=config.workers.count if ray else 1,
        gpus=(config.workers.gpus or 1.0) if ray else 1.0,
        own_weights=config.engine.kind == "vllm",
        shared=ray,
    )
    sizes = in_memory(config, replace(sizes, sources={**sizes.sources, **made}))
    found = place(sizes, Machine(devices, free_memory()), work)
    if not found.fits:
        subject.findings.warn(
            ("models",),
            f"{found.problem}. What would do: {'; or '.join(found.remedies)}; `paretomerge plan` shows what lies where",
            at_key=True,
        )
