r"""Which operations one real batch ran, each with its loop extents, formats and measured densities.

A :class:`~torch.utils._python_dispatch.TorchDispatchMode` sees every aten operation of one batch, the
user's modules stay as they are, and the numbers computed are those that would have been computed without
it. (Two exceptions, both only numerical: PyTorch's transformer fast path is switched off, and compiled
models run eagerly, for they would hide the operations.)

**Batch size.** A trace describes the *deployment* batch, one inference by default, whatever the size of
the batch that was run. The example's tensors depend on the batch, and so does whatever is computed from
them; parameters, buffers and constants do not. Axis ``batch_dim`` of the example's first floating tensor
(else of its first tensor) is the batch, of size :math:`N`. An operation that reads something which
depends on the batch has its batch-like extent multiplied by ``batch_size / N``, rounded up, at least 1:
samples of a convolution, rows of a product with a constant, groups of a batched product, elements of
everything else. What is made from sizes alone (an initial state of zeros) depends on the batch if one of
its axes has size :math:`N`. Work on constants alone (weight normalisation) is not rescaled.

**Graphs.** Nodes are no batch: one pass over the graph is one inference, nothing is rescaled. A graph is
recognised by a torch-geometric ``Data`` or ``HeteroData``, by an argument named ``edge_index`` or
``adj_t``, by a square sparse matrix, or by an int64 tensor of shape [2, E] whose entries can point into
another tensor of the example. A torch-geometric ``Batch`` of several graphs is rescaled by ``batch_size /
num_graphs``.

**What is counted.** Products by their exact multiply-accumulates (biases ride along in the accumulator);
fused attention and recurrent kernels by formula, masks and dropout not taken off; everything else by
elements read and written and simple operations. Gathers and scatters are memory traffic and additions,
never multiply-accumulates. What is not known is counted by its elements, listed in :attr:`Trace.unknown`,
and lowers :attr:`Trace.coverage`. The loss and metrics (inside a torch loss or torchmetrics module, or
a loss operation) are kept with phase ``"loss"`` and not counted in :attr:`Trace.macs`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from lightning_effnn.formats.declared import declared_parameters
from lightning_effnn.formats.tagging import listeners
from lightning_effnn.hardware.operation import Operation
from lightning_effnn.hardware.tracing.batch import inspect_batch
from lightning_effnn.hardware.tracing.dispatch import TraceMode
from lightning_effnn.hardware.tracing.drafts import finish
from lightning_effnn.hardware.tracing.leaves import LeafCall, LeafDraft, is_leaf, measure
from lightning_effnn.hardware.tracing.modules import Frame, ModuleStack
from lightning_effnn.hardware.tracing.recorder import Recorder, StoredWeight
from lightning_effnn.hardware.tracing.run import check_initialised, run_once, show_all

__all__ = ["LeafCall", "StoredWeight", "Trace", "Tracer", "trace"]


@dataclass(frozen=True)
class Trace:
    """What one batch ran.

    Attributes:
        operations: every operation, in the order of its first occurrence; equal ones within one module
            call are one, with ``repeats``.
        leaves: every call of a leaf module outside the loss, counted for the batch as traced.
        batch_size: inferences the operations describe.
        traced_batch_size: inferences in the batch that ran; ``None`` if it could not be told.
        unknown: elements moved by each operation that is not known, by its name.
        parameters: each parameter the batch read, once.
    """

    operations: tuple[Operation, ...]
    leaves: tuple[LeafCall, ...] = ()
    batch_size: int = 1
    traced_batch_size: int | None = None
    unknown: dict[str, int] = field(default_factory=dict)
    parameters: tuple[StoredWeight, ...] = ()

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
        """Share of the work that is known, in [0, 1]; see :attr:`Operation.work`."""
        work = sum(o.work for o in self.operations)
        unknown = sum(o.work for o in self.operations if o.kind == "unknown")
        return 1.0 - unknown / work if work else 1.0

    @property
    def weights(self) -> int:
        """Elements of the parameters that were read, shared ones once."""
        return sum(p.elements for p in self.parameters)

    @property
    def weight_bits(self) -> int:
        """Bits of the parameters that were read, each in its format, stored dense."""
        return sum(p.bits for p in self.parameters)

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
            torch-geometric data. If ``None``, the arguments of the first module called.
        batch_dim: axis of the batch in the example's tensors.

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

    def __init__(self, model: nn.Module, batch_size: int = 1, example: Any = None, *, batch_dim: int = 0) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        self.model = model
        self.batch_size = batch_size
        self.example = example
        self.batch_dim = batch_dim
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
        batch = None if self.example is None else inspect_batch(self.example, self.batch_dim)
        self._trace = None
        self._recorder = Recorder(self.model, self.batch_size)
        for tensor, number_format in declared_parameters(self.model):
            self._recorder.tag(tensor, number_format)
        self._leaves: list[LeafDraft] = []
        modules = ModuleStack(self.model, self._enter_module, self._leave_module)
        self._mode = TraceMode(self._recorder, modules)
        if batch is not None:
            self._recorder.see_batch(batch)
        with ExitStack() as stack:  # undone at once if one of these fails
            show_all(stack)
            modules.enter(stack)
            stack.enter_context(self._mode)
            listeners.append(self._mode)
            stack.callback(listeners.remove, self._mode)
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

    def _finish(self) -> Trace:
        recorder = self._recorder
        return Trace(
            operations=finish(recorder.drafts),
            leaves=tuple(leaf.finish() for leaf in self._leaves),
            batch_size=self.batch_size,
            traced_batch_size=None if recorder.batch is None else recorder.batch.size,
            unknown=dict(recorder.unknown),
            parameters=recorder.weights(),
        )

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if self._mode.aside:
            return
        with self._mode.paused():
            self._recorder.meet(module)
        if self._recorder.batch is None:
            with self._mode.paused():
                self._recorder.see_batch(inspect_batch(args, self.batch_dim))

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
    batch_dim: int = 0,
    **kwargs: Any,
) -> Trace:
    """Run ``model(*inputs, **kwargs)`` once and return what it ran.

    In inference (the default) all modules are put into eval mode for the run, each gets its own mode back
    afterwards, and no gradients are recorded. With ``training`` the modes stay as they are, and the backward
    pass runs too; parameters' ``grad``, buffers and the random state are left as they were.

    Args:
        model: any module.
        inputs, kwargs: what it is called with.
        batch_size: inferences the trace shall describe (deployment), at least 1.
        training: trace forward and backward pass.
        loss: what to differentiate, a function of the output; the sum of the output if ``None``.
        batch_dim: axis of the batch in the inputs.

    Raises:
        ValueError: if ``batch_size`` is not positive, the batch is empty, the model has lazy modules that
            were never run, or nothing in the output can be differentiated.

    Example:
        >>> import torch
        >>> trace(nn.Conv2d(3, 8, 3), torch.zeros(16, 3, 10, 10)).macs  # 8 * 8 outputs, 8 channels, 27 inputs
        13824
    """
    tracer = Tracer(model, batch_size, (inputs, kwargs), batch_dim=batch_dim)
    run_once(tracer, model, inputs, kwargs, training, loss)
    return tracer.trace
