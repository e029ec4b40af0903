"""The recipes under search/ for the bits of any model run as they are, on a little data."""

import json

import pytest

from lightning_effnn.cli.recipes import get_recipe
from lightning_effnn.cli.run import _RecipeCLI
from lightning_effnn.quantization import QuantizationPlan
from lightning_effnn.recipes.benchmarks import search_bits, search_step_cost

QUIET = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")


def run(name, *overrides):
    """Fit as `effnn run` does, and keep trainer, model and data."""
    return _RecipeCLI(get_recipe(f"search/{name}"), [*QUIET, *overrides])


def check_the_plan(cli, name):
    """It was written, it fits the model, and every bit width is one of those to choose from."""
    plan = QuantizationPlan.load(f"runs/{name}/bits.yaml")
    plan.check(cli.model)
    callback = cli.trainer.callbacks[-1] if hasattr(cli.trainer.callbacks[-1], "plan") else None
    callback = callback or next(c for c in cli.trainer.callbacks if hasattr(c, "plan"))
    assert plan == callback.plan
    assert set(plan.weights.values()) <= set(callback.weights)
    assert set(plan.activations.values()) <= set(callback.activations)
    return plan


@pytest.mark.trains
def test_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = run("bits_digits", "--trainer.max_epochs=10")
    check_the_plan(cli, "bits_digits")
    metrics = cli.trainer.callback_metrics
    assert metrics["val/acc"] > 0.8
    assert metrics["hw/energy_uJ"] < 6  # 9.3 in fp32


def test_pretrained_resnet20_on_cifar10(images):
    cli = run("bits_resnet20", "--data.val_size=20", "--data.batch_size=30", "--trainer.max_epochs=3")
    plan = check_the_plan(cli, "bits_resnet20")
    assert len(plan.weights) == 20


@pytest.mark.trains
def test_transformer_on_sst2(sentences):
    net = ("--model.net.vocab_size=8", "--model.net.hidden_channels=16", "--model.net.dropout=0")
    cli = run("bits_transformer_sst2", *net, "--model.lr=0.01", "--data.batch_size=16", "--trainer.max_epochs=6")
    assert cli.trainer.callback_metrics["val/acc"] > 0.8  # one word decides
    plan = check_the_plan(cli, "bits_transformer_sst2")
    assert "net.encoder.layers.0.self_attn.in_proj_weight" in plan.weights


@pytest.mark.trains
def test_torch_geometrics_own_network_on_cora(data_folder, tmp_path, monkeypatch):
    pytest.importorskip("torch_geometric")
    monkeypatch.chdir(tmp_path)
    cli = run("bits_gcn", "--trainer.max_epochs=60")
    plan = check_the_plan(cli, "bits_gcn")
    assert "net.convs.0.aggr_module" in plan.activations
    assert cli.trainer.callback_metrics["val/acc"] > 0.6  # of seven classes


@pytest.mark.slow
def test_the_benchmark_compares_with_uniform_bits_and_keeps_what_it_has(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--task", "digits", "--epochs", "2", "--uniform", "W8A8", "--cost-weights", "0.3"]
    arguments += ["--out", str(tmp_path / "out.json"), "--dense", str(tmp_path), "--plot", str(tmp_path / "bits.png")]
    assert search_bits.main(arguments) == 0
    dense, uniform, found = json.loads((tmp_path / "out.json").read_text())
    assert uniform["bits_w"] == 8
    assert 2 <= found["bits_w"] <= 8
    assert found["energy_uJ"] < dense["energy_uJ"] / 2
    assert (tmp_path / "bits.png").exists()
    assert search_bits.main(arguments) == 0
    assert len(json.loads((tmp_path / "out.json").read_text())) == 3
    assert "W8A8" in capsys.readouterr().out


@pytest.mark.slow
def test_what_the_search_adds_to_a_step_is_measured(tmp_path):
    out = tmp_path / "out.json"
    assert search_step_cost.main(["--sizes", "2", "--rounds", "2", "--depth", "8", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [row["variant"] for row in rows] == ["without", "searching", "bits chosen"]
    assert rows[0]["ratio"] == 1
    assert all(row["ratio"] > 0 for row in rows)


def test_a_benchmark_without_its_data_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    assert search_bits.main(["--task", "resnet20", "--out", str(tmp_path / "out.json")]) == 2
    assert "EFFNN_DATA" in capsys.readouterr().err
