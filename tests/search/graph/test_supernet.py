import copy

import pytest
import torch

pytest.importorskip("torch_geometric")

from lightning_effnn.search import Controller
from lightning_effnn.search.graph import GraphSpace, SuperGraphNet
from lightning_effnn.search.graph.supernet import ElasticLinear, OneOf

torch.manual_seed(0)
X = torch.rand(14, 6)
EDGES = torch.randint(0, 14, (2, 40), generator=torch.Generator().manual_seed(0))
SPACE = GraphSpace(6, 3, hidden_channels=(4, 8), w_bits=(4, 32), a_bits=(4, 32))


def chosen_of(space, gates):
    return {name: space.options[name][int(gate.argmax())] for name, gate in gates.items()}


@pytest.mark.parametrize("norm", ["none", "mean"])
def test_a_network_that_is_derived_gives_the_scores_it_gave_inside(norm):
    """In full precision: the rest is the quantisers' steps."""
    space = GraphSpace(6, 3, num_layers=3, hidden_channels=(4, 8), w_bits=(32,), a_bits=(32,), norm=norm)
    net, controller = SuperGraphNet(space).eval(), Controller(space.options, seed=0)
    for _ in range(25):
        gates = controller.sample()
        inside = net(X, EDGES, gates)
        derived = net.derive(chosen_of(space, gates), (X, EDGES)).eval()
        assert torch.allclose(derived(X, EDGES), inside, atol=2e-5)


def test_a_derived_network_has_copies_of_the_first_channels():
    net = SuperGraphNet(SPACE)
    derived = net.derive(SPACE.first)
    assert torch.equal(derived.blocks[0].linear.weight, net.blocks[0].linear.linear.weight[:4])
    derived.blocks[0].linear.weight.data.zero_()
    assert net.blocks[0].linear.linear.weight.abs().sum() > 0


def test_only_what_is_chosen_runs_and_learns():
    net = SuperGraphNet(SPACE)
    ran = []
    for module in net.modules():
        if isinstance(module, OneOf):
            for name, option in zip(module.names, module.options, strict=True):
                option.register_forward_hook(lambda *_, key=(module.choice, name): ran.append(key))
    gates = Controller(SPACE.options, seed=1).sample()
    chosen = chosen_of(SPACE, gates)
    net(X, EDGES, gates).sum().backward()
    assert all(chosen[choice] == name for choice, name in ran)
    choices = {choice for choice, _ in ran}
    assert choices >= {"input_a", "blocks.0.attention", "blocks.1.aggregation", "blocks.0.linear_w"}
    weight = net.blocks[0].linear.linear.weight
    width = chosen["blocks.0.width"]
    assert weight.grad[:width].abs().sum() > 0
    assert weight.grad[width:].abs().sum() == 0


def test_gates_hear_of_the_loss_through_what_ran():
    controller = Controller(SPACE.options, seed=2)
    SuperGraphNet(SPACE)(X, EDGES, controller.sample()).square().sum().backward()
    learned = {name for name, logits in zip(SPACE.options, controller.logits, strict=True) if logits.grad is not None}
    assert {"input_a", "blocks.0.width", "blocks.0.attention", "blocks.1.aggregation", "blocks.1.linear_w"} <= learned


def test_half_open_widths_weigh_the_channels_that_they_have():
    linear = ElasticLinear("width", (2, 4), 6, lambda place, signed=True: torch.nn.Identity())
    whole = linear.linear(X)
    linear.gate = torch.tensor([0.25, 0.75])
    assert torch.allclose(linear(X), whole * torch.tensor([1.0, 1.0, 0.75, 0.75]))


def test_a_mixture_runs_everything_weighted():
    space = GraphSpace(6, 3, hidden_channels=(4, 8), w_bits=(4, 8), a_bits=(8,))
    controller = Controller(space.options, relaxation="mixture")
    net = SuperGraphNet(space)
    scores = net(X, EDGES, controller.sample(noise=0.0))
    scores.square().sum().backward()
    assert scores.isfinite().all()
    open_choices = [logits for logits in controller.logits if len(logits) > 1]
    heard = [logits.grad is not None and bool(logits.grad.abs().sum() > 0) for logits in open_choices]
    assert sum(heard) >= len(heard) - 1  # nothing but zeros may reach a bias-like choice


def test_gates_are_gone_afterwards_and_after_an_error():
    net = SuperGraphNet(SPACE)
    gates = Controller(SPACE.options).sample()
    net(X, EDGES, gates)
    copy.deepcopy(net)  # a gate with a gradient could not be copied
    with pytest.raises(ValueError, match="x has the shape"):
        net(X[:, :2], EDGES, gates)
    copy.deepcopy(net)
    with pytest.raises(RuntimeError, match="no gate"):
        net.blocks[0].linear(X)


def test_a_space_of_one_network_is_that_network():
    space = GraphSpace(
        6, 3, hidden_channels=(4,), attention=("gcn",), aggregation=("sum",), activation=("relu",), skip=("none",),
        w_bits=(32,), a_bits=(32,),
    )  # fmt: skip
    controller = Controller(space.options)
    net = SuperGraphNet(space).eval()
    derived = net.derive(controller.chosen(), (X, EDGES)).eval()
    assert torch.allclose(derived(X, EDGES), net(X, EDGES, controller.sample()), atol=1e-5)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in derived.parameters())


def test_aggregations_are_of_one_scale_whatever_they_are():
    net = SuperGraphNet(SPACE).eval()
    controller = Controller(SPACE.options)
    for aggregation in ("sum", "mean", "max"):
        seen = []
        hook = net.blocks[0].aggregation.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out))
        chosen = {**controller.chosen(), "blocks.0.aggregation": aggregation}
        net(X, EDGES, controller.gates_of(chosen))
        hook.remove()
        assert seen[0].square().mean().item() == pytest.approx(1, rel=1e-4)
    zeros = net(torch.zeros(14, 6), EDGES, controller.sample())
    assert zeros.isfinite().all()
