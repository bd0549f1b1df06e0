"""Stores that were damaged: whatever bit is flipped or file is lost, the frames are refused or they are the same."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import xarray as xr

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.parts import PartStore, finish_parts, write_part
from xrddiff.data.formats.store import read_store, save_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.rows import frame_reader
from xrddiff.learn.loading import cache


def frames(n=12):
    counts = np.random.default_rng(0).poisson(2, (n, 24, 32)).astype("u2")
    counts[1] = 0  # a frame of zeros is written like others
    return make_frames(
        counts,
        mask=np.arange(24 * 32).reshape(24, 32) % 97 != 5,
        wavelength=1.25,
        distance=0.1,
        pixel_size=1e-4,
        beam_center=(16.5, 12.25),
        variables={"shot_group": np.arange(n) // 3, "label": np.array(["hit", "blank"] * (n // 2))},
        peaks={"frame": [0, 2, 2], "fs": [1.5, 2.5, 9.0], "ss": [3.5, 4.5, 8.0]},
        note="a note",
        config={"a": [1, 2], "b": {"c": None}},
    )


def outcome(path, expected):
    """'seen' where the store is refused, 'same' where all of it is as it was; anything else fails."""
    try:
        found = read_store(path).load()
    except BadInput as error:
        assert "\n" not in str(error)
        return "seen"
    xr.testing.assert_identical(found, expected)
    return "same"


@pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
def test_every_flipped_bit_is_seen_or_harmless(name, tmp_path):
    expected = frames()
    path = save_frames(expected, tmp_path / name)
    files = [p for p in (sorted(path.rglob("*")) if path.is_dir() else [path]) if p.is_file()]
    whole = [(f, i) for f in files for i in range(f.stat().st_size)]
    rng, counts = np.random.default_rng(1), {"seen": 0, "same": 0}
    for k in np.linspace(0, len(whole) - 1, 150).astype(int):
        file, at = whole[k]
        before = file.read_bytes()
        after = bytearray(before)
        after[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(after)
        counts[outcome(path, expected)] += 1
        file.write_bytes(before)
    assert outcome(path, expected) == "same" and counts["seen"] > 60, counts


@pytest.mark.parametrize("what", ["missing", "empty", "short"])
def test_a_shard_that_is_lost(what, tmp_path):
    path = save_frames(frames(), tmp_path / "a.zarr")
    shard = next(p for p in (path / "intensity" / "c").rglob("*") if p.is_file())
    if what == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: 0 if what == "empty" else 50])
    ds = read_store(path)
    with pytest.raises(BadInput, match="lost: the file c/0/0/0 is" if what != "short" else "cannot be read"):
        ds["intensity"].load()
    with pytest.raises(BadInput):
        frame_reader(ds["intensity"].variable)(3)


def test_a_chunk_of_hdf5_that_is_lost(tmp_path):
    with h5py.File(save_frames(frames(), tmp_path / "a.h5"), "r+") as f:  # what a broken writer might leave
        whole, attrs = f["intensity"][:5], dict(f["intensity"].attrs)
        del f["intensity"]
        data = f.create_dataset("intensity", (12, 24, 32), "u2", chunks=(1, 24, 32))
        data[:5] = whole
        data.attrs.update(attrs)
    with pytest.raises(BadInput, match="has 5 of its 12 frames; the others are lost"):
        read_store(tmp_path / "a.h5")


def test_attributes_and_labels_are_verified(tmp_path):
    with h5py.File(save_frames(frames(), tmp_path / "a.h5"), "r+") as f:
        f.attrs["wavelength"] = 1.3
    with pytest.raises(BadInput, match="was changed or damaged"):
        read_store(tmp_path / "a.h5")
    path = save_frames(frames(), tmp_path / "a.zarr")
    about = json.loads((path / "zarr.json").read_text())
    del about["attributes"]["xrddiff_digest"]
    (path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match="was never finished"):
        read_store(path)


def test_parts_have_checksums_too(tmp_path):
    ds = frames()
    store = PartStore.create(tmp_path / "parts", ds, 4)
    with pytest.raises(BadInput, match="was never finished"):
        read_store(store.frames)
    for part, rows in enumerate(store.rows):
        write_part(store, part, {"intensity": ds["intensity"].values[rows]})
    path = finish_parts(store, tmp_path / "a.zarr")
    assert outcome(path, ds) == "same"
    (path / "intensity" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(BadInput, match="frames 4 to 7 of array 'intensity' .* are lost"):
        read_store(path)["intensity"][4:8].load()


def test_a_damaged_block_of_the_cache_is_simulated_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cache, "block_size", lambda shape: 4)
    words = {"cache": tmp_path, "progress": False}
    whole = cache.simulated_frames("sim128", 8, **words).load()
    blocks = sorted(next((tmp_path / "simulated").iterdir()).glob("block-*.h5"))
    assert len(blocks) == 2
    with h5py.File(blocks[1]) as f:
        chunk = f["intensity"].id.get_chunk_info(2)
    data = bytearray(blocks[1].read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 16
    blocks[1].write_bytes(data)
    capsys.readouterr()
    xr.testing.assert_identical(cache.simulated_frames("sim128", 8, **words).load(), whole)
    said = capsys.readouterr().err
    assert said.count("a block of the cache is damaged and is simulated again") == 1 and "copy it" not in said
    blocks[0].write_bytes(blocks[0].read_bytes()[:5000])
    again = cache.simulated_frames("sim128", 3, **words)
    assert np.array_equal(again["intensity"].values, whole["intensity"].values[:3])
    assert "simulated again" in capsys.readouterr().err


def test_the_quick_reader_sees_damage_too(tmp_path):
    path = save_frames(frames(), tmp_path / "a.h5")
    with h5py.File(path) as f:
        chunk = f["intensity"].id.get_chunk_info(7)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 16
    path.write_bytes(data)
    read = frame_reader(read_store(path)["intensity"].variable)
    assert np.array_equal(read(6), frames()["intensity"].values[6])
    with pytest.raises(BadInput, match="frames 7 to 7 of .* cannot be read"):
        read(7)


def test_nothing_is_left_of_a_store_that_could_not_be_sealed(tmp_path, monkeypatch):
    monkeypatch.setattr("xrddiff.data.formats.store._digest", lambda *_: 1 / 0)
    for name in ("a.h5", "a.zarr"):
        with pytest.raises(ZeroDivisionError):
            save_frames(frames(), tmp_path / name)
    assert not list(tmp_path.iterdir())
