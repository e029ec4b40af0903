"""Time the entropy coder and weigh compressed files: against entropy, zlib and lzma, on the authors' pruned LeNet-5.

Streams: seconds to encode and decode symbols of several alphabets, bytes against their zero-order entropy. LeNet-5
(430,500 weights, 3,859 of them not zero): the file in fp32 as it is, and with its weights in 5-bit formats (rounded
once, without training; accuracy is the matter of benchmarks/compression), biases in fp32, fp16 and 8 bits.

EFFNN_DATA=/path/to/data effnn run benchmarks/codec                      # five million symbols a stream
effnn run benchmarks/codec --symbols 200000 --out codec.json             # shorter; without LeNet-5 if there is no data
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_effnn._files import write_text
from lightning_effnn.compression.artifact import load_compressed, save_compressed
from lightning_effnn.compression.codec import decode_tensor, encode_tensor
from lightning_effnn.compression.streams import Reader, decode_symbols, encode_symbols
from lightning_effnn.formats import NumberFormat, PowerOfTwo, RecentralizedPowerOfTwo

Row = dict[str, Any]
_LENET = "lenet5_mnist_pruned.npz"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; write the rows as JSON where ``--out`` says. Returns 1 if something did not come back."""
    parser = argparse.ArgumentParser(prog="effnn run benchmarks/codec", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--symbols", type=int, default=5_000_000, help="symbols a stream (default: 5000000)")
    parser.add_argument("--repeats", type=int, default=5, help="timings, of which the median counts (default: 5)")
    parser.add_argument("--root", help="folder of the data; by default EFFNN_DATA")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = {
        "symbols": args.symbols,
        "streams": [_stream(name, p, args.symbols, args.repeats) for name, p in _distributions().items()],
        "tensors": [_tensor(share, args.symbols, args.repeats) for share in (0.0, 0.5, 0.9, 0.99, 0.999)],
    }
    root = args.root or os.environ.get("EFFNN_DATA")
    if root and (Path(root) / _LENET).is_file():
        result["lenet5"] = _lenet(Path(root) / _LENET)
    else:
        print(f"no {_LENET}: LeNet-5 is left out; --root or EFFNN_DATA names the folder of the data")
    for title, rows in result.items():
        if isinstance(rows, list):
            Console(width=130).print(_table(title, rows))
    if args.out:
        write_text(args.out, json.dumps(result, indent=1) + "\n")
    return 0 if all(row["identical"] for rows in result.values() if isinstance(rows, list) for row in rows) else 1


def _distributions() -> dict[str, np.ndarray[Any, Any]]:
    """Probabilities by name: alphabets of 2 to 4096, from flat to nearly all zeros."""
    shares = {
        "2, even": np.ones(2),
        "2, 99 % zeros": np.array([0.99, 0.01]),
        "19, 50 % zeros": np.array([0.5, *[0.5 / 18] * 18]),
        "19, 90 % zeros": np.array([0.9, *[0.1 / 18] * 18]),
        "19, 99 % zeros": np.array([0.99, *[0.01 / 18] * 18]),
        "256, geometric": 0.97 ** np.arange(256),
        "4096, 1/rank": 1.0 / np.arange(1, 4097),
    }
    return {name: share / share.sum() for name, share in shares.items()}


def _stream(name: str, shares: np.ndarray[Any, Any], count: int, repeats: int) -> Row:
    symbols = np.random.default_rng(0).choice(shares.size, count, p=shares).astype(np.uint16)
    counts = np.bincount(symbols)
    used = counts[counts > 0]
    entropy = float((used * np.log2(count / used)).sum() / 8)
    data, encoding = _timed(lambda: encode_symbols(symbols, shares.size), repeats)
    back, decoding = _timed(lambda: decode_symbols(Reader(data), len(data), count, shares.size), repeats)
    return {
        "alphabet": name,
        "encode M/s": count / encoding / 1e6,
        "decode M/s": count / decoding / 1e6,
        "bits a symbol": len(data) * 8 / count,
        "over entropy": len(data) / entropy - 1,
        "identical": bool((back == symbols).all()),
    }


def _tensor(zeros: float, count: int, repeats: int) -> Row:
    """A tensor of 4-bit powers of two from its float32 values to bytes and back, layout chosen."""
    torch.manual_seed(0)
    number_format = PowerOfTwo(4, max_exponent=-1)
    x = number_format.quantize(torch.randn(count) * 0.2) * (torch.rand(count) >= zeros) + 0.0
    encoded, encoding = _timed(lambda: encode_tensor(x, number_format), repeats)
    back, decoding = _timed(lambda: decode_tensor(encoded.data, x.shape, x.dtype), repeats)
    return {
        "pruned": f"{zeros:.1%}",
        "layout": encoded.layout,
        "encode M/s": count / encoding / 1e6,
        "decode M/s": count / decoding / 1e6,
        "bits a weight": len(encoded.data) * 8 / count,
        "over entropy": len(encoded.data) / encoded.statistics.entropy_bytes - 1,
        "identical": torch.equal(back, x),
    }


def _lenet(path: Path) -> list[Row]:
    state = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    rows: list[Row] = []
    dense = safetensors.torch.save({name: x + 0.0 for name, x in state.items()})
    for name, packed in (("zlib", zlib.compress(dense, 9)), ("lzma", lzma.compress(dense, preset=9))):
        rows.append(_lenet_row("as it is", f"{name} of the fp32 file", len(packed), state))
    variants: dict[str, Callable[[Tensor], NumberFormat] | None] = {
        "as it is": None,
        "pow2_5": lambda x: PowerOfTwo(5).fit(x),
        "focus5": lambda x: RecentralizedPowerOfTwo(5).fit(x),
    }
    for variant, fit in variants.items():
        rounded, formats = _rounded(state, fit)
        for other in ("fp32", "fp16", "int8"):
            rows.append(_saved(variant, rounded, formats, other))
        if fit is not None:
            packed = lzma.compress(safetensors.torch.save(rounded), preset=9)
            rows.append(_lenet_row(variant, "lzma of the fp32 file", len(packed), rounded))
    return rows


def _rounded(
    state: dict[str, Tensor], fit: Callable[[Tensor], NumberFormat] | None
) -> tuple[dict[str, Tensor], dict[str, NumberFormat]]:
    """Weights as levels of a format each, zeros kept; biases as they are."""
    formats = {} if fit is None else {name: fit(x) for name, x in state.items() if x.ndim > 1}
    return {
        name: formats[name].quantize(x) * (x != 0) + 0.0 if name in formats else x for name, x in state.items()
    }, formats


def _saved(variant: str, state: dict[str, Tensor], formats: dict[str, NumberFormat], other: Any) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lenet5.effnn"
        report = save_compressed(state, path, other=other, formats=formats)
        back = load_compressed(path)
    kept = [name for name in state if other == "fp32" or name in formats]
    row = _lenet_row(variant, f".effnn, other={other}", report.bytes, state)
    row["identical"] = all(torch.equal(back[name], state[name]) for name in kept)
    weights = [t for t in report.tensors if len(t.shape) > 1]
    row["weights"] = sum(t.bytes for t in weights)
    row["their entropy"] = round(sum(t.entropy_bytes for t in weights))
    row["biases"] = sum(t.bytes for t in report.tensors) - row["weights"]
    row["header, index"] = report.bytes - row["weights"] - row["biases"]
    return row


def _lenet_row(variant: str, file: str, size: int, state: dict[str, Tensor]) -> Row:
    dense = 4 * sum(x.numel() for x in state.values())
    parts = dict.fromkeys(("weights", "their entropy", "biases", "header, index"))
    return {"weights in": variant, "file": file, "bytes": size, "ratio": dense / size, **parts, "identical": True}


def _timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """What ``work`` gives, and the median of its seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading, value in rows[0].items():
        table.add_column(heading, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_shown(heading, value) for heading, value in row.items()))
    return table


def _shown(heading: str, value: Any) -> str:
    if value is None:
        return ""
    if heading == "over entropy":
        return f"{value:+.2%}"
    if isinstance(value, float):
        return f"{value:,.4f}" if heading.startswith("bits") else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
