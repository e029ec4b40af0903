"""``effnn sweep``: grids, one after the other, by Ray Tune and as W&B runs, on a recipe of two batches."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

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


def sweep(recipe, *engine):
    code = main(
        ["sweep", recipe, "--param", f"{SPARSITY}=0.3,0.8", *engine, "--metric", "compress/sparsity",
         "--folder", "out", "--set", "trainer.limit_train_batches=4"]
    )  # fmt: skip
    assert code == 0
    with open("out/results.json") as file:
        return json.load(file)


def assert_each_had_its_value(rows):
    assert {row["values"][SPARSITY] for row in rows} == {"0.3", "0.8"}
    for row in rows:
        assert row["metrics"]["compress/sparsity"] == pytest.approx(float(row["values"][SPARSITY]), abs=0.1)


def test_every_combination_runs_without_an_engine_in_a_folder_of_its_own(recipe, tmp_path, capsys):
    assert_each_had_its_value(sweep(recipe))
    assert [path.parent.name for path in sorted((tmp_path / "out").rglob("model.effnn"))] == ["000", "001"]
    assert Path.cwd() == tmp_path
    shown = capsys.readouterr().out
    assert shown.index("0.8") < shown.index("0.3")  # the most first


@pytest.fixture
def fits_at_once(monkeypatch):
    """Replaces training; the combinations that say so fail."""

    def fit(recipe, arguments):
        (value,) = (argument.partition("=")[2] for argument in arguments if argument.startswith("--lr"))
        return {"val/acc": 1 / int(value)}  # no number is divided by 0

    monkeypatch.setattr("lightning_effnn.cli.sweep.fit_recipe", fit)


def test_a_combination_that_fails_is_named_and_the_others_run(recipe, fits_at_once, capsys):
    assert main(["sweep", recipe, "--param", "lr=0,4", "--folder", "out"]) == 1
    shown = capsys.readouterr()
    assert "{'lr': '0'}: ZeroDivisionError" in shown.err
    assert "0.25" in shown.out


def test_that_none_ended_is_said(recipe, fits_at_once, capsys):
    assert main(["sweep", recipe, "--param", "lr=0", "--folder", "out"]) == 2
    assert "no trial logged 'val/acc'; there are: none, for none ended" in capsys.readouterr().err


@pytest.mark.parametrize(("engine", "module", "extra"), [("ray", "ray", "sweep"), ("wandb", "wandb", "wandb")])
def test_an_engine_that_is_not_installed_is_one_line_that_names_the_extra(
    recipe, engine, module, extra, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["sweep", recipe, "--param", "a=1", "--engine", engine, "--folder", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"pip install 'lightning_effnn[{extra}]'" in line


def test_several_at_once_are_refused_where_they_would_run_one_after_the_other(recipe, capsys):
    assert main(["sweep", recipe, "--param", "a=1", "--at-once", "2"]) == 2
    assert "--at-once 2 needs --engine ray" in capsys.readouterr().err


@pytest.fixture
def wandb_that(monkeypatch):
    """Has ``wandb.init`` raise an error unless runs are offline; returns the modes it was asked for."""
    wandb = pytest.importorskip("wandb")

    def install(error):
        modes = []

        def init(mode=None, **options):
            modes.append(mode)
            if mode != "offline":
                raise error(wandb.errors)("no key")
            return nullcontext()

        monkeypatch.setattr(wandb, "init", init)
        return modes

    return install


def test_without_a_login_runs_of_wandb_stay_offline_and_it_is_said(recipe, fits_at_once, wandb_that, capsys):
    modes = wandb_that(lambda errors: errors.UsageError)
    assert main(["sweep", recipe, "--param", "lr=1,2", "--engine", "wandb", "--folder", "out"]) == 0
    assert modes == [None, "offline", "offline"]
    assert capsys.readouterr().out.count("not logged in to W&B: runs stay in out/wandb") == 1


def test_what_wandb_refuses_otherwise_is_one_line(recipe, fits_at_once, wandb_that, capsys):
    wandb_that(lambda errors: errors.CommError)
    assert main(["sweep", recipe, "--param", "lr=1", "--engine", "wandb", "--folder", "out"]) == 2
    assert "--engine wandb: no key; with WANDB_MODE=offline runs stay here" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_tune_runs_every_combination_in_a_folder_of_its_own(recipe, tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lightning_effnn[sweep]'")
    assert_each_had_its_value(sweep(recipe, "--engine", "ray"))
    assert len(list((tmp_path / "out").rglob("model.effnn"))) == 2
    shown = capsys.readouterr().out
    assert shown.index("0.8") < shown.index("0.3")  # the most first


@pytest.mark.slow
def test_wandb_runs_are_offline_and_their_sweep_can_be_handed_in(recipe, tmp_path):
    pytest.importorskip("wandb")
    assert_each_had_its_value(sweep(recipe, "--engine", "wandb"))
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
