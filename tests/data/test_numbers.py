import random

import pytest
import torch

from lightning_effnn.data import NumbersDataModule
from lightning_effnn.data.numbers import CHARACTERS, END, START, WORDS, encode_characters, natural, spell


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("0", "zero"),
        ("13", "thirteen"),
        ("-40", "minus forty"),
        ("105", "one hundred five"),
        ("1000000", "one million"),
        ("70020.05", "seventy thousand twenty point zero five"),
        ("999999999999", "nine hundred ninety nine billion nine hundred ninety nine million"
         " nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)  # fmt: skip
def test_numbers_are_read_out(number, words):
    assert " ".join(spell(number)) == words


def test_drawn_numbers_are_numbers_of_that_length():
    chance = random.Random(0)
    for length in range(1, 13):
        drawn = [natural(chance, length) for _ in range(200)]
        assert {len(number) for number in drawn} == {length}
        for number in drawn:
            assert abs(float(number)) < 10**length
            assert not number.lstrip("-").startswith("0") or float(number) < 1 or number in "0"
            assert set(spell(number)) <= set(WORDS)


def test_batches_hold_characters_and_words():
    data = NumbersDataModule(length=6, size=64, batch_size=16, seed=3)
    data.setup()
    characters, words = next(iter(data.train_dataloader()))
    for row, target in zip(characters.tolist(), words.tolist(), strict=True):
        number = "".join(CHARACTERS[c - 1] for c in row if c)
        target = target[: target.index(END) + 1]
        assert [WORDS[t] for t in target[1:-1]] == spell(number)
        assert target[0] == START
    again = NumbersDataModule(length=6, size=64, batch_size=16, seed=3)
    again.setup()
    assert torch.equal(next(iter(again.train_dataloader()))[0], characters)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="length is 13"):
        NumbersDataModule(length=13)
    with pytest.raises(ValueError, match="batch_size is 0"):
        NumbersDataModule(batch_size=0)
    with pytest.raises(ValueError, match="'x' is in no number"):
        encode_characters(["1x"])
