"""Controllers, costs and searches on the device of the network that they search in."""

import pytest
import torch
from pretend_trainer import trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_effnn.search import AdditiveSurrogate, Controller, CostModel, CostTerm, mixture, top1
from lightning_effnn.search.bits import BitSearch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("draw", [top1, mixture])
def test_relaxations(draw, dtype, device):
    logits = torch.tensor([0.0, 2.0, 1.0], dtype=dtype)
    here, there = (draw(x, 0.7, 1.0, torch.Generator().manual_seed(3)) for x in (logits, logits.to(device)))
    assert (there.device, there.dtype) == (device, dtype)
    torch.testing.assert_close(there.cpu(), here)


@pytest.mark.parametrize("relaxation", ["top1", "mixture"])
def test_controller_and_what_it_learns_from(relaxation, device):
    options = {"width": (4, 8), "bits": (2, 4, 8), "made": (1,)}
    controllers = [Controller(options, relaxation, seed=1) for _ in range(2)]
    controllers[1].to(device)
    costs = CostModel([CostTerm("layer", ("width", "bits"), torch.rand(2, 3))], "bit")
    effects = []
    for controller, place in zip(controllers, ("cpu", device), strict=True):
        surrogate = AdditiveSurrogate(options, features={"bits": torch.rand(1, 3, generator=seeded())}).to(place)
        for _ in range(4):
            gates = controller.sample()
            surrogate.observe(gates, float(gates["bits"][0]))
        total = surrogate.expected(controller.probabilities) + costs.relative(controller.probabilities)
        (total + controller.entropy).backward()
        assert controller.logits[0].grad.device == controller.logits[0].device
        effects.append([effect.cpu() for effect in surrogate.effects().values()])
        assert set(controller.draw()) == set(options)
        controller.gates_of(controller.chosen())
    for here, there in zip(*effects, strict=True):
        torch.testing.assert_close(there, here)
    again = Controller(options, relaxation)
    again.load_state_dict(controllers[1].state_dict())
    decided = Controller({"made": (1,)}).to(device)
    assert decided.entropy.device == device


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("cost", ["bits", "bops", "energy"])
def test_bits_are_searched(cost, device):
    plans = []
    for place in ("cpu", device):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).to(place), torch.rand(20, 8).to(place)
        search = BitSearch(model, weights=(2, 8), activations=(4, 8), steps=4)
        search.survey(lambda model=model, x=x: model(x), cost)
        for _ in range(4):
            search.sample_(observing=True)
            model(x).square().mean().backward()
            search.compare(lambda model=model, x=x: model(x).square().mean().item())
            search.step(1.0)
            search.ahead_()
        search.load_state_dict(search.state_dict())
        assert search.figures()["cost"] > 0
        plans.append(search.settle_())
        model(x).sum().backward()
        search.load_state_dict(search.state_dict())
    assert plans[0] == plans[1]


def graph(device="cpu"):
    data = pytest.importorskip("torch_geometric.data")
    edges = torch.randint(0, 12, (2, 30), generator=seeded())
    masks = {name: torch.ones(12, dtype=torch.bool) for name in ("train_mask", "val_mask", "test_mask")}
    x = torch.rand(12, 16, generator=seeded())
    return data.Data(x=x, edge_index=edges, y=torch.arange(12) % 3, **masks).to(device)


def test_graph_networks_are_searched_and_trained(device):
    modules = pytest.importorskip("lightning_effnn.modules")
    loader = DataLoader([graph()], batch_size=None, collate_fn=lambda graph: graph)
    search = modules.LPGNAS(
        16, 3, hidden_channels=(4, 8), attention=("none", "gcn", "gat"), aggregation=("sum", "max"), w_bits=(2, 8),
        a_bits=(4, 32),
    )  # fmt: skip
    trainer(device, max_epochs=6).fit(search, loader, loader)
    there = graph(device)
    search.to(device)
    net, teacher = (search.derive((there.x, there.edge_index)) for _ in range(2))
    trainer(device, max_epochs=2).fit(modules.NodeClassifier(net, teacher=teacher), loader, loader)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("attention", ["none", "gcn", "gat", "sym_gat", "cos", "linear", "gen_linear"])
def test_graph_networks(attention, dtype, device):
    pytest.importorskip("torch_geometric")
    from lightning_effnn.search.graph import BlockConfig, GraphNet, GraphNetConfig

    first = BlockConfig(8, attention, aggregation="max", skip="linear", linear_w=8, linear_a=8, attention_w=4)
    torch.manual_seed(0)
    net = GraphNet(GraphNetConfig(16, (first, BlockConfig(3, attention, heads=1)), dropout=0.0)).to(dtype)
    here = graph()
    expected = net(here.x.to(dtype), here.edge_index).detach()
    there = graph(device)
    scores = net.to(device)(there.x.to(dtype), there.edge_index)
    scores.sum().backward()
    assert scores.device == device
    torch.testing.assert_close(scores.detach().cpu(), expected, atol=1e-2, rtol=1e-2)
