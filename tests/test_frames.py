"""Frames: laziness, refusals, peaks that follow their frames."""

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.store import read_store, save_frames
from xrddiff.data.frames import frames as F
from xrddiff.data.frames.selection import concat_frames, select_frames

GEOMETRY = dict(wavelength=1.3, distance=0.1, pixel_size=1e-4, beam_center=(8, 8))


@pytest.fixture
def stored(tmp_path):
    """An HDF5 data set of 20 frames; frame i holds i everywhere but at (0, 0)."""
    with h5py.File(tmp_path / "frames.h5", "w") as f:
        data = np.broadcast_to(np.arange(20, dtype=np.int32)[:, None, None], (20, 16, 12)).copy()
        data[:, 0, 0] = 100 + np.arange(20)
        f.create_dataset("data", data=data, chunks=(1, 16, 12))
    with h5py.File(tmp_path / "frames.h5") as f:
        yield f["data"]


def make(n=3, **kw):
    return F.make_frames(np.arange(n, dtype=np.float32)[:, None, None] * np.ones((16, 16), np.float32), **GEOMETRY | kw)


def test_h5_stays_lazy_through_everything(stored):
    ds = F.make_frames(stored, **GEOMETRY)
    joined = concat_frames([ds, ds])
    some = select_frames(select_frames(F.validate_frames(joined), slice(5, None)), [30, 2, 2, -1])
    for part in (ds, joined, some):
        assert F.is_lazy(part.intensity)
    assert some.intensity[:, 3, 3].values.tolist() == [35 - 20, 7, 7, 19]
    assert some.intensity[:, 0, 0].values.tolist() == [115, 107, 107, 119]
    assert F.frame_image(some, 0).shape == (16, 12)
    F.validate_frames(ds, values=True)
    assert F.is_lazy(ds.intensity)  # looking does not keep
    assert F.is_lazy(some.isel(y=slice(2, 5)).intensity)


def test_joined_array_indexes_as_numpy(stored):
    ds = F.make_frames(stored, **GEOMETRY)
    joined, plain = concat_frames([ds, ds, ds]).intensity, np.concatenate([stored[:]] * 3)
    assert joined.dtype == plain.dtype
    for key in (slice(None), slice(15, 45, 3), slice(44, 14, -2), [3, 59, 21, 3], 33, -1, slice(0, 0)):
        for rest in (slice(None), slice(1, 7, 2), [4, 2]):
            got = joined.isel(frame=key, y=rest).values
            assert np.array_equal(got, plain[key][..., rest, :]), (key, rest)
    assert joined.isel(frame=7, y=0, x=0).item() == 107


def test_memory_map_stays_lazy(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.float32))
    ds = F.make_frames(np.load(tmp_path / "a.npy", mmap_mode="r"), **GEOMETRY)
    assert F.is_lazy(ds.intensity) and F.is_lazy(select_frames(ds, [3, 1]).intensity)


def test_zarr_round_trip_keeps_the_schema(tmp_path):
    peaks = pd.DataFrame({"frame": [2, 0], "fs": [1.0, 2.0], "ss": [3.0, 4.0]})
    ds = make(mask=np.ones((16, 16), bool), peaks=peaks, variables={"wavelength": [1.3, 1.31, 1.32]})
    ds.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    back = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)
    F.validate_frames(back, values=True)
    assert F.is_lazy(back.intensity)
    xr.testing.assert_equal(ds, back)


def test_float64_becomes_float32_and_lists_are_arrays():
    assert F.make_frames(np.zeros((1, 4, 4))).intensity.dtype == np.float32
    assert F.make_frames([[[1, 2], [3, 4]]]).intensity.dtype.kind == "i"
    with pytest.raises(BadInput, match="dtype bool"):
        F.make_frames(np.zeros((1, 4, 4), bool))


