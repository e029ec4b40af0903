"""``effnn sweep``: grids, Ray Tune and W&B, on a recipe of two batches."""

import json

import pytest
import yaml

from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.main import main
from lightning_effnn.cli.sweep import parse_grid

pytest.importorskip("sklearn")

RECIPE = """
# Train for a moment.
seed_everything: 1
model:
  class_path: lightning_effnn.modules.ImageClassifier
  init_args:
    net:
      class_path: lightning_effnn.modules.SmallCNN
      init_args: {width: 4}
data:
  class_path: lightning_effnn.data.DigitsDataModule
trainer:
  max_epochs: 1
  accelerator: cpu
  limit_train_batches: 2
  limit_val_batches: 1
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  logger: false
  callbacks:
    - class_path: lightning_effnn.callbacks.FocusedCompression
      init_args: {prune: [0.0, 0.5], quantize: [0.5, 0.9], export: model.effnn}
"""
SPARSITY = "trainer.callbacks.init_args.sparsity"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(RECIPE)
    return "my.yaml"


def sweep(recipe, engine):
    code = main(
        ["sweep", recipe, "--param", f"{SPARSITY}=0.3,0.8", "--engine", engine, "--metric", "compress/sparsity",
         "--folder", "out", "--set", "trainer.limit_train_batches=4"]
    )  # fmt: skip
    assert code == 0
    with open("out/results.json") as file:
        return json.load(file)


def assert_each_had_its_value(rows):
    assert {row["values"][SPARSITY] for row in rows} == {"0.3", "0.8"}
    for row in rows:
        assert row["metrics"]["compress/sparsity"] == pytest.approx(float(row["values"][SPARSITY]), abs=0.1)


@pytest.mark.slow
def test_ray_tune_runs_every_combination_in_a_folder_of_its_own(recipe, tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lightning_effnn[sweep]'")
    assert_each_had_its_value(sweep(recipe, "ray"))
    assert len(list((tmp_path / "out").rglob("model.effnn"))) == 2
    shown = capsys.readouterr().out
    assert shown.index("0.8") < shown.index("0.3")  # the most first


@pytest.mark.slow
def test_wandb_runs_are_offline_and_their_sweep_can_be_handed_in(recipe, tmp_path):
    pytest.importorskip("wandb")
    assert_each_had_its_value(sweep(recipe, "wandb"))
    assert len(list((tmp_path / "out").rglob("run-*.wandb"))) == 2
    config = yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text())
    assert config["metric"] == {"name": "compress/sparsity", "goal": "maximize"}
    assert config["parameters"] == {SPARSITY: {"values": [0.3, 0.8]}}
    assert config["command"][:3] == ["effnn", "run", "my.yaml"]


@pytest.mark.parametrize(
    ("given", "words"),
    [([], "--param"), (["max_epochs"], "a key and its values"), (["a=1,"], "a key"), (["a=1", "a=2"], "a is given")],
)
def test_what_is_no_grid_is_refused(given, words):
    with pytest.raises(UsageError, match=words):
        parse_grid(given)


def test_programs_and_unknown_recipes_are_refused(capsys):
    assert main(["sweep", "benchmarks/codec", "--param", "a=1"]) == 2
    assert "a sweep needs a recipe in YAML" in capsys.readouterr().err
    assert main(["sweep", "quickstrt", "--param", "a=1"]) == 2
    assert "quickstart" in capsys.readouterr().err
