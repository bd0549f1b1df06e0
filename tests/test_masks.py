"""Masks: rules that find what is no measurement and leave what is one, mask files of others, and the command that shows them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest
from fabio.adscimage import AdscImage
from fabio.cbfimage import CbfImage
from fabio.edfimage import EdfImage
from fabio.tifimage import TifImage
from scipy import ndimage

from xrddiff.app.verbs.main import main
from xrddiff.config.composition import compose_config
from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.core.files import sealed
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import read_store, save_frames
from xrddiff.data.frames.automask import Automask, mask_function, masking_of, with_automask
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.masks import RULES, chosen_rules
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.data.transforms.values import Linear
from xrddiff.judge.views.inspection import inspect_file
from xrddiff.learn.loading.catalog import convert
from xrddiff.learn.loading.datasets import open_planned
from xrddiff.learn.loading.loader import FrameLoader
from xrddiff.physics.simulation.experiments import find_experiment
from xrddiff.physics.simulation.simulate import simulate

SAMPLE = files("xrddiff") / "data" / "samples" / "cspad_lysozyme_r0015.h5"
KNOWN = {"wavelength": 1.0, "distance": 0.1, "pixel_size": 75e-6, "beam_center": (20.0, 20.0)}


def counts(shape=(6, 200, 220), rate=3.0, seed=0):
    return np.random.default_rng(seed).poisson(rate, shape).astype("i4")


# ---------------------------------------------------------------- what is a measurement stays


@pytest.mark.parametrize("level", [1e-3, 0.03, 0.3, 3])
def test_sparse_simulated_frames_stay(level):
    """Simulated crystals, thinned to a thousandth of their photons: zeros are measurements."""
    experiment = find_experiment("sim128")
    ds = simulate(experiment, range(6), 0)
    rng = np.random.default_rng(1)
    expected = np.clip(ds["intensity"].values, 0, None) / max(ds["intensity"].attrs.get("gain", 1.0), 1e-9)
    thin = make_frames(rng.poisson(level * expected).astype("i4"), **KNOWN)
    valid = ds["mask"].values if "mask" in ds else np.ones(thin["intensity"].shape[1:], bool)
    found = Automask(thin, chosen_rules(RULES)).reasons > 0
    assert (found & valid).sum() < 1e-3 * valid.sum()
    one = Automask(thin.isel(frame=[0]), chosen_rules(RULES)).reasons > 0
    assert (one & valid).sum() < 1e-3 * valid.sum()


def test_real_counting_series_keeps_its_zeros():
    """Reflectivity on a Pilatus: 70% of the pixels hold 0."""
    from xrddiff.learn.loading.cache import CannotFetch
    from xrddiff.learn.loading.catalog import load

    try:
        ds = load("pilatus-reflectivity")
    except CannotFetch as error:
        pytest.skip(f"not fetched: {error}")
    found = Automask(ds.drop_vars("mask"), chosen_rules(RULES))
    masked = found.reasons > 0
    assert masked[1:].mean() < 1e-3 and masked.mean() < 0.01  # the outermost row counts half as much as the next ones


# ---------------------------------------------------------------- one large frame

HEADER = "# Detector: PILATUS\n# Pixel_size 172e-6 m x 172e-6 m\n# Wavelength 1.0 A\n# Detector_distance 0.2 m\n# Beam_xy (700, 640) pixels"  # fmt: skip


def large_frame(path, seed=0):
    """A frame of 1.8 Mpx with gaps and the shadow of a beamstop, as a CBF."""
    y, x = np.mgrid[:1280, :1400]
    r = np.hypot(x - 700, y - 640)
    image = np.random.default_rng(seed).poisson(np.where(r < 40, 0.3, 1 + 12 * np.exp(-r / 250))).astype("i4")
    image[:, 490:497] = image[:, 980:987] = image[212:229] = image[850:867] = -1
    CbfImage(data=image, header={"_array_data.header_contents": HEADER}).write(str(path))
    return image


def test_one_large_frame_takes_three_times_its_memory(tmp_path):
    """Read, decoded and masked, the loaded frame included."""
    import tracemalloc

    image = large_frame(tmp_path / "a.cbf")
    good = open_frames(tmp_path / "a.cbf").load()["mask"].values  # with whatever is imported on the way
    tracemalloc.start()
    ds = open_frames(tmp_path / "a.cbf").load()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * image.nbytes
    assert np.array_equal(ds["intensity"].values[0], image) and np.array_equal(ds["mask"].values, good)
    assert not good[image < 0].any() and not good[640, 680:720].any() and good[:200, :480].all()


def test_a_frame_changed_in_memory_is_not_that_of_the_file(tmp_path):
    image = large_frame(tmp_path / "a.cbf")
    good = open_frames(tmp_path / "a.cbf")["mask"].values
    ds = open_frames(tmp_path / "a.cbf")
    mine = ds["intensity"].values
    assert np.array_equal(ds["intensity"].values, mine) and not np.shares_memory(ds["intensity"].values, mine)
    mine[:] = 0
    assert np.array_equal(ds["mask"].values, good) and np.array_equal(ds["intensity"].values[0], image)
    again = ds["intensity"].values
    again[:] = 0
    assert np.array_equal(ds["intensity"].values[0], image)


# ---------------------------------------------------------------- one frame of a series


def test_a_frame_of_a_series_has_the_mask_of_the_series(tmp_path, monkeypatch):
    """It is made once, kept beside the cache, and used only as long as files and rules are the same."""
    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "cache"))
    files = [tmp_path / f"run_{k}.cbf" for k in range(6)]
    for k, image in enumerate(counts((6, 200, 220))):
        image[50, 60], image[:, 100:107] = 60, -1  # hot in every frame, and a gap
        image[20, 30] = 200_000 if k == 2 else 3  # outside the range in one frame
        header = HEADER.replace("(700, 640)", "(110, 100)") + "\n# Count_cutoff 100000 counts"
        CbfImage(data=image, header={"_array_data.header_contents": header}).write(str(files[k]))

    made, plain = [], Automask._work_out
    monkeypatch.setattr(Automask, "_work_out", lambda self: made.append(self.intensity.shape[0]) or plain(self))

    def mask_of(what, **words):
        made.clear()
        return open_frames(what, **words)["mask"].values

    alone = mask_of(files[2])
    assert made == [1] and alone[50, 60] and not alone[20, 30]
    together = mask_of(tmp_path / "run_*.cbf")
    assert made == [6] and not together[:, 50, 60].any() and together[:, 20, 30].sum() == 5
    for k in (2, 3):
        assert np.array_equal(mask_of(files[k]), together[k]) and made == []
    assert np.array_equal(mask_of(tmp_path / "run_*.cbf"), together) and made == []
    assert "6 frames of its series" in str(inspect_file(files[2]))
    assert masking_of(open_frames(files[2])).counts()["dead"] == 1

    # other rules, another mask, two of the frames, a copy elsewhere: made anew
    assert mask_of(files[2], automask=["range", "edges"])[50, 60] and made == [1]
    assert mask_of(files[2], mask=np.arange(200 * 220).reshape(200, 220) > 0)[50, 60] and made == [1]
    assert mask_of(files[:2])[0, 50, 60] and made == [2]
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "run_2.cbf"
    copy.write_bytes(files[2].read_bytes())
    assert mask_of(copy)[50, 60] and made == [1]

    # a file that has changed since
    files[4].write_bytes(files[5].read_bytes())
    assert np.array_equal(mask_of(files[2]), alone) and made == [1]


@pytest.fixture
def shelved(tmp_path, monkeypatch):
    """(the files of a series whose mask is kept, their values, how many frames a mask was made from since, opens what it is given, the record)."""
    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "cache"))
    values = np.random.default_rng(1).poisson(3, (6, 96, 96)).astype(np.uint16)
    values[:, 40, 50] = 60
    files = [tmp_path / f"s_{k}.tif" for k in range(6)]
    for path, image in zip(files, values, strict=True):
        TifImage(data=image).write(str(path))
    made, plain = [], Automask._work_out
    monkeypatch.setattr(Automask, "_work_out", lambda self: made.append(self.intensity.shape[0]) or plain(self))

    def opened(what):
        made.clear()
        ds = open_frames(what, wavelength=1.0, distance=0.1, pixel_size=1e-4, beam_center=(48, 48))
        return ds, ds["mask"].values

    opened(tmp_path / "s_*.tif")
    (record,) = (tmp_path / "cache" / "masks").iterdir()
    opened(files[2])
    assert made == []
    return files, values, made, opened, record


def test_a_file_written_over_with_the_date_of_before_has_a_mask_of_its_own(shelved):
    files, values, made, opened, _ = shelved
    about, size = files[2].stat(), files[2].stat().st_size
    TifImage(data=np.where(np.arange(96) == 10, 0, values[2]).astype(np.uint16)).write(str(files[0].with_name("new")))
    with open(files[2], "r+b") as file:
        file.write(files[0].with_name("new").read_bytes())
    os.utime(files[2], ns=(about.st_atime_ns, about.st_mtime_ns))
    assert files[2].stat().st_size == size and files[2].stat().st_ino == about.st_ino
    opened(files[2])
    assert made == [1]


def test_a_file_that_changes_while_its_series_is_masked(shelved, monkeypatch):
    files, values, made, opened, record = shelved
    record.unlink()
    counted = Automask._work_out

    def written_over(masking):
        found = counted(masking)
        TifImage(data=values[1]).write(str(files[1]))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Automask, "_work_out", written_over)
        opened(files)
    opened(files)
    assert made == [6]


def rewritten(record, **changes):
    """The record with other arrays; `series`: what it says of the series, with changes."""
    with np.load(record) as file:
        arrays = dict(file)
    said = json.loads(arrays["series"].tobytes()) | changes.pop("series", {})
    arrays["series"] = np.frombuffer(sealed(json.dumps(said)).encode(), np.uint8)
    np.savez_compressed(record, **arrays | changes)


def raw(text):
    return lambda record: np.savez_compressed(record, series=np.frombuffer(text, np.uint8))


DAMAGED = {
    "cut": lambda record: record.write_bytes(record.read_bytes()[:-40]),
    "flipped": lambda record: record.write_bytes(record.read_bytes()[:-400] + bytes(40) + record.read_bytes()[-360:]),
    "empty": lambda record: record.write_bytes(b""),
    "a list": raw(b"[]"),
    "a number": raw(b"5"),
    "deep": raw(b"[" * 100_000),
    "other fields": raw(b'{"seen": 5}'),
    "no text": raw(b"\xff\x00"),
    "dates of no files": lambda record: rewritten(record, series={"dates": {}, "seen": ["\0"] * 9}),
    "a sentinel that is none": lambda record: rewritten(record, series={"sentinels": [10**30]}),
    "an unknown reason": lambda record: rewritten(record, **{"99999": np.zeros((96, 2), np.uint64)}),
    "another shape": lambda record: rewritten(record, **{"1": np.zeros((9, 2), np.uint64)}),
    "objects": lambda record: np.savez_compressed(record, series=np.array([{}], object)),
    "a pipe": lambda record: (record.unlink(), os.mkfifo(record)),
    "a folder": lambda record: (record.unlink(), record.mkdir()),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_record_that_is_damaged_is_not_used_and_written_anew(how, shelved):
    files, _, made, opened, record = shelved
    DAMAGED[how](record)
    opened(files[2])
    assert made == [1]
    ds, _ = opened(files)
    assert made == [6] and masking_of(ds).counts()["dead"] == 1 and masking_of(ds).reasons.any()
    opened(files)
    assert made == ([6] if how == "a folder" else [])


def test_a_record_is_for_one_user_and_one_version(shelved, monkeypatch):
    from xrddiff.data.formats import scan_cache

    files, _, made, opened, record = shelved
    assert record.stat().st_mode & 0o077 == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        assert opened(files[2]) and made == [1]
    with monkeypatch.context() as patch:
        patch.setattr(scan_cache, "_CODE", [])
        assert opened(files[2]) and made == [1]
    # code that is installed while a process runs is not what this process runs
    monkeypatch.setattr(scan_cache, "_code", lambda: [])
    assert opened(files[2]) and made == []


def test_without_a_place_for_it_a_mask_is_made(shelved, tmp_path, monkeypatch):
    files, _, made, opened, _ = shelved
    monkeypatch.setenv("XRDDIFF_CACHE", str(files[0]))  # a file, where no folder can be
    assert opened(files) and made == [6]
    for name in ("XRDDIFF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert opened(files) and made == [6]


def test_a_record_that_can_only_be_read_is_used_and_old_ones_go(shelved, monkeypatch):
    files, _, made, opened, record = shelved
    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", lambda *_: (_ for _ in ()).throw(PermissionError))
        assert opened(files[2]) and made == []
    for k in range(40):
        (record.parent / f"{k}.npz").touch()
        os.utime(record.parent / f"{k}.npz", (k, k))
    (record.parent / "nowhere").symlink_to("/nowhere/at/all")
    record.unlink()
    opened(files)
    assert len(list(record.parent.iterdir())) == 32 and record.exists()


def test_some_of_a_series_do_not_take_the_place_of_all(shelved):
    files, _, made, opened, _ = shelved
    assert opened(files[:5]) and made == [5]
    assert opened(files[5]) and made == []


# ---------------------------------------------------------------- what is none is found


@pytest.fixture(scope="module")
def damaged():
    """sim-422 (integrating detector) with gaps, dead and hot pixels put in: frames, the gaps, the pixels, the frames' own mask."""
    rng = np.random.default_rng(0)
    ds = simulate(find_experiment("sim-422"), range(12), 0)
    own = ds["mask"].values if "mask" in ds else np.ones(ds["intensity"].shape[1:], bool)
    own = own.all(0) if own.ndim == 3 else own
    values = ds["intensity"].values.copy()
    gap = np.zeros(own.shape, bool)
    gap[:, 130:140] = gap[300:317] = gap[:2] = gap[:, -3:] = True
    free = np.flatnonzero(ndimage.binary_erosion(own & ~gap, np.ones((5, 5))).ravel())
    pixel = np.unravel_index(rng.choice(free, 400, replace=False), own.shape)
    dead, hot = tuple(p[:200] for p in pixel), tuple(p[200:] for p in pixel)
    values[(slice(None), *dead)] = 7
    values[(slice(None), *hot)] += rng.integers(500, 5000, 200).astype(values.dtype)
    values[:, gap] = 0
    about = {k: ds.attrs[k] for k in ("wavelength", "distance", "pixel_size", "beam_center")}
    return make_frames(values, mask=own, units="ADU", **about), gap & own, dead, hot, own


