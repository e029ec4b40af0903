"""SST-2: sentences of film reviews, liked or not, from three files of text, in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from lightning_effnn._lookup import find_file
from lightning_effnn.data._sampling import SeededShuffle

PAD, UNKNOWN = "<pad>", "<unk>"
_FILES = {"train": "sst2_train.tsv", "val": "sst2_dev.tsv", "test": "sst2_test.tsv"}
_LABELS = {b"0": 0, b"1": 1}

Sentence = tuple[list[str], int]


class SST2DataModule(L.LightningDataModule):
    """Batches of token ids ``[B, T]`` int64, padded with 0 to the longest of the batch, and labels ``[B]``.

    The files are ``sst2_train.tsv``, ``sst2_dev.tsv`` (validation) and ``sst2_test.tsv``: a line is a sentence, a tab
    and 0 or 1. Tokens are what lies between spaces, in lower case. The vocabulary is that of the training file: id 0 is
    padding, 1 any other word, then the words from the most frequent on.

    Args:
        root: folder of the three files; ``None`` takes the environment variable ``EFFNN_DATA``.
        batch_size: sentences a batch.
        min_count: how often a word occurs in the training file to get an id of its own; 2 gives 7,206 ids.
        limit: use only the first so many lines of each file, for quick checks; ``None`` for all.
        seed: chooses the order of the training sentences.
        num_workers: worker processes of each loader.

    Attributes:
        vocabulary: ids by word, after ``setup``; its length is what a network takes as ``vocab_size``.

    Raises:
        ValueError: an argument out of range; at ``setup``, a line that is not of that form, by file and number.
        FileNotFoundError: at ``prepare_data`` or ``setup``, where a file is missing.

    Source: Socher et al. (2013), "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank".
    """

    num_classes = 2

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 64,
        min_count: int = 2,
        limit: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("min_count", min_count)):
            if value < 1:
                raise ValueError(f"{name} is {value}: use a whole number of at least 1")
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}: use a whole number of at least 1, or None for all")
        self.root = root
        self.batch_size = batch_size
        self.min_count = min_count
        self.limit = limit
        self.seed = seed
        self.num_workers = num_workers
        self.vocabulary: dict[str, int] = {}
        self._splits: dict[str, _Sentences] = {}

    def prepare_data(self) -> None:
        """Fail before anything else is set up where a file is missing."""
        for name in _FILES.values():
            find_file(name, self.root)

    def setup(self, stage: str | None = None) -> None:
        """Read the three files once, whatever the stage: ids come from the training file."""
        if self._splits:
            return
        texts = {part: read_sentences(find_file(name, self.root), self.limit) for part, name in _FILES.items()}
        self.vocabulary = build_vocabulary((words for words, _ in texts["train"]), self.min_count)
        self._splits = {part: _Sentences(sentences, self.vocabulary) for part, sentences in texts.items()}

    def train_dataloader(self) -> DataLoader[Any]:
        """Whole batches in an order that depends on the seed and the epoch only."""
        data = self._splits["train"]
        shuffle = SeededShuffle(len(data), self.seed)
        return self._loader(data, sampler=shuffle, drop_last=len(data) >= self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every sentence of the development file once, in order."""
        return self._loader(self._splits["val"])

    def test_dataloader(self) -> DataLoader[Any]:
        """Every sentence of the test file once, in order."""
        return self._loader(self._splits["test"])

    def _loader(self, data: _Sentences, **options: Any) -> DataLoader[Any]:
        return DataLoader(data, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=_padded, **options)


class _Sentences(Dataset[tuple[Tensor, int]]):
    """Sentences as token ids, each as long as it is."""

    def __init__(self, sentences: Iterable[Sentence], vocabulary: Mapping[str, int]) -> None:
        self.rows = [(encode(words, vocabulary), label) for words, label in sentences]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index]


def read_sentences(path: Path, limit: int | None = None) -> list[Sentence]:
    """Return words in lower case and label of each line, of the first ``limit`` lines if that is given.

    Raises:
        ValueError: a line that is not words, a tab and 0 or 1 in UTF-8, named by file and number; or no line.
    """
    sentences: list[Sentence] = []
    for number, line in enumerate(path.read_bytes().splitlines()[:limit], start=1):
        sentence, *labels = line.split(b"\t")
        try:
            words = sentence.decode("utf-8").lower().split()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8: {error.reason}") from error
        if len(labels) != 1 or labels[0] not in _LABELS or not words:
            shown = line.decode("utf-8", "replace")
            raise ValueError(f"{path}, line {number}: a sentence, one tab and 0 or 1 are needed, got {shown[:80]!r}")
        sentences.append((words, _LABELS[labels[0]]))
    if not sentences:
        raise ValueError(f"{path} holds no lines: a sentence, a tab and 0 or 1 on each are needed")
    return sentences


def build_vocabulary(sentences: Iterable[Iterable[str]], min_count: int = 1) -> dict[str, int]:
    """Return an id for padding, one for unknown words, and one for each word that occurs ``min_count`` times.

    Words come by falling count, those of one count by the alphabet.

    >>> build_vocabulary([["a", "fine", "film"], ["a", "dull", "film"]], min_count=2)
    {'<pad>': 0, '<unk>': 1, 'a': 2, 'film': 3}
    """
    counts = Counter(word for words in sentences for word in words)
    kept = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    return {word: i for i, word in enumerate([PAD, UNKNOWN, *(word for _, word in kept)])}


def encode(words: Iterable[str], vocabulary: Mapping[str, int]) -> Tensor:
    """Return the ids of words, int64 ``[T]``.

    >>> encode("a splendid film".split(), {"<pad>": 0, "<unk>": 1, "a": 2, "film": 3})
    tensor([2, 1, 3])
    """
    unknown = vocabulary[UNKNOWN]
    return torch.tensor([vocabulary.get(word, unknown) for word in words], dtype=torch.int64)


def _padded(rows: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    tokens, labels = zip(*rows, strict=True)
    return pad_sequence(list(tokens), batch_first=True, padding_value=0), torch.tensor(labels)
