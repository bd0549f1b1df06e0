"""Readers and store: real layouts of the field, laziness, exact round trips, and one sentence for everything that goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from importlib.resources import files
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import need

from xrddiff.core.errors import BadInput
from xrddiff.core.files import CannotSave, writing
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import read_store, save_frames
from xrddiff.data.frames.automask import mask_function
from xrddiff.data.frames.frames import make_frames, peaks_table
from xrddiff.data.frames.geometry import Geometry, PanelGeometry, q_map
from xrddiff.data.frames.rows import Rows, is_lazy
from xrddiff.data.headers.sources import HDF5Rows, open_hdf5
from xrddiff.judge.views.inspection import inspect_file

SAMPLE = files("xrddiff") / "data" / "samples" / "cspad_lysozyme_r0015.h5"
BSLZ4 = hdf5plugin.Bitshuffle(cname="lz4")
KNOWN = {"wavelength": 1.3, "distance": 0.1, "pixel_size": 75e-6, "beam_center": (8.0, 6.0)}


def counts(n=4, h=12, w=16, seed=0, dtype="u2"):
    return np.random.default_rng(seed).poisson(3, (n, h, w)).astype(dtype)


def refused(match, *args, **words):
    with pytest.raises(BadInput, match=match) as caught:
        open_frames(*args, **words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- layouts


def eiger_master(folder, missing=False):
    frames = counts(6, 20, 24, dtype="u4")
    frames[:, 3, 5] = 2**32 - 1  # a pixel without a value, and one that saturated once
    frames[2, 7, 7] = 2**32 - 1
    for k, part in enumerate(np.split(frames, 3), 1):
        with h5py.File(folder / f"run_data_{k:06d}.h5", "w") as f:
            f.create_dataset("entry/data/data", data=part, chunks=(1, 20, 24), **BSLZ4)
    if missing:
        (folder / "run_data_000002.h5").unlink()
    with h5py.File(folder / "run_master.h5", "w") as f:
        for k in (1, 2, 3):
            f[f"entry/data/data_{k:06d}"] = h5py.ExternalLink(f"run_data_{k:06d}.h5", "/entry/data/data")
        d = f.create_group("entry/instrument/detector")
        for name, value, unit in (
            ("detector_distance", 0.12, "m"),
            ("x_pixel_size", 75e-6, "m"),
            ("y_pixel_size", 75e-6, "m"),
            ("beam_center_x", 11.5, "pixel"),
            ("beam_center_y", 9.25, "pixel"),
        ):
            d[name] = value
            d[name].attrs["units"] = unit
        d["description"] = "Dectris EIGER2 Si 1M"
        d["bit_depth_image"] = 32
        mask = np.zeros((20, 24), "u4")
        mask[0] = 1
        d["detectorSpecific/pixel_mask"] = mask
        f["entry/instrument/beam/incident_wavelength"] = 0.9795
        f["entry/instrument/beam/incident_wavelength"].attrs["units"] = "angstrom"
    return folder / "run_master.h5", frames


def test_eiger_master_with_external_links(tmp_path):
    path, frames = eiger_master(tmp_path)
    ds = open_frames(path)
    assert is_lazy(ds["intensity"]) and np.array_equal(ds["intensity"].values, frames)
    assert ds["intensity"].attrs["units"] == "photon" and ds.attrs["detector"] == "Dectris EIGER2 Si 1M"
    geometry = Geometry.from_frames(ds)
    assert (geometry.wavelength, geometry.distance, geometry.beam_center) == (0.9795, 0.12, (11.5, 9.25))
    # the pixel mask, and pixels at the largest number frame by frame
    expected = np.ones(frames.shape, bool)
    expected[:, 0] = expected[:, 3, 5] = expected[2, 7, 7] = False
    assert np.array_equal(ds["mask"].values, expected)
    # across the files, out of order
    assert np.array_equal(ds["intensity"].isel(frame=[5, 0, 3]).values, frames[[5, 0, 3]])


def test_eiger_missing_data_file(tmp_path):
    path, _ = eiger_master(tmp_path, missing=True)
    refused("run_data_000002.h5, which is missing", path)


def test_virtual_dataset_and_missing_source(tmp_path):
    frames = counts()
    with h5py.File(tmp_path / "raw.h5", "w") as f:
        f["data"] = frames
    layout = h5py.VirtualLayout(frames.shape, frames.dtype)
    layout[:] = h5py.VirtualSource("raw.h5", "data", frames.shape)
    with h5py.File(tmp_path / "run.nxs", "w") as f:
        f.create_virtual_dataset("entry/data/data", layout)
    assert np.array_equal(open_frames(tmp_path / "run.nxs", **KNOWN)["intensity"], frames)
    (tmp_path / "raw.h5").rename(tmp_path / "gone.h5")
    os.utime(tmp_path / "run.nxs")
    refused("virtual data set whose source raw.h5 is missing", tmp_path / "run.nxs", **KNOWN)


def cxi(path, n=5):
    rng = np.random.default_rng(1)
    frames = rng.normal(20, 5, (n, 30, 40)).astype("f4")
    with h5py.File(path, "w") as f:
        f.create_dataset("entry_1/data_1/data", data=frames, chunks=(1, 30, 40), **BSLZ4)
        mask = np.zeros((30, 40), "u2")
        mask[:, 3] = 2
        f["entry_1/data_1/mask"] = mask
        f["entry_1/result_1/nPeaks"] = [2, 0, 1, 0, 3][:n]
        f["entry_1/result_1/peakXPosRaw"] = rng.uniform(0, 39, (n, 8))
        f["entry_1/result_1/peakYPosRaw"] = rng.uniform(0, 29, (n, 8))
        f["entry_1/result_1/peakTotalIntensity"] = rng.uniform(10, 99, (n, 8))
        f["LCLS/photon_energy_eV"] = 9500.0 + np.arange(n)
        f["entry_1/instrument_1/detector_1/distance"] = 0.15
        f["entry_1/instrument_1/detector_1/x_pixel_size"] = 110e-6
    return frames


def test_cxi_with_peaks_mask_and_energy_per_frame(tmp_path):
    frames = cxi(tmp_path / "hits.cxi")
    assert "beam_center" in refused("does not say its beam_center", tmp_path / "hits.cxi")
    ds = open_frames(tmp_path / "hits.cxi", beam_center=(20, 15))
    assert np.array_equal(ds["intensity"], frames) and ds["intensity"].attrs["units"] == "ADU"
    assert not ds["mask"][:, :, 3].any() and ds["mask"].sum() == 5 * 30 * 39
    assert np.allclose(ds["wavelength"], 12398.4198 / (9500 + np.arange(5)))
    with h5py.File(tmp_path / "hits.cxi") as f:
        x, y = f["entry_1/result_1/peakXPosRaw"][()], f["entry_1/result_1/peakYPosRaw"][()]
    peaks = peaks_table(ds)
    assert peaks["frame"].tolist() == [0, 0, 2, 4, 4, 4]
    assert np.allclose(peaks["fs"], [*x[0, :2], x[2, 0], *x[4, :3]] + np.float64(0.5))
    assert np.allclose(peaks["ss"], [*y[0, :2], y[2, 0], *y[4, :3]] + np.float64(0.5))
    assert peaks["intensity"].between(10, 99).all()


def test_builtin_cspad():
    path = Path(str(SAMPLE))
    ds = open_frames(path)
    assert ds["intensity"].shape == (1, 64, 185, 194) and ds["intensity"].dtype == np.int16
    assert ds.attrs["wavelength"] == pytest.approx(1.670421) and ds.attrs["distance"] == pytest.approx(0.15)
    panels = PanelGeometry.from_frames(ds)
    assert panels.origin.shape == (64, 3) and np.allclose(np.linalg.norm(panels.fs, axis=1), 110e-6, rtol=1e-4)
    assert "CBFlib" in ds.attrs["provenance"] and ds.attrs["licence"].startswith("LGPL-2.1")


def test_the_callers_distance_moves_the_panels(tmp_path):
    header = open_frames(SAMPLE)
    before = PanelGeometry.from_frames(header)
    refined = open_frames(SAMPLE, distance=0.153)
    after = PanelGeometry.from_frames(refined)
    assert refined.attrs["distance"] == 0.153 and after.distance - before.distance == pytest.approx(0.003)
    assert np.allclose(after.origin[:, :2], before.origin[:, :2]) and (q_map(after) < q_map(before)).all()
    saved = save_frames(header, tmp_path / "a.h5")
    again = PanelGeometry.from_frames(open_frames(saved, distance="1.53e-1"))
    assert np.allclose(again.origin, after.origin, rtol=0, atol=1e-12)
    assert "153 mm, mean of 64 panels" in repr(refined.frames)
    for path in (SAMPLE, saved):
        refused("has panels, .* expected no beam_center", path, beam_center=(3, 4))
        refused("has panels, .* expected no pixel_size", path, pixel_size=1e-4)


def test_panels_without_a_distance_ask_for_it(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["data"] = counts(2, 12, 16)
    (tmp_path / "a.geom").write_text(
        "photon_energy = 9500\nadu_per_photon = 1\nres = 10000\n"
        "a/min_fs = 0\na/max_fs = 7\na/min_ss = 0\na/max_ss = 11\na/corner_x = 1\na/corner_y = 1\n"
        "b/min_fs = 8\nb/max_fs = 15\nb/min_ss = 0\nb/max_ss = 11\nb/corner_x = 20\nb/corner_y = 1\n"
    )
    refused("does not say its distance", tmp_path / "a.h5", geometry=tmp_path / "a.geom")
    ds = open_frames(tmp_path / "a.h5", geometry=tmp_path / "a.geom", distance=0.2)
    assert PanelGeometry.from_frames(ds).distance == pytest.approx(0.2) and ds.attrs["distance"] == 0.2


def test_peaknet_and_mfx_zarr(tmp_path):
    import zarr

    frames = np.zeros((4, 60, 60), "f4")
    frames[:, 10:-10, 10:-10] = np.random.default_rng(0).gamma(2, 10, (4, 40, 40))
    for version in (2, 3):
        for k in (2, 10, 1):
            group = zarr.open_group(str(tmp_path / f"v{version}" / f"run_{k}.zarr"), mode="w", zarr_format=version)
            group.create_array("images", data=frames + k * (frames > 0), chunks=(1, 60, 60))
            group.create_array("labels", data=(frames > 30).astype("u1"), chunks=(1, 60, 60))
        one = open_frames(tmp_path / f"v{version}" / "run_1.zarr", **KNOWN)
        assert is_lazy(one["intensity"]) and is_lazy(one["labels"]) and one["labels"].dims == ("frame", "y", "x")
        assert one["mask"].sum() == 4 * 40 * 40 and not one["mask"][:, 9].any()
        run = open_frames(tmp_path / f"v{version}", **KNOWN)  # a folder of stores, in natural order
        assert run.sizes["frame"] == 12 and run["shot_group"].values.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert np.array_equal(run["intensity"][[0, 4, 8], 30, 30], frames[0, 30, 30] + np.float32([1, 2, 10]))


def test_npy_is_memory_mapped(tmp_path):
    np.save(tmp_path / "run.npy", counts(dtype="f8"))
    ds = open_frames(tmp_path / "run.npy", units="photon", **KNOWN)
    assert is_lazy(ds["intensity"]) and ds["intensity"].dtype == np.float32
    assert np.array_equal(ds["intensity"], counts())


def test_image_series_natural_order_and_header(tmp_path):
    from fabio.edfimage import EdfImage
    from fabio.tifimage import TifImage

    head = {
        "WaveLength": "9.5e-11",
        "SampleDistance": "0.3",
        "PSize_1": "1e-4",
        "PSize_2": "1e-4",
        "Center_1": "8",
        "Center_2": "6",
    }
    for i in (1, 2, 10):
        EdfImage(data=counts(1)[0].astype("i4") + i, header=head).write(str(tmp_path / f"a_{i}.edf"))
        TifImage(data=counts(1)[0].astype("i4") + i).write(str(tmp_path / f"b_{i}.tif"))
    ds = open_frames(str(tmp_path / "a_*.edf"))
    assert np.array_equal(ds["intensity"][:, 0, 0] - counts(1)[0, 0, 0], [1, 2, 10])
    assert ds.attrs["wavelength"] == pytest.approx(0.95) and ds.attrs["beam_center"] == (8.0, 6.0)
    refused("several kinds", tmp_path, **KNOWN)
    message = refused("wavelength", tmp_path / "b_1.tif")
    assert "b_1.tif does not say its wavelength (Å), distance (m), pixel_size (m), beam_center" in message
    assert (
        open_frames([tmp_path / "b_10.tif", tmp_path / "b_1.tif"], **KNOWN)["intensity"][0, 0, 0]
        == counts(1)[0, 0, 0] + 10
    )
    TifImage(data=np.zeros((5, 5), "i4")).write(str(tmp_path / "b_3.tif"))
    refused(r"b_3.tif has shape \(5, 5\); expected \(12, 16\)", str(tmp_path / "b_*.tif"), **KNOWN)


def test_ambiguous_missing_and_named_data(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["a/front"], f["a/back"], f["t"] = counts(), counts(seed=1), np.arange(9.0)
    message = refused("2 data sets that could be frames", tmp_path / "x.h5", **KNOWN)
    assert "/a/front (4, 12, 16) uint16" in message
    assert np.array_equal(open_frames(tmp_path / "x.h5", dataset="a/back", **KNOWN)["intensity"], counts(seed=1))
    refused("'a/bak' is not in it; did you mean '/a/back'", tmp_path / "x.h5", dataset="a/bak", **KNOWN)
    with h5py.File(tmp_path / "y.h5", "w") as f:
        f["t"] = np.arange(9.0)
    refused(r"no data set that could be frames.*found /t \(9,\) float64", tmp_path / "y.h5")


def test_words_of_the_caller_win_and_typos_are_refused(tmp_path):
    path, _ = eiger_master(tmp_path)
    ds = open_frames(path, wavelength=1.1, beam_center=(1, 2), sample="thaumatin")
    assert ds.attrs["wavelength"] == 1.1 and ds.attrs["beam_center"] == (1.0, 2.0) and ds.attrs["sample"] == "thaumatin"
    refused("no argument 'wavelenght'; did you mean 'wavelength'", path, wavelenght=1.1)
    mask = np.ones((20, 24), bool)
    mask[:, :4] = False
    assert not open_frames(path, mask=mask)["mask"][:, :, :4].any()
    refused("mask has shape", path, mask=mask[:3])


# ---------------------------------------------------------------- geometry


def poni_text(rot=0.0, detector="Detector"):
    config = '{"pixel1": 1e-4, "pixel2": 1e-4, "orientation": 3}' if detector == "Detector" else "{}"
    return (
        f"poni_version: 2.1\nDetector: {detector}\nDetector_config: {config}\nDistance: 0.2\nPoni1: 0.003\nPoni2: 0.005\n"
        f"Rot1: {rot}\nRot2: {rot / 2}\nRot3: 0\nWavelength: 1.1e-10\n"
    )


def test_poni(tmp_path):
    pyFAI = need("pyFAI")
    np.save(tmp_path / "run.npy", counts(2, 60, 100))
    (tmp_path / "flat.poni").write_text(poni_text())
    ds = open_frames(tmp_path / "run.npy", geometry=tmp_path / "flat.poni")
    assert ds.attrs["beam_center"] == pytest.approx((50, 30)) and ds.attrs["wavelength"] == pytest.approx(1.1)
    (tmp_path / "tilted.poni").write_text(poni_text(0.3))
    ds = open_frames(tmp_path / "run.npy", geometry=tmp_path / "tilted.poni")
    assert ds["intensity"].dims == ("frame", "panel", "ss", "fs")
    ai = pyFAI.load(str(tmp_path / "tilted.poni"))
    q = ai.qArray((60, 100)) / 10  # 1/nm -> 1/Å
    assert np.allclose(q_map(PanelGeometry.from_frames(ds))[0], q, rtol=1e-6)
    (tmp_path / "pilatus.poni").write_text(poni_text(detector="Pilatus100k"))
    refused(r"is for a detector of shape \(195, 487\)", tmp_path / "run.npy", geometry=tmp_path / "pilatus.poni")
    (tmp_path / "junk.poni").write_text("not: a poni\n")
    refused("junk.poni", tmp_path / "run.npy", geometry=tmp_path / "junk.poni")


def test_poni_without_pyfai(tmp_path, monkeypatch):
    (tmp_path / "flat.poni").write_text(poni_text())
    np.save(tmp_path / "run.npy", counts(2, 60, 100))
    monkeypatch.setitem(sys.modules, "pyFAI", None)
    refused("pyFAI is not installed", tmp_path / "run.npy", geometry=tmp_path / "flat.poni")


GEOM = """
clen = /LCLS/detector_1/EncoderValue mm
photon_energy = /LCLS/photon_energy_eV eV
adu_per_eV = 0.002
res = 9090.91
data = /entry_1/data_1/data
mask = /entry_1/data_1/mask
mask_good = 0x00
mask_bad = 0xff
dim0 = %
dim1 = ss
dim2 = fs
p0/min_fs = 0
p0/max_fs = 19
p0/min_ss = 0
p0/max_ss = 29
p0/corner_x = -25.0
p0/corner_y = 3
p0/fs = +1.0x
p0/ss = +1.0y
p1/min_fs = 20
p1/max_fs = 39
p1/min_ss = 0
p1/max_ss = 29
p1/corner_x = 5
p1/corner_y = -31
p1/fs = +0.002x +0.999998y
p1/ss = -0.999998x +0.002y
badstripe/panel = p1
badstripe/min_fs = 20
badstripe/max_fs = 21
badstripe/min_ss = 0
badstripe/max_ss = 29
"""


def test_crystfel_geometry(tmp_path):
    frames = cxi(tmp_path / "hits.cxi")
    (tmp_path / "det.geom").write_text(GEOM)
    with h5py.File(tmp_path / "hits.cxi", "a") as f:
        f["LCLS/detector_1/EncoderValue"] = np.full(5, 140.0)
    ds = open_frames(tmp_path / "hits.cxi", geometry=tmp_path / "det.geom")
    assert ds["intensity"].shape == (5, 2, 30, 20) and is_lazy(ds["intensity"])
    assert np.array_equal(ds["intensity"][3, 1], frames[3, :, 20:])
    assert ds.attrs["distance"] == pytest.approx(0.14) and ds["intensity"].attrs["gain"] == pytest.approx(0.002 * 9502)
    mask = ds["mask"].values
    assert not mask[:, 0, :, 3].any() and not mask[:, 1, :, :2].any() and mask.sum() == 5 * (2 * 600 - 30 - 60)
    origin = ds["panel_origin"].values
    assert np.allclose(origin, np.array([[-25, 3, 0], [5, -31, 0]]) / 9090.91 + [0, 0, 0.14])
    whole = open_frames(tmp_path / "hits.cxi", beam_center=(0, 0))
    a, b = peaks_table(whole), peaks_table(ds)
    assert len(a) == len(b) and set(b["panel"]) <= {0, 1}
    (tmp_path / "other.geom").write_text(GEOM.replace("EncoderValue", "Encoder"))
    refused(
        "clen is at /LCLS/detector_1/Encoder of the data file", tmp_path / "hits.cxi", geometry=tmp_path / "other.geom"
    )
    back = b.assign(fs=b["fs"] + 20 * b["panel"]).sort_values(["frame", "fs"])
    assert np.allclose(back["fs"], a.sort_values(["frame", "fs"])["fs"])


def test_crystfel_panels_on_their_own_axis_and_a_plain_grid(tmp_path):
    stack = np.random.default_rng(0).normal(0, 1, (3, 2, 10, 12)).astype("f4")
    with h5py.File(tmp_path / "jf.h5", "w") as f:
        f["data/JF/data"] = stack
    lines = "photon_energy = 9500\nclen = 0.1\nres = 13333.3\ndata = /data/JF/data\ndim0 = %\ndim2 = ss\ndim3 = fs\n"
    for k in (1, 0):
        lines += f"m{k}/dim1 = {k}\nm{k}/min_fs = 0\nm{k}/max_fs = 11\nm{k}/min_ss = 0\nm{k}/max_ss = 9\nm{k}/corner_x = {14 * k}\nm{k}/corner_y = 0\n"
    (tmp_path / "jf.geom").write_text(lines)
    ds = open_frames(tmp_path / "jf.h5", geometry=tmp_path / "jf.geom")
    assert np.array_equal(ds["intensity"], stack[:, ::-1])  # in the order of the geometry file
    # modules that only repeat one grid: the frame stays an image, the gap between them is masked
    np.save(tmp_path / "grid.npy", counts(2, 10, 26))
    grid = "wavelength = 1.0 A\nclen = 0.1\nres = 10000\nmin_ss = 0\nmax_ss = 9\n"
    for k in (0, 1):
        grid += (
            f"a{k}/min_fs = {14 * k}\na{k}/max_fs = {14 * k + 11}\na{k}/corner_x = {14 * k - 13}\na{k}/corner_y = -5\n"
        )
    (tmp_path / "grid.geom").write_text(grid)
    ds = open_frames(tmp_path / "grid.npy", geometry=tmp_path / "grid.geom")
    assert ds["intensity"].dims == ("frame", "y", "x") and ds.attrs["beam_center"] == pytest.approx((13, 5))
    assert ds["mask"].sum() == 2 * 10 * 24 and not ds["mask"][:, :, 12:14].any()


def test_crystfel_flags_make_a_mask_per_frame(tmp_path):
    np.save(tmp_path / "run.npy", counts(3, 10, 12, dtype="i4"))
    (tmp_path / "flags.geom").write_text(
        "wavelength = 1 A\nclen = 0.1\nres = 1e4\nflag_morethan = 5\nflag_equal = 0\n"
        "a/min_fs = 0\na/max_fs = 11\na/min_ss = 0\na/max_ss = 9\na/corner_x = -6\na/corner_y = -5\n"
    )
    ds = open_frames(tmp_path / "run.npy", geometry=tmp_path / "flags.geom")
    v = ds["intensity"].values
    assert np.array_equal(ds["mask"].values, (v <= 5) & (v != 0))


# ---------------------------------------------------------------- laziness


def test_opening_reads_no_frame_and_indexing_reads_one(tmp_path, monkeypatch):
    cxi(tmp_path / "hits.cxi")
    read = []
    plain = HDF5Rows.read
    monkeypatch.setattr(HDF5Rows, "read", lambda self, a, b, rest: read.append((a, b)) or plain(self, a, b, rest))
    ds = open_frames(tmp_path / "hits.cxi", beam_center=(20, 15))
    assert read == []
    ds["intensity"][3].values  # noqa: B018
    assert read == [(3, 4)]


def test_a_file_far_larger_than_what_is_read(tmp_path):
    """A sparse stack of 40 GB opens at once, and one frame costs one frame of memory."""
    import resource

    with h5py.File(tmp_path / "big.h5", "w") as f:
        f.create_dataset("data/data", (10_000, 1024, 1024), "f4", chunks=(1, 1024, 1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ds = open_frames(tmp_path / "big.h5", **KNOWN)
    assert ds["intensity"].isel(frame=9_999).values.shape == (1024, 1024)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_flagged_frames_are_read_once_for_values_and_mask(tmp_path, monkeypatch):
    path, _ = eiger_master(tmp_path)
    ds = open_frames(path)
    assert ds["mask"].values.any()  # the rules that look at the series have looked
    read = []
    plain = HDF5Rows.read
    monkeypatch.setattr(HDF5Rows, "read", lambda self, a, b, rest: read.append((a, b)) or plain(self, a, b, rest))
    part = ds.isel(frame=slice(0, 2))
    values = part["intensity"].values
    masks = [mask_function(part)(i, values[i]) for i in range(2)]  # as the loader does
    assert read == [(0, 2)] and np.sum(masks) == 2 * (20 * 24 - 24 - 1)


class Reads(Rows):
    """Random access against NumPy."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def read(self, a, b, rest):
        return self.array[(slice(a, b), *rest)]


