r"""Which operations one real batch ran, each with its loop extents, formats and measured densities.

A :class:`~torch.utils._python_dispatch.TorchDispatchMode` sees every aten operation of one batch, the
user's modules stay as they are, and the numbers computed are those that would have been computed without
it. (Two exceptions, both only numerical: PyTorch's transformer fast path is switched off, and compiled
models run eagerly, for they would hide the operations.)

**One inference.** A trace describes the *deployment* batch, one inference by default, whatever the size of the
batch that ran. Axis 0 of the example's first tensor with two axes or more is the batch (of a torch-geometric
``Batch`` the axes along which graphs are concatenated; of a list of images the list itself; the rule is in
:mod:`~lightning_effnn.hardware.tracing.batch`), unless ``batch_dim`` and ``inferences`` say otherwise. From there
the axis is followed through every operation: whatever extent of a product or number of elements holds it is
multiplied with ``batch_size / inferences``, everything else stays. Where two readings are possible,
:attr:`Trace.notes` says which was taken and how to say the other.

**Constants.** What depends neither on the values of the batch nor has its axis is the same for each inference:
casts of weights, masks of pruning, weight and spectral norm, merged LoRA, dequantised weights. A chip gets the
result, computed before deployment; the work is no part of the trace, and the result is one of
:attr:`Trace.parameters`, in the format that the product reads. (A trace of training, with its backward pass, keeps
that work: each step prepares its constants anew.) What a model computes from learned queries expanded to the batch
is work of an inference, and so are random numbers.

**Graphs.** Nodes are no batch: one pass over the graph is one inference, nothing is rescaled.

**What is counted.** Products by their exact multiply-accumulates (biases ride along in the accumulator);
fused attention and recurrent kernels by formula, masks and dropout not taken off; everything else by
elements read and written and simple operations. Gathers and scatters are memory traffic and additions,
never multiply-accumulates. For what is not known, a rule is asked that the user registered
(:func:`~lightning_effnn.hardware.register_cost`), then torch's registry of operation counts; what stays unknown is
counted by its elements, listed in :attr:`Trace.unknown` with the reason, and lowers :attr:`Trace.coverage` by the
multiply-accumulates that it could be. The loss and metrics (inside a torch loss or torchmetrics module, or
a loss operation) are kept with phase ``"loss"`` and not counted in :attr:`Trace.macs`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from lightning_effnn._shown import show_all
from lightning_effnn._tables import html_table
from lightning_effnn.formats.declared import declared_parameters
from lightning_effnn.hardware.operation import Operation, UnknownOperation
from lightning_effnn.hardware.tracing.batch import Batch, inspect_batch
from lightning_effnn.hardware.tracing.constants import stored
from lightning_effnn.hardware.tracing.dispatch import TraceMode
from lightning_effnn.hardware.tracing.drafts import finish
from lightning_effnn.hardware.tracing.evidence import says_steps_first
from lightning_effnn.hardware.tracing.leaves import LeafCall, LeafDraft, is_leaf, measure
from lightning_effnn.hardware.tracing.modules import Frame, ModuleStack
from lightning_effnn.hardware.tracing.recorder import Recorder
from lightning_effnn.hardware.tracing.run import check_initialised, named_arguments, run_once
from lightning_effnn.hardware.tracing.seen import StoredWeight

__all__ = ["LeafCall", "StoredWeight", "Trace", "Tracer", "trace"]


@dataclass(frozen=True, repr=False)
class Trace:
    """What one batch ran, for the deployment batch.

    Attributes:
        operations: every operation, in the order of its first occurrence; equal ones within one module
            call are one, with ``repeats``.
        leaves: every call of a leaf module outside the loss, counted for the batch as traced.
        batch_size: inferences the operations describe.
        traced_batch_size: inferences in the batch that ran; ``None`` if it could not be told.
        unknown: operations whose cost is not known, by name: elements moved, modules, and why.
        parameters: each constant that an inference reads, once.
        notes: readings of the batch that may be wrong, and how to say the other.
        has_values: whether densities are those of real numbers; on the meta device and under
            ``FakeTensorMode`` there are none, and everything counts as dense.
    """

    operations: tuple[Operation, ...]
    leaves: tuple[LeafCall, ...] = ()
    batch_size: int = 1
    traced_batch_size: int | None = None
    unknown: dict[str, UnknownOperation] = field(default_factory=dict)
    parameters: tuple[StoredWeight, ...] = ()
    notes: tuple[str, ...] = ()
    has_values: bool = True

    @property
    def macs(self) -> int:
        """Multiply-accumulates, those of the loss left out."""
        return sum(o.macs for o in self.operations if o.phase != "loss")

    @property
    def effectual_macs(self) -> float:
        """Multiply-accumulates with two non-zero factors, those of the loss left out."""
        return sum(o.effectual_macs for o in self.operations if o.phase != "loss")

    @property
    def coverage(self) -> float:
        """Share of the work that is known, in [0, 1]; unknown operations count as what they could be."""
        work = sum(o.work for o in self.operations)
        unknown = sum(o.work for o in self.operations if o.kind == "unknown")
        return 1.0 - unknown / work if work else 1.0

    @property
    def weights(self) -> int:
        """Elements of the constants that are read, shared ones once."""
        return sum(p.elements for p in self.parameters)

    @property
    def weight_bits(self) -> int:
        """Bits of the constants that are read, each in its format, stored dense."""
        return sum(p.bits for p in self.parameters)

    def __repr__(self) -> str:
        unknown = f", unknown: {', '.join(self.unknown)}" if self.unknown else ""
        dense = "" if self.has_values else ", no values: everything counts as dense"
        what = "one inference" if self.batch_size == 1 else f"{self.batch_size} inferences"
        return (
            f"Trace of {what}: {len(self.operations)} operations,"
            f" {self.macs:,} MACs, {self.weights:,} weights, coverage {self.coverage:.1%}{unknown}{dense}"
        )

    def _repr_html_(self) -> str:
        """A table of the operations, for notebooks."""
        return html_table(
            repr(self),
            ("module", "operation", "repeats", "MACs", "weights", "inputs"),
            [(o.name or "(root)", o.op, f"{o.repeats:g}", f"{o.macs:,}", str(o.w_format) if o.is_mac else "",
              str(o.i_format)) for o in self.operations],
        )  # fmt: skip

    def select(self, *phases: str) -> Trace:
        """Return the trace with the operations of these phases (``"forward"``, ``"backward"``, ``"loss"``)."""
        return replace(self, operations=tuple(o for o in self.operations if o.phase in phases))


class Tracer:
    """Trace whatever runs inside a ``with`` block, a natural batch in the middle of training too.

    Values, gradients and random numbers are those of an untraced run. An exception inside the block comes
    out as it is, and nothing stays behind. A tracer may be entered again; ``trace`` is then the latest.

    Args:
        model: the module that names come from; any part of it may be called.
        batch_size: inferences the trace shall describe (deployment), at least 1.
        example: the batch that will run: any nest of tensors, mappings, sequences, dataclasses and
            torch-geometric data. If ``None``, or without a tensor in it, the arguments of the first module called.
        batch_dim: axis of the batch in the example's tensors; found if ``None``.
        inferences: how many inferences the example holds; found if ``None``.
        strict: let an exception out that is raised in looking at an operation, instead of listing the operation
            as unknown.

    Raises:
        ValueError: if ``batch_size`` is not positive, the batch is empty, or the model has lazy modules that
            were never run.

    Example:
        >>> import torch
        >>> model = nn.Linear(4, 3)
        >>> with Tracer(model) as tracer:
        ...     _ = model(torch.ones(8, 4))
        >>> tracer.trace.macs, tracer.trace.traced_batch_size
        (12, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int = 1,
        example: Any = None,
        *,
        batch_dim: int | None = None,
        inferences: int | None = None,
        strict: bool = False,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("inferences", inferences)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if batch_dim is not None and (isinstance(batch_dim, bool) or not isinstance(batch_dim, int)):
            raise ValueError(f"batch_dim must be the number of an axis, or None to find it, got {batch_dim!r}")
        self.model = model
        self.batch_size = batch_size
        self.example = example
        self.batch_dim = batch_dim
        self.inferences = inferences
        self.strict = strict
        self._stack: ExitStack | None = None
        self._trace: Trace | None = None

    @property
    def trace(self) -> Trace:
        """The finished trace.

        Raises:
            RuntimeError: if no block has been left yet without an exception.
        """
        if self._trace is None:
            raise RuntimeError("no trace yet: it is there once the tracer's block has been left")
        return self._trace

    def __enter__(self) -> Tracer:
        if self._stack is not None:
            raise RuntimeError("this tracer is already open")
        check_initialised(self.model)
        self._time_major = any(says_steps_first(module) for module in self.model.modules())
        batch = None if self.example is None else self._inspect(self.example)
        self._trace = None
        self._recorder = Recorder(self.model, self.batch_size)
        for tensor, number_format in declared_parameters(self.model):
            self._recorder.tag(tensor, number_format)
        self._leaves: list[LeafDraft] = []
        modules = ModuleStack(self.model, self._enter_module, self._leave_module)
        self._mode = TraceMode(self._recorder, modules, self.strict)
        if batch is not None and batch.tensors:
            self._recorder.see_batch(batch)
        with ExitStack() as stack:  # undone at once if one of these fails
            show_all(stack)
            modules.enter(stack)
            stack.enter_context(self._mode)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is None:
            return
        stack.close()
        if kind is None:
            self._trace = self._finish()
        del self._recorder, self._leaves, self._mode

    def abandon(self) -> None:
        """Leave the block without a trace; does nothing if it is not open."""
        self.__exit__(RuntimeError)

    def _inspect(self, example: Any) -> Batch:
        return inspect_batch(example, self.batch_dim, self.inferences, self._time_major)

    def _finish(self) -> Trace:
        recorder = self._recorder
        deployment, notes = recorder.settle()
        return Trace(
            operations=finish(recorder.drafts, deployment),
            leaves=tuple(leaf.finish() for leaf in self._leaves),
            batch_size=self.batch_size,
            traced_batch_size=None if recorder.batch is None else recorder.batch.size,
            unknown=self._mode.unknown,
            parameters=stored(recorder.drafts),
            notes=tuple(notes),
            has_values=not self._mode.without_values,
        )

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if self._mode.aside:
            return
        with self._mode.paused():
            self._recorder.meet(module)
            if self._recorder.batch is None:
                self._recorder.see_batch(self._inspect(args))
            if self._time_major and self.batch_dim is None and says_steps_first(module):
                source = next((a for a in args if isinstance(a, Tensor)), None)
                if source is not None:
                    self._recorder.hear(self._mode.modules.frame.name, source)

    def _leave_module(self, frame: Frame, module: nn.Module, args: Any, result: Any) -> None:
        unseen = frame.loss or self._mode.simulated or self._mode.aside
        if result is not None and not unseen and is_leaf(module):
            with self._mode.paused():
                self._leaves.append(measure(frame.name, module, args, result, self._recorder.book))


def trace(
    model: nn.Module,
    *inputs: Any,
    batch_size: int = 1,
    training: bool = False,
    loss: Callable[[Any], Tensor] | None = None,
    batch_dim: int | None = None,
    inferences: int | None = None,
    strict: bool = False,
    **kwargs: Any,
) -> Trace:
    """Run ``model(*inputs, **kwargs)`` once and return what it ran.

    In inference (the default) all modules are put into eval mode for the run, each gets its own mode back
    afterwards, and no gradients are recorded. With ``training`` the modes stay as they are, and the backward
    pass runs too; parameters' ``grad``, buffers and the random state are left as they were. A model on the meta
    device (with inputs there) or under ``FakeTensorMode`` needs no memory; everything then counts as dense.

    Args:
        model: any module.
        inputs, kwargs: what it is called with.
        batch_size: inferences the trace shall describe (deployment), at least 1.
        training: trace forward and backward pass.
        loss: what to differentiate, a function of the output; the sum of the output if ``None``.
        batch_dim: axis of the batch in the inputs; found if ``None``.
        inferences: how many inferences the inputs hold; found if ``None``.
        strict: let an exception out that is raised in looking at an operation, instead of listing the operation
            as unknown.

    Raises:
        ValueError: if ``batch_size`` or ``inferences`` is not positive, the batch is empty, the model has lazy
            modules that were never run, or nothing in the output can be differentiated.

    Example:
        >>> import torch
        >>> trace(nn.Conv2d(3, 8, 3), torch.zeros(16, 3, 10, 10)).macs  # 8 * 8 outputs, 8 channels, 27 inputs
        13824
        >>> trace(nn.LSTM(16, 4), torch.zeros(50, 2, 16)).traced_batch_size  # it takes the batch second
        2
    """
    example = named_arguments(model, inputs, kwargs)
    tracer = Tracer(model, batch_size, example, batch_dim=batch_dim, inferences=inferences, strict=strict)
    run_once(tracer, model, inputs, kwargs, training, loss)
    return tracer.trace
