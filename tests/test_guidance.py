"""Guidance, inpainting, interpolation, classifier: closed forms, every sampler, conditions of a network, modes of autograd, several dims of sigma."""

import math

import pytest
import torch

from xrddiff.core.errors import BadInput
from xrddiff.core.registry import Names, find
from xrddiff.core.seeds import torch_generator
from xrddiff.learn.diffusion.analytic import GaussianMixture
from xrddiff.learn.diffusion.denoisers import Denoiser
from xrddiff.learn.diffusion.guidance import autoguidance, classifier_free, classifier_guidance, log_likelihood_gradient
from xrddiff.learn.diffusion.inpainting import INPAINTING, inpaint, posterior, replacement
from xrddiff.learn.diffusion.interpolation import cond_between, interpolate, inversion, invert, slerp
from xrddiff.learn.diffusion.keyed_sampling import SampleNoise, Sampler
from xrddiff.learn.diffusion.samplers import ddim, heun
from xrddiff.learn.diffusion.schedules import karras_sigmas
from xrddiff.learn.models.classifier import Classifier, ClassifierObjective, class_weights, evaluate_classifier
from xrddiff.learn.models.unet import UNet

torch.set_num_threads(1)


GAUSSIAN = [name for name in Names("sampler") if "parameterisation" not in find("sampler", name).traits]


@pytest.fixture(scope="module")
def unet():
    """A denoiser with conditions whose answers depend on them."""
    torch.manual_seed(0)
    net = UNet(
        widths=(8, 16),
        layers_per_block=1,
        norm_groups=4,
        head_dim=8,
        mask_channel=True,
        conditions={"crystals": 3, "wavelength": [1.0, 0.1]},
    )
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return Denoiser(net, sigma_data=0.7).eval()


def normal(*shape, key=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch_generator("test guidance", key))


# ---------------------------------------------------------------- guidance on a network


def test_classifier_free_on_a_network(unet):
    x, sigma = normal(4, 1, 16, 16), torch.tensor([0.1, 0.5, 2.0, 9.0])
    mask = normal(4, 1, 16, 16, key=1) > -1
    cond = {
        "crystals": torch.tensor([0, 1, 2, -1]),
        "wavelength": torch.tensor([1.0, 1.1, float("nan"), 0.9]),
        "mask": mask,
    }
    free = {"mask": mask}
    with torch.no_grad():
        known, blank = unet(x, sigma, cond), unet(x, sigma, free)
        assert not torch.allclose(known, blank)
        assert torch.equal(classifier_free(unet, 1.0)(x, sigma, cond), known)  # bit for bit: the same call
        for w in (0.0, 2.5):
            assert torch.allclose(classifier_free(unet, w)(x, sigma, cond), blank + w * (known - blank), atol=2e-6)
        guided = classifier_free(unet, 2.5, (0.3, 2.0))(x, sigma, cond)
        assert torch.allclose(guided[[0, 3]], known[[0, 3]], atol=2e-6)  # outside of the interval
        assert torch.allclose(guided[[1, 2]], (blank + 2.5 * (known - blank))[[1, 2]], atol=2e-6)
        assert torch.equal(classifier_free(unet, 2.5)(x, sigma), unet(x, sigma))  # nothing to leave out


def test_calls_are_counted():
    calls = []

    def denoise(x, sigma, cond=None):
        calls.append(len(x))
        return 0.5 * x

    x, cond = normal(3, 2), {"kind": torch.zeros(3, dtype=torch.int64)}
    classifier_free(denoise, 1.0)(x, 1.0, cond)
    classifier_free(denoise, 3.0)(x, 1.0, cond)
    classifier_free(denoise, 3.0, (0.1, 0.5))(x, 1.0, cond)  # outside: conditional only
    assert calls == [3, 6, 3]
    calls.clear()
    autoguidance(denoise, denoise, 1.0)(x, 1.0)
    autoguidance(denoise, denoise, 2.0, (0.1, 0.5))(x, 1.0)
    autoguidance(denoise, denoise, 2.0)(x, 1.0)
    assert calls == [3, 3, 3, 3]


