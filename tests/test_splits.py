"""What is trained on is not held out: parts and copies of an exposure, frames of one scan or one crystal."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from fabio.cbfimage import CbfImage

from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.images import series_numbers
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames import exposures
from xrddiff.data.frames.exposures import find_exposures
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.rows import EachRow
from xrddiff.data.frames.selection import concat_frames
from xrddiff.data.transforms.spatial import Patches
from xrddiff.judge.metrics.judgement import judged_rows
from xrddiff.judge.metrics.reconstruction import missing_scores
from xrddiff.learn.loading import datasets
from xrddiff.learn.loading.datasets import prepare_frames, prepare_planned
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.execution.checks import check_run

SIDE = 16
GEOMETRY = dict(wavelength=1.3, distance=0.1, pixel_size=75e-6, beam_center=(7.0, 9.0))


def counts(n, seed=0):
    return np.random.default_rng(seed).poisson(6, (n, SIDE, SIDE)).astype(np.int32)


def frames(n, **words):
    return make_frames(counts(n), units="photon", **GEOMETRY, **words)


def cbf(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    CbfImage(data=image).write(str(path))
    return path


def nexus(path, stack, omega=None, **sample):
    """An NXmx file; `scan=` is the identifier of the collection."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        f["entry/data/data"] = stack
        if omega is not None:
            f["entry/sample/goniometer/omega"] = omega
        for name, value in sample.items():
            f["entry/collection_identifier" if name == "scan" else f"entry/sample/{name}"] = value
        fields = {"detector_distance": 0.1, "x_pixel_size": 75e-6, "beam_center_x": 7.0, "beam_center_y": 9.0}
        for name, value in fields.items():
            f[f"entry/instrument/detector/{name}"] = value
            f[f"entry/instrument/detector/{name}"].attrs["units"] = "pixel" if "beam" in name else "m"
        f["entry/instrument/beam/incident_wavelength"] = 1.3
        f["entry/instrument/beam/incident_wavelength"].attrs["units"] = "angstrom"
    return path


def plan(place, *words):
    return compose_plan(["model=vae_kl", "size=tiny", f"data.data_path={place}", *words])


# ---------------------------------------------------------------- the layouts: (prepared, name of each frame, apart)


def patches_of_one(tmp_path):
    place = nexus(tmp_path / "one.h5", counts(1))
    return prepare_planned(plan(place, "data.patch=4")), [0] * 16, "nothing"


def patches_of_many(tmp_path):
    place = nexus(tmp_path / "many.h5", counts(12))
    return prepare_planned(plan(place, "data.patch=8")), np.repeat(np.arange(12), 4), "series"


def windows_of_many(tmp_path):
    """The file has the whole series twice."""
    place = nexus(tmp_path / "many.h5", np.tile(counts(10), (2, 1, 1)))
    return prepare_planned(plan(place, "data.window=8")), np.tile(np.arange(10), 2), "series"


def copies_of_other_names(tmp_path):
    for i, image in enumerate(counts(8)):
        cbf(tmp_path / "images" / f"lyso_{i:04d}.cbf", image)
        cbf(tmp_path / "images" / f"zz_copy_{i}.cbf", image)
    return prepare_planned(plan(tmp_path / "images")), np.tile(np.arange(8), 2), "series"


def copies_in_another_format(tmp_path):
    """CBF marks gaps with −1, HDF5 with the largest number."""
    stack = counts(8)
    stack[:, 3] = -1
    for i, image in enumerate(stack):
        cbf(tmp_path / "cbf" / f"lyso_{i:04d}.cbf", image)
    hdf5 = nexus(tmp_path / "lyso.h5", np.where(stack < 0, 2**32 - 1, stack).astype(np.uint32)[::-1])
    parts = [
        open_frames(place, complete=False, units="photon", automask=[], **GEOMETRY)
        for place in (tmp_path / "cbf", hdf5)
    ]
    for part in parts:
        part["intensity"].attrs = {"units": "photon"}
        part.attrs = dict(GEOMETRY)
    return prepare_frames(concat_frames([p[["intensity"]] for p in parts])), [*range(8), *range(8)[::-1]], "series"


