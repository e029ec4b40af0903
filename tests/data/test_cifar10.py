import io

import lightning as L
import numpy as np
import pytest
import torch

from lightning_effnn.data import CIFAR10DataModule
from lightning_effnn.data.cifar10 import normalise, shift_and_mirror

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    """Two files like the real ones, of flat images whose brightness is their number."""
    for part, count in (("train", 60), ("test", 20)):
        chunks = []
        for i in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (i * 4, i * 4, i * 4)).save(buffer, "JPEG")
            chunks.append(np.frombuffer(buffer.getvalue(), np.uint8))
        np.savez(
            tmp_path / f"cifar10_{part}_jpeg.npz",
            jpeg=np.concatenate(chunks),
            offsets=np.cumsum([0, *map(len, chunks)]),
            labels=np.arange(count, dtype=np.uint8) % 10,
        )
    return tmp_path


def test_images_come_decoded_normalised_and_with_their_label(folder):
    data = CIFAR10DataModule(folder, batch_size=20)
    data.setup("test")
    images, labels = next(iter(data.test_dataloader()))
    flat = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32) * 4
    assert torch.equal(labels, torch.arange(20) % 10)
    assert torch.allclose(images, normalise(flat), atol=0.03)


def test_images_that_are_not_normalised_lie_between_0_and_1(folder):
    data, plain = (CIFAR10DataModule(folder, normalised=wanted) for wanted in (True, False))
    batches = []
    for module in (data, plain):
        module.setup("test")
        batches.append(next(iter(module.test_dataloader()))[0])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    assert 0 <= batches[1].min() < batches[1].max() <= 1
    assert torch.allclose((batches[1] - mean) / std, batches[0], atol=1e-5)


def test_validation_takes_as_many_of_each_class(folder):
    data = CIFAR10DataModule(folder, val_size=20)
    data.setup("fit")
    assert torch.bincount(data._splits["val"].labels).tolist() == [2] * 10
    assert len(data._splits["train"]) == 40


def test_folder_is_found_by_the_variable(folder, monkeypatch):
    monkeypatch.setenv("EFFNN_DATA", str(folder))
    data = CIFAR10DataModule(limit=10)
    data.prepare_data()
    data.setup("test")
    assert len(data._splits["test"]) == 10


@pytest.mark.parametrize("root", [None, "/no/such/folder"])
def test_missing_file_names_both_ways(root, monkeypatch):
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"root=.*EFFNN_DATA"):
        CIFAR10DataModule(root).prepare_data()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"limit": 0}, {"val_size": 60}, {"val_size": 0}])
def test_bad_sizes_are_named(folder, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CIFAR10DataModule(folder, **options).setup("fit")


def test_every_shift_is_a_window_of_the_padded_image_or_of_its_mirror():
    images = torch.rand(16, 3, 32, 32)
    moved = shift_and_mirror(images, torch.Generator().manual_seed(0))
    assert len({image.numpy().tobytes() for image in moved}) == 16
    for image, result in zip(images, moved, strict=True):
        padded = torch.nn.functional.pad(image, (4,) * 4)
        windows = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
        assert any(torch.equal(result, w) or torch.equal(result, w.flip(-1)) for w in windows)


class _Recorder(L.LightningModule):
    """Keeps the sum of each training batch; trains one number."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].double().sum().item())
        return self.weight**2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_resumed_fit_sees_the_batches_of_an_uninterrupted_one(folder, tmp_path):
    def fit(epochs, ckpt_path=None):
        model = _Recorder()
        data = CIFAR10DataModule(folder, batch_size=8, val_size=10)
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(model, data, ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return model.seen

    whole = fit(2)
    first = fit(1)
    rest = fit(2, tmp_path / "last.ckpt")
    assert first + rest == whole
    assert len(set(whole)) == len(whole)


def test_a_models_example_is_not_taken_for_a_batch(folder):
    model = _Recorder()
    model.example_input_array = torch.zeros(1, 3, 32, 32)
    model.forward = lambda images: images.mean()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", limit_val_batches=0, limit_train_batches=1, **quiet)
    trainer.fit(model, CIFAR10DataModule(folder, batch_size=8, val_size=10))
    assert len(model.seen) == 1


def test_the_real_file_decodes(data_folder):
    data = CIFAR10DataModule(data_folder, limit=50)
    data.setup("test")
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (50, 3, 32, 32)
    assert set(labels.tolist()) <= set(range(10))
