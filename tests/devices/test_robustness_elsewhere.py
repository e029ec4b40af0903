"""Attacks, energies and guards on the device of their inputs."""

import pytest
import torch
from torch import nn

from lightning_effnn.modules import SequenceToSequence, TextTransformer
from lightning_effnn.quantization import quantize_
from lightning_effnn.robustness import (
    DensityEnergy,
    EnergyGuard,
    GenerationEnergy,
    GenerationGuard,
    SequenceEnergy,
    SpongeError,
    SpongePenalty,
    TracedEnergy,
    WallTime,
    evaluate,
    layer_weights,
    random_inputs,
    sponge_genetic,
    sponge_lbfgs,
    sponge_pgd,
    sponge_text_genetic,
    tolerance_limit,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def network(dtype=torch.float32, norm=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU6(), nn.Flatten(), nn.Linear(64, 3),
    ).to(dtype)  # fmt: skip


def images(count=3, dtype=torch.float32):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("energy", [TracedEnergy, lambda model: DensityEnergy(model, next_to(model))],
                         ids=["traced", "density"])  # fmt: skip
def test_energies_are_those_of_the_cpu_and_lie_beside_the_inputs(energy, device):
    here, there = network(), network().to(device)
    values = energy(there)(images().to(device))
    assert values.device == device
    torch.testing.assert_close(values.cpu(), energy(here)(images()))


def next_to(model):
    return images().to(model[0].weight.device)


def test_energy_by_density_has_a_gradient_and_savings(device):
    model = network().to(device)
    energy = DensityEnergy(model, images().to(device))
    x = images().to(device).requires_grad_()
    energy.smooth(x).sum().backward()
    assert x.grad.device == device
    assert energy.saves_zeros
    assert energy.of({}, 3).shape == (3,)
    assert SpongePenalty(model, ("pgd", "noise", "unbounded"))(images().to(device), 0).device == device
    assert sum(layer_weights(energy.savings_uJ()).values()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", ["l0", "l2", "linf", "energy"])
def test_white_box_attacks(objective, dtype, device):
    model, x = network(dtype).to(device).eval(), images(dtype=dtype).to(device)
    crafted = sponge_pgd(model, x, 0.1, 0.05, 5, random_start=True, objective=objective)
    assert (crafted.device, crafted.dtype) == (device, dtype)
    crafted = sponge_lbfgs(model, x, 3, objective=objective)
    assert (crafted.device, crafted.dtype) == (device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_genetic_attack_draws_the_same_anywhere(dtype, device):
    def fitness(x):
        return x.flatten(1).float().sum(1)

    x = images(dtype=dtype)
    here = sponge_genetic(fitness, x, 0.2, pool=6, generations=4)
    there = sponge_genetic(fitness, x.to(device), 0.2, pool=6, generations=4)
    assert (there.device, there.dtype) == (device, dtype)
    assert torch.equal(there.cpu(), here)
    assert torch.equal(random_inputs(x.to(device)).cpu(), random_inputs(x))
    model = network(dtype).to(device).eval()
    for energy in (TracedEnergy(model), DensityEnergy(model, x.to(device)), WallTime(model, 1)):
        assert sponge_genetic(energy, x.to(device), pool=3, generations=2).device == device


def test_fitness_may_answer_with_numbers_or_on_the_cpu(device):
    for fitness in (lambda x: x.flatten(1).sum(1).tolist(), lambda x: x.flatten(1).sum(1).cpu()):
        assert sponge_genetic(fitness, images().to(device), pool=4, generations=2).device == device


def test_time_is_over_when_the_device_has_done_its_work(device, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: calls.append("waited"))
    WallTime(lambda x: calls.append("called"), 1)(images(1).to(device))
    assert calls == ["waited", "called", "waited"]


def test_texts_measured_elsewhere(device):
    best = sponge_text_genetic(lambda texts: torch.tensor([t.count("a") for t in texts], device=device), "ab", 4,
                               pool=4, generations=2)  # fmt: skip
    assert len(best) == 4


def test_evaluation_and_training(device):
    model, x = network().to(device), images().to(device)
    quantize_(model, "W8A8")
    model(x)
    report = evaluate(model, [(x, torch.tensor([0, 1, 2], device=device))], eps=0.1, steps=2, limit=2)
    assert report.gain >= 0.99
    assert report.rows()[0]["accuracy"] is not None
    model.train()
    for attack in ("pgd", "unbounded", "noise", "clean"):
        SpongePenalty(model, attack, steps=1, share=0.5)(x, 0).backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_guard_of_images(dtype, device):
    draw = torch.Generator().manual_seed(0)
    natural = torch.rand(60, 1, 4, 4, generator=draw) * (torch.rand(60, 1, 4, 4, generator=draw) < 0.4)
    model = network(dtype, norm=False).to(device).eval()
    with torch.no_grad():
        model[0].bias.fill_(-0.2)
    guard = EnergyGuard(model).profile(natural.to(device, dtype).split(20), quantile=1)
    assert guard(natural[:2].to(device, dtype)).shape == (2, 3)
    assert guard.verdict.refused.device == device
    with pytest.raises(SpongeError):
        guard(torch.ones(2, 1, 4, 4, device=device, dtype=dtype))
    moved = EnergyGuard(network(dtype, norm=False)).to(device)
    moved.load_state_dict({k: v.cpu() for k, v in guard.state_dict().items()})
    with pytest.raises(SpongeError):
        moved.eval()(torch.ones(2, 1, 4, 4, device=device, dtype=dtype))


def test_limits_keep_their_precision_in_a_model_of_half_precision():
    guard = EnergyGuard(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)))
    tokens = torch.ones(1, 2049, dtype=torch.long)
    guard.profile([tokens], quantile=1).half()
    assert int(guard.most_length) == 2049
    assert float(guard.most_density) == float("inf")


def test_guard_of_a_model_nothing_is_seen_of(device):
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return x

    guard = EnergyGuard(Still().to(device)).profile([torch.rand(4, 2, device=device)], quantile=1)
    assert guard(torch.rand(3, 2, device=device)).device == device


def test_sequences(device):
    model = TextTransformer(20, 2, hidden_channels=8, num_layers=1, num_heads=2, max_length=8).to(device)
    energy = SequenceEnergy(model)
    assert energy([1, 5])[1] > energy([1, 5])[0]
    assert energy.latency_us([1, 5])[1] >= energy.latency_us([1, 5])[0]
    guard = EnergyGuard(model, policy="truncate").profile(
        [torch.ones(4, n, dtype=torch.long, device=device) for n in (2, 3)], quantile=1
    )
    assert guard(torch.ones(2, 6, dtype=torch.long, device=device)).device == device
    assert tolerance_limit(torch.arange(1000.0, device=device), 0.01) == 995.0


def test_generation(device):
    model = SequenceToSequence(tokens_in=14, tokens_out=35, hidden_channels=8).to(device)
    energy = GenerationEnergy(model.encoder, model.decoder)
    few, many = energy([4, 4], [2, 20])
    assert many > few
    assert energy.latency_us([4], [2]).shape == (1,)
    guard = GenerationGuard(model, end=2).profile([torch.ones(2, 4, dtype=torch.long, device=device)], quantile=1)
    guard(torch.ones(2, 4, dtype=torch.long, device=device))
    assert guard.verdict.refused.device == device
