"""Coverage and multiply-accumulates of whole architectures, against numbers derived by hand here."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_effnn.hardware.trace import Trace, trace


def counted_by_torch(model, *inputs):
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def covered(trace: Trace, macs: int) -> None:
    assert trace.unknown == {}
    assert trace.coverage >= 0.99
    assert trace.macs == macs


class Shortcut(nn.Module):
    """Option A of the ResNet paper: every other pixel, new channels zero."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.added = stride, outer - inner

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return self.relu(out + x)


def resnet20():
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    inner = 16
    for outer in (16, 32, 64):
        for _ in range(3):
            layers.append(Shortcut(inner, outer, 1 if outer == inner or outer == 16 else 2))
            inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def test_resnet20_has_the_papers_40_million_multiply_accumulates():
    model, x = resnet20(), torch.randn(2, 3, 32, 32)
    first = 32 * 32 * 16 * 27
    # Each stage halves both axes and doubles the channels: 5 convolutions at full width, and the first of
    # a stage has half the input channels.
    stage = [32**2 * 16 * 16 * 9 * 6, 16**2 * 32 * 9 * (16 + 5 * 32), 8**2 * 64 * 9 * (32 + 5 * 64)]
    expected = first + sum(stage) + 64 * 10
    assert expected == 40_551_040
    covered(trace(model, x), expected)
    assert counted_by_torch(model, x) == 2 * expected


def test_mobilenet_v2_block_counts_its_depthwise_convolution_once_a_channel():
    block = nn.Sequential(
        nn.Conv2d(24, 144, 1, bias=False),
        nn.BatchNorm2d(144),
        nn.ReLU6(),
        nn.Conv2d(144, 144, 3, 2, 1, groups=144, bias=False),
        nn.BatchNorm2d(144),
        nn.ReLU6(),
        nn.Conv2d(144, 32, 1, bias=False),
        nn.BatchNorm2d(32),
    )
    result = trace(block, torch.randn(4, 24, 14, 14))
    covered(result, 14 * 14 * 24 * 144 + 7 * 7 * 144 * 9 + 7 * 7 * 144 * 32)
    depthwise = [o for o in result.operations if o.kind == "depthwise"]
    assert [(o.G, o.K, o.C, o.FY, o.stride_y) for o in depthwise] == [(144, 1, 1, 3, 2)]


def attention_macs(length, width, hidden):
    projections = 4 * length * width * width
    products = 2 * length * length * width
    return projections + products + 2 * length * width * hidden


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layer_is_covered_in_eval_with_the_fast_path_hidden(activation, norm_first):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation=activation, norm_first=norm_first)
    assert torch.backends.mha.get_fastpath_enabled()
    covered(trace(layer, torch.randn(3, 10, 32)), attention_macs(10, 32, 64))
    assert torch.backends.mha.get_fastpath_enabled()


def test_transformer_layer_in_training_costs_the_same_forward_and_twice_that_backward():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    result = trace(layer, torch.randn(3, 10, 32), training=True, batch_size=3)
    forward = 3 * attention_macs(10, 32, 64)
    covered(result.select("forward"), forward)
    # The layer's input needs no gradient: that of the packed projection of queries, keys and values is not made.
    covered(result, 3 * forward - 3 * 3 * 10 * 32 * 32)


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.position = nn.Parameter(torch.zeros(1, 17, 32))
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])


def test_vision_transformer_with_fused_attention():
    model, x = VisionTransformer(), torch.randn(2, 3, 16, 16)
    covered(trace(model, x), 16 * 32 * 48 + attention_macs(17, 32, 64) + 32 * 10)
    result = trace(model, x, training=True, batch_size=2)
    assert result.unknown == {}
    # Backward: five products of the scores' size instead of two, everything else twice but the pixels' gradient.
    scores, pixels = 17 * 17 * 32, 16 * 32 * 48
    linear = attention_macs(17, 32, 64) - 2 * scores + 320
    assert result.macs == 2 * (3 * linear + 2 * pixels + 7 * scores)


class BertLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.places = nn.Embedding(12, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])

    def forward(self, ids, mask):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.norms[0](x + self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0])
        return self.norms[1](x + self.down(F.gelu(self.up(x))))


def test_bert_layer_with_a_padding_mask():
    ids = torch.randint(100, (3, 12))
    covered(trace(BertLayer(), ids, torch.zeros(3, 12, dtype=torch.bool)), attention_macs(12, 32, 64))