def test_gaps_dead_and_hot_pixels_are_found(damaged):
    ds, gap, dead, hot, own = damaged
    found = Automask(ds, chosen_rules(RULES))
    bad = ~np.asarray(found.static)
    assert bad[gap].mean() > 0.99 and bad[dead].mean() >= 0.99 and bad[hot].mean() >= 0.99
    put_in = gap.copy()
    put_in[dead] = put_in[hot] = True
    assert (bad & own & ~put_in).sum() < 1e-3 * (own & ~put_in).sum()
    only = ~np.asarray(Automask(ds, chosen_rules(["edges"])).static)
    assert only[gap].mean() > 0.99 and only[hot].mean() < 0.05  # a rule can be switched off


@pytest.fixture(scope="module")
def exposure(tmp_path_factory):
    """An MX exposure as a file without a mask: module gaps and borders of zeros, pixels at the modules' edges 1.7 times as large; and where it is valid."""
    experiment = find_experiment("sim-522")
    detector = replace(experiment.detector, shape=(512, 512), module=(170, 254), gaps=9, beamstop=0.0, bad=0.0)
    ds = simulate(replace(experiment, detector=detector), [8], 0)
    valid = ds["mask"].values.copy()
    valid = valid[0] if valid.ndim == 3 else valid
    valid[:2] = valid[-3:] = valid[:, :3] = valid[:, -2:] = False
    y, x = np.mgrid[: valid.shape[0], : valid.shape[1]]
    r = np.hypot(x - detector.beam_center[0], y - detector.beam_center[1])
    rim = valid & ~ndimage.binary_erosion(valid, np.ones((3, 3)))
    background = (20 * np.exp(-r / 250) + 15 * np.exp(-(((r - 150) / 40) ** 2))) * np.where(rim, 1.7, 1)
    image = ds["intensity"].values[0] + np.random.default_rng(0).poisson(background)
    path = tmp_path_factory.mktemp("mx") / "mx_00001.cbf"
    CbfImage(data=np.where(valid, image, 0).astype("i4")).write(str(path))
    return path, valid, rim


