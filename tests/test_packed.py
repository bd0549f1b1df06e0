"""Files packed with gzip or bzip2: every format inside, bombs, damage, and what stays on disk."""

from __future__ import annotations

import bz2
import gzip
import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import measured
from fabio.cbfimage import CbfImage
from fabio.edfimage import EdfImage
from fabio.tifimage import TifImage

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.bounds import most_bytes
from xrddiff.data.headers import unpacked as module
from xrddiff.data.headers.unpacked import unpacked

KNOWN = {"wavelength": 1.3, "distance": 0.1, "pixel_size": 75e-6, "beam_center": (8.0, 6.0), "automask": []}
PACK = {".gz": gzip.compress, ".bz2": bz2.compress}


def frames(n=3, h=12, w=16):
    return np.random.default_rng(0).poisson(3, (n, h, w)).astype("i4")


def pack(path, end):
    out = path.with_name(path.name + end)
    out.write_bytes(PACK[end](path.read_bytes()))
    path.unlink()
    return out


def written(folder, kind, values):
    """Frames in a file of a kind."""
    path = folder / f"run{kind}"
    if kind == ".npy":
        np.save(path, values)
    elif kind == ".h5":
        with h5py.File(path, "w") as f:
            f["entry/data/data"] = values
    elif kind == ".nxs":
        return save_frames(open_frames(written(folder, ".npy", values), **KNOWN), folder / "ours.h5")
    else:
        {".cbf": CbfImage, ".edf": EdfImage, ".tif": TifImage}[kind](values[0]).write(str(path))
    return path


@pytest.mark.parametrize("end", PACK)
@pytest.mark.parametrize("kind", [".npy", ".h5", ".nxs", ".cbf", ".edf", ".tif"])
def test_every_format_is_read_packed(tmp_path, kind, end):
    values = frames()
    path = written(tmp_path, kind, values)
    plain = open_frames(path, **KNOWN).load()
    packed = open_frames(pack(path, end), **KNOWN)
    assert packed.attrs == plain.attrs and packed.sizes == plain.sizes
    assert np.array_equal(packed["intensity"].values, plain["intensity"].values)
    assert np.array_equal(packed["intensity"].values, values[: packed.sizes["frame"]])


def test_a_series_geometry_and_mask_may_be_packed(tmp_path):
    values, folder = frames(4), tmp_path / "series"
    folder.mkdir()
    for k, frame in enumerate(values):
        CbfImage(frame).write(str(folder / f"run_{k:02d}.cbf"))
        pack(folder / f"run_{k:02d}.cbf", (".gz", ".bz2")[k % 2])
    text = """
    wavelength = 1.3 A
    clen = 0.1
    res = 13333.333
    p/min_fs = 0
    p/max_fs = 15
    p/min_ss = 0
    p/max_ss = 11
    p/corner_x = -8
    p/corner_y = -6
    p/fs = x
    p/ss = y
    """
    (tmp_path / "det.geom.gz").write_bytes(gzip.compress(textwrap.dedent(text).encode()))
    good = np.ones((12, 16), bool)
    good[3, 4] = False
    np.save(tmp_path / "good.npy", good)
    mask = pack(tmp_path / "good.npy", ".bz2")
    ds = open_frames(folder, geometry=tmp_path / "det.geom.gz", mask=mask, automask=[])
    assert np.array_equal(ds["intensity"].values, values) and ds.attrs["beam_center"] == pytest.approx((8, 6))
    assert np.array_equal(ds["mask"].values, good)
    assert np.array_equal(open_frames(str(folder / "run_*"), **KNOWN)["intensity"].values, values)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", values + 1)
    two = [pack(tmp_path / "a.npy", ".gz"), pack(tmp_path / "b.npy", ".bz2")]
    assert open_frames(two, **KNOWN).sizes["frame"] == 8


def refused(path):
    with pytest.raises(BadInput) as caught:
        open_frames(path, **KNOWN)
    said = str(caught.value)
    assert "\n" not in said and "unpacked-" not in said and str(path) in said
    return said


