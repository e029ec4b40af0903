"""Everything that is not a product: steps on elements, counted by what they read, write and compute.

Counts an element: 1 for a simple pointwise operation, 4 for a transcendental function, a root or a
division; batch normalisation 2 in inference (scale and shift) and 4 in training, other normalisations 4,
any normalisation's gradient 8; softmax 5 and its gradient 4; a pool, one for each element of each window;
a reduction, one for each element read; a sort of n, log2(n) comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_effnn.hardware.tracing import tables
from lightning_effnn.hardware.tracing.handlers_attention import (
    SOFTMAX_BACKWARD_OPERATIONS,
    SOFTMAX_OPERATIONS,
)
from lightning_effnn.hardware.tracing.pieces import HANDLERS, Call, Handler, Piece, Vector, handles
from lightning_effnn.hardware.tracing.storage import stored_elements

NORM_INFERENCE, NORM_TRAINING, NORM_BACKWARD = 2, 4, 8


def elementwise(call: Call) -> list[Piece] | None:
    """One or more simple operations for each element written."""
    name = call.name.removeprefix("_foreach_")
    each = tables.FEW_OPERATIONS.get(name) or (
        tables.FUNCTION_OPERATIONS if name in tables.FUNCTIONS or name.startswith("special_") else 1
    )
    operations = each * elements(call.outputs)
    keeps = name in tables.SAME_VALUES
    return [Vector("elementwise", call.inputs, call.outputs, operations, fusable=True, keeps_format=keeps)]


@handles(*tables.MOVES)
def move(call: Call) -> list[Piece] | None:
    """Copies: elements read and written, nothing computed."""
    reads = call.inputs
    if call.name == "_to_copy" and reads[0].dtype == call.outputs[0].dtype:
        return rearrange(call)
    if call.name in ("copy", "_copy_from", "as_strided_scatter"):
        reads = reads[1:]  # the destination is overwritten, not read
    elif call.name in ("fill", "zero", "random", "uniform", "normal", "bernoulli", "exponential"):
        reads = []
    elif call.random:
        reads = []  # only the shape of the argument is looked at
    elif call.fills:
        return []  # a value that is known beforehand needs no memory to come from
    return [Vector("move", reads, call.outputs, keeps_format=True)]


@handles(*tables.COPIES)
def rearrange(call: Call) -> list[Piece] | None:
    """The same values in another order: an array reads them in whatever order they are stored."""
    call.keeps_format = True
    return []


@handles(*tables.REDUCTIONS)
def reduction(call: Call) -> list[Piece] | None:
    """Sums, means, extrema, cumulative sums."""
    squares = 2 if "norm" in call.name or call.name in ("var", "std", "var_mean", "std_mean", "dist") else 1
    functions = tables.FUNCTION_OPERATIONS if "exp" in call.name else 0
    operations = (squares + functions) * elements(call.inputs)
    keeps = call.name in ("amax", "amin", "max", "min", "aminmax")
    return [Vector("reduce", call.inputs, call.outputs, operations, keeps_format=keeps)]


@handles("_cdist_forward", "_pdist_forward", "_euclidean_dist", "_cdist_backward", "_pdist_backward")
def distances(call: Call) -> list[Piece] | None:
    """Difference, square (or magnitude) and sum for each pair and feature."""
    features = call.inputs[-1 if "forward" in call.name or "euclid" in call.name else 1].shape[-1]
    pairs = call.inputs[-1].numel() if "backward" in call.name else elements(call.outputs)
    return [Vector("reduce", call.inputs, call.outputs, 3 * pairs * features)]


@handles(*tables.GATHERS)
def gather(call: Call) -> list[Piece] | None:
    """Elements taken and the indices that say which; never the whole table."""
    found = elements(call.outputs)
    indices = [t for t in call.inputs[1:] if not t.is_floating_point()]
    steps = 0
    if call.name in ("bucketize", "searchsorted"):  # a binary search for each element
        steps = found * log2(max((t.shape[-1] for t in call.inputs if t.dim()), default=1))
    return [Vector("gather", call.inputs, call.outputs, steps, elements_in=found, also=indices, keeps_format=True)]


@handles("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(call: Call) -> list[Piece] | None:
    """Rows taken and added up, one addition for each element taken."""
    weight, indices = call.get("weight"), call.get("indices")
    taken = indices.numel() * weight.shape[-1]
    weights = call.get("per_sample_weights")
    operations = taken * (1 if weights is None else 2)
    if call.get("mode") == 1:  # the mean divides each output
        operations += tables.FUNCTION_OPERATIONS * call.outputs[0].numel()
    read = taken + (0 if weights is None else weights.numel())
    return [Vector("gather", call.inputs, call.outputs[:1], operations, elements_in=read, also=[indices])]


@handles(*tables.SCATTERS)
def scatter(call: Call) -> list[Piece] | None:
    """Elements sent to where the indices say: read, added, written; memory traffic and additions."""
    source = call.get("src", "source", "values", "value", "grad_output", "grad", "grad_in")
    sent = source.numel() if isinstance(source, Tensor) else call.inputs[-1].numel()
    indices = [t for t in call.inputs if t.dtype is torch.int64 and t is not source and t is not call.inputs[0]]
    inplace = any(call.outputs[0] is t for t in call.inputs)
    old = sent if inplace else call.outputs[0].numel()  # what is there already is read and written back
    written = sent if inplace else old
    return [Vector("scatter", call.inputs, call.outputs, sent, sent + old, written, also=indices)]


@handles(*tables.SORTS)
def sort(call: Call) -> list[Piece] | None:
    """``log2(n)`` comparisons for each of the ``n`` elements along the axis that is sorted."""
    source = call.inputs[0]
    axis = call.get("dim")
    n = source.shape[axis] if isinstance(axis, int) and source.dim() else source.numel()
    return [Vector("sort", call.inputs, call.outputs, source.numel() * log2(n))]


@handles(*tables.SOFTMAXES)
def softmax(call: Call) -> list[Piece] | None:
    """Along one axis: maximum, subtraction, exponential, sum, division."""
    each = SOFTMAX_BACKWARD_OPERATIONS if "backward" in call.name else SOFTMAX_OPERATIONS
    return [Vector("softmax", call.inputs, call.outputs, each * elements(call.outputs))]


@handles(*tables.BATCH_NORMS)
def batch_norm(call: Call) -> list[Piece] | None:
    """Statistics, scale and shift; in inference the statistics are constants and it can be fused."""
    training = call.get("training", "train")
    if training is None:
        training = "no_training" not in call.name and call.name not in (
            "_batch_norm_no_update",
            "batch_norm_elemt",
        )
    each = NORM_TRAINING if training else NORM_INFERENCE
    operations = each * call.inputs[0].numel()
    return [Vector("norm", call.inputs, call.outputs[:1], operations, fusable=not training)]


@handles(*tables.OTHER_NORMS)
def norm(call: Call) -> list[Piece] | None:
    """Layer, group and root-mean-square normalisation: the statistics are computed each time."""
    return [Vector("norm", call.inputs, call.outputs[:1], NORM_TRAINING * call.inputs[0].numel())]


@handles(*tables.NORM_BACKWARDS)
def norm_backward(call: Call) -> list[Piece] | None:
    """Gradients of input, scale and shift."""
    return [Vector("norm", call.inputs, call.outputs, NORM_BACKWARD * call.inputs[0].numel())]


@handles(*tables.POOLS)
def pool(call: Call) -> list[Piece] | None:
    """One operation for each element of each window; an adaptive one looks at each input once."""
    source, result = call.inputs[0], call.outputs[0]
    kernel = call.get("kernel_size")
    backward = "backward" in call.name
    if kernel and not (backward and "max" in call.name):
        axes = 3 if "3d" in call.name else 2
        window = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** axes
        operations = window * (source if backward else result).numel()
    else:
        operations = max(source.numel(), result.numel())
    writes = call.outputs if backward else [result]  # the indices of the maxima are for the gradient alone
    return [Vector("pool", call.inputs, writes, operations, keeps_format="max" in call.name)]


@handles(*tables.TAPS, *(f"{name}_backward" for name in tables.TAPS))
def interpolation(call: Call) -> list[Piece] | None:
    """Weighted sums of neighbours; the nearest one is a copy."""
    taps = tables.TAPS[call.name.removesuffix("_backward")]
    finer = max(elements(call.outputs[:1]), call.inputs[0].numel() if "backward" in call.name else 0)
    if taps == 1 and "backward" not in call.name:
        return [Vector("move", call.inputs, call.outputs, keeps_format=True)]
    return [Vector("elementwise", call.inputs, call.outputs, 2 * taps * finer)]


@handles(*tables.LOSSES)
def loss(call: Call) -> list[Piece] | None:
    """A loss: no part of an inference."""
    operations = tables.LOSS_OPERATIONS * call.inputs[0].numel()
    return [Vector("reduce", call.inputs, call.outputs, operations, loss=True)]


@handles(*(f"{name.removesuffix('_forward')}_backward" for name in tables.LOSSES))
def loss_backward(call: Call) -> list[Piece] | None:
    """The gradient of a loss."""
    operations = tables.LOSS_OPERATIONS * elements(call.outputs)
    return [Vector("elementwise", call.inputs, call.outputs, operations)]


@handles(*tables.FOURIER)
def fourier(call: Call) -> list[Piece] | None:
    """The radix-2 count, ``5 n log2(n)`` real operations for ``n`` complex points, half for real ones."""
    source, result = call.inputs[0], call.outputs[0]
    full = source if source.is_complex() else result
    axes = call.get("dim") or range(full.dim())
    larger = source if source.numel() >= result.numel() else result
    points = larger.numel()
    operations = 5 * points * log2(math.prod(larger.shape[a] for a in axes))
    if not (source.is_complex() and result.is_complex()):
        operations //= 2
    return [Vector("elementwise", call.inputs, call.outputs, operations)]


@handles(*tables.UNTAGGED_ELEMENTWISE)
def untagged(call: Call) -> list[Piece] | None:
    """Pointwise, though torch does not say so."""
    return elementwise(call)


def handler_of(func: object, name: str) -> Handler | None:
    """The handler for an aten overload: by name, else by the tags torch gives it."""
    if name in HANDLERS:
        return HANDLERS[name]
    tags = getattr(func, "tags", ())
    reduces = getattr(torch.Tag, "reduction", None)  # newer than torch 2.4
    if name.startswith("_foreach_") or "fake_quantize" in name or torch.Tag.pointwise in tags:
        return elementwise
    if name in tables.UNTAGGED_REDUCTIONS or (reduces is not None and reduces in tags):
        return reduction
    return None


def elements(tensors: Sequence[Tensor]) -> int:
    """Stored elements of all ``tensors``."""
    return sum(stored_elements(t) for t in tensors)


def log2(n: int) -> int:
    """Rounded up, at least 1."""
    return max(1, math.ceil(math.log2(max(2, n))))