def test_an_exposure_without_mask_words(exposure):
    """Finding I2: nothing was masked, and a third of the peaks and more stood within 6 px of an edge or a gap."""
    path, valid, rim = exposure
    away = ndimage.distance_transform_edt(np.pad(valid, 1))[1:-1, 1:-1]
    near = {}
    for name, rules in (("before", []), ("after", None)):
        ds = open_frames(path, units="photon", automask=rules, **KNOWN | {"beam_center": (249.6, 261.8)})
        peaks = find_frame_peaks(ds)
        near[name] = (away[peaks["ss"].astype(int), peaks["fs"].astype(int)] <= 6).sum(), len(peaks)
    assert near["before"][0] > 0.3 * near["before"][1] and near["after"][0] < 0.15 * near["after"][1], near
    bad = ~ds["mask"].values
    assert bad[~valid].mean() > 0.99 and bad[valid & ~rim].mean() < 1e-3
    assert ds.attrs["automask"] == ["range", "sentinel", "saturation", "edges", "dead", "shadow"]


def test_corners_of_a_round_detector(tmp_path):
    y, x = np.mgrid[:300, :300]
    face = np.hypot(x - 150, y - 150) < 148
    TifImage(data=np.where(face, counts((300, 300), 30), 0).astype("u2")).write(str(tmp_path / "a.tif"))
    bad = ~open_frames(tmp_path / "a.tif", **KNOWN)["mask"].values
    assert bad[~face].mean() > 0.95 and bad[face].mean() < 0.02


