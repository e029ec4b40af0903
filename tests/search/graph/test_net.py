import copy
import io
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("torch_geometric")

import torch_geometric as geometric

from lightning_effnn import hardware
from lightning_effnn.search.graph import BlockConfig, GraphNet, GraphNetConfig
from lightning_effnn.search.graph.config import ACTIVATIONS, AGGREGATIONS, ATTENTIONS, NORMS
from lightning_effnn.search.graph.parts import Graph, LearnedAttention

torch.manual_seed(0)
X = torch.rand(12, 5)
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 7, 2, 1], [1, 0, 1, 4, 3, 5, 7, 6, 8, 9, 9]])  # 5 a loop, 10, 11 alone


def one_block(in_channels=5, **options):
    config = {"width": 6, "attention": "none", "activation": "none", **options}
    return GraphNet(GraphNetConfig(in_channels, (BlockConfig(**config),))).eval()


def test_gcn_is_that_of_torch_geometric():
    net = GraphNet(GraphNetConfig.gcn(5, 3, width=8)).eval()
    layers = [geometric.nn.GCNConv(5, 8), geometric.nn.GCNConv(8, 3)]
    for layer, block in zip(layers, net.blocks, strict=True):
        layer.lin.weight.data, layer.bias.data = block.linear.weight.data, torch.randn(block.bias.shape)
        block.bias.data = layer.bias.data
    expected = layers[1](F.relu(layers[0](X, EDGES)), EDGES)
    assert torch.allclose(net(X, EDGES), expected, atol=1e-6)


