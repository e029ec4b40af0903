"""Files like those of the real data, a few kilobytes each, in the folder that EFFNN_DATA names."""

import io

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_effnn.modules import ResNetCIFAR


@pytest.fixture
def sentences(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for part, count in (("train", 160), ("dev", 32), ("test", 32)):
        rows = []
        for label in rng.integers(0, 2, count):
            words = [*rng.choice(["a", "the", "film", "plot"], 4), ["dull", "fine"][label]]
            rows.append(f"{' '.join(rng.permutation(words))}\t{label}\n")
        (tmp_path / f"sst2_{part}.tsv").write_text("".join(rows))
    monkeypatch.setenv("EFFNN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part, count in (("train", 80), ("test", 40)):
        chunks = []
        for _ in range(count):
            buffer = io.BytesIO()
            image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "JPEG")
            chunks.append(np.frombuffer(buffer.getvalue(), np.uint8))
        np.savez(
            tmp_path / f"cifar10_{part}_jpeg.npz",
            jpeg=np.concatenate(chunks),
            offsets=np.cumsum([0, *map(len, chunks)]),
            labels=np.arange(count, dtype=np.uint8) % 10,
        )
    torch.manual_seed(0)
    save_file(ResNetCIFAR(depth=20).state_dict(), tmp_path / "cifar10_resnet20.safetensors")
    monkeypatch.setenv("EFFNN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