def test_values_that_are_no_measurement(tmp_path):
    """65535 in uint16, −1 and −2 in int32, 2³² − 1 in uint32, the header's saturation, the range of NXmx, NaN."""
    image = counts((64, 72), 20)
    full = image.astype("u2")
    full[30, 40] = 65535
    np.save(tmp_path / "u2.npy", full)
    assert (~open_frames(tmp_path / "u2.npy", **KNOWN)["mask"].values).sum() == 9  # with its neighbours
    negative = image.copy()
    negative[:, 20:24] = -1
    negative[5, 5] = -2
    np.save(tmp_path / "i4.npy", negative)
    assert (~open_frames(tmp_path / "i4.npy", **KNOWN)["mask"].values).sum() == 64 * 4 + 1
    top = image.astype("u4")
    top[3, 3] = 2**32 - 1
    np.save(tmp_path / "u4.npy", top)
    assert (~open_frames(tmp_path / "u4.npy", units="photon", **KNOWN)["mask"].values).sum() == 1
    adsc = np.minimum(image, 4000).astype("u2")
    adsc[10, 12] = 5000
    header = {"CCD_IMAGE_SATURATION": "5000", "PIXEL_SIZE": "0.1", "DISTANCE": "100", "WAVELENGTH": "1.0"}
    AdscImage(data=adsc, header=header).write(str(tmp_path / "a.img"))
    ds = open_frames(tmp_path / "a.img", beam_center=(30, 30))
    assert ds.attrs["saturation"] == 4999 and (~ds["mask"].values).sum() == 9
    with h5py.File(tmp_path / "x.nxs", "w") as f:
        f["entry/data/data"] = image[None].astype("i4")
        f["entry/instrument/detector/saturation_value"] = 30
        f["entry/instrument/detector/underload_value"] = 10
    ds = open_frames(tmp_path / "x.nxs", automask=["range"], **KNOWN)
    assert np.array_equal(ds["mask"].values, (image >= 10) & (image <= 30))


