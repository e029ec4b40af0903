"""The benchmark of graph searches runs, keeps its rows, and measures fronts as it says."""

import json

import pytest

from lightning_effnn.data import SyntheticGraphDataModule
from lightning_effnn.recipes.benchmarks import search_graph_memory, search_graphs
from lightning_effnn.recipes.benchmarks._fronts import dominated_area, plot_fronts


def test_the_area_is_that_of_the_rectangles_that_points_dominate():
    assert dominated_area([(4.0, 0.9), (2.0, 0.8), (8.0, 0.7)], corner=(16.0, 0.5)) == pytest.approx(1.1)
    assert dominated_area([(4.0, 0.9)], corner=(16.0, 0.5)) == pytest.approx(0.8)
    assert dominated_area([(32.0, 0.9), (4.0, 0.4)], corner=(16.0, 0.5)) == 0
    assert dominated_area([], corner=(16.0, 0.5)) == 0


def test_fronts_are_drawn(tmp_path):
    plot_fronts({"a graph": {"by hand": [(9.0, 0.8)], "searched": [(1.0, 0.7), (2.0, 0.8)]}}, tmp_path / "fronts.png")
    assert (tmp_path / "fronts.png").stat().st_size > 10_000


@pytest.mark.slow
def test_all_networks_of_a_seed_are_measured_once(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_geometric")
    monkeypatch.setattr(
        search_graphs, "GraphDataModule", lambda name, split, seed: SyntheticGraphDataModule(num_nodes=80, seed=seed)
    )
    out = tmp_path / "out.json"
    arguments = ["--epochs", "12", "--train-epochs", "6", "--cost-weight", "0.1", "2.0", "--out", str(out)]
    assert search_graphs.main(arguments) == 0
    rows = json.loads(out.read_text())
    assert [row["kind"] for row in rows] == [
        "GCN-16", "GCN-64", "GAT 8x8", "GCN-64 W8A8", "GCN-64 W4A8", "GCN-64 W4A4", "LPGNAS", "GCN-64, bits",
        "LPGNAS", "GCN-64, bits", "LPGNAS, fp32", "random", "random",
    ]  # fmt: skip
    by_kind = {row["kind"]: row for row in rows}
    assert by_kind["GCN-64"]["weight_bits"] > 6 * by_kind["GCN-64 W4A4"]["weight_bits"]
    assert by_kind["GCN-64"]["mean_bits"] == 32
    assert by_kind["GCN-64 W4A4"]["mean_bits"] == 4
    assert by_kind["LPGNAS, fp32"]["mean_bits"] == 32
    assert by_kind["GCN-64, bits"]["mean_bits"] <= 8
    assert [block["width"] for block in by_kind["GCN-64, bits"]["config"]["blocks"]] == [64, 4]
    assert all(row["validation"] == max(value for value, _ in row["starts"]) for row in rows)
    assert all(0 <= row["accuracy"] <= 1 and row["energy_uJ"] > 0 for row in rows)
    assert search_graphs.main([*arguments, "--plot", str(tmp_path / "fronts.png")]) == 0
    assert json.loads(out.read_text()) == rows
    assert (tmp_path / "fronts.png").exists()
    assert "dominated area" in capsys.readouterr().out


def test_only_the_kinds_that_are_asked_for_are_run(tmp_path, monkeypatch):
    pytest.importorskip("torch_geometric")
    monkeypatch.setattr(
        search_graphs, "GraphDataModule", lambda name, split, seed: SyntheticGraphDataModule(num_nodes=80, seed=seed)
    )
    out = tmp_path / "out.json"
    arguments = ["--seeds", "2", "--epochs", "4", "--train-epochs", "2", "--cost-weight", "0.1", "--out", str(out)]
    assert search_graphs.main([*arguments, "--kinds", "GCN-16", "GCN-64, bits"]) == 0
    assert [row["kind"] for row in json.loads(out.read_text())] == 2 * ["GCN-16", "GCN-64, bits"]
    with pytest.raises(SystemExit):
        search_graphs.main([*arguments, "--kinds", "GCN-17"])


def test_searches_choose_from_the_bits_that_are_given(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_geometric")
    monkeypatch.setattr(search_graphs, "GraphDataModule", lambda *_, **__: SyntheticGraphDataModule(num_nodes=80))
    out = tmp_path / "out.json"
    arguments = ["--epochs", "4", "--train-epochs", "2", "--cost-weight", "0.1", "--out", str(out)]
    arguments += ["--kinds", "GCN-16", "GCN-64, bits", "LPGNAS", "--weights", "3", "5", "--activations", "7"]
    assert search_graphs.main(arguments) == 0
    rows = json.loads(out.read_text())
    for row in rows[1:]:
        assert row["settings"]["w_bits"] == [3, 5]
        places = {name: bits for block in row["config"]["blocks"] for name, bits in block.items()}
        assert {bits for name, bits in places.items() if name.endswith("_w")} <= {3, 5}
        assert {bits for name, bits in places.items() if name.endswith("_a")} <= {7}
    assert "GCN-64, bits, w3|5, a7 0.1" in capsys.readouterr().out
    assert search_graphs.main(arguments) == 0
    assert json.loads(out.read_text()) == rows
    with pytest.raises(SystemExit):
        search_graphs.main([*arguments, "--weights", "0", "4"])


def test_a_norm_is_that_of_searched_networks_and_of_one_by_hand(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_geometric")
    monkeypatch.setattr(search_graphs, "GraphDataModule", lambda *_, **__: SyntheticGraphDataModule(num_nodes=80))
    out = tmp_path / "out.json"
    arguments = ["--epochs", "4", "--train-epochs", "2", "--cost-weight", "0.1", "--out", str(out), "--norm", "mean"]
    assert search_graphs.main([*arguments, "--kinds", "GCN-16", "GCN-64", "LPGNAS", "random"]) == 0
    rows = json.loads(out.read_text())
    assert [(row["kind"], row["config"].get("norm")) for row in rows] == [
        ("GCN-16", None), ("GCN-64", None), ("GCN-64", "mean"), ("LPGNAS", "mean"), ("random", "mean"),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "GCN-64, mean norm" in printed
    assert "LPGNAS, mean norm 0.1" in printed
    assert "cora random, mean norm: dominated area" in printed


def test_networks_are_trained_taught_too_and_what_their_search_holds_is_counted(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_geometric")
    for module in (search_graphs, search_graph_memory):
        monkeypatch.setattr(module, "GraphDataModule", lambda *_, **__: SyntheticGraphDataModule(num_nodes=80))
    out = tmp_path / "out.json"
    arguments = ["--epochs", "4", "--train-epochs", "3", "--cost-weight", "0.1", "--out", str(out), "--taught"]
    assert search_graphs.main([*arguments, "--kinds", "GCN-16", "LPGNAS"]) == 0
    rows = json.loads(out.read_text())
    assert [(row["kind"], row["settings"].get("teacher")) for row in rows] == [
        ("GCN-16", None), ("GCN-16", "GCN-64"), ("LPGNAS", None), ("LPGNAS", "GCN-64"),
    ]  # fmt: skip
    assert rows[2]["config"] == rows[3]["config"]  # of one search
    assert rows[2]["search_seconds"] == rows[3]["search_seconds"]
    assert rows[0]["starts"] != rows[1]["starts"]

    (tmp_path / "cora.json").write_text(json.dumps([row | {"split": "public"} for row in rows]))
    arguments = ["--results", str(tmp_path / "cora.json"), "--draws", "3"]
    assert search_graph_memory.main(arguments) == 0
    assert "its step MB" in capsys.readouterr().out
    assert search_graph_memory.main([*arguments, "--graph", "citeseer"]) == 2
    assert "no row LPGNAS of citeseer" in capsys.readouterr().err


def test_missing_data_is_named(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_geometric")
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    assert search_graphs.main(["--out", str(tmp_path / "out.json")]) == 2
    assert "EFFNN_DATA" in capsys.readouterr().err
