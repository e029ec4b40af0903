"""Environments of their own for other people's packages, beside what is installed here."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import torch


def installed(folder: Path, requirements: Sequence[str]) -> str:
    """Make the environment, once for these requirements; return why not, or nothing.

    Packages that are here already are shared, torch stays in its version, the others come from the package index.

    Args:
        folder: where it is made.
        requirements: as pip takes them.
    """
    marker = folder / ".installed"
    if marker.exists() and marker.read_text().split("\n") == [*requirements]:
        return ""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
    pinned = folder / "constraints.txt"
    pinned.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [[*pip, "-c", str(pinned), "setuptools>=77", *requirements]]
    root = Path(str(resources.files("lightning_effnn"))).parent
    if (root / "pyproject.toml").exists():  # a checkout: shared paths don't lead to an editable install
        steps.append([*pip, "--no-deps", "--no-build-isolation", "-e", str(root)])
    environment = os.environ | {"PIP_NO_INPUT": "1"}
    for step in steps:
        done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        if done.returncode:
            errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
            return (errors or done.stdout.splitlines() or ["pip failed"])[-1]
    marker.write_text("\n".join(requirements))
    return ""


def import_torchvision() -> None:
    """Import torchvision, for packages that import it and use none of its kernels.

    Where these don't load beside this torch, neither does the package: it wants to find two of them, which are declared
    then.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