def several_scans(tmp_path):
    """Image series that are told apart by their names; the shot numbers alone would mix them."""
    for k, name in enumerate(("lyso_1_", "lyso_2_", "thau_1_", "thau_2_", "ins_1_")):
        for i, image in enumerate(counts(5, seed=k)):
            cbf(tmp_path / "images" / f"{name}{i + 1:05d}.cbf", image)
    return prepare_planned(plan(tmp_path / "images")), np.repeat(np.arange(5), 5), "scans"  # in natural order


def one_scan(tmp_path):
    place = nexus(tmp_path / "scan.h5", counts(30), omega=np.linspace(0, 3, 30), name="lysozyme")
    return prepare_planned(plan(place)), np.arange(30), "scan"


def crystals_of_files(tmp_path):
    """Five crystals, each in two rotation scans of two files, of which only the names of samples tell."""
    for k in range(10):
        place = tmp_path / "crystals" / f"run_{k:02d}.h5"
        nexus(place, counts(4, seed=k), omega=np.arange(4) + 10.0 * k, name=f"crystal {k % 5}")
    return prepare_planned(plan(tmp_path / "crystals")), np.repeat(np.arange(10) % 5, 4), "crystals"


def simulated_shots(tmp_path):
    shots = simulate("sim128", range(64), truth=False)
    return prepare_frames(shots, patch=64), np.repeat(shots["shot_group"].values, 4), "shot groups"


def given_groups_and_copies(tmp_path):
    """Groups in a table of labels, beside scans that it overrules; group 1 has a copy of a frame of group 0."""
    stack = counts(20)
    stack[7] = stack[2]
    place, table = nexus(tmp_path / "mine.h5", stack), tmp_path / "mine.csv"
    groups = np.repeat(np.arange(4), 5)
    with h5py.File(place, "a") as f:
        f["entry/data/scan_id"] = np.arange(20) // 10
    pd.DataFrame({"shot_group": groups}).to_csv(table, index=False)
    return prepare_planned(plan(place, f"data.labels={table}", "data.train_ratio=0.5")), groups.clip(1), "shot groups"