def test_tokens_have_their_own_sigma():
    """x (B, N, C) with sigma (B, N), as the heads of autoregressive models have it."""
    x, sigma = normal(3, 5, 2), normal(3, 5, key=1).exp()
    cond = {"kind": torch.zeros(3, dtype=torch.int64)}

    def denoise(x, sigma, cond=None):
        return x / (1 + sigma[..., None] ** 2) + (0.0 if cond is None else 0.1 * (cond["kind"] >= 0)[:, None, None])

    known, blank = denoise(x, sigma, cond), denoise(x, sigma)
    assert torch.allclose(classifier_free(denoise, 3.0)(x, sigma, cond), blank + 3 * (known - blank))
    inside = ((sigma > 0.5) & (sigma <= 2))[..., None]
    assert torch.allclose(
        classifier_free(denoise, 3.0, (0.5, 2))(x, sigma, cond), torch.where(inside, blank + 3 * (known - blank), known)
    )


def test_guidance_of_float32_and_scalars(unet):
    x = normal(2, 1, 8, 8, dtype=torch.float32)
    cond = {"crystals": torch.tensor([0, 1])}
    for sigma in (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5])):
        out = classifier_free(unet, 2.0)(x, sigma, cond)
        assert out.dtype == torch.float32 and out.shape == x.shape
        assert torch.allclose(out, classifier_free(unet, 2.0)(x, 0.5, cond), atol=1e-6)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_scale_one_is_conditional_in_every_sampler(name):
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    world = GaussianMixture(means, 0.2)
    one = Sampler(name, steps=8, sigma_max=20.0)

    def denoise(x, sigma, cond=None):
        return world.denoise(x, sigma, cond) if hasattr(world, "denoise") else world(x, sigma, cond)

    field = {"component": torch.tensor([0, 1, 1])}
    a = one.sample(denoise, (2,), [0, 1, 2], seed=3, cond=field)
    b = one.sample(classifier_free(denoise, 1.0), (2,), [0, 1, 2], seed=3, cond=field)
    assert torch.equal(a, b)
    guided = one.sample(classifier_free(denoise, 2.0), (2,), [0, 1, 2], seed=3, cond=field)
    assert (
        (guided - means[field["component"]]).norm(dim=1) < (guided - means[1 - field["component"]]).norm(dim=1)
    ).all()


def test_gradients_in_every_mode():
    x = normal(3, 4)
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            y = x.clone()  # an inference tensor in inference mode
            g = log_likelihood_gradient(lambda z: -0.5 * z.square().sum(1), y)
            assert torch.allclose(g, -x) and not g.requires_grad


def test_classifier_guidance_leaves_unknown_classes_alone(unet):
    torch.manual_seed(0)
    classifier = Classifier(3, widths=(8, 16), norm_groups=4)
    torch.nn.init.normal_(classifier.head.weight)
    x = normal(3, 1, 16, 16)
    cond = {"crystals": torch.tensor([0, -1, 2]), "wavelength": torch.tensor([1.0, 1.1, 0.9])}
    with torch.no_grad():
        blank = unet(x, 1.0, {"wavelength": cond["wavelength"]})
        led = classifier_guidance(unet, classifier, 2.0, field="crystals")(x, 1.0, cond)
    assert torch.allclose(led[1], blank[1], atol=1e-6)
    assert (led[[0, 2]] - blank[[0, 2]]).flatten(1).norm(dim=1).min() > 1e-4
    assert all(p.grad is None for p in classifier.parameters())


# ---------------------------------------------------------------- inpainting


@pytest.mark.parametrize("method", INPAINTING)
def test_known_pixels_stay(unet, method):
    known = normal(2, 1, 16, 16, dtype=torch.float32)
    mask = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    mask[..., 5:9, :] = False
    hole = known.masked_fill(~mask, float("nan"))  # what is in the hole is not looked at
    sigmas = karras_sigmas(4, 0.02, 10.0)
    out = inpaint(
        unet, hole, mask, sigmas, SampleNoise((1, 16, 16), [0, 1], 5), method=method, iterations=2, resample=2
    )
    assert out.dtype == known.dtype and torch.equal(torch.where(mask, out, 0), torch.where(mask, known, 0))
    assert out.isfinite().all() and not out.requires_grad
    again = inpaint(
        unet, hole[1:], mask, sigmas, SampleNoise((1, 16, 16), [1], 5), method=method, iterations=2, resample=2
    )
    assert torch.allclose(again, out[1:], atol=1e-4)  # a sample is its number, whoever is beside it
    other = inpaint(
        unet, hole, mask, sigmas, SampleNoise((1, 16, 16), [0, 1], 6), method=method, iterations=2, resample=2
    )
    assert (other - out)[~mask.expand_as(out)].abs().min() > 0


