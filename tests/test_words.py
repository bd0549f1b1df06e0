"""The words name what the modules have: `xrddiff.words` is light and repeats their names, and this holds the two together."""

import pytest

from xrddiff import words
from xrddiff.diffusion import denoisers, objectives, samplers, sampling, schedules
from xrddiff.losses import ANNEALING, RECONSTRUCTION_LOSSES
from xrddiff.models import autoencoder, autoregressive, codebook, transformer, unet


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (words.WEIGHTINGS, ("simple", *objectives.WEIGHTINGS)),
        (words.PARAMETERISATIONS, denoisers.PARAMETERISATIONS),
        (words.NOISE_SCHEDULES, schedules.SCHEDULES),
        (words.SAMPLERS, samplers.SAMPLERS),
        (words.SIGMA_SCHEDULES, sampling.LEVELS),
        (words.QUANTIZERS, codebook.QUANTIZERS),
        (words.VIT_SIZES, transformer.VIT_SIZES),
        (words.ORDERS, autoregressive.ORDERS),
        (words.RECONS_LOSSES, RECONSTRUCTION_LOSSES),
        (words.ANNEALING_SHAPES, ANNEALING),
        (words.SIZE_NAMES, autoencoder.SIZES),
        (words.SIZE_NAMES, unet.SIZES),
    ],
)
def test_names_are_those_of_the_modules(names, known):
    assert set(names) == set(known)


@pytest.mark.parametrize("spacing", words.SPACINGS)
def test_every_spacing_is_known(spacing):
    assert len(schedules.vp_timesteps(5, spacing=spacing)) == 5
