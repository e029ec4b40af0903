"""Every choice of a graph network, as a small readable YAML."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lightning_effnn._files import write_text
from lightning_effnn._yaml import load_yaml

ATTENTIONS = ("none", "gcn", "gat", "sym_gat", "cos", "linear", "gen_linear")
AGGREGATIONS = ("sum", "mean", "max")
ACTIVATIONS = ("none", "relu", "elu", "leaky_relu", "tanh", "sigmoid", "relu6", "softplus")
SKIPS = ("none", "linear")
NORMS = ("none", "mean")
FULL = 32
"""Bits of a number that is left as it is."""
MOST_BITS = 16

BITS = ("linear_w", "linear_a", "attention_w", "attention_a", "aggregation_a", "activation_a")
"""The bit widths of a block: weights (w) and activations (a) of its parts."""
WITHOUT_WEIGHTS = ("none", "gcn")
"""Attentions that have no weights."""


@dataclass(frozen=True)
class BlockConfig:
    """One block: what its four parts are, and in how many bits each keeps its weights and activations.

    Attributes:
        width: channels out, a multiple of ``heads``.
        attention: coefficient of an edge: one of :data:`ATTENTIONS`.
        aggregation: of the messages into a node: one of :data:`AGGREGATIONS`.
        activation: one of :data:`ACTIVATIONS`.
        skip: ``"linear"`` adds a product of the block's input, without the graph, to what was aggregated.
        heads: groups of channels with an attention of their own.
        linear_w, attention_w: bits of weights, 1 (signs) to 16, or 32.
        linear_a, attention_a, aggregation_a, activation_a: bits of what the part hands on, likewise. Where there is no
            activation, what was aggregated is handed on as it is. Bits of what a block hasn't are 32.

    Raises:
        ValueError: a name that is none of these, or a number out of range; says which were accepted.
    """

    width: int
    attention: str = "gcn"
    aggregation: str = "sum"
    activation: str = "relu"
    skip: str = "none"
    heads: int = 1
    linear_w: int = FULL
    linear_a: int = FULL
    attention_w: int = FULL
    attention_a: int = FULL
    aggregation_a: int = FULL
    activation_a: int = FULL

    def __post_init__(self) -> None:
        _one_of("attention", self.attention, ATTENTIONS)
        _one_of("aggregation", self.aggregation, AGGREGATIONS)
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("skip", self.skip, SKIPS)
        _at_least_one("width", self.width)
        _at_least_one("heads", self.heads)
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}: use a multiple of the {self.heads} heads")
        for name in BITS:
            check_bits(name, getattr(self, name))
        for name in self.absent:
            object.__setattr__(self, name, FULL)

    @property
    def absent(self) -> tuple[str, ...]:
        """Bit widths of what the block doesn't have."""
        absent = ["attention_w"] if self.attention in WITHOUT_WEIGHTS else []
        absent += ["attention_a"] if self.attention == "none" else []
        return (*absent, "activation_a") if self.activation == "none" else tuple(absent)

    @property
    def out_bits(self) -> int:
        """Bits of what the block hands on."""
        return self.aggregation_a if self.activation == "none" else self.activation_a