def test_no_hole_and_nothing_known():
    def denoise(x, sigma, cond=None):
        return x / (1 + sigma**2)

    known, sigmas = normal(2, 1, 4, 4), karras_sigmas(12, 0.02, 20.0)
    whole, nothing = torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    for method in INPAINTING:
        assert torch.equal(
            inpaint(denoise, known, whole, sigmas, SampleNoise((1, 4, 4), [0, 1], 0), method=method), known
        )
    free = inpaint(denoise, known, nothing, sigmas, SampleNoise((1, 4, 4), [0, 1], 0))
    plain = heun(denoise, sigmas[0] * SampleNoise((1, 4, 4), [0, 1], 0)(), sigmas)
    assert torch.allclose(free, plain)  # without a measurement it is sampling


def test_posterior_per_frame_sigma_and_channels():
    """Frames of several channels and noise levels in one call, against one call each."""
    C = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)) + 0.4

    def denoise(x, sigma, cond=None):
        s = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1).square()
        gain = C @ torch.linalg.inv(C + s * torch.eye(3, dtype=torch.float64))
        return (x.flatten(2).mT @ gain.mT).mT.reshape(x.shape)

    x, known = normal(3, 3, 2, 2), normal(3, 3, 2, 2, key=1)
    mask = torch.tensor([True, False, True]).reshape(1, 3, 1, 1)
    sigma = torch.tensor([0.1, 1.0, 30.0])
    out = posterior(denoise, known, mask, iterations=12)(x, sigma)
    for i in range(3):
        one = posterior(denoise, known[i : i + 1], mask, iterations=12)(x[i : i + 1], sigma[i : i + 1])
        assert torch.allclose(out[i : i + 1], one, atol=1e-9)
    v = sigma.double().reshape(-1, 1, 1) ** 2  # the exact mean of channel 1 given x and the other two
    S = C - C @ torch.linalg.inv(C + v * torch.eye(3)) @ C
    k = torch.tensor([0, 2])
    prior = denoise(x, sigma).flatten(2)
    exact = prior[:, 1:2] + S[:, 1:2][:, :, k] @ torch.linalg.inv(S[:, k][:, :, k]) @ (
        known.flatten(2)[:, k] - prior[:, k]
    )
    assert torch.allclose(out[:, 1:2].flatten(2), exact, atol=1e-7)
    assert torch.equal(replacement(denoise, known, mask)(x, sigma)[:, [0, 2]], known[:, [0, 2]])


def test_a_denoiser_that_is_no_mean_does_no_harm():
    """A network's Jacobian may be anything: the answer stays finite and never misses the known pixels by more."""
    torch.manual_seed(1)
    A = torch.randn(16, 16, dtype=torch.float64)

    def denoise(x, sigma, cond=None):
        return torch.tanh(x.flatten(1) @ A).reshape(x.shape)

    x, known, mask = normal(4, 1, 4, 4), normal(4, 1, 4, 4, key=1), normal(1, 1, 4, 4, key=2) > 0
    for sigma in (0.01, 1.0, 80.0):
        out = posterior(denoise, known, mask, iterations=5, noise_std=1e-8)(x, sigma)
        assert out.isfinite().all()

        def missed(y):
            return torch.where(mask, y - known, 0).flatten(1).norm(dim=1)

        assert (missed(out) <= missed(denoise(x, sigma)) * (1 + 1e-6)).all()


# ---------------------------------------------------------------- interpolation


def test_round_trip_on_a_network(unet):
    frames = 0.7 * normal(2, 1, 8, 8)
    sigmas = karras_sigmas(24, 0.05, 10.0)
    with torch.no_grad():
        error = [
            (ddim(unet, invert(unet, frames, sigmas, rounds=r), sigmas) - frames).square().mean().sqrt() for r in (1, 4)
        ]
    assert error[1] < 0.2 * error[0] and error[1] < 0.02


