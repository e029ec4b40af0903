"""Models without values, on the meta device and under FakeTensorMode, from Python and by ``effnn profile --meta``."""

import csv
import dataclasses
import resource

import pytest
import torch
from llama_like import B1, B7, TINY, Decoder, Shape
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_effnn import hardware
from lightning_effnn.cli.main import main

TOKENS = 40


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def products(report):
    return [(row["name"], row["op"], row["macs"]) for row in report.rows() if row["macs"]]


@pytest.mark.parametrize("fused", [True, False], ids=["kernel", "products"])
@pytest.mark.parametrize("shape", [TINY, B1, B7], ids=["tiny", "1.1B", "7B"])
def test_a_decoders_macs_and_weights_are_exact_and_take_no_memory(shape, fused):
    shape = dataclasses.replace(shape, fused=fused)
    before = peak_megabytes()
    with torch.device("meta"):
        model = Decoder(shape).bfloat16()
        tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
    report = hardware.estimate(hardware.trace(model, tokens), "tpu_like")
    assert report.macs == shape.macs(TOKENS)
    assert report.weights_kB == pytest.approx(shape.weights() * 2 / 1000, rel=1e-3)  # two bytes each, a few in four
    assert report.effectual_macs == report.macs
    assert not report.has_values
    assert report.unknown == {}
    assert peak_megabytes() - before < 500  # the weights would take 14,000 of the largest


def test_shapes_alone_give_the_products_that_values_give():
    # Without values torch has no fused attention kernel to run: it multiplies.
    real, tokens = Decoder(dataclasses.replace(TINY, fused=False)), torch.randint(0, 50, (3, TOKENS))
    with_values = hardware.estimate(hardware.trace(real, tokens), "eyeriss_like")
    shapes = hardware.estimate(hardware.trace(real.to("meta"), tokens.to("meta")), "eyeriss_like")
    assert products(shapes) == products(with_values)
    assert shapes.energy_dense_uJ == pytest.approx(with_values.energy_dense_uJ)
    assert with_values.has_values


def images(network):
    return network, lambda: (torch.zeros(2, 3, 16, 16),)


FAMILIES = {
    "decoder": (lambda: Decoder(TINY), lambda: (torch.zeros(3, 5, dtype=torch.int64),)),
    "convolutions": images(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 2, 2), nn.Flatten()
        )
    ),
    "recurrent": (lambda: nn.GRU(8, 4, batch_first=True), lambda: (torch.zeros(2, 5, 8),)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda: (torch.zeros(2, 5, 8),),
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)),
        lambda: (torch.zeros(2, 8),),
    ),
}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_the_same_products_with_and_without_values(family, training):
    build, inputs = FAMILIES[family]
    real = hardware.trace(build(), *inputs(), training=training, strict=True)
    with torch.device("meta"):
        on_meta = hardware.trace(build(), *inputs(), training=training, strict=True)
    with FakeTensorMode():
        fake = hardware.trace(build(), *inputs(), training=training, strict=True)
    assert not on_meta.has_values
    assert not fake.has_values
    assert real.macs == fake.macs > 0
    if not (training and family in ("decoder", "transformer")):  # a fused kernel computes its scores again backward
        assert real.macs == on_meta.macs
    assert real.weights == on_meta.weights == fake.weights
    assert on_meta.unknown == fake.unknown == {}


def test_a_real_model_can_be_looked_at_by_fake_inputs():
    model = Decoder(TINY)
    with FakeTensorMode(allow_non_fake_inputs=True):
        trace = hardware.trace(model, torch.zeros(1, TOKENS, dtype=torch.int64), strict=True)
    assert trace.macs == TINY.macs(TOKENS)


class TestProfileMeta:
    def macs_in(self, file):
        with open(file, newline="") as rows:
            return sum(int(row["macs"]) for row in csv.DictReader(rows))

    @pytest.mark.parametrize(("target", "shape"), [("b1", B1), ("b7", B7)], ids=["1.1B", "7B"])
    def test_a_decoder_is_priced_without_memory(self, target, shape, tmp_path, capsys):
        before = peak_megabytes()
        rows = str(tmp_path / "rows.csv")
        options = ["--input", f"1,{TOKENS}:int64", "--meta", "--dtype", "bfloat16", "--csv", rows]
        assert main(["profile", f"llama_like:{target}", *options]) == 0
        assert self.macs_in(rows) == shape.macs(TOKENS)
        assert "every weight and activation counts as non-zero" in capsys.readouterr().out
        assert peak_megabytes() - before < 500

    @pytest.mark.parametrize("target", ["tied", "built"])
    def test_shared_weights_stay_shared(self, target, capsys):
        sizes = []
        for meta in ([], ["--meta"]):
            assert main(["profile", f"llama_like:{target}", "--input", "1,8:int64:50", *meta]) == 0
            sizes.append(capsys.readouterr().out.split("weights ")[1].split(" kB")[0])
        assert sizes[0] == sizes[1]
        shape = Shape(64, 2, 8, 2, 96, vocabulary=50, tied=True)
        assert float(sizes[0].replace(",", "")) == pytest.approx(shape.weights() * 4 / 1000, rel=0.01)

    def test_a_model_that_reads_values_is_told_to_do_without(self, tmp_path, monkeypatch, capsys):
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "effnn_reads_values.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Linear):\n"
            "    def __init__(self): super().__init__(2, 2)\n"
            "    def forward(self, x): return super().forward(x) if x.sum() > 0 else x\n"
        )
        assert main(["profile", "effnn_reads_values:Net", "--input", "1,2", "--meta"]) == 2
        error = capsys.readouterr().err
        assert "--meta" in error
        assert "effnn_reads_values:Net" in error
