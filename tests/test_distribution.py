"""Distances between sets: order, workers, masks, detectors and panels; labels, copies, recovery, and what is refused."""

import io
from multiprocessing import get_context

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from xrddiff.core.errors import BadInput
from xrddiff.core.plugins import plugin_scope
from xrddiff.core.registry import forget, register, registering_as
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.labels import (
    SYSTEMS,
    crystal_system,
    frame_resolution,
    label_problem,
    label_value,
    read_label,
    with_labels,
)
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.metrics.baselines import with_intensity
from xrddiff.judge.metrics.copies import find_copies
from xrddiff.judge.metrics.distribution import (
    DETAILS,
    DISTANCES,
    compare_sets,
    floor,
    ratio_table,
    set_distances,
    wasserstein,
)
from xrddiff.judge.metrics.diversity import (
    PAIRED,
    block_means,
    class_recovery,
    distances_within,
    frame_distances,
    ratio_interval,
    wilson_interval,
)
from xrddiff.judge.metrics.reconstruction import row_names, score_frames
from xrddiff.judge.metrics.set_summaries import Ruler, SetSummary
from xrddiff.judge.views.plots import png
from xrddiff.judge.views.samples import plot_distribution, plot_ratios, show_denoising, show_samples
from xrddiff.physics.simulation.simulate import simulate


@pytest.fixture(scope="module")
def real():
    return simulate("sim128", range(48), expected=True, truth=False)


@pytest.fixture(scope="module")
def ruler(real):
    return Ruler(real)


@pytest.fixture(scope="module")
def whole(real, ruler):
    return ruler.measure(real)


def equal(a, b):
    return a.key == b.key and all(np.array_equal(v, b.rows()[name], equal_nan=True) for name, v in a.rows().items())


def in_a_worker(rows):
    frames = simulate("sim128", rows.tolist(), expected=True, truth=False)
    summary = Ruler(frames).measure(frames, numbers=rows, draw=3, variable="expected")
    out = io.BytesIO()
    np.savez(out, **summary.state())
    return out.getvalue()


def test_any_batch_order_and_any_worker_gives_the_same_bits(real, ruler):
    expected = ruler.measure(real, draw=3, variable="expected")
    assert equal(expected, ruler.measure(real, draw=3, variable="expected", block=7))
    rows = np.random.default_rng(0).permutation(48)
    parts = [
        ruler.measure(select_frames(real, r), numbers=r, draw=3, variable="expected") for r in np.array_split(rows, 5)
    ]
    assert equal(expected, parts[2].merge(*parts[:2], *parts[3:]))
    with get_context("spawn").Pool(1) as pool:
        saved = [in_a_worker(rows[:20]), pool.apply(in_a_worker, (rows[20:],))]
    states = [SetSummary.from_state(np.load(io.BytesIO(s), allow_pickle=False)) for s in saved]
    assert equal(expected, states[1].merge(states[0]))
    found = set_distances(expected, states[1].merge(states[0]))
    assert found.pop("kernel") < 0  # without bias: pairs of a frame with itself count in one term only
    assert found == dict.fromkeys((d for d in DISTANCES + DETAILS if d != "kernel"), 0.0)


def test_samples_are_numbered_by_their_variable(real, ruler):
    some = select_frames(real, [5, 9]).assign(sample=("frame", [5, 9]))
    a = ruler.measure(some, draw=1, variable="expected")
    b = ruler.measure(real, draw=1, variable="expected").take([5, 9])
    assert a.number.tolist() == [5, 9] and equal(a, b)


def test_masked_pixels_are_not_looked_at(real, ruler, whole):
    x = real["intensity"].values.astype(np.float32)
    x[:, ~real["mask"].values] = np.nan
    assert equal(whole, ruler.measure(with_intensity(real, x)))
    x[:, ~real["mask"].values] = 1e6
    assert equal(whole, ruler.measure(with_intensity(real, x)))
    # a mask per frame that says the same
    own = real.assign(mask=(("frame", "y", "x"), np.broadcast_to(real["mask"].values, x.shape)))
    assert equal(whole, ruler.measure(own))


