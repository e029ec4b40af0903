"""What an offline run of W&B holds once it is read back from its file: keys, parameters, tables, figures, artefacts."""

import json
import time

import lightning as L
import pytest
import torch
from callback_cases import CASES, network
from lightning.pytorch.loggers import WandbLogger
from test_composition import the_four
from torch.utils.data import DataLoader, TensorDataset
from wandb_file import records

from lightning_effnn.callbacks import SpongeEvaluation

pytestmark = pytest.mark.slow
wandb = pytest.importorskip("wandb")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All callbacks in one offline run: its records by type."""
    folder = tmp_path_factory.mktemp("run")
    logger = WandbLogger(save_dir=folder, offline=True, project="effnn")
    generator = torch.Generator().manual_seed(1)
    data = DataLoader(TensorDataset(torch.rand(48, 1, 8, 8, generator=generator), torch.arange(48) % 10), 8)
    others = [case.make(folder) for case in CASES if case.name in ("EnergyGuardProfile", "PDEResidualLoss")]
    evaluation = SpongeEvaluation(1, attacks=("random",), limit=2, prefix="attack")
    callbacks = [*the_four(folder).values(), *others, evaluation]
    L.Trainer(
        max_epochs=4, callbacks=callbacks, accelerator="cpu", logger=logger, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    ).fit(network(), data, data)  # fmt: skip
    wandb.finish()
    (path,) = folder.rglob("run-*.wandb")
    for _ in range(120):  # its own process writes the file
        found = {}
        for record in records(path):
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
        if "exit" in found:
            return found, folder
        time.sleep(0.5)
    raise AssertionError(f"the run was never written to its end: {sorted(found)}")


def history(found):
    return [{(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in row.item} for row in found["history"]]


def test_every_key_is_there_and_steps_rise(run):
    rows = history(run[0])
    keys = {key for case in CASES for key in case.keys if case.name != "SpongeEvaluation"} - {"search/bits_w"}
    keys |= {"attack/natural_uJ", "attack/worst_uJ", "attack/gain"}
    for key in keys:
        assert sum(key in row for row in rows) == 4, key
    steps = [row["trainer/global_step"] for row in rows if "trainer/global_step" in row]
    assert steps == sorted(steps)


def test_tables_and_figures_are_there(run):
    logged = {key for row in history(run[0]) for key in row}
    for key in ("hw/layers", "hw/energy", "compress/weights", "search/choices", "attack/attacks"):
        assert any(name == key or name.startswith(f"{key}/") for name in logged), key


def test_the_config_holds_every_parameter_of_every_callback(run):
    config = {}
    for record in run[0]["config"]:
        for item in record.update:
            config[item.key or item.nested_key[0]] = json.loads(item.value_json)
    assert config["compress"] == {
        "callback": "FocusedCompression", "sparsity": 0.6, "bits": 5, "prune": [0.0, 0.4], "quantize": [0.4, 0.7],
        "method": "dns", "scope": "global", "separation": 2.0, "include": None, "exclude": None, "activations": None,
        "export": str(run[1] / "model.effnn"), "other": "fp32", "prefix": "compress",
        "best_of_compressed": False,
    }  # fmt: skip
    assert config["search"]["warmup"] == 0.0
    assert config["search"]["activations"] == [4, 8]
    assert config["hw"]["accelerator"] == "tpu_like"
    assert config["sponge"]["attack"] == ["pgd", "unbounded"]
    assert config["attack"]["callback"] == "SpongeEvaluation"
    assert config["guard"]["quantile"] == 0.8
    assert config["pde"]["field"] == "b.3"


def test_the_compressed_file_and_the_plan_are_artefacts(run):
    artefacts = {artefact.type: artefact for artefact in run[0]["artifact"]}
    assert {"model", "quantization-plan"} <= set(artefacts)
    files = {name for a in artefacts.values() for name in (entry.path for entry in a.manifest.contents)}
    assert {"model.effnn", "bits.yaml"} <= files
