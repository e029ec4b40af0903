"""What is called best, tested, written and told is the network that was validated."""

import warnings

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn.callbacks import FocusedCompression, LowPrecisionSearch
from lightning_effnn.compression import load_compressed
from lightning_effnn.quantization import Attachment

pytestmark = pytest.mark.trains
BATCHES = 4


def loader(n=BATCHES * 16):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(n))
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 16)


class Net(L.LightningModule):
    def __init__(self, lr=0.02):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        self.lr, self.validated = lr, []

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        loss = self.training_step(batch, batch_idx)
        self.log("val_loss", loss)
        if not self.trainer.sanity_checking:
            self.validated.append({name: p.detach().clone() for name, p in self.named_parameters()})

    def test_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


def trainer(callbacks, epochs=8, **kw):
    quiet = {"logger": False, "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    return L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, **(quiet | kw),
    )  # fmt: skip


def fit(callbacks, epochs=8, ckpt_path=None, model=None, validation=True, **kw):
    L.seed_everything(0, verbose=False)
    model, its = model or Net(), trainer(callbacks, epochs, **kw)
    its.fit(model, loader(), loader(48) if validation else None, ckpt_path=ckpt_path)
    return its, model


def compression(**kw):
    return FocusedCompression(**({"sparsity": 0.6, "prune": (0.1, 0.4), "quantize": (0.4, 0.6)} | kw))


def assert_validated_last(model):
    for name, value in model.validated[-1].items():
        assert torch.equal(value, model.get_parameter(name)), name


@pytest.mark.parametrize("stop", ["early stopping", "max_steps", "another callback"])
def test_a_fit_that_ends_early_is_validated_as_it_is_written(stop, tmp_path):
    class Stops(L.Callback):
        def on_train_batch_end(self, its, *_):
            its.should_stop = its.should_stop or (stop == "another callback" and its.global_step >= 6)

    kw = {"max_steps": 6} if stop == "max_steps" else {}
    others = [EarlyStopping("val_loss", patience=1, min_delta=10.0)] if stop == "early stopping" else [Stops()]
    callback = compression(export=tmp_path / "model.effnn", prune=(0.0, 0.8), quantize=(0.8, 0.9))
    with pytest.warns(UserWarning, match=r"ended at the stage 'pruning'.*val_loss 0\.\d+ and 0\.\d+"):
        its, model = fit([callback, *others], epochs=20, **kw)
    assert_validated_last(model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_compressed(tmp_path / "model.effnn").items())
    assert its.callback_metrics["compress/stage"] == 3
    assert callback.projector.sparsity >= 0.55


def test_without_validation_a_fit_that_ends_early_says_that_nothing_tells_its_cost():
    with pytest.warns(UserWarning, match="without validation data"):
        fit([compression()], max_steps=6, validation=False)


def test_a_fit_that_comes_to_its_end_is_not_validated_again():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="FocusedCompression")
        _, model = fit([compression()])
    assert len(model.validated) == 8 * 3
    assert_validated_last(model)


@pytest.mark.parametrize("order", [1, -1])
def test_an_average_is_validated_as_it_is_shipped(order):
    _, model = fit([compression(), EMAWeightAveraging(decay=0.5)][::order])
    assert_validated_last(model)
    assert len(model.net[0].weight.unique()) <= 19


def test_the_stage_is_known_when_a_network_is_validated():
    seen = []

    class Watch(L.Callback):
        def on_validation_end(self, its, pl_module):
            if not its.sanity_checking:
                seen.append(float(its.callback_metrics["compress/stage"]))

    fit([Watch(), compression(prune=(0.2, 0.4), quantize=(0.6, 0.8))], epochs=10)
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}


@pytest.mark.parametrize("activations", [None, 4])
@pytest.mark.parametrize("again", ["same trainer", "new trainer"])
def test_the_best_checkpoint_of_the_compressed_ones_tests_as_it_was_validated(again, activations, tmp_path):
    saving = ModelCheckpoint(tmp_path, monitor="val_loss", mode="min")
    stopping = EarlyStopping("val_loss", patience=1, min_delta=10.0)
    callback = compression(best_of_compressed=True, activations=activations)
    its, model = fit([stopping, saving, callback], epochs=20)
    assert 12 <= its.current_epoch < 16  # patience is counted from the final stage on
    state = torch.load(saving.best_model_path, weights_only=True)["state_dict"]
    assert len(state["net.0.weight"].unique()) <= 19
    if again == "new trainer":
        its, model = trainer([compression(activations=activations), ModelCheckpoint(tmp_path)]), Net()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="FocusedCompression")
        (found,) = its.test(model, loader(48), ckpt_path=saving.best_model_path, verbose=False)
    assert found["val_loss"] == pytest.approx(float(saving.best_model_score), abs=1e-7)
    assert "on_validation_end" not in vars(saving)
    if activations:
        assert all(q.bits == 4 for q in Attachment(model).activations.values())


