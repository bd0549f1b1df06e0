"""The peak finder against peakfinder8 on the built-in still, and where a notebook would be too long: edges, masks, panels, odd input."""

from importlib.resources import files
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import maximum_filter

from xrddiff.core.errors import BadInput
from xrddiff.core.seeds import numpy_rng
from xrddiff.data.frames.frames import make_frames, peaks_table
from xrddiff.data.frames.peak_matching import match_tables
from xrddiff.data.frames.peaks import (
    PEAKFINDER8,
    PeakFinder,
    find_frame_peaks,
    find_peaks,
    radial_bins,
    radius_map,
    robust_background,
    tile_bins,
)
from xrddiff.judge.metrics.peak_scores import score_peaks
from xrddiff.physics.simulation.simulate import simulate


@pytest.fixture(scope="module")
def still():
    with h5py.File(files("xrddiff") / "data" / "samples/cspad_lysozyme_r0015.h5") as file:
        detector = file["entry_1/instrument_1/detector_1"]
        return make_frames(
            file["entry_1/data_1/data"][:],
            units="ADU",
            panels={name: detector[f"panel_{name}"][:] for name in ("origin", "fs", "ss")},
        )


def test_agrees_with_peakfinder8(still):
    """243 peaks of peakfinder8 (see the head of the table): at least 97% of them found within 2 px, at least 97% of ours among them."""
    reference = pd.read_csv(Path(__file__).parent / "peakfinder8_cspad.csv", comment="#").assign(frame=0)
    assert len(reference) == 243
    ours = find_frame_peaks(still, threshold=80, **PEAKFINDER8)
    i, j = match_tables(reference, ours, radius=2.0)
    assert len(i) >= 0.97 * len(reference)
    assert len(i) >= 0.97 * len(ours)
    a, b = reference.iloc[i].reset_index(drop=True), ours.iloc[j].reset_index(drop=True)
    distance = np.hypot(a["fs"] - b["fs"], a["ss"] - b["ss"])
    assert np.median(distance) < 0.03 and distance.quantile(0.95) < 0.1
    assert (a["pixels"] == b["pixels"]).mean() > 0.98  # the same pixels above the same threshold
    assert abs(np.median(b["intensity"] / a["intensity"]) - 1) < 0.02
    assert np.corrcoef(a["intensity"], b["intensity"])[0, 1] > 0.999


def test_no_centroid_strays_from_its_peak(still):
    """The noisy flanks of a weak peak once put centroids up to 9 px away, and one off its panel."""
    peaks = find_frame_peaks(still)
    _, n_ss, n_fs = still["intensity"].shape[1:]
    assert peaks["fs"].between(0, n_fs).all() and peaks["ss"].between(0, n_ss).all()
    nearby = maximum_filter(still["intensity"][0].values, (1, 3, 3))  # the brightest of 3 × 3 pixels
    pixels = nearby[peaks["panel"], peaks["ss"].astype(int), peaks["fs"].astype(int)]
    assert (pixels - peaks["background"] > 3 * peaks["sigma"]).all()


def test_photon_statistics_on_the_still(still):
    """With a gain of 25 ADU per photon the sensitive settings find most of peakfinder8's list and few others, not thousands."""
    reference = pd.read_csv(Path(__file__).parent / "peakfinder8_cspad.csv", comment="#").assign(frame=0)
    ours = find_frame_peaks(still, gain=25, noise=8, poisson_floor=True)
    i, _ = match_tables(reference, ours)
    assert len(i) > 0.94 * len(reference) and len(ours) < 1.3 * len(reference)


def test_strong_neighbours_are_two_peaks():
    """Groups that were not divided lost one strong reflection in seven of these stills, and spoilt the intensities of others."""
    ds = simulate("sim128", range(30))
    truth = peaks_table(ds)
    whole, divided = (find_frame_peaks(ds, split=split) for split in (None, 3.0))
    strong = np.flatnonzero(truth["intensity"] > 300)
    for found, low, high in ((whole, 0.7, 0.9), (divided, 0.93, 1.0)):
        assert low < np.isin(strong, match_tables(truth, found)[0]).mean() < high
    before, after = (score_peaks(truth, found) for found in (whole, divided))
    assert after["precision"] >= before["precision"] - 0.002 and after["intensity_r"] < 0.7 * before["intensity_r"]


