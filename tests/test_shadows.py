"""The shadow of beamstop and holder: counting and integrating detectors, single frames and series, measured frames with a mask drawn by hand."""

import numpy as np
import pytest
from conftest import measured
from scipy import ndimage

from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.automask import Automask
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.masks import RULES, chosen_rules
from xrddiff.data.frames.shadows import shadow_of

SIZE, CENTER = (900, 1000), (480.0, 460.0)
ABOUT = {"wavelength": 1.0, "distance": 0.2, "pixel_size": 1e-4, "beam_center": CENTER}


def shadows():
    """Five shadows by name, bool (y, x)."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    dx, dy, t = x - CENTER[0], y - CENTER[1], np.deg2rad(28)
    u, v = dx * np.cos(t) + dy * np.sin(t), -dx * np.sin(t) + dy * np.cos(t)
    qx, qy = abs(dx) - 18, abs(dy) - 10
    return {
        "disc": np.hypot(dx, dy) < 30,
        "straight holder": (np.hypot(dx, dy) < 26) | ((abs(dx) < 9) & (dy > 0)),
        "oblique holder": (np.hypot(dx, dy) < 24) | ((abs(v) < 10) & (u < 0)),
        "rounded rectangle": np.hypot(qx.clip(0), qy.clip(0)) + np.minimum(np.maximum(qx, qy), 0) < 12,
        "beside the centre": np.hypot(dx - 14, dy + 9) < 32,
    }


def light(shadow, level, ring=0.0):
    """Expected photons behind `shadow`; `ring`: a narrow one, as of ice."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    dx, dy = x - CENTER[0], y - CENTER[1]
    r = np.hypot(dx, dy)
    mu = np.exp(-r / 300) + 0.8 * np.exp(-(((r - 280) / 60) ** 2)) + 0.15 + ring * np.exp(-(((r - 130) / 4) ** 2))
    mu *= level * (1 + 0.08 * np.cos(2 * np.arctan2(dy, dx)))
    return mu * ndimage.gaussian_filter(np.where(shadow, np.where(r < 50, 0.05, 0.6), 1.0), 1.2)


def counts(shadow, level, seed=0, ring=0.0):
    rng = np.random.default_rng(seed)
    mu = light(shadow, level, ring)
    spot = 300 * np.exp(-np.add.outer(np.arange(-2, 3) ** 2, np.arange(-2, 3) ** 2) / 2)
    for y, x in rng.integers(10, [SIZE[0] - 10, SIZE[1] - 10], (300, 2)):
        mu[y - 2 : y + 3, x - 2 : x + 3] += spot * rng.random() * (0.2 if shadow[y, x] else 1)
    return rng.poisson(mu)


def shares(found, shadow, known):
    return found[shadow & known].mean(), found[~shadow & known].sum() / (~shadow & known).sum()


@pytest.mark.parametrize("name", list(shadows()))
@pytest.mark.parametrize("level", [10, 60])
def test_a_detector_that_counts(name, level):
    shadow, known = shadows()[name], np.ones(SIZE, bool)
    known[:, 487:494] = known[195:212] = known[407:424] = False
    right, wrong = shares(shadow_of(counts(shadow, level, 1), known, CENTER), shadow, known)
    assert right > 0.95 and wrong < 1e-3


@pytest.mark.parametrize("name", list(shadows()))
def test_a_ccd_with_gain_and_pedestal(name):
    """As those of ADSC: 2 counts a photon, 40 of them without light, noise of reading."""
    shadow, known = shadows()[name], np.ones(SIZE, bool)
    x = np.round(2 * counts(shadow, 60, 2) + 40 + np.random.default_rng(3).normal(0, 3, SIZE)).astype(np.uint16)
    right, wrong = shares(shadow_of(x, known, CENTER, pedestal=True), shadow, known)
    assert right > 0.95 and wrong < 1e-3


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("level", [0.3, 2, 10, 60])
def test_nothing_where_there_is_no_beamstop(level, ring):
    """Neither in the dip of a background nor inside a narrow ring."""
    x, known = counts(np.zeros(SIZE, bool), level, 4, ring), np.ones(SIZE, bool)
    assert not shadow_of(x, known, CENTER).any()
    assert not shadow_of(2 * x + 40, known, CENTER, pedestal=True).any()


def test_a_series_shows_what_a_frame_cannot():
    shadow = shadows()["disc"]
    x = np.random.default_rng(5).poisson(light(shadow, 0.15), (16, *SIZE)).astype(np.int32)
    rule = chosen_rules(["shadow"])
    alone, together = (~np.asarray(Automask(make_frames(x[:n], units="photon", **ABOUT), rule).static) for n in (1, 16))
    assert not alone.any() and together[shadow].mean() > 0.95 and together[~shadow].mean() < 1e-3


def test_it_needs_the_centre_and_one_panel():
    shadow = shadows()["disc"]
    x = counts(shadow, 10).astype(np.int32)[None]
    found = Automask(make_frames(x, units="photon", **ABOUT), chosen_rules(RULES))
    assert found.counts()["shadow"] > 0.95 * shadow.sum()
    without = {k: v for k, v in ABOUT.items() if k != "beam_center"}
    ds = make_frames(x, units="photon", **without, complete=False)
    assert Automask(ds, chosen_rules(["shadow"])).static.all()
    known = np.ones(SIZE, bool)
    assert not shadow_of(x[0], known, (-5.0, 20.0)).any() and not shadow_of(x[0], ~known, CENTER).any()
    assert not shadow_of(x[0, :100, :100], known[:100, :100], (50.0, 50.0)).any()


def test_thaumatin_on_a_pilatus():
    """The mask was drawn by hand: a disc, its head and the holder to the left, above the gap."""
    file = measured("thaumatin_grid_01.cbf.bz2")
    ds = open_frames(file)
    y, x = np.mgrid[:2527, :2463] + 0.5
    drawn = (np.hypot(x - 1266.5, y - 1302.5) < 33) | ((y > 1238) & (y < 1262) & (x < 1309))
    drawn |= (y > 1231) & (y < 1262) & (x > 1240) & (x < 1309)
    rest = open_frames(file, automask=[r for r in RULES if r != "shadow"])["mask"].values
    found = rest & ~ds["mask"].values
    right, wrong = shares(found, drawn, rest)
    assert right > 0.95 and wrong < 1e-3
