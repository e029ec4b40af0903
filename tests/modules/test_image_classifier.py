import csv

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_effnn.data import DigitsDataModule
from lightning_effnn.modules import ImageClassifier, SmallCNN
from lightning_effnn.modules._teaching import divergence

pytestmark = pytest.mark.trains

pytest.importorskip("sklearn")


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(
        **quiet, accelerator="cpu", default_root_dir=folder, **{"max_epochs": 2, "logger": False, **options}
    )


def test_it_learns_digits_and_logs_what_it_says(tmp_path):
    L.seed_everything(0)
    logger = CSVLogger(tmp_path, name="")
    fit = trainer(tmp_path, max_epochs=3, logger=logger, log_every_n_steps=5)
    model = ImageClassifier(SmallCNN(width=8), lr=0.01)
    data = DigitsDataModule(batch_size=32)
    fit.fit(model, data)
    result = fit.test(model, data, verbose=False)[0]
    assert result["test/acc"] > 0.8
    assert result["test/loss"] < 1.0  # 2.3 of guessing
    with open(tmp_path / "version_0" / "metrics.csv") as file:
        columns = set(csv.DictReader(file).fieldnames)
    assert {"train/loss", "val/loss", "val/acc", "test/loss", "test/acc"} <= columns


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_schedule_ends_at_zero_and_only_matrices_decay(tmp_path, optimizer):
    model = ImageClassifier(SmallCNN(width=4), optimizer=optimizer, lr=0.02, weight_decay=0.1)
    fit = trainer(tmp_path, limit_val_batches=0)
    fit.fit(model, DigitsDataModule())
    (built,) = fit.optimizers
    decayed, left_alone = built.param_groups
    assert decayed["initial_lr"] == 0.02
    assert decayed["lr"] == pytest.approx(0, abs=1e-6)
    assert (decayed["weight_decay"], left_alone["weight_decay"]) == (0.1, 0)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in left_alone["params"]} == {1}


def test_a_fit_without_an_end_has_no_cosine(tmp_path):
    model = ImageClassifier(SmallCNN(width=4))
    with pytest.raises(ValueError, match="constant"):
        trainer(tmp_path, max_epochs=-1).fit(model, DigitsDataModule())


@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"schedule": "step"}, {"lr": 0.0}])
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageClassifier(SmallCNN(), **options)


def test_example_input_does_not_move_the_random_numbers():
    torch.manual_seed(0)
    net = SmallCNN(width=4)
    before = torch.get_rng_state()
    model = ImageClassifier(net, input_shape=(1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.example_input_array.shape == (1, 1, 8, 8)
    assert ImageClassifier(net).example_input_array is None


def test_checkpoint_loads_with_the_network_given(tmp_path):
    model = ImageClassifier(SmallCNN(width=4), lr=0.02)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, DigitsDataModule())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "x.ckpt", net=SmallCNN(width=4))
    assert loaded.lr == 0.02
    for old, new in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(old, new)


class TestTeacher:
    def model(self, **kw):
        torch.manual_seed(0)
        teacher = SmallCNN()
        return ImageClassifier(SmallCNN(), schedule="constant", teacher=teacher, **kw), teacher

    def test_it_is_no_part_of_the_model_and_stays_as_it_is(self):
        model, teacher = self.model()
        assert list(model.state_dict()) == list(ImageClassifier(SmallCNN()).state_dict())
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        optimizer = model.configure_optimizers()
        model.log = lambda *_, **__: None
        for _ in range(3):
            optimizer.zero_grad()
            model.training_step((torch.rand(8, 1, 8, 8), torch.arange(8)), 0).backward()
            optimizer.step()
        assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())

    def test_taught_alone_a_network_becomes_like_its_teacher(self):
        model, _teacher = self.model(distillation=1.0, temperature=2.0)
        x, labels = torch.rand(32, 1, 8, 8), torch.zeros(32, dtype=torch.long)
        optimizer = torch.optim.Adam(model.net.parameters(), 3e-3)
        model.log = lambda *_, **__: None
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            losses.append(model.training_step((x, labels), 0))
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < 0.2 * losses[0]
        model, same = self.model(distillation=1.0)
        model.net.load_state_dict(same.state_dict())
        model.log = lambda *_, **__: None
        assert float(model.eval().training_step((x, labels), 0)) == pytest.approx(0, abs=1e-5)

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
    def test_the_teachers_term_is_the_divergence_times_the_squared_temperature(self, temperature):
        model, teacher = self.model(distillation=1.0, temperature=temperature)
        model.log = lambda *_, **__: None
        x = torch.rand(16, 1, 8, 8)
        loss = model.eval().training_step((x, torch.zeros(16, dtype=torch.long)), 0)
        with torch.no_grad():
            ours, theirs = (torch.softmax(net.eval()(x).double() / temperature, 1) for net in (model.net, teacher))
        expected = temperature**2 * (theirs * (theirs.log() - ours.log())).sum() / 16
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)

    def test_its_gradients_keep_their_size_as_the_temperature_rises(self):
        scores, wanted = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()
        scores, wanted = (s - s.mean(1, keepdim=True) for s in (scores, wanted))
        scores.requires_grad_()
        for temperature in (100.0, 1000.0):
            (gradient,) = torch.autograd.grad(divergence(scores, wanted, temperature), scores)
            # the limit of high temperatures in section 2.1 of the paper, times T**2
            assert torch.allclose(gradient, (scores - wanted).detach() / 4 / 6, atol=5 / temperature)

    @pytest.mark.parametrize(
        ("arguments", "words"), [({"distillation": 2}, "distillation is 2"), ({"temperature": 0}, "0")]
    )
    def test_what_cannot_be_is_refused(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            ImageClassifier(SmallCNN(), **arguments)
