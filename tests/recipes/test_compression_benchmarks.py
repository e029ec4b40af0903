"""The compression benchmarks run and hold what they claim."""

import json
from dataclasses import replace

import pytest

from lightning_effnn.recipes.benchmarks import compression, compression_energy, focused_against_shift, post_training


def test_the_authors_network_is_three_hundred_times_smaller_without_retraining(tmp_path, data_folder):
    assert post_training.main(["--bits", "5", "--out", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    focused, plain = found["rows"]
    assert focused["ratio"] >= 300
    assert focused["points lost"] <= 0.15
    assert focused["focused layers"] == 4
    assert plain["mse"] > focused["mse"]
    assert plain["points lost"] > focused["points lost"]


@pytest.mark.slow
def test_a_short_fit_is_measured_from_its_file_and_not_run_twice(tmp_path, data_folder, capsys):
    out = tmp_path / "out.json"
    arguments = ["--task", "lenet5", "--epochs", "1", "--dense-epochs", "1", "--set", "sparsity=0.5"]
    arguments += ["--out", str(out), "--dense", str(tmp_path)]
    assert compression.main(arguments) == 0
    rows = json.loads(out.read_text())
    assert [row["kind"] for row in rows] == ["dense", "focused"]
    assert rows[1]["equal after loading"] is True
    assert rows[1]["ratio"] > 8
    assert rows[1]["energy_uJ"] < rows[0]["energy_uJ"]
    assert compression.main(arguments) == 0
    assert json.loads(out.read_text()) == rows
    assert "focused" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", [compression, compression_energy, post_training])
def test_missing_data_is_named(recipe, monkeypatch, capsys):
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    assert recipe.main([]) == 2
    assert "EFFNN_DATA" in capsys.readouterr().err


def test_each_layers_energy_falls_as_its_weights_are_pruned(tmp_path, data_folder):
    arguments = ["--sparsity", "0.5", "0.9", "--images", "2", "--out", str(tmp_path / "out.json")]
    assert compression_energy.main([*arguments, "--plot", str(tmp_path / "energy.png")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    dense, half, tenth = (row for row in found["rows"] if row["chip"] == "eyeriss_like")
    assert found["rising"] == []
    assert set(dense["layers"]) == set(tenth["layers"])
    for name, energy in dense["layers"].items():
        assert energy > half["layers"][name] > tenth["layers"][name]
    assert (tmp_path / "energy.png").stat().st_size > 10_000


@pytest.mark.trains
def test_focused_and_plain_levels_are_compared_on_one_network(tmp_path, monkeypatch, capsys):
    task = replace(focused_against_shift.TASKS["digits"], retrain_epochs=3)
    monkeypatch.setitem(focused_against_shift.TASKS, "digits", task)
    out = tmp_path / "out.json"
    arguments = ["--seeds", "1", "--bits", "4", "--epochs", "4", "--out", str(out)]
    assert focused_against_shift.main(arguments) == 0
    (row,) = rows = json.loads(out.read_text())
    assert row["focused layers"] > 0
    assert row["shift layers"] == 0
    assert row["focused, as it is"]["loss"] != row["shift, as it is"]["loss"]
    assert row["focused, retrained"]["loss"] < row["focused, as it is"]["loss"]
    assert focused_against_shift.main(arguments) == 0
    assert json.loads(out.read_text()) == rows
    assert "digits" in capsys.readouterr().out
