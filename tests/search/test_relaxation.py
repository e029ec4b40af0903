import pytest
import torch

from lightning_effnn.search import annealed, gumbel_noise, mixture, top1


def test_top1_opens_exactly_one_gate_and_keeps_the_softmax_gradient():
    logits = torch.tensor([0.3, -0.2, 1.1], requires_grad=True)
    weights = torch.tensor([1.0, -2.0, 0.5])
    gate = top1(logits, temperature=0.7, noise=0.0)
    assert gate.tolist() == [0.0, 0.0, 1.0]
    (straight,) = torch.autograd.grad((gate * weights).sum(), logits)
    (soft,) = torch.autograd.grad((torch.softmax(logits / 0.7, 0) * weights).sum(), logits)
    assert torch.allclose(straight, soft)


def test_with_noise_options_are_drawn_with_their_probability():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([top1(logits, generator=generator) for _ in range(4000)]).mean(0)
    assert torch.allclose(drawn, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_gumbel_noise_has_the_published_moments():
    noise = gumbel_noise(torch.Size([200_000]), torch.Generator().manual_seed(0))
    assert noise.isfinite().all()
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert noise.var() == pytest.approx(torch.pi**2 / 6, rel=0.02)


def test_the_mixture_is_a_softmax_and_approaches_top1_as_it_cools():
    logits = torch.tensor([0.0, 1.0, 0.5])
    assert torch.equal(mixture(logits), torch.softmax(logits, 0))
    assert torch.allclose(mixture(logits, temperature=0.01), top1(logits, noise=0.0))


def test_the_same_generator_draws_the_same_gates():
    def draw(make):
        generator = torch.Generator().manual_seed(3)
        return torch.stack([make(torch.zeros(5), generator=generator, noise=1.0) for _ in range(6)])

    for make in (top1, mixture):
        assert torch.equal(draw(make), draw(make))


@pytest.mark.parametrize("make", [top1, mixture])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": float("nan")}, {"noise": -1.0}])
def test_a_wrong_temperature_or_noise_is_named(make, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make(torch.zeros(2), **options)


@pytest.mark.parametrize(
    ("start", "end", "progress", "value"),
    [(8, 2, 0.5, 4), (8, 2, -1, 8), (8, 2, 2, 2), (1, 0, 0.5, 0.5), (0, 0, 0.3, 0), (3, 3, 0.7, 3)],
)
def test_annealing_is_geometric_or_linear_and_stays_in_range(start, end, progress, value):
    assert annealed(start, end, progress) == pytest.approx(value)
