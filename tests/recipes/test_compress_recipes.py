"""The recipes under compress/ run as they are, on a little data, and write the network that they end with."""

import json

import numpy as np
import pytest
import torch

from lightning_effnn.cli.main import main
from lightning_effnn.cli.recipes import get_recipe
from lightning_effnn.cli.run import _RecipeCLI
from lightning_effnn.compression import inspect_compressed, load_compressed
from lightning_effnn.modules import ResNetCIFAR
from lightning_effnn.recipes.benchmarks import post_training_resnet20

QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


def run(name, *overrides):
    """Fit as `effnn run` does, and keep trainer, model and data."""
    return _RecipeCLI(get_recipe(f"compress/{name}"), [*QUIET, *overrides])


def check_the_file_holds_the_network(cli, file):
    """Test metrics of the model that was trained, and of its file loaded into another one, are equal."""
    (trained,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    with torch.no_grad():
        for parameter in cli.model.parameters():
            parameter.fill_(torch.nan)
    load_compressed(file, cli.model)
    (loaded,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert loaded == trained
    assert np.isfinite(trained["test/loss"])


@pytest.mark.trains
def test_transformer_on_sst2(sentences):
    net = ("--model.net.vocab_size=8", "--model.net.hidden_channels=16", "--model.net.dropout=0")
    cli = run("transformer_sst2", *net, "--model.lr=0.01", "--data.batch_size=16", "--trainer.max_epochs=6")
    assert cli.trainer.callback_metrics["val/acc"] > 0.8  # one word decides
    assert cli.trainer.callback_metrics["hw/energy_uJ"] > 0
    report, state = inspect_compressed("runs/transformer_sst2/model.effnn")
    assert "net.encoder.layers.0.self_attn.in_proj_weight" in state
    weights = [t for t in report.tensors if len(t.shape) > 1 and t.elements]
    zeros = sum(t.sparsity * t.elements for t in weights) / sum(t.elements for t in weights)
    assert zeros == pytest.approx(0.9, abs=0.01)
    check_the_file_holds_the_network(cli, "runs/transformer_sst2/model.effnn")


def test_pretrained_resnet20_on_cifar10(images):
    cli = run("resnet20_cifar10", "--data.val_size=20", "--data.batch_size=30", "--trainer.max_epochs=2")
    assert cli.trainer.precision == "bf16-mixed"
    assert cli.trainer.callback_metrics["compress/sparsity"] == pytest.approx(0.74, abs=0.01)
    check_the_file_holds_the_network(cli, "runs/resnet20_cifar10/model.effnn")


def test_missing_data_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    assert main(["run", "compress/resnet20_cifar10"]) == 2
    assert "cifar10_resnet20.safetensors" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"sst2_train\.tsv.*EFFNN_DATA"):
        main(["run", "compress/transformer_sst2"])


def test_post_training_restores_statistics_and_measures_the_file(images, tmp_path, capsys):
    arguments = ["--sparsity", "0.3", "--bits", "5", "--images", "40", "--out", "out.json", "--export", "net.effnn"]
    assert post_training_resnet20.main(arguments) == 0
    dense, small = json.loads((tmp_path / "out.json").read_text())
    assert small["ratio"] > 5
    assert small["energy_uJ"] < dense["energy_uJ"]
    state = load_compressed(tmp_path / "net.effnn")
    before = ResNetCIFAR(weights="cifar10_resnet20.safetensors").state_dict()
    assert not torch.equal(state["bn1.running_mean"], before["bn1.running_mean"])
    assert torch.equal(state["bn1.bias"], before["bn1.bias"])
    assert "30%" in capsys.readouterr().out


def test_post_training_names_missing_data(monkeypatch, capsys):
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    assert post_training_resnet20.main([]) == 2
    assert "EFFNN_DATA" in capsys.readouterr().err


@pytest.mark.slow
def test_statistics_estimated_anew_regain_most_of_what_quantisation_lost(tmp_path, data_folder):
    arguments = ["--sparsity", "0.5", "--bits", "5", "--images", "2000", "--out", str(tmp_path / "out.json")]
    assert post_training_resnet20.main(arguments) == 0
    dense, small = json.loads((tmp_path / "out.json").read_text())
    assert small["with new statistics"] - small["quantised"] > 0.05
    assert dense["quantised"] - small["with new statistics"] < 0.08