def test_not_a_number_is_masked_by_itself(tmp_path):
    """Finding I7: `inspect` showed it, `convert` kept it, and the run refused it."""
    values = counts((4, 40, 48), 9).astype("f4")
    values[2, 7, 9] = np.nan
    np.save(tmp_path / "a.npy", values)
    said = inspect_file(tmp_path / "a.npy", frame=2)
    assert said["values"]["not_finite"] == 1 and said["values"]["masked_%"] == pytest.approx(100 / (40 * 48))
    ds = open_frames(tmp_path / "a.npy", **KNOWN)
    batches = list(
        FrameLoader(
            ds, Linear().fit(open_frames(tmp_path / "a.npy", **KNOWN), np.arange(2)), batch_size=2, shuffle=False
        ).batches()
    )
    assert all(np.isfinite(b["x"].numpy()).all() for b in batches) and not batches[1]["mask"][0, 0, 7, 9]
    with pytest.raises(BadInput, match="nan at the valid pixel|holds nan"):
        list(
            FrameLoader(
                open_frames(tmp_path / "a.npy", automask=[], **KNOWN),
                Linear().fit(open_frames(tmp_path / "a.npy", **KNOWN), np.arange(2)),
                batch_size=2,
            ).batches()
        )
    again = read_store(convert(tmp_path / "a.npy", tmp_path / "a.h5", **KNOWN, progress=False))
    assert not again["mask"].values[2, 7, 9] and again.attrs["mask_rules"]["sentinel"] == 1


