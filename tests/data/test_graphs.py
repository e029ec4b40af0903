import builtins

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from lightning_effnn.data import GraphDataModule, SyntheticGraphDataModule
from lightning_effnn.data._neighbors import NeighborSampler
from lightning_effnn.search.graph import GraphNet, GraphNetConfig


@pytest.fixture
def folder(tmp_path):
    """A graph of six nodes with a public split, one node without features."""
    x = np.array([[1, 1, 0], [0, 2, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]], np.float32)
    rows, columns = x.nonzero()
    masks = {f"{name}_mask": np.arange(6) // 2 == n for n, name in enumerate(("train", "val", "test"))}
    np.savez(
        tmp_path / "graph_cora.npz",
        x_data=x[rows, columns],
        x_indices=columns.astype(np.int32),
        x_indptr=np.concatenate([[0], np.cumsum((x != 0).sum(1))]).astype(np.int32),
        x_shape=np.array(x.shape),
        edge_index=np.array([[0, 1, 4], [1, 0, 5]], np.int32),
        y=np.array([0, 1, 0, 1, 0, 2], np.int16),
        **masks,
    )
    return tmp_path


def test_features_are_divided_by_their_sum_and_an_empty_row_stays_empty(folder):
    data = GraphDataModule("cora", root=folder)
    data.setup()
    assert data.graph.x[0].tolist() == [0.5, 0.5, 0]
    assert data.graph.x.sum(1).tolist() == pytest.approx([1, 1, 0, 1, 1, 1])
    assert data.graph.edge_index.dtype == torch.int64
    assert (data.num_features, data.num_classes) == (3, 3)


def test_features_of_purchases_stay_as_they_are(folder):
    (folder / "graph_cora.npz").rename(folder / "graph_amazon_computers.npz")
    data = GraphDataModule("amazon_computers", split="random", root=folder)
    data.setup()
    assert data.graph.x[1].tolist() == [0, 2, 0]


def test_every_stage_gets_the_whole_graph_once(folder):
    data = GraphDataModule("cora", root=folder)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        (graph,) = loader
        assert graph.x is data.graph.x  # not copied: a network may remember what it found out about it


def test_a_random_split_is_six_two_two_and_chosen_by_the_seed(folder):
    first, again, other = (SyntheticGraphDataModule(num_nodes=50, seed=seed) for seed in (1, 1, 2))
    for data in (first, again, other):
        data.setup()
    masks = [first.graph[f"{name}_mask"] for name in ("train", "val", "test")]
    assert [int(mask.sum()) for mask in masks] == [30, 10, 10]
    assert torch.stack(masks).sum(0).unique().tolist() == [1]
    assert torch.equal(first.graph.train_mask, again.graph.train_mask)
    assert torch.equal(first.graph.x, again.graph.x)
    assert not torch.equal(first.graph.train_mask, other.graph.train_mask)


def test_the_made_up_graph_is_undirected_and_homophilous():
    data = SyntheticGraphDataModule(num_nodes=400, num_classes=4, degree=8, homophily=0.75)
    data.setup()
    source, target = data.graph.edge_index
    pairs = set(zip(source.tolist(), target.tolist(), strict=True))
    assert all((b, a) in pairs and a != b for a, b in pairs)
    assert len(pairs) / 400 == pytest.approx(8, rel=0.15)
    assert (data.graph.y[source] == data.graph.y[target]).float().mean() == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "pubmed"}, "name"),
        ({"split": "half"}, "split"),
        ({"num_neighbors": [5, 0]}, "num_neighbors"),
        ({"num_neighbors": []}, "num_neighbors"),
        ({"num_neighbors": [2], "batch_size": 0}, "batch_size"),
    ],
)
def test_a_wrong_argument_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        GraphDataModule(**options)


@pytest.mark.parametrize("options", [{"num_nodes": 0}, {"homophily": 1.5}, {"degree": -1}])
def test_a_graph_that_cannot_be_made_up_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SyntheticGraphDataModule(**options)


