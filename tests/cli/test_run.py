import csv
import textwrap

import pytest
import yaml

from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.main import main
from lightning_effnn.cli.recipes import find_recipes

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
  logger:
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {save_dir: runs, name: mine, version: one}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/acc, mode: max, filename: best}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(RECIPE)
    return "my.yaml"


def printed_config(capsys, *overrides):
    assert main(["run", *overrides, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_recipe_trains_saves_its_config_and_says_where(recipe, tmp_path, capsys):
    assert main(["run", recipe, "--trainer.max_epochs", "2"]) == 0
    folder = tmp_path / "runs" / "mine" / "one"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["trainer"]["max_epochs"] == 2
    assert saved["seed_everything"] == 1
    assert (folder / "metrics.csv").is_file()
    shown = capsys.readouterr().out
    assert "runs/mine/one" in shown
    assert "best.ckpt" in shown


def test_a_second_run_into_the_same_folder_and_the_saved_config_both_work(recipe):
    assert main(["run", recipe]) == 0
    assert main(["run", recipe]) == 0
    assert main(["run", "runs/mine/one/config.yaml"]) == 0


def test_a_fit_can_be_resumed_from_its_checkpoint(recipe, capsys):
    assert main(["run", recipe]) == 0
    checkpoint = "runs/mine/one/checkpoints/best.ckpt"
    assert main(["run", recipe, "--ckpt_path", checkpoint, "--trainer.max_epochs", "2"]) == 0


def test_print_config_shows_recipe_and_overrides_merged(recipe, capsys):
    config = printed_config(
        capsys,
        recipe,
        "--trainer.max_epochs=7",
        "--model.net.width=6",
        "--data.init_args.batch_size=3",
        "--trainer.callbacks.init_args.monitor=val/loss",
    )
    assert config["trainer"]["max_epochs"] == 7
    assert config["trainer"]["limit_train_batches"] == 2
    assert config["model"]["init_args"]["net"]["init_args"]["width"] == 6
    assert config["data"]["init_args"]["batch_size"] == 3
    assert config["trainer"]["callbacks"][0]["init_args"]["monitor"] == "val/loss"


def test_a_callback_is_appended_to_the_recipes(recipe, capsys):
    config = printed_config(
        capsys,
        recipe,
        "--trainer.callbacks+=LearningRateMonitor",
        "--trainer.callbacks.init_args.logging_interval=step",
    )
    first, second = config["trainer"]["callbacks"]
    assert first["init_args"]["filename"] == "best"
    assert second["init_args"]["logging_interval"] == "step"


def commands_in_the_head(recipe):
    lines = (line.partition("effnn run ")[2] for line in recipe.path.read_text().splitlines() if line[:1] == "#")
    return [line.split() for line in lines if line and not line.endswith(".yaml")]


@pytest.mark.parametrize(
    "words",
    [w for r in find_recipes().values() if r.path.suffix == ".yaml" for w in commands_in_the_head(r)],
    ids=" ".join,
)
def test_every_command_in_the_head_of_a_recipe_is_accepted(capsys, words):
    config = printed_config(capsys, *words)
    for value in words[2::2]:
        assert value in str(config)


@pytest.mark.trains
def test_the_quickstart_logs_its_cost_each_epoch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs", "--trainer.logger.version=one")
    assert main(["run", "quickstart", "--trainer.max_epochs=2", "--trainer.accelerator=cpu", *logger]) == 0
    with open(tmp_path / "runs" / "lightning_logs" / "one" / "metrics.csv") as file:
        energies = [float(row["hw/energy_uJ"]) for row in csv.DictReader(file) if row["hw/energy_uJ"]]
    assert len(energies) == 2
    assert min(energies) > 0


def test_help_shows_the_recipes_values(recipe, capsys):
    assert main(["run", recipe, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: effnn run my.yaml")
    assert "--trainer.max_epochs" in shown
    assert "(type: Union[bool, int], default: 1)" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--trainer.max_epoch=3", "trainer.max_epoch"),
        ("--trainer.max_epochs=few", "few"),
        ("--model.init_args.width=3", "width"),
        ("--model.init_args.optimizer=adam", "sgd"),
        ("--model=nowhere.Model", "nowhere"),
        ("--model.init_args.lr=-1", "lr is -1.0"),
        ("--trainer.callbacks.init_args.save_top_k=-5", "save_top_k"),
        ("--trainer.accelerator=tpux", "tpux"),
    ],
)
def test_a_wrong_value_is_named_without_a_traceback(recipe, capsys, override, named):
    assert main(["run", recipe, override]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert not error.count("[--trainer.")


def test_a_key_that_only_the_fit_can_refuse_is_named_too(recipe, capsys):
    assert main(["run", recipe, "--trainer.callbacks.init_args.monitor=val/nothing"]) == 2
    assert "val/nothing" in capsys.readouterr().err


def test_traceback_on_request(recipe):
    with pytest.raises(UsageError, match="lr is"):
        main(["--traceback", "run", recipe, "--model.init_args.lr=-1"])


def test_unknown_accelerator_lists_the_presets(recipe, capsys):
    monitor = "--trainer.callbacks=lightning_effnn.callbacks.HardwareEnergyMonitor"
    assert main(["run", recipe, monitor, "--trainer.callbacks.accelerator=eyeris"]) == 2
    assert "eyeriss_like" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer: [1,\nmodel", "line"),
        ("", "no keys"),
        ("- 1\n- 2\n", "no keys"),
        ("trainer: {max_epoch: 3}\n", "max_epoch"),
        ("# nothing but\ntrainer: {max_epochs: 1}\n", "model"),
    ],
)
def test_a_malformed_recipe_is_named(tmp_path, monkeypatch, capsys, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    assert main(["run", "bad.yaml"]) == 2
    error = capsys.readouterr().err
    assert "bad.yaml" in error
    assert said in error
    assert "Traceback" not in error


def test_a_bug_in_the_users_model_comes_out_as_it_is(recipe, tmp_path):
    (tmp_path / "buggy_nets.py").write_text(
        textwrap.dedent("""
        import torch
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                raise RuntimeError("my own bug")
        """)
    )
    with pytest.raises(RuntimeError, match="my own bug"):
        main(["run", recipe, "--model.init_args.net=buggy_nets.Net"])


def test_a_benchmark_gets_the_rest_of_the_line_and_gives_the_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench.py").write_text("def main(argv):\n    print(argv)\n    return len(argv)\n")
    assert main(["run", "bench.py", "--help", "3", "-x"]) == 3
    assert capsys.readouterr().out == "['--help', '3', '-x']\n"


def test_a_python_file_without_main_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench.py").write_text("x = 1\n")
    assert main(["run", "bench.py"]) == 2
    assert "main(argv)" in capsys.readouterr().err
