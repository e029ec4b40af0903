import pytest
import torch

from lightning_effnn.search.bits.sensitivity import Sensitivity

ERRORS = {f"weights/{n}": torch.tensor([0.2, 0.01, 0.0]) for n in range(8)}
ERRORS |= {f"activations/{n}": torch.tensor([0.03, 0.001]) for n in range(4)}
TRUE = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 0.5, 1.0, 1.5, 4.0, 6.0, 5.0, 5.0], dtype=torch.float64)


def tried(sensitivity, tries, noise=0.02, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(tries):
        picks = {n: int(torch.randint(len(e), (), generator=generator)) for n, e in ERRORS.items()}
        errors = torch.stack([ERRORS[n][pick] for n, pick in picks.items()]).double()
        sensitivity.observe(picks, float(TRUE @ errors + noise * torch.randn((), generator=generator)))
    return sensitivity


def test_it_learns_how_much_each_tensor_matters():
    found = tried(Sensitivity(ERRORS, memory=1e6), 3000).sensitivities()
    assert torch.allclose(found[:8], TRUE[:8], atol=0.1)
    assert torch.allclose(found[8:], TRUE[8:], atol=0.7)


def test_few_tries_tell_what_a_kind_of_tensors_does():
    found = torch.stack([tried(Sensitivity(ERRORS), 24, seed=seed).sensitivities() for seed in range(9)])
    assert found[:, :8].mean(1).median() == pytest.approx(float(TRUE[:8].mean()), rel=0.4)
    assert (found >= 0).all()


def test_without_a_try_nothing_matters_and_no_error_helps():
    assert Sensitivity(ERRORS).sensitivities().abs().max() == 0
    backwards = Sensitivity({"weights/a": torch.tensor([1.0, 0.0])})
    for _ in range(50):
        backwards.observe({"weights/a": 0}, 0.0)
        backwards.observe({"weights/a": 1}, 1.0)
    assert backwards.sensitivities().tolist() == [0.0]


def test_it_forgets():
    found = Sensitivity({"weights/a": torch.tensor([1.0, 0.0])}, memory=50)
    for rise in (5.0, 1.0):
        for _ in range(200):
            found.observe({"weights/a": 0}, rise)
            found.observe({"weights/a": 1}, 0.0)
    assert float(found.sensitivities()[0]) < 1.2


def test_the_expected_loss_has_the_gradient_of_its_errors():
    found = tried(Sensitivity(ERRORS), 200)
    probabilities = {n: torch.full((len(e),), 1 / len(e), requires_grad=True) for n, e in ERRORS.items()}
    found.expected(probabilities).backward()
    for (name, errors), sensitivity in zip(ERRORS.items(), found.sensitivities(), strict=True):
        assert torch.allclose(probabilities[name].grad, (sensitivity * errors).float())


def test_its_state_is_all_it_knows():
    first, second = tried(Sensitivity(ERRORS), 20), Sensitivity(ERRORS)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.sensitivities(), second.sensitivities())


def test_a_memory_of_one_is_refused():
    with pytest.raises(ValueError, match="memory is 1"):
        Sensitivity(ERRORS, memory=1)
