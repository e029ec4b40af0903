"""Fits that are killed end as those that are not; the recipe does it with more kills."""

import json
import subprocess
import sys

import pytest

from lightning_effnn.recipes.benchmarks._every_callback import EVERY
from lightning_effnn.recipes.benchmarks.kill_resume import ALL

pytestmark = pytest.mark.slow


def test_killed_fits_end_bit_identical(tmp_path):
    out = tmp_path / "kills.json"
    command = [sys.executable, "-m", "lightning_effnn.recipes.benchmarks.kill_resume", "--kills", "3", "--seed", "7"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    kills = json.loads(out.read_text())["kills"]
    assert set(kills) == {*EVERY, ALL}
    assert all(len(rows) == 3 and all(row["identical"] for row in rows) for rows in kills.values())
