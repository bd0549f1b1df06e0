"""Samplers against diffusers, step by step in float64 where it allows that, and against what k-diffusion made (bench/kdiffusion.py)."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
import warnings
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from xrddiff.core.errors import BadInput
from xrddiff.core.registry import Names, find, get
from xrddiff.learn.diffusion.analytic import GaussianMixture
from xrddiff.learn.diffusion.denoisers import SPAN
from xrddiff.learn.diffusion.keyed_sampling import SampleNoise, Sampler, sample_chunks
from xrddiff.learn.diffusion.samplers import ddim, ddpm, dpmpp_2m, dpmpp_3m, euler, heun, unipc
from xrddiff.learn.diffusion.schedules import alphas_bar, flow_sigmas, karras_sigmas, sigmas_of, vp_sigmas

GAUSSIAN = [name for name in Names("sampler") if "parameterisation" not in find("sampler", name).traits]
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.5, -1.0]]), scales=[0.1, 0.3, 0.2], weights=[1, 2, 1]
)
STOCHASTIC = {"ddpm": {}, "ddim": {"eta": 0.7}, "heun": {"S_churn": 5.0}}
QUIET = {"heun": {"S_churn": 0.0}}  # those that draw noise unless they are told not to


def start(sigma: float, n: int = 32) -> torch.Tensor:
    return sigma * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def scheduler(name: str, **words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(pytest.importorskip("diffusers"), name)(**words)


# ------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
def test_alphas_bar(name: str):
    theirs = scheduler("DDPMScheduler", beta_schedule=name).alphas_cumprod
    assert worst(alphas_bar(name, 1000), theirs) < 4e-7  # they multiply a thousand float32


def test_karras_levels():
    theirs = scheduler("EDMEulerScheduler", sigma_data=0.5)
    theirs.set_timesteps(18)
    ours = karras_sigmas(18)
    assert len(ours) == 19 and ours[-1] == 0
    assert torch.allclose(ours, theirs.sigmas.double(), rtol=2e-6)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [50, 1000])
def test_vp_levels(spacing: str, steps: int):
    theirs = scheduler("DDIMScheduler", timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    abar = alphas_bar("linear", 1000)
    assert torch.equal(vp_sigmas(steps, abar, spacing)[:-1], sigmas_of(abar)[theirs.timesteps])


# ------------------------------------------------------------------------------------- against diffusers


def edm_network(scaled: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Some smooth network F(c_in x, c_noise)."""
    return torch.tanh(1.3 * scaled + 0.2 * label) + 0.1 * scaled.flip(-1)


def edm_denoise(x: torch.Tensor, sigma: torch.Tensor, cond=None) -> torch.Tensor:
    s, d = float(sigma), 0.5
    v = s**2 + d**2
    label = torch.tensor(math.log(s) / 4, dtype=torch.float64)
    return d**2 / v * x + s * d / math.sqrt(v) * edm_network(x / math.sqrt(v), label)


@pytest.mark.parametrize("steps", [5, 18])
def test_edm_euler(steps: int):
    theirs = scheduler("EDMEulerScheduler", sigma_data=0.5)
    theirs.set_timesteps(steps)
    x = x_T = start(80.0).float()
    for t in theirs.timesteps:
        x = theirs.step(edm_network(theirs.scale_model_input(x, t), t), t, x).prev_sample
    assert worst(euler(edm_denoise, x_T, karras_sigmas(steps)), x) < 2e-6  # they keep the state in float32


@pytest.mark.parametrize("steps", [5, 14, 15, 24])
@pytest.mark.parametrize("order", [2, 3])
def test_edm_dpmpp(order: int, steps: int):
    """Their third order falls back to the second one step earlier below 15 steps unless it is told not to."""
    theirs = scheduler(
        "EDMDPMSolverMultistepScheduler",
        solver_order=order,
        solver_type="midpoint" if order == 2 else "heun",
        sigma_max=80.0,
        lower_order_final=order == 2,
    )
    theirs.set_timesteps(steps)
    sigmas = theirs.sigmas = karras_sigmas(steps)
    x = x_T = start(80.0)
    for t, s in zip(theirs.timesteps, sigmas, strict=False):
        x = theirs.step(edm_network(theirs.precondition_inputs(x, s), torch.log(s) / 4), t, x).prev_sample
    assert worst({2: dpmpp_2m, 3: dpmpp_3m}[order](edm_denoise, x_T, sigmas), x) < 1e-12


