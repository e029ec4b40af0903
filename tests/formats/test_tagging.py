"""Quantisers speak, whoever watches a run hears."""

import torch

from lightning_effnn.formats import FixedPoint
from lightning_effnn.formats.tagging import listeners, simulated, tag


class Hears:
    def __init__(self):
        self.simulated, self.heard = 0, []

    def tag(self, tensor, number_format):
        self.heard.append((tensor, number_format, self.simulated))


def test_every_listener_hears_and_knows_what_is_simulated(monkeypatch):
    first, second = Hears(), Hears()
    monkeypatch.setattr("lightning_effnn.formats.tagging.listeners", [first, second])
    x, int8 = torch.ones(2), FixedPoint(8)
    assert tag(x, int8) is x
    with simulated(), simulated():
        tag(x, int8)
    assert first.heard == second.heard == [(x, int8, 0), (x, int8, 2)]
    assert first.simulated == second.simulated == 0


def test_an_exception_ends_what_is_simulated(monkeypatch):
    hears = Hears()
    monkeypatch.setattr("lightning_effnn.formats.tagging.listeners", [hears])
    try:
        with simulated():
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert hears.simulated == 0


def test_nobody_listens_by_default():
    assert listeners == []
