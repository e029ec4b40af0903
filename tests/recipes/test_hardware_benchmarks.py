"""The benchmark recipes run and say what they are meant to."""

import json

import pytest

from lightning_effnn.recipes.benchmarks import hardware_accuracy, hardware_overhead, trace_loop


def test_the_accuracy_table_holds_every_chip_and_its_errors(tmp_path, capsys):
    assert hardware_accuracy.main(["--out", str(tmp_path / "deep" / "out.json")]) == 0
    found = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert {row["chip"] for row in found["zigzag.csv"]} == set(hardware_accuracy.CHIPS)
    for row in found["zigzag.csv"]:
        assert row["energy median"] <= 0.03
        assert row["energy p90"] <= 0.10
        assert row["energy worst"] <= 0.25
        assert row["latency median"] <= 0.10
        assert row["latency p90"] <= 0.25
    assert all(row["equal"] == row["layers"] for row in found["scalesim.csv"])
    assert "tpu_like" in capsys.readouterr().out


def test_a_reference_that_is_not_there_is_named(capsys):
    assert hardware_accuracy.main(["--reference", "nowhere.csv"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err


@pytest.mark.slow
def test_the_simulator_can_be_run_on_random_layers(tmp_path):
    pytest.importorskip("zigzag", reason="needs the extra zigzag")
    assert hardware_accuracy.main(["--simulate", "2", "--seed", "1", "--out", str(tmp_path / "out.json")]) == 0
    for row in json.loads((tmp_path / "out.json").read_text())["simulated"]:
        assert row["energy worst"] < 0.02


@pytest.mark.slow
def test_the_overhead_benchmark_checks_that_weights_are_identical(tmp_path, data_folder):
    arguments = ["--pairs", "1", "--batches", "3", "--out", str(tmp_path / "out.json")]
    assert hardware_overhead.main(arguments) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["weights identical"] is True


def test_the_overhead_benchmark_names_what_is_missing(tmp_path, capsys):
    assert hardware_overhead.main(["--root", str(tmp_path)]) == 2
    assert "EFFNN_DATA" in capsys.readouterr().err


def test_the_loop_benchmark_measures_each_cell_beside_a_counter_of_torch(tmp_path):
    assert trace_loop.main(["--steps", "3", "--hidden", "4", "--rounds", "1", "--out", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {(row["cell"], row["batch"]) for row in rows} == {(c, n) for c in trace_loop.CELLS for n in (1, 8)}
    assert all(row["trace, times"] > 0 and row["FlopCounterMode, times"] > 0 for row in rows)