@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention_in_eval(need_weights):
    model, x = nn.MultiheadAttention(32, 4, batch_first=True).eval(), torch.randn(5, 10, 32)
    covered(trace(model, x, x, x, need_weights=need_weights), 4 * 10 * 32 * 32 + 2 * 10 * 10 * 32)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_with_two_layers_and_directions(kind, gates):
    model, x = kind(24, 16, 2, bidirectional=True, batch_first=True), torch.randn(3, 9, 24)
    expected = 9 * 2 * gates * 16 * ((24 + 16) + (32 + 16))
    covered(trace(model, x), expected)
    covered(trace(model, x[:1]), expected)
    assert trace(model, x, training=True).coverage >= 0.99


def test_equal_steps_of_a_recurrent_layer_are_one_operation_with_repeats():
    result = trace(nn.GRU(8, 8, batch_first=True), torch.randn(1, 50, 8))
    assert len(result.operations) < 20
    assert max(o.repeats for o in result.operations) >= 50


def test_graph_convolutions_multiply_features_and_only_move_along_edges():
    nn_graph = pytest.importorskip("torch_geometric.nn")
    nodes, edges = torch.randn(20, 8), torch.randint(20, (2, 60))
    for layer, macs in (
        (nn_graph.GCNConv(8, 4), 20 * 8 * 4),
        (nn_graph.GATConv(8, 4, heads=2), 20 * 8 * 8),
        (nn_graph.SAGEConv(8, 4), 2 * 20 * 8 * 4),
    ):
        result = trace(layer, nodes, edges)
        covered(result, macs)
        assert {"gather", "scatter"} <= {o.kind for o in result.operations}
        assert trace(layer, nodes, edges, training=True).coverage >= 0.99


def test_graph_batches_are_rescaled_by_their_number_of_graphs():
    data = pytest.importorskip("torch_geometric.data")
    nn_graph = pytest.importorskip("torch_geometric.nn")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn_graph.GCNConv(8, 4)

        def forward(self, batch):
            return nn_graph.global_mean_pool(self.conv(batch.x, batch.edge_index), batch.batch)

    one = data.Data(x=torch.randn(20, 8), edge_index=torch.randint(20, (2, 60)))
    covered(trace(Net(), data.Batch.from_data_list([one] * 4)), 20 * 8 * 4)
    one.batch = torch.zeros(20, dtype=torch.long)
    covered(trace(Net(), one), 20 * 8 * 4)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.bottom = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        skip = F.relu(self.down(x))
        x = F.relu(self.bottom(F.max_pool2d(skip, 2)))
        return self.out(torch.cat([self.up(x), skip], 1))


def test_unet_with_a_transposed_convolution():
    model, x = UNet(), torch.randn(2, 1, 16, 16)
    expected = 256 * 8 * 9 + 64 * 16 * 8 * 9 + 64 * 16 * 8 * 4 + 256 * 16
    result = trace(model, x)
    covered(result, expected)
    assert counted_by_torch(model, x) == 2 * expected
    added = [o for o in result.operations if o.name == "up" and o.kind == "scatter"]
    assert [o.operations for o in added] == [64 * 8 * 4]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag_is_memory_traffic_and_additions(mode):
    model = nn.EmbeddingBag(50, 16, mode=mode)
    result = trace(model, torch.randint(50, (4, 7)))
    covered(result, 0)
    (bag,) = [o for o in result.operations if o.kind == "gather"]
    assert bag.elements_in >= 7 * 16
    assert bag.elements_out == 16
    assert bag.operations >= 7 * 16


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), (2, 4, 11)),
        (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=1, dilation=(1, 2)), (2, 4, 12, 12)),
        (nn.Conv3d(4, 6, 3, groups=2), (2, 4, 6, 6, 6)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 7)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 6, 6)),
        (nn.ConvTranspose3d(4, 6, 2), (2, 4, 4, 4, 4)),
        (nn.Linear(7, 3), (2, 5, 7)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_agree_with_torchs_own_count(model, shape):
    x = torch.randn(shape)
    covered(trace(model, x, batch_size=shape[0]), counted_by_torch(model, x))


def test_bilinear_is_one_product_for_each_pair_of_features():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Bilinear(4, 5, 6)

        def forward(self, x):
            return self.layer(x[:, :4], x[:, 4:])

    covered(trace(Pair(), torch.randn(3, 9)), 4 * 5 * 6)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_products_are_gathers(layout):
    class Aggregate(nn.Module):
        def forward(self, adjacency, x):
            return adjacency @ x

    adjacency = getattr(torch.eye(6), layout)()
    result = trace(Aggregate(), adjacency, torch.randn(6, 3))
    covered(result, 0)
    assert [(o.kind, o.operations) for o in result.operations] == [("gather", 2 * 6 * 3)]