def test_panel_stack():
    ds = F.make_frames(
        np.zeros((2, 3, 5, 7), np.int16),
        units="ADU",
        gain=30.0,
        wavelength=1.3,
        panels={"origin": np.zeros((3, 3)), "fs": np.eye(3) * 1e-4, "ss": np.eye(3)[[1, 2, 0]] * 1e-4},
        mask=np.ones((3, 5, 7), bool),
        peaks={"frame": [0], "panel": [2], "fs": [1.5], "ss": [2.5]},
    )
    F.validate_frames(ds, values=True)
    assert ds.panel_fs.dims == ("panel", "xyz") and F.frame_mask(ds).shape == (3, 5, 7)
    assert "panel_fs" in select_frames(ds, [1]).coords and select_frames(ds, [1]).sizes["peak"] == 0


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(intensity=np.zeros((4, 4))), "rank 2"),
        (dict(intensity=np.zeros((0, 4, 4), np.float32)), "at least one frame"),
        (dict(intensity=np.zeros((1, 4, 4), complex)), "complex"),
        (dict(intensity=np.array([[["a"]]])), "dtype"),
        (dict(units="counts"), "units is 'counts'"),
        (dict(gain=-1), "gain is -1"),
        (dict(background_sigma=np.nan), "background_sigma is nan"),
        (dict(distance="far"), "distance is 'far'"),
        (dict(beam_center=3), "beam_center is 3"),
        (dict(polarization=2), "polarization is 2"),
        (dict(mask=np.ones((4, 3), bool)), "mask has shape"),
        (dict(mask=np.ones((4, 4), int)), "mask has dtype"),
        (dict(mask=np.zeros((4, 4), bool)), "every pixel is masked"),
        (dict(panels={}), "panels are given"),
        (dict(panels=1, intensity=np.zeros((1, 2, 4, 4), np.float32)), "panels is 1"),
        (dict(variables=1), "variables is 1"),
        (dict(peaks=1), "the peak table is 1"),
        (dict(variables={"label": [1, 2]}), "'label' has shape"),
        (dict(variables={"mask": [1]}), "schema reserves"),
        (dict(variables={"wavelength": [0.0]}), "expected one positive number per frame"),
        (dict(wavelength_range=(2.0, 1.0)), "shortest < longest"),
        (dict(peaks={"frame": [0], "fs": [0.0]}), "no column 'ss'"),
        (dict(peaks={"frame": [1], "fs": [0.0], "ss": [0.0]}), "peak_frame runs"),
    ],
)
def test_refusals_are_one_sentence(change, words):
    with pytest.raises(BadInput) as error:
        F.make_frames(**dict(intensity=np.zeros((1, 4, 4), np.float32)) | change)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_values_are_judged_where_they_are_trusted():
    bad = np.ones((3, 4, 4), np.float32)
    bad[1, 2, 3] = np.nan
    with pytest.raises(BadInput, match=r"here: intensity of frame 1 at \(y, x\) = \(2, 3\) is nan"):
        F.validate_frames(F.make_frames(bad, **GEOMETRY), "here", values=True)
    mask = np.ones((4, 4), bool)
    mask[2, 3] = False
    F.validate_frames(F.make_frames(bad, mask=mask, **GEOMETRY), values=True)
    counts = np.zeros((3, 4, 4), np.int32)
    counts[2, 0, 0] = -1
    with pytest.raises(BadInput, match="frame 2 .* is -1"):
        F.validate_frames(F.make_frames(counts, **GEOMETRY), values=True)
    F.validate_frames(F.make_frames(counts, units="ADU", **GEOMETRY), values=True)
    masks = np.ones((3, 4, 4), bool)
    masks[1] = False
    with pytest.raises(BadInput, match="every pixel of frame 1 is masked"):
        F.validate_frames(F.make_frames(np.abs(counts), mask=masks, **GEOMETRY), values=True)


def test_blocks_cover_every_frame(monkeypatch):
    monkeypatch.setattr(F, "BLOCK_BYTES", 2 * 16 * 12 * 4)
    data = np.zeros((5, 16, 12), np.float32)
    data[4, 15, 11] = np.inf
    with pytest.raises(BadInput, match="frame 4"):
        F.validate_frames(F.make_frames(data, **GEOMETRY), values=True)


