"""Tests on a device that isn't the CPU, run by ``tests/test_another_device.py`` in a process of their own.

By hand: ``EFFNN_PRETEND_DEVICE=1 pytest tests/devices``.
"""

import os

import pytest

if "EFFNN_PRETEND_DEVICE" in os.environ:
    import torch
    from pretend_device import NAME

    @pytest.fixture
    def device() -> torch.device:
        """The pretended device."""
        return torch.device(NAME, 0)

    collect_ignore = ["pretend_device.py", "pretend_trainer.py"]  # looking for doctests would import them again
else:
    collect_ignore_glob = ["*.py"]
