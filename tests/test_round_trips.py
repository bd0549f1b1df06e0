"""Measured frames written in every format and read again by somebody else: pixel by pixel, panel by panel, word by word."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import fabio
import h5py
import numpy as np
import pytest
import zarr
from conftest import measured, need

from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.geometry import PanelGeometry, geometry_of, pixel_positions

FRAMES = ["thaumatin_grid_01.cbf.bz2", "eiger16m_thermolysin.cbf.gz", "pilatus12m_thaumatin.cbf.gz", "thermolysin_cspad_401.cbf"]  # fmt: skip
SUFFIXES = [".cxi", ".nxs", ".h5", ".zarr"]


def plain(name: str, folder: Path) -> Path:
    """A measured file, unpacked."""
    path = measured(name)
    if path.suffix not in (".gz", ".bz2"):
        return path
    out = folder / path.stem
    out.write_bytes((gzip if path.suffix == ".gz" else bz2).open(path).read())
    return out


def stored(name: str, path: Path) -> np.ndarray:
    """The pixels of a measured file by fabio, in the shape of its frames: those of the banks of I23."""
    image = fabio.open(str(path)).data
    return np.stack([image[k * 212 : k * 212 + 195] for k in range(24)]) if "12m" in name else image


def pixels(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Frame 0 of a file that we wrote, and its mask (True = valid), with h5py or zarr alone."""
    if path.suffix == ".zarr":
        group = zarr.open_group(str(path), mode="r")
        return group["intensity"][0], np.asarray(group["mask"])
    with h5py.File(path, "r") as f:
        place, mask = {
            ".cxi": ("entry_1/data_1/data", "entry_1/instrument_1/detector_1/mask"),
            ".nxs": ("entry/data/data", "entry/instrument/detector/pixel_mask"),
            ".h5": ("intensity", "mask"),
        }[path.suffix]
        bits = f[mask][()]
        return f[place][0], bits if path.suffix == ".h5" else bits == 0


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_measured_frame_is_the_same_in_every_format(tmp_path, name, suffix):
    ds = open_frames(measured(name))
    path = save_frames(ds, tmp_path / f"x{suffix}")
    if suffix == ".h5":
        import hdf5plugin  # noqa: F401  our own store is packed with bitshuffle and LZ4
    found, good = pixels(path)
    own = ds["intensity"].values[0]
    assert found.dtype == own.dtype and np.array_equal(found, own)
    assert np.array_equal(np.broadcast_to(good.reshape(-1, *own.shape)[0], own.shape), np.broadcast_to(ds["mask"].values, ds["intensity"].shape)[0])  # fmt: skip
    again = open_frames(path)
    assert np.array_equal(again["intensity"].values[0], own)
    assert {k: str(v) for k, v in again.attrs.items()} == {k: str(v) for k, v in ds.attrs.items()}
    assert np.allclose(pixel_positions(geometry_of(again)), pixel_positions(geometry_of(ds)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", FRAMES[:3])
def test_the_pixels_of_a_measured_frame_are_those_of_fabio(tmp_path, name):
    ds = open_frames(measured(name), automask=[])
    assert np.array_equal(ds["intensity"].values[0], stored(name, plain(name, tmp_path)))


@pytest.mark.parametrize("name", FRAMES)
def test_nxmx_has_the_words_of_the_header(tmp_path, name):
    """Wavelength, distance, pixel size, centre, sensor, saturation, rotation and polarisation, by their names and units in NXmx."""
    ds = open_frames(measured(name))
    with h5py.File(save_frames(ds, tmp_path / "x.nxs"), "r") as f:
        beam, detector, sample = f["entry/instrument/beam"], f["entry/instrument/detector"], f["entry/sample"]
        assert beam["incident_wavelength"][()] == pytest.approx(ds.attrs["wavelength"])
        assert detector["saturation_value"][()] == ds.attrs["saturation"]
        assert detector["x_pixel_size"][()] == pytest.approx(geometry_of(ds).pixel_size)
        if "sensor_thickness" in ds.attrs:
            assert detector["sensor_thickness"][()] == pytest.approx(ds.attrs["sensor_thickness"])
            assert detector["sensor_material"][()].decode() == ds.attrs["sensor_material"]
        if "beam_center" in ds.attrs:
            assert [detector[f"beam_center_{a}"][()] for a in "xy"] == pytest.approx(ds.attrs["beam_center"])
            assert detector["distance"][()] == pytest.approx(ds.attrs["distance"])
        if "rotation_width" in ds.attrs:
            axis = f[sample["depends_on"][()]]
            assert axis.attrs["vector"].tolist() == list(ds.attrs["rotation_axis"]) and axis.attrs["units"] == "deg"
            assert axis[0] == ds.attrs["rotation_start"]
            assert sample["transformations/omega_end"][0] - axis[0] == pytest.approx(ds.attrs["rotation_width"])
        if "polarization" not in str(ds.attrs.get("assumed", "")):
            assert beam["incident_polarisation_stokes"][1] == pytest.approx(ds.attrs["polarization"])


@pytest.mark.parametrize("name", FRAMES)
def test_panels_of_nxmx_stand_where_nxmx_says(tmp_path, name):
    """The corner and the steps of each module by the package nxmx."""
    nxmx = need("nxmx")
    ds = open_frames(measured(name))
    g = geometry_of(ds)
    g = g if isinstance(g, PanelGeometry) else PanelGeometry.from_flat(g)
    with h5py.File(save_frames(ds, tmp_path / "x.nxs"), "r") as f:
        modules = nxmx.NXmx(f).entries[0].instruments[0].detectors[0].modules
        assert len(modules) == g.shape[0]
        for k, module in enumerate(modules):
            for axis, step in ((module.fast_pixel_direction, g.fs[k]), (module.slow_pixel_direction, g.ss[k])):
                vector = np.asarray(axis.vector, float) * axis[()].to("m").magnitude
                assert np.allclose(np.ravel(vector), step, atol=1e-12)
            chain = nxmx.get_dependency_chain(module.fast_pixel_direction.depends_on)
            place = nxmx.get_cumulative_transformation(chain)[0][:3, 3] * 1e-3
            assert np.allclose(place, g.origin[k], atol=1e-8)


def test_a_measured_frame_goes_through_nxmx_of_somebody_else(tmp_path):
    """Without what only xrddiff reads: the same words come back from the groups of NXmx."""
    ds = open_frames(measured("eiger16m_thermolysin.cbf.gz"))
    save_frames(ds, tmp_path / "x.nxs")
    with h5py.File(tmp_path / "x.nxs", "r") as f, h5py.File(tmp_path / "y.nxs", "w") as out:
        frames = f["entry/data/data"][()]
        f.copy("entry", out)
        for place in ("entry/data/data", "entry/instrument/detector/data"):
            del out[place]
        out["entry/data/data"] = frames
    again = open_frames(tmp_path / "y.nxs", automask=[])
    words = ("wavelength", "distance", "pixel_size", "beam_center", "saturation", "sensor_thickness", "rotation_width", "rotation_start", "rotation_axis")  # fmt: skip
    for word in words:
        assert again.attrs[word] == pytest.approx(ds.attrs[word]), word
    assert np.array_equal(np.broadcast_to(again["mask"].values, (1, *frames.shape[1:])), np.broadcast_to(ds["mask"].values, (1, *frames.shape[1:])))  # fmt: skip