def test_every_way_of_indexing():
    array = np.random.default_rng(0).integers(0, 99, (7, 5, 6))
    lazy = xr.DataArray(
        xr.Variable(("frame", "y", "x"), make_frames(Reads(array), units="ADU")["intensity"].variable._data)
    )
    eager = xr.DataArray(array, dims=("frame", "y", "x"))
    keys = [0, -1, slice(None), slice(1, 6, 2), slice(5, 1, -2), [3, 1, 1], np.array([], int), np.arange(7) % 2 == 0]
    for a in keys:
        for b in (2, slice(None, None, -1), [0, 4, 2]):
            for c in (5, slice(1, 3), [1, 1]):
                assert np.array_equal(lazy.isel(frame=a, y=b, x=c).values, eager.isel(frame=a, y=b, x=c).values), (
                    a,
                    b,
                    c,
                )
    rows, columns = xr.DataArray([0, 6, 2], dims="p"), xr.DataArray([5, 0, 1], dims="p")
    assert np.array_equal(lazy.isel(frame=rows, x=columns).values, eager.isel(frame=rows, x=columns).values)


# ---------------------------------------------------------------- saving


def rich_frames():
    rng = np.random.default_rng(3)
    return make_frames(
        rng.normal(5, 2, (4, 3, 10, 12)).astype("f4"),
        mask=rng.random((4, 3, 10, 12)) > 0.1,
        units="ADU",
        gain=3.5,
        wavelength=1.25,
        background_sigma=0.7,
        panels={"origin": rng.random((3, 3)), "fs": rng.random((3, 3)), "ss": rng.random((3, 3))},
        variables={
            "shot_group": np.array([0, 0, 1, 2]),
            "wavelength": rng.uniform(1.2, 1.3, 4),
            "label": np.array(["hit", "", "ä · 'x'", "blank"]),
            "orientation": rng.random((4, 2, 3, 3)),
        },
        peaks=pd.DataFrame(
            {"frame": [0, 3], "panel": [1, 2], "fs": [1.25, np.nan], "ss": [0.1, 1e-300], "h": np.int32([1, -2])}
        ),
        sample="lysozyme",
        numbers=[1, 2, 3],
        nested={"a": {"b": [1.5, None, True]}},
        config="x" * 100_000,
        nothing=None,
        flag=True,
        not_a_number=float("nan"),
        big=2**70,
    )


