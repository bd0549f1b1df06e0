"""A folder of many files: looked through once, opened again from what was kept, never with more open files than allowed."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import xrddiff as xd
from xrddiff.data.formats import scan_cache
from xrddiff.data.frames.rows import frame_origin
from xrddiff.data.headers import sources

COUNT = 24
MASKS = np.random.default_rng(1).random((COUNT, 12, 10)) < 0.1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which so few files are worth remembering."""
    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scan_cache, "FEWEST", COUNT)
    return tmp_path / "cache" / "folders"


def write(path: Path, i: int, *, nexus: bool = False, link: Path | None = None) -> None:
    """A file of one frame or two, in the manner of CXI, or of a counting detector with its flags and mask."""
    pixels = np.random.default_rng(i).poisson(3, (1 + i % 2, 12, 10)).astype(np.uint16)
    place, group = ("entry/data", "entry/instrument") if nexus else ("entry_1/data_1", "entry_1/instrument_1")
    with h5py.File(path, "w") as f:
        if nexus:
            pixels[0, 0, 0] = 65535
            f[f"{group}/detector/pixel_mask"] = MASKS[i % 3].astype(np.uint32)
        if link is None:
            f[f"{place}/data"] = pixels
        else:
            with h5py.File(link, "w") as other:
                other["data"] = pixels
            f.require_group(place)["data"] = h5py.ExternalLink(link.name, "data")
        detector = f.require_group(f"{group}/detector" if nexus else f"{group}/detector_1")
        detector["distance"], detector["x_pixel_size"], detector["y_pixel_size"] = 0.1, 1e-4, 1e-4
        f[f"{group}/beam/incident_wavelength" if nexus else f"{group}/source_1/energy"] = 1.3 if nexus else 1.5e-15
        f["entry/hit" if nexus else "entry_1/hit"] = np.full(len(pixels), i % 5)


def folder(tmp_path: Path, **words: bool) -> Path:
    place = tmp_path / "frames"
    place.mkdir()
    for i in range(COUNT):
        write(place / f"run_{i:02d}.h5", i, **words)
    return place


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    assert dict(a.attrs) == dict(b.attrs) and set(a.variables) == set(b.variables) and set(a.coords) == set(b.coords)
    for name in a.variables:
        assert a[name].dtype == b[name].dtype and a[name].dims == b[name].dims and a[name].attrs == b[name].attrs, name
        assert np.array_equal(a[name].values, b[name].values), name


@pytest.mark.parametrize("nexus", [False, True])
def test_what_was_kept_is_what_was_found(tmp_path, cache, monkeypatch, nexus):
    place, words = folder(tmp_path, nexus=nexus), dict(beam_center=(5, 6))
    first = xd.open_frames(place, **words)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(sources, "open_hdf5", None)  # no file is opened
    again = xd.open_frames(place, **words)
    monkeypatch.undo()
    same(first, again)
    assert "run_05.h5" in frame_origin(again["intensity"].variable, 7)
    shuffled = [3, 30, 4, 0]
    assert np.array_equal(first["mask"][shuffled].values, again["mask"][shuffled].values)


def test_a_folder_that_changed_is_looked_through_again(tmp_path, cache):
    place, words = folder(tmp_path), dict(beam_center=(5, 6))
    before = xd.open_frames(place, **words)
    write(tmp_path / "new.h5", 900)
    (tmp_path / "new.h5").rename(place / "run_07.h5")
    after = xd.open_frames(place, **words)
    assert after.sizes["frame"] == before.sizes["frame"] - 1 and len(list(cache.iterdir())) == 2
    assert xd.open_frames(place, **words, distance=0.3).attrs["distance"] == 0.3
    (place / "run_08.h5").unlink()  # too few files now
    assert xd.open_frames(place, **words).sizes["frame"] == after.sizes["frame"] - 1
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("name", ["rows.json", "arrays.npz", "frames.zarr/zarr.json", "frames.zarr/shot_group/c/0"])
def test_what_was_kept_and_is_damaged_is_not_believed(tmp_path, cache, name):
    place, words = folder(tmp_path), dict(beam_center=(5, 6))
    first = xd.open_frames(place, **words)
    file = next(cache.iterdir()) / name
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        same(first, xd.open_frames(place, **words))


def test_frames_of_other_files_are_not_remembered(tmp_path, cache):
    """The pixels of a master file lie elsewhere: its date says nothing of theirs."""
    place = tmp_path / "frames"
    place.mkdir()
    for i in range(COUNT):
        write(place / f"run_{i:02d}.h5", i, link=place / f"data_{i:02d}.bin")
    assert xd.open_frames(place, beam_center=(5, 6)).sizes["frame"] == COUNT * 3 // 2
    assert not cache.exists()


@pytest.mark.parametrize("way", ["link", "mask", "geom"])
def test_a_mask_in_another_file_that_changes_is_read_again(tmp_path, cache, way):
    """A mask by an external link, by `FILE:/path`, and in a file that a .geom names."""
    place, other, words = tmp_path / "frames", tmp_path / "frames" / "flags.bin", dict(beam_center=(5, 6))
    place.mkdir()
    for i in range(COUNT):
        write(place / f"run_{i:02d}.h5", i, nexus=way != "geom")
        if way == "link":
            with h5py.File(place / f"run_{i:02d}.h5", "r+") as f:
                del f["entry/instrument/detector/pixel_mask"]
                f["entry/instrument/detector/pixel_mask"] = h5py.ExternalLink(other.name, "mask")
    if way == "mask":
        words["mask"] = f"{other}:/mask"
    if way == "geom":
        lines = ["clen = 0.1", "res = 10000", "dim0 = %", "dim1 = ss", "dim2 = fs", "data = /entry_1/data_1/data"]
        lines += [f"mask0_file = {other}", "mask0_data = /mask", "mask0_goodbits = 0x0", "mask0_badbits = 0x1"]
        panel = dict(min_fs=0, max_fs=9, min_ss=0, max_ss=11, corner_x=-5, corner_y=-6, fs="+1.0x", ss="+1.0y")
        (tmp_path / "a.geom").write_text("\n".join([*lines, *(f"p0/{k} = {v}" for k, v in panel.items())]) + "\n")
        words = dict(geometry=str(tmp_path / "a.geom"))
    bad = []
    for rows in (1, 5):
        mask = np.zeros((12, 10), np.uint32)
        mask[:rows] = 1
        other.unlink(missing_ok=True)
        with h5py.File(other, "w") as f:
            f["mask"] = mask
        frames = xd.open_frames(place, **words, automask=[])
        valid = frames["mask"].values
        bad.append(
            int((~valid).reshape(-1, 12, 10)[0].sum())
            if way != "mask"
            else valid.reshape(-1, 12, 10)[0][rows - 1].any()
        )
    assert bad == ([10, 50] if way != "mask" else [False, False])


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, cache):
    cache.parent.write_text("a file in its place")
    place = folder(tmp_path)
    assert xd.open_frames(place, beam_center=(5, 6)).sizes["frame"] == COUNT * 3 // 2


def test_no_more_files_are_open_than_a_process_may_have(tmp_path, monkeypatch):
    place, limits = folder(tmp_path), resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(sources, "OPEN_SOURCES", 4)
    frames = xd.open_frames(place / "run_00.h5", beam_center=(5, 6))  # what is started once is started now
    here = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 12, limits[1]))
    try:
        frames = xd.open_frames(place, beam_center=(5, 6))
        order = np.random.default_rng(0).permutation(frames.sizes["frame"])
        assert all(frames["intensity"][int(i)].values.sum() > 0 for i in order)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
