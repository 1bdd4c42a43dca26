"""Order statistics of streamed scores are those of the sorted scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.quantiles import order_statistics

AWKWARD = [0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1.7e308, -1.7e308, np.inf, -np.inf, 1.0 + 2**-52, 1.0 + 2**-20]


class Stream:
    """Scores in pieces; counts how often it was asked."""

    def __init__(self, values: np.ndarray, size: int = 7) -> None:
        self.values, self.size, self.passes = values, size, 0

    def __call__(self) -> Iterator[np.ndarray]:
        self.passes += 1
        for start in range(0, len(self.values), self.size):
            yield self.values[start : start + self.size]


@settings(deadline=None, max_examples=80, derandomize=True, database=None)
@given(
    st.lists(st.sampled_from(AWKWARD) | st.floats(allow_nan=False), min_size=1, max_size=60),
    st.sampled_from([1, 3, 10**6]),
)
def test_every_position_of_any_numbers(values: list[float], gathered: int) -> None:
    array = np.array(values)
    positions = range(len(values))
    found = order_statistics(Stream(array), len(values), positions, gathered)
    assert found == tuple(float(each) for each in np.sort(array))


@pytest.mark.parametrize("seed", range(3))
def test_many_numbers_with_little_memory(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.concatenate([random.standard_normal(20_000), random.integers(-2, 3, 20_000) * 0.25, np.zeros(5_000)])
    positions = [0, 1, 11_250, 22_500, 33_750, len(values) - 1]
    wanted = np.sort(values)[positions]
    stream = Stream(values, 4096)
    assert order_statistics(stream, len(values), positions, gathered=2_000) == tuple(wanted)
    assert stream.passes <= 5 * len(positions)


def test_equal_numbers_need_no_memory() -> None:
    """More of them than may be gathered: every bit is looked at, and nothing is gathered."""
    stream = Stream(np.full(1000, -0.1))
    assert order_statistics(stream, 1000, [500], gathered=1) == (-0.1,)
    assert stream.passes == 4


def test_small_ones_are_read_once_and_their_arrays_left_alone() -> None:
    values = np.array([3.0, 1.0, 2.0])
    stream = Stream(values, 3)
    assert order_statistics(stream, 3, [2, 0, 2]) == (3.0, 1.0, 3.0)
    assert stream.passes == 1 and values.tolist() == [3.0, 1.0, 2.0]
    assert order_statistics(stream, 3, []) == ()
