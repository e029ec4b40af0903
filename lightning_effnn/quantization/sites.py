"""Which tensors of a model can be pruned and quantised: weights, and what goes into the modules that own them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_effnn.quantization.classes import EMBEDDINGS, LOOKED_FOR, class_name, is_message_passing, weights_of

_AGGREGATION = "aggr_module"


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One weight of one module.

    Attributes:
        name: qualified name of the parameter, the first if it has several.
        module: the module that owns it.
        parameter_name: its name in the module.
        axis: which of its axes are the output channels (units, features of an embedding); ``None`` if it has none, or
            that could not be told.
        names: all qualified names, more than one for a tied weight.
    """

    name: str
    module: nn.Module
    parameter_name: str
    axis: int | None
    names: tuple[str, ...]

    @property
    def parameter(self) -> Tensor:
        """The parameter, as the module has it now."""
        parameter = self.module._parameters[self.parameter_name]
        assert parameter is not None
        return parameter


def weight_sites(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    *,
    frozen: bool = False,
) -> list[Site]:
    """Return the weights of ``model`` that can be pruned and quantised, in the order of its modules.

    They are the floating-point weights, not biases or norms, of convolutions and transposed convolutions
    in one to three dimensions, Linear, Bilinear, embeddings, MultiheadAttention (packed or separate
    projections and the output projection), recurrent layers and cells, ``transformers``' ``Conv1D``, and any other
    class whose name ends in ``Linear`` with a ``weight`` of two axes or more (torch-geometric's ``Linear`` and
    ``HeteroLinear``); whatever :func:`~lightning_effnn.quantization.find_weights_` has seen to multiply in a run; and
    what :func:`~lightning_effnn.quantization.declare_weight` says. Of a weight that is computed from a parameter the
    parameter is the site, as long as its zeros stay zero (masks of pruning, weight and spectral norm).

    Weights that don't train (``requires_grad``) beside others that do are left alone: teachers, the base of LoRA,
    networks of a metric. In a model where nothing trains, all are taken.

    A tied weight is one site, under its first name, with all its names; what is done to it is done once.

    Args:
        model: any module, initialised.
        include: keep only what one of these patterns matches; all if ``None``.
        exclude: leave out what one of these patterns matches.
        frozen: take weights that don't train too. Otherwise they are taken where a pattern of ``include`` matches
            their name, or that of their module.

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
    >>> _ = model[0].requires_grad_(False)
    >>> [site.name for site in weight_sites(model)], [site.name for site in weight_sites(model, include=["0"])]
    (['3.weight'], ['0.weight'])
    """
    left = () if frozen else frozen_parameters(model)
    sites = chosen_sites(model, include, exclude, left)
    if not sites:
        chosen = f" with include={include}, exclude={exclude}" if include or exclude else ""
        others = [site.name for site in chosen_sites(model, include, exclude, ())]
        hint = f"; {', '.join(others)} would be one, but is frozen: name it in include" if others else ""
        raise ValueError(
            f"{type(model).__name__} has no weight to prune or quantise{chosen}; looked for weights of {LOOKED_FOR}"
            f"{hint}"
        )
    return sites


def frozen_parameters(model: nn.Module) -> set[int]:
    """The ``id`` of each parameter that doesn't train; none in a model where nothing does."""
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    return frozen if len(frozen) < sum(1 for _ in model.parameters()) else set()


