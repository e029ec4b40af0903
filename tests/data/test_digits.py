import builtins

import pytest
import torch

from lightning_effnn.data import DigitsDataModule

pytest.importorskip("sklearn")


def ready(**options):
    data = DigitsDataModule(**options)
    data.setup()
    return data


def test_images_are_scaled_and_have_a_channel():
    images, labels = next(iter(ready(batch_size=7).train_dataloader()))
    assert images.shape == (7, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.min() == 0
    assert 0.9 < images.max() <= 1


def test_splits_are_disjoint_complete_and_stratified():
    data = ready()
    parts = [data._splits[name].tensors for name in ("train", "val", "test")]
    assert sum(len(labels) for _, labels in parts) == 1797
    shares = [torch.bincount(labels) / len(labels) for _, labels in parts]
    assert torch.allclose(shares[0], shares[1], atol=0.01)
    assert torch.allclose(shares[0], shares[2], atol=0.01)
    train, val, test = ({image.numpy().tobytes() for image in images} for images, _ in parts)
    assert not train & val
    assert not (train | val) & test


def test_seed_chooses_the_split_and_the_order():
    def first(seed):
        return next(iter(ready(seed=seed).train_dataloader()))[0]

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_order_changes_with_the_epoch_and_not_with_the_global_generator():
    data = ready()
    loader = data.train_dataloader()

    def order(epoch):
        loader.sampler.set_epoch(epoch)
        torch.rand(5)
        return torch.cat([labels for _, labels in loader])

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(0), order(1))


def test_a_second_setup_keeps_the_split():
    data = ready()
    before = data._splits["test"].tensors[0]
    data.setup("test")
    assert data._splits["test"].tensors[0] is before


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"val_fraction": 0}, {"test_fraction": 0.9}])
def test_bad_sizes_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DigitsDataModule(**options)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def no_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    with pytest.raises(ImportError, match=r"lightning_effnn\[recipes\]"):
        ready()