def test_inversion_measures_what_it_misses():
    """Coarse levels: more rounds must not make it worse, and what is left is told, of each frame by itself."""
    world = GaussianMixture(normal(5, 16), 0.3)
    frames = world.means[:4].double() + 0.3 * normal(4, 16, key=1)

    def trip(steps, rounds, x=frames):
        levels = karras_sigmas(steps, 0.02, 40.0)
        noise, missed = inversion(world.denoise, x, levels, rounds=rounds)
        back = ddim(world.denoise, noise, levels)
        assert torch.allclose((back - x).norm(dim=1) / x.norm(dim=1), missed)
        return missed

    assert trip(16, 5).max() < 0.1 and trip(16, 20).max() < 0.1 and trip(8, 20).max() < 0.3
    assert trip(64, 20).max() < 1e-9 and trip(64, 5).max() < 1e-4
    assert torch.allclose(trip(16, 20)[2:3], trip(16, 20, frames[2:3]), rtol=1e-9)  # beside others, or alone
    with pytest.warns(UserWarning, match=r"the inversion of frame \d does not return: it misses .*% .* with 8 steps"):
        invert(world.denoise, frames, karras_sigmas(8, 0.02, 40.0), rounds=20)


def test_slerp_of_odd_vectors():
    a = normal(1, 3, 3)
    assert torch.equal(slerp(a, torch.zeros_like(a), 0.5), 0.5 * a)
    assert torch.allclose(slerp(a, -a, 0.25), 0.5 * a) and torch.allclose(slerp(a, 3 * a, 0.5), 2 * a)
    b = normal(1, 3, 3, key=4)
    assert slerp(a, b, [0.0, 0.2, 1.0]).shape == (3, 1, 3, 3)
    theta = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    assert torch.allclose(
        slerp(a / a.norm(), b / b.norm(), 0.2).flatten() @ (a / a.norm()).flatten(), (0.2 * theta).cos()
    )


def test_interpolation_in_a_latent_space():
    """encode and decode stand around it; here a linear map, so that latents of a Gaussian world are a Gaussian world."""
    scale = 3.0

    def world(spread):
        return lambda x, sigma, cond=None: x * spread**2 / (spread**2 + sigma**2)

    frames, sigmas, t = normal(2, 1, 4, 4), karras_sigmas(40, 0.01, 20.0), [0.0, 0.3, 1.0]
    direct = interpolate(world(1.0), frames, t, sigmas, rounds=30)
    latent = interpolate(
        world(scale), frames, t, scale * sigmas, rounds=30, encode=lambda x: scale * x, decode=lambda z: z / scale
    )
    assert torch.allclose(latent, direct, atol=1e-6) and torch.allclose(direct[[0, 2]], frames, atol=1e-6)


