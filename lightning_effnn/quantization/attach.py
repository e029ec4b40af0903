"""Attach quantisers to the weights and activations of any model, and take them off again."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from lightning_effnn._threads import Lock
from lightning_effnn.quantization.hooks import Host, Setting, hosts_of, remove_hooks
from lightning_effnn.quantization.quantizer import TensorQuantizer
from lightning_effnn.quantization.sites import Site, activation_sites, weight_sites
from lightning_effnn.quantization.swap import WeightSwap

_SETTINGS = "_effnn_settings"  # what attributes of a module were before


class Attachment:
    """The quantisers that are attached to a model, found by looking: a copied or loaded model has its own.

    Attributes:
        model: the model.
        weights: quantiser of each weight, by the name of its site.
        activations: quantiser of what goes into each module, by the name of its site.
        quantizers: all of them as one module, apart from the model: for an optimiser of learned scales, and for
            ``state_dict`` and ``load_state_dict``. Dots of names are slashes in it.

    Raises:
        ValueError: if nothing is attached to ``model``.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> attachment = attach_(model, {"0.weight": TensorQuantizer(4)}, {"0": TensorQuantizer(8, scale="learned")})
    >>> list(attachment.quantizers.state_dict())[:3]
    ['weights.0/weight.scale', 'weights.0/weight.initialised', 'weights.0/weight.is_signed']
    >>> [tuple(p.shape) for p in attachment.quantizers.parameters()], list(model.state_dict())
    ([()], ['0.weight', '0.bias'])
    """

    def __init__(self, model: nn.Module) -> None:
        hosts = [host for _, host in hosts_of(model)]
        if not hosts:
            raise ValueError(f"nothing is attached to this {type(model).__name__}: attach_ or quantize_ it first")
        self.model = model
        self.weights = {swap.site: swap.quantizer for host in hosts for swap in host.swaps}
        self.activations = {host.name: host.quantizer for host in hosts if host.quantizer is not None}
        groups = {"weights": self.weights, "activations": self.activations}
        self.quantizers = nn.ModuleDict(
            {
                group: nn.ModuleDict({name.replace(".", "/") or "/": q for name, q in members.items()})
                for group, members in groups.items()
            }
        )

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Let observed scales learn from what runs inside, though the model is in eval mode.

        >>> layer = nn.Linear(2, 2).eval()
        >>> attachment = attach_(layer, activations={"": TensorQuantizer(8)})
        >>> with attachment.calibrating():
        ...     _ = layer(torch.ones(1, 2))
        >>> attachment.activations[""].initialised
        tensor(True)
        """
        with _of_all(self.model, observing=True):
            yield

    def strip(self) -> nn.Module:
        """Take all quantisers off; see :func:`strip_`."""
        return strip_(self.model)


def attach_(
    model: nn.Module,
    weights: Mapping[str, nn.Module] | None = None,
    activations: Mapping[str, nn.Module] | None = None,
) -> Attachment:
    """Quantise weights and module inputs of ``model`` from its next call on, in place.

    Nothing is registered in the model: its ``state_dict``, parameters and submodules stay as they are, an optimiser
    built before or after trains the weights as they are in full precision. The quantisers are reached through the
    attachment. Deep copies and pickles of the model carry copies of them.

    While attached, torch-geometric layers whose messages are quantised don't fuse message and aggregation, and
    transformer encoders don't pack padded batches into nested tensors; both are as they were once stripped.

    Args:
        model: any module, initialised.
        weights: quantisers by the name of a :func:`~lightning_effnn.quantization.sites.weight_sites` site, any of
            them if it is tied. A quantiser is a module that maps a tensor to one of the same shape; it is in train
            mode when the module that it quantises is. A :class:`TensorQuantizer` starts from the present weight.
        activations: quantisers by the name of an :func:`~lightning_effnn.quantization.sites.activation_sites` site.

    Raises:
        TypeError: if a quantiser is no module.
        ValueError: if there is no such site, a tied weight is given two quantisers, nothing is given, something is
            attached already, or the model has no weight or uninitialised lazy modules.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> x, before = torch.randn(3, 4), model[2].weight
    >>> attachment = attach_(model, weights={"2.weight": TensorQuantizer(1)})
    >>> model(x).shape, model[2].weight is before
    (torch.Size([3, 2]), True)
    >>> _ = attachment.strip()
    """
    weights, activations = dict(weights or {}), dict(activations or {})
    if not weights and not activations:
        raise ValueError("give at least one quantiser, in weights or activations")
    if any(True for _ in hosts_of(model)):
        raise ValueError(f"this {type(model).__name__} has quantisers attached already: strip_ it first")
    sites = {name: site for site in weight_sites(model, frozen=True) for name in site.names}
    inputs = {site.name: site for site in activation_sites(model, frozen=True)}
    _check("weights", weights, sites)
    _check("activations", activations, inputs)
    modules = dict(model.named_modules(remove_duplicate=False))
    names = {id(module): name for name, module in model.named_modules()}
    hosts: dict[int, Host] = {}
    lock = Lock()
    for site, quantizer in _by_site(weights, sites):
        swaps: dict[int, WeightSwap] = {}
        for owner_name, parameter_name in (name.rpartition(".")[::2] for name in site.names):
            owner = modules[owner_name]
            if id(owner) in swaps:
                continue
            swap = swaps[id(owner)] = WeightSwap(site.name, owner, parameter_name, quantizer, lock)
            for module in _readers(model, owner):
                hosts.setdefault(id(module), Host(names[id(module)], lock)).swaps.append(swap)
        if isinstance(quantizer, TensorQuantizer) and not quantizer.initialised:
            with torch.no_grad():
                quantizer(site.parameter.detach())
    for name, quantizer in activations.items():
        module = inputs[name].module
        host = hosts.setdefault(id(module), Host(name, lock))
        host.quantizer, host.arguments = quantizer, inputs[name].arguments
        layer = inputs[name].messages_of
        if layer is not None:
            _set(layer, "fuse", False)
    for module in model.modules():
        if id(module) in hosts:
            hosts[id(module)].attach(module)
        if isinstance(module, nn.TransformerEncoder) and any(id(m) in hosts for m in module.modules()):
            _set(module, "use_nested_tensor", False)  # its layers take none while there are hooks in them
    return Attachment(model)


