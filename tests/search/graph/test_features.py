import copy

import pytest
import torch

pytest.importorskip("torch_geometric")

from lightning_effnn import hardware
from lightning_effnn.search.graph import GraphNet, GraphNetConfig
from lightning_effnn.search.graph.features import SparseFeatures

EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])


def sparse(nodes=200, features=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(nodes, features, generator=generator) < 0.03).float() * torch.rand(
        nodes, features, generator=generator
    )


@pytest.mark.parametrize("bits", [2, 8, 32])
def test_sparse_and_dense_features_give_the_same_scores_and_gradients(bits):
    x = sparse()
    net = GraphNet(GraphNetConfig.gcn(50, 3, a_bits=bits, w_bits=bits)).eval()
    net(x, EDGES)
    results = []
    for shown in (x, x.clone().requires_grad_()):  # features with a gradient stay dense
        net.zero_grad()
        scores = net(shown, EDGES)
        scores.square().sum().backward()
        results.append((scores.detach(), net.blocks[0].linear.weight.grad.clone()))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-4)


def test_what_was_found_is_kept_for_the_tensor_as_it_is_and_no_other():
    features, identity = SparseFeatures(), torch.nn.Identity()
    x = sparse()
    first = features.quantized(x, identity)
    assert features.quantized(x, identity).values().data_ptr() == first.values().data_ptr()
    x[0, 0] = 7.0
    assert features.quantized(x, identity).to_dense()[0, 0] == 7
    other = sparse(seed=1)
    assert torch.equal(features.quantized(other, identity).to_dense(), other)
    assert torch.equal(copy.deepcopy(features).quantized(x, identity).to_dense(), x)


def test_dense_features_stay_dense():
    x = torch.rand(20, 5)
    assert SparseFeatures().quantized(x, torch.nn.Identity()) is x


def test_a_trace_is_shown_the_dense_product():
    net = GraphNet(GraphNetConfig.gcn(50, 3)).eval()
    x = sparse()
    net(x, EDGES)
    products = [o for o in hardware.trace(net, x, EDGES).operations if o.is_mac]
    assert [(o.B, o.C, o.K) for o in products] == [(200, 50, 16), (200, 16, 3)]
    assert products[0].i_density == pytest.approx(float((x != 0).float().mean()))
