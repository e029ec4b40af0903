"""Numbers as one types and reads them: ``-1205.7``, minus one thousand two hundred five point seven."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lightning_effnn.data._sampling import SeededShuffle

CHARACTERS = "0123456789-."
PAD, START, END = 0, 1, 2
_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_GROUPS = ("", "thousand", "million", "billion")
WORDS = ("<pad>", "<start>", "<end>", *_SMALL, *_TENS, "hundred", *_GROUPS[1:], "minus", "point")
_IDS = {word: number for number, word in enumerate(WORDS)}


class NumbersDataModule(L.LightningDataModule):
    """Batches of numbers as characters ``[B, T]`` and as words ``[B, S]``, int64, drawn by a seed.

    Characters are padded with 0 on the left, words on the right; words begin with ``START`` and end in ``END``.

    Args:
        length: most characters of a number, 1 to 12.
        size: training numbers; a tenth as many for validation.
        batch_size: numbers a batch.
        seed: of the numbers and their order.

    Raises:
        ValueError: an argument out of range.

    >>> data = NumbersDataModule(length=6, size=100, batch_size=4)
    >>> data.setup()
    >>> characters, words = next(iter(data.train_dataloader()))
    >>> len(characters), len(words), bool((words[:, 0] == START).all())
    (4, 4, True)
    """

    def __init__(self, length: int = 8, size: int = 40_000, batch_size: int = 128, seed: int = 0) -> None:
        super().__init__()
        if not 1 <= length <= 12:
            raise ValueError(f"length is {length}: use 1 to 12 characters")
        for name, value in (("size", size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}: use a whole number of at least 1")
        self.length, self.size, self.batch_size, self.seed = length, size, batch_size, seed
        self._splits: dict[str, list[str]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Draw the numbers once, whatever the stage."""
        if not self._splits:
            chance = random.Random(self.seed)
            for split, count in (("train", self.size), ("val", max(1, self.size // 10))):
                self._splits[split] = [natural(chance, chance.randint(1, self.length)) for _ in range(count)]

    def train_dataloader(self) -> DataLoader[Any]:
        """Whole batches in an order that depends on the seed and the epoch only."""
        data = self._splits["train"]
        return self._loader(data, sampler=SeededShuffle(len(data), self.seed), drop_last=len(data) >= self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation number once, in order."""
        return self._loader(self._splits["val"])

    def _loader(self, data: list[str], **options: Any) -> DataLoader[Any]:
        rows: Any = data
        return DataLoader(rows, self.batch_size, collate_fn=_batch, **options)


def natural(chance: random.Random, length: int) -> str:
    """Draw a number of exactly so many characters: one in five is negative, two in five have decimals.

    >>> natural(random.Random(0), 6)
    '541001'
    """
    sign = "-" if length > 1 and chance.random() < 0.2 else ""
    left = length - len(sign)
    decimals = chance.randint(1, left - 2) if left > 2 and chance.random() < 0.4 else 0
    whole = left - decimals - bool(decimals)
    digits = str(chance.randint(0, 9)) if whole == 1 else str(chance.randint(10 ** (whole - 1), 10**whole - 1))
    fraction = "." + "".join(str(chance.randint(0, 9)) for _ in range(decimals)) if decimals else ""
    return sign + digits + fraction


def spell(number: str) -> list[str]:
    """Return how a number is read out.

    Args:
        number: up to twelve digits, a minus sign before them, a point and decimals after them.

    >>> " ".join(spell("-1205.70"))
    'minus one thousand two hundred five point seven zero'
    """
    whole, _, fraction = number.removeprefix("-").partition(".")
    words = ["minus"] if number.startswith("-") else []
    groups = []
    value = int(whole)
    while value:
        value, group = divmod(value, 1000)
        groups.append(group)
    for place in reversed(range(len(groups))):
        if groups[place]:
            words += [*_below_thousand(groups[place]), *_GROUPS[place].split()]
    if not groups:
        words.append("zero")
    return words + (["point", *(_SMALL[int(digit)] for digit in fraction)] if fraction else [])


def encode_characters(numbers: Iterable[str]) -> Tensor:
    """Return the ids of characters, ``[N, T]`` int64, padded with 0 on the left.

    Raises:
        ValueError: a character that no number has.

    >>> encode_characters(["7", "-1"])
    tensor([[ 0,  8],
            [11,  2]])
    """
    numbers = list(numbers)
    longest = max(map(len, numbers))
    try:
        rows = [[PAD] * (longest - len(number)) + [CHARACTERS.index(c) + 1 for c in number] for number in numbers]
    except ValueError:
        strange = sorted(set("".join(numbers)) - set(CHARACTERS))
        raise ValueError(f"{strange[0]!r} is in no number: use {CHARACTERS}") from None
    return torch.tensor(rows)


def _below_thousand(value: int) -> list[str]:
    hundreds, rest = divmod(value, 100)
    words = [_SMALL[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        words.append(_TENS[rest // 10 - 2])
        rest %= 10
    return [*words, _SMALL[rest]] if rest else words


def _batch(numbers: list[str]) -> tuple[Tensor, Tensor]:
    words = [torch.tensor([START, *(_IDS[word] for word in spell(number)), END]) for number in numbers]
    return encode_characters(numbers), pad_sequence(words, batch_first=True, padding_value=PAD)