def test_plain_pictures_keep_their_zeros_and_whites(tmp_path):
    digits = np.zeros((8, 32, 32), "u1")
    digits[:, 10:22, 12:20] = 255
    np.save(tmp_path / "digits.npy", digits)
    ds = open_frames(tmp_path / "digits.npy", complete=False)
    assert ds["mask"].values.all() and ds.attrs["automask"] == ["range", "sentinel", "saturation"]


# ---------------------------------------------------------------- how masks are kept


def test_masks_are_lazy_shared_and_settled(tmp_path):
    values = counts((40, 64, 64), 9)
    values[:, 20:27] = 0
    np.save(tmp_path / "a.npy", values)
    ds = open_frames(tmp_path / "a.npy", units="photon", **KNOWN)
    assert masking_of(ds)._static is None and len(masking_of(ds).frames) == 32
    mask_of, static = mask_function(ds.isel(frame=[7, 3])), masking_of(ds).static
    assert mask_of(0, values[7]) is static and not static[20:27].any() and static.mean() == 1 - 7 / 64
    settled = read_store(convert(tmp_path / "a.npy", tmp_path / "a.h5", units="photon", **KNOWN, progress=False))
    assert settled["mask"].dims == ("y", "x") and settled.attrs["mask_rules"]["edges"] == 7 * 64
    # what was saved keeps its mask, unless rules are asked for
    assert np.array_equal(open_frames(tmp_path / "a.h5")["mask"].values, static)
    plain = save_frames(make_frames(values, **KNOWN), tmp_path / "b.h5")
    assert "mask" not in open_frames(plain) and not open_frames(plain, automask=["edges"])["mask"][0, 22].any()


def test_words_of_a_run(tmp_path):
    values = counts((6, 64, 64), 9)
    np.save(tmp_path / "a.npy", values)
    good = np.ones((64, 64), bool)
    good[5] = False
    np.save(tmp_path / "mask.npy", good)
    words = [
        f"data.data_path={tmp_path}/a.npy",
        "data.wavelength=1",
        "data.distance=0.1",
        "data.pixel_size=1e-4",
        "data.beam_center=[30,30]",
    ]
    ds = open_planned(compose_plan([*words, f"data.mask={tmp_path}/mask.npy"]).data)
    assert not ds["mask"].values[:, 5].any() and ds["mask"].values[:, 6:].all()
    ds = open_planned(
        compose_plan([*words, f"data.mask={tmp_path}/mask.npy", "data.mask_true=bad", "data.automask=[]"]).data
    )
    assert ds["mask"].dims == ("y", "x") and ds["mask"].values.sum() == 64
    assert "mask" not in open_planned(compose_plan([*words, "data.automask=[]"]).data)
    for word, said in (
        ("data.automask=[edge]", "edges"),
        ("data.mask_true=good", "no effect without data.mask"),
        ("data.mask=/no/such.npy", "does not exist"),
    ):
        with pytest.raises(BadInput, match=said):
            compose_config([*words, word])


