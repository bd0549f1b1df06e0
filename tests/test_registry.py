"""What can be chosen by name: the index of the package, and that nobody needs PyTorch to read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import torch

import xrddiff
from xrddiff.config.composition import compose_config
from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.core.registry import KINDS, Range, entries, forget, get, register, registering_as
from xrddiff.judge.inference.model_from_plan import build_objective
from xrddiff.judge.inference.samplers import make_sampler, training_noise
from xrddiff.learn.diffusion.denoisers import Denoiser
from xrddiff.learn.diffusion.objectives import loss_weight
from xrddiff.learn.diffusion.schedules import LogNormal, alphas_bar
from xrddiff.learn.models.codebook import VectorQuantizer
from xrddiff.learn.recipes.autoencoders import build_autoencoder


def test_the_index_is_what_the_modules_register():
    """In a process of its own: importing every module registers what `registry.json` says, no more and no less."""
    code = "import importlib, json, sys; from xrddiff.core import registry; rows = registry.collect(); "
    code += "[importlib.import_module(name) for name in sys.argv[1:]]; "
    code += "print(json.dumps([rows, sorted(registry._LIVE)]))"
    root = Path(xrddiff.__file__).parent
    files = [p for p in root.rglob("*.py") if "@register(" in p.read_text(encoding="utf-8") and p.name != "registry.py"]
    names = [".".join(("xrddiff", *p.relative_to(root).with_suffix("").parts)) for p in files]
    out = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True).stdout
    index = json.loads((root / "core" / "registry.json").read_text(encoding="utf-8"))
    rows, live = json.loads(out.splitlines()[-1])
    assert rows == index and live == sorted([row["kind"], row["name"]] for row in index)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_can_be_got(kind):
    for name, entry in entries(kind).items():
        thing = get(kind, name)
        assert callable(thing) and entry.help and not entry.help.startswith(" ") and "\n" not in entry.help


@pytest.mark.parametrize(
    "command",
    ["main(['config', 'list', 'sampler'])", "compose_config(['model=ddpm', 'inference.sampler_options={order: 3}'])"],
)
def test_names_and_options_need_no_torch(command):
    code = f"import sys; from xrddiff.app.verbs.main import main; from xrddiff.config.composition import compose_config; {command}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inference.sampler_options={orders: 3}"], "the sampler unipc has no option 'orders'; did you mean 'order'?"),
        (["inference.sampler=euler", "inference.sampler_options={order: 3}"], "has no option 'order'; it has none"),
        (["inference.sampler_options={order: 4}"], "inference.sampler_options.order: found 4, expected at least 1 and"),
        (["inference.sampler_options={corrector: 1}"], "found 1, expected true or false"),
        (["inference.sampler_options={basis: bh3}"], "did you mean 'bh"),
        (["inference.order=1"], "did you mean inference.sampler_options={order: …}?"),
        (["model.diffusion_kwargs.P_std=1"], "did you mean model.training_noise_options={P_std: …}?"),
    ],
)
def test_options_are_refused_in_the_sentences_of_words(words, says):
    with pytest.raises(BadInput) as error:
        compose_config(["model=ddpm", *words])
    assert says in str(error.value)


@pytest.fixture
def mine():
    """Parts of a denoiser and a quantizer as a plug-in registers them, like some of the package's."""
    with registering_as("mine.py"):

        @register("noise_schedule", "mine", help="As linear.")
        def schedule(T):
            return alphas_bar("linear", T)

        @register("parameterisation", "mine", help="As eps.")
        def parameterisation(sigma, sigma_data):
            return get("parameterisation", "eps")(sigma, sigma_data)

        @register("weighting", "mine", help="As min_snr.")
        def weighting(sigma, sigma_data, gamma):
            return get("weighting", "min_snr")(sigma, sigma_data, gamma)

        @register("training_noise", "mine")
        class Wide(LogNormal):
            """As lognormal."""

        @register("sigma_schedule", "mine", help="Evenly spaced.")
        def levels(n, sigma_max, bend: Annotated[float, Range(above=0)] = 1.0):
            return sigma_max * torch.linspace(1, 0, n + 1, dtype=torch.float64) ** bend

        @register("quantizer", "mine")
        class Mine(VectorQuantizer):
            """As vq."""

    yield
    forget("mine.py")


@pytest.mark.filterwarnings("error")  # as no word of these runs is without effect
def test_parts_of_a_denoiser_come_from_a_plug_in(mine):
    """Each is chosen by its name, gets the words that concern it, and does what its model in the package does."""
    words = ["model=ddpm", "model.parameterisation=mine", "model.noise_schedule=mine", "training.timesteps=5"]
    plan = compose_plan(
        [*words, "inference.schedule=mine", "inference.schedule_options={bend: 2}", "inference.steps=16"]
    )
    assert torch.equal(
        training_noise(plan.model.denoiser).alphas_bar, alphas_bar("linear", 5)
    )  # unless told otherwise: discrete
    told = compose_plan([*words, "model.training_noise=mine", "model.training_noise_options={P_std: 0.3}"])
    assert training_noise(told.model.denoiser).P_std == 0.3
    mine, eps = (Denoiser(torch.nn.Identity(), name, timesteps=5, schedule="linear") for name in ("mine", "eps"))
    sigma = torch.tensor([0.1, 3.0])
    assert all(torch.equal(a, b) for a, b in zip(mine.scalings(sigma), eps.scalings(sigma), strict=True))
    assert torch.equal(loss_weight(mine, sigma, "mine", 2.0), loss_weight(eps, sigma, "min_snr", 2.0))
    assert build_objective(mine, plan.model.denoiser).weighting == "simple"
    sampler = make_sampler(plan.sampling)
    assert sampler.sigmas()[8] == plan.model.denoiser.levels[1] / 4 and len(sampler.sigmas()) == 17
    with pytest.raises(BadInput, match="inference.schedule_options.bend: found 0.0, expected more than 0"):
        compose_config([*words, "inference.schedule=mine", "inference.schedule_options={bend: 0}"])


@pytest.mark.filterwarnings("error")
def test_a_quantizer_comes_from_a_plug_in(mine):
    words = ["model=vq", "model.quantizer=mine", "model.codes=64", "model.quantizer_options={decay: 0.5}"]
    found = build_autoencoder(compose_plan(words).model.autoencoder).quantizer
    assert type(found).__name__ == "Mine" and found.K == 64 and found.decay == 0.5
    grid = build_autoencoder(
        compose_plan(["model=vq", "model.quantizer=fsq", "model.quantizer_options={whiten: false}"]).model.autoencoder
    )
    assert grid.quantizer.K == 1024 and not grid.quantizer.whiten


def test_kinds_that_are_closed_to_plug_ins():
    with pytest.raises(BadInput, match="mine.py: a plug-in cannot add an autoencoder"), registering_as("mine.py"):
        register("autoencoder", "mine", help="A test.")(lambda: None)
