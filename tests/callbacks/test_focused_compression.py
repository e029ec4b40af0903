"""FocusedCompression in real fits."""

import warnings

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor
from lightning_effnn.compression import bake_, load_compressed
from lightning_effnn.modules import ImageClassifier, SmallCNN

pytestmark = pytest.mark.trains


def loader(n=96, batch_size=16):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 10), batch_size)


def classifier(**kw):
    L.seed_everything(0, verbose=False)
    return ImageClassifier(SmallCNN(), **({"schedule": "constant"} | kw))


def fit(callbacks, model=None, epochs=4, ckpt_path=None, **kw):
    model = model or classifier()
    L.seed_everything(0, verbose=False)
    defaults = {"logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, **(defaults | kw),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, loader(), loader(32), ckpt_path=ckpt_path)
    return trainer, model


def compression(**kw):
    return FocusedCompression(**({"sparsity": 0.8, "prune": (0.0, 0.4), "quantize": (0.4, 0.7)} | kw))


def test_the_file_holds_exactly_the_trained_network(tmp_path):
    callback = compression(export=tmp_path / "model.effnn")
    _, model = fit([callback])
    again = classifier()
    load_compressed(tmp_path / "model.effnn", again)
    for (name, mine), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert callback.report.bytes == (tmp_path / "model.effnn").stat().st_size
    assert callback.report.ratio > 4
    assert callback.projector.sparsity >= 0.8


def test_rounded_activations_go_with_the_file_and_show_in_a_trace(tmp_path):
    callback, monitor = compression(activations=4, export=tmp_path / "model.effnn"), HardwareEnergyMonitor("tpu_like")
    _, model = fit([monitor, callback])
    assert {row["i_format"] for row in monitor.report.rows() if row["macs"]} <= {"uint4", "int4"}
    images = torch.rand(8, 1, 8, 8)
    model, again = model.eval(), classifier().eval()
    load_compressed(tmp_path / "model.effnn", again)
    assert torch.equal(again(images), model(images))
    assert not torch.equal(bake_(again)(images), model(images))  # without rounding it is another network
    assert list(again.state_dict()) == list(classifier().state_dict())


def test_a_fit_that_ends_before_quantising_rounds_no_activations(tmp_path):
    callback = compression(activations=8, export=tmp_path / "model.effnn")
    _, model = fit([callback], max_steps=2)
    again = classifier().eval()
    load_compressed(tmp_path / "model.effnn", again)
    images = torch.rand(8, 1, 8, 8)
    assert torch.equal(again(images), model.eval()(images))


def test_activations_without_a_quantising_window_are_refused():
    with pytest.raises(ValueError, match="activations=8"):
        FocusedCompression(activations=8, quantize=None)
    with pytest.raises(ValueError, match="activations=1"):
        FocusedCompression(activations=1)


@pytest.mark.parametrize("other", ["fp32", "fp16"])
def test_what_is_logged_is_of_the_whole_network_and_equals_the_file(tmp_path, other):
    callback = compression(export=tmp_path / "model.effnn", other=other, exclude=["Linear"])
    trainer, model = fit([callback])
    found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("compress/")}
    assert set(found) == {f"compress/{k}" for k in ("sparsity", "bits_per_weight", "ratio", "focused_layers", "stage")}
    assert found["compress/stage"] == 3
    state = model.state_dict().values()
    assert callback.report.elements == sum(t.numel() for t in state)  # what is left alone too
    assert found["compress/ratio"] == pytest.approx(callback.report.ratio, rel=1e-6)
    assert found["compress/ratio"] == pytest.approx(
        4 * callback.report.elements / (tmp_path / "model.effnn").stat().st_size, rel=1e-6
    )
    assert found["compress/bits_per_weight"] == pytest.approx(32 / callback.report.ratio, rel=1e-6)
    assert found["compress/sparsity"] == pytest.approx(callback.report.sparsity, rel=1e-6)
    assert found["compress/sparsity"] < callback.projector.sparsity


def test_a_network_with_something_that_no_file_holds_trains_on_without_a_size():
    model = classifier()
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    trainer = L.Trainer(
        max_epochs=2, callbacks=[compression()], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"logs no size: 'adjacency' must be a dense tensor"):
        trainer.fit(model, loader())
    logged = {k for k in trainer.callback_metrics if k.startswith("compress/")}
    assert logged == {"compress/focused_layers", "compress/stage"}


def test_a_quarter_of_the_weights_then_half_then_more_and_in_the_end_all_are_rounded():
    callback, shares = compression(prune=None, quantize=(0.0, 0.9)), {}

    class Watch(L.Callback):
        def on_train_batch_end(self, *_):
            layers = callback.projector.layers
            rounded = torch.cat([(layer.site.parameter != layer.latent).flatten() for layer in layers])
            shares.setdefault(callback.projector.fraction, rounded.double().mean().item())  # as a stage begins

    fit([callback, Watch()])
    assert list(shares.values()) == pytest.approx([0.25, 0.5, 0.75, 0.875, 1.0], abs=0.02)


