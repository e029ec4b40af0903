"""Run ONNX files in onnxruntime on one thread of a CPU: their outputs, their time, and which kernels ran."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_effnn.deploy.onnx_file import require

_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger"}
_MATRIX_PRODUCTS = {"Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger",
                    "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}  # fmt: skip
_RECURRENT = {"LSTM", "GRU", "RNN"}
_ONE_BYTE = {"int8", "uint8"}


class Session:
    """A file loaded by onnxruntime.

    Args:
        file: its path, or its content.
        optimised: ``False`` runs the operations one by one as the file has them.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: onnxruntime doesn't take the file.
    """

    def __init__(self, file: str | Path | bytes, *, optimised: bool = True, profile: str | None = None) -> None:
        require("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
            # Packed weights have no shape in the profile, and blocks of channels another one.
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        source = file if isinstance(file, bytes) else str(file)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no class of their own
            raise ValueError(
                f"onnxruntime doesn't take {'the model' if isinstance(file, bytes) else file}: {error}"
            ) from error
        self._names = [value.name for value in self._session.get_inputs()]

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """Return all outputs for ``inputs``."""
        return [torch.from_numpy(x) for x in self._session.run(None, self._feed(inputs))]

    def seconds(self, *inputs: Tensor) -> float:
        """Return how long the processor is busy with one run."""
        feed = self._feed(inputs)
        start = time.process_time()
        self._session.run(None, feed)
        return time.process_time() - start

    def end_profiling(self) -> list[dict[str, Any]]:
        """Return what the profiler saw, of a session with a profile."""
        found: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text())
        return found

    def _feed(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        return dict(zip(self._names, (x.detach().cpu().numpy() for x in inputs), strict=True))


def milliseconds_in_turns(sessions: Sequence[Session], inputs: tuple[Tensor, ...], repeats: int) -> list[list[float]]:
    """Run sessions one after the other, ``repeats`` times; return the milliseconds of each one's runs."""
    for session in sessions:
        session.run(*inputs)  # warm
    rounds = [[session.seconds(*inputs) * 1e3 for session in sessions] for _ in range(repeats)]
    return [list(times) for times in zip(*rounds, strict=True)]


def integer_share(file: str | Path | bytes, *inputs: Tensor) -> float:
    """Return the share of multiply-accumulates that ran in integer kernels of onnxruntime, as its profiler saw them.

    Args:
        file: the ONNX file, or its content.
        inputs: what to run it on, once.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = Session(file, profile=f"{folder}/run")
        session.run(*inputs)
        events = session.end_profiling()
    total = done = 0
    for event in events:
        details = event.get("args", {})
        if event.get("cat") == "Node" and "output_type_shape" in details:
            count = _macs(details)
            total += count
            done += count if set(details["input_type_shape"][0]) & _ONE_BYTE else 0
    return done / max(total, 1)


def _macs(details: dict[str, Any]) -> int:
    """Multiply-accumulates of one kernel."""
    shapes: list[list[int]] = [next(iter(shape.values())) for shape in details["input_type_shape"]]
    outputs: int = math.prod(next(iter(details["output_type_shape"][0].values())))
    if details["op_name"] in _CONVOLUTIONS:
        weight = shapes[3 if details["op_name"] == "QLinearConv" else 1]
        return outputs * math.prod(weight[1:])
    if details["op_name"] in _RECURRENT:
        return math.prod(shapes[0][:2]) * (math.prod(shapes[1]) + math.prod(shapes[2]))
    if details["op_name"] == "ConvTranspose":
        return math.prod(shapes[0]) * math.prod(shapes[1][1:])
    return outputs * shapes[0][-1] if details["op_name"] in _MATRIX_PRODUCTS else 0
