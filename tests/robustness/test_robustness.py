"""Attacks, energies, training, guard: on small networks, in seconds."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_effnn import hardware
from lightning_effnn import robustness as rb
from lightning_effnn.modules import SmallCNN
from lightning_effnn.robustness.activations import natural_statistics
from lightning_effnn.robustness.plots import sponge_figure

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    net = SmallCNN(width=4)
    for _ in range(5):  # statistics of something
        net(torch.rand(32, 1, 8, 8))
    return net.eval()


def energies(net, x):
    return rb.TracedEnergy(net, "eyeriss_like")(x)


def rise(energy_of, x):
    """By which share the mean energy is above that of the natural inputs."""
    return float(energy_of(x).mean() / energy_of(X).mean()) - 1


def rise_of_noise(energy_of, eps):
    return sum(rise(energy_of, rb.random_inputs(X, eps, seed=seed)) for seed in range(8)) / 8


class TestEnergy:
    def test_of_each_input_it_is_that_of_its_own_trace(self):
        net = network()
        alone = [hardware.estimate(hardware.trace(net, X[n : n + 1]), "eyeriss_like").energy_uJ for n in range(6)]
        assert torch.allclose(energies(net, X), torch.tensor(alone))

    def test_by_densities_it_follows_the_traces(self):
        net = network()
        inputs = torch.cat((X, torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8), X * (X > 0.7)))
        fast, exact = rb.DensityEnergy(net, X, "eyeriss_like")(inputs), energies(net, inputs)
        assert torch.corrcoef(torch.stack((fast, exact)))[0, 1] > 0.9
        assert torch.allclose(fast, exact, rtol=0.4)  # zeros that no layer with weights reads aren't counted

    def test_it_has_a_gradient_and_layers_save_in_proportion(self):
        energy = rb.DensityEnergy(network(), X, "eyeriss_like")
        x = X.clone().requires_grad_()
        energy.smooth(x).sum().backward()
        assert x.grad.abs().sum() > 0
        savings = energy.savings_uJ()
        assert set(savings) == {"block1.0", "block2.0", "block3.0", "classifier"}
        assert savings["block2.0"] > savings["classifier"] > 0
        assert sum(rb.layer_weights(savings).values()) == pytest.approx(1)

    def test_a_chip_without_support_for_zeros_saves_nothing(self):
        assert not rb.DensityEnergy(network(), X, "tpu_like").saves_zeros
        assert rb.DensityEnergy(network(), X, "eyeriss_like").saves_zeros

    def test_whole_modules_have_no_densities(self):
        with pytest.raises(ValueError, match="TracedEnergy"):
            rb.DensityEnergy(network(), X, "shumailov2021")
        assert (rb.TracedEnergy(network(), "shumailov2021")(X) > 0).all()


class TestAttacks:
    @pytest.mark.parametrize("objective", ["l0", "energy"])
    def test_gradients_find_more_than_chance_within_eps(self, objective):
        net = network()
        crafted = rb.sponge_pgd(net, X, eps=0.2, alpha=0.05, steps=20, objective=objective)
        assert (crafted - X).abs().max() <= 0.2 + 1e-6
        assert 0 <= crafted.min() <= crafted.max() <= 1
        energy = rb.TracedEnergy(net, "eyeriss_like")
        assert rise(energy, crafted) > max(rise_of_noise(energy, 0.2), 0) + 0.008

    @pytest.mark.parametrize("eps", [0.2, None])
    def test_lbfgs_raises_its_objective(self, eps):
        net = network()
        aim = rb.Density(net, "l2")
        crafted = rb.sponge_lbfgs(net, X, steps=20, eps=eps)
        assert (aim(crafted) >= aim(X)).all()
        assert aim(crafted).mean() > 1.05 * aim(X).mean()
        assert eps is None or (crafted - X).abs().max() <= eps + 1e-5

    def test_the_genetic_one_needs_no_gradient_and_beats_noise(self):
        net = network()
        energy = rb.DensityEnergy(net, X, "eyeriss_like")
        crafted = rb.sponge_genetic(lambda x: energy(x).detach(), X, eps=0.2, pool=12, generations=30)
        assert (crafted - X).abs().max() <= 0.2 + 1e-6
        assert rise(energy, crafted) > max(rise_of_noise(energy, 0.2), 0) + 0.006
        assert (energy(crafted) >= energy(X)).all()

    def test_they_are_seeded_and_leave_the_model_as_it_was(self):
        net = network().train()
        before = copy.deepcopy(net.state_dict())
        energy = rb.DensityEnergy(net, X, "eyeriss_like")
        attacks = [
            lambda: rb.sponge_pgd(net, X, 0.1, 0.02, 4, random_start=True, seed=3),
            lambda: rb.sponge_lbfgs(net, X, steps=4),
            lambda: rb.sponge_genetic(energy, X, pool=4, generations=3, seed=3),
        ]
        for attack in attacks:
            assert torch.equal(attack(), attack())
        assert net.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_interrupted_the_genetic_one_returns_the_best_so_far(self):
        calls = []

        def fitness(x):
            calls.append(len(x))
            if len(calls) > 4:
                raise KeyboardInterrupt
            return x.flatten(1).sum(1)

        crafted = rb.sponge_genetic(fitness, X, pool=8, generations=50)
        assert (crafted.flatten(1).sum(1) >= X.flatten(1).sum(1)).all()
        assert len(calls) == 5

    @pytest.mark.parametrize("attack", [rb.sponge_pgd, rb.sponge_lbfgs])
    def test_interrupted_an_attack_leaves_the_model_as_it_was(self, attack):
        net = network().train()
        before = copy.deepcopy(net.state_dict())
        calls = []

        def objective(x):
            calls.append(net(x))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return calls[-1].square().sum(1)

        with pytest.raises(KeyboardInterrupt):
            attack(net, X, steps=20, objective=objective)
        assert len(calls) == 3
        assert all(module.training for module in net.modules())
        assert all(parameter.requires_grad for parameter in net.parameters())
        assert not any(module._forward_pre_hooks for module in net.modules())
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_they_touch_neither_the_network_nor_files(self, monkeypatch):
        net = network()
        energy = rb.DensityEnergy(net, X, "eyeriss_like")  # reads the chip's file

        def refuse(*_, **__):
            raise AssertionError("an attack went outside")

        for name in ("builtins.open", "os.open", "socket.socket"):
            monkeypatch.setattr(name, refuse)
        rb.sponge_pgd(net, X, steps=2)
        rb.sponge_lbfgs(net, X, steps=2)
        rb.sponge_genetic(energy, X, pool=4, generations=2)
        rb.sponge_text_genetic(lambda texts: list(map(len, texts)), "ab", 4, pool=4, generations=2)

    def test_a_fitness_that_raises_is_the_users_own(self):
        def broken(x):
            raise RuntimeError("the meter is off")

        with pytest.raises(RuntimeError, match="the meter is off"):
            rb.sponge_genetic(broken, X)

    @pytest.mark.parametrize(
        ("call", "error", "words"),
        [
            (lambda: rb.sponge_pgd(network(), X, eps=0), ValueError, "eps is 0"),
            (lambda: rb.sponge_pgd(network(), X, alpha=-1), ValueError, "alpha is -1"),
            (lambda: rb.sponge_pgd(network(), X, steps=0), ValueError, "steps is 0"),
            (lambda: rb.sponge_pgd(network(), X, objective="l7"), ValueError, "objective is 'l7'"),
            (lambda: rb.sponge_pgd(network(), 2 * X), ValueError, r"lies in \["),
            (lambda: rb.sponge_pgd(network(), (255 * X).byte()), TypeError, "uint8"),
            (lambda: rb.sponge_pgd(network(), X * float("nan")), ValueError, "lies in"),
            (lambda: rb.sponge_pgd(nn.ReLU(), X), ValueError, "no layer with weights"),
            (lambda: rb.sponge_lbfgs(network(), X, lr=0), ValueError, "lr is 0"),
            (lambda: rb.sponge_genetic(lambda x: x.sum(), X), ValueError, "fitness returned the shape"),
            (lambda: rb.sponge_genetic(lambda x: x, X, eps=-1), ValueError, "eps is -1"),
            (lambda: rb.sponge_genetic(lambda x: x, X, generations=0), ValueError, "generations is 0"),
            (lambda: rb.sponge_genetic(lambda x: x, (255 * X).byte()), TypeError, "uint8"),
            (lambda: rb.sponge_lbfgs(network(), X, steps=0), ValueError, "steps is 0"),
            (lambda: rb.sponge_lbfgs(network(), X, eps=0), ValueError, "eps is 0"),
            (lambda: rb.sponge_lbfgs(network(), -X), ValueError, r"lies in \["),
            (lambda: rb.random_inputs(X, eps=-1), ValueError, "eps is -1"),
            (lambda: rb.sponge_genetic(lambda x: x, X, pool=1), ValueError, "pool is 1"),
            (lambda: rb.sponge_genetic(lambda x: x, X, mutation=0), ValueError, "mutation is 0"),
            (lambda: rb.Density(network(), sigma=0), ValueError, "sigma is 0"),
            (lambda: rb.Density(network(), weights={"nose": 1.0}), ValueError, "'nose'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, call, error, words):
        with pytest.raises(error, match=words):
            call()


class TestRectifiers:
    @pytest.mark.parametrize("relu", [F.relu, torch.relu, nn.ReLU(), nn.ReLU(inplace=True), lambda x: x.relu()])
    def test_outputs_stay_and_what_is_off_has_a_gradient(self, relu):
        x = torch.tensor([-2.0, -0.1, 3.0], requires_grad=True)
        with rb.live_rectifiers(reach=0.1):
            y = relu(x * 1.0)
        assert y.tolist() == [0.0, 0.0, 3.0]
        far, near, on = torch.autograd.grad(y.sum(), x)[0].tolist()
        assert 0 < far < near < on == 1
        assert near == pytest.approx(0.5)


class TestTraining:
    def test_statistics_are_those_of_the_natural_part(self):
        norm = nn.BatchNorm2d(3)
        nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
        x = torch.randn(8, 3, 5, 5) * 3 + 1
        running = norm.running_mean.clone()
        with natural_statistics(5, 8):
            y = norm(x)
        natural = F.batch_norm(x[:5], None, None, norm.weight, norm.bias, True)
        assert torch.allclose(y[:5], natural, atol=1e-5)
        assert torch.equal(norm.running_mean, running)

    def test_frozen_statistics_are_kept_inside_a_checkpoint_too(self):
        norm, x = nn.BatchNorm2d(3).eval(), torch.randn(8, 3, 5, 5, requires_grad=True)
        norm.running_mean.fill_(2.0)
        with natural_statistics(5, 8):
            assert torch.equal(norm(x), norm(x.detach()))
            assert torch.equal(checkpoint(norm, x, use_reentrant=False), norm(x))
        with natural_statistics(5, 8):
            within = norm(x)
        assert torch.equal(within, norm(x))

    @pytest.mark.parametrize("affine", [True, False])
    def test_gradients_are_those_of_the_formula(self, affine):
        generator = torch.Generator().manual_seed(0)
        norm = nn.BatchNorm2d(3, affine=affine)
        x = (torch.randn(8, 3, 5, 5, generator=generator) * 3 + 1).requires_grad_()
        wanted = [x, *norm.parameters()]
        for parameter in norm.parameters():
            nn.init.uniform_(parameter)
        upstream = torch.randn(8, 3, 5, 5, generator=generator)
        with natural_statistics(5, 8):
            found = torch.autograd.grad(norm(x), wanted, upstream)
        variance, mean = torch.var_mean(x[:5].transpose(0, 1).flatten(1), 1, correction=0)
        weight, bias = (norm.weight, norm.bias) if affine else (torch.ones(3), torch.zeros(3))
        scale = (variance + norm.eps).rsqrt() * weight
        y = x * scale.view(3, 1, 1) + (bias - mean * scale).view(3, 1, 1)
        for mine, theirs in zip(found, torch.autograd.grad(y, wanted, upstream), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4)

    def test_a_batch_that_is_all_natural_is_normalised_as_in_training(self):
        norm = nn.BatchNorm2d(3)
        x = torch.rand(4, 3, 2, 2)
        running = norm.running_mean.clone()
        with natural_statistics(4, 4):
            y = norm(x)
        assert torch.allclose(y, F.batch_norm(x, None, None, norm.weight, norm.bias, True))
        assert torch.equal(norm.running_mean, running)

    @pytest.mark.trains
    def test_a_step_down_the_penalty_makes_the_deployed_network_sparser(self):
        net = network().train()
        x = torch.rand(64, 1, 8, 8)
        energy = rb.DensityEnergy(net, x, "eyeriss_like")
        before = energy(x).mean()
        penalty = rb.SpongePenalty(net, ("pgd", "unbounded"), eps=0.1, steps=2, share=0.5)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for number in range(120):
            optimizer.zero_grad()
            net(x)  # the statistics follow
            penalty(x, number).backward()
            optimizer.step()
        assert energy(x).mean() < 0.95 * before

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"attack": "fgsm"}, "'fgsm'"),
            ({"attack": ()}, "attack is"),
            ({"share": 0}, "share is 0"),
            ({"steps": 0}, "st"),
        ],
    )
    def test_what_cannot_be_is_refused(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            rb.SpongePenalty(network(), **arguments)


class Checkpointed(nn.Module):
    """Its body's activations are computed again in the backward pass: in training, as is usual, or ``always``."""

    def __init__(self, reentrant, always=False):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2)
        self.reentrant, self.always = reentrant, always

    def forward(self, x):
        if self.reentrant is None or not (self.training or self.always):
            return self.head(self.body(x))
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


