"""A stranger's parts: whatever is wrong with them is one paragraph, and no memory is taken for what they claim."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from codec_pairs import bits, gaussian
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.files import TensorInfo
from merging.recipe import MergingError
from merging.vectors.codec import CODECS, Encoded, decode, encode
from merging.vectors.frames import Frames, pack

SHAPE = (12, 20)
INFO = TensorInfo(torch.float32, SHAPE, "vector-00001-of-00001.safetensors")
DAMAGED = "a tensor of the vector is damaged, or not what it is said to be: expected "

OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "bf16": {},
    "uniform": {"error": 0.05},
    "topk": {"density": 0.3},
    "seeded": {"density": 0.4},
    "svd": {"rank": 3},
    "onebit": {},
}


def encoded(codec: str) -> tuple[Encoded, Tensor]:
    base, delta = gaussian(SHAPE)
    return encode("a", base, base + delta, codec, **OPTIONS[codec]), base


def frame(data: bytes, **options: Any) -> Tensor:
    """A part of one frame."""
    found = zstandard.ZstdCompressor(**options).compress(data)
    return torch.from_numpy(np.frombuffer(len(found).to_bytes(8, "little") + found, dtype=np.uint8).copy())


@pytest.mark.parametrize("codec", OPTIONS)
def test_parts_of_another_shape_are_refused_before_they_are_unpacked(codec: str) -> None:
    found, _ = encoded(codec)
    for shape in ((12, 21), (13, 20), (4, 5), (), (12, 20, 2), (0, 20), (1 << 40, 20)):
        if codec == "topk" and shape in ((12, 21), (13, 20), (12, 20, 2)):
            continue  # holds no number for every element: these may be there as well as not
        info = TensorInfo(torch.float32, shape, "")
        with pytest.raises(MergingError, match=DAMAGED):
            change = decode(info, codec, found.parameters, found.tensors)
            assert codec in ("topk", "seeded"), "told when it is decoded, not when it composes"
            change.compose(torch.zeros(12, 20))


@pytest.mark.parametrize("codec", OPTIONS)
def test_parameters_and_parts_are_those_of_the_codec(codec: str) -> None:
    found, _ = encoded(codec)
    for parameters in ({**found.parameters, "more": 1}, dict(list(found.parameters.items())[1:])):
        if parameters != found.parameters:
            with pytest.raises(MergingError, match=f"{DAMAGED}the parameters"):
                decode(INFO, codec, parameters, found.tensors)
    for parameter in found.parameters:
        for value in (None, "", -1, 0, 1e400, float("nan"), [], {}, "float32 ", 10**30):
            if (parameter, value) in (("key", -1), ("key", 0), ("step", 10**30)):
                continue
            with pytest.raises(MergingError, match=DAMAGED):
                decode(INFO, codec, {**found.parameters, parameter: value}, found.tensors)  # type: ignore[dict-item]
    with pytest.raises(MergingError, match=f"{DAMAGED}the parts"):
        decode(INFO, codec, found.parameters, {})
    with pytest.raises(MergingError, match=f"{DAMAGED}the parts"):
        decode(INFO, codec, found.parameters, {**found.tensors, "more": torch.zeros(1)})
    for part, tensor in found.tensors.items():
        for other in (tensor[:-1], torch.cat([tensor, tensor]), tensor.double(), tensor[None], torch.zeros(0)):
            with pytest.raises(MergingError, match=DAMAGED):
                decode(INFO, codec, found.parameters, {**found.tensors, part: other})


def test_codecs_and_dtypes_that_are_none() -> None:
    for codec in ("zip", "", None, 3, "__class__"):
        with pytest.raises(MergingError, match=f"{DAMAGED}one of the codecs"):
            decode(INFO, codec, {}, {})  # type: ignore[arg-type]
    for codec in OPTIONS:
        if codec != "exact":
            found, _ = encoded(codec)
            with pytest.raises(MergingError, match=f"{DAMAGED}floating-point numbers"):
                decode(TensorInfo(torch.int32, SHAPE, ""), codec, found.parameters, found.tensors)
    assert OPTIONS.keys() | {"equal", "factored"} == CODECS.keys()


def test_bombs_are_not_unpacked() -> None:
    """Frames of a gigabyte of zeros, in kilobytes; and frames that lie about their size."""
    bomb = frame(bytes(1 << 28))
    size = 4 * 240
    lies = bytearray(frame(bytes(size)).numpy().tobytes())
    cases = {
        f"{size} bytes in frame 0, found {1 << 28}": bomb,
        "a frame that states its size": frame(bytes(1 << 20), write_content_size=False),
        "a Zstandard frame": torch.arange(200, dtype=torch.uint8),
        "1 frames, found 0": torch.zeros(0, dtype=torch.uint8),
        f"1 frames in {2 * len(lies)} bytes": torch.frombuffer(lies + lies, dtype=torch.uint8),
        f"1 frames in {len(lies) - 1} bytes": torch.frombuffer(lies, dtype=torch.uint8)[:-1],
    }
    tracemalloc.start()
    for told, part in cases.items():
        if told == "a Zstandard frame":
            part = torch.cat([torch.tensor([192, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8), part[:192]])
        with pytest.raises(MergingError, match=told):
            decode(INFO, "exact", {"form": "xor"}, {"frames": part})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("stated", [956, 964])
def test_frames_that_hold_another_number_of_bytes_than_they_state(stated: int) -> None:
    """960 bytes, and the size in the frame's header changed: it is noticed when they are unpacked."""
    data = bytearray(frame(bytes(range(240)) * 4).numpy().tobytes())
    place = bytes(data).index((960 - 256).to_bytes(2, "little"), 8)  # as the format writes sizes of two bytes
    data[place : place + 2] = (stated - 256).to_bytes(2, "little")
    frames = Frames(torch.frombuffer(data, dtype=torch.uint8), 1)
    assert frames.sizes == [stated]
    with pytest.raises(MergingError, match=f"{DAMAGED}a Zstandard frame of {stated} bytes"):
        frames.unpack(0, np.dtype("<u4"), stated // 4)


@pytest.mark.parametrize("codec", OPTIONS)
@settings(deadline=None, max_examples=12, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
@given(st.data())
def test_any_damage_is_told_or_harmless(codec: str, data: st.DataObject) -> None:
    """Bytes changed anywhere: a paragraph, or a tensor of the right shape. Never another exception."""
    found, base = encoded(codec)
    tensors = {}
    for part, tensor in found.tensors.items():
        raw = bytearray(bits(tensor))
        for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
            raw[place] = data.draw(st.integers(0, 255))
        tensors[part] = torch.frombuffer(raw, dtype=tensor.dtype).reshape(tensor.shape)
    try:
        again = decode(INFO, codec, found.parameters, tensors).compose(base)
    except MergingError as error:
        assert str(error).startswith(DAMAGED)
        return
    assert again.shape == SHAPE and again.dtype == torch.float32


def test_positions_beyond_the_tensor_are_refused() -> None:
    found, base = encoded("topk")
    far = pack([np.full(72, 400, dtype="<u4")])
    change = decode(INFO, "topk", found.parameters, {"gaps": far, "kept": found.tensors["kept"]})
    with pytest.raises(MergingError, match="expected positions below 240, found 28871"):
        change.compose(base)
    many = pack([np.zeros(241, dtype="<u4")])
    with pytest.raises(MergingError, match="at most 240 positions"):
        decode(INFO, "topk", found.parameters, {"gaps": many, "kept": found.tensors["kept"]})
