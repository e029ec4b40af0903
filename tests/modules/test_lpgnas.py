import warnings

import lightning as L
import pytest
import torch

pytest.importorskip("torch_geometric")

from torch.utils.data import DataLoader
from torch_geometric.data import Data

from lightning_effnn.data import GraphDataModule, SyntheticGraphDataModule
from lightning_effnn.modules import LPGNAS, NodeClassifier
from lightning_effnn.search import Controller
from lightning_effnn.search.graph import GraphNet, GraphNetConfig, GraphSpace, graph_sizes

pytestmark = pytest.mark.trains

SPACE = {
    "hidden_channels": (4, 8), "attention": ("none", "gcn", "gat"), "aggregation": ("sum", "mean"),
    "activation": ("relu", "elu"), "w_bits": (2, 8), "a_bits": (4, 32), "cost": "bits",
}  # fmt: skip


def trainer(folder, epochs=8, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(
        **quiet, accelerator="cpu", default_root_dir=folder,
        **{"max_epochs": epochs, "check_val_every_n_epoch": epochs, "enable_checkpointing": False, **options},
    )  # fmt: skip


def search(**options):
    return LPGNAS(16, 3, **{**SPACE, **options})


def data(**options):
    return SyntheticGraphDataModule(num_nodes=60, num_classes=3, num_features=16, **options)


def loader(graph):
    return DataLoader([graph], batch_size=None, collate_fn=lambda graph: graph)


def graph(nodes=12, edges=None, **masks):
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, nodes, (2, 30), generator=generator) if edges is None else edges
    everywhere = torch.ones(nodes, dtype=torch.bool)
    masks = {"train_mask": everywhere, "val_mask": everywhere, **masks}
    x = torch.rand(nodes, 16, generator=generator)
    return Data(x=x, edge_index=edges, y=torch.arange(nodes) % 3, **masks)


def same(first, second):
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_heavy_cost_chooses_the_cheapest_network_and_none_does_not(tmp_path):
    found = {}
    for weight in (0.0, 5.0):
        model = search(cost_weight=weight)
        trainer(tmp_path, 24).fit(model, data())
        found[weight] = model
    cheap = found[5.0].derive().config
    assert cheap.blocks[0].width == 4
    assert {cheap.blocks[0].linear_w, cheap.blocks[1].linear_w} == {2}
    assert {cheap.input_a, cheap.blocks[0].linear_a, cheap.blocks[0].aggregation_a} == {4}
    probability = {w: m.quantization.probabilities["blocks.0.linear_w"][0].item() for w, m in found.items()}
    assert probability[5.0] > 0.9
    assert probability[5.0] > probability[0.0]


def test_what_is_derived_is_a_plain_network_that_a_few_lines_of_yaml_describe(tmp_path):
    model = search(export=tmp_path / "found" / "net.yaml")
    trainer(tmp_path).fit(model, data())
    derived = model.derive()
    assert type(derived) is GraphNet
    assert GraphNetConfig.from_yaml(tmp_path / "found" / "net.yaml") == derived.config
    assert GraphNet(tmp_path / "found" / "net.yaml").config == derived.config
    assert (tmp_path / "found" / "net.png").stat().st_size > 5000
    assert len(model.history) == 8


@pytest.mark.parametrize("cost", ["bits", "bops", "energy"])
def test_a_search_resumed_in_the_middle_ends_bit_identical(tmp_path, cost):
    whole = search(cost=cost)
    trainer(tmp_path, 6).fit(whole, data())
    torch.manual_seed(123)  # the global random numbers don't matter
    first = search(cost=cost)

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 3

    half = trainer(tmp_path, 6, callbacks=[Stop()])
    half.fit(first, data())
    half.save_checkpoint(tmp_path / "half.ckpt")
    assert float(first.surrogate.count) > 0  # choices were under way
    second = search(cost=cost)
    with torch.no_grad():
        second.net.blocks[0].linear.linear.weight.zero_()
    second.quantization.draw()
    trainer(tmp_path, 6).fit(second, data(), ckpt_path=tmp_path / "half.ckpt")
    same(whole, second)
    assert whole.derive().config == second.derive().config
    assert whole.history == second.history
    assert torch.equal(whole.quantization.get_extra_state(), second.quantization.get_extra_state())


