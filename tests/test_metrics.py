"""Peak and profile scores against plain formulas, SciPy and pyFAI; masks, merging, odd input."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import need
from scipy.optimize import linear_sum_assignment

from xrddiff.core.errors import BadInput
from xrddiff.core.seeds import numpy_rng
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.noise import draw_counts
from xrddiff.data.frames.peak_matching import match_peaks, match_tables
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.judge.metrics.radial_profiles import (
    PixelScore,
    RadialProfile,
    intensity_correlation,
    masked_error,
    poisson_deviance,
    profile_distance,
    radial_profile,
    score_pixels,
)
from xrddiff.judge.metrics.reconstruction import PeakScore, score_peaks


def spots(n=6, size=96, level=2.0, seed=0):
    """Frames with a beam centre and a handful of spots, and their expected counts."""
    rng = numpy_rng("test metrics", seed)
    y, x = np.mgrid[:size, :size] + 0.5
    mu = np.full((n, size, size), level)
    for image in mu:
        for px, py, counts in zip(*rng.uniform(4, size - 4, (2, 15)), rng.exponential(200, 15), strict=True):
            image += counts / 2 / np.pi * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 2)
    counts = rng.poisson(mu).astype(np.float32)
    return make_frames(counts, beam_center=(size / 2, size / 2), variables={"expected": mu.astype(np.float32)})


@pytest.fixture(scope="module")
def frames():
    return spots()


# ---------------------------------------------------------------- matching


def test_matching_is_the_best_there_is():
    """As SciPy's assignment of all against all, with pairs beyond the radius too dear to take."""
    rng = numpy_rng("test metrics", "assignment")
    for n, m, size in ((40, 50, 20), (80, 60, 12), (3, 90, 6)):
        a, b = rng.uniform(0, size, (n, 2)), rng.uniform(0, size, (m, 2))
        i, j = match_peaks(a, b, 2.0)
        d = np.hypot(*(a[:, None] - b).transpose(2, 0, 1))
        row, col = linear_sum_assignment(np.where(d <= 2, d - 1e4, 0))
        real = d[row, col] <= 2
        assert len(i) == real.sum()
        assert d[i, j].max() <= 2 and len(set(i)) == len(i) and len(set(j)) == len(j)
        assert d[i, j].sum() == pytest.approx(d[row, col][real].sum(), abs=1e-9)
        assert (np.diff(i) > 0).all()


def test_matching_is_symmetric_and_takes_empty_lists():
    rng = numpy_rng("test metrics", "symmetric")
    a, b = rng.uniform(0, 15, (30, 2)), rng.uniform(0, 15, (30, 2))
    assert set(zip(*match_peaks(a, b), strict=True)) == {(i, j) for j, i in zip(*match_peaks(b, a), strict=True)}
    for x, y in ((np.zeros((0, 2)), a), (a, np.zeros((0, 2))), (np.zeros((0, 2)),) * 2):
        assert [len(v) for v in match_peaks(x, y)] == [0, 0]
    i, j = match_peaks(a, a)
    assert (i == j).all() and len(i) == 30
    i, _ = match_peaks([[0.0, 0.0]], [[2.0, 0.0]], 2.0)
    assert len(i) == 1  # the radius itself still counts


def test_frames_and_panels_are_apart():
    a = pd.DataFrame({"frame": [0, 0, 1], "panel": [0, 1, 0], "fs": [5.0, 5, 5], "ss": [5.0, 5, 5]})
    b = a.iloc[::-1].reset_index(drop=True)
    i, j = match_tables(a, b)
    assert i.tolist() == [0, 1, 2] and j.tolist() == [2, 1, 0]
    assert len(match_tables(a.iloc[:1], a.iloc[1:])[0]) == 0
    with pytest.raises(BadInput, match="'ss'.*expected"):
        match_tables(a, b.drop(columns="ss"))


# ---------------------------------------------------------------- peak scores


def test_score_by_hand():
    reference = pd.DataFrame({"fs": [10.0, 20, 30], "ss": [10.0, 20, 30], "intensity": [10.0, 20, 40]})
    test = pd.DataFrame({"fs": [10.3, 20, 60, 70], "ss": [10.4, 20, 60, 70], "intensity": [12.0, 18, 5, 5]})
    s = PeakScore().update(reference, test).compute()
    assert (s["n_reference"], s["n_test"], s["n_matched"]) == (3, 4, 2)
    assert s["precision"] == 0.5 and s["recall"] == pytest.approx(2 / 3) and s["f1"] == pytest.approx(4 / 7)
    assert s["centroid_px"] == pytest.approx(0.25)
    k = (10 * 12 + 20 * 18) / (12**2 + 18**2)
    assert s["intensity_scale"] == pytest.approx(k)
    assert s["intensity_r"] == pytest.approx((abs(10 - 12 * k) + abs(20 - 18 * k)) / 30)


