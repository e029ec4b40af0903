import copy
import pickle

import lightning as L
import pytest
import torch

pytest.importorskip("torch_geometric")

from safetensors.torch import save_file
from torch.utils.data import DataLoader

from lightning_effnn.data import SyntheticGraphDataModule
from lightning_effnn.modules import NodeClassifier
from lightning_effnn.search.graph import GraphNet, GraphNetConfig

pytestmark = pytest.mark.trains

CONFIG = GraphNetConfig.gcn(16, 3, width=8, w_bits=4, a_bits=8)


def trainer(folder, epochs=30, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(
        **quiet, accelerator="cpu", default_root_dir=folder, max_epochs=epochs,
        **{"enable_checkpointing": False, **options},
    )  # fmt: skip


def data(**options):
    return SyntheticGraphDataModule(num_nodes=120, num_classes=3, num_features=16, **options)


def classifier(config=CONFIG, **options):
    torch.manual_seed(0)
    return NodeClassifier(GraphNet(config), **options)


def accuracy(model, data, mask="val_mask"):
    with torch.no_grad():
        right = model.eval()(data.graph.x, data.graph.edge_index).argmax(1) == data.graph.y
    return right[data.graph[mask]].float().mean().item()


@pytest.mark.parametrize("config", [CONFIG, CONFIG.full_precision(), GraphNetConfig.gat(16, 3)], ids=["4", "32", "gat"])
def test_it_learns_communities(tmp_path, config):
    model, graph, fit = classifier(config), data(), trainer(tmp_path, 60)
    fit.fit(model, graph)
    assert {"train/loss", "val/loss", "val/acc"} <= set(fit.callback_metrics)
    (result,) = fit.test(model, graph, verbose=False)
    assert result["test/acc"] > 0.6  # of three classes
    assert result["test/acc"] == pytest.approx(accuracy(model, graph, "test_mask"))
    assert result["test/loss"] > 0


def test_steps_keep_up_with_activations_that_grow_as_the_network_trains(tmp_path):
    graph, model = data(), classifier(lr=0.05, patience=None)
    scores = model.net.blocks[1].aggregation_quantizer
    graph.setup()
    model(graph.graph.x, graph.graph.edge_index)
    first = float(scores.scale)
    trainer(tmp_path, 60).fit(model, graph)
    with torch.no_grad():
        largest = model.eval()(graph.graph.x, graph.graph.edge_index).abs().max().item()
    assert largest > 3 * 127 * first  # which the first step would have cut to a third
    assert float(scores.scale) > 4 * first
    assert largest < 2 * 127 * float(scores.scale)  # the step follows after a while, and dropout makes it larger


class Watch(L.Callback):
    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.seen.append(float(trainer.callback_metrics["val/acc"]))


def test_the_best_weights_are_put_back_and_patience_ends_the_fit(tmp_path):
    watch, model, graph = Watch(), classifier(lr=0.2, patience=6), data()
    fit = trainer(tmp_path, 200, callbacks=[watch])
    fit.fit(model, graph)
    assert len(watch.seen) < 200
    assert len(watch.seen) == model.best_epoch + 1 + 6
    assert watch.seen[model.best_epoch] == max(watch.seen)
    assert accuracy(model, graph) == pytest.approx(max(watch.seen))
    assert max(watch.seen) > watch.seen[-1] or watch.seen.count(max(watch.seen)) > 1


def test_without_patience_the_last_weights_stay(tmp_path):
    watch, model, graph = Watch(), classifier(lr=0.2, patience=None), data()
    trainer(tmp_path, 20, callbacks=[watch]).fit(model, graph)
    assert len(watch.seen) == 20
    assert accuracy(model, graph) == pytest.approx(watch.seen[-1])


def test_a_fit_that_goes_on_knows_the_best_weights_before(tmp_path):
    first, fit = classifier(lr=0.1), trainer(tmp_path, 6)
    fit.fit(first, data())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    second = classifier(lr=0.1)
    second.on_load_checkpoint(torch.load(tmp_path / "x.ckpt", weights_only=False))
    assert second.best_epoch == first.best_epoch
    assert all(torch.equal(v, second._best_weights[k]) for k, v in first._best_weights.items())
    loaded = NodeClassifier.load_from_checkpoint(tmp_path / "x.ckpt", net=GraphNet(CONFIG))
    x = torch.rand(4, 16)
    first.net.load_state_dict(torch.load(tmp_path / "x.ckpt", weights_only=False)["best"]["weights"])
    loaded.net.load_state_dict(second._best_weights)
    assert torch.equal(loaded.eval()(x, EDGES), first.eval()(x, EDGES))


EDGES = torch.tensor([[0, 1, 2], [1, 2, 3]])


def test_exported_weights_are_those_of_the_net_and_start_another_fit(tmp_path):
    path, graph = tmp_path / "deep" / "net.safetensors", data()
    model = classifier(export=path)
    trainer(tmp_path, 10).fit(model, graph)
    again = NodeClassifier(GraphNet(CONFIG, weights=path))
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name]), name
    model.eval(), again.eval()
    assert torch.equal(model(graph.graph.x, graph.graph.edge_index), again(graph.graph.x, graph.graph.edge_index))


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="do not fit GraphNet"):
        GraphNet(CONFIG, weights=tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        GraphNet.from_config(CONFIG, tmp_path / "b.safetensors")


def test_mini_batches_without_training_nodes_are_passed_over_a_graph_without_is_refused(tmp_path):
    parts = data(num_neighbors=[4, 4], batch_size=1)
    model = classifier()
    before = model.net.blocks[0].linear.weight.clone()
    trainer(tmp_path, 1).fit(model, parts)
    assert not torch.equal(model.net.blocks[0].linear.weight, before)
    whole = data()
    whole.setup()
    whole.graph.train_mask[:] = False
    with pytest.raises(ValueError, match="train_mask"):
        trainer(tmp_path, 1).fit(classifier(), whole)


def test_without_validation_nodes_the_last_weights_stay(tmp_path):
    graph = data()
    graph.setup()
    del graph.graph.val_mask
    model = classifier(patience=1)
    fit = trainer(tmp_path, 5)
    fit.fit(model, DataLoader([graph.graph], batch_size=None, collate_fn=lambda g: g))
    assert fit.current_epoch == 5
    assert model.best_epoch == -1


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": -1}, {"patience": 0}])
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        classifier(**options)


class Opinion(torch.nn.Module):
    """Says class 2 of every node, and counts how often it is asked."""

    def __init__(self, classes=3):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.tensor([0.0] * (classes - 1) + [4.0]))
        self.asked = 0

    def forward(self, x, edge_index):
        self.asked += 1
        return self.scores.expand(len(x), -1)


