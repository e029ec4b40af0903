"""A trace of a network on another device costs what it costs on the CPU."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_effnn import hardware
from lightning_effnn.modules import ResNetCIFAR, TextTransformer
from lightning_effnn.quantization import quantize_


def convolutions():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Dropout(), nn.Linear(36, 5)), torch.rand(2, 3, 8, 8)  # fmt: skip


def quantised():
    model, x = convolutions()
    quantize_(model, "W4A8")
    model(x)
    return model, x


def transformer():
    return TextTransformer(20, 2, hidden_channels=8, num_layers=1, num_heads=2, max_length=8), torch.ones(2, 6).long()


def attention():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.rand(2, 5, 8)


def residual():
    return ResNetCIFAR(8), torch.rand(1, 3, 32, 32)


NETWORKS = [convolutions, quantised, transformer, attention, residual]


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_costs_are_those_on_the_cpu(make, training, device):
    torch.manual_seed(0)
    model, x = make()
    model.eval()
    reports = []
    for place in (torch.device("cpu"), device):
        with sdpa_kernel(SDPBackend.MATH):  # the pretended device has no fused attention
            traced = hardware.trace(model.to(place), x.to(place), training=training)
        assert traced.has_values
        reports.append(hardware.estimate(traced, "eyeriss_like"))
    assert reports[1].macs == reports[0].macs
    assert reports[1].energy_uJ == pytest.approx(reports[0].energy_uJ, rel=1e-3)
    assert reports[1].coverage == reports[0].coverage


def test_energy_as_a_loss(device):
    model, x = convolutions()
    energy = hardware.EnergyModel(hardware.estimate(hardware.trace(model.to(device), x.to(device)), "eyeriss_like"))
    density = torch.full((len(energy.names), 2), 0.5, device=device, requires_grad=True)
    total = energy.energy_uJ(i_density=density)
    total.sum().backward()
    assert (total.device, density.grad.device) == (device, device)
