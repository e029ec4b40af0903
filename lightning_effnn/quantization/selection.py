"""Which weights of a model are taken, and what is left out: its share of parameters and of products, and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_effnn.quantization.classes import class_name, weights_of
from lightning_effnn.quantization.sites import Site, chosen_sites, frozen_parameters, matches, weight_sites
from lightning_effnn.quantization.weights import WeightUse, uses_of

ENOUGH = 0.9
"""Share of the multiply-accumulates from which nothing needs a warning."""
_NAMED = 12
_CHOSEN = "by include and exclude"
_FROZEN = "frozen (include takes them by name)"
_IDLE = "in no optimiser (include takes them by name)"
_COMPLEX = "complex, which no number format is"
_VECTORS = "biases, norms and other vectors"
_UNSEEN = "in no product of the batch that was looked at"
_UNKNOWN = "of classes that are not known (find_weights_ sees what multiplies, declare_weight says it)"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Parameters that are left out for one reason.

    Attributes:
        reason: why.
        names: their qualified names.
        elements: how many numbers they have.
        macs: multiply-accumulates with them in the run that was looked at; 0 if none was.
    """

    reason: str
    names: tuple[str, ...]
    elements: int
    macs: int


class Selection:
    """The weights of a model that are taken, decided by what trains when it was made.

    Multiply-accumulates are those with a parameter among their factors, in the run that
    :func:`~lightning_effnn.quantization.find_weights_` has looked at.

    Args:
        model, include, exclude: as for :func:`~lightning_effnn.quantization.weight_sites`.
        optimized: the parameters that somebody optimises; others are left alone as frozen ones are. If none of the
            model's is among them (an optimiser may have copies of its own), it is not known.

    Raises:
        ValueError: if the model has uninitialised lazy modules, or a pattern matches nothing in the model.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
    >>> _ = model[1].requires_grad_(True)
    >>> print(Selection(model))
    1 weight, with 44.4 % of the parameters
    left out: frozen (include takes them by name) (44.4 % of the parameters): 0.weight; biases, norms and other vectors
    (11.1 % of the parameters)
    """

    def __init__(
        self,
        model: nn.Module,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        optimized: Iterable[Tensor] | None = None,
    ) -> None:
        self.model, self.include, self.exclude = model, include, exclude
        moved = {id(parameter) for parameter in optimized or ()} & {id(p) for p in model.parameters()}
        self._idle = {id(p) for p in model.parameters() if moved and p.requires_grad and id(p) not in moved}
        self._frozen = frozen_parameters(model) | self._idle
        chosen_sites(model, include, exclude, self._frozen)  # refuses what it can't look at

    @property
    def sites(self) -> list[Site]:
        """What is taken, as far as it is known now; more may be once a run was looked at."""
        return chosen_sites(self.model, self.include, self.exclude, self._frozen)

    @property
    def excluded(self) -> list[str]:
        """Patterns of ``exclude``, and the names of what nobody optimises, for functions that don't know that."""
        taken = {id(site.parameter) for site in self.sites}
        exclude = [self.exclude] if isinstance(self.exclude, str) else list(self.exclude or ())
        idle = (name for name, p in self.model.named_parameters() if id(p) in self._idle and id(p) not in taken)
        return [*exclude, *idle]

    @property
    def looked(self) -> bool:
        """Whether a run of the model was looked at."""
        return any(not use.declared or use.macs for _, use in self._uses())

    @property
    def left(self) -> tuple[LeftOut, ...]:
        """What is left out, by reason, that of the most multiply-accumulates first."""
        taken = {id(site.parameter) for site in self.sites}
        macs, reasons = self._macs(), self._reasons()
        groups: dict[str, list[tuple[str, Tensor]]] = {}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in taken and _counts(parameter):
                groups.setdefault(reasons[id(parameter)], []).append((name, parameter))
        found = [
            LeftOut(
                reason,
                tuple(name for name, _ in members),
                sum(p.numel() for _, p in members),
                sum(macs.get(id(p), 0) for _, p in members),
            )
            for reason, members in groups.items()
        ]
        return tuple(sorted(found, key=lambda group: (group.reason == _VECTORS, -group.macs, -group.elements)))

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of matrices of no known class that train and were not seen to multiply."""
        return next((group.names for group in self.left if group.reason in (_UNSEEN, _UNKNOWN)), ())

    @property
    def share_of_parameters(self) -> float:
        """Share of all floating-point and complex parameters that is taken, tied ones counted once."""
        return _share(sum(site.parameter.numel() for site in self.sites), self._elements())

    @property
    def share_of_macs(self) -> float | None:
        """Share of the multiply-accumulates that is taken; ``None`` if no run was looked at."""
        macs = self._macs()
        if not self.looked or not sum(macs.values()):
            return None
        return _share(sum(macs.get(id(site.parameter), 0) for site in self.sites), sum(macs.values()))

    @property
    def is_enough(self) -> bool:
        """Whether at least :data:`ENOUGH` of the multiply-accumulates are taken.

        What the user leaves out by include and exclude doesn't count. If no run was looked at, elements of matrices do.
        """
        left = [group for group in self.left if group.reason not in (_CHOSEN, _VECTORS)]
        if self.share_of_macs is not None:
            macs = self._macs()
            taken, lost = sum(macs.get(id(s.parameter), 0) for s in self.sites), sum(group.macs for group in left)
        else:
            taken, lost = sum(s.parameter.numel() for s in self.sites), sum(group.elements for group in left)
        return taken >= ENOUGH * (taken + lost)

    def warn(self, who: str) -> None:
        """Warn where :attr:`is_enough` is not, in the name of the function ``who``."""
        if not self.is_enough:
            warnings.warn(f"{who} takes {self}", stacklevel=4)

    def __str__(self) -> str:
        number, macs = len(self.sites), self.share_of_macs
        shares = [] if macs is None else [f"{macs:.1%} of the multiply-accumulates".replace("%", " %")]
        shares.append(f"{self.share_of_parameters:.1%} of the parameters".replace("%", " %"))
        text = f"{number} weight{'s' if number != 1 else ''}, with {' and '.join(shares)}"
        left = "; ".join(self._described(group) for group in self.left)
        return f"{text}\nleft out: {left}" if left else text

    def _described(self, group: LeftOut) -> str:
        total = sum(self._macs().values())
        shares = [f"{_share(group.macs, total):.1%} of the multiply-accumulates"] if group.macs and total else []
        shares.append(f"{_share(group.elements, self._elements()):.1%} of the parameters")
        text = f"{group.reason} ({' and '.join(shares)})".replace("%", " %")
        if group.reason == _VECTORS:
            return text
        names = list(_shortened(group.names, {name for name, p in self.model.named_parameters() if p.dim() > 1}))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"{text}: {', '.join(names[:_NAMED])}{more}"

    def _elements(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if _counts(p))

    def _uses(self) -> Iterator[tuple[Tensor, WeightUse]]:
        for module in self.model.modules():
            for name, use in uses_of(module).items():
                parameter = module._parameters[name]
                assert parameter is not None
                yield parameter, use

    def _macs(self) -> dict[int, int]:
        return {id(parameter): use.macs for parameter, use in self._uses()}

    def _reasons(self) -> dict[int, str]:
        """Why each parameter would be left out."""
        possible = {id(site.parameter) for site in chosen_sites(self.model, None, None, ())}
        unfit = {
            id(weight.owner._parameters[weight.name]): weight.use.reason
            for module in self.model.modules()
            for weight in weights_of(module)
            if weight.use is not None and weight.use.reason
        }
        matched = {id(site.parameter) for site in chosen_sites(self.model, self.include, self.exclude, ())}
        exclude = [self.exclude] if isinstance(self.exclude, str) else self.exclude or ()
        reasons: dict[int, str] = {}
        for prefix, module in self.model.named_modules():
            for name, parameter in module._parameters.items():
                key = id(parameter)
                if parameter is None or key in reasons:
                    continue
                resting = _IDLE if key in self._idle else _FROZEN
                if key in possible:
                    reasons[key] = resting if key in matched else _CHOSEN
                elif matches((f"{prefix}.{name}".lstrip("."), prefix, class_name(module)), exclude):
                    reasons[key] = _CHOSEN
                elif parameter.is_complex():
                    reasons[key] = _COMPLEX
                elif parameter.dim() < 2 and key not in unfit:
                    reasons[key] = _VECTORS
                elif key in self._frozen:
                    reasons[key] = resting
                else:
                    reasons[key] = unfit.get(key) or (_UNSEEN if self.looked else _UNKNOWN)
        return reasons


def chosen_weights(
    who: str, model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str] | None
) -> list[Site]:
    """The sites of :func:`~lightning_effnn.quantization.weight_sites`, with a warning where they are not enough.

    Args:
        who: says so.
        model, include, exclude: as there.

    Raises:
        ValueError: as there.
    """
    sites = weight_sites(model, include, exclude)
    Selection(model, include, exclude).warn(who)
    return sites


def _counts(parameter: Tensor) -> bool:
    return (parameter.is_floating_point() or parameter.is_complex()) and parameter.numel() > 0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _shortened(names: Sequence[str], all_names: Iterable[str]) -> Iterator[str]:
    """``names``, with ``net.*`` for what is all of several matrices within ``net``."""
    mine, others = set(names), set(all_names) - set(names)
    while mine:
        name = min(mine, key=names.index)
        parts = name.split(".")
        prefixes = (".".join(parts[:n]) + "." for n in range(1, len(parts)))
        prefix = next((p for p in prefixes if not any(other.startswith(p) for other in others)), None)
        within = {n for n in mine if prefix is not None and n.startswith(prefix)}
        yield f"{prefix}*" if len(within) > 1 else name
        mine -= within | {name}
