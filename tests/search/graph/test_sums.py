import copy
import pickle

import pytest
import torch

pytest.importorskip("torch_geometric")

from lightning_effnn import hardware
from lightning_effnn.search.graph import GraphNet, GraphNetConfig, sums
from lightning_effnn.search.graph.block import attention_part
from lightning_effnn.search.graph.parts import Aggregation, Graph
from lightning_effnn.search.graph.sums import NeighbourSums

NODES = 30
GENERATOR = torch.Generator().manual_seed(0)
GRAPHS = {
    "random": torch.randint(0, 20, (2, 120), generator=GENERATOR),  # nodes from 20 on are alone
    "twice the same edge": torch.tensor([[0, 0, 1], [1, 1, 0]]),
    "no edges": torch.empty(2, 0, dtype=torch.long),
    "loops": torch.tensor([[0, 1, 2], [0, 1, 1]]),
}


def messages(monkeypatch):
    monkeypatch.setattr(NeighbourSums, "can", lambda *_: False)


@pytest.mark.parametrize("kind", ["sum", "mean", "max"])
@pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("heads", [0, 1, 2])
def test_a_product_gives_what_messages_give_with_its_gradients(kind, edges, heads, monkeypatch):
    monkeypatch.setattr(sums, "_AT_ONCE", 50)
    graph = Graph.of(edges, NODES)
    h = torch.randn(NODES, 6, dtype=torch.float64, requires_grad=True)
    shape = len(graph.source), heads
    coefficients = torch.rand(shape, dtype=torch.float64, requires_grad=True) if heads else None
    part, weights = Aggregation(kind), torch.randn(NODES, 6, dtype=torch.float64)
    inputs = (h, coefficients) if heads else (h,)
    assert graph.sums.can(h)

    def both():
        result = part(h, coefficients, graph)
        first = torch.autograd.grad((weights * result).square().sum(), inputs, create_graph=kind != "max")
        if kind == "max":
            return result, *first
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)
        return result, *first, *second

    fast = both()
    messages(monkeypatch)
    for one, other in zip(fast, both(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("kind", ["cos", "gen_linear"])
def test_scores_of_both_ends_are_those_of_messages_with_their_gradients(kind, edges, monkeypatch):
    monkeypatch.setattr(sums, "_AT_ONCE", 50)
    graph = Graph.of(edges, NODES)
    part = attention_part(kind, 6, 2, 0.0, lambda *_, **__: torch.nn.Identity())
    h, weights = torch.randn(NODES, 6, requires_grad=True), torch.randn(len(graph.source), 2)

    def both():
        result = part(h, graph)
        return result, *torch.autograd.grad((weights * result).square().sum(), (h, part.weight))

    fast = both()
    messages(monkeypatch)
    for one, other in zip(fast, both(), strict=True):
        torch.testing.assert_close(one, other)


def test_of_equal_messages_one_gets_the_gradient_of_the_largest():
    graph = Graph.of(torch.tensor([[0, 1], [2, 2]]), 3)
    h = torch.ones(3, 1, requires_grad=True)
    Aggregation("max")(h, None, graph)[2].backward()
    assert sorted(h.grad.flatten().tolist()) == [0, 0, 1]


@pytest.mark.parametrize(
    "config",
    [GraphNetConfig.gcn(6, 3, 8), GraphNetConfig.gcn(6, 3, 8, 4, 8), GraphNetConfig.gat(6, 3)],
    ids=["32", "4", "gat"],
)
def test_a_network_is_the_same_either_way_and_in_a_trace(config, monkeypatch):
    net, x, edges = GraphNet(config).eval(), torch.rand(NODES, 6), GRAPHS["random"]
    fast = net(x, edges)
    traces = [hardware.trace(net, x, edge_index=edges)]
    messages(monkeypatch)
    torch.testing.assert_close(fast, net(x, edges), rtol=1e-4, atol=1e-5)
    traces.append(hardware.trace(net, x, edge_index=edges))
    assert len({hardware.estimate(trace, "eyeriss_like").energy_uJ for trace in traces}) == 1


def test_half_precision_goes_by_messages():
    sums, h = Graph.of(GRAPHS["random"], NODES).sums, torch.randn(NODES, 4)
    assert sums.can(h)
    assert not sums.can(h.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not sums.can(h)


def test_what_is_known_of_a_graph_is_dropped_when_it_changes_and_in_copies():
    net, x = GraphNet(GraphNetConfig.gcn(6, 3, 8)).eval(), torch.rand(NODES, 6)
    edges = GRAPHS["random"].clone()
    with torch.inference_mode():  # a sanity check comes first
        first = net(x, edges)
    net.train()(x, edges).sum().backward()
    net.eval()
    edges[1, :60] = 25
    changed = net(x, edges)
    assert not torch.allclose(first, changed)
    fewer = net(x[:26], edges)  # the same edges among fewer nodes
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(again(x, edges), changed)
        assert torch.equal(again(x[:26], edges), fewer)
