from types import SimpleNamespace

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_effnn.callbacks import FocusedCompression, LowPrecisionSearch, SpongeEvaluation, SpongeTraining


class FSDPStrategy:
    pass


@pytest.mark.parametrize(
    "callback",
    [FocusedCompression(), LowPrecisionSearch(cost="bits"), SpongeTraining(), SpongeEvaluation()],
    ids=lambda callback: type(callback).__name__,
)
def test_sharded_weights_are_refused_with_the_name_of_whoever_needs_them_whole(callback):
    trainer = SimpleNamespace(strategy=FSDPStrategy(), max_epochs=4)
    with pytest.raises(MisconfigurationException, match=f"{type(callback).__name__} needs whole weights, and FSDP"):
        callback.setup(trainer, SimpleNamespace(automatic_optimization=True), "fit")
