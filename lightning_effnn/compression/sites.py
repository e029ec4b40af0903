"""Which weights of a model can be pruned and quantised."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_LOOKED_FOR = (
    "Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d, Linear and other classes whose name ends in Linear, "
    "Bilinear, Embedding, EmbeddingBag, MultiheadAttention, RNN, LSTM, GRU and their cells"
)


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One weight of one module.

    Attributes:
        name: qualified name of the parameter, the first if it has several.
        module: the module that owns it.
        parameter_name: its name in the module.
        axis: which of its axes are the output channels (units, features of an embedding).
        names: all qualified names, more than one for a tied weight.
    """

    name: str
    module: nn.Module
    parameter_name: str
    axis: int
    names: tuple[str, ...]

    @property
    def parameter(self) -> Tensor:
        """The parameter, as the module has it now."""
        parameter = self.module._parameters[self.parameter_name]
        assert parameter is not None
        return parameter


def weight_sites(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> list[Site]:
    """Return the weights of ``model`` that can be pruned and quantised, in the order of its modules.

    They are the floating-point weights, not biases or norms, of convolutions and transposed convolutions
    in one to three dimensions, Linear, Bilinear, embeddings, MultiheadAttention (packed or separate
    projections and the output projection), recurrent layers and cells, and of any other class whose name
    ends in ``Linear`` with a ``weight`` of two axes or more (torch-geometric's ``Linear`` and
    ``HeteroLinear``). A weight that a torch parametrization computes is no parameter and no site.

    A tied weight is one site, under its first name, with all its names; what is done to it is done once.

    Args:
        model: any module, initialised.
        include: keep only what one of these patterns matches; all if ``None``.
        exclude: leave out what one of these patterns matches.

    A pattern (as of :mod:`fnmatch`) is matched against the qualified names of the parameter, of its module,
    and the name of the module's class: ``"conv1.weight"``, ``"encoder.*"``, ``"Embedding"``.

    Raises:
        ValueError: if the model has uninitialised lazy modules, a pattern matches nothing in the model, or
            no weight is left.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    >>> [(site.name, site.axis) for site in weight_sites(model)]
    [('0.weight', 0), ('3.weight', 0)]
    >>> [site.name for site in weight_sites(model, exclude=["Conv*"])]
    ['3.weight']
    """
    include, exclude = _patterns("include", include, model), _patterns("exclude", exclude, model)
    lazy = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if any(is_lazy(p) for p in module.parameters(recurse=False))
    ]
    if lazy:
        raise ValueError(
            f"the model has lazy modules that are not initialised ({', '.join(lazy)}): run one batch through it first"
        )
    found: dict[int, Site] = {}
    labels: dict[int, set[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for parameter_name, axis in _weights(module):
            parameter, name = module._parameters[parameter_name], f"{prefix}.{parameter_name}".lstrip(".")
            if parameter is None or not parameter.is_floating_point() or not parameter.numel():
                continue
            first = found.get(id(parameter))
            if first is None:
                found[id(parameter)] = Site(name, module, parameter_name, axis, (name,))
            else:
                found[id(parameter)] = Site(
                    first.name, first.module, first.parameter_name, first.axis, (*first.names, name)
                )
            labels.setdefault(id(parameter), set()).update((name, prefix, type(module).__name__))
    sites = [
        site
        for key, site in found.items()
        if (include is None or _matches(labels[key], include)) and not _matches(labels[key], exclude or ())
    ]
    if not sites:
        chosen = f" with include={include}, exclude={exclude}" if include or exclude else ""
        raise ValueError(f"{type(model).__name__} has no prunable weight{chosen}; looked for weights of {_LOOKED_FOR}")
    return sites


def check_finite(sites: Iterable[Site]) -> None:
    """Raise unless all weights are finite.

    Args:
        sites: from :func:`weight_sites`.

    Raises:
        ValueError: naming every weight that holds NaN or infinity.

    >>> layer = nn.Linear(2, 1)
    >>> _ = nn.init.constant_(layer.weight, float("nan"))
    >>> check_finite(weight_sites(layer))
    Traceback (most recent call last):
    ...
    ValueError: weights must be finite, got NaN or infinity in weight
    """
    wrong = [site.name for site in sites if not bool(torch.isfinite(site.parameter.detach()).all())]
    if wrong:
        raise ValueError(f"weights must be finite, got NaN or infinity in {', '.join(wrong)}")


def _weights(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Names of the weights that are parameters of ``module`` itself, and their axes of output channels."""
    names: Iterable[str] = ("weight",)
    axis = 0
    if isinstance(module, nn.MultiheadAttention):
        names = _PACKED  # the output projection is a Linear of its own
    elif isinstance(module, _RECURRENT):
        names = [name for name in module._parameters if name.startswith("weight_")]
    elif isinstance(module, (*_TRANSPOSED, *_EMBEDDINGS)):
        axis = 1
    elif not isinstance(module, (*_CONVOLUTIONS, nn.Linear, nn.Bilinear)):
        weight = module._parameters.get("weight")
        if not type(module).__name__.endswith("Linear") or weight is None or weight.dim() < 2:
            return
        axis = 0 if weight.dim() == 2 else weight.dim() - 1  # [types, in, out]
    yield from ((name, axis) for name in names if module._parameters.get(name) is not None)


def _matches(labels: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(label, pattern) for label in labels for pattern in patterns)


def _patterns(argument: str, patterns: Sequence[str] | None, model: nn.Module) -> list[str] | None:
    """``patterns`` as a list, each of which matches something in ``model``."""
    if patterns is None:
        return None
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, module in model.named_modules(remove_duplicate=False):
        known |= {name, type(module).__name__}
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must be a list of patterns, got {pattern!r} in it")
        if not _matches(known, [pattern]):
            nearest = difflib.get_close_matches(pattern, sorted(known), n=1, cutoff=0.0)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"{argument} pattern {pattern!r} matches no parameter, module or class{hint}")
    return patterns
