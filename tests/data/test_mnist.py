import numpy as np
import pytest

from lightning_effnn.data import MNISTDataModule


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=np.arange(60) % 10, x_test=x[:20], y_test=np.arange(20) % 10)
    return tmp_path


def test_images_are_scaled_and_splits_disjoint(folder):
    data = MNISTDataModule(folder, batch_size=8, val_size=10)
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 1, 28, 28)
    assert -1 <= images.min() < images.max() <= 1
    assert [len(data._splits[s]) for s in ("train", "val", "test")] == [50, 10, 20]
    assert labels.dtype.is_floating_point is False


def test_without_held_out_images_validation_is_the_test_set(folder):
    data = MNISTDataModule(folder, val_size=0)
    data.setup()
    assert len(data._splits["val"]) == 20


def test_a_missing_file_names_both_ways(tmp_path):
    with pytest.raises(FileNotFoundError, match="EFFNN_DATA"):
        MNISTDataModule(tmp_path).setup()


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"val_size": 60000}, {"val_size": -1}])
def test_a_wrong_argument_is_named(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        MNISTDataModule(**arguments)


def test_the_real_file_has_the_published_sizes(data_folder):
    data = MNISTDataModule(data_folder)
    data.setup()
    assert [len(data._splits[s]) for s in ("train", "val", "test")] == [55000, 5000, 10000]
