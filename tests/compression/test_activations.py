import json

import pytest
import torch
from torch import nn

from lightning_effnn.compression import ArtifactError, bake_, load_compressed, quantize_activations_, save_compressed
from lightning_effnn.compression.activations import KEY, attach_recorded_, record
from lightning_effnn.quantization import Attachment


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


IMAGES = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def observed(bits=4):
    model = net()
    quantize_activations_(model, bits)
    model(IMAGES)
    return model.eval()


def test_widths_signs_and_scales_come_back_exactly(tmp_path):
    model = observed()
    save_compressed(model, tmp_path / "m.effnn")
    again = load_compressed(tmp_path / "m.effnn", net().eval())
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert not torch.equal(again(IMAGES), net().eval()(IMAGES))
    assert {n: (q.bits, bool(q.is_signed)) for n, q in Attachment(again).activations.items()} == {
        "0": (4, True),
        "3": (4, False),
    }
    load_compressed(tmp_path / "m.effnn", again)  # a second time, in place of those that are there
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_activations_go_along_into_and_out_of_a_module_around_the_network(tmp_path):
    model, lit = observed(), nn.ModuleDict({"net": net()}).eval()
    save_compressed(model, tmp_path / "m.effnn")
    load_compressed(tmp_path / "m.effnn", lit)
    assert list(Attachment(lit).activations) == ["net.0", "net.3"]
    assert torch.equal(lit["net"](IMAGES), model(IMAGES))
    save_compressed(lit, tmp_path / "lit.effnn")
    again = load_compressed(tmp_path / "lit.effnn", net().eval())
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_the_state_dict_is_that_of_the_model(tmp_path):
    model = observed()
    save_compressed(model, tmp_path / "m.effnn")
    assert list(load_compressed(tmp_path / "m.effnn")) == list(net().state_dict())
    assert not hasattr(bake_(model)[0], "_effnn_formats")
    with pytest.raises(ValueError, match="nothing is attached"):
        Attachment(model)


def test_nothing_is_recorded_where_nothing_was_rounded():
    assert record(net()) is None
    unseen = net()
    quantize_activations_(unseen, 8)
    assert record(unseen) is None


@pytest.mark.parametrize("bits", [0, 1, 17, 32, 8.0, True])
def test_widths_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match="2 to 16"):
        quantize_activations_(net(), bits)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"0": 3}', '{"0": [8, true]}', '{"0": [8, 1, 0.5]}', '{"0": [8, true, -1.0]}',
     '{"0": [99, true, 0.5]}', '{"0": [8, true, NaN]}', '{"0": [8, true, Infinity]}', '{"elsewhere": [8, true, 0.5]}',
     "[" * 100_000],
)  # fmt: skip
def test_a_damaged_record_is_named(text):
    with pytest.raises(ArtifactError, match="record of activations"):
        attach_recorded_(net(), text)


def test_a_file_of_another_model_changes_nothing(tmp_path):
    save_compressed(net(), tmp_path / "m.effnn")
    with pytest.raises(ValueError, match="effnn.activations"):
        save_compressed(net(), tmp_path / "m.effnn", metadata={KEY: json.dumps({})})
