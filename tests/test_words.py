"""The words name what the modules have: `xrddiff.config.words` is light and repeats their names, and this holds the two together."""

import math

import pytest
import torch

from xrddiff.config.plan import compose_plan
from xrddiff.config.settings import option_rows
from xrddiff.config.words import model as words
from xrddiff.config.words.vocabulary import Config, get_word, vocabulary
from xrddiff.core.errors import BadInput
from xrddiff.core.registry import entries, options
from xrddiff.learn.diffusion import schedules
from xrddiff.learn.diffusion.keyed_sampling import Sampler
from xrddiff.learn.models import autoencoder, autoregressive, transformer, unet


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (words.VIT_SIZES, transformer.VIT_SIZES),
        (words.ORDERS, autoregressive.ORDERS),
        (words.SIZE_NAMES, autoencoder.SIZES),
        (words.SIZE_NAMES, unet.SIZES),
    ],
)
def test_names_are_those_of_the_modules(names, known):
    assert set(names) == set(known)


@pytest.mark.parametrize(
    ("overrides", "samplers_word"),
    [
        (["inference.schedule=flow", "inference.schedule_options={shift: 3}"], {"shift": 3.0}),
        (["inference.sampler=ddpm", "inference.sampler_options={variance: fixed_large}"], {"variance": "fixed_large"}),
        (["inference.sampler_options={order: 3}"], {"order": 3}),
        (["inference.sampler_options={corrector: false}"], {"corrector": False}),
        (["inference.sampler_options={basis: bh1}"], {"basis": "bh1"}),
    ],
)
def test_options_of_a_sampler_reach_it(overrides, samplers_word):
    """Each changes what comes out; where there is no such option, it is refused."""
    from xrddiff.config.composition import compose_config
    from xrddiff.judge.inference.samplers import make_sampler
    from xrddiff.learn.diffusion.analytic import GaussianMixture

    (name, value), *_ = samplers_word.items()
    base = ["model=ddpm", *overrides[:-1]]
    plain, told = (make_sampler(compose_plan(words).sampling) for words in (base, ["model=ddpm", *overrides]))
    assert getattr(told, name, told.options.get(name)) == value != getattr(plain, name, plain.options.get(name))
    world = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.2)
    a, b = (s.sample(world.denoise, (1,), range(4), seed=0) for s in (plain, told))
    assert (a != b).any()
    other = ["model=ddpm", "inference.sampler=heun", overrides[-1]]
    with pytest.raises(BadInput, match=f"has no option '{name}'"):
        compose_config(other)


def test_logit_normal_training_times():
    from xrddiff.config.composition import compose_config
    from xrddiff.judge.inference.samplers import training_noise

    flow = ["model=ddpm", "model.parameterisation=flow"]
    uniform, normal = (
        training_noise(compose_plan(w).model.denoiser)
        for w in (flow, [*flow, "model.training_noise_options={logit_std: 0.5}"])
    )
    drawn = [noise.sample(0, 1, range(2000)).log() for noise in (uniform, normal)]
    assert drawn[0].std() > 1.7 and abs(drawn[1].std() - 0.5) < 0.03  # of logit t, whose uniform has pi/sqrt(3)
    with pytest.raises(BadInput, match="the training noise lognormal has no option 'logit_std'"):
        compose_config(["model=ddpm", "model.training_noise_options={logit_std: 1}"])


def test_words_of_training_noise():
    """Its distribution may be chosen apart from what the network predicts, and the flow's has a shift and a mean."""
    from xrddiff.judge.inference.samplers import training_noise

    def levels(*given):
        return training_noise(compose_plan(["model=ddpm", *given]).model.denoiser).sample(0, 1, range(2000)).log()

    flow = levels("model.parameterisation=flow")
    assert torch.equal(levels("model.training_noise=flow"), flow)
    assert torch.allclose(
        levels("model.training_noise=flow", "model.training_noise_options={shift: 3}"), flow + math.log(3)
    )
    normal = ("model.training_noise=flow",)
    assert torch.allclose(
        levels(*normal, "model.training_noise_options={logit_std: 0.5, logit_mean: 1}"),
        levels(*normal, "model.training_noise_options={logit_std: 0.5}") + 1,
    )
    edm = levels(
        "model.parameterisation=v", "model.training_noise=lognormal", "model.training_noise_options={P_std: 0.5}"
    )
    assert abs(edm.std() - 0.5) < 0.03
    discrete = levels("model.training_noise=discrete", "training.timesteps=5")
    assert torch.equal(levels("model.parameterisation=eps", "training.timesteps=5"), discrete)
    assert len(discrete.unique()) == 5


@pytest.mark.parametrize("spacing", options("sigma_schedule", "vp")["spacing"].choices)
def test_every_spacing_is_known(spacing):
    assert len(schedules.vp_timesteps(5, spacing=spacing)) == 5


# what the presets or the size of a network decide is not in `options_for`; a network's other options follow its size
@pytest.mark.parametrize("word", [w.name for w in vocabulary().values() if w.metadata["options_for"]])
def test_defaults_of_options_are_those_of_the_list(word):
    """`xrddiff config show` says of every option of everything what `xrddiff config list` says."""
    kind, chooser = vocabulary()[word].metadata["options_for"]
    for name, entry in entries(kind).items():
        cfg = Config()
        cfg.model.model_name = "vq" if kind == "quantizer" else "ddpm"
        section, _, last = chooser.rpartition(".")
        setattr(get_word(cfg, section), last, name)
        shown = {row["word"]: row["value"] for row in option_rows(cfg, word, "given")}
        listed = {f"{word}.{o.name}": o.default for o in entry.options.values()}
        assert shown == ({} if kind == "network" else listed), name


def test_no_option_has_another_default_elsewhere():
    """A word that reaches an option has its default; old words and the samplers of Python have no others."""
    discrete = options("training_noise", "discrete")
    assert vocabulary()["training.timesteps"].default == discrete["timesteps"].default
    assert vocabulary()["model.noise_schedule"].default == discrete["schedule"].default
    for name, entry in entries("sampler").items():
        assert Sampler(name).options == {o.name: o.default for o in entry.options.values()}
    heun = options("sampler", "heun")
    assert {o.default for o in heun.values()} == {autoregressive.DIFFUSION[o] for o in heun}
    assert Sampler().rho == options("sigma_schedule", "karras")["rho"].default