def test_merge_is_associative_and_one_pass():
    rng = numpy_rng("test metrics", "merge")
    n = 300
    a = pd.DataFrame(
        {
            "frame": rng.integers(0, 12, n),
            "fs": rng.uniform(0, 99, n),
            "ss": rng.uniform(0, 99, n),
            "intensity": rng.exponential(1e3, n),
        }
    )
    b = a.assign(fs=a["fs"] + rng.normal(0, 1, n), intensity=a["intensity"] * rng.lognormal(0, 0.3, n))[: n - 40]
    whole = PeakScore().update(a, b).compute()
    parts = [PeakScore().update(a[a["frame"] == f], b[b["frame"] == f]) for f in range(12)]
    order = rng.permutation(12)
    chain = PeakScore()
    for k in order:
        chain = chain.merge(parts[k])
    tree = list(parts)
    while len(tree) > 1:
        tree = [x.merge(y) for x, y in zip(tree[::2], tree[1::2], strict=False)] + tree[len(tree) // 2 * 2 :]
    assert whole == chain.compute() == tree[0].compute()  # bit for bit
    assert parts[0].compute()["n_reference"] == (a["frame"] == 0).sum()  # merging leaves its parts alone
    with pytest.raises(BadInput, match="radi"):
        PeakScore(2).merge(PeakScore(3))


def test_state_goes_through_json():
    import json

    table = pd.DataFrame({"fs": [1.1, 9.7], "ss": [2.3, 8.1], "intensity": [7.7, 0.1 + 0.2]})
    score = PeakScore(1.5).update(table, table.assign(intensity=[1 / 3, 2.0]))
    assert PeakScore.from_state(json.loads(json.dumps(score.state()))).compute() == score.compute()


def test_no_peaks_no_numbers():
    none = pd.DataFrame({"fs": [], "ss": [], "intensity": []})
    one = pd.DataFrame({"fs": [1.0], "ss": [1.0], "intensity": [5.0]})
    s = PeakScore().compute()
    assert np.isnan(s["precision"]) and np.isnan(s["f1"]) and np.isnan(s["intensity_cc"])
    s = PeakScore().update(one, none).compute()
    assert s["recall"] == 0 and s["f1"] == 0 and np.isnan(s["precision"])
    s = PeakScore().update(one, one).compute()
    assert s["f1"] == 1 and s["intensity_r"] == 0 and np.isnan(s["intensity_cc"])
    s = PeakScore().update(one.drop(columns="intensity"), one).compute()
    assert s["f1"] == 1 and np.isnan(s["intensity_r"])


def test_score_peaks_of_frames(frames):
    same = score_peaks(frames, frames)
    assert same["f1"] == 1 and same["centroid_px"] == 0 and same["intensity_r"] == 0
    table = find_frame_peaks(frames)
    assert score_peaks(table, frames) == same == score_peaks(frames, table)
    floor = score_peaks(frames, frames, variable="expected", draw=3)
    assert 0.8 < floor["f1"] < 1 and floor["intensity_cc"] > 0.98
    assert floor == score_peaks(frames, frames, variable="expected", draw=3, block=2)  # blocks do not matter
    assert floor != score_peaks(frames, frames, variable="expected", draw=4)
    assert score_peaks(frames, frames, finder={"snr": 30})["n_reference"] < same["n_reference"]
    bare = xr.Dataset({"intensity": frames["intensity"]})  # as a model may give it back
    assert score_peaks(frames, bare)["f1"] == 1
    with pytest.raises(BadInput, match="shape"):
        score_peaks(frames, frames.isel(frame=slice(3)))
    with pytest.raises(BadInput, match="draw"):
        score_peaks(frames, table, draw=1)


def test_draws():
    mu = np.array([0.5, 4.0, 30.0])[:, None, None] * np.ones((3, 64, 64))
    ds = make_frames((20 * mu + 100).astype(np.float32), units="ADU", gain=20.0, pedestal=100.0)
    x = (draw_counts(ds, 5)["intensity"].values - 100) / 20
    assert np.array_equal(x, np.rint(x))
    np.testing.assert_allclose(x.mean((1, 2)), [0.5, 4, 30], rtol=0.05)
    np.testing.assert_allclose(x.var((1, 2)), [0.5, 4, 30], rtol=0.1)
    alone = draw_counts(ds.isel(frame=[2]), 5, first=2)["intensity"].values
    assert np.array_equal(alone[0], draw_counts(ds, 5)["intensity"].values[2])
    negative = make_frames(np.full((1, 4, 4), -3.0, np.float32))
    assert (draw_counts(negative)["intensity"] == 0).all()


# ---------------------------------------------------------------- profiles


def test_profile_is_pyfai_s():
    """Elementwise against integrate1d without pixel splitting, on the same q map, bins and mask."""
    need("pyFAI")
    from pyFAI.detectors import Detector
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    rng = numpy_rng("test metrics", "pyfai")
    detector = Detector(pixel1=172e-6, pixel2=172e-6, max_shape=(195, 243))
    ai = AzimuthalIntegrator(dist=0.1, poni1=0.0161, poni2=0.0207, detector=detector, wavelength=1.2e-10)
    image = rng.poisson(40.0, (195, 243)).astype(np.float32)
    mask = rng.random(image.shape) > 0.2
    q = ai.array_from_unit((195, 243), "center", "q_A^-1", scale=True)
    edges = np.linspace(0, 2.2, 121)  # pyFAI counts what lies just below its range to the first bin: here nothing does
    result = ai.integrate1d(
        np.where(mask, image, -7), 120, unit="q_A^-1", mask=~mask, radial_range=(edges[0], edges[-1]),
        method=("no", "histogram", "cython"), correctSolidAngle=False,
    )  # fmt: skip
    # a pixel within rounding of an edge may go either way: none is here
    assert np.abs(q.ravel()[:, None] - edges).min() > 1e-9
    centres, mean, count = radial_profile(image, mask, q, edges)
    np.testing.assert_allclose(centres, result.radial, rtol=1e-6)
    assert np.array_equal(count, np.asarray(result.count).astype(int))
    np.testing.assert_allclose(np.nan_to_num(mean), result.intensity, rtol=1e-6)  # pyFAI has 0 for empty bins


def test_profile_of_frames_masks_and_stacks():
    rng = numpy_rng("test metrics", "stack")
    radius = rng.uniform(0, 50, (3, 20, 30))
    images = rng.poisson(5.0, (4, 3, 20, 30))
    masks = rng.random(images.shape) > 0.3
    centres, mean, count = radial_profile(images, masks, radius, 10)
    assert mean.shape == count.shape == (4, 10) and centres.shape == (10,)
    for image, mask, m, c in zip(images, masks, mean, count, strict=True):
        one = radial_profile(image, mask, radius, 10)
        assert np.array_equal(one[1], m) and np.array_equal(one[2], c)
    assert count.sum() == masks.sum()  # every valid pixel is in a bin, the farthest one too
    spoilt = np.where(masks, images, np.nan)
    assert np.array_equal(radial_profile(spoilt, masks, radius, 10)[1], mean)
    inner = radial_profile(images, masks, radius, np.array([10.0, 20, 30]))
    assert inner[2].sum() == (masks & (radius >= 10) & (radius <= 30)).sum()
    empty = radial_profile(images[0], np.zeros_like(masks[0]), radius, 4)
    assert np.isnan(empty[1]).all() and (empty[2] == 0).all()


def test_profiles_merge():
    rng = numpy_rng("test metrics", "profiles")
    radius = np.hypot(*(np.mgrid[:40, :50] - 19.7))
    images, masks = rng.poisson(5.0, (9, 40, 50)), rng.random((9, 40, 50)) > 0.4
    whole = RadialProfile(radius, 12).update(images, masks)
    parts = [RadialProfile(radius, 12).update(i, m) for i, m in zip(images, masks, strict=True)]
    left, right = parts[0], parts[-1]
    for k in range(1, 9):
        left, right = left.merge(parts[k]), parts[8 - k].merge(right)
    for a, b, c in zip(whole.compute(), left.compute(), right.compute(), strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)  # counts are whole numbers: exact
    with pytest.raises(BadInput, match="bin"):
        whole.merge(RadialProfile(radius, 13))


def test_profile_distances():
    p, n = np.array([1.0, 2, 4, np.nan]), np.array([10, 20, 5, 0])
    assert profile_distance(p, p, n) == 0
    assert profile_distance(p, 0.5 * p, n) == pytest.approx(0.5)
    assert profile_distance(p, 3 * p, n, scaled=True) == pytest.approx(0, abs=1e-15)
    assert profile_distance(p, np.array([1.0, 2, np.nan, 9]), n) == 0  # what one of them lacks is left out
    assert profile_distance(p, np.array([2.0, 2, 4, 0]), n) == pytest.approx(10 / 70)
    assert profile_distance(np.stack([p, p]), np.stack([p, 2 * p]), n).tolist() == [0, 1]
    with pytest.raises(BadInput, match="same bins"):
        profile_distance(p, p[:2])


# ---------------------------------------------------------------- pixels


def test_pixel_scores_by_formula():
    rng = numpy_rng("test metrics", "pixels")
    mu = rng.uniform(0.1, 30, (5, 20, 30))
    x = rng.poisson(mu)
    mask = rng.random((5, 20, 30)) > 0.25
    a, b = x[mask].astype(float), mu[mask]
    assert masked_error(x, mu, mask) == pytest.approx({"mse": ((a - b) ** 2).mean(), "mae": np.abs(a - b).mean()})
    assert intensity_correlation(x, mu, mask) == pytest.approx(np.corrcoef(a, b)[0, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        deviance = 2 * (np.where(a > 0, a * np.log(a / b), 0) - a + b)
    assert poisson_deviance(x, mu, mask) == pytest.approx(deviance.mean())
    spoilt, holes = np.where(mask, x, -9999), np.where(mask, mu, np.nan)
    whole = PixelScore().update(x, mu, mask).compute()
    assert PixelScore().update(spoilt, holes, mask).compute() == whole
    assert masked_error(spoilt, holes, mask) == masked_error(x, mu, mask)
    parts = [PixelScore().update(*v) for v in zip(x, mu, mask, strict=True)]
    merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3].merge(parts[4]))).compute()
    assert merged == pytest.approx(whole, rel=1e-12)


