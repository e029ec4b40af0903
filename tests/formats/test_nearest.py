"""The table and the search give the level that brute force finds."""

import pickle

import pytest
import torch

from lightning_effnn.formats import RecentralizedPowerOfTwo
from lightning_effnn.formats._nearest import Cells, Search, find_nearest

LEVELS = (-3.0, -1.0, 0.0, 0.5, 2.0)


def by_hand(x):
    x = float(x)
    best = min(abs(level - x) for level in LEVELS)
    return max(level for level in LEVELS if abs(level - x) == best)


def lookup(cell):
    return find_nearest(LEVELS, cell, 1.0, torch.tensor([*LEVELS, torch.nan]))


@pytest.mark.parametrize(("cell", "kind"), [(0.25, Cells), (2.0**-12, Search)])
def test_the_nearest_level_is_found_and_ties_go_up(cell, kind):
    find = lookup(cell)
    assert isinstance(find, kind)
    x = torch.cat([torch.linspace(-5, 5, 401), torch.tensor([-2.0, -0.5, 0.25, 1.25, 1.25 - 2**-23])])
    assert find(x).tolist() == [by_hand(value) for value in x]


@pytest.mark.parametrize("cell", [0.25, 2.0**-12])
def test_nan_has_an_answer_of_its_own_and_infinities_saturate(cell):
    found = lookup(cell)(torch.tensor([torch.nan, torch.inf, -torch.inf, 1e38, -1e38]))
    assert found[0].isnan()
    assert found[1:].tolist() == [2.0, -3.0, 2.0, -3.0]


def test_shapes_stay_and_tables_survive_pickling():
    find = pickle.loads(pickle.dumps(lookup(0.25)))
    assert find(torch.zeros(2, 0, 3)).shape == (2, 0, 3)
    assert find(torch.ones(2, 3, dtype=torch.float16)).shape == (2, 3)


@pytest.mark.parametrize("number_format", [RecentralizedPowerOfTwo(5), RecentralizedPowerOfTwo(7, -4.0, 2.0, 8.0)])
def test_a_rounder_does_what_quantize_does(number_format):
    x = torch.cat([torch.randn(1000) * 3, torch.tensor([0.0, -0.0, torch.inf])])
    assert torch.equal(number_format.rounder(x.device)(x), number_format.quantize(x))
