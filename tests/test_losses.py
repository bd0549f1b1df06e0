"""Losses: masks, extremes, noise by key, and the objective on real transforms."""

import math

import pytest
import torch

from xrddiff.core.errors import BadInput
from xrddiff.core.registry import Names, get
from xrddiff.data.transforms.pipelines import make_transform
from xrddiff.data.transforms.values import Asinh
from xrddiff.learn.losses import (
    VAEObjective,
    annealed,
    iwmse,
    kl_divergence,
    negative_binomial_nll,
    poisson_gaussian_nll,
    poisson_nll,
    positive_rate,
)
from xrddiff.learn.models.autoencoder import make_autoencoder

torch.set_num_threads(1)


def fitted(**words):
    transform = Asinh(scale=1.5, **words)
    transform.mean, transform.std, transform.reference_intensity = 1.0, 0.8, 4.5
    return transform


def make_batch(n=4, size=16, seed=0):
    torch.manual_seed(seed)
    counts = torch.poisson(8 * torch.rand(n, 1, size, size))
    mask = torch.rand(n, 1, size, size) > 0.2
    return {"x": fitted().forward(counts, mask), "mask": mask, "index": torch.arange(n) + 100}, counts


@pytest.mark.parametrize("name", list(Names("loss")))
def test_masked_pixels_count_for_nothing(name):
    loss = get("loss", name)
    torch.manual_seed(0)
    target = torch.poisson(5 * torch.ones(3, 1, 8, 8))
    mask = torch.rand(3, 1, 8, 8) > 0.3
    mask[2] = False  # a frame without any
    results = []
    for filler in (0.0, 1e6, float("nan")):
        prediction = (target + 0.5).requires_grad_()
        value = loss(prediction, target.masked_fill(~mask, filler), mask)
        assert value.shape == (3,) and value.dtype == torch.float32 and value.isfinite().all() and value[2] == 0
        value.sum().backward()
        assert prediction.grad.isfinite().all() and (prediction.grad[~mask] == 0).all()
        results.append(value.detach())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", list(Names("loss")))
