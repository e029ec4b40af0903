"""Sharded weights (FSDP2 on two gloo processes): the monitor's figures are those of one process, the others refuse."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from callback_cases import CASES, fit

SCRIPT = """
import json, os, sys
import lightning as L, torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from pathlib import Path
sys.path.insert(0, {here!r})
from callback_cases import CASES, NETWORKS, loader

class Sharded(NETWORKS["lightning"]):
    def configure_model(self):
        fully_shard(self.a, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.b, mesh=self.device_mesh["data_parallel"])

if __name__ == "__main__":
    found, folder = {{}}, Path({folder!r})
    for case in CASES:
        callback = case.make(folder)
        its = L.Trainer(
            max_epochs=1, callbacks=[callback], accelerator="cpu", devices=2, logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
            strategy=ModelParallelStrategy(2, 1, process_group_backend="gloo"),
        )
        try:
            torch.manual_seed(0)
            its.fit(Sharded(), loader(), loader(2))
            found[case.name] = callback.report.totals()
        except MisconfigurationException as refusal:
            found[case.name] = str(refusal)
    (folder / f"{{os.environ['RANK']}}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # gloo may abort a process that is done
"""


@pytest.mark.slow
def test_the_monitor_sees_whole_weights_and_the_others_refuse(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (tmp_path / "1.json").exists(), done.stderr[-3000:]
    alone = fit(CASES[0], tmp_path, epochs=1).callback.report.totals()
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for key in ("macs", "weights_kB", "energy_dense_uJ", "dram_kB", "coverage"):
            assert found["HardwareEnergyMonitor"][key] == pytest.approx(alone[key]), key
        for case in CASES[1:]:
            assert f"{case.name} needs whole weights, and ModelParallelStrategy shards them" in found[case.name]