# ---------------------------------------------------------------- mask files of others


GEOM = """
wavelength = 1.0 A
clen = 0.1
res = 10000
p0/min_fs = 0
p0/max_fs = 47
p0/min_ss = 0
p0/max_ss = 39
p0/corner_x = -24
p0/corner_y = -20
badstripe/panel = p0
badstripe/min_fs = 10
badstripe/max_fs = 12
badstripe/min_ss = 0
badstripe/max_ss = 39
badspot/min_x = -2.5
badspot/max_x = 2.5
badspot/min_y = -2.5
badspot/max_y = 2.5
"""


def fit2d(path, bad):
    """A Fit2D .msk as its manual has it: 1 kB of header, rows padded to 32 bits, the lowest row first."""
    height, width = bad.shape
    header = np.zeros(256, "<i4")
    header[0], header[1], header[2], header[3] = 77, 65, 83, 75  # M A S K, a letter per word
    header[4], header[5] = width, height
    rows = np.zeros((height, -(-width // 32) * 32), bool)
    rows[:, :width] = bad
    path.write_bytes(header.tobytes() + np.packbits(rows, axis=1, bitorder="little").tobytes())


def test_every_kind_of_mask_file(tmp_path):
    np.save(tmp_path / "run.npy", counts((3, 40, 48), 9))
    bad = np.random.default_rng(1).random((40, 48)) < 0.1
    np.save(tmp_path / "bool.npy", ~bad)
    np.save(tmp_path / "pyfai.npy", bad.astype("i1"))
    EdfImage(data=bad.astype("u1")).write(str(tmp_path / "pyfai.edf"))
    TifImage(data=(255 * bad).astype("u1")).write(str(tmp_path / "a.tif"))
    with h5py.File(tmp_path / "nx.h5", "w") as f:
        f["entry/instrument/detector/pixel_mask"] = np.where(bad, 1 << 8, 0).astype("u4")
        f["other/mask"] = bad
    fit2d(tmp_path / "f.msk", bad)
    inside = ":/entry/instrument/detector/pixel_mask"
    for name, true in (
        ("bool.npy", None),
        ("pyfai.npy", None),
        ("pyfai.edf", None),
        ("a.tif", None),
        ("f.msk", None),
        (f"nx.h5{inside}", None),
        ("nx.h5:/other/mask", "bad"),
    ):
        ds = open_frames(tmp_path / "run.npy", mask=f"{tmp_path}/{name}", mask_true=true, automask=[], **KNOWN)
        assert np.array_equal(ds["mask"].values, ~bad), name
        assert name in ds.attrs["mask_file"] and ("by its type" in ds.attrs["mask_file"]) == (true is None)
    (tmp_path / "a.geom").write_text(GEOM)
    ds = open_frames(tmp_path / "run.npy", mask=tmp_path / "a.geom", automask=[], **KNOWN)
    assert (
        not ds["mask"].values[:, 10:13].any()
        and not ds["mask"].values[20, 24]
        and ds["mask"].values.sum() == 40 * 45 - 25
    )
    panels = open_frames(SAMPLE, automask=[])["intensity"].shape[1:]
    np.save(tmp_path / "stack.npy", np.arange(np.prod(panels)).reshape(-1, panels[-1]) % 7 == 0)
    assert open_frames(SAMPLE, mask=tmp_path / "stack.npy", automask=[])["mask"].shape == panels


def test_a_mask_joins_the_one_in_the_file(tmp_path):
    mask = np.zeros((40, 48), "u4")
    mask[0] = 1
    with h5py.File(tmp_path / "x.nxs", "w") as f:
        f["entry/data/data"] = counts((3, 40, 48), 9)
        f["entry/instrument/detector/pixel_mask"] = mask
    extra = np.ones((40, 48), bool)
    extra[:, 0] = False
    np.save(tmp_path / "m.npy", extra)
    ds = open_frames(tmp_path / "x.nxs", mask=tmp_path / "m.npy", automask=[], **KNOWN)
    assert np.array_equal(ds["mask"].values, (mask == 0) & extra)
    saved = save_frames(ds, tmp_path / "y.h5")
    np.save(tmp_path / "m2.npy", extra[:, ::-1])
    again = open_frames(saved, mask=tmp_path / "m2.npy")
    assert np.array_equal(again["mask"].values, (mask == 0) & extra & extra[:, ::-1])


def test_bad_mask_files_are_one_sentence(tmp_path):
    np.save(tmp_path / "run.npy", counts((3, 40, 48), 9))
    np.save(tmp_path / "small.npy", np.ones((4, 4), bool))
    np.save(tmp_path / "none.npy", np.ones((40, 48), "u1"))
    np.save(tmp_path / "text.npy", np.full((40, 48), "a"))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "half.npy").write_bytes((tmp_path / "none.npy").read_bytes()[:300])
    (tmp_path / "words.txt").write_text("no mask")
    with h5py.File(tmp_path / "two.h5", "w") as f:
        f["a/mask"] = f["b/mask"] = np.zeros((40, 48), "u1")
    for name, said in (
        ("small.npy", r"shape \(4, 4\); expected \(40, 48\)"), ("none.npy", "leaves no valid pixel; mask_true=good"), ("text.npy", "expected booleans or numbers"),
        ("empty.npy", "empty"), ("half.npy", "truncated or damaged|cannot be read"), ("words.txt", "not an image"), ("gone.npy", "does not exist"),
        ("two.h5", "name one as mask="), ("two.h5:/c", "has no data set /c"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said) as caught:
            open_frames(tmp_path / "run.npy", mask=f"{tmp_path}/{name}", **KNOWN)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="mask_true is 'maybe'"):
        open_frames(tmp_path / "run.npy", mask=f"{tmp_path}/none.npy", mask_true="maybe", **KNOWN)
    with pytest.raises(BadInput, match="there is no mask"):
        open_frames(tmp_path / "run.npy", mask_true="bad", **KNOWN)


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".edf", ".h5"])
def test_mask_command_writes_what_is_read_again(exposure, tmp_path, capsys, suffix):
    path, valid, _ = exposure
    out = tmp_path / f"mask{suffix}"
    assert (
        main(
            [
                "data",
                "mask",
                str(path),
                "-o",
                str(out),
                "--png",
                str(tmp_path / "why.png"),
                "wavelength=1",
                "units=photon",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "edges" in said and "valid" in said and (tmp_path / "why.png").stat().st_size > 5000
    again = open_frames(path, mask=out, automask=[], units="photon", **KNOWN)
    assert again["mask"].values[~valid].mean() < 0.01 and again["mask"].values[valid].mean() > 0.9


def test_mask_command_on_the_real_still(tmp_path, capsys):
    """The built-in CSPAD shot: pixels along the edges of its sensors count twice as much, and some lie thousands of units below zero."""
    assert main(["data", "mask", str(SAMPLE), "--png", str(tmp_path / "why.png")]) == 0
    said = capsys.readouterr().out
    assert "dead" in said and "edges" in said
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    ds = with_automask(open_frames(SAMPLE, automask=[]), list(RULES))
    image, mask = ds["intensity"].values[0], ds["mask"].values
    assert not mask[image < -500].any() and 0.99 < mask.mean() < 0.995


def test_mask_command_refuses_in_one_sentence(exposure, tmp_path, capsys):
    path, *_ = exposure
    for words in (["-o", str(tmp_path / "mask.xyz")], ["automask=[edge]"], ["--frame", "7"], ["mask=/no/such.npy"]):
        assert main(["data", "mask", str(path), "--png", str(tmp_path / "a.png"), *words]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_rules_of_a_run_are_those_that_suit_its_source(tmp_path, monkeypatch):
    from xrddiff.learn.loading import datasets
    from xrddiff.physics.simulation.simulate import simulate

    np.save(tmp_path / "own.npy", simulate("sim128", range(3))["intensity"].values)
    told, opened = [], datasets.open_data
    monkeypatch.setattr(datasets, "open_data", lambda *a, **w: told.append(w["automask"]) or opened(*a, **w))
    for more in ([], ["data.automask=[range,dead]"]):
        datasets.open_planned(compose_plan([f"data.data_path={tmp_path}/own.npy", *more]).data)
    assert told == [None, ["range", "dead"]]  # None: all rules
