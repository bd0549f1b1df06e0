"""The peak finder against peakfinder8 on the built-in still, and where a notebook would be too long: edges, masks, panels, odd input."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pandas as pd
import pytest
from conftest import measured, need
from scipy.ndimage import maximum_filter

import xrddiff as xd
from xrddiff.core.errors import BadInput
from xrddiff.core.seeds import numpy_rng
from xrddiff.data.frames.backgrounds import BinnedPixels, image_background, robust_background
from xrddiff.data.frames.frames import frame_mask, make_frames, peaks_table
from xrddiff.data.frames.peak_matching import match_tables
from xrddiff.data.frames.peaks import (
    PEAKFINDER8,
    PeakFinder,
    background_bins,
    find_frame_peaks,
    find_peaks,
    make_finder,
    radial_bins,
    radius_map,
    tile_bins,
)
from xrddiff.judge.metrics.reconstruction import score_peaks
from xrddiff.physics.simulation.experiments import find_experiment
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


@pytest.mark.parametrize(("exact", "same"), [(True, 0.98), (False, 0.96)])
def test_agrees_with_peakfinder8(still, exact, same):
    """243 peaks of peakfinder8 (see the head of the table): at least 97% of them found within 2 px, at least 97% of ours among them."""
    reference = pd.read_csv(Path(__file__).parent / "peakfinder8_cspad.csv", comment="#").assign(frame=0)
    assert len(reference) == 243
    ours = find_frame_peaks(still, threshold=80, **PEAKFINDER8, exact=exact)
    i, j = match_tables(reference, ours, radius=2.0)
    assert len(i) >= 0.97 * len(reference)
    assert len(i) >= 0.97 * len(ours)
    a, b = reference.iloc[i].reset_index(drop=True), ours.iloc[j].reset_index(drop=True)
    distance = np.hypot(a["fs"] - b["fs"], a["ss"] - b["ss"])
    assert np.median(distance) < 0.03 and distance.quantile(0.95) < 0.1
    assert (a["pixels"] == b["pixels"]).mean() > same  # the same pixels above the same threshold
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


def same_tables(a, b):
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def sized(n):
    """Frames of `sim-522` on n² of its pixels, at the same angles."""
    experiment = find_experiment("sim-522")
    k, detector = n / 512, experiment.detector
    center = tuple(k * c for c in detector.beam_center)
    detector = replace(detector, shape=(n, n), distance=k * detector.distance, beam_center=center)
    return replace(experiment, detector=detector, beam=replace(experiment.beam, fluence=k * experiment.beam.fluence))


@pytest.mark.parametrize("kind", [np.int32, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("settings", [{}, PEAKFINDER8, {"min_pixels": 1, "split": None}])
def test_counted_photons_give_the_peaks_of_summed_ones(kind, settings):
    """For photons a histogram of every bin is exact: the same table, bit for bit."""
    ds = simulate("sim-522", range(2))
    images = ds["intensity"].values.astype(kind)
    bins, mask = radial_bins(radius_map(ds), frame_mask(ds)), frame_mask(ds)
    for image in images:
        counted, summed = (PeakFinder(bins, mask, **settings, exact=exact)(image) for exact in (False, True))
        same_tables(counted, summed)
        assert len(counted) > 10


def test_a_large_frame_is_counted_and_its_peaks_are_those_of_summed_pixels():
    ds = simulate(sized(1024), [0])
    counted, again, summed = (find_frame_peaks(ds, exact=exact) for exact in (False, False, True))
    same_tables(counted, again)
    same_tables(counted, summed)
    background = make_finder(ds).background(ds["intensity"].values[0])
    assert background.finite is None and len(background.above) > 1000


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_counted_units_of_a_detector_give_the_peaks_of_summed_ones(still, kind):
    """On the CSPAD still columns are 4 ADU wide, a fifth of σ: at least .99 of the peaks are the same."""
    ds = still.assign(intensity=still["intensity"].astype(kind))
    for settings in ({}, PEAKFINDER8 | {"threshold": 80}, {"gain": 25, "noise": 8, "poisson_floor": True}):
        counted, summed = (find_frame_peaks(ds, **settings, exact=exact) for exact in (False, True))
        i, j = match_tables(summed, counted)
        assert min(len(i) / len(summed), len(i) / len(counted)) >= 0.99
        a, b = (table[["fs", "ss"]].to_numpy()[k] for table, k in ((summed, i), (counted, j)))
        assert np.hypot(*(a - b).T).max() < 0.5 and np.median(np.hypot(*(a - b).T)) < 1e-6


@pytest.mark.parametrize("name", ["thaumatin_grid_01.cbf.bz2", "thermolysin_cspad_601.cbf"])
def test_measured_frames_have_the_peaks_of_summed_pixels(name):
    """At least .99 of the peaks are those of the sums; photons have all."""
    path = measured(name)
    if "cspad" in name:
        need("pycbf")
    ds = xd.open_frames(path)
    image, radius, photons = ds["intensity"].values[0], radius_map(ds), ds["intensity"].attrs["units"] == "photon"
    mask = (
        image >= 0 if photons else np.ones(image.shape, bool)
    )  # without a look at what is suspicious, which takes long
    bins = background_bins(mask, radius)
    finders = [PeakFinder(bins, mask, poisson_floor=photons, exact=exact) for exact in (False, True)]
    counted, summed = (finder(image).assign(frame=0) for finder in finders)
    i, _ = match_tables(summed, counted)
    assert len(summed) > 200 and min(len(i) / len(summed), len(i) / len(counted)) >= 0.99
    if photons:
        same_tables(counted, summed)


def large(rng, mean=3.0):
    """A frame that is large enough to be counted, with three peaks, and its bins."""
    image = rng.poisson(mean, (520, 640)).astype(np.float32)
    for y, x in ((100, 200), (300, 500), (400, 90)):
        image[y : y + 3, x : x + 3] += 60
    return image, radial_bins(np.hypot(*(np.mgrid[:520, :640] + 0.5 - 250)))


@pytest.mark.parametrize("value", [0, 1e9, -1e9, np.nan, np.inf, -np.inf])
def test_what_is_masked_or_no_number_does_not_count_in_large_frames(value):
    image, bins = large(numpy_rng("test", "large"))
    mask = np.ones(image.shape, bool)
    mask[:, 300:320] = mask[40:60] = False
    clean = PeakFinder(bins, mask, exact=True)(image)
    image[~mask] = value
    finder = PeakFinder(bins, mask)
    same_tables(finder(image), clean)
    assert len(clean) >= 3
    if not np.isfinite(value):  # and also where no mask says so
        same_tables(PeakFinder(bins)(image), clean)
        same_tables(PeakFinder(bins, exact=True)(image), clean)


@pytest.mark.parametrize("value", [0, 7, -3, 2.5, 65535])
def test_frames_of_one_value_have_no_peaks(value):
    for kind in (np.int32, np.uint16, np.float32, np.float64):
        image = np.full((520, 640), value).astype(kind)
        bins = large(numpy_rng("test", "large"))[1]
        for exact in (False, True):
            background = PeakFinder(bins, exact=exact, poisson_floor=False).background(image)
            assert len(background.above) == 0 and np.allclose(background.b, image[0, 0])
        assert len(PeakFinder(bins)(image)) == 0


def test_frames_that_no_histogram_fits_are_summed():
    """Values over many orders of magnitude, all masked, nearly all not a number: the same as sums."""
    rng = numpy_rng("test", "wide")
    image, bins = large(rng)
    wide = image * 10 ** rng.uniform(-3, 5, image.shape).astype(np.float32)
    nothing = np.full_like(image, np.nan)
    few = nothing.copy()
    few[200:230] = image[200:230]
    for frame in (wide, nothing, few, image > 8, image.astype(np.uint8), image.astype(np.float16), image.astype(">i4")):
        counted, summed = (PeakFinder(bins, exact=exact) for exact in (False, True))
        same_tables(counted(frame), summed(frame))
    assert len(PeakFinder(bins, np.zeros(bins.shape, bool))(image)) == 0


def test_signed_and_offset_values_are_counted():
    """Values below zero and on a pedestal, in whole steps: the same background as summed, to the last bit."""
    rng = numpy_rng("test", "pedestal")
    image, bins = large(rng)
    pixels = BinnedPixels(bins.ravel(), int(bins.max()) + 1)
    for offset, kind in ((-200, np.int16), (30_000, np.uint16), (-4, np.int64), (-1000, np.float32)):
        values = (image.ravel() + offset).astype(kind)
        values[::9000] = 0 if kind is np.uint16 else -30_000
        counted, summed = (
            image_background(values, pixels, 6, poisson_floor=False, exact=exact) for exact in (False, True)
        )
        for one, other in zip(counted[:3], summed[:3], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9)
        assert np.array_equal(counted.above, summed.above)


def test_tiny_frames():
    for shape in ((1, 1), (1, 9), (2, 3), (2, 1, 1)):
        for exact in (False, True):
            assert len(PeakFinder(tile_bins(shape), exact=exact)(np.ones(shape))) == 0


@pytest.mark.parametrize(
    ("size", "kind", "scale"), [(128, np.int32, 1), (512, np.int32, 1), (512, np.int32, 40), (512, np.float32, 1)]
)
def test_images_searched_together_have_the_peaks_of_each(size, kind, scale):
    ds = simulate("sim128" if size == 128 else "sim-522", range(70 if size == 128 else 5))
    noise = numpy_rng("test", "together").integers(-20, 20, ds["intensity"].shape) if scale > 1 else 0
    images = (ds["intensity"].values * scale + noise).astype(kind)
    finder = PeakFinder(radial_bins(radius_map(ds), frame_mask(ds)), frame_mask(ds), gain=scale)
    together, alone = finder.columns_of(images), [finder.columns(image) for image in images]
    assert len(together["frame"]) > 100
    for name in alone[0]:
        assert np.array_equal(together[name], np.concatenate([columns[name] for columns in alone])), name
