import threading

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_effnn.formats import FixedPoint
from lightning_effnn.quantization import TensorQuantizer
from lightning_effnn.search.bits import BitChoice
from lightning_effnn.search.bits.choice import Trial, trying

X = torch.randn(64, generator=torch.Generator().manual_seed(0))


def test_the_active_option_is_the_quantiser_of_its_bits():
    choice = BitChoice((2, 4, 32), weight=True)
    for number, bits in enumerate(choice.bits):
        choice.active = number
        alone = TensorQuantizer(bits, signed=True)
        assert torch.equal(choice(X), alone(X))
    assert torch.equal(choice(X), X)


def test_each_option_has_a_scale_of_its_own_that_learns_only_while_observing():
    choice = BitChoice((4, 8), weight=True)
    choice(X)  # the option that is active at first gets its scale, the other has none yet
    assert choice.options[1].ready()
    assert not choice.options[0].ready()
    scale = choice.options[choice.active].scale.clone()
    choice.observing = False
    choice(3 * X)
    assert torch.equal(choice.options[choice.active].scale, scale)
    choice.observing = True
    choice(3 * X)
    assert torch.allclose(choice.options[choice.active].scale, 3 * scale)
    choice.eval()
    choice(X)
    assert torch.allclose(choice.options[choice.active].scale, 3 * scale)


def test_an_option_without_a_scale_learns_one_though_not_observing():
    choice = BitChoice((4, 8), weight=False)
    choice.active, choice.observing = 0, False
    choice(X)
    assert choice.options[choice.active].ready()


class Notes(TorchDispatchMode):
    simulated = aside = 0

    def __init__(self):
        super().__init__()
        self.tagged = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

    def tag(self, tensor, number_format):
        self.tagged.append((tensor.data_ptr(), number_format))


def test_a_mark_is_declared_in_place_of_the_format_and_tells_what_was_seen():
    choice = BitChoice((4, 32), weight=True)
    notes = Notes()
    with notes:
        for number, exact in ((0, False), (1, True)):
            trial = Trial(number, FixedPoint(8, scale=1.25))
            with trying({choice: trial}):
                levels = choice(X)
            assert (levels.data_ptr(), trial.mark) == notes.tagged[-1]
            assert levels.data_ptr() != X.data_ptr()
            elements, error = trial.seen
            assert elements == 64
            assert (error == 0) == exact
            assert error < 0.05


def test_what_one_thread_tries_no_other_runs():
    choice, seen = BitChoice((2, 32), weight=True), []
    other = threading.Thread(target=lambda: seen.append(choice(X)))
    with trying({choice: Trial(0)}):
        assert not torch.equal(choice(X), X)
        other.start()
        other.join()
    assert torch.equal(seen[0], X)
    assert torch.equal(choice(X), X)
