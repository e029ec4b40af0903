"""The compression benchmarks run and hold what they claim."""

import json

import pytest

from lightning_effnn.recipes.benchmarks import compression, post_training


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
    arguments = ["--task", "lenet5", "--epochs", "1", "--dense-epochs", "1", "--sparsity", "0.5", "--out", str(out)]
    assert compression.main(arguments) == 0
    rows = json.loads(out.read_text())
    assert [row["kind"] for row in rows] == ["dense", "focused"]
    assert rows[1]["equal after loading"] is True
    assert rows[1]["ratio"] > 8
    assert rows[1]["energy_uJ"] < rows[0]["energy_uJ"]
    assert compression.main(arguments) == 0
    assert json.loads(out.read_text()) == rows
    assert "focused" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", [compression, post_training])
def test_missing_data_is_named(recipe, monkeypatch, capsys):
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    assert recipe.main([]) == 2
    assert "EFFNN_DATA" in capsys.readouterr().err