def test_gat_is_that_of_torch_geometric():
    net = one_block(width=8, attention="gat", heads=2)
    layer = geometric.nn.GATConv(5, 4, heads=2)
    block = net.blocks[0]
    layer.lin.weight.data, layer.bias.data = block.linear.weight.data, block.bias.data
    layer.att_dst.data, layer.att_src.data = block.attention.weight.data.unsqueeze(1)
    assert torch.allclose(net(X, EDGES), layer(X, EDGES), atol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations_are_those_of_torch_geometric(aggregation):
    net = one_block(aggregation=aggregation)
    block = net.blocks[0]
    edges = geometric.utils.add_self_loops(geometric.utils.remove_self_loops(EDGES)[0], num_nodes=12)[0]
    layer = geometric.nn.SimpleConv(aggr=aggregation)
    assert torch.allclose(net(X, EDGES), layer(X @ block.linear.weight.T, edges), atol=1e-6)


def test_attention_by_its_formula_node_by_node():
    graph, h = Graph.of(EDGES, 12), torch.randn(12, 6)
    for kind in ATTENTIONS[2:]:
        part = LearnedAttention(kind, 6, 1, 0.0, torch.nn.Identity(), torch.nn.Identity())
        v = {name: vector.flatten() for name, vector in zip(part.names, part.weight.detach(), strict=True)}

        def gat(i, j, v=v):
            return F.leaky_relu(v["l"] @ h[i] + v["r"] @ h[j], 0.2)

        score = {
            "gat": gat,
            "sym_gat": lambda i, j, gat=gat: gat(i, j) + gat(j, i),
            "cos": lambda i, j, v=v: (v["l"] * h[i]) @ (v["r"] * h[j]),
            "linear": lambda i, j, v=v: torch.tanh(v["r"] @ h[j]),
            "gen_linear": lambda i, j, v=v: v["a"] @ torch.tanh(v["l"] * h[i] + v["r"] * h[j]),
        }[kind]
        found = part(h, graph)[:, 0]
        for node in range(12):
            into = graph.target == node
            expected = torch.softmax(torch.stack([score(node, j) for j in graph.source[into].tolist()]), 0)
            assert torch.allclose(found[into], expected, atol=1e-5), kind


@pytest.mark.trains
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bits", [4, 32])
def test_it_learns_with_every_activation(activation, bits):
    names = ("linear_w", "linear_a", "attention_w", "attention_a", "aggregation_a", "activation_a")
    block = BlockConfig(12, "gat", activation=activation, **dict.fromkeys(names, bits))
    last = BlockConfig(3, "gen_linear", skip="linear", activation="none", linear_w=bits)
    torch.manual_seed(1)
    net = GraphNet(GraphNetConfig(5, (block, last), input_a=bits, dropout=0.0))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    labels = X[:, :3].argmax(1)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(net(X, EDGES), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_mean_that_is_taken_away_is_a_bias_once_trained():
    config = GraphNetConfig.gcn(5, 3, width=8)
    net, plain = GraphNet(replace(config, norm="mean")), GraphNet(config).eval()
    scores = net(X, EDGES)
    assert torch.allclose(scores.mean(0), torch.zeros(3), atol=1e-6)
    for _ in range(300):
        net(X, EDGES)  # dropout differs each time: the running mean is of many
    net.eval()
    state = {name: tensor for name, tensor in net.state_dict().items() if ".mean." not in name}
    for number, block in enumerate(net.blocks):
        state[f"blocks.{number}.bias"] = block.bias - block.mean.value
    plain.load_state_dict(state)
    assert torch.allclose(net(X, EDGES), plain(X, EDGES), atol=1e-6)
    cost, expected = (hardware.estimate(hardware.trace(each, X, edge_index=EDGES), "tpu_like") for each in (net, plain))
    assert cost.energy_uJ == expected.energy_uJ


def test_the_mean_is_kept_in_double_precision_too():
    net = GraphNet(replace(GraphNetConfig.gcn(5, 3), norm="mean")).double()
    net(X.double(), EDGES)
    assert net.blocks[0].mean.value.dtype == torch.float64
    assert net.blocks[0].mean.value.abs().sum() > 0


def test_levels_are_as_many_as_the_bits_say():
    net = one_block(aggregation_a=2, linear_w=2)
    assert len(net(X, EDGES).unique()) <= 4
    assert len(net.blocks[0].linear.weight_quantizer(net.blocks[0].linear.weight).unique()) <= 4


def test_steps_of_weights_are_learned_and_those_of_activations_follow_them():
    net = one_block(linear_w=4, aggregation_a=4).train()
    of_weight, of_sum = net.blocks[0].linear.weight_quantizer, net.blocks[0].aggregation_quantizer
    net(X, EDGES).square().sum().backward()
    assert of_weight.scale.grad.abs() > 0
    assert "blocks.0.aggregation_quantizer.scale" not in dict(net.named_parameters())
    before = of_weight.scale.clone(), of_sum.scale.clone()
    net(10 * X, EDGES)
    assert torch.equal(of_weight.scale, before[0])
    assert of_sum.scale > before[1]


def test_a_graph_without_edges_is_a_network_on_each_node():
    net = GraphNet(GraphNetConfig.gcn(5, 3)).eval()
    none = torch.empty(2, 0, dtype=torch.long)
    hidden = F.relu(X @ net.blocks[0].linear.weight.T)
    assert torch.allclose(net(X, none), hidden @ net.blocks[1].linear.weight.T, atol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_isolated_node_sees_itself_alone(attention, aggregation):
    net = one_block(attention=attention, aggregation=aggregation)
    whole = net(X, EDGES)
    assert torch.allclose(whole[[10]], net(X[[10]], torch.empty(2, 0, dtype=torch.long)), atol=1e-6)
    assert whole.isfinite().all()


def test_loops_that_are_there_already_change_nothing():
    net = GraphNet(GraphNetConfig.gcn(5, 3)).eval()
    loops = torch.arange(12).repeat(2, 1)
    assert torch.allclose(net(X, torch.cat([EDGES, loops, loops], 1)), net(X, EDGES), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_float32_scores_near_those_without(dtype):
    net = GraphNet(GraphNetConfig.gat(5, 3, w_bits=8, a_bits=8)).eval()
    exact = net(X, EDGES)
    with torch.autocast("cpu", dtype):
        scores = net(X, EDGES)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, exact, atol=0.1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_network_in_half_precision_gives_float32_scores_near_those_of_the_whole(attention, norm):
    torch.manual_seed(0)
    blocks = (BlockConfig(16, attention=attention), BlockConfig(3, attention=attention, skip="linear"))
    net = GraphNet(GraphNetConfig(5, blocks, norm=norm, dropout=0.0))
    exact = net(X, EDGES)
    scores = net.to(torch.bfloat16)(X.bfloat16(), EDGES)
    scores.sum().backward()
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, exact, atol=0.1)
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in net.parameters())


@pytest.mark.parametrize(
    ("x", "edges", "named"),
    [
        (torch.rand(4, 3), EDGES[:, :0], "x has the shape"),
        (torch.rand(5), EDGES[:, :0], "x has the shape"),
        (X, EDGES.T, "edge_index has the shape"),
    ],
)
def test_inputs_of_another_shape_are_refused(x, edges, named):
    with pytest.raises(ValueError, match=named):
        GraphNet(GraphNetConfig.gcn(5, 3))(x, edges)


def test_it_saves_loads_copies_and_is_built_from_its_config(tmp_path):
    net = GraphNet(GraphNetConfig.gat(5, 3, w_bits=4, a_bits=4)).eval()
    scores = net(X, EDGES)
    assert torch.equal(copy.deepcopy(net)(X, EDGES), scores)
    net.config.to_yaml(tmp_path / "net.yaml")
    torch.save(net.state_dict(), tmp_path / "net.pt")
    again = GraphNet.from_config(tmp_path / "net.yaml").eval()
    again.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(again(X, EDGES), scores)
    whole = io.BytesIO()
    torch.save(net, whole)
    whole.seek(0)
    assert torch.equal(torch.load(whole, weights_only=False)(X, EDGES), scores)


def test_a_trace_sees_the_formats_of_every_product():
    config = GraphNetConfig.gcn(5, 3, w_bits=4, a_bits=8)
    net = GraphNet(config).eval()
    net(X, EDGES)
    trace = hardware.trace(net, X, EDGES)
    products = [(str(o.w_format), str(o.i_format)) for o in trace.operations if o.is_mac]
    assert products == [("int4", "uint8"), ("int4", "uint8")]
    assert trace.coverage == 1


def test_without_torch_geometric_the_extra_is_named(monkeypatch):
    import builtins

    from lightning_effnn.search.graph import _geometric

    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("torch_geometric"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    _geometric._utils.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"lightning_effnn\[graph\]"):
        GraphNet(GraphNetConfig.gcn(5, 3))