def test_bombs_and_damage_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XRDDIFF_LARGEST_FRAME", "1")
    unpacked(pack(written(tmp_path, ".npy", frames()), ".gz"))  # there is a folder
    before = sorted(Path(module._folder.place).iterdir())
    (tmp_path / "bomb.cbf.bz2").write_bytes(bz2.compress(bytes(most_bytes() + (8 << 20))))
    assert "unpacks to more than 8 MiB" in refused(tmp_path / "bomb.cbf.bz2")
    whole = gzip.compress(np.random.default_rng(0).bytes(5000))
    for name, data, sentence in (
        ("cut.h5.gz", whole[:-600], "damaged or truncated"),
        ("wrong.h5.gz", whole[:-8] + bytes(4) + whole[-4:], "damaged or truncated"),
        ("noise.cbf.bz2", b"BZh9" + bytes(100), "damaged or truncated"),
        ("twice.npy.gz", gzip.compress(whole), "packed twice"),
    ):
        (tmp_path / name).write_bytes(data)
        assert sentence in refused(tmp_path / name), name
    assert sorted(Path(module._folder.place).iterdir()) == before
    for name, data in (
        ("other.cbf.gz", whole),
        ("text.h5.bz2", bz2.compress(b"no frames")),
        ("empty.gz", gzip.compress(b"")),
    ):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name)


def test_copies_are_made_once_forgotten_and_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 3000)
    files = []
    for k in range(6):
        CbfImage(frames()[0] + k).write(str(tmp_path / f"run_{k}.cbf"))
        files.append(pack(tmp_path / f"run_{k}.cbf", ".gz"))
    held = unpacked(pack(written(tmp_path, ".npy", frames()), ".gz"), hold=True)
    ds = open_frames(tmp_path / "run_0.cbf.gz", **KNOWN)
    first = unpacked(files[0])
    assert unpacked(files[0]) == first
    for path in files[1:]:
        unpacked(path)
    assert not first.exists() and held.exists()
    assert np.array_equal(ds["intensity"].values[0], frames()[0])
    files[0].write_bytes(gzip.compress(b"replaced"))
    assert unpacked(files[0]).read_bytes() == b"replaced"


def _total(path, out):
    out.put((float(open_frames(path, **KNOWN)["intensity"].values.sum()), module._folder.place))


def test_a_forked_process_has_its_own_copies_and_takes_them_along(tmp_path):
    path = pack(written(tmp_path, ".cbf", frames()), ".gz")
    ds = open_frames(path, **KNOWN)
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    child = context.Process(target=_total, args=(path, out))
    child.start()
    total, place = out.get(timeout=60)
    child.join()
    assert total == ds["intensity"].values.sum() and place != module._folder.place
    assert not os.path.exists(place) and os.path.exists(module._folder.place)


def test_nothing_stays_when_a_process_ends(tmp_path):
    path = pack(written(tmp_path, ".npy", frames()), ".gz")
    code = f"from xrddiff.data.headers.unpacked import unpacked; print(unpacked({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not os.path.exists(done.stdout.strip()) and not os.path.exists(Path(done.stdout.strip()).parents[1])


def test_libraries_that_print_do_not_answer_for_the_probe(tmp_path):
    """fabio prints when it opens a bzip2 TIFF; the next file was then called damaged."""
    path = written(tmp_path, ".tif", frames())
    (tmp_path / "b.tif.bz2").write_bytes(bz2.compress(path.read_bytes()))
    from xrddiff.data.headers.open_in_subprocess import probe_file

    probe_file(tmp_path / "b.tif.bz2")
    assert open_frames(written(tmp_path, ".edf", frames()), **KNOWN).sizes["frame"] == 1


def test_a_packed_imgcif_file_of_a_detector_is_read(tmp_path):
    path = measured("thermolysin_cspad_401.cbf")
    (tmp_path / "a.cbf.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    a, b = (open_frames(p, automask=[]) for p in (path, tmp_path / "a.cbf.gz"))
    assert a["intensity"].shape == (1, 64, 185, 194) and np.array_equal(a["panel_origin"], b["panel_origin"])
    assert np.array_equal(a["intensity"].values, b["intensity"].values)
