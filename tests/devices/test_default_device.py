"""What works on the host does so whatever device new tensors lie on by default."""

import pytest
import torch
from torch import nn

from lightning_effnn import pde
from lightning_effnn.compression import focus, focus_model_, load_compressed, save_compressed
from lightning_effnn.formats import FixedPoint, PowerOfTwo, RecentralizedPowerOfTwo
from lightning_effnn.modules import PDESolver
from lightning_effnn.quantization import coverage, quantize_
from lightning_effnn.robustness import DensityEnergy, sponge_genetic, sponge_pgd
from lightning_effnn.search import AdditiveSurrogate, Controller
from lightning_effnn.search.bits import BitSearch


@pytest.fixture(autouse=True)
def _everything_new_is_elsewhere(device):
    with torch.device(device):
        yield


def here(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), device="cpu")


def network(device="cpu"):
    return nn.Sequential(nn.Linear(8, 6, device=device), nn.ReLU(), nn.Linear(6, 2, device=device))


@pytest.mark.parametrize("number_format", [FixedPoint(8), PowerOfTwo(4), RecentralizedPowerOfTwo(5)], ids=str)
def test_formats(number_format):
    x = here(5)
    assert number_format.decode(number_format.encode(x)).device == x.device
    assert number_format.quantize(x).device == x.device


@pytest.mark.parametrize("place", ["cpu", "pretend:0"])
def test_compression(place, tmp_path):
    model = network(place)
    assert focus(model[0].weight, assignment="sampled").weight.device == torch.device(place)
    focus_model_(model, assignment="sampled")
    save_compressed(model, tmp_path / "m.effnn", other="int8")
    load_compressed(tmp_path / "m.effnn", network(place))


@pytest.mark.parametrize("place", ["cpu", "pretend:0"])
def test_quantisation_and_search(place):
    model, x = network(place), here(4, 8).to(place)
    quantize_(model, "W8A8")
    assert coverage(model, x).share == 1
    model = network(place)
    search = BitSearch(model, steps=3)
    search.survey(lambda: model(x))
    search.compare(lambda: model(x).square().mean().item())
    search.step(1.0)
    search.settle_()


def test_controllers_draw_where_they_are():
    controller = Controller({"width": (4, 8), "bits": (2, 4, 8)})
    gates = controller.sample()
    surrogate = AdditiveSurrogate(controller.options, features={"width": here(1, 2)})
    surrogate.observe(gates, 1.0)
    assert surrogate.expected(controller.probabilities).device == controller.logits[0].device
    controller.draw()


@pytest.mark.parametrize("place", ["cpu", "pretend:0"])
def test_attacks(place):
    model, x = network(place), here(3, 8).to(place)
    sponge_pgd(model, x, 0.1, 0.05, 2, random_start=True, objective="energy")
    assert sponge_genetic(DensityEnergy(model, x), x, 0.2, pool=4, generations=2).device == x.device


@pytest.mark.parametrize("encoding", [pde.PositionalEncoding(2), pde.FourierFeatures(3), pde.FactoredGrid(4, 2)],
                         ids=lambda encoding: type(encoding).__name__)  # fmt: skip
def test_fields_are_made_there_with_the_same_weights(encoding, device):
    problem = pde.Problem(pde.Box(x=(0, 1)), lambda u, c: u.xx + c.k * torch.sin(c.x), [pde.Dirichlet(0.0)],
                          unknowns={"k": 2.0})  # fmt: skip
    solver = PDESolver(problem, pde.Field(encoding, hidden=(4,)), points=16, boundary_points=4)
    solver.residuals.blocks = solver.sampler.draw(solver.residuals)
    assert solver.residuals().device == device
    bare = type(encoding)()
    bare.bind(2)
    assert bare(torch.rand(3, 2)).device == device
