"""Where things lie: the published cards and model sizes by hand, and what must hold whatever the sizes."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from merging.arena import choose
from merging.sizes import ModelSizes, Widths, widths_of
from search import placement
from search.placement import GB, Machine, Placement, Work, activations, assumed, keys_and_values, logits, place

RAY = Work(shared=True)


def where(found: Placement) -> dict[str, str]:
    return {part.what: part.where for part in found.parts}


def size(found: Placement, what: str) -> int:
    return sum(part.size for part in found.parts if part.what == what)


# Weights in bfloat16: 7 B are 14 GB, 14 B are 28 GB; base and three experts are four of those.
@pytest.mark.parametrize(
    ("devices", "billions", "host", "workers", "gpus", "sources"),
    [
        # 14 + 1 of 24 GB: one worker on each card; four models do not fit beside it; 56 of 128 GB do, once.
        ((24, 24), 7, 128, 2, 1, "shared"),
        # The same with 64 GB: 56 are more than four fifths of 62.
        ((24, 24), 7, 64, 2, 1, "files"),
        # 28 GB need both cards, 15 to 17 on each; 112 GB are more than four fifths of 127, and less than of 255.
        ((24, 24), 14, 128, 1, 2, "files"),
        ((24, 24), 14, 256, 1, 2, "shared"),
        # 80 - 1 - 14 = 65, of which 56 are more than four fifths: main memory.
        ((80,), 7, 128, 1, 1, "shared"),
        ((80,), 14, 128, 1, 1, "files"),
        ((80,), 14, 256, 1, 1, "shared"),
        # 141 - 1 - 14 = 126: base and experts lie beside the live model.
        ((141,), 7, 64, 1, 1, "device"),
    ],
)
def test_where_base_experts_and_live_model_lie(
    devices: tuple[int, ...], billions: int, host: int, workers: int, gpus: int, sources: str
) -> None:
    found = place(assumed(billions * 10**9, 3, 2), Machine(tuple(each * GB for each in devices), host * GB), RAY)
    assert found.fits and not found.remedies
    assert (found.workers, found.gpus) == (workers, gpus)
    assert where(found)["live model"] == "device" and size(found, "live model") == billions * 2 * GB
    for what in ("base", "expert 1", "expert 2", "expert 3"):
        assert where(found)[what] == sources and size(found, what) == billions * 2 * GB
    assert found.device_left is not None and found.device_left >= 0 and found.host_left >= 0


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    fourteen = assumed(14 * 10**9, 3, 2)
    one = place(fourteen, Machine((24 * GB,), 256 * GB), RAY)
    assert not one.fits
    assert "one device" in one.problem and "24 GB" in one.problem
    assert any("2 devices of 24 GB" in each and "gpus: 2" in each for each in one.remedies)
    assert not any("dtype" in each or "bit" in each for each in one.remedies)
    # Each remedy is one: the devices that it names are enough.
    assert place(fourteen, Machine((24 * GB,) * 2, 256 * GB), replace(RAY, gpus=2)).fits
    large = next(each for each in one.remedies if each.startswith("a device of"))
    needed = float(large.split()[3])
    assert place(fourteen, Machine((int(needed * GB),), 256 * GB), RAY).fits
    assert not place(fourteen, Machine((int((needed - 0.2) * GB),), 256 * GB), RAY).fits


def test_a_config_that_gives_a_worker_one_device_is_told_to_give_it_two() -> None:
    found = place(assumed(14 * 10**9, 3, 2), Machine((24 * GB,) * 2, 256 * GB), replace(RAY, gpus=1.0))
    assert not found.fits and "of which" not in "".join(found.remedies) and "gpus: 2" in found.remedies[0]


def test_more_devices_than_there_are() -> None:
    found = place(assumed(10**9, 1, 2), Machine((24 * GB,) * 2, 64 * GB), replace(RAY, gpus=4.0))
    assert not found.fits and "this machine has 2" in found.problem


def test_workers_that_share_a_device_take_their_share() -> None:
    two = place(assumed(10**9, 2, 2), Machine((24 * GB,), 64 * GB), replace(RAY, gpus=0.5))
    four = place(assumed(10**9, 2, 2), Machine((24 * GB,), 64 * GB), replace(RAY, gpus=0.25))
    assert (two.workers, four.workers) == (2, 4)
    crowded = place(assumed(7 * 10**9, 2, 2), Machine((24 * GB,), 128 * GB), replace(RAY, gpus=0.5))
    assert not crowded.fits and any("a whole device" in each for each in crowded.remedies)


def test_on_cpus_every_worker_has_a_live_model_and_all_share_the_sources() -> None:
    seven = assumed(7 * 10**9, 3, 2)
    one = place(seven, Machine((), 128 * GB), Work())
    assert one.fits and where(one)["base"] == "host" and one.device_left is None
    # 128 - 1 - 14 = 113, of which 56 are kept: 57 are left for what one candidate takes.
    assert one.host_left == 57 * GB - size(one, "keys and values") - size(one, "activations") - size(one, "logits")
    two = place(seven, Machine((), 128 * GB), replace(RAY, workers=2))
    assert two.fits and where(two)["base"] == "shared"
    # Of four private copies each there would be 112 GB, and 98 are left of 128 beside two live models.
    private = place(seven, Machine((), 128 * GB), Work(workers=2))
    assert where(private)["base"] == "files"
    crowd = place(seven, Machine((), 64 * GB), replace(RAY, workers=8))
    assert not crowd.fits and "main memory" in crowd.problem
    fewer = next(each for each in crowd.remedies if "count:" in each)
    count = int(fewer.split("count: ")[1].rstrip("})"))
    assert place(seven, Machine((), 64 * GB), replace(RAY, workers=count)).fits
    assert not place(seven, Machine((), 64 * GB), replace(RAY, workers=count + 1)).fits


def test_an_engine_with_weights_of_its_own_needs_them_twice() -> None:
    seven = assumed(7 * 10**9, 3, 2)
    once = place(seven, Machine((24 * GB,), 128 * GB), Work())
    twice = place(seven, Machine((24 * GB,), 128 * GB), Work(own_weights=True))
    assert once.fits and not twice.fits
    assert size(twice, "the engine's own copy of it") == 14 * GB


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    found = place(assumed(7 * 10**9, 3, 2), Machine((24 * GB,), 128 * GB), Work())
    assert found.asked_tokens == 16384 and found.fits
    assert 16384 % found.batch_tokens == 0 and found.batch_tokens < 16384
    spare = size(found, "keys and values") + size(found, "activations") + size(found, "logits")
    double = place(assumed(7 * 10**9, 3, 2), Machine((24 * GB,), 128 * GB), Work(batch_tokens=2 * found.batch_tokens))
    assert double.batch_tokens == found.batch_tokens  # that much did not fit
    assert found.device_left is not None and found.device_left < spare * 1.1


def test_the_formulas_by_hand() -> None:
    """Llama 2 7B in bfloat16: half a megabyte of keys and values a token."""
    llama = Widths(layers=32, keys=32 * 128, hidden=4096, intermediate=11008, vocabulary=32000)
    assert keys_and_values(llama, 1, 2) == 524_288
    assert keys_and_values(replace(llama, keys=8 * 128), 4096, 2) == 512 * 2**20
    assert activations(llama, 1000, 2) == 1000 * (6 * 4096 + 4 * 11008) * 2
    assert logits(llama, 10, 2) == 10 * 32000 * 6
    assert logits(llama, 10**6, 2) == 2**27 * 6  # no more exist at once


def test_what_is_reckoned_is_what_the_engine_does() -> None:
    from evaluators.engines import forward, hf, scoring

    assert placement.GENERATION == hf._GENERATION
    assert {"cpu": forward._BATCH_TOKENS["cpu"], "device": forward._BATCH_TOKENS_ELSEWHERE} == placement.BATCH_TOKENS
    assert placement.LOGITS == scoring.LOGITS


def test_without_widths_the_weights_alone_are_placed() -> None:
    sizes = replace(assumed(7 * 10**9, 3, 2), widths=None)
    found = place(sizes, Machine((24 * GB,), 128 * GB), Work())
    assert found.fits and "keys and values" not in where(found)


SIZES = st.builds(
    lambda billions, experts, itemsize: assumed(billions * 10**8, experts, itemsize),
    st.integers(1, 700),
    st.integers(1, 8),
    st.sampled_from([2, 4]),
)
MACHINES = st.builds(
    lambda count, device, host: Machine((device * GB,) * count, host * GB),
    st.integers(0, 8),
    st.integers(8, 192),
    st.integers(8, 2000),
)
WORKS = st.builds(
    Work,
    batch_tokens=st.none() | st.integers(64, 100_000),
    longest=st.integers(1, 32768),
    workers=st.none() | st.integers(1, 8),
    gpus=st.none() | st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]),
    shared=st.booleans(),
)


@settings(max_examples=40)
@given(sizes=SIZES, machine=MACHINES, work=WORKS)
def test_what_is_said_to_fit_does(sizes: ModelSizes, machine: Machine, work: Work) -> None:
    """By adding up the parts again, from what the answer says alone."""
    found = place(sizes, machine, work)
    if not found.fits:
        assert found.problem
        return
    assert found.workers >= 1
    copies = 1 if work.shared else found.workers
    on_host = sum(
        part.size * (copies if part.what in ("base", *(f"expert {each}" for each in sizes.sources)) else found.workers)
        for part in found.parts
        if part.where in ("host", "shared")
    )
    assert on_host <= machine.host and found.host_left == machine.host - on_host
    if machine.devices:
        each_worker = sum(part.size for part in found.parts if part.where == "device")
        assert each_worker * found.workers <= sum(machine.devices)
        assert found.workers * found.gpus <= len(machine.devices) + 1e-9


@settings(max_examples=40)
@given(sizes=SIZES, machine=MACHINES)
def test_sources_lie_where_a_run_would_put_them(sizes: ModelSizes, machine: Machine) -> None:
    found = place(sizes, machine, replace(RAY, gpus=1.0))
    needed = sum(sizes.sources.values())
    if machine.devices:
        free = machine.devices[0] - placement.CONTEXT - sizes.live
        host = machine.host - len(machine.devices) * placement.PROCESS
        assert where(found)["base"] == choose("shared", needed, max(0, host), [(needed, max(0, free))])
    else:
        free = machine.host - placement.PROCESS - sizes.live
        assert where(found)["base"] == choose("shared", needed, max(0, free))


def test_assumed_families_have_the_shape_of_published_ones() -> None:
    """Llama 7B: 32 blocks of 4096; 13B: 40 of 5120; 70B: 80 of 8192 (narrower, with grouped keys)."""
    for billions, layers in ((6.7, 32), (13.0, 40)):
        widths = assumed(int(billions * 1e9), 1, 2).widths
        assert widths is not None and abs(widths.layers - layers) <= 1
        assert widths.hidden == 128 * widths.layers


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def _freed(self, address: int, size: int) -> None:
        self.now -= size
        self._seen.discard(address)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(each, torch.Tensor):
                continue
            storage = each.untyped_storage()
            if storage._cdata in self._seen or not storage.nbytes():
                continue
            if any(isinstance(a, torch.Tensor) and a.untyped_storage()._cdata == storage._cdata for a in args):
                continue
            self._seen.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return result


GPT2 = {
    "n_embd": 128,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 64,
    "n_positions": 512,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
LLAMA = {"hidden_size": 128, "num_attention_heads": 8, "vocab_size": 64, "max_position_embeddings": 512}


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**LLAMA, intermediate_size=344, num_hidden_layers=4, num_key_value_heads=2),
        LlamaConfig(**LLAMA, intermediate_size=512, num_hidden_layers=2, num_key_value_heads=8),
        GPT2Config(**GPT2),
    ],
    ids=["grouped", "wide", "gpt2"],
)
def test_the_formulas_are_what_a_forward_pass_takes(config: Any, cache: bool) -> None:
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    ids = torch.randint(2, 64, (4, 500), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), PeakMemory() as memory:
        model(input_ids=ids, use_cache=cache, logits_to_keep=1)
    widths = widths_of(config)
    reckoned = activations(widths, 2000, 2) + (keys_and_values(widths, 2000, 2) if cache else 0)
    assert 0.65 * reckoned < memory.peak <= 1.02 * reckoned
