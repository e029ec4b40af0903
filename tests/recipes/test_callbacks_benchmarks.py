"""What the card says of the callbacks together agrees with the results that are kept."""

import json
from importlib import resources
from pathlib import Path

import pytest

from lightning_effnn.recipes.benchmarks import callbacks_overhead, scale_out
from lightning_effnn.recipes.benchmarks._every_callback import EVERY
from lightning_effnn.recipes.benchmarks.kill_resume import ALL

CARD = Path(__file__).parents[2] / "callbacks" / "README.md"
RESULTS = resources.files("lightning_effnn.recipes.benchmarks") / "results"


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_every_fit_that_was_killed_ended_bit_identical():
    kills = result("kill_resume")["kills"]
    assert set(kills) == {*EVERY, ALL}
    assert all(len(rows) == 20 and all(row["identical"] for row in rows) for rows in kills.values())
    assert "20 of 20 for each of the seven callbacks and for all together" in CARD.read_text()


def test_the_card_shows_what_processes_send():
    rows = result("scale_out")["rows"]
    assert all(row["same on all processes"] for row in rows)
    assert scale_out.markdown(rows) in CARD.read_text()


def test_the_card_shows_step_times_and_memory():
    assert callbacks_overhead.markdown(result("callbacks_overhead")) in CARD.read_text()
    assert result("callbacks_overhead")["growth of memory"] < 0.01


@pytest.mark.slow
def test_the_overhead_benchmark_runs(tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["--rounds", "1", "--steps", "8", "--memory-steps", "80", "--batch-size", "2", "--out", str(out)]
    assert callbacks_overhead.main(arguments) in (0, 1)  # two steps are no measurement
    found = json.loads(out.read_text())
    assert set(found["seconds a step"]) == {"none", "all", *callbacks_overhead.CALLBACKS}
    assert len(found["memory MB"]) == 8