@pytest.mark.parametrize("seed", [23, 32])  # whose networks ahead have quantisers that no step has used yet
def test_a_search_that_is_validated_more_often_is_the_same(tmp_path, seed):
    rarely, often = search(seed=seed), search(seed=seed)
    trainer(tmp_path, 6).fit(rarely, data())
    trainer(tmp_path, 6, check_val_every_n_epoch=1).fit(often, data())
    same(rarely, often)


def test_a_checkpoint_loads_with_nothing_but_its_path(tmp_path):
    model = search()
    fit = trainer(tmp_path)
    fit.fit(model, data())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    loaded = LPGNAS.load_from_checkpoint(tmp_path / "x.ckpt")
    same(model, loaded)
    assert loaded.chosen == model.chosen
    scores = [m.eval()(graph().x, graph().edge_index) for m in (model, loaded)]
    assert torch.equal(*scores)


def test_the_users_random_numbers_are_left_alone(tmp_path):
    class Watch(L.Callback):
        steps = 0

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.state = torch.get_rng_state()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert torch.equal(torch.get_rng_state(), self.state)
            self.steps += 1

    watch = Watch()
    trainer(tmp_path, 3, callbacks=[watch]).fit(search(cost="energy"), loader(graph()))
    assert watch.steps == 3


def test_after_a_loss_that_is_not_finite_nothing_is_chosen_and_training_goes_on(tmp_path):
    class Spoil(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.kept = batch.x.clone()
            if trainer.current_epoch == 4:
                self.logits = [p.clone() for p in pl_module.quantization.parameters()]
                self.chosen = pl_module.chosen
                self.weights = pl_module.net.blocks[0].linear.linear.weight.clone()
                batch.x = batch.x * torch.nan

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 4:
                batch.x = self.kept
                assert torch.equal(pl_module.net.blocks[0].linear.linear.weight, self.weights)

    spoil, model = Spoil(), search()
    with pytest.warns(UserWarning, match="not finite in epoch 4.*choices stay"):
        trainer(tmp_path, 8, callbacks=[spoil]).fit(model, loader(graph()))
    assert all(torch.equal(a, b) for a, b in zip(spoil.logits, model.quantization.parameters(), strict=True))
    assert model.chosen == spoil.chosen
    weight = model.net.blocks[0].linear.linear.weight
    assert not torch.equal(weight, spoil.weights)
    assert weight.isfinite().all()


def test_without_validation_nodes_a_quarter_of_the_training_nodes_decides(tmp_path):
    nodes = 80
    model = search()
    lonely = graph(nodes, val_mask=torch.zeros(nodes, dtype=torch.bool))
    seen = []
    model._step_weights = lambda batch, mask: seen.append(mask)
    model._step_controllers = lambda batch, mask: seen.append(mask)
    with pytest.warns(UserWarning, match="nothing was chosen"):  # for both steps are replaced
        trainer(tmp_path, 4).fit(model, loader(lonely))
    train, held = seen[-2:]
    assert not (train & held).any()
    assert (train | held).all()
    assert 0.1 < held.float().mean() < 0.4
    assert held[lonely.y == 0].any()
    assert held[lonely.y == 1].any()
    assert held[lonely.y == 2].any()
    del lonely.val_mask
    other = search()
    trainer(tmp_path, 4).fit(other, loader(lonely))
    assert float(other.surrogate.count) > 0


def test_mini_batches_choose_too_with_validation_nodes_or_without(tmp_path):
    parts = data(num_neighbors=[3, 3], batch_size=16)
    model = search()
    fit = trainer(tmp_path, 4)
    fit.fit(model, parts)
    assert fit.num_training_batches == 3
    assert float(model.surrogate.count) > 10
    without = data(num_neighbors=[3, 3], batch_size=16)
    without.setup()
    without.graph.val_mask[:] = False
    model = search()
    trainer(tmp_path, 4).fit(model, without)
    assert float(model.surrogate.count) > 4


@pytest.mark.parametrize(
    "edges",
    [torch.zeros(2, 0, dtype=torch.long), torch.tensor([[0, 0, 1, 2], [0, 1, 2, 2]])],
    ids=["none", "loops, and nodes alone"],
)
@pytest.mark.parametrize("cost", ["bits", "energy"])
def test_graphs_with_few_edges(tmp_path, edges, cost):
    model = search(cost=cost)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "LPGNAS")
        trainer(tmp_path, 4).fit(model, loader(graph(edges=edges)))
    assert model.derive()(graph().x, edges).isfinite().all()
    assert float(model.surrogate.count) > 0


