import pytest
import torch

from lightning_effnn.search import Controller

OPTIONS = {"blocks.0.width": (16, 32, 64), "blocks.0.linear_w": (4, 8), "fixed": ("relu",)}


def test_a_sample_has_one_open_gate_a_choice_and_logits_learn_from_it():
    controller = Controller(OPTIONS, seed=0)
    gates = controller.sample()
    assert {name: gate.sum().item() for name, gate in gates.items()} == dict.fromkeys(OPTIONS, 1.0)
    (gates["blocks.0.width"] * torch.arange(3.0)).sum().backward()
    width, bits, fixed = controller.logits
    assert width.grad.abs().sum() > 0
    assert bits.grad is None
    assert fixed.shape == (1,)


def test_logits_are_its_only_parameters():
    controller = Controller(OPTIONS)
    assert [tuple(p.shape) for p in controller.parameters()] == [(3,), (2,), (1,)]


def test_entropy_is_one_when_open_and_zero_when_decided():
    controller = Controller(OPTIONS)
    assert controller.entropy.item() == pytest.approx(1)
    with torch.no_grad():
        for logits in controller.logits:
            logits[-1] = 60.0
    assert controller.entropy.item() == pytest.approx(0, abs=1e-6)
    assert controller.chosen() == {"blocks.0.width": 64, "blocks.0.linear_w": 8, "fixed": "relu"}


def test_what_is_decided_already_has_no_entropy_and_is_chosen():
    controller = Controller({"only": ("one",)})
    assert controller.entropy == 0
    assert controller.sample()["only"].tolist() == [1.0]
    assert controller.chosen() == {"only": "one"}


def test_draws_go_on_after_a_state_is_loaded():
    first = Controller(OPTIONS, seed=5)
    for _ in range(3):
        first.sample()
    second = Controller(OPTIONS, seed=9)
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        one, two = first.sample(), second.sample()
        assert all(torch.equal(one[name], two[name]) for name in OPTIONS)


def test_sampling_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Controller(OPTIONS).sample()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", [{"a": ()}, {"a": (1, 1)}])
def test_a_choice_without_distinct_options_is_refused(options):
    with pytest.raises(ValueError, match="'a'"):
        Controller(options)


def test_an_unknown_relaxation_lists_the_others():
    with pytest.raises(ValueError, match="top1, mixture"):
        Controller(OPTIONS, relaxation="soft")


def test_gates_of_an_option_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match=r"blocks\.0\.width is 17.*16, 32, 64"):
        Controller(OPTIONS).gates_of({"blocks.0.width": 17})