def test_frames_with_their_own_masks_meet_at_the_pixels_they_have(real):
    mask = np.broadcast_to(real["mask"].values, real["intensity"].shape).copy()
    mask[::2, :64], mask[1::3, :, :40] = False, False
    own = real.assign(mask=(("frame", "y", "x"), mask))
    summary = Ruler(own).measure(own)
    assert (summary.pixels.sum(1) == mask.sum((1, 2))).all() and (summary.histogram.sum(1) == mask.sum((1, 2))).all()
    row = compare_sets(summary.take(slice(0, 24)), summary.take(slice(24, 48)), n=20, splits=2)
    assert all(np.isfinite(row[name]) for name in DISTANCES + DETAILS)


def test_a_common_mask_is_used_for_both_sets(real):
    less = real["mask"].values.copy()
    less[:, :30] = False
    test = with_intensity(real.assign(mask=(("y", "x"), less)), np.where(less, real["intensity"].values, 77))
    row = compare_sets(real, test, n=48, splits=1)
    assert all(row[name] == 0 for name in DISTANCES)


def test_readings_are_those_of_the_detector(real, ruler, whole):
    x = real["intensity"].values + np.random.default_rng(1).uniform(-0.4, 0.4, real["intensity"].shape)
    assert equal(whole, ruler.measure(with_intensity(real, x)))  # whole photons, none below zero
    flat = make_frames(np.full((2, 64, 64), 70000.3, np.float32), beam_center=(32, 32), saturation=65535)
    assert Ruler(flat).measure(flat).profile.max() == 65535


def test_integrating_detector_draws_with_gain_and_pedestal():
    real = simulate("sim-422", range(4), expected=True, truth=False)
    shifted = real.assign(intensity=real["intensity"] + 100, expected=real["expected"] + 100).assign_attrs(
        pedestal=100.0
    )
    shifted["intensity"].attrs = real["intensity"].attrs
    a, b = (Ruler(f).measure(f, draw=2, variable="expected") for f in (real, shifted))
    # float32 has fewer places behind the point above the pedestal: a few draws turn out otherwise
    assert np.allclose(a.profile, b.profile, rtol=2e-3, equal_nan=True) and np.abs(a.peaks - b.peaks).max() <= 1
    measured = Ruler(real).measure(real)
    again = a.profile[np.isfinite(a.profile)] - measured.profile[np.isfinite(measured.profile)]
    assert abs(again.mean()) < 0.5  # ADU
    assert np.median(np.abs(a.peaks - measured.peaks) / measured.peaks.clip(1)) < 0.15


def test_panels_and_frames_without_a_beam_centre():
    rng = np.random.default_rng(0)
    stack = make_frames(rng.poisson(4.0, (6, 2, 40, 70)))
    summary = Ruler(stack).measure(stack)
    assert np.isnan(summary.radii).all() and summary.pixels.sum() == stack["intensity"].size
    tile = stack["intensity"].values[3, 1, :20, 35:]
    assert stack["intensity"].values[3].mean() == pytest.approx((summary.profile[3] * summary.pixels[3]).sum() / 5600)
    assert tile.size and summary.blocks.shape == (6, 2 * 20 * 35)
    row = compare_sets(summary.take([0, 1, 2]), summary.take([3, 4, 5]), n=3, splits=1)
    assert np.isfinite([row[name] for name in DISTANCES]).all()


def test_wasserstein_of_any_sizes_and_holes_is_scipys():
    rng = np.random.default_rng(2)
    for n, m in ((1, 1), (3, 7), (12, 18), (50, 49)):
        a, b = rng.integers(0, 5, (n, 4, 2)).astype(float), rng.normal(size=(m, 4, 2))
        if n > 1:
            a[0, 1, 1], b[:2, 2, 0] = np.nan, np.nan
        direct = [
            [wasserstein_distance(*(c[np.isfinite(c)] for c in (a[:, i, j], b[:, i, j]))) for j in range(2)]
            for i in range(4)
        ]
        assert np.allclose(wasserstein(a, b), direct)
    assert np.isnan(wasserstein(np.full((3, 1), np.nan), np.zeros((2, 1)))).all()


