"""Two gloo processes: figures come out once, compressed weights are the same on both."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import lightning as L, torch
from torch.utils.data import DataLoader, TensorDataset
from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor
from lightning_effnn.modules import ImageClassifier, SmallCNN

class Compare(L.Callback):
    def on_fit_end(self, trainer, pl_module):
        weights = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        both = trainer.strategy.all_gather(weights)
        self.equal = bool((both[0] == both[1]).all())

if __name__ == "__main__":
    folder = sys.argv[1]
    L.seed_everything(0)
    data = TensorDataset(torch.rand(64, 1, 8, 8), torch.arange(64) % 10)
    compression = FocusedCompression(sparsity=0.8, prune=(0.0, 0.4), quantize=(0.4, 0.7), export=folder + "/m.effnn")
    compare = Compare()
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
        callbacks=[HardwareEnergyMonitor("tpu_like", folder=folder), compression, compare],
        enable_model_summary=False, enable_checkpointing=False,
    )
    trainer.fit(ImageClassifier(SmallCNN(), schedule="constant"), DataLoader(data, 8), DataLoader(data, 8))
    if trainer.is_global_zero:
        found = {k: float(v) for k, v in trainer.callback_metrics.items()}
        json.dump(found | {"equal": compare.equal, "bytes": compression.report.bytes}, open(folder + "/out.json", "w"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert (tmp_path / "out.json").exists(), done.stderr[-2000:]  # gloo may abort a process that is done
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["equal"] is True
    assert found["hw/energy_uJ"] > 0
    assert found["compress/sparsity"] > 0.75
    assert (tmp_path / "m.effnn").stat().st_size == found["bytes"]
    assert (tmp_path / "hw_energy.png").exists()