def strip_(model: nn.Module) -> nn.Module:
    """Take all quantisers off ``model``, in place; the weights are those that were trained, in full precision.

    A model that an interrupted call has left with a quantised weight in place of a parameter gets it back. Nothing
    happens to a model without quantisers. Returns the model.
    """
    for module, host in list(hosts_of(model)):
        for swap in host.swaps:
            swap.remove()
        remove_hooks(module)
    for module in model.modules():
        for attribute, value in module.__dict__.pop(_SETTINGS, {}).items():
            setattr(module, attribute, value)
    return model


def exact_activations(model: nn.Module) -> AbstractContextManager[None]:
    """Leave what goes into the layers of ``model`` as it is inside; weights are rounded as ever.

    For what only asks which way activations would go, many times. Nothing happens to a model without quantisers.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> attachment = attach_(layer, activations={"": TensorQuantizer(1, scale="dynamic")})
    >>> x = torch.tensor([[0.1], [0.9]])
    >>> with exact_activations(layer):
    ...     torch.equal(layer(x), x * layer.weight)
    True
    """
    return _of_all(model, passing=True)


def settled_ranges(model: nn.Module) -> AbstractContextManager[None]:
    """Let no observed scale of ``model`` learn from what runs inside, though the model is in train mode.

    For inputs beside those that it is trained for. Nothing happens to a model without quantisers.

    >>> layer = nn.Linear(2, 2)
    >>> attachment = attach_(layer, activations={"": TensorQuantizer(8)})
    >>> with settled_ranges(layer):
    ...     _ = layer(torch.ones(1, 2))
    >>> attachment.activations[""].initialised
    tensor(False)
    """
    return _of_all(model, observing=False)


@contextmanager
def _of_all(model: nn.Module, **setting: bool) -> Iterator[None]:
    """Set what this thread wants of all hosts; then it is what it was."""
    thread, hosts = threading.get_ident(), [host for _, host in hosts_of(model)]
    before = [host.settings.get(thread, Setting()) for host in hosts]
    for host, present in zip(hosts, before, strict=True):
        host.settings[thread] = present._replace(**setting)
    try:
        yield
    finally:
        for host, present in zip(hosts, before, strict=True):
            host.settings[thread] = present
            if present == Setting():
                del host.settings[thread]


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that is most like ``name``, or nothing where there is none."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _check(argument: str, given: Mapping[str, object], known: Mapping[str, object]) -> None:
    unknown = [f"{name!r}{nearest_name(name, known)}" for name in given if name not in known]
    if unknown:
        raise ValueError(f"{argument} must name sites of the model, got {', '.join(unknown)}")
    for name, quantizer in given.items():
        if not isinstance(quantizer, nn.Module):
            raise TypeError(f"{argument}[{name!r}] must be a module such as TensorQuantizer, got {quantizer!r}")


def _by_site(weights: Mapping[str, nn.Module], sites: Mapping[str, Site]) -> Iterator[tuple[Site, nn.Module]]:
    chosen: dict[str, nn.Module] = {}
    for name, quantizer in weights.items():
        first = sites[name].name
        if chosen.setdefault(first, quantizer) is not quantizer:
            raise ValueError(f"weights[{name!r}] is {first!r}, which it is tied to: give one quantiser for both")
    yield from ((sites[name], quantizer) for name, quantizer in chosen.items())


def _readers(model: nn.Module, owner: nn.Module) -> list[nn.Module]:
    """Modules in whose ``forward`` a weight of ``owner`` is read."""
    # Attention multiplies with the weight of its output projection without calling it; a list of parameters is not
    # called at all, but read by who holds it.
    outer: list[nn.Module] = []
    outer += (m for m in model.modules() if isinstance(m, nn.MultiheadAttention) and m.out_proj is owner)
    if isinstance(owner, nn.ParameterList | nn.ParameterDict):
        outer = [m for m in model.modules() if any(child is owner for child in m.children())]
    return [owner, *outer]


def _set(module: nn.Module, attribute: str, value: object) -> None:
    before = module.__dict__.setdefault(_SETTINGS, {})
    before.setdefault(attribute, getattr(module, attribute))
    setattr(module, attribute, value)
