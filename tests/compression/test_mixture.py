"""The mixture against scikit-learn's, and where there is none to fit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from lightning_effnn.compression.mixture import Mixture, Points, fit_mixture


def lobes(number, negative=(-0.5, 0.1), positive=(0.3, 0.15), share=0.5, zeros=0, seed=0):
    rng = np.random.default_rng(seed)
    first = round(number * share)
    x = np.concatenate([rng.normal(*negative, first), rng.normal(*positive, number - first), np.zeros(zeros)])
    return torch.from_numpy(rng.permutation(x))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("positive", [(0.3, 0.15), (0.6, 0.05), (0.2, 0.3)])
@pytest.mark.parametrize("number", [3000, 20000])
def test_the_likelihood_and_parameters_are_those_of_scikit_learn(number, positive, share):
    x = lobes(number, positive=positive, share=share)
    data = x.numpy()[:, None]
    means = [[x[x < 0].mean()], [x[x > 0].mean()]]
    peer = GaussianMixture(2, means_init=means, tol=1e-7, max_iter=500, random_state=0).fit(data)
    mixture = fit_mixture(x)
    order = np.argsort(peer.means_.ravel())
    assert mixture.weights == pytest.approx(peer.weights_[order], abs=5e-3)
    assert mixture.means == pytest.approx(peer.means_.ravel()[order], abs=5e-3)
    assert mixture.sigmas == pytest.approx(np.sqrt(peer.covariances_.ravel()[order]), abs=5e-3)
    density = sum(
        w / (s * math.sqrt(2 * math.pi)) * torch.exp(-(((x - m) / s) ** 2) / 2)
        for w, m, s in zip(mixture.weights, mixture.means, mixture.sigmas, strict=True)
    )
    assert float(density.log().mean()) == pytest.approx(peer.score(data), abs=1e-4)
    assert mixture.posterior(x).numpy() == pytest.approx(peer.predict_proba(data)[:, order[1]], abs=0.03)


def test_zeros_shape_and_order_do_not_matter():
    x = lobes(4000, zeros=12000)
    again = fit_mixture(x.reshape(40, 10, 40).flip(0))
    assert again == fit_mixture(x) == fit_mixture(x[x != 0])


def test_a_large_tensor_is_fitted_by_a_part_of_it():
    x = lobes(2_000_000, zeros=8_000_000).float().reshape(2500, 4000)
    mixture = fit_mixture(x)
    assert Points.of(x).values.size < 300_000
    assert mixture.means == pytest.approx((-0.5, 0.3), abs=5e-3)
    assert mixture.sigmas == pytest.approx((0.1, 0.15), abs=5e-3)
    assert fit_mixture(x) == mixture


def test_the_part_sees_every_channel():
    x = torch.arange(1.0, 65.0).repeat(20_000)  # 64 columns, 20,000 rows
    assert np.unique(Points.of(x.reshape(20_000, 64)).values).size == 64


def test_separation_is_the_distance_over_the_whole_variance():
    x = lobes(20000)
    mixture = fit_mixture(x)
    expected = ((mixture.means[1] - mixture.means[0]) ** 2 + (mixture.sigmas[1] - mixture.sigmas[0]) ** 2) / x.var()
    assert mixture.separation == pytest.approx(float(expected), rel=1e-3)


def test_pruning_a_gaussian_drives_the_lobes_apart():
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    apart = [fit_mixture(torch.where(x.abs() > cut, x, 0.0)).separation for cut in (0.0, 0.5, 1.0, 2.0)]
    assert apart == sorted(apart)
    assert apart[0] < 2 < apart[2]
    assert fit_mixture(torch.tensor([-0.5] * 10 + [0.5] * 10)).separation == pytest.approx(4)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("values", [[0.5, 0.7, 0.0], [0.5, 0.5], [0.25]])
def test_one_sign_is_one_component_with_the_other_mirrored_and_empty(sign, values):
    x = sign * torch.tensor(values)
    mixture = fit_mixture(x)
    mean = float(x[x != 0].double().abs().mean())
    assert mixture.weights == ((0.0, 1.0) if sign > 0 else (1.0, 0.0))
    assert mixture.means == pytest.approx((-mean, mean))
    assert mixture.separation == 0
    assert not mixture.two_sided
    assert mixture.posterior(x).tolist() == [float(sign > 0)] * len(values)
    with pytest.raises(ValueError, match="rounding needs a component on each side of zero"):
        mixture.rounded()


@pytest.mark.parametrize("shape", [(0,), (3, 2)])
def test_no_non_zero_weight_is_an_empty_mixture(shape):
    mixture = fit_mixture(torch.zeros(shape))
    assert mixture == Mixture((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), 0.0)
    assert mixture.separation == 0
    assert mixture.posterior(torch.ones(2)).tolist() == [0, 0]


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    st.sampled_from([1.0, 1e-30, 1e30, 1e-150]),
)
@settings(max_examples=200)
def test_any_finite_tensor_gives_a_sound_mixture(values, scale):
    x = torch.tensor(values, dtype=torch.float64) * scale
    mixture = fit_mixture(x)
    numbers = (*mixture.weights, *mixture.means, *mixture.sigmas, mixture.deviation, mixture.separation)
    assert all(map(math.isfinite, numbers))
    assert mixture.means[0] <= mixture.means[1]
    if bool((x != 0).any()):
        assert sum(mixture.weights) == pytest.approx(1)
    if x.abs().max() > 1e-300:
        assert bool(mixture.posterior(x).isfinite().all())
    if mixture.two_sided:
        rounded = mixture.rounded()
        assert 0.74 <= mixture.means[1] / rounded.mean_positive <= 1.5
        assert 0.74 <= mixture.means[0] / rounded.mean_negative <= 1.5
        assert math.frexp(rounded.sigma)[0] == 0.5
        assert rounded.sigma >= 2.0**-9 * max(rounded.mean_positive, -rounded.mean_negative)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="x must be finite"):
        fit_mixture(torch.tensor([1.0, -1.0, value]))


def test_half_precision_is_taken():
    x = lobes(5000)
    for dtype in (torch.float16, torch.bfloat16):
        assert fit_mixture(x.to(dtype)).means == pytest.approx(fit_mixture(x).means, abs=1e-3)
        assert fit_mixture(x).posterior(x.to(dtype)).dtype == torch.float32
