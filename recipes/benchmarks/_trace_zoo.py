"""What the zoo of traced networks is made of: networks from configuration, batches of copies of one sample."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]
"""Arguments of a call by name; those without a name under ``""``, as a tuple."""

Settings = dict[str, Any]
"""Arguments of a configuration or a class by name."""


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        name: the class and, where there are several of it, what is different.
        library: the package it comes from.
        build: makes it with random weights.
        batch: what it is called with for ``n`` copies of one sample.
        told: what has to be said of the batch, by its size.
        by_hand: multiply-accumulates of one inference worked out by hand; ``None`` where nobody did.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    told: Callable[[int], dict[str, Any]] = field(default=lambda n: {})
    by_hand: int | None = None


def part(path: str) -> Any:
    """A class or function by its full name, ``"timm.create_model"``; imported only now."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def configured(path: str, config: Settings, config_path: str | None = None) -> nn.Module:
    """A network of transformers, made from its configuration class; nested ``(path, settings)`` are made too."""
    kind = part(path)
    config_class = part(config_path) if config_path else kind.config_class
    made: nn.Module = kind(config_class(**{key: _made(value) for key, value in config.items()}))
    return made


def _made(value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and value[0].startswith("transf"):
        return part(value[0])(**{key: _made(inner) for key, inner in value[1].items()})
    return value


def hf(name: str, batch: Callable[[int], Batch], note: str = "", by_hand: int | None = None, **config: Any) -> Entry:
    """An entry of transformers.

    Args:
        name: of the class.
        batch: what it is called with.
        note: what is different from other entries of the class.
        by_hand: multiply-accumulates of one inference.
        config: settings of its configuration.
    """
    label = f"{name}, {note}" if note else name
    return Entry(label, "transformers", lambda: configured(f"transformers.{name}", config), batch, by_hand=by_hand)


def repeated(n: int, *shape: int) -> Tensor:
    """``n`` times the same normal sample, ``[n, *shape]``."""
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return torch.stack([sample] * n)


def words(n: int, length: int = 12, vocabulary: int = 90) -> Tensor:
    """``n`` times the same token ids above the special ones, ``[n, length]``."""
    ids = torch.randint(10, vocabulary, (length,), generator=torch.Generator().manual_seed(1))
    return ids.repeat(n, 1)


def ids(length: int = 12, **more: Any) -> Callable[[int], Batch]:
    """Batches of sentences."""
    return lambda n: {"input_ids": words(n, length), **more}


def masked_ids(length: int = 12, absent: int = 2) -> Callable[[int], Batch]:
    """Batches of sentences whose last words are padding."""

    def batch(n: int) -> Batch:
        mask = torch.ones(n, length, dtype=torch.long)
        mask[:, length - absent :] = 0
        return {"input_ids": words(n, length), "attention_mask": mask}

    return batch


def pairs(length: int = 12, target: int = 7) -> Callable[[int], Batch]:
    """Batches of a sentence for the encoder and one for the decoder, without a cache."""
    return lambda n: {"input_ids": words(n, length), "decoder_input_ids": words(n, target), "use_cache": False}


def pixels(side: int = 32, channels: int = 3, **more: Any) -> Callable[[int], Batch]:
    """Batches of images under the name ``pixel_values``."""
    return lambda n: {"pixel_values": repeated(n, channels, side, side), **more}


def positional(*shapes: tuple[int, ...]) -> Callable[[int], Batch]:
    """Batches of normal tensors without names."""
    return lambda n: {"": tuple(repeated(n, *shape) for shape in shapes)}