def test_energy_falls_and_formats_show_beside_the_monitor():
    dense, monitor = HardwareEnergyMonitor("eyeriss_like"), HardwareEnergyMonitor("eyeriss_like")
    fit([dense])
    fit([monitor, compression()])
    assert monitor.report.energy_uJ < 0.6 * dense.report.energy_uJ
    assert monitor.report.weights_kB < dense.report.weights_kB / 5
    assert {row["w_format"] for row in monitor.report.rows() if row["macs"]} <= {"focus5", "pow2_5"}


def test_the_optimizer_gains_no_parameters():
    trainer, model = fit([compression()])
    owned = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("activations", [None, 8])
@pytest.mark.parametrize("stopped_after", [1, 2, 3], ids=["pruning", "quantising", "after"])
def test_a_resumed_fit_ends_bit_identical(tmp_path, stopped_after, activations):
    def compression(**kw):
        return FocusedCompression(
            **({"sparsity": 0.8, "prune": (0.0, 0.4), "quantize": (0.4, 0.7), "activations": activations} | kw)
        )

    _, whole = fit([compression()], epochs=4)
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    fit([compression(), checkpoint], epochs=4, enable_checkpointing=True)
    path = tmp_path / f"epoch={stopped_after - 1}.ckpt"
    _, resumed = fit([compression()], epochs=4, ckpt_path=path)
    for (name, mine), theirs in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_checkpoints_hold_the_compressed_network_for_whoever_loads_them(tmp_path):
    fit([compression(), ModelCheckpoint(tmp_path, save_last=True)], enable_checkpointing=True)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert len(state["net.block2.0.weight"].unique()) <= 19


class Manual(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 10)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = nn.functional.cross_entropy(self.b(self.a(batch[0].flatten(1)).relu()), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(m.parameters(), 0.01) for m in (self.a, self.b)]


@pytest.mark.parametrize(
    "settings",
    [
        {"model": Manual},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"callbacks": [StochasticWeightAveraging(1e-3, swa_epoch_start=0.5)]},
        {"fast_dev_run": True},
    ],
    ids=["manual", "accumulate", "clip", "bf16", "swa", "fast_dev_run"],
)
def test_it_works_with(settings):
    settings = dict(settings)
    model = settings.pop("model", classifier)()
    callback = compression()
    _, model = fit([*settings.pop("callbacks", []), callback], model, **settings)
    for layer in callback.projector.layers:
        assert len(layer.site.parameter.unique()) <= 19
        assert torch.equal(layer.site.parameter, layer.projection())
    assert callback.projector.sparsity >= 0.75


def test_weight_averaging_ends_compressed():
    callback = compression()
    fit([EMAWeightAveraging(), callback])
    assert all(len(layer.site.parameter.unique()) <= 19 for layer in callback.projector.layers)


def test_an_exception_leaves_the_projected_weights():
    model, callback = classifier(), compression()

    def broken(*_):
        raise RuntimeError("my own words")

    class Breaks(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 3:
                broken()

    with pytest.raises(RuntimeError, match="my own words"):
        fit([callback, Breaks()], model)
    assert all(torch.equal(layer.site.parameter, layer.projection()) for layer in callback.projector.layers)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": 7.0, "prune": None}, "sparsity=7.0"),
        ({"bits": 2}, "bits=2"),
        ({"prune": (0.5, 0.1)}, r"prune=\(0.5, 0.1\): the end lies before"),
        ({"prune": (0.5, 1.5)}, "1.5 is neither a fraction"),
        ({"quantize": 3}, "pair"),
        ({"method": "random"}, "'dns', 'magnitude'"),
        ({"other": "fp8"}, "'fp32', 'fp16', 'int8'"),
    ],
)
def test_a_wrong_argument_is_refused_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        FocusedCompression(**arguments)


def test_windows_and_fits_that_do_not_go_together_are_refused():
    with pytest.raises(MisconfigurationException, match=r"quantize=\(3, 9\) does not fit into max_epochs=4"):
        fit([compression(quantize=(3, 9))])
    with pytest.raises(MisconfigurationException, match="max_epochs"):
        fit([compression()], epochs=-1)
    with pytest.raises(MisconfigurationException, match=r"quantize=\(2, 3\) counts epochs, the fit counts steps"):
        fit([compression(quantize=(2, 3))], epochs=-1, max_steps=4)
    with pytest.raises(ValueError, match="no weight to prune or quantise"):
        fit([compression(exclude=["*"])])


class Lbfgs(ImageClassifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


def test_lbfgs_is_refused():
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        fit([compression()], Lbfgs(SmallCNN()))
