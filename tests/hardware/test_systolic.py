import csv
from pathlib import Path

import pytest

import lightning_effnn.recipes.benchmarks as benchmarks
from lightning_effnn.hardware import Accelerator, estimate_layers

REFERENCE = Path(benchmarks.__file__).parent / "reference" / "scalesim.csv"


def test_cycles_are_those_of_scale_sim_on_every_row():
    with REFERENCE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 100
    for row in rows:
        chip = Accelerator.systolic(int(row["rows"]), int(row["cols"]), dataflow=row["dataflow"])
        assert estimate_layers([row], chip).rows()[0]["compute_cycles"] == int(row["total_cycles"]), row


def test_groups_run_one_after_another():
    chip = Accelerator.systolic(8, 8, dataflow="os")
    one = {"name": "l", "kind": "conv", "K": 4, "C": 4, "OY": 6, "OX": 6, "FY": 3, "FX": 3}
    cycles = [estimate_layers([{**one, "G": g}], chip).rows()[0]["compute_cycles"] + 1 for g in (1, 5)]
    assert cycles[1] == 5 * cycles[0]


@pytest.mark.parametrize("sizes", [(0, 4), (4, -1), (4, 2.5)])
def test_a_size_that_is_no_positive_integer_is_named(sizes):
    with pytest.raises(ValueError, match="positive integer"):
        Accelerator.systolic(*sizes)


def test_an_unknown_dataflow_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'rs'.*'ws', 'os', 'is'"):
        Accelerator.systolic(4, 4, dataflow="rs")
