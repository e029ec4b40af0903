"""Tables and figures to whichever logger is there, or to a folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from tqdm import tqdm

from lightning_effnn._files import write_figure, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def log_table(trainer: Trainer, key: str, rows: Sequence[Mapping[str, Any]], folder: Path | None) -> None:
    """Rows to W&B as a table, to TensorBoard as text, to ``folder`` as CSV; rank zero only."""
    if not trainer.is_global_zero or not rows:
        return
    columns = list(rows[0])
    for logger in _loggers(trainer):
        if hasattr(logger, "log_table"):  # W&B
            logger.log_table(key, columns=columns, data=[[row[c] for c in columns] for row in rows])
        elif _is(logger, "TensorBoardLogger"):
            lines = [columns, ["---"] * len(columns), *([row[c] for c in columns] for row in rows)]
            text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
            logger.experiment.add_text(key, text, trainer.global_step)
    if folder is not None:
        text_file = io.StringIO()
        writer = csv.DictWriter(text_file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / f"{_file_name(key)}.csv", text_file.getvalue())


def log_figure(trainer: Trainer, key: str, figure: Figure, folder: Path | None) -> None:
    """A matplotlib figure to W&B, to TensorBoard, to ``folder`` as PNG; rank zero only."""
    if not trainer.is_global_zero:
        return
    for logger in _loggers(trainer):
        if hasattr(logger, "log_image"):  # W&B takes pictures
            logger.log_image(key, images=[_picture(figure)])
        elif _is(logger, "TensorBoardLogger"):
            logger.experiment.add_figure(key, figure, trainer.global_step, close=False)
    if folder is not None:
        write_figure(folder / f"{_file_name(key)}.png", figure)


def say(trainer: Trainer, text: str) -> None:
    """Print lines of text above a progress bar, or where there is none; rank zero only."""
    if trainer.is_global_zero:
        tqdm.write(text)  # to sys.stdout: tqdm's bars step aside, rich's catch what goes there


def log_file(trainer: Trainer, key: str, path: str | Path, kind: str) -> None:
    """A file that was written, as an artefact of a W&B run; rank zero only."""
    if not trainer.is_global_zero:
        return
    for logger in _loggers(trainer):
        if _is(logger, "WandbLogger"):
            import wandb

            artifact = wandb.Artifact(f"{logger.experiment.id}-{_file_name(key)}", type=kind)
            artifact.add_file(str(path))
            logger.experiment.log_artifact(artifact)


def report_folder(trainer: Trainer, folder: str | Path | None) -> Path | None:
    """Where files go: the folder asked for, else beside the CSV logger's, else nowhere."""
    if folder is not None:
        return Path(folder)
    for logger in _loggers(trainer):
        if _is(logger, "CSVLogger"):
            return Path(logger.log_dir)
    return None


def _loggers(trainer: Trainer) -> list[Any]:
    """Those of a Trainer: each class has an ``experiment`` of a type of its own."""
    return list(trainer.loggers)


def _is(logger: object, name: str) -> bool:
    """Whether a logger is of a class, in ``lightning`` or ``pytorch_lightning``; its experiment is not started."""
    return any(kind.__name__ == name for kind in type(logger).__mro__)


def _file_name(key: str) -> str:
    return key.replace("/", "_")


def _picture(figure: Figure) -> Image:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    buffer.seek(0)
    return Image.open(buffer)
