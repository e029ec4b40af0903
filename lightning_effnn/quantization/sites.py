"""Which tensors of a model can be pruned and quantised: weights, and what goes into the modules that own them."""

from __future__ import annotations

import difflib
import inspect
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
_AGGREGATION = "aggr_module"
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
    _check_initialised(model)
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
    sites = [site for key, site in found.items() if _chosen(labels[key], include, exclude)]
    if not sites:
        chosen = f" with include={include}, exclude={exclude}" if include or exclude else ""
        raise ValueError(
            f"{type(model).__name__} has no weight to prune or quantise{chosen}; looked for weights of {_LOOKED_FOR}"
        )
    return sites


@dataclass(frozen=True, slots=True, eq=False)
class ActivationSite:
    """What goes into one module.

    Attributes:
        name: qualified name of the module, the first if it has several.
        module: the module.
        arguments: names of the arguments of its ``forward`` that are activations, the first ones.
        messages_of: where the module aggregates the messages of a graph layer, that layer; else ``None``.
    """

    name: str
    module: nn.Module
    arguments: tuple[str, ...]
    messages_of: nn.Module | None = None


def activation_sites(
    model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> list[ActivationSite]:
    """Return the modules of ``model`` whose input can be quantised, in the order of the modules.

    They are the modules that own a weight of :func:`weight_sites`, but not embeddings, whose input are indices. Of
    Bilinear it is both inputs, of MultiheadAttention query, key and value (what goes into its output projection is
    computed inside it, out of reach), of recurrent layers and cells the input and not the state. In a torch-geometric
    ``MessagePassing`` layer it is also the messages, as they come to the layer's aggregation: the site is
    ``"<layer>.aggr_module"``, behind the layer's other ones.

    Args:
        model: any module, initialised.
        include, exclude: as for :func:`weight_sites`; a pattern is matched against the qualified names of the module
            and of its weights, and the name of the module's class.

    Returns:
        The sites; an empty list if there are none.

    Raises:
        ValueError: if the model has uninitialised lazy modules, or a pattern matches nothing in the model.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.MultiheadAttention(4, 2), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> [(site.name, site.arguments) for site in activation_sites(model)]
    [('1', ('query', 'key', 'value')), ('3', ('input',))]
    """
    include, exclude = _patterns("include", include, model), _patterns("exclude", exclude, model)
    _check_initialised(model)
    inner = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    labels: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weights = (f"{name}.{parameter}".lstrip(".") for parameter, _ in _weights(module))
        labels.setdefault(id(module), {type(module).__name__}).update((name, *weights))
    sites: list[ActivationSite] = []
    waiting: list[ActivationSite] = []  # messages are made of what their layer computes: they come last in it
    for name, module in model.named_modules():
        while waiting and not name.startswith(waiting[-1].name.removesuffix(_AGGREGATION)):
            sites.append(waiting.pop())
        if any(_weights(module)) and id(module) not in inner and not isinstance(module, _EMBEDDINGS):
            sites.append(ActivationSite(name, module, _activations(module)))
        aggregation = getattr(module, _AGGREGATION, None)
        if is_message_passing(module) and isinstance(aggregation, nn.Module):
            place = f"{name}.{_AGGREGATION}".lstrip(".")
            waiting.append(ActivationSite(place, aggregation, _activations(aggregation), module))
            labels[id(aggregation)] |= labels[id(module)]
    return [site for site in (*sites, *reversed(waiting)) if _chosen(labels[id(site.module)], include, exclude)]


def is_message_passing(module: nn.Module) -> bool:
    """Whether ``module`` is a torch-geometric layer; told by name, without importing it."""
    return any(
        c.__name__ == "MessagePassing" and c.__module__.startswith("torch_geometric") for c in type(module).__mro__
    )


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


def _activations(module: nn.Module) -> tuple[str, ...]:
    count = 3 if isinstance(module, nn.MultiheadAttention) else 2 if isinstance(module, nn.Bilinear) else 1
    return tuple(inspect.signature(module.forward).parameters)[:count]


def _check_initialised(model: nn.Module) -> None:
    lazy = [
        name or type(module).__name__
        for name, module in model.named_modules()
        if any(is_lazy(p) for p in module.parameters(recurse=False))
    ]
    if lazy:
        raise ValueError(
            f"the model has lazy modules that are not initialised ({', '.join(lazy)}): run one batch through it first"
        )


def _chosen(labels: set[str], include: list[str] | None, exclude: list[str] | None) -> bool:
    return (include is None or _matches(labels, include)) and not _matches(labels, exclude or ())


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
