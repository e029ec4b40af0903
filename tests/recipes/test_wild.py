"""What is said of other people's projects agrees with the recipes; those that CI runs are run by `make wild`."""

import json
from importlib import resources
from pathlib import Path

import pytest

from lightning_effnn.recipes.benchmarks import wild

CARD = Path(__file__).parents[2] / "callbacks" / "README.md"
RESULTS = resources.files("lightning_effnn.recipes.benchmarks") / "results" / "wild.json"


def rows():
    return json.loads(RESULTS.read_text())


def test_every_project_is_in_the_results_and_came_out_as_it_should():
    assert {row["project"] for row in rows()} == set(wild.PROJECTS)
    for row in rows():
        assert row["ok"], row["project"]
        assert row["monitor"]["coverage"] >= 0.99
        assert row["monitor"]["metric"] == row["plain"]
        assert row["compression"]["loads back"]
        assert {"refused", "metric"} & set(row["sponge training"])


def test_a_gpt_2_with_layers_of_its_own_class_is_compressed_whole():
    (row,) = (row for row in rows() if row["model"] == "GPT2")
    assert row["compression"]["share of MACs"] >= 0.99


def test_both_trainers_and_graphs_and_transformers_are_among_them():
    assert {row["trainer"] for row in rows()} >= {"lightning", "pytorch_lightning"}


def test_the_card_shows_the_results():
    assert wild.markdown(rows()) in CARD.read_text()


def test_a_project_that_cannot_be_installed_is_passed_over_with_the_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(wild, "installed", lambda folder, requirements: "ERROR: no such thing")
    assert wild.main(["--only", "chemprop", "--folder", str(tmp_path), "--out", str(tmp_path / "out.json")]) == 0
    assert "chemprop: skipped: ERROR: no such thing" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"project": "chemprop", "skipped": "ERROR: no such thing"}
    ]


def test_a_project_that_fails_fails_the_run(monkeypatch, tmp_path, capsys):
    def run(*_, **__):
        return type("Done", (), {"stdout": "Traceback\nValueError: no", "returncode": 1})

    monkeypatch.setattr(wild, "installed", lambda folder, requirements: "")
    monkeypatch.setattr(wild.subprocess, "run", run)
    assert wild.main(["--only", "chemprop", "--folder", str(tmp_path)]) == 1
    assert "ValueError: no" in capsys.readouterr().out


@pytest.mark.parametrize("name", wild.PROJECTS)
def test_each_recipe_says_what_it_needs(name):
    module = __import__(f"lightning_effnn.recipes.wild.{name}", fromlist=["main"])
    assert module.REQUIREMENTS
    assert callable(module.main)
    assert callable(module.train)
