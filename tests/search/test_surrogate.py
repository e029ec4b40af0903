import pytest
import torch

from lightning_effnn.search import AdditiveSurrogate, Controller

OPTIONS = {"a": ("x", "y", "z"), "b": (1, 2)}
TRUE = {"a": torch.tensor([0.3, 0.0, -0.3]), "b": torch.tensor([0.1, -0.1])}


def tried(surrogate, controller, tries, noise=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(tries):
        gates = controller.sample()
        loss = 0.7 + sum(float((TRUE[n] * gates[n].detach()).sum()) for n in OPTIONS)
        surrogate.observe(gates, loss + noise * float(torch.randn((), generator=generator)))


def test_it_finds_what_each_option_adds():
    surrogate = AdditiveSurrogate(OPTIONS, memory=1e6)
    tried(surrogate, Controller(OPTIONS, seed=0), 2000)
    for name, effects in surrogate.effects().items():
        assert torch.allclose(effects.float(), TRUE[name], atol=0.03)


def test_what_was_not_tried_makes_no_difference():
    surrogate = AdditiveSurrogate(OPTIONS)
    assert all(effects.abs().max() == 0 for effects in surrogate.effects().values())
    controller = Controller(OPTIONS)
    gates = controller.gates_of({"a": "x", "b": 1})
    for _ in range(50):
        surrogate.observe(gates, 0.9)
    assert max(effects.abs().max() for effects in surrogate.effects().values()) < 1e-9


def test_it_forgets():
    surrogate = AdditiveSurrogate(OPTIONS, memory=50)
    gates = [Controller(OPTIONS).gates_of({"a": "x", "b": b}) for b in (1, 2)]
    for good, bad in ((0, 1), (1, 0)):
        for _ in range(200):
            surrogate.observe(gates[good], 0.1)
            surrogate.observe(gates[bad], 0.5)
    first, second = surrogate.effects()["b"].tolist()
    assert first - second > 0.2


@pytest.mark.trains
def test_logits_that_follow_it_end_at_the_best_options():
    controller = Controller(OPTIONS, seed=0)
    surrogate = AdditiveSurrogate(OPTIONS)
    optimizer = torch.optim.Adam(controller.parameters(), lr=0.1)
    for _ in range(100):
        tried(surrogate, controller, 2)
        optimizer.zero_grad()
        surrogate.expected(controller.probabilities).backward()
        optimizer.step()
    assert controller.chosen() == {"a": "z", "b": 2}
    assert controller.entropy < 0.5


def test_its_state_is_all_it_knows():
    first, second = AdditiveSurrogate(OPTIONS), AdditiveSurrogate(OPTIONS)
    tried(first, Controller(OPTIONS), 20)
    second.load_state_dict(first.state_dict())
    for name, effects in first.effects().items():
        assert torch.equal(effects, second.effects()[name])


def test_a_memory_of_one_is_refused():
    with pytest.raises(ValueError, match="memory is 1"):
        AdditiveSurrogate(OPTIONS, memory=1)


def test_one_slope_of_a_feature_is_learned_from_few_tries():
    options = {f"layer {n}": (2, 4, 8) for n in range(12)}
    error = {name: torch.tensor([[1.0, 0.1, 0.0]]) * (1 + n % 3) for n, name in enumerate(options)}
    controller = Controller(options, seed=3)
    generator = torch.Generator().manual_seed(1)
    plain, informed = AdditiveSurrogate(options), AdditiveSurrogate(options, features=error)
    for _ in range(24):
        gates = controller.sample()
        loss = sum(0.05 * float((error[n][0] * gates[n].detach()).sum()) for n in options)
        loss += 0.02 * float(torch.randn((), generator=generator))
        plain.observe(gates, loss)
        informed.observe(gates, loss)

    def miss(surrogate):
        effects = surrogate.effects()
        true = {n: 0.05 * (error[n][0] - error[n][0].mean()) for n in options}
        return sum(float((effects[n] - effects[n].mean() - true[n]).square().sum()) for n in options)

    assert miss(informed) < 0.3 * miss(plain)


def test_a_feature_that_helps_against_all_expectation_is_left_out():
    features = {"a": torch.tensor([[0.0, 1.0, 2.0]])}  # the loss falls with it
    surrogate, plain = AdditiveSurrogate(OPTIONS, features=features), AdditiveSurrogate(OPTIONS)
    for each in (surrogate, plain):
        tried(each, Controller(OPTIONS, seed=0), 100)
    for name, effects in surrogate.effects().items():
        assert torch.allclose(effects, plain.effects()[name])


@pytest.mark.parametrize("features", [{"a": torch.ones(3)}, {"a": torch.ones(1, 2)}, {"c": torch.ones(1, 2)}])
def test_features_of_another_shape_are_refused(features):
    with pytest.raises(ValueError, match="features of"):
        AdditiveSurrogate(OPTIONS, features=features)