def test_edm_dpmpp_as_it_comes():
    """In float32, with its own levels: what a user of theirs gets."""
    theirs = scheduler("EDMDPMSolverMultistepScheduler", solver_order=2, solver_type="midpoint", sigma_max=80.0)
    theirs.set_timesteps(18)
    x = x_T = start(80.0).float()
    for t in theirs.timesteps:
        x = theirs.step(edm_network(theirs.scale_model_input(x, t), t), t, x).prev_sample
    assert worst(dpmpp_2m(edm_denoise, x_T, karras_sigmas(18)), x) < 3e-6


def test_heun_discrete():
    theirs = scheduler("HeunDiscreteScheduler", use_karras_sigmas=True)
    theirs.set_timesteps(12)
    sigmas = theirs.sigmas = theirs.sigmas.double()
    levels = torch.cat([sigmas[:1], sigmas[1::2]])
    x = x_T = start(levels[0].item())
    theirs.timesteps = theirs.timesteps.double() + torch.arange(len(theirs.timesteps))[:, None].flatten() * 1e-9
    for i, t in enumerate(theirs.timesteps):
        eps = (x - MIXTURE.denoise(x, sigmas[i])) / sigmas[i]
        x = theirs.step(eps, t, x).prev_sample
    assert worst(heun(MIXTURE.denoise, x_T, levels), x) < 1e-10


