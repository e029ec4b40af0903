"""What a runtime can do in integers: which operations, with which widths, and what it fuses into them."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_effnn.quantization.attach import nearest_name


@dataclass(frozen=True)
class Backend:
    """A runtime, described by what decides where numbers are rounded.

    Activations have one scale a tensor and 8 unsigned bits of storage, with zero point 0 where they are never negative
    and 128 elsewhere; weights are symmetric, with a scale an output channel or one for all; biases are 32-bit
    integers in units of input scale times weight scale.

    Attributes:
        name: what one calls it.
        weight_bits, activation_bits: widths that its integer kernels take, fewer than 8 being stored in 8.
        integer: kinds of operations that it has integer kernels for, see :mod:`lightning_effnn.deploy.operations`.
        rounds_output: those of them whose kernels give integers only, so that what comes out is rounded.
        source: where this was read.

    >>> BACKENDS["onnxruntime"].weight_bits[-1]
    8
    """

    name: str
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    integer: frozenset[str]
    rounds_output: frozenset[str]
    source: str


_JOINING = frozenset({"add", "mul", "cat", "average", "sigmoid"})

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="onnxruntime",
            weight_bits=tuple(range(1, 9)),
            activation_bits=tuple(range(1, 9)),
            integer=_JOINING | {"convolution", "linear", "matmul"},
            rounds_output=_JOINING | {"convolution"},
            source="the graphs that onnxruntime 1.32 makes of such files for CPUs: QLinearConv, QGemm, "
            "MatMulIntegerToFloat, QLinearAdd, QLinearMul, QLinearConcat, QLinearAveragePool, "
            "QLinearGlobalAveragePool, QLinearSigmoid",
        ),
    )
}
"""The runtimes that are known, by name."""


def find_backend(name: str) -> Backend:
    """Return the backend called ``name``.

    Raises:
        ValueError: there is none; the message lists those that there are.

    >>> find_backend("onnxruntime").name
    'onnxruntime'
    """
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise ValueError(f"backend must be one of {known}, got {name!r}{nearest_name(name, BACKENDS)}")
    return BACKENDS[name]