def test_panels_are_divided_on_their_own():
    image = np.full((2, 20, 20), 2)
    image[0, 17:, 9:12] = image[1, :3, 9:12] = 50  # they touch in memory, not on the detector
    image[1, 9:12, 4:7] = image[1, 9:12, 8:11] = 50
    image[1, 10, 7] = 20
    peaks = find_peaks(image)
    assert peaks["panel"].tolist() == [0, 1, 1, 1]
    assert np.allclose(peaks["fs"], [10.5, 10.5, 5.5, 9.5], atol=0.2)  # the bridge goes to one of the two


def test_panels_are_separate():
    """A spot cut in two by the border between two panels of a stack is two groups; it is never joined across it."""
    stack = np.full((2, 20, 20), 1.0)
    stack[0, 18:, 8:11] = 40
    stack[1, :2, 8:11] = 40
    table = find_peaks(stack)
    assert table["panel"].tolist() == [0, 1]
    assert (table["pixels"] == 6).all()


def test_positions_are_pixel_centres():
    image = np.ones((32, 32))
    image[10:12, 20:22] = 50  # four equal pixels: their common corner
    table = find_peaks(image, aperture=0)
    assert table[["fs", "ss"]].to_numpy().tolist() == [[21.0, 11.0]]
    assert table["intensity"][0] == pytest.approx(4 * 49)
    assert table["background"][0] == 1


@pytest.mark.parametrize("shape", [(64, 64), (3, 40, 50)])
def test_shift_by_whole_pixels(shape):
    """Moved by whole pixels, a picture has its peaks moved, and nothing else changed."""
    rng = numpy_rng("test", "shift", len(shape))
    image = rng.poisson(2.0, shape).astype(float)
    at = (1, 20, 21) if len(shape) == 3 else (20, 21)
    image[(*at[:-2], slice(at[-2], at[-2] + 2), slice(at[-1], at[-1] + 3))] += 60
    radius = np.zeros(shape)  # one bin: the background does not move
    a, b = find_peaks(image, radius_map=radius), find_peaks(np.roll(image, (5, -4), (-2, -1)), radius_map=radius)
    near = a["snr"].idxmax(), b["snr"].idxmax()
    np.testing.assert_allclose(b.loc[near[1], "fs"] - a.loc[near[0], "fs"], -4, atol=1e-9)
    np.testing.assert_allclose(b.loc[near[1], "ss"] - a.loc[near[0], "ss"], 5, atol=1e-9)
    np.testing.assert_allclose(b.loc[near[1], "intensity"], a.loc[near[0], "intensity"])