def test_splits_are_keyed_and_the_reference_is_the_same_for_all_tests(whole):
    a, b = whole.take(slice(0, 24)), whole.take(slice(24, 48))
    assert compare_sets(a, b, n=10, splits=4) == compare_sets(a, b, n=10, splits=4)
    assert compare_sets(a, b, n=10, splits=4, seed=1) != compare_sets(a, b, n=10, splits=4)
    row = compare_sets(a, b, n=10, splits=4)
    assert row["n"] == 10 and row["splits"] == 4 and row["profile_spread"] > 0
    assert np.isnan(compare_sets(a, b, n=10, splits=1)["profile_spread"])
    assert compare_sets(a, b)["n"] == 12


@pytest.fixture
def mean_metric():
    """A metric of single frames, as a plug-in registers one: NaN for a frame of zeros."""
    with registering_as("test_distribution"):

        @register("metric", of="frames", title="mean of a frame")
        def brightness(frames):
            """Mean of a frame."""
            values = frames["intensity"].values.reshape(frames.sizes["frame"], -1).mean(1)
            return np.where(values > 0, values, np.nan)

    yield brightness
    forget("test_distribution")


def test_a_registered_metric_is_a_distance_of_sets(real, whole, mean_metric):
    """W1 of its numbers, as SciPy has it, of any parts and through a file; sets measured without it are refused."""
    values = np.where(real["mask"].values, real["intensity"].values, 0).mean((1, 2))
    ruler = Ruler(real)
    parts = [ruler.measure(select_frames(real, r), numbers=r) for r in (np.arange(30, 48), np.arange(30))]
    both = parts[0].merge(parts[1])
    assert np.allclose(both.values[:, 0], values) and equal(both, SetSummary.from_state(both.state()))
    found = set_distances(both.take(slice(0, 24)), both.take(slice(24, 48)))
    assert found["brightness"] == pytest.approx(wasserstein_distance(values[:24], values[24:]))
    row = floor(both, splits=3)
    assert row["brightness"] > 0 and list(ratio_table({"floor": row}, row)["brightness"]) == [1]
    with pytest.raises(BadInput, match="same Ruler"):
        set_distances(whole, both)


def test_a_metric_of_single_frames_is_a_row_of_reconstructions_too(real, mean_metric):
    darker = with_intensity(real, np.where(np.arange(48)[:, None, None] < 40, real["intensity"].values, 0))
    row = score_frames(real, with_intensity(real, real["intensity"].values + 2.0))
    assert row["brightness"] == pytest.approx(2) and row_names()["brightness"] == "mean of a frame"
    assert score_frames(real, darker)["brightness"] == 0  # NaN for frames of zeros, which are left out


@pytest.fixture
def metric_of():
    """Registers a metric of single frames."""

    def add(name, metric):
        with registering_as("test_distribution"):
            register("metric", name, of="frames", help="A test.")(metric)

    yield add
    forget("test_distribution")


def test_a_metric_with_the_name_of_a_distance_is_refused(real, metric_of):
    metric_of("profile", lambda frames: np.zeros(frames.sizes["frame"]))
    with pytest.raises(BadInput, match="has the name of a distance"):
        Ruler(real).measure(real)


def test_a_metric_that_is_no_number_for_each_frame_costs_its_own_row(real, metric_of):
    metric_of("one", lambda frames: 1.0)
    with plugin_scope(), pytest.warns(UserWarning, match=r"shape \(\); expected \(48,\), a number for each frame"):
        assert np.isnan(Ruler(real).measure(real).values).all()


