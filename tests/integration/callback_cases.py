"""One row a callback: from this table all tests of whole runs take what to run and what must hold afterwards."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn import callbacks
from lightning_effnn.compression import load_compressed
from lightning_effnn.quantization import QuantizationPlan, strip_
from lightning_effnn.recipes.benchmarks._every_callback import plane

EPOCHS, BATCHES, BATCH = 4, 6, 8
LIBRARIES = {"lightning": L, "pytorch_lightning": pl}


@dataclass(frozen=True)
class Run:
    """A finished fit: the trainer, the model, the callback under test (None in a plain fit), the case's folder."""

    trainer: Any
    model: Any
    callback: Any
    folder: Path


@dataclass(frozen=True)
class Case:
    """A callback of this package in fits of the smallest network.

    Attributes:
        name: of the class in ``lightning_effnn.callbacks``.
        arguments: of its constructor; ``{folder}`` in a text is the test's folder.
        keys: that have to be logged each epoch.
        promise: asserts on a finished run what the callback is for.
        stateful: whether a resumed fit needs its state.
        neutral: whether the fit ends bit-identical to one without it.
        keeps_hooks: whether it stays on the model after the fit, until ``quantization.strip_``.
        refuses: features that it refuses, with words of the refusal.
        in_yaml: arguments that differ where the model comes from a YAML file.
    """

    name: str
    arguments: Mapping[str, Any]
    keys: tuple[str, ...]
    promise: Callable[[Run], None]
    stateful: bool = False
    neutral: bool = False
    keeps_hooks: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)
    in_yaml: Mapping[str, Any] = field(default_factory=dict)

    def make(self, folder: Path) -> Any:
        return getattr(callbacks, self.name)(**self.filled(folder))

    def filled(self, folder: Path) -> dict[str, Any]:
        return {
            name: value.format(folder=folder) if isinstance(value, str) else value
            for name, value in self.arguments.items()
        }


def _costs_are_known(run: Run) -> None:
    report = run.callback.report
    assert report.coverage >= 0.99
    assert report.energy_uJ > 0
    assert report.macs == run.model.macs


def _the_file_is_the_network(run: Run) -> None:
    state = load_compressed(run.folder / "model.effnn")
    assert list(state) == list(run.model.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in run.model.state_dict().items())
    layers = run.callback.projector.layers
    assert [layer.site.name for layer in layers] == list(run.model.weights)
    assert all(len(layer.site.parameter.unique()) <= 19 for layer in layers)
    assert all(torch.equal(layer.site.parameter, layer.projection()) for layer in layers)
    assert run.callback.projector.sparsity >= 0.5


def _the_bits_are_chosen(run: Run) -> None:
    plan = run.callback.plan
    assert plan == QuantizationPlan.load(run.folder / "bits.yaml")
    assert set(plan.weights) == set(run.model.weights)
    assert set(plan.weights.values()) <= {2, 8}
    assert set(plan.activations.values()) <= {4, 8}
    quantizers = run.callback.search.attachment.weights
    assert {name: q.bits for name, q in quantizers.items()} == plan.weights


def _the_penalty_counts(run: Run) -> None:
    assert 0 < float(run.trainer.callback_metrics["sponge/penalty"]) < 1


def _the_worst_is_known(run: Run) -> None:
    found = run.callback.report
    assert found.worst.mean_uJ > 0
    assert found.gain == found.worst.mean_uJ / found.natural.mean_uJ


def _the_limits_are_those_of_the_file(run: Run) -> None:
    limits = load_file(run.folder / "guard.safetensors")
    assert float(limits["most_density"]) == float(run.callback.guard.most_density) > 0
    assert int(limits["profiled"]) in (BATCH, 2 * BATCH)


def _the_equation_counts(run: Run) -> None:
    assert 0 < float(run.trainer.callback_metrics["pde/residual"]) < 10


PLANE = plane(32)
"""For the last linear layer, whose inputs are taken for coordinates."""

_MANUAL = dict.fromkeys(
    (
        "manual optimisation",
        "several optimisers",
        "raw optimiser",
        "optimiser in the backward pass",
        "SAM in two calls",
    ),
    "automatic_optimization",
)

CASES = [
    Case(
        "HardwareEnergyMonitor",
        {"accelerator": "tpu_like"},
        ("hw/energy_uJ", "hw/latency_us", "hw/coverage"),
        _costs_are_known,
        stateful=True,
        neutral=True,
    ),
    Case(
        "FocusedCompression",
        {"sparsity": 0.6, "prune": (0.0, 0.4), "quantize": (0.4, 0.7), "export": "{folder}/model.effnn"},
        ("compress/sparsity", "compress/bits_per_weight", "compress/ratio", "compress/focused_layers"),
        _the_file_is_the_network,
        stateful=True,
    ),
    Case(
        "LowPrecisionSearch",
        {
            "weights": [2, 8],
            "activations": [4, 8],
            "cost": "bits",
            "warmup": 0.0,
            "freeze": 0.6,
            "export": "{folder}/bits.yaml",
        },
        ("search/bits_w", "search/bits_a", "search/cost", "search/entropy"),
        _the_bits_are_chosen,
        stateful=True,
        keeps_hooks=True,
        refuses=_MANUAL,
    ),
    Case(
        "SpongeTraining",
        {"attack": ["pgd", "noise"], "steps": 1},
        ("sponge/penalty",),
        _the_penalty_counts,
        refuses=_MANUAL
        | {
            "tied embeddings": "a batch begins with a tensor of int64",
            "gradient checkpointing, reentrant": "use_reentrant=False",
        },
    ),
    Case(
        "SpongeEvaluation",
        {"every_n_epochs": 1, "attacks": ["random"], "limit": 2},
        ("sponge/natural_uJ", "sponge/worst_uJ", "sponge/gain"),
        _the_worst_is_known,
        neutral=True,
        refuses={"tied embeddings": "x is torch.int64: floating-point inputs"},
    ),
    Case(
        "EnergyGuardProfile",
        {"quantile": 0.8, "confidence": 0.5, "path": "{folder}/guard.safetensors"},
        ("guard/most_length", "guard/most_density"),
        _the_limits_are_those_of_the_file,
        stateful=True,
        neutral=True,
    ),
    Case(
        "PDEResidualLoss",
        {"problem": "callback_cases:PLANE", "field": "b.3", "points": 8},
        ("pde/residual", "pde/boundary"),
        _the_equation_counts,
        stateful=True,
        refuses=_MANUAL,
        in_yaml={"field": "net.classifier"},
    ),
]