@pytest.mark.parametrize("name", ["frames.h5", "frames.zarr"])
def test_round_trip_is_exact(tmp_path, name):
    ds = rich_frames()
    again = open_frames(save_frames(ds, tmp_path / name))
    xr.testing.assert_identical(again, ds)
    for k, v in ds.variables.items():
        assert again[k].dtype == v.dtype or v.dtype.kind in "OU", k
    assert is_lazy(again["intensity"]) and is_lazy(again["mask"]) and not is_lazy(again["orientation"])
    # over what is there already, and from a lazy set
    save_frames(again.isel(frame=[2, 0]).drop_dims("peak"), tmp_path / name)
    assert np.array_equal(read_store(tmp_path / name)["intensity"], ds["intensity"][[2, 0]])
    assert os.listdir(tmp_path) == [name]


def test_no_peaks_and_scalar_variables_round_trip(tmp_path):
    ds = make_frames(counts(), peaks={"frame": [], "fs": [], "ss": []}, **KNOWN)
    for name in ("a.h5", "a.zarr"):
        xr.testing.assert_identical(open_frames(save_frames(ds, tmp_path / name)), ds)


def test_other_programs_find_the_images(tmp_path):
    save_frames(make_frames(counts(), **KNOWN), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as f:
        assert np.array_equal(f["entry_1/data_1/data"], counts())
        assert f["intensity"].chunks == (1, 12, 16) and "32008" in f["intensity"]._filters
    with xr.open_zarr(save_frames(make_frames(counts(), **KNOWN), tmp_path / "a.zarr"), consolidated=False) as ds:
        assert np.array_equal(ds["intensity"], counts()) and ds["intensity"].dims == ("frame", "y", "x")


def test_words_over_a_saved_file(tmp_path):
    save_frames(make_frames(counts(), wavelength=1.3, distance=0.1), tmp_path / "a.h5")
    refused("no pixel_size", tmp_path / "a.h5")
    ds = open_frames(tmp_path / "a.h5", pixel_size=75e-6, beam_center=[8, 6])
    assert ds.attrs["beam_center"] == (8, 6) and ds.attrs["wavelength"] == 1.3
    refused("in 'intensity'; expected no dataset", tmp_path / "a.h5", dataset="/other")
    refused("beam_center is 3; expected 2 finite numbers", tmp_path / "a.h5", beam_center=3)


def test_a_pattern_or_a_list_of_one_is_that_file(tmp_path):
    ds = make_frames(counts(), variables={"label": np.arange(4)}, **KNOWN)
    save_frames(ds, tmp_path / "a_1.h5")
    for path in (str(tmp_path / "a_*.h5"), [tmp_path / "a_1.h5"]):
        assert open_frames(path).identical(open_frames(tmp_path / "a_1.h5"))
    (tmp_path / "b[1].h5").write_bytes((tmp_path / "a_1.h5").read_bytes())  # brackets in a name
    assert open_frames(str(tmp_path / "b[1].h5")).sizes["frame"] == 4
    refused("no file matches", str(tmp_path / "c*.h5"))
    refused("the list of files is empty", [])


def test_refused_before_writing(tmp_path):
    ds = make_frames(counts(), **KNOWN)
    with pytest.raises(BadInput, match="ends in .cxi or .nxs or .h5 or .zarr"):
        save_frames(ds, tmp_path / "a.npz")
    with pytest.raises(BadInput, match="attribute 'f' of the frames is a function"):
        save_frames(ds.assign_attrs(f=len.__class__ and (lambda: 0)), tmp_path / "a.h5")
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotSave, match="cannot save"):
        save_frames(ds, tmp_path / "file" / "a.h5")
    for name in ("thesis.zarr", "thesis.h5"):  # somebody's folder is not replaced
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
        with pytest.raises(CannotSave, match="there is a folder of that name"):
            save_frames(ds, tmp_path / name)
        assert (tmp_path / name / "thesis.tex").read_text() == "years of work"
    assert sorted(os.listdir(tmp_path)) == ["file", "thesis.h5", "thesis.zarr"]


