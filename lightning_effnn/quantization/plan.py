"""How many bits each weight and each activation gets: chosen by rule or by name, kept in a YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor, nn

from lightning_effnn._files import write_text
from lightning_effnn._yaml import read_yaml
from lightning_effnn.quantization.attach import nearest_name
from lightning_effnn.quantization.probe import as_in_inference
from lightning_effnn.quantization.quantizer import MAX_BITS
from lightning_effnn.quantization.sites import activation_sites, weight_sites

PRESETS = ("W8A8", "W6A8", "W4A8", "W4A4")
"""Names of plans with the same width almost everywhere."""

_FIRST_LAST = 8
_GROUPS = ("weights", "activations")


class AverageBits(NamedTuple):
    """Mean width of a number, weighted by elements.

    Attributes:
        weights: of all weights of the model that are sites, those the plan leaves out at 32 bits.
        activations: of all that goes into sites in one forward pass, likewise; ``None`` if no inputs were given.
    """

    weights: float
    activations: float | None


@dataclass(frozen=True)
class QuantizationPlan:
    """Bits by site name; sites that are not in it stay as they are, as do those with 32.

    Attributes:
        weights: by name of a :func:`~lightning_effnn.quantization.sites.weight_sites` site.
        activations: by name of an :func:`~lightning_effnn.quantization.sites.activation_sites` site.

    Raises:
        TypeError: if a width is not an integer, or a name not a string.
        ValueError: if a width is neither 1 to 16 nor 32.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    >>> plan = QuantizationPlan.uniform(model, weights=4, activations=8)
    >>> plan.weights
    {'0.weight': 8, '1.weight': 4, '2.weight': 8}
    >>> plan.average_bits(model, torch.ones(1, 4))
    AverageBits(weights=5.714..., activations=8.0)
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group in _GROUPS:
            for name, bits in getattr(self, group).items():
                if not isinstance(name, str):
                    raise TypeError(f"{group} must have names of sites as keys, got {name!r}")
                _check_width(f"{group}[{name!r}]", bits)

    @classmethod
    def uniform(
        cls, model: nn.Module, weights: int = 4, activations: int = 8, first_last: int | None = _FIRST_LAST
    ) -> QuantizationPlan:
        """Return the plan with the same widths everywhere but in the first and the last layer.

        Those are the modules that own the first and the last weight in the order of ``model.named_modules()``; they
        lose most and, being small as a rule, cost least.

        Args:
            model: any module with a weight to quantise.
            weights, activations: bits.
            first_last: bits of weights and activations of the first and the last layer; no exception if ``None``.

        Raises:
            TypeError, ValueError: as for the class, and of :func:`~lightning_effnn.quantization.sites.weight_sites`.

        Source: Zhou et al. (2016), "DoReFa-Net", arXiv 1606.06160, section 2.7, for the exception.
        """
        sites, inputs = weight_sites(model), activation_sites(model)
        ends = () if first_last is None else (id(sites[0].module), id(sites[-1].module))
        outer = weights if first_last is None else first_last
        outer_input = activations if first_last is None else first_last
        return cls(
            {site.name: outer if id(site.module) in ends else weights for site in sites},
            {site.name: outer_input if id(site.module) in ends else activations for site in inputs},
        )

    @classmethod
    def preset(cls, name: str, model: nn.Module) -> QuantizationPlan:
        """Return the plan called ``name``, ``"W4A8"`` for weights of 4 bits and activations of 8.

        The first and the last layer have 8 bits, or more where the plan has more.

        Args:
            name: one of :data:`PRESETS`.
            model: as for :meth:`uniform`.

        Raises:
            ValueError: if there is no such plan.

        >>> QuantizationPlan.preset("W4A4", nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))).weights
        {'0.weight': 8, '1.weight': 4, '2.weight': 8}
        """
        match = re.fullmatch(r"W(\d+)A(\d+)", name) if name in PRESETS else None
        if match is None:
            raise ValueError(f"name must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls.uniform(model, weights=int(match[1]), activations=int(match[2]))

    @classmethod
    def load(cls, path: str | Path) -> QuantizationPlan:
        """Read a plan from a YAML file of two mappings, ``weights`` and ``activations``, from names to bits.

        Raises:
            ValueError: naming the file, the line and the key, if it holds anything else.
            OSError: if it cannot be read.
        """
        path = Path(path)
        root = yaml.compose(read_yaml(path), Loader=yaml.SafeLoader)
        groups: dict[str, dict[str, int]] = {}
        for group, node in _entries(path, root, "the file"):
            if group not in _GROUPS:
                raise _wrong(path, node, f"unknown key {group!r}{nearest_name(group, _GROUPS)}")
            groups[group] = {name: _width(path, group, name, value) for name, value in _entries(path, node, group)}
        return cls(**groups)

    def save(self, path: str | Path) -> None:
        """Write the plan as :meth:`load` reads it; the file appears whole or not at all."""
        text = yaml.safe_dump({group: dict(getattr(self, group)) for group in _GROUPS}, sort_keys=False)
        write_text(path, text)

    def check(self, model: nn.Module) -> None:
        """Raise unless every name of the plan is a site of ``model``.

        Raises:
            ValueError: listing the names that are none, each with the site most like it.
        """
        known = {
            "weights": {name for site in weight_sites(model, frozen=True) for name in site.names},
            "activations": {site.name for site in activation_sites(model, frozen=True)},
        }
        unknown = [
            f"{group}: {name!r}{nearest_name(name, sorted(known[group]))}"
            for group in _GROUPS
            for name in getattr(self, group)
            if name not in known[group]
        ]
        if unknown:
            raise ValueError(f"the plan names what {type(model).__name__} does not have: {'; '.join(unknown)}")

    def average_bits(self, model: nn.Module, *inputs: Any, **kwargs: Any) -> AverageBits:
        """Return the mean widths, weighted by elements.

        Args:
            model: the model the plan is for.
            inputs, kwargs: what it is called with once, to see how large its activations are; leave them out to get
                only the weights' mean. The model is left as it was.

        Raises:
            ValueError: if the plan does not fit the model.
        """
        self.check(model)
        bits = elements = 0
        for site in weight_sites(model, frozen=True):
            width = next((self.weights[name] for name in site.names if name in self.weights), 32)
            bits += width * site.parameter.numel()
            elements += site.parameter.numel()
        average = bits / elements
        return AverageBits(average, self._average_input(model, inputs, kwargs) if inputs or kwargs else None)

    def _average_input(self, model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        bits = elements = 0

        def count(width: int, arguments: tuple[str, ...], args: tuple[Any, ...], named: dict[str, Any]) -> None:
            nonlocal bits, elements
            values = [*args[: len(arguments)], *(x for name, x in named.items() if name in arguments)]
            sizes = {id(x): x.numel() for x in values if isinstance(x, Tensor)}
            bits += width * sum(sizes.values())
            elements += sum(sizes.values())

        handles = [
            site.module.register_forward_pre_hook(
                lambda _, args, named, site=site: count(
                    self.activations.get(site.name, 32), site.arguments, args, named
                ),
                with_kwargs=True,
            )
            for site in activation_sites(model, frozen=True)
        ]
        try:
            with as_in_inference(model):
                model(*inputs, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return bits / elements if elements else 32.0


def _check_width(where: str, bits: object) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{where} must be an integer from 1 to {MAX_BITS}, or 32, got {bits!r}")
    if not (1 <= bits <= MAX_BITS or bits == 32):
        raise ValueError(f"{where} must be from 1 to {MAX_BITS}, or 32 for no quantisation, got {bits}")


def _entries(path: Path, node: yaml.Node | None, where: str) -> list[tuple[str, yaml.Node]]:
    """Keys as they are written (a name such as 0 is no number) and values of a mapping."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
        return []
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(path, node, f"{where} must be a mapping")
    entries: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _wrong(path, key, f"{where} must have plain names as keys")
        if key.value in entries:
            raise _wrong(path, key, f"{where} has the key {key.value!r} twice")
        entries[key.value] = value
    return list(entries.items())


def _width(path: Path, group: str, name: str, node: yaml.Node) -> int:
    plain = isinstance(node, yaml.ScalarNode) and re.fullmatch(r"\d{1,9}", node.value)
    try:
        bits = int(node.value) if plain else node.value
        _check_width(f"{group}[{name!r}]", bits)
    except (TypeError, ValueError) as error:
        raise _wrong(path, node, str(error)) from None
    return int(bits)


def _wrong(path: Path, node: yaml.Node, message: str) -> ValueError:
    return ValueError(f"{path}, line {node.start_mark.line + 1}: {message}")