def test_a_public_split_that_is_not_there_names_the_other(folder):
    with np.load(folder / "graph_cora.npz") as file:
        arrays = {name: file[name] for name in file if not name.endswith("_mask")}
    np.savez(folder / "graph_cora_ml.npz", **arrays)
    with pytest.raises(ValueError, match="random"):
        GraphDataModule("cora_ml", split="public", root=folder).setup()
    GraphDataModule("cora_ml", split="random", root=folder).setup()


def test_without_torch_geometric_the_extra_is_named(folder, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("torch_geometric"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"lightning_effnn\[graph\]"):
        GraphDataModule("cora", root=folder).setup()


def test_all_neighbours_give_a_batch_the_scores_of_the_whole_graph():
    data = SyntheticGraphDataModule(num_nodes=80, num_neighbors=[-1, -1, -1], batch_size=16)
    data.setup()
    torch.manual_seed(0)
    net = GraphNet(GraphNetConfig.gcn(32, 4, width=8)).eval()
    whole = net(data.graph.x, data.graph.edge_index)
    seen = torch.zeros(80, dtype=torch.long)
    for part in data.train_dataloader():
        chosen = part.train_mask | part.val_mask
        # the last hop's own degrees are right because each of its edges is there as well
        scores = net(part.x, part.edge_index)[: int(chosen.sum())]
        expected = [whole[i] for i in find(part.x[: len(scores)], data.graph.x)]
        assert torch.allclose(scores, torch.stack(expected), atol=1e-5)
        seen[find(part.x[: len(scores)], data.graph.x)] += 1
    assert torch.equal(seen.bool(), data.graph.train_mask | data.graph.val_mask)


def find(rows, x):
    """Numbers of the nodes with these features; features are unique in the graph used."""
    same = (rows[:, None] == x[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


def test_no_node_gets_more_edges_than_asked_for_and_none_twice():
    data = SyntheticGraphDataModule(num_nodes=60, degree=20)
    data.setup()
    part = NeighborSampler(data.graph, [3], seed=0)([4, 9, 11])
    into = torch.bincount(part.edge_index[1], minlength=3)
    assert into.tolist()[:3] == [3, 3, 3]
    assert len({tuple(edge) for edge in part.edge_index.T.tolist()}) == 9
    assert torch.equal(part.x[:3], data.graph.x[[4, 9, 11]])


def test_batches_are_the_same_for_the_same_seed_and_epoch_and_others_in_the_next():
    def batches(seed, epoch):
        data = SyntheticGraphDataModule(num_nodes=60, seed=seed, num_neighbors=[2, 2], batch_size=20)
        data.setup()
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([part.edge_index.flatten() for part in loader])

    assert torch.equal(batches(0, 1), batches(0, 1))
    assert not torch.equal(batches(0, 0), batches(0, 1))


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "features", "classes"),
    [
        ("cora", 2708, 10556, 1433, 7),
        ("citeseer", 3327, 9104, 3703, 6),
        ("amazon_computers", 13752, 491722, 767, 10),
        ("cora_ml", 2995, 16316, 2879, 7),
    ],
)
def test_the_real_graphs_have_the_published_sizes(data_folder, name, nodes, edges, features, classes):
    data = GraphDataModule(name, split="random", root=data_folder)
    data.setup()
    assert data.graph.x.shape == (nodes, features)
    assert data.graph.edge_index.shape == (2, edges)
    assert data.num_classes == classes


@pytest.mark.parametrize(("name", "sizes"), [("cora", [140, 500, 1000]), ("citeseer", [120, 500, 1000])])
def test_the_public_splits_have_the_published_sizes(data_folder, name, sizes):
    data = GraphDataModule(name, root=data_folder)
    data.setup()
    assert [int(data.graph[f"{part}_mask"].sum()) for part in ("train", "val", "test")] == sizes
