"""Ray Train with two workers: the same callbacks, one file, the same network on both."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def fit(config):
    """On each worker: the smallest network with three callbacks."""
    import json
    from pathlib import Path

    import lightning as L
    import ray.train.lightning as rl
    import torch

    from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor, SpongeTraining
    from lightning_effnn.recipes.benchmarks.scale_out import _loader, _Network

    folder = Path(config["folder"])
    compression = FocusedCompression(0.6, prune=(0.0, 0.4), quantize=(0.4, 0.7), export=folder / "model.effnn")
    L.seed_everything(0)
    model = _Network()
    trainer = rl.prepare_trainer(
        L.Trainer(
            max_epochs=4, accelerator="cpu", devices="auto", strategy=rl.RayDDPStrategy(), logger=False,
            plugins=[rl.RayLightningEnvironment()], enable_checkpointing=False, enable_progress_bar=False,
            callbacks=[HardwareEnergyMonitor("tpu_like", folder=str(folder)), compression, SpongeTraining(steps=1)],
        )
    )  # fmt: skip
    trainer.fit(model, _loader(6, 8), _loader(2, 8))
    numbers = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    found = {k: float(v) for k, v in trainer.callback_metrics.items()}
    found |= {"world": trainer.world_size, "numbers": numbers.tolist()}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


def test_two_workers_end_with_one_network_and_its_file(tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lightning_effnn[sweep]'")
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from lightning_effnn.compression import load_compressed

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        settings = {"folder": str(tmp_path)}
        TorchTrainer(fit, train_loop_config=settings, scaling_config=ScalingConfig(num_workers=2)).fit()
    finally:
        ray.shutdown()
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["world"] == 2
    assert one == two
    assert one["compress/sparsity"] >= 0.55
    assert one["hw/coverage"] >= 0.99
    assert 0 < one["sponge/penalty"] < 1
    state = load_compressed(Path(tmp_path) / "model.effnn")
    assert [x for tensor in state.values() for x in tensor.flatten().tolist()] == one["numbers"]