def test_large_means_cost_no_digits():
    rng = numpy_rng("test metrics", "large")
    a = 1e8 + rng.normal(size=(8, 1000))
    b = a + rng.normal(size=a.shape)
    score = PixelScore()
    for u, v in zip(a, b, strict=True):
        score.update(u, v)
    assert score.compute()["correlation"] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], rel=1e-6)


def test_integer_frames_do_not_wrap():
    a, b = np.array([[0, 5]], np.uint16), np.array([[3, 1]], np.uint16)
    assert masked_error(a, b) == {"mse": 12.5, "mae": 3.5}


def test_deviance_of_hopeless_and_negative_values():
    assert poisson_deviance([3.0], [0.0]) == pytest.approx(2 * (3 * np.log(3 / 1e-3) - 3 + 1e-3))
    assert poisson_deviance([3.0], [-5.0]) == poisson_deviance([3.0], [0.0])
    assert poisson_deviance([-1.0], [2.0]) == 4
    assert np.isnan(poisson_deviance([1.0], [1.0], np.array([False])))
    for call in (masked_error, intensity_correlation, poisson_deviance):
        with pytest.raises(BadInput, match="mask"):
            call(np.zeros((3, 3)), np.zeros((3, 3)), np.ones((2, 3), bool))
        with pytest.raises(BadInput, match="same shape"):
            call(np.zeros((3, 3)), np.zeros((3, 2)))


