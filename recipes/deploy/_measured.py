"""A network as integer files, ours and onnxruntime's own, against itself in float32: accuracy, bytes, time."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from lightning_effnn import deploy
from lightning_effnn.deploy.export import float_onnx
from lightning_effnn.deploy.runtime import Session, integer_share, milliseconds_in_turns

BATCHES = (1, 8)


class Data(NamedTuple):
    """Batches of inputs.

    Attributes:
        calibration: to find ranges from.
        test: to measure accuracy on, with labels.
    """

    calibration: list[Tensor]
    test: list[tuple[Tensor, Tensor]]


def measured(net: nn.Module, data: Data, plans: Sequence[str], repeats: int,
             train_: Callable[[deploy.Prepared], None] | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """Return a row a file: in float32, by onnxruntime's quantize_static, by each plan, and trained if one says how."""
    rows, sessions = [], []
    example = data.calibration[0][:2]
    with tempfile.TemporaryDirectory() as folder:
        in_float = Path(folder, "float.onnx")
        in_float.write_bytes(float_onnx(deploy.prepare(net, example), example))
        peer = Path(folder, "peer.onnx")
        quantize_static(in_float, peer, data.calibration)
        files: list[tuple[str, Path, deploy.Prepared | None]] = [
            ("float32", in_float, None),
            ("quantize_static", peer, None),
        ]
        for plan in plans:
            prepared = deploy.calibrate_(deploy.prepare(net, example, plan), data.calibration).eval()
            path = Path(folder, f"{plan}.onnx")
            deploy.to_onnx(prepared, example, path)
            files.append((plan, path, prepared))
        if train_ is not None:
            prepared = deploy.prepare(net, example, plans[-1], scale="learned")
            train_(prepared)
            path = Path(folder, "trained.onnx")
            deploy.to_onnx(prepared.eval(), example, path)
            files.append((f"{plans[-1]} trained", path, prepared))
        for name, path, network in files:
            sessions.append(Session(path))
            rows.append(_row(name, path, network, sessions[-1], data))
            rows[-1]["smaller"] = in_float.stat().st_size / path.stat().st_size
        for batch in BATCHES:
            x = data.test[0][0][:batch]
            times = milliseconds_in_turns(sessions, (x,), repeats)
            for row, mine in zip(rows, times, strict=True):
                ratios = [one / other for one, other in zip(mine, times[0], strict=True)]
                row[f"ms, batch {batch}"] = statistics.median(mine)
                row[f"of float, batch {batch}"] = statistics.quantiles(ratios, n=4)
    return rows


@torch.no_grad()
def _row(name: str, path: Path, prepared: deploy.Prepared | None, session: Session, data: Data) -> dict[str, Any]:
    right = total = equal = 0
    error = power = 0.0
    for x, labels in data.test:
        (found,) = session.run(x)
        right += int((found.argmax(1) == labels).sum())
        total += len(labels)
        if prepared is not None:
            expected = prepared(x)
            error += float((found - expected).square().sum())
            power += float(expected.square().sum())
            equal += int((found.argmax(1) == expected.argmax(1)).sum())
    return {
        "file": name,
        "accuracy": right / total,
        "apart from model": None if prepared is None else (error / power) ** 0.5,
        "top-1 as model": None if prepared is None else equal / total,
        "integer": integer_share(path, data.test[0][0][:1]),
        "bytes": path.stat().st_size,
    }


def quantize_static(source: Path, target: Path, batches: Sequence[Tensor]) -> None:
    """Quantise an ONNX file by onnxruntime's own tool: 8 bits, a scale a channel, its other settings as they are."""
    import onnx
    from onnxruntime import quantization

    name = onnx.load(source).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            x = next(self.rest, None)
            return None if x is None else {name: x.numpy()}

    quantization.quantize_static(
        source,
        target,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    shown = Table(title=title, title_justify="left")
    for heading in rows[0]:
        shown.add_column(heading, justify="left" if heading == "file" else "right")
    for row in rows:
        shown.add_row(*(_text(key, value) for key, value in row.items()))
    return shown


def _text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        low, middle, high = value
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"
    if key == "bytes":
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}" if key.startswith(("ms", "smaller")) else f"{value:.2%}"
    return str(value)