def chosen_sites(
    model: nn.Module, include: Sequence[str] | None, exclude: Sequence[str] | None, left: Collection[int]
) -> list[Site]:
    """What :func:`weight_sites` returns; an empty list if that is nothing.

    Args:
        model, include, exclude: as there.
        left: ``id`` of the parameters that are left alone where ``include`` doesn't name them.
    """
    include, exclude = _patterns("include", include, model), _patterns("exclude", exclude, model)
    _check_initialised(model)
    prefixes = {id(module): prefix for prefix, module in reversed([*model.named_modules()])}
    found: dict[int, Site] = {}
    names: dict[int, set[str]] = {}
    classes: dict[int, set[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for weight in weights_of(module):
            parameter = weight.owner._parameters[weight.name]
            assert parameter is not None
            if not parameter.is_floating_point() or not parameter.numel() or (weight.use and weight.use.reason):
                continue
            owner = prefix if weight.owner is module else prefixes[id(weight.owner)]
            name = f"{owner}.{weight.name}".lstrip(".")
            first = found.get(id(parameter))
            if first is None:
                found[id(parameter)] = Site(name, weight.owner, weight.name, weight.axis, (name,))
            elif name not in first.names:
                found[id(parameter)] = replace(first, names=(*first.names, name))
            names.setdefault(id(parameter), set()).update((name, prefix))
            classes.setdefault(id(parameter), set()).add(class_name(module))
    return [
        site
        for key, site in found.items()
        if _chosen(names[key] | classes[key], include, exclude)
        and (key not in left or matches(names[key], include or ()))
    ]


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
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    *,
    frozen: bool = False,
) -> list[ActivationSite]:
    """Return the modules of ``model`` whose input can be quantised, in the order of the modules.

    They are the modules that own a weight of :func:`weight_sites`, frozen ones left alone as there, but not embeddings,
    whose input are indices, nor modules of other classes that were seen to multiply with something else than their
    input. Of Bilinear it is both inputs, of MultiheadAttention query, key and value (what goes into its output
    projection is computed inside it, out of reach), of recurrent layers and cells the input and not the state. In a
    torch-geometric ``MessagePassing`` layer it is also the messages, as they come to the layer's aggregation: the site
    is ``"<layer>.aggr_module"``, behind the layer's other ones.

    Args:
        model: any module, initialised.
        include, exclude: as for :func:`weight_sites`; a pattern is matched against the qualified names of the module
            and of its weights, and the name of the module's class.
        frozen: as there.

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
    left = set() if frozen else frozen_parameters(model)
    inner = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    names: dict[int, set[str]] = {}
    classes: dict[int, set[str]] = {}
    multiplying: set[int] = set()
    kept: set[int] = set()  # modules of which a weight is not left alone
    for name, module in model.named_modules(remove_duplicate=False):
        labels = names.setdefault(id(module), set())
        labels.add(name)
        classes.setdefault(id(module), set()).add(class_name(module))
        for weight in weights_of(module):
            labels.add(f"{name}.{weight.name}".lstrip("."))
            if weight.takes_input:
                multiplying.add(id(module))
            if id(weight.owner._parameters[weight.name]) not in left:
                kept.add(id(module))
    sites: list[ActivationSite] = []
    waiting: list[ActivationSite] = []  # messages are made of what their layer computes: they come last in it
    for name, module in model.named_modules():
        while waiting and not name.startswith(waiting[-1].name.removesuffix(_AGGREGATION)):
            sites.append(waiting.pop())
        if id(module) in multiplying and id(module) not in inner and not isinstance(module, EMBEDDINGS):
            sites.append(ActivationSite(name, module, _activations(module)))
        aggregation = getattr(module, _AGGREGATION, None)
        if is_message_passing(module) and isinstance(aggregation, nn.Module):
            place = f"{name}.{_AGGREGATION}".lstrip(".")
            waiting.append(ActivationSite(place, aggregation, _activations(aggregation), module))
            names[id(aggregation)] |= names[id(module)]
            classes[id(aggregation)] |= classes[id(module)]
            if not any(id(p) in left for p in module.parameters()):
                kept.add(id(aggregation))
    return [
        site
        for site in (*sites, *reversed(waiting))
        if _chosen(names[id(site.module)] | classes[id(site.module)], include, exclude)
        and (id(site.module) in kept or matches(names[id(site.module)], include or ()))
    ]


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
    return (include is None or matches(labels, include)) and not matches(labels, exclude or ())


def matches(labels: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether one of ``patterns`` matches one of ``labels``."""
    return any(fnmatchcase(label, pattern) for label in labels for pattern in patterns)


def _patterns(argument: str, patterns: Sequence[str] | None, model: nn.Module) -> list[str] | None:
    """``patterns`` as a list, each of which matches something in ``model``."""
    if patterns is None:
        return None
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, module in model.named_modules(remove_duplicate=False):
        known |= {name, class_name(module)}
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must be a list of patterns, got {pattern!r} in it")
        if not matches(known, [pattern]):
            nearest = difflib.get_close_matches(pattern, sorted(known), n=1, cutoff=0.0)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"{argument} pattern {pattern!r} matches no parameter, module or class{hint}")
    return patterns