@pytest.mark.parametrize("steps", [10, 50, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(steps: int, spacing: str, eta: float):
    theirs = scheduler("DDIMScheduler", clip_sample=False, timestep_spacing=spacing, prediction_type="v_prediction")
    theirs.alphas_cumprod = alphas_bar("linear", 1000)
    theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    theirs.set_timesteps(steps)
    sigmas = vp_sigmas(steps, theirs.alphas_cumprod, spacing)
    noise = list(torch.randn(steps, 32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    x_T = start(sigmas[0].item())
    x = x_T / math.sqrt(1 + sigmas[0] ** 2)
    for t, s, z in zip(theirs.timesteps, sigmas, noise, strict=False):
        scale = (1 + s**2).sqrt()
        x_0 = MIXTURE.denoise(scale * x, s)
        v = (x / scale - x_0) * scale / s  # √ᾱ ε − √(1−ᾱ) x₀
        x = theirs.step(v, t, x, eta=eta, variance_noise=z if eta else None).prev_sample
    draws = iter(noise)
    ours = ddim(MIXTURE.denoise, x_T, sigmas, eta=eta, noise=lambda: next(draws))
    assert worst(ours, x) < 1e-9


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm(prediction: str, variance: str, monkeypatch: pytest.MonkeyPatch):
    theirs = scheduler("DDPMScheduler", clip_sample=False, prediction_type=prediction, variance_type=variance)
    theirs.alphas_cumprod, theirs.one = alphas_bar("linear", 1000), torch.ones((), dtype=torch.float64)
    theirs.set_timesteps(100)
    sigmas = vp_sigmas(100, theirs.alphas_cumprod, "leading")
    noise = torch.randn(100, 32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draws = iter(noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: next(draws))
    x_T = start(sigmas[0].item())
    x = x_T / math.sqrt(1 + sigmas[0] ** 2)
    for t, s in zip(theirs.timesteps, sigmas, strict=False):
        scale = (1 + s**2).sqrt()
        x_0 = MIXTURE.denoise(scale * x, s)
        eps = (scale * x - x_0) / s
        said = {"epsilon": eps, "sample": x_0, "v_prediction": (eps - s * x_0) / scale}[prediction]
        x = theirs.step(said, t, x).prev_sample
    again = iter(noise)
    assert worst(ddpm(MIXTURE.denoise, x_T, sigmas, noise=lambda: next(again), variance=variance), x) < 1e-9


def test_flow_match_euler():
    theirs = scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0)
    theirs.set_timesteps(sigmas=np.linspace(0.99, 0.04, 20).tolist())
    t = theirs.sigmas = theirs.sigmas.double()  # what they call sigma is the time t
    sigmas = t / (1 - t)
    x_T = start(sigmas[0].item())
    x = (x_T * (1 - t[0])).float()
    for timestep, now in zip(theirs.timesteps, t, strict=False):
        x_0 = MIXTURE.denoise(x.double() / (1 - now), now / (1 - now))
        x = theirs.step((x - x_0) / now, timestep, x).prev_sample
    assert worst(euler(MIXTURE.denoise, x_T, sigmas), x) < 2e-6


def test_flow_levels():
    theirs = scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0)
    t = torch.linspace(0.9, 0, 11)
    theirs.set_timesteps(sigmas=t[:-1].tolist())
    shifted = theirs.sigmas.double()
    assert torch.allclose(flow_sigmas(10, shift=3.0, t_max=0.9), shifted / (1 - shifted), atol=1e-5)


@pytest.mark.parametrize("steps", [4, 10, 25])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("basis", ["bh1", "bh2"])
def test_unipc(order: int, basis: str, steps: int):
    theirs = scheduler(
        "UniPCMultistepScheduler",
        solver_order=order,
        solver_type=basis,
        prediction_type="sample",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=80.0,
        lower_order_final=basis == "bh2",
    )
    theirs.set_timesteps(steps)
    sigmas = karras_sigmas(steps)
    if basis == "bh1":  # their bh1 is 0·∞ in a step to 0
        sigmas[-1] = 1e-3
    theirs.sigmas = sigmas
    x_T = start(80.0)
    x = x_T / math.sqrt(1 + sigmas[0] ** 2)
    for t, s in zip(theirs.timesteps, sigmas, strict=False):
        x = theirs.step(MIXTURE.denoise(x * (1 + s**2).sqrt(), s), t, x).prev_sample
    x = x * math.sqrt(1 + sigmas[-1] ** 2)
    assert worst(unipc(MIXTURE.denoise, x_T, sigmas, order=order, basis=basis), x) < 1e-12


@pytest.mark.parametrize("words", [{"order": 3, "corrector": False}, {"order": 3}, {"order": 2, "corrector": False}])
def test_unipc_has_its_order_from_a_low_start(words):
    """Where the denoiser changes from the first step on, an uncorrected first step would leave order 2."""
    smooth = GaussianMixture(MIXTURE.means, scales=[0.4, 0.5, 0.3], weights=[1, 2, 1])

    def levels(n: int) -> torch.Tensor:
        return torch.linspace(math.log(3), math.log(0.05), n + 1, dtype=torch.float64).exp()

    x = start(3.0)
    exact = unipc(smooth.denoise, x, levels(4096), order=3)
    errors = [(unipc(smooth.denoise, x, levels(n), **words) - exact).square().mean().sqrt() for n in (128, 256)]
    assert math.log2(errors[0] / errors[1]) > words["order"] - 0.1


def test_unipc_without_corrector_but_in_the_first_step():
    steps = 12
    theirs = scheduler(
        "UniPCMultistepScheduler", solver_order=3, prediction_type="sample", use_karras_sigmas=True, sigma_min=0.002,
        sigma_max=80.0, disable_corrector=list(range(1, steps)),
    )  # fmt: skip
    theirs.set_timesteps(steps)
    sigmas = karras_sigmas(steps)
    theirs.sigmas = sigmas
    x_T = start(80.0)
    x = x_T / math.sqrt(1 + sigmas[0] ** 2)
    for t, s in zip(theirs.timesteps, sigmas, strict=False):
        x = theirs.step(MIXTURE.denoise(x * (1 + s**2).sqrt(), s), t, x).prev_sample
    assert worst(unipc(MIXTURE.denoise, x_T, sigmas, order=3, corrector=False), x) < 1e-12


# ------------------------------------------------------------------------------------ against k-diffusion


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parent / "kdiffusion.npz", allow_pickle=False) as f:
        return {k: torch.from_numpy(f[k]) for k in f}


def test_kdiffusion_levels(recorded: dict[str, torch.Tensor]):
    assert torch.allclose(karras_sigmas(len(recorded["sigmas"]) - 1), recorded["sigmas"], rtol=2e-6)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("euler", euler),
        ("euler", ddim),
        ("heun", heun),
        ("ancestral", ddpm),
        ("ancestral", partial(ddim, eta=1.0)),
        ("dpmpp_2m", dpmpp_2m),
        ("dpmpp_2m", partial(unipc, order=2, corrector=False)),
        ("dpmpp_3m", dpmpp_3m),
    ],
)
def test_kdiffusion(recorded: dict[str, torch.Tensor], name: str, sampler):
    draws = iter(recorded["noise"])
    ours = sampler(MIXTURE.denoise, recorded["x"], recorded["sigmas"], noise=lambda: next(draws))
    assert worst(ours, recorded[name]) < 1e-12


def test_kdiffusion_churn(recorded: dict[str, torch.Tensor]):
    """k-diffusion draws noise in every step, also in those that do not churn."""
    sigmas = recorded["sigmas"]
    used = [z for z, s in zip(recorded["noise"], sigmas, strict=False) if 0.05 <= s <= 50.0]
    assert 0 < len(used) < len(sigmas) - 1
    draws = iter(used)
    words = dict(S_churn=5.0, S_tmin=0.05, S_tmax=50.0, S_noise=1.003)
    ours = heun(MIXTURE.denoise, recorded["x"], sigmas, noise=lambda: next(draws), **words)
    assert worst(ours, recorded["heun_churn"]) < 1e-12
    assert next(draws, None) is None