def test_floor_keeps_groups_together(whole):
    groups = np.arange(48) // 12
    row = floor(whole, groups=groups, splits=6)
    assert row["n"] == 24 and all(row[name] > 0 for name in DISTANCES)
    lumps = whole.take(np.arange(48))
    lumps.profile[groups % 2 == 1] *= 3  # two of the four groups are three times as bright
    assert floor(lumps, groups=groups, splits=8)["profile"] > 2 * floor(lumps, splits=8)["profile"]
    table = ratio_table({"floor": row}, row)
    assert (table[[*DISTANCES]] == 1).all(axis=None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, r, w: w.merge(w), "twice"),
        (lambda f, r, w: set_distances(w, Ruler(f, rings=8).measure(f)), "same Ruler"),
        (lambda f, r, w: compare_sets(w, f), "expected ruler="),
        (lambda f, r, w: compare_sets(w, w, n=49), "expected 2 to 48"),
        (lambda f, r, w: floor(w, n=25), "expected 2 to 24"),
        (lambda f, r, w: floor(w, groups=np.zeros(48)), "two different"),
        (lambda f, r, w: r.measure(f, variable="mu"), "not there"),
        (lambda f, r, w: r.measure(f, numbers=[1, 2]), "expected 48 whole numbers"),
        (lambda f, r, w: r.measure(f.isel(y=slice(0, 64))), "expected"),
        (lambda f, r, w: r.measure(f.assign_attrs(beam_center=(60.0, 63.2))), "beam_center"),
        (lambda f, r, w: Ruler(f, mask=np.zeros((128, 128), bool)), "0 valid pixels"),
        (lambda f, r, w: ratio_table({"x": floor(w, n=10, splits=1)}, floor(w, n=12, splits=1)), "the same number"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(real, ruler, whole, spoil, message):
    with pytest.raises(BadInput, match=message) as error:
        spoil(real, ruler, whole)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


def test_units_and_unknown_gain_are_refused(real, ruler):
    adu = make_frames(np.zeros((2, 128, 128), np.int16), units="ADU", beam_center=(64.6, 63.2))
    with pytest.raises(BadInput, match="units ADU"):
        ruler.measure(adu)
    with pytest.raises(BadInput, match="gain"):
        Ruler(adu).measure(adu, draw=0)


def test_blocks_of_any_size():
    rng = np.random.default_rng(3)
    x = rng.random((2, 33, 50))
    rows = block_means(x, side=20)  # 3 × 3 pixels, the last ones cut
    assert rows.shape == (2, 11 * 17) and rows[0, 0] == np.float32(x[0, :3, :3].mean())
    assert rows[1, 16] == np.float32(x[1, :3, 48:].mean())  # six of nine pixels exist


def test_distances_between_nearly_equal_frames_are_not_lost():
    a = 1e4 + np.random.default_rng(4).normal(size=(5, 900))
    b = a + 1e-4
    assert np.allclose(np.diag(frame_distances(a, b)), 1e-4, rtol=1e-2)
    assert distances_within(np.full((3, 4), np.nan, np.float32))[0].shape == (3,)
    rows = np.arange(PAIRED + 500.0)[:, None]  # of so many only some are measured, from the first to the last
    pairs, nearest = distances_within(rows)
    assert len(nearest) == PAIRED and len(pairs) == PAIRED * (PAIRED - 1) // 2
    assert pairs.max() == PAIRED + 499 and 1 <= nearest.min() <= nearest.max() <= 2
    with pytest.raises(BadInput, match="expected"):
        frame_distances(a, b[:, :5])


def test_copies_are_found_among_many_and_blanks_do_no_harm():
    rng = np.random.default_rng(5)
    training, held_out, fresh = (rng.normal(size=(n, 400)) for n in (1000, 120, 120))
    copies = training[500:520] + 0.5 * rng.normal(size=(20, 400))
    cheat = np.concatenate([copies, np.zeros((1, 400)), fresh[21:]])

    def found(samples):
        rows = ({"blocks": v, "peaks": np.zeros_like(v)} for v in (samples, training, held_out))
        return find_copies(*rows, (20, 20))

    assert found(fresh).copied < 0.06 and found(fresh).repeated < 0.06
    mixed = found(cheat)
    assert mixed.source[:20].tolist() == list(range(500, 520)) and mixed.source[20] == -1
    assert 20 / 120 <= mixed.copied < 0.22 and mixed.copied_ci[0] > 0.1


def test_recovery_weighs_the_classes_and_bounds_the_ratio():
    real, labels = np.array([0] * 90 + [1] * 5 + [0] * 5), np.array([0] * 90 + [1] * 10)
    out = class_recovery(real, labels, np.array([0, 1, 1, 0]), [0, 0, 1, 1])
    assert out["accuracy_real"] == 0.75 and out["accuracy_samples"] == 0.5  # classes half and half
    assert out["recovery"] == pytest.approx(2 / 3) and out["recovery_low"] < 2 / 3 < out["recovery_high"]
    perfect = class_recovery(np.eye(2)[labels], [*labels[:-1], -1], labels, labels)
    assert perfect["recovery"] == 1 and 0.8 < perfect["recovery_low"] < 1 < perfect["recovery_high"]
    assert perfect["n_real"] == 99
    assert ratio_interval(0.0, *wilson_interval(0, 5), 0.5, 0.2, 0.8) == (0.0, np.inf)
    for words, message in (
        ((real, labels, [0], [2]), "class 2"),
        ((real, labels[1:], [0], [0]), "one row"),
        ((real, labels, [0], [-1]), "no samples"),
    ):
        with pytest.raises(BadInput, match=message):
            class_recovery(*words)


def test_labels_of_panels_and_of_what_is_unknown(real):
    flat = simulate("sim128", range(12))
    d = frame_resolution(flat)
    row = np.concatenate([np.array(v, float)[None] for v in ([1, 0, 0], [0, 1, 0])]) * 344e-6
    origin = np.array([[-64.6 * 344e-6, -63.2 * 344e-6, 0.05], [-64.6 * 344e-6, (64 - 63.2) * 344e-6, 0.05]])
    stack = make_frames(
        flat["intensity"].values.reshape(12, 2, 64, 128),
        mask=flat["mask"].values.reshape(2, 64, 128),
        wavelength=flat.attrs["wavelength"],
        panels={"origin": origin, "fs": np.stack([row[0]] * 2), "ss": np.stack([row[1]] * 2)},
        variables={"wavelength": flat["wavelength"].values, "crystals": flat["crystals"].values},
    )
    both = np.isfinite(d) & np.isfinite(frame_resolution(stack))
    assert both.sum() > 5 and np.allclose(frame_resolution(stack)[both], d[both], rtol=0.1)
    assert (read_label(stack, "crystal_system")[0] == -1).all()
    mixed = stack.assign(space_group=("frame", np.array(["P 1", "I 21 3", ""] * 4)))
    assert set(read_label(mixed, "crystal_system")[0]) == {0, 6, -1}
    assert with_labels(mixed, ["hit_class"])["hit_class"].attrs["flag_meanings"] == "blank single multiple"
    assert "give data.wavelength= (Å)" in label_problem(make_frames(np.zeros((2, 4, 4), np.int32)), "wavelength")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crystal_system("P 9 9 9"), "space group"),
        (lambda: crystal_system(231), "1 to 230"),
        (
            lambda: label_value("crystal_system", "cubik", SYSTEMS),
            r"crystal_system=cubik: .* 0 \(triclinic\), .* 6 \(cubic\)",
        ),
        (lambda: label_value("hit_class", 3, 3), "0 to 2"),
        (lambda: label_value("hit_class", [1], 3), "0 to 2"),
        (lambda: label_value("resolution", "good", None), "finite number"),
        (lambda: read_label(make_frames(np.zeros((2, 4, 4), np.int32)), "colour"), "no label 'colour'"),
    ],
)
def test_unknown_classes_are_refused(call, message):
    with pytest.raises(BadInput, match=message):
        call()


def test_pictures_are_the_same_every_time_and_refuse_what_does_not_fit(real, ruler, whole):
    a, b = whole.take(slice(0, 24)), whole.take(slice(24, 48))
    row = compare_sets(a, b, n=12, splits=2)
    steps = [
        {"sigma": s, "x": np.full((2, 1, 16, 16), s), "denoised": np.ones((2, 1, 16, 16))} for s in (8.0, 1.0, 0.0)
    ]
    draws = (
        lambda: show_samples(real, select_frames(real, slice(4, 8)), 64),
        lambda: show_samples(simulate("sim-422", range(2)), simulate("sim-422", range(2, 4))),
        lambda: plot_distribution({"a": a, "b": b}),
        lambda: plot_ratios(ratio_table({"b": row}, row)).figure,
        lambda: show_denoising(steps, 1, columns=2),
    )
    for draw in draws:
        assert png(draw()) == png(draw())
    with pytest.raises(BadInput, match="same pixels"):
        show_samples(real, real.isel(x=slice(0, 64)))
    with pytest.raises(BadInput, match="no steps"):
        show_denoising([])
    with pytest.raises(BadInput, match="no set"):
        plot_distribution({})
