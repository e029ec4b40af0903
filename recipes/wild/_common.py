"""What is asked of every project: the same callbacks, dropped into its own training."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_effnn._files import write_text
from lightning_effnn.callbacks import (
    FocusedCompression,
    HardwareEnergyMonitor,
    LowPrecisionSearch,
    SpongeEvaluation,
    SpongeTraining,
)
from lightning_effnn.compression import load_compressed


@dataclass(frozen=True)
class Trained:
    """What a project's training ends with.

    Attributes:
        model: its LightningModule.
        trainer: that fitted it.
        metric: the project's own, on data that was not trained on.
    """

    model: Any
    trainer: Any
    metric: float


QUIET: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip
"""What the Trainers of projects that leave it to their users are made with."""
Train = Callable[[list[Any]], Trained]
"""The project's training: takes callbacks, seeds everything, builds a new model each time."""


def run(project: str, version: str, metric: str, train: Train, argv: Sequence[str] | None) -> int:
    """Train without a callback and with each; print and write what came of it.

    Args:
        project, version, metric: how they are called in the table.
        train: the project's training.
        argv: the command line.
    """
    parser = argparse.ArgumentParser(prog=f"effnn run wild/{project}")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = _every(train, Path(folder))
    result = {"project": project, "version": version, "metric": metric, **result}
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if args.out:
        out = args.out
        write_text(out, text)
    return 0 if result["ok"] else 1


def _every(train: Train, folder: Path) -> dict[str, Any]:
    plain = train([])
    result: dict[str, Any] = {
        "trainer": type(plain.trainer).__module__.partition(".")[0],
        "model": type(plain.model).__name__,
        "parameters": sum(p.numel() for p in plain.model.parameters()),
        "plain": plain.metric,
    }
    for name, check in (("monitor", _monitor), ("compression", _compression), ("search", _search)):
        result[name] = check(train, plain, folder)
    for name, callback in (
        ("sponge training", SpongeTraining(steps=1)),
        ("sponge evaluation", SpongeEvaluation(1, attacks=("random",), limit=2)),
    ):
        result[name] = _or_refusal(train, callback)
    result["ok"] = (
        result["monitor"]["coverage"] >= 0.99
        and result["monitor"]["weights identical"]
        and result["compression"]["loads back"]
        and all(result[name].get("error") is None for name in ("sponge training", "sponge evaluation"))
    )
    return result


def _monitor(train: Train, plain: Trained, folder: Path) -> dict[str, Any]:
    trained = train([HardwareEnergyMonitor("eyeriss_like", folder=str(folder))])
    monitor = _of(trained, HardwareEnergyMonitor)
    return {
        "metric": trained.metric,
        "weights identical": _same(plain.model.state_dict(), trained.model.state_dict()),
        "energy_uJ": monitor.report.energy_uJ,
        "coverage": monitor.report.coverage,
        "unknown": sorted(monitor.report.unknown),
    }


def _compression(train: Train, plain: Trained, folder: Path) -> dict[str, Any]:
    callback = FocusedCompression(
        sparsity=0.5, bits=5, prune=(0.1, 0.4), quantize=(0.4, 0.8), export=folder / "model.effnn"
    )
    trained = train([HardwareEnergyMonitor("eyeriss_like", folder=str(folder)), callback])
    callback, monitor = _of(trained, FocusedCompression), _of(trained, HardwareEnergyMonitor)
    fresh = load_compressed(folder / "model.effnn", plain.model)
    return {
        "metric": trained.metric,
        "share of MACs": callback._selection.share_of_macs,
        "sparsity": callback.projector.sparsity,
        "ratio": callback.report.ratio,
        "bytes": callback.report.bytes,
        "energy_uJ": monitor.report.energy_uJ,
        "loads back": _same(trained.model.state_dict(), fresh.state_dict()),
    }


def _search(train: Train, plain: Trained, folder: Path) -> dict[str, Any]:
    callback = LowPrecisionSearch((4, 8), (4, 8), warmup=0.2, freeze=0.7, export=folder / "bits.yaml")
    trained = train([callback])
    callback = _of(trained, LowPrecisionSearch)
    tensors = len(callback.plan.weights) + len(callback.plan.activations)
    return {"metric": trained.metric, **callback.search.figures(), "tensors": tensors}


def _of(trained: Trained, kind: type) -> Any:
    """The callback that was in the fit: some projects copy those that they are given."""
    (found,) = (callback for callback in trained.trainer.callbacks if isinstance(callback, kind))
    return found


def _or_refusal(train: Train, callback: Any) -> dict[str, Any]:
    """A metric, or the words in which a callback refuses; anything else is an error."""
    try:
        return {"metric": train([callback]).metric}
    except (MisconfigurationException, TypeError, ValueError) as refusal:
        raised_in = refusal.__traceback__
        while raised_in is not None and raised_in.tb_next is not None:
            raised_in = raised_in.tb_next
        own = raised_in is not None and raised_in.tb_frame.f_globals["__name__"].startswith("lightning_effnn")
        return {"refused": str(refusal)} if own else {"error": repr(refusal)}
    except Exception as error:
        return {"error": repr(error)}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(torch.equal(x, other[name]) for name, x in one.items())
