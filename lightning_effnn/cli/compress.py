"""``effnn compress``: prune, focus and encode a ready checkpoint, without training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from lightning_effnn._checkpoints import State, is_compressed, read_checkpoint
from lightning_effnn._files import is_taken
from lightning_effnn._prefixes import Match, Wanted, choose, describe_misfit, few, find_network
from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.profile import load_model
from lightning_effnn.compression import focus_model_, load_compressed, prune_model_, save_compressed
from lightning_effnn.compression.finish import Other


def compress(
    checkpoint: str,
    *,
    model: str,
    network: str | None,
    output: str,
    bits: int,
    sparsity: float,
    other: Other,
    force: bool,
    console: Console,
) -> None:
    """Write ``output`` and print what each layer became."""
    if is_taken(output) and not force:
        raise UsageError(f"{output} exists: choose another name, or --force to replace it")
    net = load_model(model)
    if note := load_checkpoint(checkpoint, net, network):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    try:
        if sparsity:
            prune_model_(net, sparsity)
        focus_model_(net, bits=bits)
        report = save_compressed(net, output, other=other)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"cannot write {output!r}: {error.strerror or error}") from error
    console.print(str(report), markup=False, highlight=False)


def load_checkpoint(path: str, model: nn.Module, network: str | None = None) -> str:
    """Load the weights in a file into ``model``; nothing in the file is executed.

    Args:
        path: what :func:`lightning_effnn._checkpoints.read_checkpoint` reads, or a ``.effnn`` file.
        model: has to find all of its tensors there, in their shapes; under a prefix, if need be.
        network: which of several networks that fit is meant.

    Returns:
        What a user should know of what was taken and what was left; ``""`` if there is nothing to say.

    Raises:
        UsageError: the file can't be read, holds no network that fits, or several of which none was named.
    """
    try:
        if is_compressed(path):
            load_compressed(path, model, network)
            return ""
        return _load(path, model, network)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


class _Candidate(NamedTuple):
    """A network in a file that fits the model."""

    container: str
    match: Match
    state: State

    def tensors(self) -> State:
        """What the model is to load."""
        return {name: self.state[at] for name, at in self.match.names.items()}


def _load(path: str, model: nn.Module, network: str | None) -> str:
    containers, wanted = read_checkpoint(path), Wanted.by(model)
    candidates = [
        _Candidate(name, match, state)
        for name, state in containers.items()
        for match in find_network(_shapes(state), wanted)
    ]
    if not candidates:
        largest = max(containers.values(), key=len)
        differences = ". ".join(describe_misfit(_shapes(largest), wanted))
        raise ValueError(f"{path} does not fit the model: {differences}{_perhaps_a_shard(path)}")
    labels = _labels(candidates)
    if network is None and all(_same(candidates[0], other) for other in candidates[1:]):
        network = labels[0]
    try:
        chosen = candidates[choose(labels, network, "--network {}")]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tensors, present = chosen.tensors(), model.state_dict()
    _refuse_what_has_no_values(path, chosen, present)
    _refuse_tied_that_differ(path, chosen, wanted)
    model.load_state_dict({name: x for name, x in present.items() if name in wanted.optional} | tensors)
    return _note(chosen, containers)


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in state.items()}


def _labels(candidates: Sequence[_Candidate]) -> list[str]:
    """What each is called: its prefix, the name of the dictionary it is in, or both where both are needed."""
    containers = {candidate.container for candidate in candidates}
    labels = []
    for container, match, _ in candidates:
        parts = [container] if len(containers) > 1 or not match.prefix else []
        labels.append(".".join([*filter(None, parts), *filter(None, [match.prefix])]) or ".")
    return labels


def _same(one: _Candidate, other: _Candidate) -> bool:
    """Whether two candidates hold the same values: one network under two names."""
    mine, theirs = one.tensors(), other.tensors()
    return all(torch.equal(x, theirs[name]) for name, x in mine.items()) and mine.keys() == theirs.keys()


def _refuse_what_has_no_values(path: str, chosen: _Candidate, present: Mapping[str, Tensor]) -> None:
    """Codes that are to be multiplied by a scale, and tensors of other layouts, are no values of the model's."""
    for name, x in chosen.tensors().items():
        at, mine = chosen.match.names[name], present[name]
        scales = [other for other in chosen.match.unused if other.startswith((f"{at}_scale", f"{at}.scale"))]
        codes = mine.is_floating_point() and not (x.is_floating_point() or x.is_complex())
        if scales or codes or x.is_quantized:
            beside = f" with {few(scales)} beside" if scales else ""
            raise ValueError(f"{path}: {at} holds codes ({x.dtype}){beside}: save the values they stand for")
        if x.layout != torch.strided or x.device.type == "meta":
            raise ValueError(f"{path}: {at} must be a dense tensor, it is {x.layout} on {x.device.type}")
        if (x.is_complex() and not mine.is_complex()) or (x.is_floating_point() and not _is_number(mine)):
            raise ValueError(f"{path}: {at} is {x.dtype}, which the model's {mine.dtype} can't hold")


def _is_number(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _refuse_tied_that_differ(path: str, chosen: _Candidate, wanted: Wanted) -> None:
    for group in wanted.tied:
        found = list(dict.fromkeys(chosen.match.names[name] for name in group))
        if any(not torch.equal(chosen.state[found[0]], chosen.state[name]) for name in found[1:]):
            raise ValueError(f"{path}: {few(found)} are one tensor in the model and differ in the file")


def _perhaps_a_shard(path: str) -> str:
    return ". It is one of several shards: give their .index.json" if re.search(r"-\d+-of-\d+\.\w+$", path) else ""


def _note(chosen: _Candidate, containers: Mapping[str, State]) -> str:
    """What was taken if it isn't the whole file, and what was left."""
    container, match, _ = chosen
    taken = len(set(match.names.values()))
    others = sum(map(len, containers.values())) - taken - len(match.unused)
    said = []
    if match.prefix or others:
        place = ".".join(filter(None, [container, match.prefix])) or "the outermost names"
        said.append(
            f"taken: {place}, {taken} tensors" + (f"; {others} others are not of this network" if others else "")
        )
    if match.unused:
        said.append(f"left, as the model has no such names: {few(match.unused)}")
    return "; ".join(said)
