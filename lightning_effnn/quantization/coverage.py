"""What was covered: every multiply-accumulate of one run, with quantised factors or not, and why not."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lightning_effnn._tables import ReportTable
from lightning_effnn._torch import StorageWeakRef, TorchDispatchMode, storage_key
from lightning_effnn.formats import NumberFormat
from lightning_effnn.quantization.hooks import hosts_of
from lightning_effnn.quantization.lineage import Lineage
from lightning_effnn.quantization.probe import as_in_inference
from lightning_effnn.quantization.products import factors, macs_of, tensors_in
from lightning_effnn.quantization.sites import activation_sites, weight_sites

_COPIES = ("clone", "_to_copy", "copy", "contiguous", "index", "index_select", "cat", "stack", "constant_pad_nd")


@dataclass(frozen=True)
class CoveredOperation:
    """One kind of product in one module.

    Attributes:
        module: qualified name of the module that it ran in, ``""`` for the model itself.
        op: name of the aten operation.
        macs: multiply-accumulates in the run, of all its calls.
        weight: name of the parameter among the factors; ``""`` if there is none.
        weight_format: name of the format of that parameter, or of the second factor; ``""`` if not quantised.
        input_format: name of the other factor's.
        reason: why not both are quantised; ``""`` if they are.
    """

    module: str
    op: str
    macs: int
    weight: str
    weight_format: str
    input_format: str
    reason: str

    @property
    def covered(self) -> bool:
        """Whether both factors are quantised."""
        return bool(self.weight_format and self.input_format)


@dataclass(frozen=True)
class CoverageReport:
    """Products of one forward pass; prints as a table.

    Attributes:
        operations: in the order of their first call.
    """

    operations: tuple[CoveredOperation, ...]

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return sum(o.macs for o in self.operations)

    @property
    def covered_macs(self) -> int:
        """Those with two quantised factors."""
        return sum(o.macs for o in self.operations if o.covered)

    @property
    def share(self) -> float:
        """Share of :attr:`covered_macs`, in [0, 1]; 0 if nothing was multiplied."""
        return self.covered_macs / self.macs if self.macs else 0.0

    def table(self) -> ReportTable:
        """The report as a rich table."""
        table = ReportTable(
            title=f"Quantised: {self.share:.1%} of {self.macs:,} multiply-accumulates", title_justify="left"
        )
        for heading in ("module", "operation", "MACs", "share", "weight", "input", "why not"):
            table.add_column(heading, justify="right" if heading in ("MACs", "share") else "left")
        for o in self.operations:
            share = f"{o.macs / self.macs:.1%}" if self.macs else "-"
            formats = (o.weight_format or "-", o.input_format or "-")
            table.add_row(o.module or "(root)", o.op, f"{o.macs:,}", share, *formats, o.reason)
        return table

    def __rich__(self) -> ReportTable:
        return self.table()

    def __str__(self) -> str:
        return str(self.table())


def coverage(model: nn.Module, *inputs: Any, **kwargs: Any) -> CoverageReport:
    """Run ``model(*inputs, **kwargs)`` once and say which products had quantised factors.

    The run is in eval mode without gradients; modes, buffers, quantisers and the random state are left as they were.
    Fused recurrent and attention kernels are switched off for it, so that each product shows. Products with a sparse
    matrix gather and add; like lookups and sums over edges they are no multiply-accumulates.

    Args:
        model: any module; without attached quantisers nothing is covered.
        inputs, kwargs: what it is called with.

    Raises:
        ValueError: if the model has no weight to quantise, or uninitialised lazy modules.

    >>> import torch
    >>> from lightning_effnn.quantization.model import quantize_
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> _ = quantize_(model, "W8A8", exclude=["1"])
    >>> report = coverage(model, torch.ones(3, 4))
    >>> [(o.module, o.macs, o.covered, o.reason) for o in report.operations]
    [('0', 48, True, ''), ('1', 24, False, 'no quantiser on 1.weight, none on the input of 1')]
    """
    probe = _Probe(model)
    with as_in_inference(model), probe.open():
        model(*inputs, **kwargs)
    return CoverageReport(tuple(probe.operations.values()))


class _Probe(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation; formats and parameters are known by the memory they are in, which views share."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.simulated = self.aside = 0
        self.operations: dict[CoveredOperation, CoveredOperation] = {}
        self._thread = threading.get_ident()
        self._hosts = list(hosts_of(model))
        self._names = {id(m): name for name, m in model.named_modules()}
        self._stack = [""]
        self._sites = {name for site in weight_sites(model, frozen=True) for name in site.names}
        self._inputs = {site.name for site in activation_sites(model, frozen=True)}
        self._attached = {host.name for _, host in self._hosts if host.quantizer is not None}
        self._kept: dict[int, StorageWeakRef] = {}  # an address is not given out again while there is one
        self._lineage = Lineage(model)
        self._formats: dict[int, NumberFormat] = {}
        self._parameters: dict[int, str] = {}
        self._of = {id(parameter): name for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            self._parameters[self._key(parameter)] = name

    def open(self) -> ExitStack:
        """Return the context in which everything is seen."""
        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(self._enter).remove)
            stack.callback(register_module_forward_hook(self._leave, always_call=True).remove)
            stack.enter_context(self)
            return stack.pop_all()

    def tag(self, tensor: Tensor, number_format: NumberFormat) -> None:
        """Note how ``tensor`` is stored."""
        self._formats[self._key(tensor)] = number_format

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` unchanged and note what it multiplied."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = getattr(func, "_schema", None)
        if self.aside or schema is None:  # the latter: a higher-order operator, which is made of others
            return result
        name = schema.name.partition("::")[2]
        self._lineage.simulated = self.simulated
        self._lineage.look(func, name.rstrip("_"), args, kwargs, result)
        if not self.simulated:
            macs = macs_of(func, name, args, kwargs, result)
            if macs:
                self._note(name, macs, args)
            for argument, value in zip(schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                    self._formats.pop(self._key(value), None)
        if name.rstrip("_") in _COPIES and isinstance(result, Tensor):
            self._pass_on(list(tensors_in(args)), result)
        return result

    def _note(self, op: str, macs: int, args: tuple[Any, ...]) -> None:
        first, second = (factor.tensor for factor in factors(op, args))
        if self._parameter(first) and not self._parameter(second):  # some layers multiply from the left
            first, second = second, first
        weight = self._parameter(second)
        formats = [str(self._formats.get(self._key(t), "")) for t in (first, second)]
        reason = self._reason(weight, formats[1], formats[0])
        if not weight:
            reason = self._computed(second) or self._computed(first) or reason
        operation = CoveredOperation(self._stack[-1], op, 0, weight, formats[1], formats[0], reason)
        before = self.operations.get(operation, operation)
        self.operations[operation] = replace(before, macs=before.macs + macs)

    def _reason(self, weight: str, weight_format: str, input_format: str) -> str:
        module, reasons = self._stack[-1], []
        name = module or "the model"
        if weight_format and input_format:
            return ""
        if not weight:
            return f"two activations are multiplied in {name}, not in a module of their own"
        if not weight_format:
            reasons.append(f"no quantiser on {weight}" if weight in self._sites else f"{weight} is no weight site")
        if not input_format:
            if module not in self._inputs:
                reasons.append(f"called as a function in {name}, not as a module")
            elif module in self._attached:
                reasons.append(f"computed inside {name}, not its input")
            else:
                reasons.append(f"none on the input of {name}" if reasons else f"no quantiser on the input of {name}")
        return ", ".join(reasons)

    def _computed(self, factor: Tensor) -> str:
        """How a factor that is no parameter is computed from some; empty if it isn't."""
        sources = (self._lineage.sources(factor) or {}).values()
        name, source = next(((self._of[s.parameter], s) for s in sources if not s.changed_by), ("", None))
        if source is not None:
            return f"{name} is scaled before the product" if source.scaled else f"{name} is part of the factor"
        return next((f"{self._of[s.parameter]} goes through {s.changed_by} before the product" for s in sources), "")

    def _parameter(self, tensor: Tensor) -> str:
        key = self._key(tensor)
        if key in self._parameters:
            return self._parameters[key]
        running = (s for _, host in self._hosts for s in host.swaps)
        return next((s.site for s in running if self._key(s.present) == key), "")

    def _pass_on(self, sources: list[Tensor], copy: Tensor) -> None:
        """A copy is stored as what it was copied from, if that is one thing."""
        key, keys = self._key(copy), [self._key(t) for t in sources if t.is_floating_point()]
        formats, names = {self._formats.get(k) for k in keys}, {self._parameter(t) for t in sources}
        if len(formats) == 1 and (number_format := formats.pop()) is not None:
            self._formats[key] = number_format
        if len(names) == 1 and (name := names.pop()):
            self._parameters[key] = name

    def _key(self, tensor: Tensor) -> int:
        key, storage = storage_key(tensor)
        self._kept.setdefault(key, StorageWeakRef(storage))  # type: ignore[no-untyped-call]
        return key

    def _enter(self, module: nn.Module, args: object) -> None:
        if threading.get_ident() == self._thread:  # these hooks are called for the modules of all threads
            self._stack.append(self._names.get(id(module), self._stack[-1]))

    def _leave(self, module: nn.Module, args: object, result: object) -> None:
        if threading.get_ident() == self._thread:
            self._stack.pop()