def test_a_checkpoint_from_before_the_end_says_what_it_is(tmp_path):
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    callback = compression(activations=4)
    its, model = fit([saving, callback])
    with pytest.warns(UserWarning, match="of the stage 'pruning'"):
        its.test(model, loader(48), ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    with pytest.raises(ValueError, match="attached"):
        Attachment(model)  # activations were not rounded then


@pytest.mark.parametrize("again", ["same trainer", "new trainer"])
@pytest.mark.parametrize("epoch", [0, 2, 5], ids=["before the search", "in it", "after it"])
def test_a_search_s_checkpoint_tests_as_it_was_validated(epoch, again, tmp_path):
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    losses = []

    class Watch(L.Callback):
        def on_validation_end(self, its, pl_module):
            if not its.sanity_checking:
                losses.append(float(its.callback_metrics["val_loss"]))

    def search():
        return LowPrecisionSearch((2, 3), (2, 3), "bits", warmup=0.3, freeze=0.7)

    its, model = fit([search(), saving, Watch()], epochs=6)
    if again == "new trainer":
        its, model = trainer([search(), ModelCheckpoint(tmp_path)]), Net()
    (found,) = its.test(model, loader(48), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", verbose=False)
    assert found["val_loss"] == pytest.approx(losses[epoch], abs=1e-7)


def test_a_search_resumed_with_nothing_left_to_train_says_so(tmp_path):
    def search():
        return LowPrecisionSearch((), (4, 8), "bits", export=tmp_path / "bits.yaml")

    fit([search(), ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")], epochs=4)
    (tmp_path / "bits.yaml").unlink()
    with pytest.warns(UserWarning, match="no bits were chosen and no plan is written"):
        fit([search()], epochs=3, ckpt_path=tmp_path / "epoch=2.ckpt")
    assert not (tmp_path / "bits.yaml").exists()


def test_a_compression_resumed_with_nothing_left_to_train_says_so(tmp_path):
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit([compression(), saving])
    callback = compression(export=tmp_path / "model.effnn")
    with pytest.warns(UserWarning, match="no epoch was left after the stage 'pruning'.* not been validated"):
        _, model = fit([callback], epochs=2, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_compressed(tmp_path / "model.effnn").items())


@pytest.mark.parametrize("argument", [{"sparsity": 0.8}, {"bits": 4}, {"method": "magnitude"}, {"activations": 4}])
def test_other_arguments_than_the_checkpoint_s_are_refused(argument, tmp_path):
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit([compression(), saving])
    (name, value), = argument.items()  # fmt: skip
    with pytest.raises(MisconfigurationException, match=rf"{name}={value!r} \(it had "):
        fit([compression(**argument)], epochs=12, ckpt_path=tmp_path / "epoch=7.ckpt")
    _, model = fit([compression()], epochs=12, ckpt_path=tmp_path / "epoch=7.ckpt")
    assert len(model.net[0].weight.unique()) <= 19


def test_a_fit_stopped_for_nan_writes_nothing(tmp_path):
    class Diverges(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * (float("nan") if self.trainer.training and self.global_step == 2 * BATCHES - 1 else 1.0)

    stopping = EarlyStopping("val_loss", check_finite=True)
    with pytest.raises(ValueError, match=r"NaN or infinity in net\.0\.weight"):
        fit([stopping, compression(export=tmp_path / "model.effnn")], model=Diverges())
    assert not list(tmp_path.iterdir())


def test_a_hook_that_the_module_has_as_an_attribute_stays_its_own():
    model, called = Net(), []

    def own():
        called.append(1)

    model.on_train_end = own
    fit([FocusedCompression(0.5)], epochs=2, model=model)
    assert called == [1]
    assert vars(model)["on_train_end"] is own