class TestGradientCheckpointing:
    def test_the_penalty_has_the_gradients_that_it_has_without(self):
        gradients, x = [], torch.rand(8, 4)
        for reentrant in (None, False):
            model = Checkpointed(reentrant)
            rb.SpongePenalty(model, "pgd", eps=0.1)(x, 0).backward()
            gradients.append([p.grad for p in model.body.parameters()])
        assert gradients[0][0].any()
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(checkpointed, plain)

    def test_where_activations_have_no_gradient_the_layer_is_named(self):
        with pytest.raises(ValueError, match=r"layer 'body.0' runs inside a reentrant gradient checkpoint"):
            rb.SpongePenalty(Checkpointed(reentrant=True), "clean")(torch.rand(8, 4).requires_grad_(), 0)

    def test_what_would_be_computed_again_in_another_way_is_refused(self):
        model = Checkpointed(reentrant=False)
        model.body.insert(1, nn.BatchNorm1d(8))
        with pytest.raises(ValueError, match="batch norm inside a gradient checkpoint"):
            rb.SpongePenalty(model, "noise")(torch.rand(8, 4), 0)
        with pytest.raises(ValueError, match="a rectifier inside a gradient checkpoint"):
            rb.sponge_pgd(Checkpointed(reentrant=False, always=True), torch.rand(8, 4))


