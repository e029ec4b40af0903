"""Pruning, focusing, encoding: on the weights' device and in their dtype, with the results of the CPU."""

import copy

import pytest
import torch
from torch import nn

from lightning_effnn.compression import (
    focus,
    focus_model_,
    load_compressed,
    prune_model_,
    save_compressed,
)
from lightning_effnn.compression.activations import attach_recorded_, quantize_activations_, record
from lightning_effnn.compression.finish import bake_, round_others_
from lightning_effnn.compression.mixture import Mixture
from lightning_effnn.compression.plots import weight_figure
from lightning_effnn.compression.projector import Projector
from lightning_effnn.compression.pruning import update_masks
from lightning_effnn.compression.shift_add import shift_add_conv2d, shift_add_linear
from lightning_effnn.formats import PowerOfTwo, RecentralizedPowerOfTwo

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def lobes(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 30, generator=draw) * 0.1 + torch.where(torch.rand(20, 30, generator=draw) < 0.5, -1, 1)
    return (weight * (torch.rand(20, 30, generator=draw) < 0.6)).to(dtype)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("assignment", ["hard", "sampled"])
def test_focus(assignment, dtype, device):
    here, there = (focus(weight, assignment=assignment) for weight in (lobes(dtype), lobes(dtype).to(device)))
    assert (there.weight.device, there.weight.dtype) == (device, dtype)
    assert there.format == here.format
    assert torch.equal(there.weight.cpu(), here.weight)
    assert torch.equal(there.codes.cpu(), here.codes)


def test_a_generator_goes_on_from_where_it_is(device):
    draws = [torch.Generator().manual_seed(1) for _ in range(2)]
    for _ in range(2):
        here, there = (
            focus(weight, assignment="sampled", seed=draw).weight
            for weight, draw in zip((lobes(), lobes().to(device)), draws, strict=True)
        )
        assert torch.equal(there.cpu(), here)


def test_a_mixture_of_whatever_it_is_asked_about(device):
    mixture = Mixture((0.5, 0.5), (-1.0, 1.0), (0.5, 0.5), 1.1)
    assert mixture.posterior(lobes().to(device)).device == device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
@pytest.mark.parametrize("method", ["dns", "magnitude"])
def test_pruning(method, scope, dtype, device):
    here, there = network(dtype), network(dtype).to(device)
    reports = [prune_model_(model, 0.5, method, scope) for model in (here, there)]
    assert reports[0].zeros == reports[1].zeros
    assert torch.equal(there[0].weight.cpu(), here[0].weight)
    masks = update_masks([there[0].weight], [there[0].weight != 0], 0.7, method, scope)
    assert masks[0].device == device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["dns", "magnitude"])
def test_projector(method, dtype, device):
    models = network(dtype), network(dtype).to(device)
    projectors = [Projector(model, method=method) for model in models]
    for model, projector in zip(models, projectors, strict=True):
        with torch.no_grad():
            model[0].weight.copy_(lobes(dtype))
        projector.finish()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for sparsity, fraction in ((0.3, 0.0), (0.5, 0.5), (0.5, 1.0)):
            projector.prune(sparsity)
            projector.quantize(fraction)
            model(torch.ones(2, 30, dtype=dtype, device=model[0].weight.device)).sum().backward()
            projector.restore(lr=0.01)
            optimizer.step()
            projector.capture()
        projector.settle()
        again = Projector(copy.deepcopy(model), method=method)
        again.load_state_dict(projector.state_dict())
        assert again.sparsity == pytest.approx(projector.sparsity, abs=1e-3)
        moved = {k: v for k, v in projector.state_dict().items()}
        moved["layers"] = {
            name: {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in layer.items()}
            for name, layer in moved["layers"].items()
        }
        again.load_state_dict(moved)  # read onto the CPU, as checkpoints are
        again.restore()
        again.capture()
        weight_figure(projector)
        model.cpu()  # as a Trainer does before the last hooks of a fit
        assert not projector.finish()
        assert projector.layers[0].latent.device.type == "cpu"
    torch.testing.assert_close(models[1][0].weight.detach().cpu(), models[0][0].weight.detach(), atol=2e-2, rtol=0.1)


@pytest.mark.parametrize("number_format", [PowerOfTwo(4), RecentralizedPowerOfTwo(5)], ids=str)
def test_shift_and_add(number_format, device):
    codes = number_format.encode(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    x = torch.arange(12).view(3, 4)
    there = shift_add_linear(x.to(device), codes.to(device), number_format)
    assert torch.equal(there.values().cpu(), shift_add_linear(x, codes, number_format).values())
    images, kernels = torch.arange(32).view(1, 2, 4, 4), codes.view(6, 1, 2, 2)
    there = shift_add_conv2d(images.to(device), kernels.to(device), number_format, padding=1, groups=2)
    here = shift_add_conv2d(images, kernels, number_format, padding=1, groups=2)
    assert torch.equal(there.values().cpu(), here.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", ["fp32", "fp16", "int8"])
def test_files(other, dtype, device, tmp_path):
    here, there = network(dtype), network(dtype).to(device)
    for model in (here, there):
        prune_model_(model, 0.5)
        layers = focus_model_(model, assignment="sampled")
        round_others_(model, other, exclude=[model[0].weight, model[2].weight])
        save_compressed(model, tmp_path / f"{model[0].weight.device.type}.effnn", other=other)
    assert len(layers) == 2
    assert (tmp_path / "pretend.effnn").read_bytes() == (tmp_path / "cpu.effnn").read_bytes()
    empty = network(dtype).to(device)
    load_compressed(tmp_path / "cpu.effnn", empty)
    assert empty[0].weight.device == device
    assert torch.equal(empty[0].weight, there[0].weight)
    bake_(empty)


def test_activations_go_with_the_file(device):
    model = network().to(device)
    quantize_activations_(model, 8)
    model.train()(torch.rand(5, 30, device=device))
    text = record(model)
    other = network().to(device)
    attach_recorded_(other, text)
    x = torch.rand(5, 30, device=device)
    assert torch.equal(other.eval()(x), model.eval()(x))