LAYOUTS = [
    patches_of_one, patches_of_many, windows_of_many, copies_of_other_names, copies_in_another_format, several_scans,
    one_scan, crystals_of_files, simulated_shots, given_groups_and_copies,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_trained_on_is_not_held_out(layout, tmp_path):
    prepared, names, apart = layout(tmp_path)
    names, sizes = np.asarray(names), prepared.sizes()
    assert prepared.apart == apart and len(names) == prepared.frames.sizes["frame"]
    assert len(prepared.train) and len(prepared.held_out)
    if apart == "nothing":
        assert prepared.train.tolist() == list(range(len(names))) and set(prepared.held_out) < set(prepared.train)
        assert sizes.startswith("Nothing is held out: all 16 training frames are parts of one exposure")
        assert "other shot groups" not in sizes and prepared.none_held_out
        return
    assert sorted([*prepared.train, *prepared.held_out]) == list(range(len(names)))
    assert not set(names[prepared.train]) & set(names[prepared.held_out])
    about = {"series": "of the same series, in blocks", "scan": "of the same scan, in blocks"}
    assert about.get(apart, f"of other {apart}") in sizes and not prepared.none_held_out
    if apart == "scan":  # blocks of three neighbours
        assert prepared.held_out.tolist() == [
            *range(a := prepared.held_out[0], a + 3),
            *range(b := prepared.held_out[-1] - 2, b + 3),
        ]


@pytest.mark.parametrize(
    "ids",
    [
        dict(crystal_id=["x1", "x2", "x1", "x2", "x3"]),
        dict(sample_id=[7, 8, 7, 8, 9]),
        dict(scan=["s1", "s2", "s1", "s2", "s3"]),
    ],
)
def test_files_that_name_the_same_crystal_or_scan(tmp_path, ids):
    ((word, names),) = ids.items()
    for k, name in enumerate(names):
        nexus(tmp_path / "set" / f"{k}.h5", counts(3, seed=k), **{word: name})
    prepared = prepare_planned(plan(tmp_path / "set"))
    held = set(np.repeat(names, 3)[prepared.held_out])
    assert prepared.apart == ("scans" if word == "scan" else "crystals") and len(held) < 3
    assert not held & set(np.repeat(names, 3)[prepared.train])
    assert not {"crystal_id", "scan_id"} & set(prepared.frames.attrs)  # those of the first file


def test_stills_of_one_sample_are_not_one_crystal(tmp_path):
    for k in range(10):
        nexus(tmp_path / "set" / f"{k}.h5", counts(2, seed=k), name="lysozyme")
    prepared = prepare_planned(plan(tmp_path / "set"))
    assert prepared.apart == "shot groups" and "frame_series" not in prepared.frames
    groups = prepared.frames["shot_group"].values
    assert not set(groups[prepared.train]) & set(groups[prepared.held_out])


def test_crystals_that_a_label_names(tmp_path):
    place = nexus(tmp_path / "a.h5", counts(24))
    with h5py.File(place, "a") as f:
        f["entry/data/crystal_id"] = np.array([b"A", b"B", b"C", b"D"] * 6)
    prepared = prepare_planned(plan(place))
    assert prepared.apart == "crystals" and len(prepared.held_out) == 6
    assert len(set(prepared.held_out % 4)) == 1


def test_one_crystal_in_several_scans_is_split_by_scan(tmp_path):
    for k in range(5):
        nexus(tmp_path / "set" / f"{k}.h5", counts(4, seed=k), omega=np.arange(4.0), name="x1")
    prepared = prepare_planned(plan(tmp_path / "set"))
    assert prepared.apart == "shot groups" and prepared.held_out.tolist() == list(
        range(prepared.held_out[0], prepared.held_out[0] + 4)
    )
    assert prepared.held_out[0] % 4 == 0


def test_crystals_that_only_their_spots_tell(tmp_path):
    """A raster scan without labels: each crystal was met several times, not one after the other."""
    rich = [i for i, n in enumerate(simulate("sim128", range(60), 3)["crystals"].values) if n == 1][:10]
    shots = simulate("sim128", rich, 3).load()
    again = np.random.default_rng(2).permutation(np.repeat(np.arange(10), 4))
    stack = np.random.default_rng(1).poisson(shots["intensity"].values[again]).astype(np.uint16)
    place = nexus(tmp_path / "raster.h5", stack)
    for _ in range(2):
        prepared = prepare_planned(plan(place))
        train, held = (set(again[rows].tolist()) for rows in (prepared.train, prepared.held_out))
        assert prepared.apart == "crystals" and not train & held and len(train) + len(held) == 10
    assert "of other crystals" in prepared.sizes()


def test_frames_that_were_cut_before(tmp_path):
    """Patches that were saved know the frame that they were cut from, and are cut further."""
    place = save_frames(Patches(8).apply(frames(6)), tmp_path / "patches.h5")
    prepared = prepare_planned(plan(place, "data.patch=4"))
    source = prepared.frames["frame_source"].values
    assert source.tolist() == np.repeat(np.arange(6), 16).tolist() and prepared.apart == "series"
    assert not set(source[prepared.train]) & set(source[prepared.held_out])
    one = prepare_planned(plan(save_frames(Patches(8).apply(frames(1)), tmp_path / "one.h5")))
    assert one.none_held_out and len(one.train) == 4


@pytest.mark.parametrize(
    ("names", "series"),
    [
        (["a_1.cbf", "a_2.cbf", "b_1.cbf"], [0, 0, 1]),
        (["1.cbf", "2.cbf", "3.cbf"], None),
        (["a.cbf", "b.cbf", "c.cbf"], None),
        (["run1/0001.cbf", "run1/0002.cbf", "run2/0001.cbf", "run2/0002.cbf"], [0, 0, 1, 1]),
        (["a.tif", "a.tif", "b.tif", "b.tif"], [0, 0, 1, 1]),
    ],
)
def test_series_by_the_names_of_files(names, series):
    found = series_numbers([Path(name) for name in names])
    assert (found if series is None else found.tolist()) == series


def test_blank_frames_are_no_copies():
    stack = counts(6)
    stack[[1, 4]] = 0
    found = find_exposures(make_frames(stack, units="photon"))
    assert found.copies == 0 and found.number.tolist() == list(range(6))


@pytest.mark.parametrize("n", [1, 3])
def test_one_exposure_is_refused_with_the_words_that_cut_it(tmp_path, n):
    place = nexus(tmp_path / "one.h5", np.repeat(counts(1), n, axis=0))
    with pytest.raises(BadInput) as error:
        check_run(plan(place))
    said = str(error.value)
    assert "nothing can be held out" in said and "data.patch=" in said and "data.window=" in said and "\n" not in said
    assert "beam" not in said and ("all copies of one exposure" in said) == (n > 1)
    prepared = prepare_planned(plan(place, "data.window=8"))
    assert prepared.none_held_out and prepared.train.tolist() == list(range(n))
    assert "there is one exposure" in prepared.sizes() and prepared.sizes().startswith("Nothing is held out")
    limited = prepare_planned(plan(nexus(tmp_path / "two.h5", counts(2)), "data.limit=1", "data.patch=4"))
    assert limited.none_held_out and len(limited.train) == 16


def test_parts_of_frames_do_not_ask_for_the_beam_centre(tmp_path):
    place = nexus(tmp_path / "one.h5", counts(1))
    nan = dict(recall=1.0, poisson_deviance=1.0)
    with h5py.File(place, "a") as f:
        del f["entry/instrument/detector/detector_distance"]  # the file gives the centre, but not all of the geometry
    for prepared in (
        prepare_planned(plan(place, "data.patch=4")),
        prepare_planned(plan(place, "data.patch=4", "data.distance=0.1")),
    ):
        said = " ".join(missing_scores(prepared.frames, nan))
        assert "beam" not in said and "parts of frames" in said


def test_two_parts_of_what_was_trained_on_are_compared():
    rows = judged_rows(np.arange(10), np.array([2, 3]))
    assert rows["train"].tolist() == [0, 1, 4, 5, 6, 7, 8, 9] and rows["held out"].tolist() == [2, 3]
    assert judged_rows([0], [0])["train"].tolist() == [0]


def test_who_is_not_asked_for_copies(tmp_path, monkeypatch):
    place = nexus(tmp_path / "many.h5", counts(10))
    assert prepare_planned(plan(place)).copies == 0 and "copies" not in str(prepare_planned(plan(place)))
    monkeypatch.setattr(datasets, "find_exposures", lambda frames, most=100: find_exposures(frames, most))
    few = prepare_planned(plan(place))
    assert few.copies is None and "copies were not looked for" in str(few)
    named = prepare_planned(compose_plan(["model=vae_kl", "size=tiny", "data=sim128", "data.limit=24"]))
    assert named.copies == 0 and "copies" not in str(named)


def test_threads_that_read_images_get_their_own(tmp_path):
    """Rows keep the frame that was read last, which another thread may replace."""

    class Slow(EachRow):
        def read_one(self, i):
            return np.full((4, 4), i)

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "_last" and value is not None:
                time.sleep(1e-3)

    rows = Slow(64, (4, 4), np.int64, "rows")
    with ThreadPoolExecutor(8) as pool:
        assert [v[0, 0, 0] for v in pool.map(lambda i: rows.read(i, i + 1, ()), range(64))] == list(range(64))


def test_copies_of_a_large_set_are_looked_for_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "IN_MEMORY", 1000)
    place = nexus(tmp_path / "many.h5", np.repeat(counts(10), 2, axis=0))
    first = prepare_planned(plan(place))
    monkeypatch.setattr(exposures, "pixel_digest", None)  # nothing is read again
    again = prepare_planned(plan(place))
    assert first.copies == again.copies == 10 and first.held_out.tolist() == again.held_out.tolist()
    kept = list((tmp_path / "cache").rglob("exposures/*.json"))
    assert len(kept) == 1
    kept[0].write_text("[")
    monkeypatch.undo()
    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "IN_MEMORY", 1000)
    assert prepare_planned(plan(place)).held_out.tolist() == first.held_out.tolist()