class TestEvaluation:
    def test_natural_worst_and_gain_come_together(self):
        report = rb.evaluate(
            network(), [(X[:3], torch.tensor([1, 2, 3])), (X[3:], torch.tensor([4, 5, 6]))], eps=0.2, limit=5, steps=8
        )
        assert [row["inputs"] for row in report.rows()] == ["natural", *rb.ATTACKS]
        assert len(report.natural.energy_uJ) == 5
        assert report.worst.mean_uJ == max(outcome.mean_uJ for outcome in report.attacks)
        assert report.gain == pytest.approx(report.worst.mean_uJ / report.natural.mean_uJ)
        assert report.gain > 1
        assert sum(report.natural.layers.values()) == pytest.approx(report.natural.mean_uJ, rel=1e-3)
        assert 0 <= report.natural.accuracy <= 1
        assert "gain" in str(report.table().title)

    def test_without_labels_there_is_no_accuracy_and_own_attacks_are_welcome(self):
        report = rb.evaluate(network(), [X], attacks={"dark": lambda model, x: torch.zeros_like(x)}, limit=4)
        assert report.natural.accuracy is None
        assert report.attacks[0].name == "dark"

    def test_a_chip_that_saves_nothing_is_said_once(self):
        with pytest.warns(UserWarning, match="saves nothing") as caught:
            report = rb.evaluate(network(), [X], "tpu_like", attacks=["pgd"], steps=2, limit=2)
        assert sum("saves nothing" in str(w.message) for w in caught) == 1
        assert report.gain == pytest.approx(1, abs=1e-6)

    @pytest.mark.trains
    def test_the_papers_simulator_orders_natural_random_and_sponge(self):
        data = pytest.importorskip("sklearn.datasets").load_digits()
        images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
        labels = torch.from_numpy(data.target).long()
        torch.manual_seed(0)
        net = SmallCNN()
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for step in range(120):  # a network that has learnt what is natural
            rows = torch.arange(step * 64, step * 64 + 64) % 1600
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
        held_out = [(images[1600:1632], labels[1600:1632])]
        report = rb.evaluate(net.eval(), held_out, "shumailov2021", ["random", "pgd"], eps=None, steps=20)
        random, pgd = report.attacks
        assert report.natural.accuracy > 0.6
        assert random.mean_uJ > 1.002 * report.natural.mean_uJ
        assert pgd.mean_uJ > 1.003 * random.mean_uJ

    def test_a_network_without_zeros_is_said_once(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))
        with pytest.warns(UserWarning, match="the model has none") as caught:
            report = rb.evaluate(net, [X], attacks=["pgd", "random"], eps=0.1, steps=2, limit=2)
        assert sum("the model has none" in str(w.message) for w in caught) == 1
        assert report.gain == pytest.approx(1, abs=1e-3)

    def test_rows_and_figure_are_written(self, tmp_path):
        pytest.importorskip("matplotlib")
        report = rb.evaluate(network(), [X], attacks=["random"], eps=0.1, limit=2)
        report.to_csv(tmp_path / "rows.csv")
        report.plot(tmp_path / "deep" / "layers.png")
        assert (tmp_path / "rows.csv").read_text().splitlines()[1].startswith("natural,")
        assert (tmp_path / "deep" / "layers.png").read_bytes().startswith(b"\x89PNG")
        figure = sponge_figure(report)
        totals, layers = figure.axes
        assert [bar.get_height() for bar in totals.patches] == pytest.approx([o["energy_uJ"] for o in report.rows()])
        extra = sum(bar.get_width() for bar in layers.patches)
        assert extra == pytest.approx(report.worst.mean_uJ - report.natural.mean_uJ, rel=1e-2, abs=1e-4)

    @pytest.mark.parametrize(
        ("loader", "arguments", "error", "words"),
        [
            ([], {}, ValueError, "loader is empty"),
            ([X], {"limit": 0}, ValueError, "limit is 0"),
            ([X], {"eps": 0}, ValueError, "eps is 0"),
            ([X], {"steps": 0}, ValueError, "steps is 0"),
            ([2 * X], {}, ValueError, r"lies in \["),
            ([(255 * X).byte()], {}, TypeError, "uint8"),
            ([X], {"attacks": ["magic"]}, ValueError, "'magic'"),
            ([X], {"accelerator": "abacus"}, ValueError, "abacus"),
            ([["a"]], {}, TypeError, "begins with a str"),
        ],
    )
    def test_what_cannot_be_is_refused(self, loader, arguments, error, words):
        with pytest.raises(error, match=words):
            rb.evaluate(network(), loader, **arguments)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(10, 4), nn.Linear(4, 2)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.shape[1])
        return self.linear(self.embedding(x).relu().mean(1))


