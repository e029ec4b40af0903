"""What changes training images at random."""

from __future__ import annotations

import torch
from torch import Tensor


def cropped(images: Tensor, rows: Tensor, columns: Tensor, margin: int, fill: float = 0.0) -> Tensor:
    """Return of each image, padded on all sides, the pixels in the given rows and columns.

    Args:
        images: [B, C, H, W].
        rows, columns: [B, H] and [B, W], counted from the corner of the padded image.
        margin: width of the padding.
        fill: its value.
    """
    padded = torch.nn.functional.pad(images, (margin,) * 4, value=fill)
    picture = torch.arange(len(images)).view(-1, 1, 1)
    index = [i.to(images.device) for i in (picture, rows.unsqueeze(2), columns.unsqueeze(1))]
    return padded[index[0], :, index[1], index[2]].permute(0, 3, 1, 2).contiguous()
