"""Costly strings, what sequences cost, and guards that stop long ones."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_effnn import hardware
from lightning_effnn import robustness as rb
from lightning_effnn.modules import SequenceToSequence, TextTransformer
from lightning_effnn.robustness.sequences import samples_needed


def marks(texts):
    return torch.tensor([float(text.count("#") + text.count("é")) for text in texts])


class TestStrings:
    def test_the_genetic_search_beats_chance_and_is_seeded(self):
        arguments = {"alphabet": "abcdefghijklmnopqrstuvwxyz#", "length": 20, "pool": 16, "generations": 30}
        best = rb.sponge_text_genetic(marks, **arguments, seed=1)
        assert best == rb.sponge_text_genetic(marks, **arguments, seed=1)
        assert best != rb.sponge_text_genetic(marks, **arguments, seed=2)
        assert len(set(best)) == 16
        assert {len(text) for text in best} == {20}
        costs = marks(best)
        assert torch.equal(costs, costs.sort(descending=True).values)
        assert costs[0] > marks(rb.sponge_text_random(marks, **arguments, seed=1))[0] > 0

    def test_natural_samples_are_where_it_begins_and_nothing_is_measured_twice(self):
        asked = []

        def energy(texts):
            asked.extend(texts)
            return marks(texts)

        best = rb.sponge_text_genetic(energy, "ab", 6, pool=8, generations=3, natural=["ééé natural", "é"])
        assert "ééé na" in asked[:8]
        assert any(text.startswith("é") and set(text[1:]) <= set("ab") for text in asked[:8])
        assert best[0].startswith("ééé")
        assert len(asked) == len(set(asked))

    def test_halves_of_two_are_joined(self):
        asked = []

        def energy(texts):
            asked.append(texts)
            return [float(text in ("aaaa", "bbbb")) for text in texts]

        rb.sponge_text_genetic(energy, "xy", 4, 4, 2, mutation=1e-9, survivors=0.5, natural=["aaaa", "bbbb"])
        joined = {"aabb", "bbaa"} & set(asked[1])
        assert joined
        drawn = set(asked[1]) - joined  # in place of children that were measured before: random strings
        assert all(set(text) <= set("xy") for text in drawn)
        assert not set(asked[0]) & set(asked[1])

    def test_interrupted_it_returns_the_best_so_far(self):
        calls = []

        def energy(texts):
            calls.append(texts)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return marks(texts)

        best = rb.sponge_text_genetic(energy, "ab#", 8, pool=8, generations=50)
        assert marks(best)[0] == max(marks(calls[0]).max(), marks(calls[1]).max())

    def test_what_is_no_number_is_the_cheapest(self):
        best = rb.sponge_text_genetic(lambda texts: [math.nan if "#" in t else 1.0 for t in texts], "ab#", 4, 8, 20)
        assert "#" not in best[0]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"alphabet": "aaa"}, "alphabet is 'aaa'"),
            ({"alphabet": None}, "alphabet is None"),
            ({"length": 0}, "length is 0"),
            ({"pool": 1}, "pool is 1"),
            ({"generations": 0}, "generations is 0"),
            ({"mutation": 0}, "mutation is 0"),
            ({"survivors": 2}, "survivors is 2"),
            ({"energy_of": lambda texts: torch.zeros(3, 2)}, r"shape \(3, 2\)"),
        ],
    )
    def test_what_cannot_be_is_refused(self, arguments, words):
        arguments = {"energy_of": marks, "alphabet": "ab"} | arguments
        with pytest.raises(ValueError, match=words):
            rb.sponge_text_genetic(**arguments)

    def test_a_fitness_that_raises_is_the_users_own(self):
        with pytest.raises(ZeroDivisionError):
            rb.sponge_text_random(lambda texts: 1 / 0, "ab")


class TestEnergies:
    def test_of_a_length_it_is_that_of_its_trace_and_traced_once(self, monkeypatch):
        net = TextTransformer(vocab_size=10, hidden_channels=16).train()
        energy = rb.SequenceEnergy(net, "eyeriss_like")
        alone = hardware.estimate(hardware.trace(net.eval(), torch.ones(1, 7, dtype=torch.int64)), "eyeriss_like")
        net.train()
        few, seven = energy([2, 7])
        assert seven == pytest.approx(alone.energy_uJ)
        assert energy.latency_us([7])[0] == pytest.approx(alone.latency_us)
        assert few < seven
        assert net.training
        monkeypatch.setattr(hardware, "trace", None)  # from here on nothing could be traced
        assert torch.equal(energy(torch.tensor([7, 7, 2])), torch.stack((seven, seven, few)))
        with pytest.raises(ValueError, match="0 tokens"):
            energy([0])

    def test_writing_costs_by_the_token(self):
        net = SequenceToSequence(14, 35, hidden_channels=8)
        energy = rb.GenerationEnergy(net.encoder, net.decoder, "eyeriss_like")
        nothing, one, ten, longer = energy([6, 6, 6, 9], [0, 1, 10, 10])
        assert nothing == pytest.approx(rb.SequenceEnergy(net.encoder, "eyeriss_like")([6])[0].item())
        assert (ten - nothing).item() == pytest.approx(10 * (one - nothing).item(), rel=1e-4)
        assert longer > ten
        latency = energy.latency_us([6, 6], [1, 10])
        assert latency[1] > latency[0] > 0

    def test_wall_time_is_of_each_input_and_what_is_called_may_raise(self):
        seen = []
        seconds = rb.WallTime(lambda x: seen.append(tuple(x.shape)), repeats=2)(torch.rand(3, 4))
        assert seconds.shape == (3,)
        assert (seconds > 0).all()
        assert seen == [(1, 4)] * 6
        with pytest.raises(ZeroDivisionError):
            rb.WallTime(lambda text: 1 / 0)(["a"])
        with pytest.raises(ValueError, match="repeats is 0"):
            rb.WallTime(len, repeats=0)


class TestToleranceLimit:
    @pytest.mark.parametrize("share", [0.01, 0.05])
    def test_more_than_the_share_exceeds_it_in_one_of_twenty_samples(self, share):
        generator = torch.Generator().manual_seed(0)
        samples = torch.rand(400, 1000, generator=generator, dtype=torch.float64)
        limits = torch.tensor([rb.tolerance_limit(sample, share) for sample in samples])
        missed = (1 - limits > share).float().mean()  # of uniform numbers, as much as that lies above
        assert 0.005 < missed < 0.08
        assert 0.3 * share < (1 - limits).mean() < share

    def test_it_takes_enough_samples(self):
        needed = samples_needed(0.01)
        assert rb.tolerance_limit(torch.arange(float(needed)), 0.01) == needed - 1
        assert rb.tolerance_limit(torch.arange(needed - 1.0), 0.01) is None


def batches(lengths, longest=30):
    return torch.ones(len(lengths), longest, dtype=torch.int64) * (
        torch.arange(longest) < torch.tensor(lengths)[:, None]
    )


class TestGuard:
    def network(self):
        return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))

    def test_next_to_no_natural_sequence_is_refused_and_every_long_one(self):
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(1, 21, (6000,), generator=generator).tolist() for _ in range(2)]
        guard = rb.EnergyGuard(self.network(), "flag").profile([batches(drawn[0])], quantile=0.999)
        guard(batches(drawn[1]))
        assert guard.verdict.refused.float().mean() <= 0.001
        guard(batches([21, 25, 30]))
        assert guard.verdict.refused.all()

    def test_where_nothing_is_zero_density_is_not_looked_at(self):
        guard = rb.EnergyGuard(self.network()).profile([batches([3, 4])], quantile=1.0)
        assert math.isinf(guard.most_density)
        guard(batches([4]))
        assert guard.verdict.density is None

    def test_confidence_out_of_range(self):
        with pytest.raises(ValueError, match="confidence is 1"):
            rb.EnergyGuard(self.network()).profile([batches([3])], confidence=1)


class Writer(nn.Module):
    """Writes as many tokens as its input's first id says, then the end (9), up to 50."""

    def generate(self, x, limit):
        limit = min(50, limit or 50)
        rows = torch.full((len(x), limit), 5)
        where = torch.arange(limit)
        rows[where == x[:, :1]] = 9
        rows[where > x[:, :1]] = 0
        return rows