def test_what_a_teacher_says_of_nodes_without_labels_is_learned(tmp_path):
    graph, teacher = data(), Opinion()
    graph.setup()
    graph.graph.train_mask[:] = False
    graph.graph.train_mask[:3] = True  # of which labels say nothing about the others
    shares = []
    for options in ({}, {"teacher": teacher}):
        model = classifier(patience=None, **options)
        trainer(tmp_path, 60, limit_val_batches=0).fit(model, graph)
        assert not any("teacher" in name for name in model.state_dict())
        with torch.no_grad():
            scores = model.eval()(graph.graph.x, graph.graph.edge_index)
        shares.append((scores[3:].argmax(1) == 2).float().mean().item())
    assert shares[1] > 0.9 > shares[0]
    assert teacher.asked == 1  # the graph stayed the same
    assert teacher.scores.tolist() == [0.0, 0.0, 4.0]
    assert not teacher.scores.requires_grad


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"teacher's scores have the shape \(120, 4\): \(120, 3\) is needed"):
        trainer(tmp_path, 1).fit(classifier(teacher=Opinion(4)), data())


def test_a_taught_model_can_be_copied_and_pickled(tmp_path):
    model = classifier(teacher=Opinion())
    trainer(tmp_path, 1).fit(model, data())
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        trainer(tmp_path, 1).fit(again, data())
        assert again.teacher.net.scores.tolist() == [0.0, 0.0, 4.0]