def test_white_beam_needs_no_single_wavelength():
    ds = F.make_frames(np.zeros((1, 4, 4), np.float32), **GEOMETRY | dict(wavelength=None), wavelength_range=(0.5, 2.5))
    F.validate_frames(ds)
    assert "white beam" in repr(ds.frames)


def test_select_follows_peaks_in_any_order():
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"frame": rng.integers(0, 10, 200), "fs": rng.random(200), "ss": rng.random(200)})
    ds = make(10, peaks=table)
    rows = [7, 0, 0, 9, 3]
    some = select_frames(ds, rows)
    assert (np.diff(some.peak_frame) >= 0).all()
    for new, old in enumerate(rows):
        expected = table[table.frame == old].fs.to_numpy()
        assert np.array_equal(F.frame_peaks(some, new).fs, expected)
    assert select_frames(ds, np.arange(10) > 5).sizes["frame"] == 4
    assert select_frames(ds, []).sizes["frame"] == 0
    with pytest.raises(BadInput, match="from 0 to 9"):
        select_frames(ds, [10])
    with pytest.raises(BadInput, match="10 booleans"):
        select_frames(ds, np.ones(3, bool))


def test_columns_of_peaks_come_in_the_readers_order(tmp_path):
    """Files keep variables by name; a table that begins with `background` is no pleasure."""
    peaks = {"snr": [9.0], "frame": [0], "zeta": [1.0], "ss": [2.0], "alpha": [1.0], "h": [1], "fs": [1.0]}
    ds = F.make_frames(np.zeros((1, 8, 8), np.float32), peaks=peaks)
    assert list(F.peaks_table(ds)) == ["frame", "fs", "ss", "snr", "h", "alpha", "zeta"]
    for name in ("a.h5", "a.zarr"):
        assert F.peaks_table(read_store(save_frames(ds, tmp_path / name))).equals(F.peaks_table(ds))


def test_concat():
    a = make(2, peaks={"frame": [1], "fs": [1.0], "ss": [1.0]}, mask=np.ones((16, 16), bool), variables={"g": [0, 0]})
    other = np.ones((16, 16), bool)
    other[0] = False
    b = make(1, peaks={"frame": [0], "fs": [2.0], "ss": [1.0]}, mask=other, variables={"g": [1]})
    both = F.validate_frames(concat_frames([a, b]), values=True)
    assert both.peak_frame.values.tolist() == [1, 2] and both.g.values.tolist() == [0, 0, 1]
    assert F.frame_mask(both, 0).all() and not F.frame_mask(both, 2)[0].any()
    assert list(both.data_vars)[:2] == ["intensity", "mask"]
    with pytest.raises(BadInput, match="wavelength"):
        concat_frames([a, b.assign_attrs(wavelength=2.0)])
    with pytest.raises(BadInput, match="variables g"):
        concat_frames([a, b.drop_vars("g")])
    with pytest.raises(BadInput, match="gain"):
        concat_frames([make(), make(gain=2.0)])
    panel = dict(fs=[[1, 0, 0]], ss=[[0, 1, 0]])
    stacks = [F.make_frames(np.zeros((1, 1, 4, 4)), panels=panel | {"origin": [[0, 0, z]]}) for z in (1, 2)]
    with pytest.raises(BadInput, match="panel_origin"):
        concat_frames(stacks)
    assert concat_frames(stacks[:1] * 2)["panel_origin"].shape == (1, 3)
    with pytest.raises(BadInput, match="nothing to join"):
        concat_frames([])


def test_repr_shows_a_picture_of_anything():
    for ds in (
        make(2),
        make(1, mask=np.eye(16, dtype=bool)),
        F.make_frames(np.zeros((1, 2, 8, 8), np.int16), units="ADU"),
        F.make_frames(np.full((1, 300, 500), np.nan, np.float32)),
    ):
        text = ds.frames._repr_html_()
        assert "data:image/png;base64," in text and len(text) < 100_000
        assert "frames" in repr(ds.frames)
    assert len(make(2).frames) == 2
