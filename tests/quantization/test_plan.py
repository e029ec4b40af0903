"""Plans: widths by rule, kept in files."""

import pytest
import torch
from torch import nn

from lightning_effnn.quantization import PRESETS, QuantizationPlan


def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 8), nn.LSTM(8, 2)
    )


def write(path, text):
    path.write_text(text)
    return path


class TestUniform:
    def test_first_and_last_layer_are_an_exception(self):
        plan = QuantizationPlan.uniform(net(), weights=3, activations=5, first_last=8)
        assert plan.weights == {
            "0.weight": 8,
            "2.weight": 3,
            "4.weight": 3,
            "5.weight_ih_l0": 8,
            "5.weight_hh_l0": 8,
        }
        assert plan.activations == {"0": 8, "2": 5, "4": 5, "5": 8}

    def test_without_the_exception(self):
        plan = QuantizationPlan.uniform(net(), weights=3, activations=5, first_last=None)
        assert set(plan.weights.values()) == {3}
        assert set(plan.activations.values()) == {5}

    @pytest.mark.parametrize("name", PRESETS)
    def test_presets_are_what_their_names_say(self, name):
        plan = QuantizationPlan.preset(name, net())
        assert f"W{plan.weights['2.weight']}A{plan.activations['2']}" == name
        assert (plan.weights["0.weight"], plan.activations["0"]) == (8, 8)

    def test_an_unknown_preset(self):
        with pytest.raises(ValueError, match="name must be one of W8A8, W6A8, W4A8, W4A4, got 'W1A99'"):
            QuantizationPlan.preset("W1A99", net())

    @pytest.mark.parametrize("width", [0, 17, 31, 64])
    def test_widths_out_of_range(self, width):
        with pytest.raises(ValueError, match=f"'2.weight'.* from 1 to 16, or 32 for no quantisation, got {width}"):
            QuantizationPlan.uniform(net(), weights=width)

    def test_what_is_no_width(self):
        with pytest.raises(TypeError, match=r"activations\['2'\] must be an integer from 1 to 16, or 32, got 4.5"):
            QuantizationPlan(activations={"2": 4.5})
        with pytest.raises(TypeError, match="weights must have names of sites as keys, got 2"):
            QuantizationPlan(weights={2: 4})


class TestAverage:
    def test_by_elements(self):
        model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
        plan = QuantizationPlan({"0.weight": 4, "2.weight": 16}, {"0": 8})
        assert plan.average_bits(model) == ((32 * 4 + 16 * 16) / 48, None)
        average = plan.average_bits(model, torch.ones(3, 4))
        assert average.activations == (4 * 8 + 8 * 32) / 12
        assert QuantizationPlan().average_bits(model).weights == 32

    def test_the_model_is_left_as_it_was(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
        model[2].eval()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        generator = torch.get_rng_state()
        QuantizationPlan.uniform(model).average_bits(model, torch.randn(3, 2, generator=torch.Generator()))
        assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
        assert [m.training for m in model.modules()] == [True, True, True, False]
        assert torch.equal(torch.get_rng_state(), generator)
        assert not model[0]._forward_pre_hooks

    def test_one_tensor_given_three_times_is_counted_once(self):
        attention = nn.MultiheadAttention(4, 2)
        x = torch.ones(3, 1, 4)
        plan = QuantizationPlan(activations={"": 4})
        assert plan.average_bits(attention, x, x, x).activations == 4


class TestFiles:
    def test_what_is_saved_is_loaded(self, tmp_path):
        plan = QuantizationPlan.uniform(net(), weights=3, activations=32)
        plan.save(tmp_path / "deep" / "plan.yaml")
        assert QuantizationPlan.load(tmp_path / "deep" / "plan.yaml") == plan
        bare = QuantizationPlan({"weight": 4}, {"": 8})
        bare.save(tmp_path / "bare.yaml")
        assert QuantizationPlan.load(tmp_path / "bare.yaml") == bare

    def test_names_need_no_quotes(self, tmp_path):
        path = write(tmp_path / "plan.yaml", "weights:\n  0.weight: 4\nactivations:\n  0: 8\n  1.0: 4\n  on: 2\n")
        assert QuantizationPlan.load(path) == QuantizationPlan({"0.weight": 4}, {"0": 8, "1.0": 4, "on": 2})

    @pytest.mark.parametrize("text", ["", "weights:\n", "weights: {}\nactivations: {}\n"])
    def test_nothing_is_a_plan(self, tmp_path, text):
        assert QuantizationPlan.load(write(tmp_path / "plan.yaml", text)) == QuantizationPlan()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("weights:\n  a: 4\n  b: x\n", r"line 3: weights\['b'\] must be an integer from 1 to 16, or 32, got 'x'"),
            ("weights:\n  a: 17\n", r"line 2: weights\['a'\] must be from 1 to 16, or 32 .*, got 17"),
            ("weights:\n  a: [4]\n", r"line 2: weights\['a'\] must be an integer"),
            ("weights:\n  a: 4\n  a: 8\n", "line 3: weights has the key 'a' twice"),
            ("weights: 4\n", "line 1: weights must be a mapping"),
            ("- 4\n", "line 1: the file must be a mapping"),
            ("weights: {}\nweigths: {}\n", r"line 2: unknown key 'weigths' \(did you mean 'weights'\?\)"),
            ("weights: {[1]: 4}\n", "line 1: weights must have plain names as keys"),
            ("weights: {a: !!python/object/apply:os.getcwd []}\n", r"line 1: weights\['a'\] must be an integer"),
            ("weights: {a: 4\n", "is no YAML file.*line 2"),
            ("\xff\x00", "is no YAML file"),
        ],
    )
    def test_wrong_files_are_told_by_line_and_key(self, tmp_path, text, message):
        path = tmp_path / "plan.yaml"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=rf"(?s)plan.yaml.*{message}"):
            QuantizationPlan.load(path)


def test_names_that_the_model_does_not_have_are_listed_with_the_nearest():
    plan = QuantizationPlan({"0.weight": 4, "3.wieght": 4}, {"6": 8})
    with pytest.raises(ValueError, match=r"weights: '3.wieght' \(did you mean '\d.weight'\?\); activations: '6'"):
        plan.check(net())
