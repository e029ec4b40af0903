import pytest
import torch

pytest.importorskip("torch_geometric")

from lightning_effnn import hardware
from lightning_effnn.search import Controller, CostModel
from lightning_effnn.search.graph import GraphNet, GraphNetConfig, GraphSpace, SuperGraphNet, graph_cost, graph_sizes
from lightning_effnn.search.graph.costs import graph_extents
from lightning_effnn.search.graph.energy import EnergyTables
from lightning_effnn.search.graph.layout import message_bops, product_bops

torch.manual_seed(0)
NODES = 60
X = (torch.rand(NODES, 40) < 0.2).float() * torch.rand(NODES, 40)
EDGES = torch.randint(0, NODES, (2, 240), generator=torch.Generator().manual_seed(0))
SPACE = GraphSpace(40, 4, num_layers=3, hidden_channels=(8, 16), w_bits=(1, 4, 32), a_bits=(4, 32))


def networks(space, number, seed=0):
    controller = Controller(space.options, seed=seed)
    for _ in range(number):
        gates = controller.sample()
        yield gates, space.config({n: space.options[n][int(g.argmax())] for n, g in gates.items()})


def test_bits_in_the_table_are_those_of_the_network():
    cost = graph_cost("bits", SuperGraphNet(SPACE), X, EDGES)
    for gates, config in networks(SPACE, 10):
        sizes = graph_sizes(config, *graph_extents(X, EDGES))
        assert cost.absolute(gates) == {"weights": sizes.weight_bits, "activations": sizes.buffer_bits}


def test_bit_operations_in_the_table_are_those_of_the_network():
    cost = graph_cost("bops", SuperGraphNet(SPACE), X, EDGES)
    nodes, edges = graph_extents(X, EDGES)
    for gates, config in networks(SPACE, 10):
        in_bits = [config.input_a, *(block.out_bits for block in config.blocks)]
        total = sum(
            product_bops(block, width, bits, nodes) + message_bops(block, edges)
            for block, width, bits in zip(config.blocks, config.in_widths, in_bits, strict=False)
        )
        assert cost.absolute(gates)[""] == total


def test_the_largest_network_in_full_precision_costs_one():
    cost = graph_cost("bits", SuperGraphNet(SPACE), X, EDGES)
    dearest = {
        name: torch.eye(len(options))[-1 if name.endswith(("_w", "_a", "width", "skip")) else 0]
        for name, options in SPACE.options.items()
    }
    for number in range(3):
        dearest[f"blocks.{number}.attention"] = torch.eye(7)[6]  # three vectors of weights
        if number < 2:
            dearest[f"blocks.{number}.activation"] = torch.eye(8)[1]
    assert float(cost.relative(dearest)) == pytest.approx(1)


def test_weights_in_the_layout_are_the_parameters_of_the_network():
    for _, config in networks(SPACE, 20):
        sizes = graph_sizes(config, NODES, 300)
        net = GraphNet(config)
        counted = sum(p.numel() for name, p in net.named_parameters() if not name.endswith(".scale"))
        assert sum(stored.elements for stored in sizes.weights) == counted


def test_weights_in_the_layout_have_the_bits_that_a_trace_sees():
    config = GraphNetConfig.gat(40, 4, w_bits=4, a_bits=8)
    net = GraphNet(config).eval()
    net(X, EDGES)
    traced = {p.name: p.bits for p in hardware.trace(net, X, EDGES).parameters}
    by_name = {stored.name: stored.total_bits for stored in graph_sizes(config, NODES, 300).weights}
    for number in range(2):
        assert traced[f"blocks.{number}.linear.weight"] == by_name[f"blocks.{number}.linear"]
        assert traced[f"blocks.{number}.attention.weight"] == by_name[f"blocks.{number}.attention"]


def test_the_peak_of_a_gcn_is_its_first_product():
    sizes = graph_sizes(GraphNetConfig.gcn(1433, 7, w_bits=8, a_bits=8), nodes=2708, edges=13264)
    assert sizes.peak_bits == 8 * 2708 * (1433 + 16)
    assert sizes.buffer_bits == 8 * (2708 * (1433 + 3 * 16 + 2 * 7) + 2 * 13264)


def test_energy_in_the_table_is_that_of_the_network_estimated_whole():
    """Every option in turn, untrained: shares of zeros are what differs."""
    space = GraphSpace(40, 4, hidden_channels=(8, 16), w_bits=(4, 8), a_bits=(4, 8, 32))
    cost = CostModel(EnergyTables(space, X, EDGES, "eyeriss_like").terms(), unit="pJ")
    errors = []
    for gates, config in networks(space, 14):
        net = GraphNet(config).eval()
        net(X, EDGES)
        whole = hardware.estimate(hardware.trace(net, X, EDGES), "eyeriss_like").energy_uJ
        errors.append(abs(cost.absolute(gates)[""] / 1e6 / whole - 1))
    assert sorted(errors)[len(errors) // 2] < 0.03
    assert max(errors) < 0.1


def test_energy_grows_with_bits_and_width():
    space = GraphSpace(40, 4, hidden_channels=(8, 32), attention=("gcn",), w_bits=(4, 32), a_bits=(4, 32))
    cost = graph_cost("energy", SuperGraphNet(space), X, EDGES, "tpu_like")
    few = {name: torch.eye(len(options))[0] for name, options in space.options.items()}
    for name in ("input_a", "blocks.0.width", "blocks.0.linear_a", "blocks.0.linear_w"):
        more = {**few, name: torch.eye(2)[1]}
        assert cost.absolute(more)[""] > cost.absolute(few)[""], name


def test_measuring_leaves_the_networks_and_the_random_numbers_as_they_were():
    net = SuperGraphNet(GraphSpace(40, 4, hidden_channels=(8,), attention=("gat",), a_bits=(4,), w_bits=(4,)))
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    graph_cost("energy", net, X, EDGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "chip", "named"),
    [("watts", "tpu_like", "cost is 'watts'"), ("energy", "shumailov2021", "whole modules"), ("energy", "tpu", "tpu")],
)
def test_an_unknown_cost_or_chip_is_named(kind, chip, named):
    with pytest.raises(ValueError, match=named):
        graph_cost(kind, SuperGraphNet(SPACE), X, EDGES, chip)