def test_half_precision(tmp_path):
    model = search()
    trainer(tmp_path, 4, precision="bf16-mixed").fit(model, data())
    assert float(model.surrogate.count) > 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_graph_without_training_nodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_mask"):
        trainer(tmp_path, 2).fit(search(), loader(graph(train_mask=torch.zeros(12, dtype=torch.bool))))


def test_a_fit_without_an_end_is_refused(tmp_path):
    with pytest.raises(Exception, match="max_epochs"):
        trainer(tmp_path, -1, check_val_every_n_epoch=1).fit(search(), loader(graph()))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cost": "watts"}, "cost is 'watts'"),
        ({"cost_weight": -1}, "cost_weight"),
        ({"cost_weight": float("nan")}, "cost_weight"),
        ({"samples": 0}, "samples"),
        ({"warmup": 1.0}, "warmup"),
        ({"warmup": -0.1}, "warmup"),
        ({"lr": 0.0}, "lr"),
        ({"controller_lr": -1}, "controller_lr"),
        ({"w_bits": (0,)}, "w_bits is 0"),
        ({"attention": ("gta",)}, "did you mean 'gat'"),
        ({"hidden_channels": ()}, "hidden_channels"),
        ({"a_bits": (8, 8)}, "a_bits"),
        ({"cost": "energy", "accelerator": "eyeris_like"}, "Did you mean 'eyeriss_like'"),
        ({"cost": "energy", "accelerator": "shumailov2021"}, "shumailov2021.*whole modules"),
    ],
)
def test_a_bad_argument_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        search(**options)


def test_logged_numbers(tmp_path):
    model, fit = search(), trainer(tmp_path)
    fit.fit(model, data())
    logged = fit.callback_metrics
    assert {"train/loss", "val/loss", "val/acc", "search/bits_w", "search/bits_a", "search/cost"} <= set(logged)
    assert 0 < logged["search/entropy"] < 1
    assert 0 <= logged["search/cost"] <= 1
    assert 2 <= logged["search/bits_w"] <= 32


def test_few_bits_cost_errors_that_shared_weights_do_not_show():
    space = GraphSpace(16, 3, hidden_channels=(8,), w_bits=(2, 4, 32), a_bits=(2, 32))
    controller = Controller(space.options)
    found = {}
    for name in ("blocks.0.linear_w", "blocks.0.linear_a", "input_a"):
        for number, bits in enumerate(space.options[name]):
            chosen = {choice: options[-1] for choice, options in space.options.items()}
            chosen[name] = space.options[name][number]
            found[name, bits] = float(space.unseen(controller.gates_of(chosen)))
    assert found["blocks.0.linear_w", 2] == found["blocks.0.linear_a", 2] == pytest.approx(0.01)
    assert found["blocks.0.linear_w", 4] == pytest.approx(0.01 / 16)
    assert found["blocks.0.linear_w", 32] == found["input_a", 2] == pytest.approx(0)


@pytest.mark.slow
def test_on_cora_a_network_ten_times_smaller_is_as_good_as_a_graph_convolution(tmp_path, data_folder):
    cora = GraphDataModule("cora", root=data_folder)
    model = LPGNAS(1433, 7, cost="bits")
    trainer(tmp_path, 300).fit(model, cora)
    accuracy = {}
    for name, config in (("found", model.derive().config), ("by hand", GraphNetConfig.gcn(1433, 7, 64))):
        L.seed_everything(0)
        net = GraphNet(config)  # after the seed: how a single network starts decides about two points
        fit = trainer(tmp_path, 400, check_val_every_n_epoch=1)
        classifier = NodeClassifier(net)
        fit.fit(classifier, cora)
        accuracy[name] = fit.test(classifier, cora, verbose=False)[0]["test/acc"]
    assert accuracy["found"] > accuracy["by hand"] - 0.05  # starts decide about two points of either
    found, by_hand = (graph_sizes(c, 2708, 13264) for c in (model.derive().config, GraphNetConfig.gcn(1433, 7, 64)))
    assert found.weight_bits * 10 < by_hand.weight_bits
    assert found.buffer_bits * 4 < by_hand.buffer_bits
