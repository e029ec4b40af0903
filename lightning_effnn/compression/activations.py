"""Quantised activations go with the file: which inputs are rounded, to how many bits, with which scale."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch
from torch import nn

from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.quantization import Attachment, TensorQuantizer, activation_sites, attach_, strip_

KEY = "effnn.activations"
"""Name of the record in the metadata of a file."""


def quantize_activations_(
    model: nn.Module, bits: int, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> Attachment:
    """Round what goes into each layer with weights to fixed point, in place; ranges are observed in train mode.

    Args:
        model: any module, initialised, with nothing attached.
        bits: of an activation, 2 to 16.
        include, exclude: patterns, see :func:`lightning_effnn.quantization.activation_sites`.

    Raises:
        ValueError: bits out of range, no layer to quantise, or quantisers attached already.

    >>> attachment = quantize_activations_(nn.Linear(4, 2), 8)
    >>> list(attachment.activations)
    ['']
    """
    check_bits(bits)
    sites = activation_sites(model, include, exclude)
    return attach_(model, activations={site.name: TensorQuantizer(bits) for site in sites})


def check_bits(bits: int) -> None:
    """Refuse widths that activations cannot have.

    Raises:
        ValueError: not an integer from 2 to 16.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(f"activations={bits!r}: an integer from 2 to 16 is needed, or None to leave them as they are")


def record(model: nn.Module) -> str | None:
    """What a file has to say about the activations of ``model``: JSON, ``{site: [bits, signed, scale]}``.

    ``None`` if none are quantised. Scales are float32 numbers written so that they come back exactly.
    """
    try:
        activations = Attachment(model).activations
    except ValueError:  # nothing attached
        return None
    found = {
        name: [q.bits, bool(q.is_signed), float(q.scale.detach())]
        for name, q in activations.items()
        if isinstance(q, TensorQuantizer) and q.axis is None and bool(q.initialised)
    }
    return json.dumps(found, separators=(",", ":")) if found else None


def attach_recorded_(model: nn.Module, text: str, name_of: Callable[[str], str | None] = str) -> Attachment:
    """Attach to ``model`` the quantisers that a file tells of, with their scales, in place of any that it has.

    Args:
        model: any module.
        text: what :func:`record` gave.
        name_of: what the model calls a module of the file; ``None`` for one that is not the model's.

    Raises:
        ArtifactError: the record is damaged, or names sites that the model does not have.
    """
    try:
        given = {name_of(str(site)): _quantizer(*values) for site, values in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"the record of activations is damaged: {error}") from None
    strip_(model)
    try:
        return attach_(model, activations={name: q for name, q in given.items() if name is not None})
    except ValueError as error:
        raise ArtifactError(f"the record of activations does not fit the model: {error}") from None


def _quantizer(bits: int, signed: bool, scale: float) -> TensorQuantizer:
    check_bits(bits)
    if not isinstance(signed, bool) or not isinstance(scale, float) or not 0.0 < scale < float("inf"):
        raise ValueError(f"[{bits!r}, {signed!r}, {scale!r}] is no width, sign and scale")
    quantizer = TensorQuantizer(bits, signed=signed)
    known = {"scale": scale, "initialised": True, "is_signed": signed}
    state = {name: torch.tensor(value, device="cpu") for name, value in known.items()}
    quantizer.load_state_dict(quantizer.state_dict() | state)
    return quantizer
