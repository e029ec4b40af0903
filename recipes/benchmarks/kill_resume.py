"""Kill fits at random moments (SIGKILL), resume each from its last checkpoint, compare with a fit that was left alone.

effnn run benchmarks/kill_resume                              # 20 kills for each callback, and for all of them together
effnn run benchmarks/kill_resume --kills 3 --only FocusedCompression

A checkpoint is written every third step, within epochs too, for which Lightning asks for a loader with a state. What is
compared: parameters, buffers, the optimiser's state, the callbacks' states and the files they write, bit for bit. Needs
os.fork: Linux or macOS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn._files import write_text
from lightning_effnn.modules import ImageClassifier, SmallCNN
from lightning_effnn.recipes.benchmarks._every_callback import EVERY

ALL = "all together"
EPOCHS, BATCHES, BATCH = 4, 10, 8
EVERY_N_STEPS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a kill and how many ended bit-identical; 0 if all did."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/kill_resume", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--kills", type=int, default=20, help="for each callback (default: 20)")
    parser.add_argument("--only", action="append", choices=[*EVERY, ALL], help="callbacks; repeat for more")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = {name: _kills(name, args.kills, args.seed) for name in args.only or [*EVERY, ALL]}
    for name, rows in results.items():
        print(f"{name}: {sum(row['identical'] for row in rows)} of {len(rows)} bit-identical")
    if args.out:
        text = json.dumps({"seed": args.seed, "steps": EPOCHS * BATCHES, "kills": results}, indent=1) + "\n"
        write_text(args.out, text)
    return 0 if all(row["identical"] for rows in results.values() for row in rows) else 1


def _kills(name: str, kills: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    moments = random.Random(f"{seed} {name}")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        start = time.perf_counter()
        _finish(_begin(name, whole), whole)
        seconds = time.perf_counter() - start
        expected = json.loads((whole / "end.json").read_text())
        for number in range(kills):
            share, where = moments.random(), Path(folder) / str(number)
            step = _killed(name, where, share * seconds)
            _finish(_begin(name, where), where)
            found = json.loads((where / "end.json").read_text())
            differ = [part for part, digest in expected.items() if found[part] != digest]
            rows.append({"moment": round(share, 3), "checkpoint": step, "identical": not differ})
            print(f"{name}: killed at {share:.0%}, resumed from step {step}: {differ or 'identical'}", flush=True)
            shutil.rmtree(where)
    return rows


def _killed(name: str, folder: Path, seconds: float) -> int:
    """Begin a fit, kill it after that time, or earlier if it was over by then; return the step of its checkpoint."""
    while True:
        process = _begin(name, folder)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if not (folder / "end.json").exists():
            last = folder / "last.ckpt"
            return int(torch.load(last, weights_only=True)["global_step"]) if last.exists() else 0
        shutil.rmtree(folder)
        seconds *= 0.8


def _begin(name: str, folder: Path) -> int:
    """Start a fit in a copy of this process, in which everything is imported; return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        folder.mkdir(exist_ok=True)
        with (folder / "said.txt").open("w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            _fit(name, folder)
            code = 0
    except BaseException:
        (folder / "error.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _finish(process: int, folder: Path) -> None:
    _, status = os.waitpid(process, 0)
    if status:
        error = folder / "error.txt"
        raise RuntimeError(error.read_text() if error.exists() else f"the fit ended with {status}")


def _fit(name: str, folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    checkpoint = ModelCheckpoint(
        folder, every_n_train_steps=EVERY_N_STEPS, save_last=True, filename="{step}", enable_version_counter=False
    )
    callbacks = [make(folder) for which, make in EVERY.items() if name in (which, ALL)]
    model = ImageClassifier(SmallCNN(width=4), schedule="constant")
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        callbacks=[*callbacks, checkpoint],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    last = folder / "last.ckpt"
    loaders = _Resumable(_data(BATCHES), BATCH), DataLoader(_data(2), BATCH)
    trainer.fit(model, *loaders, ckpt_path=last if last.exists() else None)
    parts = {"model": model.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
    parts |= {type(callback).__name__: callback.state_dict() for callback in callbacks}
    digests = {part: _digest(state) for part, state in parts.items()}
    files = [path for path in folder.iterdir() if path.suffix in (".effnn", ".yaml", ".safetensors")]
    digests |= {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    write_text(folder / "end.json", json.dumps(digests))


class _Resumable(DataLoader[Any]):
    """A loader that goes on within an epoch: Lightning saves the state of those that have one."""

    position = 0

    def __iter__(self) -> Any:
        first = self.position % len(self)
        for number, batch in enumerate(super().__iter__()):
            if number >= first:
                self.position = number + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def _data(batches: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batches * BATCH, 1, 8, 8, generator=generator)
    return TensorDataset(images, torch.arange(len(images)) % 10)


def _digest(state: Any) -> str:
    """Of all numbers in a nested state, in order."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for key, item in value.items():
                digest.update(str(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
