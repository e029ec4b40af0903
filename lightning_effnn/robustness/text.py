"""Strings of a given number of characters that cost most: a genetic search, and chance under the same budget."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightning_effnn.robustness.attacks import at_least_one, bar

Energies = Callable[[list[str]], Any]
"""From N strings to N numbers: simulated energy, latency, wall time, or what a meter says."""


def sponge_text_genetic(
    energy_of: Energies,
    alphabet: str,
    length: int = 50,
    pool: int = 128,
    generations: int = 60,
    mutation: float = 0.05,
    survivors: float = 0.25,
    natural: Sequence[str] = (),
    *,
    seed: int = 0,
    progress: bool = False,
) -> list[str]:
    """Raise any measured cost of a string: the best are kept, halves of two of them joined, characters drawn anew.

    A child that was measured before makes room for a random string: where all parents are alike, the search would be
    stuck. Interrupted by Ctrl-C it returns the best so far.

    Args:
        energy_of: from a list of N strings to N numbers, called once a generation.
        alphabet: characters to draw from.
        length: characters of each string.
        pool: strings kept from one generation to the next, and bred in it, at least 2.
        generations: at least 1.
        mutation: share of a child's characters that are drawn anew.
        survivors: share of the pool that parents come from.
        natural: samples that up to half of the first pool is made of, cut to ``length``; the others are random.
        seed: of all random numbers.
        progress: show a bar.

    Returns:
        The best ``pool`` strings that were seen, all different, the costliest first.

    Raises:
        ValueError: an argument out of range; as many numbers as strings aren't returned.

    Source: Shumailov et al. (2021), arXiv 2006.03463, section IV.A: for text, the left half of one parent and the right
    half of another.

    >>> strings = sponge_text_genetic(lambda texts: [text.count("#") for text in texts], "ab#", length=8)
    >>> strings[0]
    '########'
    """
    _check(alphabet, length, pool, generations)
    for name, share in (("mutation", mutation), ("survivors", survivors)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} is {share!r}: use a share above 0, up to 1")
    chance = random.Random(seed)
    parents = max(2, round(survivors * pool))
    seeds = [text for text in dict.fromkeys(natural) if text][: pool // 2]
    first = [text[:length] + _drawn(chance, alphabet, length - len(text)) for text in seeds]
    first += [_drawn(chance, alphabet, length) for _ in range(pool - len(first))]

    def child(best: list[str]) -> str:
        left, right = chance.choice(best), chance.choice(best)
        joined = left[: length // 2] + right[length // 2 :]
        text = "".join(chance.choice(alphabet) if chance.random() < mutation else c for c in joined)
        return _drawn(chance, alphabet, length) if text in seen else text  # what is known teaches nothing

    seen: dict[str, float] = {}
    ranking: list[str] = []
    try:
        for generation in bar(generations, progress):
            candidates = first if generation == 0 else [child(ranking[:parents]) for _ in range(pool)]
            fresh = [text for text in dict.fromkeys(candidates) if text not in seen]
            seen |= _measured(energy_of, fresh)
            ranking = sorted({*ranking, *fresh}, key=lambda text: (-seen[text], text))[:pool]
    except KeyboardInterrupt:
        pass
    return ranking


def sponge_text_random(
    energy_of: Energies, alphabet: str, length: int = 50, pool: int = 128, generations: int = 60, *, seed: int = 0
) -> list[str]:
    """Draw as many strings as :func:`sponge_text_genetic` measures, and return the costliest: what it has to beat.

    Args:
        energy_of, alphabet, length, pool, generations, seed: as there.

    Returns:
        The best ``pool`` strings, the costliest first.

    Raises:
        ValueError: as there.

    >>> sponge_text_random(lambda texts: [text.count("#") for text in texts], "ab#", length=2)[0]
    '##'
    """
    _check(alphabet, length, pool, generations)
    chance = random.Random(seed)
    seen: dict[str, float] = {}
    for _ in range(generations):
        drawn = [_drawn(chance, alphabet, length) for _ in range(pool)]
        seen |= _measured(energy_of, [text for text in dict.fromkeys(drawn) if text not in seen])
    return sorted(seen, key=lambda text: (-seen[text], text))[:pool]


def _drawn(chance: random.Random, alphabet: str, count: int) -> str:
    return "".join(chance.choice(alphabet) for _ in range(count))


def _measured(energy_of: Energies, texts: list[str]) -> dict[str, float]:
    """Cost by string; what isn't a number is the cheapest."""
    if not texts:
        return {}
    values = torch.as_tensor(energy_of(list(texts)), device="cpu").detach()
    if values.shape != (len(texts),):
        raise ValueError(f"energy_of returned the shape {tuple(values.shape)} for {len(texts)} strings: a number each")
    costs = (-math.inf if math.isnan(value) else value for value in values.double().tolist())
    return dict(zip(texts, costs, strict=True))


def _check(alphabet: str, length: int, pool: int, generations: int) -> None:
    if not isinstance(alphabet, str) or len(set(alphabet)) < 2:
        raise ValueError(f"alphabet is {alphabet!r}: use a string of at least two different characters")
    at_least_one("length", length)
    at_least_one("generations", generations)
    if pool < 2:
        raise ValueError(f"pool is {pool!r}: use at least 2 strings")