def test_what_a_killed_process_left_goes_with_the_next_attempt(tmp_path):
    """`kill -9` while a store is written; a process that lives keeps its hidden folder, also one that writes to the same place."""
    kill = "import os, sys\nfrom xrddiff.core.files import writing\nwith writing(sys.argv[1]) as part:\n    part.mkdir()\n    (part / 'c').write_text('half')\n    os.kill(os.getpid(), 9)"
    target = tmp_path / "a.zarr"
    assert subprocess.run([sys.executable, "-c", kill, target]).returncode == -9 and len(os.listdir(tmp_path)) == 1
    with writing(tmp_path / "b.zarr") as other:
        other.mkdir()
    assert len(os.listdir(tmp_path)) == 2  # what was left of another place is not its business
    with writing(target) as alive:
        alive.mkdir()
        save_frames(make_frames(counts(), **KNOWN), target)
        assert sorted(os.listdir(tmp_path)) == sorted([alive.name, "a.zarr", "b.zarr"])
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b.zarr"]


WRITE = """
import os, sys, tempfile, numpy as np
from xrddiff.data.frames.frames import make_frames
from xrddiff.core.files import CannotSave
from xrddiff.data.formats.store import save_frames
folder, setup = sys.argv[1], sys.argv[2]
with tempfile.TemporaryDirectory() as place:  # what is imported late is imported now
    for name in ("a.h5", "a.zarr"):
        save_frames(make_frames(np.zeros((1, 8, 8), "f4"), units="ADU"), os.path.join(place, name))
exec(setup)
ds = make_frames(np.random.default_rng(0).random((200, 64, 64), dtype="f4"), units="ADU")
for name in ("a.h5", "a.zarr"):
    try:
        save_frames(ds, os.path.join(folder, name))
        print("saved")
    except CannotSave as error:
        print(error)
print(sorted(os.listdir(folder)))
"""


