import pytest
import torch
from torch import nn

from lightning_effnn import hardware
from lightning_effnn.hardware.engines import check_prices_operations, engine_for

LAYER = {"name": "l", "kind": "gemm", "K": 16, "C": 32}


@pytest.fixture(scope="module")
def trace():
    return hardware.trace(nn.Sequential(nn.Linear(32, 16), nn.ReLU()), torch.rand(1, 32))


@pytest.mark.parametrize("name", hardware.presets())
def test_an_engine_does_what_it_says_it_can(trace, name):
    chip = hardware.Accelerator.load(name)
    report = engine_for(chip).estimate(trace, chip)
    assert report.energy_uJ == hardware.estimate(trace, name).energy_uJ > 0
    if engine_for(chip).prices_operations:
        check_prices_operations(chip)
        assert hardware.estimate_layers([LAYER], chip).energy_uJ > 0
        assert float(hardware.EnergyModel(report).energy_uJ()) == pytest.approx(report.energy_uJ)
        return
    with pytest.raises(ValueError, match="needs a trace"):
        hardware.estimate_layers([LAYER], chip)
    with pytest.raises(ValueError, match=f"'{name}', which prices whole modules"):
        hardware.EnergyModel(report)
    with pytest.raises(ValueError, match="ask somebody else"):
        check_prices_operations(chip, "ask somebody else")


@pytest.mark.parametrize("name", hardware.presets())
def test_an_unknown_engine_is_refused_on_every_chip(trace, name):
    with pytest.raises(ValueError, match=r"engine='guess'.*'closed_form', 'zigzag'"):
        hardware.estimate(trace, name, engine="guess")


def test_a_chip_without_memories_has_no_use_for_a_mapper(trace):
    with pytest.raises(ValueError, match=r"engine='zigzag'.*'shumailov2021' has none"):
        hardware.estimate(trace, "shumailov2021", engine="zigzag")


def test_a_systolic_chip_has_the_simulators_cycles_in_a_trace_as_in_rows(trace):
    chip = hardware.Accelerator.systolic(8, 8, dataflow="os")
    traced = hardware.estimate(trace, chip).layers[0].cost.cycles
    assert traced == hardware.estimate_layers([LAYER], chip).rows()[0]["compute_cycles"]


def test_a_model_instead_of_its_trace_is_refused():
    with pytest.raises(TypeError, match=r"trace is a Linear.*hardware.trace"):
        hardware.estimate(nn.Linear(4, 4), "tpu_like")