def test_score_pixels_of_frames(frames):
    mask = np.ones(frames["intensity"].shape[1:], bool)
    mask[10:20] = False
    spoilt = frames.assign(
        intensity=(
            frames["intensity"].dims,
            np.where(mask, frames["intensity"].values, 1e6),
            frames["intensity"].attrs,
        ),
        mask=(("y", "x"), mask),
    )
    a = score_pixels(spoilt, frames, variable="expected")
    b = score_pixels(frames.assign(mask=(("y", "x"), mask)), spoilt, variable="expected")
    assert a == b and a["n_pixels"] == mask.sum() * len(frames["frame"])
    assert 0.9 < a["poisson_deviance"] < 1.3 and a["profile_distance"] < 0.03 < a["profile_distance_frame"] < 0.2
    adu = frames.assign(
        intensity=(frames["intensity"].dims, 5 * frames["intensity"].values + 10, {"units": "ADU", "gain": 5.0}),
        expected=5 * frames["expected"] + 10,
    ).assign_attrs(pedestal=10.0)
    c, d = score_pixels(adu, adu, variable="expected"), score_pixels(frames, frames, variable="expected")
    assert c["poisson_deviance"] == pytest.approx(d["poisson_deviance"], rel=1e-5)
    assert c["profile_distance"] == pytest.approx(d["profile_distance"], rel=1e-4)
    nowhere = frames.assign_attrs()
    del nowhere.attrs["beam_center"]
    assert np.isnan(score_pixels(nowhere, nowhere)["profile_distance"])