class TestGenerationGuard:
    natural = torch.arange(1, 11).view(-1, 1)

    def guard(self, policy):
        return rb.GenerationGuard(Writer(), end=9, policy=policy).profile([self.natural], quantile=1.0)

    def test_natural_outputs_are_whole(self):
        for policy in ("raise", "truncate", "flag"):
            guard = self.guard(policy)
            assert int(guard.most_steps) == 11
            written = guard(self.natural)
            assert torch.equal(written, Writer().generate(self.natural, 50)[:, : written.shape[1]])
            assert not guard.verdict.refused.any()

    def test_endless_ones_are_stopped(self):
        x = torch.tensor([[4], [99]])
        guard = self.guard("truncate")
        assert guard(x).shape == (2, 11)
        assert guard.verdict.refused.tolist() == [False, True]
        with pytest.raises(rb.SpongeError, match="after 11 tokens"):
            self.guard("raise")(x)
        guard = self.guard("flag")
        assert guard(x).shape == (2, 50)
        assert guard.verdict.refused.tolist() == [False, True]

    def test_the_limit_is_saved_and_until_profiled_all_passes(self):
        guard, other = self.guard("truncate"), rb.GenerationGuard(Writer(), end=9)
        assert other(torch.tensor([[99]])).shape == (1, 50)
        other.load_state_dict(copy.deepcopy(guard.state_dict()))
        assert other(torch.tensor([[99]])).shape == (1, 11)

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match="policy is 'ban'"):
            rb.GenerationGuard(Writer(), 9, "ban")
        with pytest.raises(TypeError, match="no generate"):
            rb.GenerationGuard(nn.Linear(2, 2), 9)
        with pytest.raises(ValueError, match="loader is empty"):
            rb.GenerationGuard(Writer(), 9).profile([])
        with pytest.warns(UserWarning, match="at least 2995"):
            rb.GenerationGuard(Writer(), 9).profile([self.natural])
