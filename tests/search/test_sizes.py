from lightning_effnn.search import Sizes, Stored


def test_the_peak_is_of_what_is_held_at_once_and_the_sum_of_all():
    buffers = [Stored("a", 10, 4, (0, 1)), Stored("b", 10, 2, (1, 3)), Stored("c", 10, 8, (3, 3))]
    sizes = Sizes([], buffers)
    assert sizes.buffer_bits == 140
    assert sizes.peak_bits == 100  # b and c
    assert sizes.bits_per_activation == 140 / 30


def test_a_mean_over_tensors_counts_small_ones_fully():
    sizes = Sizes([Stored("large", 1000, 4)], [Stored("small", 1, 8)])
    assert sizes.mean_bits == 6
    assert sizes.bits_per_weight == 4


def test_nothing_takes_nothing():
    empty = Sizes([], [])
    assert (empty.weight_bits, empty.peak_bits, empty.bits_per_weight, empty.mean_bits) == (0, 0, 0, 0)
