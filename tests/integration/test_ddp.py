"""Several gloo processes: as one process at the same global batch; masks, codes and bits are the same on all."""

import json
import subprocess
import sys

import pytest
from callback_cases import CASES

from lightning_effnn.quantization import QuantizationPlan

OWN_BATCH = {"FocusedCompression, activations", "LowPrecisionSearch", "SpongeTraining"}
"""Look at the activations of a process's own batch, as batch norm does."""

SCRIPT = """
import json, sys
import lightning as L, torch
from torch.utils.data import DataLoader, TensorDataset
from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor, LowPrecisionSearch
from lightning_effnn.modules import ImageClassifier, SmallCNN

class Compare(L.Callback):
    def on_fit_end(self, trainer, pl_module):
        numbers = [p.detach().flatten() for p in pl_module.parameters()]
        if method == "search":
            numbers += [s.detach().flatten() for s in callback.search.attachment.quantizers.parameters()]
            numbers += [torch.tensor(list(callback.plan.weights.values()), dtype=torch.float32)]
        both = trainer.strategy.all_gather(torch.cat(numbers))
        self.equal = bool((both[0] == both[1]).all())

if __name__ == "__main__":
    folder, method = sys.argv[1:]
    L.seed_everything(0)
    data = TensorDataset(torch.rand(64, 1, 8, 8), torch.arange(64) % 10)
    callback = {
        "compression": FocusedCompression(
            sparsity=0.8, prune=(0.0, 0.4), quantize=(0.4, 0.7), export=folder + "/m.effnn"
        ),
        "search": LowPrecisionSearch((2, 8), (4, 8), "bits", warmup=0.0, freeze=0.6, export=folder + "/bits.yaml"),
    }[method]
    compare = Compare()
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
        callbacks=[HardwareEnergyMonitor("tpu_like", folder=folder), callback, compare],
        enable_model_summary=False, enable_checkpointing=False,
    )
    trainer.fit(ImageClassifier(SmallCNN(), schedule="constant"), DataLoader(data, 8), DataLoader(data, 8))
    if trainer.is_global_zero:
        found = {k: float(v) for k, v in trainer.callback_metrics.items()}
        json.dump(found | {"equal": compare.equal}, open(folder + "/out.json", "w"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def two_processes(folder, method):
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (folder / "out.json").exists(), done.stderr[-2000:]  # gloo may abort a process that is done
    found = json.loads((folder / "out.json").read_text())
    assert found["equal"] is True
    assert found["hw/energy_uJ"] > 0
    assert (folder / "hw_energy.png").exists()
    return found


@pytest.mark.slow
def test_two_processes_compress_alike(tmp_path):
    found = two_processes(tmp_path, "compression")
    assert found["compress/sparsity"] > 0.75
    assert (tmp_path / "m.effnn").stat().st_size > 0


@pytest.mark.slow
def test_two_processes_choose_the_same_bits(tmp_path):
    found = two_processes(tmp_path, "search")
    assert 2 <= found["search/bits_w"] <= 8
    assert QuantizationPlan.load(tmp_path / "bits.yaml").weights


@pytest.mark.slow
def test_two_and_four_processes_end_as_one(tmp_path):
    out = tmp_path / "scale.json"
    command = [sys.executable, "-m", "lightning_effnn.recipes.benchmarks.scale_out", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert {row["processes"] for row in rows} == {2, 4}
    assert {row["callback"].partition(",")[0] for row in rows} >= {case.name for case in CASES}
    for row in rows:
        assert row["same on all processes"], row
        if row["callback"] not in OWN_BATCH:
            assert row["largest difference"] < 1e-6, row
            assert row["choices as in one process"], row