def test_conditions_on_the_way(unet):
    cond = {"crystals": torch.tensor([1, 2]), "wavelength": torch.tensor([1.0, float("nan")])}
    seen = cond_between(cond, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert seen["crystals"].tolist() == [1, -1, 2] and seen["crystals"].dtype == torch.int64
    assert (
        seen["wavelength"][0] == 1
        and seen["wavelength"][1:].isnan().all()
        and seen["wavelength"].dtype == torch.float32
    )
    out = interpolate(
        unet, 0.7 * normal(2, 1, 16, 16), [0.0, 0.5, 1.0], karras_sigmas(6, 0.1, 2.0), cond=cond, rounds=2
    )
    assert out.shape == (3, 1, 16, 16) and out.isfinite().all()


# ---------------------------------------------------------------- classifier


def batch(n=6, key=0):
    x = normal(n, 1, 16, 16, key=key, dtype=torch.float32)
    return {"x": x, "mask": x > -1.5, "index": torch.arange(n), "cond": {"kind": torch.tensor([0, 1, 2, -1, 1, 0])[:n]}}


def test_classifier_objective():
    torch.manual_seed(0)
    objective = ClassifierObjective(Classifier(3, widths=(8, 16), norm_groups=4), "kind", weights=[1.0, 2.0, 3.0])
    torch.nn.init.normal_(objective.model.head.weight)
    b = batch()
    out = objective(b, 3)
    assert (
        out["loss"].shape == (6,) and out["loss"].dtype == torch.float32 and out["loss"][3] == 0 == out["accuracy"][3]
    )
    x, sigma = objective.noisy(b, 3)
    log_p = objective.model(x, sigma, b["mask"]).log_softmax(1)
    for i, (c, w) in enumerate(((0, 1.0), (1, 2.0), (2, 3.0))):
        assert torch.isclose(out["loss"][i], -w * log_p[i, c], rtol=1e-5)
    one = {k: (v[2:3] if isinstance(v, torch.Tensor) else {n: w[2:3] for n, w in v.items()}) for k, v in b.items()}
    assert torch.allclose(objective(one, 3)["loss"], out["loss"][2:3], rtol=1e-5)  # whoever shares the batch
    objective.eval()
    assert torch.equal(objective(b, 1)["loss"], objective(b, 2)["loss"])
    clean = ClassifierObjective(objective.model, "kind", None)
    assert clean.noisy(b, 0)[1].tolist() == [0.0] * 6 and torch.equal(clean.noisy(b, 0)[0], b["x"])
    share = ClassifierObjective(objective.model, "kind", clean=0.25).noisy(
        batch() | {"x": torch.zeros(4000, 1, 2, 2), "index": torch.arange(4000)}, 0
    )[1]
    assert abs((share == 0).double().mean() - 0.25) < 0.03


def test_classifier_under_autocast_and_in_float64():
    classifier = Classifier(2, widths=(8, 16), norm_groups=4)
    torch.nn.init.normal_(classifier.head.weight)
    b = batch()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = classifier(b["x"], 0.3, b["mask"])
    with torch.no_grad():
        full, double = classifier(b["x"], 0.3, b["mask"]), classifier(b["x"].double(), 0.3, b["mask"])
    assert low.dtype == full.dtype == double.dtype == torch.float32
    assert torch.allclose(full, double, atol=1e-5) and torch.allclose(low, full, atol=0.1)


def test_judge_adds_up():
    def oracle(x, sigma, mask):
        return torch.nn.functional.one_hot((x[:, 0, 0, 0] > 0).long(), 3).float()

    x = torch.tensor([1.0, -1.0, 1.0, 1.0]).reshape(4, 1, 1, 1)
    said = evaluate_classifier(oracle, [{"x": x, "cond": {"kind": torch.tensor([1, 0, 0, -1])}}] * 2, "kind", 3)
    assert said["confusion"].tolist() == [[2, 2, 0], [0, 2, 0], [0, 0, 0]] and said["frames"] == 6
    assert said["accuracy"] == 4 / 6 and said["balanced_accuracy"] == 0.75
    empty = evaluate_classifier(oracle, [], "kind", 3)
    assert empty["frames"] == 0 and math.isnan(empty["accuracy"])


# ---------------------------------------------------------------- refusals


def test_refusals(unet):
    x, mask = normal(2, 1, 16, 16), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    sigmas, noise = karras_sigmas(4, 0.1, 2.0), SampleNoise((1, 16, 16), [0, 1], 0)
    classifier = Classifier(2, widths=(8, 16), norm_groups=4)
    for call, sentence in (
        (lambda: classifier_free(unet, math.inf), "finite"),
        (lambda: classifier_free(unet, 2.0, (2.0, 2.0)), "interval"),
        (lambda: classifier_free(unet, 2.0, (-1.0, 2.0)), "interval"),
        (lambda: classifier_guidance(unet, classifier, field="crystals")(x, 1.0), "crystals"),
        (
            lambda: classifier_guidance(unet, classifier, field="crystals")(x, 1.0, {"crystals": torch.tensor([2, 0])}),
            "2 classes",
        ),
        (lambda: posterior(unet, x, mask, noise_std=-1.0), "noise_std"),
        (lambda: replacement(unet, x, mask.float()), "float32"),
        (lambda: replacement(unet, x, mask[0]), "mask"),
        (lambda: inpaint(unet, x, mask, sigmas, noise, method="poster"), "did you mean 'posterior'"),
        (lambda: inpaint(unet, x, mask, sigmas, noise, method="repaint", resample=0), "resample"),
        (lambda: invert(unet, x, [1.0]), "two or more"),
        (lambda: interpolate(unet, x, [0.5], sigmas, encode=lambda x: x), "both, or neither"),
        (lambda: interpolate(unet, x, [0.5], sigmas, cond={"crystals": torch.tensor([1])}), "crystals"),
        (lambda: Classifier(3, widths=(10,)), "groups"),
        (lambda: Classifier(3, patch=0), "patch"),
        (lambda: ClassifierObjective(classifier, "kind", weights=[1.0]), "weights"),
        (lambda: ClassifierObjective(classifier, "kind", "lognorml"), "did you mean"),
        (lambda: ClassifierObjective(classifier, "kind", clean=1.5), "clean"),
        (lambda: class_weights([0, 0], 2), "at least one"),
    ):
        with pytest.raises(BadInput, match=sentence) as refused:
            call()
        assert "\n" not in str(refused.value)