@dataclass(frozen=True)
class GraphNetConfig:
    """A graph network: blocks one after another; the last one's channels are the classes' scores.

    Attributes:
        in_channels: features of a node.
        blocks: at least one.
        input_a: bits of the features.
        dropout: share of each block's inputs (and of learned attention's coefficients) left out in training.
        norm: ``"mean"`` takes from what each block aggregated its mean over nodes; for graphs of many edges a node. It
            is in the bias of a network that is trained, so that it costs nothing.

    Raises:
        ValueError: a number out of range, a norm that is neither, or no blocks.

    >>> config = GraphNetConfig.gcn(1433, 7, width=16, w_bits=4, a_bits=8)
    >>> print(config.to_yaml())
    in_channels: 1433
    input_a: 8
    dropout: 0.5
    blocks:
    - {width: 16, attention: gcn, aggregation: sum, activation: relu, linear_w: 4, linear_a: 8, attention_a: 8,
       aggregation_a: 8, activation_a: 8}
    - {width: 7, attention: gcn, aggregation: sum, activation: none, linear_w: 4, linear_a: 8, attention_a: 8,
       aggregation_a: 8}
    >>> GraphNetConfig.from_yaml(config.to_yaml()) == config
    True
    """

    in_channels: int
    blocks: tuple[BlockConfig, ...]
    input_a: int = FULL
    dropout: float = 0.5
    norm: str = "none"

    def __post_init__(self) -> None:
        _at_least_one("in_channels", self.in_channels)
        _one_of("norm", self.norm, NORMS)
        check_bits("input_a", self.input_a)
        if not self.blocks:
            raise ValueError("blocks is empty: a network has at least one")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}: use a share from 0, below 1")

    @property
    def num_classes(self) -> int:
        """Channels of the last block."""
        return self.blocks[-1].width

    @property
    def in_widths(self) -> tuple[int, ...]:
        """Channels into each block."""
        return (self.in_channels, *(block.width for block in self.blocks[:-1]))

    @classmethod
    def gcn(
        cls, in_channels: int, num_classes: int, width: int = 16, w_bits: int = FULL, a_bits: int = FULL
    ) -> GraphNetConfig:
        """Two graph convolutions (Kipf and Welling, 2017, arXiv 1609.02907), each number of as many bits.

        Args:
            in_channels, num_classes: of the data.
            width: hidden channels.
            w_bits, a_bits: of weights and of activations; the scores stay as they are.
        """
        bits: dict[str, Any] = {name: w_bits if name.endswith("_w") else a_bits for name in BITS}
        blocks = (BlockConfig(width, **bits), BlockConfig(num_classes, activation="none", **bits))
        return cls(in_channels, blocks, input_a=a_bits)

    @classmethod
    def gat(
        cls, in_channels: int, num_classes: int, width: int = 8, heads: int = 8, w_bits: int = FULL, a_bits: int = FULL
    ) -> GraphNetConfig:
        """Two graph attention layers (Velickovic et al., 2018, arXiv 1710.10903), the first with several heads.

        Args:
            in_channels, num_classes, w_bits, a_bits: as in :meth:`gcn`.
            width: channels of a head.
            heads: of the first layer.
        """
        bits: dict[str, Any] = {name: w_bits if name.endswith("_w") else a_bits for name in BITS}
        first = BlockConfig(width * heads, "gat", activation="elu", heads=heads, **bits)
        last = BlockConfig(num_classes, "gat", activation="none", **bits)
        return cls(in_channels, (first, last), input_a=a_bits, dropout=0.6)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only; what a block doesn't use is left out."""
        blocks = [_used(block) for block in self.blocks]
        norm = {} if self.norm == "none" else {"norm": self.norm}
        return {
            "in_channels": self.in_channels, "input_a": self.input_a, "dropout": self.dropout, **norm, "blocks": blocks,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> GraphNetConfig:
        """Build it from :meth:`to_dict`'s result.

        Args:
            content: what is missing has its default.

        Raises:
            ValueError: a key that is unknown or missing, or a value out of range.
        """
        _known("a graph network", content, cls, required=("in_channels", "blocks"))
        blocks = content["blocks"]
        if not isinstance(blocks, list | tuple) or not all(isinstance(block, Mapping) for block in blocks):
            raise ValueError(f"blocks is {blocks!r}: use a list of mappings")
        for block in blocks:
            _known("a block", block, BlockConfig, required=("width",))
        return cls(**{**content, "blocks": tuple(BlockConfig(**block) for block in blocks)})

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Return the YAML text, and write it to ``path`` where one is given.

        Args:
            path: of the file; it appears whole or not at all.
        """
        content = self.to_dict()
        blocks = content.pop("blocks")
        lines = [yaml.safe_dump(content, sort_keys=False), "blocks:\n"]
        for block in blocks:  # one line a block reads better than twelve
            flow = yaml.safe_dump(block, sort_keys=False, default_flow_style=True, width=110).strip()
            lines.append("- " + flow.replace("\n", "\n ") + "\n")
        text = "".join(lines).rstrip()
        if path is not None:
            write_text(path, text + "\n")
        return text

    @classmethod
    def from_yaml(cls, text: str | Path) -> GraphNetConfig:
        """Read it from YAML text, or from the file of a ``Path``.

        Args:
            text: what :meth:`to_yaml` returned or wrote.

        Raises:
            ValueError: text that is no such YAML.
        """
        loaded = load_yaml(text)
        if not isinstance(loaded, Mapping):
            raise ValueError("the YAML holds no keys: in_channels, blocks, input_a and dropout are expected")
        return cls.from_dict(loaded)

    def full_precision(self) -> GraphNetConfig:
        """Return the same network with every number of 32 bits."""
        full: dict[str, Any] = dict.fromkeys(BITS, FULL)
        return replace(self, input_a=FULL, blocks=tuple(replace(block, **full) for block in self.blocks))


def check_bits(name: str, bits: object) -> None:
    """Refuse what is no bit width.

    Raises:
        ValueError: names the argument, the value and what is accepted.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not (1 <= bits <= MOST_BITS or bits == FULL):
        raise ValueError(f"{name} is {bits!r}: use 1 to {MOST_BITS} bits, or {FULL} for numbers as they are")


def _used(block: BlockConfig) -> dict[str, Any]:
    content = asdict(block)
    plain = {name for name, value in (("skip", "none"), ("heads", 1)) if content[name] == value}
    return {name: value for name, value in content.items() if name not in (*block.absent, *plain)}


def _known(what: str, content: Mapping[str, Any], kind: type, required: tuple[str, ...]) -> None:
    accepted = [field.name for field in fields(kind)]
    for name in content:
        if name not in accepted:
            near = difflib.get_close_matches(str(name), accepted, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} has no key {name!r}: use {', '.join(accepted)}{hint}")
    missing = [name for name in required if name not in content]
    if missing:
        raise ValueError(f"{what} needs the key {missing[0]!r}")


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        near = difflib.get_close_matches(str(value), accepted, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} is {value!r}: use one of {', '.join(accepted)}{hint}")


def _at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: use a whole number of at least 1")
