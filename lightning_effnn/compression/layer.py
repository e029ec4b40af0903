"""One weight of a :class:`Projector`: its latent values, and what the network runs with instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_effnn._torch import owners
from lightning_effnn.compression._pieces import pieces
from lightning_effnn.compression.pruning import SPLICE
from lightning_effnn.formats import NumberFormat, PowerOfTwo, RecentralizedPowerOfTwo, declare_format
from lightning_effnn.formats._nearest import Keys, Rounder
from lightning_effnn.quantization.sites import Site

_FORMATS: dict[str, type[PowerOfTwo] | type[RecentralizedPowerOfTwo]] = {
    f.__name__: f for f in (PowerOfTwo, RecentralizedPowerOfTwo)
}
_FEW = 1 / 3
"""The share that is kept at most where the kept weights are rounded one by one: more are quicker in a row."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(slots=True, eq=False)
class Layer:
    """One weight: its latent values, mask, format, scale, and from which magnitude on it is rounded.

    ``alpha`` is kept apart from the format, whose levels then stay the same from step to step. ``threshold`` is that
    of surgery, while it goes on; ``grows`` says whether cut weights keep their latent values.

    The parameter holds the latent values (``projected`` is False) or what :meth:`write` has written there. What anybody
    else has written there since is found by :meth:`check` and taken over by :meth:`adopt`.
    """

    site: Site
    latent: Tensor
    mask: Tensor
    format: NumberFormat | None = None
    alpha: Tensor | None = None
    rounded_from: float = float("inf")
    reason: str = ""
    threshold: float | None = None
    grows: bool = True
    projected: bool = False
    kept: int = 0
    _rounder: Rounder | None = None
    _version: int = -1
    _written: Tensor | None = field(default=None, repr=False)
    _sum: Tensor | None = field(default=None, repr=False)
    _memory: Tensor | None = field(default=None, repr=False)  # the parameter's own, while it has that of ``latent``
    _places: list[Tensor] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, site: Site, grows: bool = True) -> Layer:
        """Take the weight as it is, with nothing cut; the parameter already holds the projection."""
        parameter = site.parameter.detach()
        layer = cls(site, parameter.clone(), torch.ones_like(parameter, dtype=torch.bool), grows=grows)
        layer._remember()
        return layer

    def projection(self) -> Tensor:
        """What the network runs with."""
        out = torch.empty_like(self.latent)
        rounder = self._rounding()
        for latent, mask, into in pieces(self.latent, self.mask, out):
            _project(latent, mask, into, rounder)
        return out

    def follow(self) -> None:
        """Go to the parameter's device: a Trainer takes a model off its device before the last hooks of a fit."""
        device = self.site.parameter.device
        if self.latent.device == device:
            return
        self.latent, self.mask, self._places = self.latent.to(device), self.mask.to(device), None
        alpha, self._written, self._sum = (
            None if tensor is None else tensor.to(device) for tensor in (self.alpha, self._written, self._sum)
        )
        self.take_format(self.format, alpha)

    # what stands in the parameter

    def restore(self) -> None:
        """Put the latent values into the parameter.

        It gets their memory in place of its own, which saves two copies a step. Where other tensors see its own memory
        too (parameters in one piece, a view that somebody keeps), they have to see the latent values as well, which are
        copied there. So do other processes, if the memory is shared with them.
        """
        parameter = self.site.parameter
        # An accelerator's memory always says that it is shared.
        shared = parameter.device.type == "cpu" and parameter.untyped_storage().is_shared()
        if type(parameter.data) is Tensor and not shared and owners(parameter) == owners(self.latent) == 1:
            self._memory, parameter.data = parameter.data, self.latent
        else:
            parameter.detach().copy_(self.latent)
        self.projected = False

    def _regain(self) -> bool:
        """Take the latent values out of the parameter; whether the last projection stands there again."""
        parameter, memory, self._memory = self.site.parameter, self._memory, None
        lent = memory is not None and parameter.data_ptr() == self.latent.data_ptr()
        if memory is not None and lent and owners(parameter) == 2:  # the parameter and the latent values
            parameter.data = memory
            return True
        if lent:  # somebody keeps a view of what the parameter is now
            self.latent = self.latent.clone()
        else:
            self.latent.copy_(parameter)
        return False

    def capture(self) -> None:
        """Take the latent values out of the parameter, cut and splice, and write the projection.

        NaN is neither cut nor rounded, for all to see.
        """
        rounder = self._rounding()
        places = self._kept_places() if self._regain() and rounder is not None else None
        parameter, sums, prints = self.site.parameter.detach(), [], []
        for number, (weight, latent, mask) in enumerate(pieces(parameter, self.latent, self.mask)):
            sums.append(_sum(latent))
            if places is not None and rounder is not None:  # the rest is zero, and stays so
                kept = places[number]
                weight.index_copy_(0, kept, rounder(latent.index_select(0, kept)))
                prints.append(_bits(weight))
                continue
            if self.grows and self.threshold is not None:
                # At once: a cut weight moves on unopposed, and would return too large.
                cut_and_splice_(latent, mask, self.threshold, weight)
            elif not self.grows:  # what is cut stays cut: nothing is kept of it
                select(mask, latent, latent)
            if self.threshold is None or rounder is not None or not self.grows:
                _project(latent, mask, weight, rounder)
            prints.append(_bits(weight))
        self._sum = torch.stack(sums).sum()
        self._remember(torch.stack(prints))

    def _kept_places(self) -> list[Tensor] | None:
        """Where in each piece something is kept; None while masks change, and where much is kept."""
        if self.threshold is not None or not self.grows or self.kept > _FEW * self.mask.numel():
            return None
        if self._places is None:
            flat = [mask for _, _, mask in pieces(self.site.parameter.detach(), self.latent, self.mask)]
            self._places = [mask.nonzero().flatten() for mask in flat] if flat[0].dim() == 1 else None
        return self._places

    def prune(self, threshold: float) -> None:
        """Cut what is no larger than ``threshold``, splice what is clearly larger, project; go on so at each step."""
        self.threshold, self._places, rounder, prints = threshold, None, self._rounding(), []
        for weight, latent, mask in pieces(self.site.parameter.detach(), self.latent, self.mask):
            if self.grows:
                cut_and_splice_(latent, mask, threshold, weight)
            else:
                mask.copy_(F.hardshrink(latent, threshold))
            if rounder is not None or not self.grows:
                _project(latent, mask, weight, rounder)
            prints.append(_bits(weight))
        self._remember(torch.stack(prints))

    def write(self) -> None:
        """Write the projection into the parameter."""
        if self._memory is not None:
            self._regain()
        rounder, prints = self._rounding(), []
        for weight, latent, mask in pieces(self.site.parameter.detach(), self.latent, self.mask):
            _project(latent, mask, weight, rounder)
            prints.append(_bits(weight))
        self._remember(torch.stack(prints))

    def check(self) -> Tensor:
        """Two bools: whether the parameter still holds what was written there, and whether all of that is finite.

        The first is told by the parameter's version and by the sums of its bits: writing to ``.data`` makes no new
        version, but shows in the sums, unless it only exchanges neighbours. The second may be False for large numbers.
        """
        parameter = self.site.parameter
        known = torch.ones((), dtype=torch.bool, device=parameter.device)
        finite = known if self._sum is None else self._sum.isfinite()
        if self._written is None or parameter._version != self._version:
            return torch.stack([torch.zeros_like(finite), finite])
        return torch.stack([(_fingerprint(parameter.detach()) == self._written).all(), finite])

    @property
    def finite(self) -> bool:
        """Whether no latent value is NaN or infinity."""
        return bool(self.latent.isfinite().all())

    def adopt(self, into: Tensor | None = None) -> bool:
        """Take over what somebody else has written into the parameter since; False if nothing differs after all.

        A value that moved by less than what the projection hides of its latent value moves the latent value by as
        much, so that small moves add up (a momentum encoder, an optimiser that nobody sees); one that moved by more
        is the new latent value (weights that were loaded).

        Args:
            into: a copy of the latent values that takes them instead.
        """
        rounder, differs, copied = self._rounding(), False, self.latent if into is None else into
        for weight, latent, mask, out in pieces(self.site.parameter.detach(), self.latent, self.mask, copied):
            written = _project(latent, mask, torch.empty_like(latent), rounder)
            if torch.equal(weight, written):
                continue
            differs = True
            moved, hidden = weight - written, latent - written
            out.copy_(torch.where(moved.abs() <= hidden.abs(), latent + moved, weight))
        if not differs:
            self._remember()
        elif into is None:
            self._sum = _sum(self.latent)
        return differs

    def take(self) -> bool:
        """Take what stands in the parameter as latent, if somebody else has written it; False if nobody has."""
        if self.projected and torch.equal(self.site.parameter, self.projection()):
            return False
        self.latent.copy_(self.site.parameter)
        return True

    def _remember(self, prints: Tensor | None = None) -> None:
        parameter = self.site.parameter
        self._written = _fingerprint(parameter.detach()) if prints is None else prints
        self._version, self.projected = parameter._version, True
        self.declare()  # the scale moves from step to step

    # rounding

    def take_format(self, number_format: NumberFormat | None, alpha: Tensor | None) -> None:
        """Round to another format from now on."""
        self.format, self.alpha, self._rounder = number_format, alpha, None
        if isinstance(number_format, PowerOfTwo | RecentralizedPowerOfTwo):
            self._rounder = number_format.rounder(self.latent.device, self.latent.dtype)

    def _rounding(self) -> Callable[[Tensor], Tensor] | None:
        """What rounds latent values now; None while nothing is rounded."""
        rounder, dtype = self._rounder, self.latent.dtype
        if rounder is None or self.rounded_from == float("inf"):
            return None
        if self.alpha is not None and not isinstance(rounder, Keys):  # plain powers of two have no scale of their own
            rounder = rounder.scaled(self.alpha)
        levels = rounder  # of a fixed type, for the functions below
        if self.rounded_from <= 0:
            return lambda latent: levels(latent).to(dtype)
        least = torch.tensor(self.rounded_from, dtype=dtype, device="cpu")
        below = float(torch.nextafter(least, torch.zeros_like(least)))

        def partly(latent: Tensor) -> Tensor:
            large = F.hardshrink(latent, below)  # the rest is zero, and stays so when it is rounded
            return levels(large).to(dtype).add_(latent - large)

        return partly

    def declare(self) -> None:
        """Declare the format, once all weights are rounded, for traces and files."""
        if self.format is not None and self.rounded_from <= 0:
            declare_format(self.site.module, self.site.parameter_name, self.format, self.alpha)

    def declared(self) -> NumberFormat | None:
        """The format with its scale, once all weights are rounded."""
        if self.format is None or self.rounded_from > 0:
            return None
        return self.format if self.alpha is None else replace(self.format, scale=float(self.alpha))  # type: ignore[call-arg]

    # state

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only; the latent values include what somebody else has written since."""
        self.follow()
        latent = (self.latent if self.projected else self.site.parameter.detach()).clone()
        if self.projected and not bool(self.check()[0]):
            self.adopt(latent)
        return {
            "latent": latent,
            "mask": self.mask.clone(),
            "alpha": None if self.alpha is None else self.alpha.clone(),
            "rounded_from": self.rounded_from,
            "reason": self.reason,
            "format": _plain(self.format),
            "threshold": self.threshold,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore, onto the device of the latent values.

        Raises:
            ValueError: an entry is missing, or of another type or shape than :meth:`state_dict` gives it.
        """
        self._check_state(state)
        device = self.latent.device
        self.latent.copy_(state["latent"])
        self.mask.copy_(state["mask"])
        self._places = None
        self.take_format(_format(state["format"]), None if state["alpha"] is None else state["alpha"].to(device))
        self.threshold, self.rounded_from, self.reason = state["threshold"], state["rounded_from"], state["reason"]
        self.kept = int(self.mask.sum())

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse what :meth:`state_dict` has not made; a tensor in place of the dictionary would be indexed."""
        shape, number = self.latent.shape, (int, float)
        right: dict[str, tuple[str, Callable[[Any], bool]]] = {
            "latent": (f"a tensor of shape {[*shape]}", lambda x: isinstance(x, Tensor) and x.shape == shape),
            "mask": (f"a tensor of shape {[*shape]}", lambda x: isinstance(x, Tensor) and x.shape == shape),
            "alpha": (
                "None or a tensor of one number",
                lambda x: x is None or (isinstance(x, Tensor) and x.dim() == 0),
            ),
            "rounded_from": ("a number", lambda x: isinstance(x, number)),
            "reason": ("a string", lambda x: isinstance(x, str)),
            "format": ("None or a dictionary with a known class", lambda x: x is None or _is_format(x)),
            "threshold": ("None or a number", lambda x: x is None or isinstance(x, number)),
        }
        if not isinstance(state, Mapping):
            raise ValueError(f"the saved state of {self.site.name} is no dictionary, but a {type(state).__name__}")
        for key, (what, holds) in right.items():
            if key not in state or not holds(state[key]):
                found = f"got {_described(state[key])}" if key in state else "it is missing"
                raise ValueError(f"{key} in the saved state of {self.site.name} must be {what}, {found}")


def _described(value: object) -> str:
    return f"a tensor of shape {[*value.shape]}" if isinstance(value, Tensor) else repr(value)[:80]


def _is_format(plain: object) -> bool:
    return isinstance(plain, Mapping) and isinstance(plain.get("class"), str) and plain["class"] in _FORMATS


def _sum(x: Tensor) -> Tensor:
    """NaN or infinite if an element is, in a fraction of the time that looking at each would take."""
    return x.sum(dtype=x.dtype if x.dtype == torch.float64 else torch.float32)


def _fingerprint(x: Tensor) -> Tensor:
    """Sums of the bits of each piece, modulo 2^64."""
    return torch.stack([_bits(piece) for (piece,) in pieces(x)])


def _bits(x: Tensor) -> Tensor:
    """The sum of the bits of a tensor, eight bytes at a time where it begins at a multiple of them."""
    x = x.reshape(-1).view(_INTEGERS[x.element_size()])
    words = 8 // x.element_size()
    whole = 0 if x.storage_offset() % words else x.numel() // words * words
    total = x[:whole].view(torch.int64).sum()
    return total if whole == x.numel() else total + x[whole:].sum()


def select(mask: Tensor, x: Tensor, into: Tensor | None = None) -> Tensor:
    """``torch.where(mask, x, 0.0)`` on the bits: without branches, ten times faster where a mask is random.

    Unlike a product it leaves no -0.0 behind, which would be no level of a format.

    >>> select(torch.tensor([True, False]), torch.tensor([-1.0, -2.0]))
    tensor([-1., 0.])
    """
    integer = _INTEGERS[x.element_size()]
    into = torch.empty_like(x) if into is None else into
    torch.mul(mask.to(integer), x.view(integer), out=into.view(integer))
    return into


def _project(latent: Tensor, mask: Tensor, into: Tensor, rounder: Callable[[Tensor], Tensor] | None) -> Tensor:
    return select(mask, latent if rounder is None else rounder(latent), into)


def cut_and_splice_(latent: Tensor, mask: Tensor, threshold: float, into: Tensor) -> None:
    """As :func:`pruning.cut_and_splice`, with the mask in place and the weights that are left in ``into``.

    Comparisons are slow on a processor; shrinking to zero and the bits of the mask are not. NaN is left.
    """
    integer = _INTEGERS[latent.element_size()]
    sure, perhaps = F.hardshrink(latent, SPLICE * threshold), F.hardshrink(latent, threshold)
    torch.mul(mask.to(integer), perhaps.view(integer), out=into.view(integer)).bitwise_or_(sure.view(integer))
    mask.copy_(into)


def _plain(number_format: NumberFormat | None) -> dict[str, Any] | None:
    if number_format is None:
        return None
    values = {field.name: getattr(number_format, field.name) for field in fields(number_format) if field.init}
    return {"class": type(number_format).__name__, **values}


def _format(plain: Mapping[str, Any] | None) -> NumberFormat | None:
    if plain is None:
        return None
    values = dict(plain)
    return _FORMATS[values.pop("class")](**values)