# ------------------------------------------------------------------------------------------ what all keep


@pytest.mark.parametrize("name", GAUSSIAN)
def test_state_callback_and_types(name: str):
    """The state is float64 whatever the denoiser answers; every step is seen, in order, with what the denoiser was given."""
    seen: list[dict] = []
    asked: list[tuple[torch.dtype, float]] = []
    spans: list[torch.Tensor] = []

    def denoise(x, sigma, cond=None):
        spans.append((cond := dict(cond)).pop(SPAN, torch.tensor(0.0)))
        assert cond == {"component": 1} and sigma.ndim == 0 and sigma.dtype == torch.float64
        asked.append((x.dtype, float(sigma)))
        return MIXTURE.denoise(x, sigma).float()

    noise = SampleNoise((2,), range(8), 0)
    sigmas = karras_sigmas(6)
    words = STOCHASTIC.get(name, {})
    x = get("sampler", name)(
        denoise, start(80.0, 8).float(), sigmas, cond={"component": 1}, noise=noise, callback=seen.append, **words
    )
    assert x.dtype == torch.float64 and x.shape == (8, 2)
    assert [s["i"] for s in seen] == list(range(6)) and {d for d, _ in asked} == {torch.float64}
    assert all(s["x"].shape == s["denoised"].shape == (8, 2) for s in seen)
    if "S_churn" not in words:
        assert [s["sigma"] for s in seen] == sigmas[:-1].tolist()
    assert len(asked) == Sampler(name, 6).evaluations
    if name == "mean_flow":  # it alone says how far each step goes; the steps lead from t of the first level to 0
        assert float(sum(spans)[0]) == pytest.approx(sigmas[0].item() / (1 + sigmas[0].item()), abs=1e-6)
    else:
        assert not any(spans)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_one_step_is_the_denoised(name: str):
    x = start(10.0)
    words = QUIET.get(name, {})
    out = get("sampler", name)(MIXTURE.denoise, x, [10.0, 0.0], noise=SampleNoise((2,), range(32), 0), **words)
    assert worst(out, MIXTURE.denoise(x, 10.0)) < 1e-12


@pytest.mark.parametrize("name", ["euler", "ddim", "heun", "dpmpp_2m", "dpmpp_3m", "unipc"])
def test_there_and_back(name: str):
    """Rising levels carry a sample to its noise; falling ones bring it back."""
    x, _ = MIXTURE.sample(64, torch.Generator().manual_seed(3))
    sigmas = karras_sigmas(400, 0.01, 80.0)[:-1]
    sampler = partial(get("sampler", name), **QUIET.get(name, {}))
    noise = sampler(MIXTURE.denoise, x, sigmas.flip(0))
    assert 0.8 < (noise / 80).std() < 1.2
    assert worst(sampler(MIXTURE.denoise, noise, sigmas), x) < {"euler": 0.2, "ddim": 0.2}.get(name, 5e-3)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_is_asked_for(name: str):
    for sigmas, message in (([2.0, 1.0, 0.0], "noise"), ([0.5, 1.0, 2.0], "fall")):
        with pytest.raises(BadInput, match=message):
            get("sampler", name)(MIXTURE.denoise, start(1.0), sigmas, **STOCHASTIC[name])


@pytest.mark.parametrize(
    "sigmas",
    [[1.0], [1.0, 1.0], [1.0, 2.0, 0.5], [0.0, 1.0], [1.0, -1.0], [math.nan, 0.0], [math.inf, 0.0], [[2.0, 1.0]]],
)
def test_levels_are_refused(sigmas):
    with pytest.raises(BadInput, match="noise levels"):
        euler(MIXTURE.denoise, start(1.0), sigmas)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sampler(steps=0), "steps"),
        (lambda: Sampler(steps=2.5), "steps"),
        (lambda: Sampler("dpmpp2m"), "did you mean 'dpmpp_2m'"),
        (lambda: Sampler(schedule="cosine"), "schedule"),
        (lambda: Sampler(sigma_min=1.0, sigma_max=1.0), "sigma_min"),
        (lambda: Sampler(clamp=(1.0, -1.0)), "clamp"),
        (lambda: Sampler(steps=2000, schedule="vp").sigmas(), "2000 steps"),
        (lambda: Sampler(schedule="vp", noise_schedule="cosin").sigmas(), "did you mean 'cosine'"),
        (lambda: ddim(MIXTURE.denoise, start(1.0), [1.0, 0.0], eta=2.0), "eta"),
        (lambda: ddpm(MIXTURE.denoise, start(1.0), [1.0, 0.0], variance="small"), "variance"),
        (lambda: heun(MIXTURE.denoise, start(1.0), [1.0, 0.0], S_churn=-1), "S_churn"),
        (lambda: unipc(MIXTURE.denoise, start(1.0), [1.0, 0.0], order=4), "order"),
        (lambda: SampleNoise((1,), [], 0), "samples"),
        (lambda: SampleNoise((1,), [-1], 0), "samples"),
        (lambda: next(sample_chunks(lambda n: None, [1], 0)), "batch size"),
        (lambda: next(sample_chunks(lambda n: None, [-1], 4)), "sample -1"),
    ],
)
def test_refusals(call, message: str):
    with pytest.raises(BadInput, match=message):
        call()


