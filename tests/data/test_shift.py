import numpy as np
import pytest
import torch

from lightning_effnn.data import MNISTDataModule
from lightning_effnn.data.mnist import shifted


def test_images_move_by_whole_pixels_and_background_comes_in():
    images = torch.full((200, 1, 28, 28), -1.0)
    images[:, :, 14, 14] = 1.0
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    _, _, rows, columns = (moved == 1.0).nonzero().T
    assert len(rows) == 200
    assert set(rows.tolist()) == set(columns.tolist()) == {12, 13, 14, 15, 16}
    assert set(np.unique(moved)) == {-1.0, 1.0}


def test_the_same_seed_moves_alike():
    images = torch.rand(8, 1, 28, 28)
    first, second = (shifted(images, 2, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("shift", [-1, 1.5, True])
def test_what_is_no_number_of_pixels_is_refused(shift):
    with pytest.raises(ValueError, match="shift is"):
        MNISTDataModule(shift=shift)