class TestGuard:
    def test_natural_inputs_pass_dense_ones_are_refused_and_the_limits_are_saved(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        nn.init.constant_(net[1].bias, -2.0)
        guard = rb.EnergyGuard(net).profile([(X, 0)], quantile=1.0)
        assert torch.equal(guard(X), net(X))
        assert not guard.verdict.refused.any()
        again = rb.EnergyGuard(copy.deepcopy(net))
        again.load_state_dict(guard.state_dict())
        with pytest.raises(rb.SpongeError, match="non-zero"):
            again(1000 * net[1].weight.sum(0).sign().view(1, 1, 8, 8))

    @pytest.mark.parametrize("policy", ["raise", "truncate", "flag"])
    def test_long_sequences(self, policy):
        natural = [torch.randint(1, 10, (50, 12)) * (torch.arange(12) < 8)]
        model = Tokens()
        guard = rb.EnergyGuard(model, policy).profile(natural, quantile=1.0)
        assert int(guard.most_length) == 8
        long = torch.randint(1, 10, (2, 30))
        if policy == "raise":
            with pytest.raises(rb.SpongeError, match="30 tokens: 8"):
                guard(long)
            return
        guard(long)
        assert guard.verdict.refused.all()
        assert model.seen[-1] == (8 if policy == "truncate" else 30)

    def test_one_in_a_thousand_is_refused(self):
        net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
        generator = torch.Generator().manual_seed(0)
        guard = rb.EnergyGuard(net, "flag").profile([torch.randn(20000, 16, generator=generator)], quantile=0.99)
        guard(torch.randn(20000, 16, generator=generator))
        assert 0.001 < guard.verdict.refused.float().mean() < 0.02

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match="loader is empty"):
            rb.EnergyGuard(network()).profile([])
        with pytest.raises(ValueError, match="policy is 'ban'"):
            rb.EnergyGuard(network(), "ban")
        with pytest.raises(ValueError, match="quantile is 2"):
            rb.EnergyGuard(network()).profile([X], quantile=2)
        with pytest.warns(UserWarning, match="at least 2995 are needed"):
            rb.EnergyGuard(network()).profile([X], quantile=0.999)
