"""An equation as part of anybody's loss."""

import math

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_effnn import compression, pde
from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor, PDEResidualLoss

pytestmark = pytest.mark.trains

OSCILLATOR = pde.Problem(
    pde.Box(t=(0, 2)), lambda u, c: u.tt + 9 * u, [pde.Initial(1.0), pde.Initial(0.0, of="u.t")],
    reference=lambda c: torch.cos(3 * c.t),
)  # fmt: skip


class Fit(L.LightningModule):
    """Learns from a few early measurements."""

    def __init__(self, net=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = net or nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def data(n=8):
    x = torch.linspace(0, 0.4, n)[:, None]
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.cos(3 * x)), batch_size=n)


def fit(module, *callbacks, epochs=300, **options):
    options = {"logger": False, "enable_checkpointing": False} | options
    trainer = L.Trainer(max_epochs=epochs, callbacks=list(callbacks), enable_progress_bar=False, accelerator="cpu",
                        enable_model_summary=False, log_every_n_steps=1, **options)  # fmt: skip
    trainer.fit(module, data())
    return trainer


def error(module):
    t = torch.linspace(0, 2, 50)[:, None]
    with torch.no_grad():
        return float((module.net(t) - torch.cos(3 * t)).norm() / torch.cos(3 * t).norm())


def test_an_equation_says_what_data_doesnt():
    plain, informed = Fit(), Fit()
    fit(plain)
    trainer = fit(informed, PDEResidualLoss(OSCILLATOR, weight=1.0, points=64), epochs=500)
    assert error(informed) < 0.3 * error(plain)
    assert trainer.logged_metrics["pde/residual"] > 0
    assert trainer.logged_metrics["pde/boundary"] > 0


def test_module_is_given_back_as_it_was():
    module = Fit()
    keys = list(module.state_dict())
    fit(module, PDEResidualLoss(OSCILLATOR, points=16), epochs=2)
    assert "training_step" not in vars(module)
    assert list(module.state_dict()) == keys


def test_resumed_fit_ends_bit_identical(tmp_path):
    def run(epochs, resume=None):
        module = Fit()
        keep = L.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = L.Trainer(max_epochs=epochs, callbacks=[PDEResidualLoss(OSCILLATOR, points=16), keep], logger=False,
                            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")  # fmt: skip
        trainer.fit(module, data(), ckpt_path=resume)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.equal(run(4), run(4, tmp_path / "epoch=1.ckpt"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_works_with_compression_and_energy(tmp_path, precision):
    module = Fit()
    callbacks = [PDEResidualLoss(OSCILLATOR, points=32), HardwareEnergyMonitor("eyeriss_like"),
                 FocusedCompression(sparsity=0.5, bits=5, export=tmp_path / "u.effnn")]  # fmt: skip
    trainer = fit(module, *callbacks, epochs=10, precision=precision)
    again = Fit()
    compression.load_compressed(tmp_path / "u.effnn", again)
    t = torch.rand(5, 1)
    assert torch.equal(again.net(t), module.net(t))
    assert trainer.logged_metrics["hw/energy_uJ"] > 0
    assert math.isfinite(trainer.logged_metrics["pde/residual"])


def test_energy_is_that_of_the_step_alone():
    energies = []
    for extra in ([], [PDEResidualLoss(OSCILLATOR, points=64)]):
        trainer = fit(Fit(), HardwareEnergyMonitor("eyeriss_like"), *extra, epochs=1)
        energies.append(float(trainer.logged_metrics["hw/macs"]))
    assert energies[0] == energies[1]


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: PDEResidualLoss(OSCILLATOR, weight=0), ValueError, "weight"),
    (lambda: PDEResidualLoss(pde.Problem(pde.Box(t=(0, 1)), lambda u, c: u.t + c.k * u, unknowns={"k": 1.0})),
     ValueError, "PDESolver finds unknowns"),
    (lambda: fit(Fit(), PDEResidualLoss(OSCILLATOR, field="body")), MisconfigurationException, "the module has net"),
    (lambda: fit(Fit(nn.Linear(1, 2)), PDEResidualLoss(OSCILLATOR)), MisconfigurationException, r"\[4, 1\] is needed"),
    (lambda: fit(Fit(nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))), PDEResidualLoss(OSCILLATOR)),
     ValueError, "relu"),
])  # fmt: skip
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_manual_optimisation_is_refused():
    module = Fit()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="automatic_optimization"):
        fit(module, PDEResidualLoss(OSCILLATOR))