def write_in(folder, setup="", **words):
    done = subprocess.run([sys.executable, "-c", WRITE, str(folder), setup], capture_output=True, text=True, **words)
    assert done.returncode == 0, done.stderr[-2000:]  # HDF5 crashes at exit where a file could not be closed
    return done.stdout.splitlines()


def test_file_size_limit_leaves_nothing(tmp_path):
    before = save_frames(make_frames(counts(), **KNOWN), tmp_path / "a.h5").read_bytes()
    said = write_in(tmp_path, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))")
    assert "larger than the limit of this system or user; nothing was left behind" in said[0]
    assert "larger than the limit" in said[1] and said[2] == "['a.h5']"
    assert (tmp_path / "a.h5").read_bytes() == before


def test_full_disk_leaves_nothing(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this system mounts no tmpfs")
    try:
        said = write_in(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert [s.endswith("the disk is full; nothing was left behind") for s in said[:2]] == [True, True]
    assert said[2] == "[]"


def test_unwritable_folder():
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "locked"
        folder.mkdir(mode=0o555)
        Path(place).chmod(0o755)
        # root writes anywhere: be somebody else
        said = write_in(folder, "os.setuid(65534)" if os.geteuid() == 0 else "")
    assert "the folder is not writable" in said[0] and "the folder is not writable" in said[1] and said[2] == "[]"


def test_killed_while_saving_leaves_the_old_file(tmp_path):
    path = save_frames(make_frames(counts(), **KNOWN), tmp_path / "a.h5")
    code = textwrap.dedent(
        """
        import os, signal, sys, numpy as np
        from xrddiff.data.frames.frames import make_frames
        from xrddiff.data.formats.store import save_frames
        ds = make_frames(np.zeros((4000, 64, 64), "f4"), units="ADU")
        save_frames(ds, sys.argv[1], progress=lambda n: os.kill(os.getpid(), signal.SIGKILL))
        """
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True)
    assert done.returncode == -9
    assert np.array_equal(open_frames(path)["intensity"], counts())


# ---------------------------------------------------------------- bad files


def test_truncated_and_foreign_files(tmp_path):
    good = save_frames(make_frames(counts(50, 40, 40), **KNOWN), tmp_path / "a.h5").read_bytes()
    for size in (len(good) - 1, len(good) // 2, 600):
        (tmp_path / "cut.h5").write_bytes(good[:size])
        refused("cut.h5 is a (truncated|damaged) HDF5 file", tmp_path / "cut.h5")
    (tmp_path / "empty.h5").write_bytes(b"")
    refused(r"empty.h5 is empty \(0 bytes\)", tmp_path / "empty.h5")
    (tmp_path / "text.h5").write_text("these are not the frames you are looking for")
    refused("text.h5 is not HDF5: it begins with b'these ar'", tmp_path / "text.h5")
    refused("none.h5 does not exist", tmp_path / "none.h5")
    np.save(tmp_path / "a.npy", counts())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:500])
    refused("cut.npy cannot be read, it is truncated or damaged", tmp_path / "cut.npy", **KNOWN)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    refused("holds Python objects", tmp_path / "objects.npy", **KNOWN)
    np.savez(tmp_path / "a.npz", a=counts())
    refused("zip archive", tmp_path / "a.npz", **KNOWN)
    (tmp_path / "notes.txt").write_text("hello")
    refused("not an image that fabio can read", tmp_path / "notes.txt")
    (tmp_path / "dir").mkdir()
    refused("holds no image file", tmp_path / "dir")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text("{")
    refused("not a zarr store that can be read", tmp_path / "a.zarr")
    refused("no file matches", str(tmp_path / "*.cbf"))


def test_damaged_chunk_is_named(tmp_path):
    path = save_frames(make_frames(counts(50, 40, 40), **KNOWN), tmp_path / "a.h5")
    with h5py.File(path) as f:
        at = f["intensity"].id.get_chunk_info(7)
    raw = bytearray(path.read_bytes())
    raw[at.byte_offset : at.byte_offset + at.size] = os.urandom(at.size)
    path.write_bytes(raw)
    ds = open_frames(path)
    assert ds["intensity"][6].values.any()
    with pytest.raises(BadInput, match="frames 7 to 7 of data set 'intensity' of .*a.h5 cannot be read"):
        ds["intensity"][7].values  # noqa: B018


def test_truncated_images(tmp_path):
    from fabio.cbfimage import CbfImage
    from fabio.tifimage import TifImage

    big = counts(1, 200, 300, dtype="i4")[0]
    TifImage(data=big).write(str(tmp_path / "a.tif"))
    CbfImage(data=big).write(str(tmp_path / "a.cbf"))
    for name in ("a.tif", "a.cbf"):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / ("cut_" + name)).write_bytes(raw[: len(raw) // 2])
        refused(f"cut_{name} is truncated: its header declares", tmp_path / ("cut_" + name), **KNOWN)
    raw = bytearray((tmp_path / "a.cbf").read_bytes())
    raw[-5000] ^= 1
    (tmp_path / "flipped.cbf").write_bytes(raw)
    refused("flipped.cbf (cannot be read|is damaged)", tmp_path / "flipped.cbf", **KNOWN)


def test_wrong_dtype_and_rank(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["data/data"] = counts().astype("c16")
        f["data/bool"] = counts() > 2
        f["data/text"] = np.array([[b"a"] * 9] * 9)
        f["data/five"] = np.zeros((2, 2, 2, 9, 9))
        f["data/line"] = np.zeros(9)
    refused("'/data/data' of .* holds complex numbers", tmp_path / "x.h5", **KNOWN)
    refused("holds text", tmp_path / "x.h5", dataset="data/text", **KNOWN)
    refused("has rank 5", tmp_path / "x.h5", dataset="data/five", **KNOWN)
    refused("has rank 1", tmp_path / "x.h5", dataset="data/line", **KNOWN)
    refused("bool", tmp_path / "x.h5", dataset="data/bool", **KNOWN)
    np.save(tmp_path / "bool.npy", counts() > 2)
    refused("bool.npy holds booleans", tmp_path / "bool.npy", **KNOWN)
    from PIL import Image

    Image.fromarray(np.zeros((9, 9, 3), "u1")).save(tmp_path / "rgb.tif")
    refused("rank 3|cannot be read", tmp_path / "rgb.tif", **KNOWN)


def test_unknown_compression(tmp_path):
    """A data set whose filter nobody has: written by giving an optional filter a number of its own."""
    with h5py.File(tmp_path / "x.h5", "w") as f:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 12, 16))
        plist.set_filter(32768 + 321, h5py.h5z.FLAG_OPTIONAL, (1, 2))
        space = h5py.h5s.create_simple((4, 12, 16))
        h5py.h5d.create(f.create_group("data").id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
    refused("is compressed with the HDF5 filter 33089 .* which no installed plugin reads", tmp_path / "x.h5", **KNOWN)


def test_bad_values_and_masks(tmp_path):
    with h5py.File(tmp_path / "x.cxi", "w") as f:
        f["entry_1/data_1/data"] = counts()
        f["entry_1/data_1/mask"] = np.ones((12, 16), "u1")
    refused("every pixel is masked", tmp_path / "x.cxi", **KNOWN)
    np.save(tmp_path / "x.npy", counts())
    refused("wavelength is 'long'", tmp_path / "x.npy", **(KNOWN | {"wavelength": "long"}))
    refused("wavelength is -1", tmp_path / "x.npy", **(KNOWN | {"wavelength": -1}))


def test_a_replaced_file_is_read_anew(tmp_path):
    path = tmp_path / "a.h5"
    save_frames(make_frames(counts(seed=1), **KNOWN), path)
    first = open_frames(path)
    first["intensity"][0].values  # noqa: B018  opened
    save_frames(make_frames(counts(seed=2), **KNOWN), path)
    assert np.array_equal(open_frames(path)["intensity"], counts(seed=2))
    assert np.array_equal(first["intensity"], counts(seed=1))  # the old one lives on while it is held
    assert open_hdf5(path) is open_hdf5(path)


def _in_child(ds):
    return float(ds["intensity"][1].values.sum())


def test_frames_travel_to_worker_processes(tmp_path):
    import multiprocessing as mp

    ds = open_frames(save_frames(make_frames(counts(), **KNOWN), tmp_path / "a.h5"))
    here = _in_child(ds)
    for method in ("fork", "spawn"):
        with mp.get_context(method).Pool(2) as pool:
            assert pool.map(_in_child, [ds, ds]) == [here, here]


# ---------------------------------------------------------------- inspection


def test_inspect_any_file(tmp_path):
    path, _ = eiger_master(tmp_path)
    about = inspect_file(path)
    assert about["frames"] == (6, 20, 24) and about["layout"] == "NXmx" and "missing" not in about
    assert any("bitshuffle" in a["filters"] for a in about["arrays"])
    np.save(tmp_path / "x.npy", counts())
    about = inspect_file(tmp_path / "x.npy", png=tmp_path / "x.png")
    assert about["missing"] == "wavelength, distance, pixel_size, beam_center"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with h5py.File(tmp_path / "y.h5", "w") as f:
        f["a"], f["b"] = counts(), counts()
    about = inspect_file(tmp_path / "y.h5")
    assert "could be frames" in about["problem"] and len(about["arrays"]) == 2
    assert "could be frames" in " ".join(str(about).split())  # lines end where the console does
    with pytest.raises(BadInput, match="there is no frame 9"):
        inspect_file(path, frame=9)