# ------------------------------------------------------------------------------------ a sample is its seed

SAMPLE = """
import hashlib
import torch
from xrddiff.learn.diffusion.keyed_sampling import Sampler, sample_chunks

torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(16, 1, 3, padding=1))

def denoise(x, sigma, cond=None):
    return (x / (1 + sigma**2) + 0.3 * net((x / (1 + sigma**2) ** 0.5).float())).to(x.dtype)

def make(numbers):
    return Sampler("heun", 4, options={"S_churn": 5.0}).sample(denoise, (1, 16, 16), numbers, seed=3)

def digests(samples):
    chunks = sample_chunks(make, samples, 4)
    return {i: hashlib.sha256(f.numpy().tobytes()).hexdigest() for numbers, frames in chunks for i, f in zip(numbers, frames)}
"""


def test_same_bits_in_any_process():
    threads, here = torch.get_num_threads(), {}
    try:
        exec(SAMPLE, here)
        everything = here["digests"](range(10))
    finally:
        torch.set_num_threads(threads)
    assert len(everything) == 10 and len(set(everything.values())) == 10
    code = SAMPLE + "torch.randn(7)\nprint(digests([9, 2]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(out) == {i: everything[i] for i in (2, 9)}


def test_chunks_are_whole():
    asked = []

    def make(numbers):
        asked.append(numbers)
        return torch.tensor(numbers)

    got = list(sample_chunks(make, [9, 3, 2, 3], 4))
    assert asked == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert [(n, f.tolist()) for n, f in got] == [([2, 3], [2, 3]), ([9], [9])]
    assert list(sample_chunks(make, [], 4)) == []
    numbers = list(chain.from_iterable(n for n, _ in sample_chunks(make, range(100), 7)))
    assert numbers == list(range(100))


@pytest.mark.parametrize("name", GAUSSIAN)
def test_sampler(name: str):
    seen = []
    s = Sampler(name, 30, schedule="vp", noise_schedule="linear", clamp=(-0.5, 0.5))
    x = s.sample(MIXTURE.denoise, (2,), range(4), seed=0, callback=seen.append)
    assert x.dtype == torch.float32 and x.shape == (4, 2) and x.abs().max() <= 0.5
    assert all(c["denoised"].abs().max() <= 0.5 for c in seen)
    assert torch.equal(x, s.sample(MIXTURE.denoise, (2,), range(4), seed=0))


def test_sampler_takes_the_schedule_of_the_denoiser():
    class Trained:
        config = {"schedule": "linear", "timesteps": 600}

    s = Sampler("ddim", 600, schedule="vp")
    assert torch.equal(s.sigmas(Trained()), vp_sigmas(600, alphas_bar("linear", 600)))
    assert torch.equal(s.sigmas(), vp_sigmas(600, alphas_bar("squaredcos_cap_v2", 1000)))


def test_flow_schedule_starts_at_sigma_max():
    sigmas = Sampler(schedule="flow", steps=9, shift=3.0, sigma_max=80.0).sigmas()
    assert len(sigmas) == 10 and sigmas[-1] == 0 and math.isclose(sigmas[0], 80.0)


def test_a_guidance_may_turn_gradients_on():
    def denoise(x, sigma, cond=None):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (score,) = torch.autograd.grad(MIXTURE.log_density(x, sigma).sum(), x)
        return (x + sigma**2 * score).detach()

    s = Sampler(steps=8)
    assert torch.allclose(
        s.sample(denoise, (2,), range(3), seed=0), s.sample(MIXTURE.denoise, (2,), range(3), seed=0), atol=1e-6
    )
