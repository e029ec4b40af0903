"""What the class of a module tells of its weights, beside what was declared for it or seen in a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_effnn.quantization.lineage import followed
from lightning_effnn.quantization.weights import WeightUse, uses_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
LOOKED_FOR = (
    "Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d, Linear and other classes whose name ends in Linear, "
    "transformers' Conv1D, Bilinear, Embedding, EmbeddingBag, MultiheadAttention, RNN, LSTM, GRU and their cells, and "
    "for what find_weights_ saw or declare_weight said"
)
_COMPUTED = ("_orig", "_v")  # of torch.nn.utils.prune and the older spectral norm, and of the older weight norm


class Weight(NamedTuple):
    """A parameter that a module multiplies with.

    Attributes:
        owner: the module that owns it: the module itself, or the parametrization that computes its weight.
        name: the parameter's name in the owner.
        axis: which of its axes are the output channels; ``None`` if it has none.
        use: what was declared or seen; ``None`` if only the class tells.
        takes_input: whether it is multiplied with what goes into the module.
    """

    owner: nn.Module
    name: str
    axis: int | None
    use: WeightUse | None
    takes_input: bool = True


def weights_of(module: nn.Module) -> Iterator[Weight]:
    """The weights of ``module``, those that are to be left alone too (by the reason in their use).

    By class, they are the weights of convolutions, linear, recurrent, attention and embedding layers. Of one that a
    parametrization computes they are the parameters that it is computed from, as long as zeros stay zero.
    """
    given: set[tuple[int, str]] = set()
    for name, axis in _by_class(module):
        for weight in _stored(module, name, axis):
            given.add((id(weight.owner), weight.name))
            yield weight
    for name, use in uses_of(module).items():
        if (id(module), name) not in given:
            yield _used(module, name, None)._replace(takes_input=use.takes_input)


def is_message_passing(module: nn.Module) -> bool:
    """Whether ``module`` is a torch-geometric layer; told by name, without importing it."""
    return any(
        c.__name__ == "MessagePassing" and c.__module__.startswith("torch_geometric") for c in type(module).__mro__
    )


def class_name(module: nn.Module) -> str:
    """The name of the class of ``module``, without what a parametrization makes of it."""
    kind = type(module)
    return (kind.__bases__[0] if is_parametrized(module) else kind).__name__


def _by_class(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Names of weights, whether they are there or computed, and their axes of output channels."""
    if isinstance(module, nn.MultiheadAttention):
        yield from ((name, 0) for name in PACKED)  # the output projection is a Linear of its own
    elif isinstance(module, RECURRENT):
        yield from ((name, 0) for name in _names(module) if name.startswith("weight_"))
    elif isinstance(module, (*TRANSPOSED, *EMBEDDINGS)):
        yield "weight", 1
    elif isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.Bilinear)):
        yield "weight", 0
    else:
        weight, name = module._parameters.get("weight"), class_name(module)
        if weight is None or weight.dim() < 2:
            return
        if name == "Conv1D" and weight.dim() == 2:  # transformers': y = x @ weight
            yield "weight", 1
        elif name.endswith("Linear"):
            yield "weight", 0 if weight.dim() == 2 else weight.dim() - 1  # [types, in, out]


def _names(module: nn.Module) -> Iterable[str]:
    computed = module.parametrizations if is_parametrized(module) else ()
    return (*module._parameters, *computed)  # type: ignore[misc]


def _stored(module: nn.Module, name: str, axis: int) -> Iterator[Weight]:
    """The parameters that hold the weight called ``name``."""
    if module._parameters.get(name) is not None:
        yield _used(module, name, axis)
    elif is_parametrized(module, name):
        yield from _parametrized(module, name, axis)
    else:
        for ending in _COMPUTED:
            if module._parameters.get(name + ending) is not None:
                yield _used(module, name + ending, axis)


def _used(owner: nn.Module, name: str, axis: int | None) -> Weight:
    use = uses_of(owner).get(name)
    if use is not None and (use.channel is not None or use.declared):
        axis = use.channel
        parameter = owner._parameters[name]
        assert parameter is not None
        axis = None if axis is None else axis % max(parameter.dim(), 1)
    return Weight(owner, name, axis, use)


def _parametrized(module: nn.Module, name: str, axis: int) -> Iterator[Weight]:
    tensor, sources = followed(module, name)
    owner = module.get_submodule(f"parametrizations.{name}")
    for parameter_name, parameter in owner._parameters.items():
        source = sources.get(id(parameter))
        if parameter is None or source is None or parameter.dim() < 2:
            continue
        found = _used(owner, parameter_name, None)
        if found.use is None and source.changed_by:
            steps = " and ".join(type(step).__name__ for step in owner.children())
            reason = f"goes through {source.changed_by} in {steps}, which its zeros and levels do not reach"
            found = found._replace(use=WeightUse(None, reason=reason))
        elif found.use is None:
            axes = source.axes_along(tensor, axis)
            found = found._replace(axis=min(axes) if axes else None)
        yield found
