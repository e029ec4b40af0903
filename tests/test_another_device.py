"""The tests in ``tests/devices`` run here, in a process of their own.

Torch has to know of a device before it runs its first backward pass, and a process that knows of one can't fork any
more and go on training.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "devices"
LONG = {f"test_{name}_elsewhere.py" for name in ("callbacks", "pde", "robustness", "search")}


def files():
    for name in sorted(path.name for path in FOLDER.glob("test_*.py")):
        yield pytest.param(name, marks=pytest.mark.slow) if name in LONG else name


@pytest.mark.parametrize("name", list(files()))
def test_mechanisms_run_where_their_inputs_are(name):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / name)]
    environment = os.environ | {"EFFNN_PRETEND_DEVICE": "1"}
    result = subprocess.run(command, env=environment, cwd=FOLDER.parent.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr[-2_000:]
