"""Intervals that are told as one have the same levels at their ends, and the same highest point, as one by one."""

import numpy as np
import pytest

from autopeft.costs.curve import Bytes, Curve
from autopeft.costs.grid import Grid
from autopeft.costs.share import BACKWARD, NOWHERE

STARTS, N_STRETCHES = (0, 1, 4, 5), 8


def curve(seed: int, *, there: tuple[int, ...] = tuple(range(N_STRETCHES)), least: int = -9) -> Curve:
    """Return random bytes in some of the intervals; none ends above its highest point."""
    draw = np.random.default_rng(seed)
    net, high = np.zeros((3, N_STRETCHES)), np.zeros((3, N_STRETCHES))
    net[:, there] = draw.integers(least, 9, (3, len(there)))
    high[:, there] = np.maximum(net[:, there], 0) + draw.integers(0, 9, (3, len(there)))
    return Curve(net=net, high=high, flops=np.ones((2, 3, N_STRETCHES)))


def highest(net: Bytes, high: Bytes) -> Bytes:
    """Return the highest point of each pass, from its beginning on."""
    tops = []
    for number, (left, top) in enumerate(zip(net, high, strict=True)):
        order = slice(None, None, -1) if number == BACKWARD else slice(None)
        tops.append((left[order].cumsum() - left[order] + top[order]).max())
    return np.array(tops)


@pytest.mark.parametrize("seed", range(5))
def test_a_model_has_the_same_levels_and_highest_points(seed: int) -> None:
    fine = curve(seed)
    told, growth = Grid(STARTS, N_STRETCHES).told(fine, fine)
    assert np.array_equal(highest(told.net, told.high), highest(fine.net, fine.high))
    assert np.array_equal(told.net.sum(axis=1), fine.net.sum(axis=1))
    assert told.flops[0, 0].tolist() == [1, 3, 1, 3]
    assert np.array_equal(growth.high, told.high)  # what grows in all its parts does at the highest point


@pytest.mark.parametrize("seed", range(5))
def test_a_model_and_a_block_go_as_high_as_their_sum(seed: int) -> None:
    # A block that frees something in a interval may lower the model's highest point there: that is not counted.
    grid, own, block = Grid(STARTS, N_STRETCHES), curve(seed), curve(seed + 100, there=(2, 3, 5), least=0)
    told, _ = grid.told(own, own)
    added, _ = grid.added(block, block, (own, own), grid.told(own, own))
    both = highest(own.net + block.net, own.high + block.high)
    assert np.array_equal(highest(told.net + added.net, told.high + np.maximum(added.high, 0)), both)


def test_a_block_counts_where_it_is() -> None:
    grid, own, block = Grid(STARTS, N_STRETCHES), curve(1), curve(2, there=(5,))
    added, growth = grid.added(block, block, (own, own), grid.told(own, own))
    assert (added.high[:, :3] == NOWHERE).all()
    assert (added.high[:, 3] > NOWHERE).all()
    assert (growth.high[:, :3] == 0).all()