def test_low_precision_predictions_are_judged_in_float32(name):
    target = torch.poisson(5 * torch.ones(2, 1, 8, 8))
    assert get("loss", name)(target.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_poisson_gradient_never_vanishes_where_photons_were_counted():
    u = torch.tensor([-1e4, -50.0, -1.0, 0.0, 1e-3, 1.0, 1e6]).requires_grad_()
    for k in (1.0, 100.0):
        u.grad = None
        loss = sum(poisson_nll(v.reshape(1, 1), torch.tensor([[k]])) for v in u)
        loss.sum().backward()
        assert loss.isfinite().all() and u.grad.isfinite().all()
        assert (u.grad[:4] < -0.5 * k / 0.01 * 0.9).all()


def test_rate_is_the_identity_above_its_floor():
    u = torch.tensor([0.2, 1.0, 1e3])
    mu, log_mu = positive_rate(u)
    assert torch.allclose(mu, u, rtol=1e-6) and torch.allclose(log_mu, u.log(), atol=1e-6)


def test_poisson_gaussian_is_finite_below_zero_and_without_read_noise():
    m = torch.tensor([[-5.0, 0.0, 3.0]], requires_grad=True)
    loss = poisson_gaussian_nll(m, torch.tensor([[1.0, 0.0, 2.0]]))
    loss.sum().backward()
    assert loss.isfinite().all() and m.grad.isfinite().all() and m.grad[0, 0] < 0


def test_iwmse_weight_is_one_on_background_and_grows_with_intensity():
    target = torch.tensor([[-3.0, 0.0, 4.5, 9.0]])
    ratio = [iwmse(target[:, i : i + 1] + 1, target[:, i : i + 1], reference_intensity=4.5) for i in range(4)]
    assert torch.cat(ratio).tolist() == pytest.approx([1, 1, 3, 5])


def test_kl_is_zero_only_at_the_prior():
    zero = torch.zeros(2, 3, 4, 4)
    assert kl_divergence(zero, zero).tolist() == [0, 0]
    assert (kl_divergence(zero, zero + 1e-3) > 0).all() and (kl_divergence(zero + 1e-3, zero) > 0).all()
    assert kl_divergence(zero, zero - 30).isfinite().all()


def test_annealing_is_bounded_and_checked():
    assert annealed(10**9, 5, "logistic") == 1
    with pytest.raises(BadInput, match="did you mean 'cosine'"):
        annealed(0, 5, "cosin")


@pytest.mark.parametrize("name", list(Names("loss")))
def test_frame_losses_do_not_depend_on_the_batch(name):
    batch, _ = make_batch()
    objective = VAEObjective(make_autoencoder("tiny"), fitted(), recons_loss=name, read_noise=1.0)
    whole = objective(batch, 3)
    for rows in ([1], [3, 0]):
        part = objective({k: v[rows] for k, v in batch.items()}, 3)
        for key in whole:
            assert torch.allclose(part[key], whole[key][rows], rtol=2e-5, atol=1e-7), key


def test_noise_is_keyed_by_seed_step_and_frame():
    batch, _ = make_batch()
    a = VAEObjective(make_autoencoder("tiny"), fitted())
    noise = a.noise(batch, 3)
    assert torch.equal(noise, a.noise(batch, 3)) and not torch.equal(noise, a.noise(batch, 4))
    assert not torch.equal(noise, VAEObjective(a.model, fitted(), seed=1).noise(batch, 3))
    assert noise.shape == (4, *a.model.latent_shape(16, 16))


def test_everything_that_trains_is_in_the_model():
    objective = VAEObjective(make_autoencoder("tiny"), fitted())
    inside = {id(p) for p in objective.model.parameters()}
    assert all(id(p) in inside for p in objective.parameters())


def test_perfect_reconstruction_of_counts_meets_the_poisson_floor():
    batch, counts = make_batch()
    objective = VAEObjective(make_autoencoder("tiny"), fitted(), recons_loss="poisson")
    r = objective.reconstruction(batch["x"], batch["x"], batch["mask"])
    assert torch.allclose(r, poisson_nll(counts, counts, batch["mask"]), rtol=1e-4)


def test_integrating_detectors_are_counted_in_photons():
    counts = torch.poisson(20 * torch.ones(2, 1, 8, 8))
    transform = Asinh(scale=5.0, standardise=False)
    objective = VAEObjective(make_autoencoder("tiny"), transform, recons_loss="poisson", gain=8.0, pedestal=10.0)
    x = transform.forward(8 * counts + 10)
    assert torch.allclose(objective.reconstruction(x, x), poisson_nll(counts, counts), rtol=1e-4)


def test_a_few_steps_of_training_lower_every_loss():
    batch, _ = make_batch(n=2)
    for name in Names("loss"):
        torch.manual_seed(0)
        objective = VAEObjective(make_autoencoder("tiny"), fitted(), recons_loss=name, read_noise=1.0)
        optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
        first = None
        for step in range(12):
            loss = objective(batch, step)["loss"].mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            first = first or loss.item()
        assert math.isfinite(loss.item()) and loss.item() < first, name


def test_without_a_mask():
    batch, _ = make_batch()
    del batch["mask"]
    everywhere = batch | {"mask": torch.ones_like(batch["x"], dtype=torch.bool)}
    torch.manual_seed(0)
    model = make_autoencoder("tiny")
    a, b = (VAEObjective(model, fitted(), recons_loss="mse").eval()(x)["loss"] for x in (batch, everywhere))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "words, said",
    [
        ({"recons_loss": "iwmsee"}, "did you mean 'iwmse'"),
        ({"annealing_shape": "cubic"}, "annealing"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"gain": 0.0}, "gain"),
        ({"transform": make_transform("minmax"), "recons_loss": "poisson"}, "no inverse"),
        ({"transform": None, "recons_loss": "poisson"}, "no inverse"),
        ({"transform": Asinh()}, "reference intensity"),
    ],
)
def test_refusals(words, said):
    with pytest.raises(BadInput, match=said):
        VAEObjective(make_autoencoder("tiny"), **({"transform": fitted()} | words))


def test_negative_binomial_equals_scipy_also_for_a_million_counts():
    from scipy.stats import nbinom

    mu = torch.tensor([[0.05, 0.4, 7.0, 300.0, 2e4, 1.1e6]])
    k = torch.tensor([[0.0, 2.0, 5.0, 333.0, 18_500.0, 1e6]])
    for spread in (0.01, 0.03, 0.3):
        r = spread**-2
        oracle = -nbinom.logpmf(k.numpy(), r, r / (r + mu.double().numpy())).mean()
        assert float(negative_binomial_nll(mu, k, relative_spread=spread)) == pytest.approx(oracle, rel=1e-4)


def test_a_relative_spread_of_nothing_is_refused():
    with pytest.raises(BadInput, match="relative_spread: found 0.0, expected more than 0"):
        VAEObjective(make_autoencoder("tiny"), fitted(), recons_loss="negative_binomial", relative_spread=0)
