"""The recipes under search/ run one after the other from the command line: search, retrain, compress."""

import pytest
import torch

pytest.importorskip("torch_geometric")

from lightning_effnn.cli.main import main
from lightning_effnn.cli.recipes import get_recipe
from lightning_effnn.cli.run import _RecipeCLI
from lightning_effnn.compression import load_compressed
from lightning_effnn.search.graph import GraphNet, GraphNetConfig

QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
MADE_UP = ("--data=lightning_effnn.data.SyntheticGraphDataModule",)
FOUND = ("--model.init_args.net.init_args.config=runs/lpgnas_synthetic/net.yaml",)


@pytest.mark.trains
def test_search_retrain_compress(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "search/lpgnas_synthetic", *QUIET, "--trainer.max_epochs=40"]) == 0
    config = GraphNetConfig.from_yaml(tmp_path / "runs/lpgnas_synthetic/net.yaml")
    assert (tmp_path / "runs/lpgnas_synthetic/net.png").exists()
    retrain = [*QUIET, *MADE_UP, *FOUND, "--trainer.max_epochs=60"]
    assert main(["run", "search/graph_retrain", *retrain]) == 0
    compress = [*QUIET, *MADE_UP, *FOUND, "--trainer.max_epochs=20"]
    cli = _RecipeCLI(get_recipe("search/graph_compress"), compress)
    assert cli.model.net.config == config
    (trained,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert trained["test/acc"] > 0.6

    graph, another = cli.datamodule.graph, GraphNet(config)
    load_compressed("runs/graph_compress/model.effnn", torch.nn.ModuleDict({"net": another}))
    with torch.no_grad():
        scores = [net.eval()(graph.x, graph.edge_index) for net in (cli.model.net, another)]
    assert torch.equal(*scores)
    zeros = (another.blocks[0].linear.weight == 0).float().mean().item()
    assert zeros > 0.3


@pytest.mark.slow
def test_a_network_searched_on_cora_is_taught_by_one_by_hand(tmp_path, monkeypatch, data_folder):
    monkeypatch.chdir(tmp_path)
    for recipe in ("graph_gcn", "lpgnas_cora", "graph_taught"):
        assert main(["run", f"search/{recipe}", *QUIET, "--trainer.max_epochs=10"]) == 0
    net = GraphNet("runs/lpgnas_cora/net.yaml", weights="runs/graph_taught/net.safetensors")
    assert (net.config.in_channels, net.config.num_classes) == (1433, 7)


def test_a_network_that_was_not_searched_yet_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "search/graph_retrain", *QUIET, *MADE_UP]) == 2
    assert "runs/lpgnas_cora/net.yaml" in capsys.readouterr().err