def test_integer_and_float_images_agree():
    image = numpy_rng("test", "dtype").poisson(3.0, (64, 64))
    image[30:33, 40:42] += 50
    tables = [
        find_peaks(image.astype(t), center=(32, 32)) for t in (np.int16, np.uint16, np.int32, np.float32, np.float64)
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_masked_pixels_do_not_count():
    rng = numpy_rng("test", "mask")
    image = rng.poisson(3.0, (64, 64)).astype(np.float32)
    image[30:32, 40:42] += 60
    mask = np.ones((64, 64), bool)
    mask[10:20, 10:20] = False
    tables = []
    for value in (0, 1e6, -1e6, np.nan, np.inf):
        spoilt = image.copy()
        spoilt[~mask] = value
        tables.append(find_peaks(spoilt, mask, center=(32, 32)))
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    unmasked = image.copy()
    unmasked[5, 5] = np.nan  # not a number is not a measurement either
    assert len(find_peaks(unmasked, center=(32, 32))) >= 1


def test_per_frame_masks():
    images = numpy_rng("test", "frames").poisson(3.0, (2, 48, 48)).astype(np.float32)
    images[:, 20:22, 30:32] += 60
    mask = np.ones((2, 48, 48), bool)
    mask[1, 15:27, 25:37] = False
    table = find_frame_peaks(make_frames(images, mask=mask, beam_center=(24, 24)))
    near = np.hypot(table["fs"] - 31, table["ss"] - 21) < 1
    assert table["frame"][near].tolist() == [0]


def test_size_limits_and_empty_frames():
    image = np.ones((40, 40))
    image[10, 10] = 30  # one pixel
    image[20:27, 20:27] = 30  # 49 pixels
    image[30:32, 8:10] = 30
    radius = np.zeros((40, 40))
    assert find_peaks(image, radius_map=radius, max_pixels=30)["pixels"].tolist() == [4]
    assert find_peaks(image, radius_map=radius, min_pixels=1, max_pixels=49)["pixels"].tolist() == [1, 49, 4]
    empty = find_peaks(np.zeros((40, 40)), center=(20, 20))
    assert len(empty) == 0 and list(empty) == ["fs", "ss", "intensity", "background", "sigma", "snr", "pixels"]
    assert list(find_peaks(np.zeros((2, 40, 40))))[0] == "panel"


def test_spots_cut_by_the_border():
    """A group in the outermost row alone is dropped, one that reaches inwards is kept."""
    image = np.ones((40, 40))
    image[0, 10:13] = 40
    image[20:22, 38:] = 40
    assert find_peaks(image)["pixels"].tolist() == [4]


def test_pedestal_and_read_noise_come_with_the_frames():
    rng = numpy_rng("test", "adu")
    mu = np.full((4, 64, 64), 2.0)
    mu[:, 20:23, 40:43] += 20
    adu = 30.0 * rng.poisson(mu) + rng.normal(100, 6, mu.shape)
    words = {"units": "ADU", "gain": 30.0, "beam_center": (32, 32), "pedestal": 100.0, "read_noise": 6.0}
    table = find_frame_peaks(make_frames(adu, **words))
    near = np.hypot(table["fs"] - 41.5, table["ss"] - 21.5) < 1
    assert near.sum() == 4 and len(table) <= 5
    assert table["background"][near].mean() == pytest.approx(60, rel=0.1)
    assert table["intensity"][near].mean() == pytest.approx(30 * 180, rel=0.1)
    smooth = find_frame_peaks(make_frames(30 * mu + 100, **words))
    assert len(smooth) == 4


def test_background_is_that_of_a_plain_loop():
    """The sums that are kept up to date give what taking mean and σ over the remaining pixels again and again gives."""
    rng = numpy_rng("test", "loop")
    bins = np.repeat(np.arange(3), 5000)
    values = rng.poisson(np.array([0.5, 4, 60])[bins]) + np.where(rng.random(15000) < 0.01, 300, 0)
    b, sigma, high, above = robust_background(values, bins, 3, 6, poisson_floor=False)
    for i in range(3):
        x = values[bins == i].astype(float)
        keep = x
        for _ in range(10):
            m, s = keep.mean(), keep.std()
            keep = x[(x <= m + 6 * s) & (x >= m - 6 * s)]
        assert b[i] == pytest.approx(keep.mean(), rel=1e-9) and sigma[i] == pytest.approx(keep.std(), rel=1e-6)
        assert high[i] == pytest.approx(m + 6 * s, rel=1e-6)
    assert np.array_equal(above, np.flatnonzero(values > high[bins]))


def test_radii_of_frames(still):
    flat = make_frames(np.zeros((1, 8, 10), np.float32), beam_center=(3.0, 2.5))
    assert radius_map(flat)[2, 3] == pytest.approx(0.5)
    assert radius_map(make_frames(np.zeros((1, 8, 10), np.float32))) is None
    radius = radius_map(still)
    assert radius.shape == (64, 185, 194) and 1100 < radius.max() < 1200


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: find_peaks(np.zeros(5)), "shape"),
        (lambda: find_peaks(np.zeros((5, 5)), radius_map=np.zeros((4, 5))), "radius_map"),
        (lambda: find_peaks(np.zeros((2, 5, 5)), center=(1, 1)), "center"),
        (lambda: find_peaks(np.zeros((5, 5)), np.ones((5, 5))), "mask"),
        (lambda: find_peaks(np.zeros((5, 5)), max_pixels=1), "max_pixels"),
        (lambda: find_peaks(np.zeros((5, 5)), snr=float("nan")), "snr"),
        (lambda: PeakFinder(tile_bins((8, 8)))(np.zeros((8, 9))), "shape"),
        (lambda: find_frame_peaks(make_frames(np.zeros((1, 8, 8), np.float32)), variable="expectd"), "expectd"),
        (lambda: find_frame_peaks(make_frames(np.zeros((1, 8, 8), np.float32)), []), "frame"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(BadInput, match=words) as error:
        call()
    assert "expected" in str(error.value) and "\n" not in str(error.value)


def test_all_pixels_masked_finds_nothing():
    assert len(find_peaks(np.ones((16, 16)), np.zeros((16, 16), bool), center=(8, 8))) == 0


def test_radial_bins_leave_no_thin_ring():
    radius = np.hypot(*(np.mgrid[:40, :60] + 0.5 - 7))
    mask = numpy_rng("test", "bins").random((40, 60)) > 0.5
    bins = radial_bins(radius, mask, min_pixels=30)
    assert np.bincount(bins[mask]).min() >= 30
    assert bins.max() + 1 == len(np.unique(bins))