def _network(base: Any) -> type:
    class Network(base.LightningModule):
        """Two convolutions with batch norm and a linear layer; logs ``val_loss``."""

        weights = ("a.0.weight", "b.0.weight", "b.3.weight")  # what multiplies and trains
        macs = 4 * 9 * 36 + 8 * 16 * 4 + 32 * 10  # of an inference

        def __init__(self, optimizers: int = 1, manual: bool = False, raw: bool = False):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
            self.b = nn.Sequential(nn.Conv2d(4, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
            self.count, self.automatic_optimization, self.steps, self.raw = optimizers, not manual, 0, raw
            self.example_input_array = torch.zeros(1, 1, 8, 8)

        def forward(self, x):
            return self.b(self.a(x))

        def loss(self, batch):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def training_step(self, batch, batch_idx):
            if self.automatic_optimization:
                return self.loss(batch)
            optimizers = self.optimizers(use_pl_optimizer=not self.raw)
            optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
            for optimizer in optimizers:
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()
                self.steps += 1

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch), batch_size=len(batch[0]), sync_dist=True)

        def test_step(self, batch, batch_idx):
            self.log("test_loss", self.loss(batch), batch_size=len(batch[0]))

        def predict_step(self, batch, batch_idx):
            return self(batch[0])

        def configure_optimizers(self):
            parts = [self] if self.count == 1 else [self.a, self.b]
            made = [torch.optim.Adam(part.parameters(), 0.02) for part in parts]
            return made[0] if len(made) == 1 else made

    return Network


NETWORKS = {name: _network(library) for name, library in LIBRARIES.items()}


def network(library: str = "lightning", **kw: Any) -> Any:
    torch.manual_seed(0)
    return NETWORKS[library](**kw)


def loader(batches: int = BATCHES) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    n = batches * BATCH
    images = torch.rand(n, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, (images.mean((1, 2, 3)) * 997).long() % 10), BATCH)


def trainer(callbacks: list[Any], library: str = "lightning", epochs: int = EPOCHS, **kw: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return LIBRARIES[library].Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", devices=1, enable_progress_bar=False,
        enable_model_summary=False, **(quiet | kw),
    )  # fmt: skip


def fit(
    case: Case | None, folder: Path, *, model: Any = None, others: Any = (), library: str = "lightning",
    epochs: int = EPOCHS, ckpt_path: Any = None, loaders: Any = None, **kw: Any,
) -> Run:  # fmt: skip
    """Fit the network with the case's callback (None: without) and ``others`` before it; check the manners."""
    callback = None if case is None else case.make(folder)
    model = network(library) if model is None else model
    own = getattr(model, "_orig_mod", model)
    names, attributes = list(own.state_dict()), set(own.__dict__)
    if own is not model:  # Lightning puts the compiled steps there
        attributes |= {"forward", "training_step", "validation_step", "test_step", "predict_step"}
    run_trainer = trainer([*others, *([callback] if callback else [])], library, epochs, **kw)
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_trainer.fit(model, *(loaders or (loader(), loader(2))), ckpt_path=ckpt_path)
    assert list(own.state_dict()) == names, "the user's state_dict has other keys"
    added = {name for name in set(own.__dict__) - attributes if not name.startswith("_")}  # Lightning has its own
    assert not added, "the user's module has new attributes"
    owned = {id(p) for o in run_trainer.optimizers for group in o.param_groups for p in group["params"]}
    assert owned <= {id(p) for p in own.parameters()}, "an optimiser holds what is not the user's"
    run = Run(run_trainer, own, callback, folder)
    if case is not None:
        assert case.keeps_hooks or not hooks(own), "hooks are left on the user's module"
        assert set(case.keys) <= set(run_trainer.callback_metrics), "keys are missing"
        case.promise(run)
    return run


def hooks(model: nn.Module) -> int:
    """Hooks on any module of a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are the same, bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def trained(model: nn.Module, callback: Any) -> dict[str, torch.Tensor]:
    """Copies of what the optimiser moves: the parameters, or where they are compressed what is behind them."""
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    projector = getattr(callback, "projector", None)
    values |= {layer.site.name: layer.latent for layer in (projector.layers if projector else ())}
    return {name: value.clone() for name, value in values.items()}


def equal_values(one: Any, other: Any) -> bool:
    """Whether two nested states are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(equal_values(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal_values, one, other))
    return one == other or (one != one and other != other)


def same_as_plain(case: Case, run: Run, folder: Path, **kw: Any) -> None:
    """A callback that only watches leaves no trace in the fit, one that acts does."""
    plain = fit(None, folder, **kw)
    assert equal_states(strip_(run.model), plain.model) == case.neutral
