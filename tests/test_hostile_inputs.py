"""Bad input of every kind through the command line: one sentence, exit code 2, no traceback, no hang, nothing left behind.

A case is a name and a function that writes what it needs into a folder and returns the command. Most run in this process, where an alarm ends what
hangs; what could take the process along runs in one of its own.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from xrddiff.app.verbs.main import main
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames

GEOMETRY = ["wavelength=1.3", "distance=0.1", "pixel_size=1e-4", "beam_center=[16,12]"]
BSLZ4 = dict(hdf5plugin.Bitshuffle(cname="lz4"))
Make = Callable[[Path], list[str]]
CASES: dict[str, Make] = {}


def case(name: str, make: Make) -> None:
    assert name not in CASES, name
    CASES[name] = make


def inspect_and_convert(name: str, write: Callable[[Path], Path], *words: str) -> None:
    """Two cases: looking at what `write(folder)` wrote, and converting it."""
    case(f"inspect-{name}", lambda d: ["data", "inspect", "--no-png", str(write(d)), *words])
    case(f"convert-{name}", lambda d: ["data", "convert", str(write(d)), str(d / "out.h5"), *GEOMETRY, *words])


def counts(n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).poisson(3, (n, 24, 32)).astype("u2")


# ---------------------------------------------------------------- files of every format, damaged


def ours(suffix: str) -> Callable[[Path], Path]:
    def write(d: Path) -> Path:
        known = {"wavelength": 1.3, "distance": 0.1, "pixel_size": 1e-4, "beam_center": (16, 12)}
        peaks = {"frame": [0, 2], "fs": [1.5, 2.5], "ss": [3.5, 4.5]}
        mask = np.arange(24 * 32).reshape(24, 32) % 7 != 3
        return save_frames(make_frames(counts(), mask=mask, peaks=peaks, config={"a": [1]}, **known), d / f"a{suffix}")

    return write


def cxi(d: Path) -> Path:
    with h5py.File(d / "a.cxi", "w") as f:
        f.create_dataset("entry_1/data_1/data", data=counts(), chunks=(1, 24, 32), **BSLZ4)
        f["entry_1/data_1/mask"] = np.zeros((24, 32), "u2")
    return d / "a.cxi"


def foreign_zarr(d: Path, version: int = 3) -> Path:
    import zarr

    group = zarr.open_group(str(d / "a.zarr"), mode="w", zarr_format=version)
    group.create_array("images", data=counts() + 1, chunks=(1, 24, 32))
    return d / "a.zarr"


def npy(d: Path) -> Path:
    np.save(d / "a.npy", counts())
    return d / "a.npy"


def image(kind: str) -> Callable[[Path], Path]:
    def write(d: Path) -> Path:
        import fabio

        writer = {"edf": fabio.edfimage.EdfImage, "cbf": fabio.cbfimage.CbfImage, "tif": fabio.tifimage.TifImage}[kind]
        writer(data=counts()[0].astype("i4")).write(str(d / f"a.{kind}"))
        return d / f"a.{kind}"

    return write


FILES = {"ours-h5": ours(".h5"), "cxi": cxi, "npy": npy, **{k: image(k) for k in ("edf", "cbf", "tif")}}
NOISE = np.random.default_rng(7).integers(0, 256, 4096, np.uint8).tobytes()
DAMAGE = {
    "empty": lambda b: b"",
    "one-byte": lambda b: b[:1],
    "eight-bytes": lambda b: b[:8],
    "a-tenth": lambda b: b[: len(b) // 10],
    "half": lambda b: b[: len(b) // 2],
    "no-signature": lambda b: bytes(64) + b[64:],
    "text": lambda b: b"frame,intensity\n0,1\n",
    "noise": lambda b: NOISE,
    "signature-and-noise": lambda b: b[:16] + NOISE,
    "a-pickle": lambda b: b"\x80\x04\x95cposix\nsystem\n(S'touch pwned'\ntR.",
}
for kind, whole in FILES.items():
    for how, damage in DAMAGE.items():

        def write_damaged(d: Path, whole=whole, damage=damage) -> Path:
            path = whole(d)
            path.write_bytes(damage(path.read_bytes()))
            return path

        inspect_and_convert(f"{kind}-{how}", write_damaged)


def tiff_in_a_ring(d: Path) -> Path:
    path = image("tif")(d)
    data = bytearray(path.read_bytes())
    at = struct.unpack("<I", data[4:8])[0]
    end = at + 2 + 12 * struct.unpack("<H", data[at : at + 2])[0]
    data[end : end + 4] = struct.pack("<I", at)  # the next image is this one
    path.write_bytes(data)
    return path


def cbf_without_pixels(d: Path) -> Path:
    path = image("cbf")(d)
    path.write_bytes(path.read_bytes().replace(b"\x0c\x1a\x04\xd5", b"\x0c\x1a\x04\xd4"))
    return path


case("inspect-tif-in-a-ring", lambda d: ["data", "inspect", "--no-png", str(tiff_in_a_ring(d))])
inspect_and_convert("cbf-without-pixels", cbf_without_pixels)


# ---------------------------------------------------------------- npy headers


def npy_header(text: str | bytes, version: int = 1, length: int | None = None) -> Callable[[Path], Path]:
    def write(d: Path) -> Path:
        body = text if isinstance(text, bytes) else text.encode()
        size = len(body) if length is None else length
        head = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size)
        (d / "a.npy").write_bytes(head + body + bytes(3 * 24 * 32 * 2))
        return d / "a.npy"

    return write


def header(shape: str = "(3, 24, 32)", descr: str = "'<u2'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


for name, text in {
    "negative": header("(-3, 24, 32)"),
    "minus-one": header("(3, -1, 32)"),
    "huge": header("(1, 1000000, 1000000)"),
    "more-than-there-is": header("(999999999, 24, 32)"),
    "overflow": header("(2**62, 2**62, 8)".replace("2**62", str(2**62))),
    "no-frames": header("(0, 24, 32)"),
    "scalar": header("()"),
    "row": header("(24,)"),
    "rank-5": header("(1, 1, 3, 24, 32)"),
    "float-shape": header("(3.0, 24, 32)"),
    "text-shape": header("'abc'"),
    "objects": header(descr="'|O'"),
    "complex": header("(1, 24, 32)", "'<c8'"),
    "booleans": header(descr="'|b1'"),
    "words": header(descr="'<U4'"),
    "records": header(descr="[('a', '<u2'), ('b', '<u2')]"),
    "no-such-type": header(descr="'<q99'"),
    "code": "__import__('os').system('touch pwned')",
    "no-shape": "{'descr': '<u2', 'fortran_order': False}",
    "a-list": "[1, 2, 3]",
    "not-closed": "{'descr': '<u2',",
    "deep": "(" * 5000,
    "binary": bytes(range(128, 240)),
}.items():
    inspect_and_convert(f"npy-{name}", npy_header(text))
inspect_and_convert("npy-version-9", npy_header(header(), version=9))
inspect_and_convert("npy-long-header", npy_header(header(), version=2, length=2**31))


def npz(d: Path) -> Path:
    with zipfile.ZipFile(d / "a.npy", "w") as z:
        z.writestr("data.npy", b"abc")
    return d / "a.npy"


inspect_and_convert("npz-as-npy", npz)


# ---------------------------------------------------------------- HDF5 that leads astray


def hdf5(build: Callable[[h5py.File, Path], None], name: str = "a.h5") -> Callable[[Path], Path]:
    def write(d: Path) -> Path:
        with h5py.File(d / name, "w") as f:
            build(f, d)
        return d / name

    return write


def fifo(d: Path) -> Path:
    os.mkfifo(d / "pipe")
    return d / "pipe"


def beyond(d: Path) -> Path:
    """A file with frames outside the folder."""
    (d / "elsewhere").mkdir()
    with h5py.File(d / "elsewhere" / "b.h5", "w") as f:
        f["data"] = counts()
    (d / "here").mkdir()
    return d / "elsewhere" / "b.h5"


def virtual(f: h5py.File, name: str, source: str, inner: str = "/data") -> None:
    layout = h5py.VirtualLayout((3, 24, 32), "u2")
    layout[:] = h5py.VirtualSource(source, inner, (3, 24, 32))
    f.create_virtual_dataset(name, layout)


def nested(f: h5py.File, d: Path) -> None:
    g = f
    for _ in range(3000):
        g = g.create_group("g")
    g["data"] = counts()


def unknown_filter(f: h5py.File, d: Path) -> None:
    space, plist = h5py.h5s.create_simple((3, 24, 32)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, 24, 32))
    plist.set_filter(31999, h5py.h5z.FLAG_OPTIONAL, ())
    h5py.h5d.create(f.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)


def bomb(f: h5py.File, d: Path) -> None:
    """A chunk of 60000² that is stored in a few bytes."""
    data = f.create_dataset("data", (1, 60000, 60000), "u1", chunks=(1, 60000, 60000), compression="gzip")
    data.id.write_direct_chunk((0, 0, 0), b"x\x9c\x03\x00\x00\x00\x00\x01")


def peaks_of(n: object) -> Callable[[h5py.File, Path], None]:
    def build(f: h5py.File, d: Path) -> None:
        f["entry_1/data_1/data"] = counts()
        f["entry_1/result_1/nPeaks"] = n
        f["entry_1/result_1/peakXPosRaw"] = f["entry_1/result_1/peakYPosRaw"] = np.ones((3, 4))

    return build


HDF5 = {
    "nothing-in-it": lambda f, d: None,
    "huge-frames": lambda f, d: f.create_dataset("data", (1, 10**6, 10**6), "u2", chunks=(1, 1000, 1000)),
    "huge-contiguous": lambda f, d: f.create_dataset("data", (10**6, 10**6), "f8"),
    "gzip-bomb": bomb,
    "text": lambda f, d: f.create_dataset("data", data=np.full((3, 24, 32), b"abc")),
    "words": lambda f, d: f.create_dataset("data", data=[["a"] * 9] * 9, dtype=h5py.string_dtype()),
    "records": lambda f, d: f.create_dataset("data", (3, 24, 32), [("a", "u2")]),
    "a-row": lambda f, d: f.create_dataset("data", data=np.arange(9.0)),
    "rank-6": lambda f, d: f.create_dataset("data", (1, 1, 1, 3, 24, 32), "u2"),
    "no-frames": lambda f, d: f.create_dataset("data", (0, 24, 32), "u2"),
    "null-space": lambda f, d: f.create_dataset("data", data=h5py.Empty("u2")),
    "two-candidates": lambda f, d: (f.create_dataset("a", data=counts()), f.create_dataset("b", data=counts())),
    "nested": nested,
    "unknown-filter": unknown_filter,
    "external-passwd": lambda f, d: f.create_dataset("data", (2, 9, 9), "u1", external=[("/etc/passwd", 0, 162)]),
    "external-up": lambda f, d: f.create_dataset("data", (2, 9, 9), "u1", external=[("../../etc/passwd", 0, 162)]),
    "external-pipe": lambda f, d: f.create_dataset("data", (2, 9, 9), "u1", external=[(str(fifo(d)), 0, 162)]),
    "external-device": lambda f, d: f.create_dataset("data", (2, 9, 9), "u1", external=[("/dev/zero", 0, 162)]),
    "external-missing": lambda f, d: f.create_dataset("data", (2, 9, 9), "u1", external=[("gone.raw", 0, 162)]),
    "external-by-link": lambda f, d: (
        (d / "raw").symlink_to("/etc/passwd"),
        f.create_dataset("data", (2, 9, 9), "u1", external=[("raw", 0, 162)]),
    ),
    "wavelength-from-passwd": lambda f, d: (
        f.create_dataset("entry/data/data", data=counts()),
        f.create_dataset("entry/instrument/beam/wavelength", (4,), "u1", external=[("/etc/passwd", 0, 4)]),
    ),
    "link-to-pipe": lambda f, d: f.__setitem__("data", h5py.ExternalLink(str(fifo(d)), "/data")),
    "link-to-device": lambda f, d: f.__setitem__("data", h5py.ExternalLink("/dev/zero", "/data")),
    "link-to-text": lambda f, d: (
        (d / "b.h5").write_text("no"),
        f.__setitem__("data", h5py.ExternalLink("b.h5", "/x")),
    ),
    "link-to-itself": lambda f, d: f.__setitem__("data", h5py.ExternalLink("a.h5", "/data")),
    "link-missing": lambda f, d: f.__setitem__("data", h5py.ExternalLink("gone.h5", "/data")),
    "soft-loop": lambda f, d: (f.__setitem__("data", h5py.SoftLink("/b")), f.__setitem__("b", h5py.SoftLink("/data"))),
    "virtual-of-itself": lambda f, d: virtual(f, "data", "."),
    "virtual-of-its-name": lambda f, d: virtual(f, "data", "a.h5"),
    "virtual-in-a-ring": lambda f, d: (virtual(f, "data", ".", "/b"), virtual(f, "b", ".", "/data")),
    "virtual-of-a-pipe": lambda f, d: virtual(f, "data", str(fifo(d))),
    "virtual-missing": lambda f, d: virtual(f, "data", "gone.h5"),
    "virtual-outside": lambda f, d: virtual(f, "data", "/etc/passwd"),
    "peaks-of-other-frames": peaks_of([1, 2]),
    "peaks-too-many": peaks_of([1, 2, 99]),
    "peaks-negative": peaks_of([1, 2, -1]),
}
for name, build in HDF5.items():
    inspect_and_convert(f"hdf5-{name}", hdf5(build))


def leads_out(link: bool) -> Callable[[Path], Path]:
    def write(d: Path) -> Path:
        target = beyond(d)
        with h5py.File(d / "here" / "a.h5", "w") as f:
            if link:
                f["data"] = h5py.ExternalLink(str(target), "/data")
            else:
                virtual(f, "data", "../elsewhere/b.h5")
        return d / "here" / "a.h5"

    return write


inspect_and_convert("hdf5-link-outside", leads_out(True))
inspect_and_convert("hdf5-virtual-from-outside", leads_out(False))


# ---------------------------------------------------------------- our own stores, changed


def changed(change: Callable[[h5py.File], object], version: int = 1) -> Callable[[Path], Path]:
    """A store of ours as the first version wrote it, without a digest, changed by `change`."""

    def write(d: Path) -> Path:
        path = ours(".h5")(d)
        with h5py.File(path, "r+") as f:
            f.attrs["xrddiff_version"] = version
            change(f)
        return path

    return write


def attr(name: str, value: object, at: str = "/") -> Callable[[h5py.File], object]:
    return lambda f: f[at].attrs.__setitem__(name, value)


def replace(name: str, data: object, **words: object) -> Callable[[h5py.File], object]:
    def change(f: h5py.File) -> None:
        attrs = dict(f[name].attrs)
        del f[name]
        f.create_dataset(name, data=data, **words).attrs.update(attrs)

    return change


for name, change in {
    "digest": attr("wavelength", 1.5),
    "digest-of-a-coordinate": lambda f: f["x"].__setitem__(0, 7.0),
    "no-digest": lambda f: f.attrs.__delitem__("xrddiff_digest"),
}.items():
    inspect_and_convert(f"ours-{name}", changed(change, version=2))
for name, change in {
    "version-99": attr("xrddiff_version", 99),
    "version-text": attr("xrddiff_version", "two"),
    "version-list": attr("xrddiff_version", [1, 2]),
    "no-dims": lambda f: f["intensity"].attrs.__delitem__("dims"),
    "dims-number": attr("dims", 3, "intensity"),
    "dims-two": attr("dims", "frame y", "intensity"),
    "dims-same": attr("dims", "frame y y", "intensity"),
    "dims-of-a-mask": attr("dims", "frame y x", "mask"),
    "dims-other": attr("dims", "a b c", "intensity"),
    "json-broken": attr("config", "json:{'a':"),
    "json-deep": attr("config", "json:" + "[" * 20000),
    "json-dims": attr("dims", "json:[", "x"),
    "mask-shape": replace("mask", np.ones((4, 4), bool)),
    "mask-numbers": replace("mask", np.ones((24, 32))),
    "mask-nothing": replace("mask", np.zeros((24, 32), bool)),
    "mask-words": replace("mask", "all", dtype=h5py.string_dtype()),
    "no-intensity": lambda f: f.__delitem__("intensity"),
    "intensity-a-group": lambda f: (f.__delitem__("intensity"), f.create_group("intensity")),
    "intensity-double": replace("intensity", counts().astype("f8")),
    "intensity-ragged": replace("intensity", None, shape=(3, 24, 32), dtype=h5py.vlen_dtype("i4")),
    "units": attr("units", "bananas", "intensity"),
    "units-number": attr("units", 7, "intensity"),
    "gain-zero": attr("gain", 0.0, "intensity"),
    "wavelength-zero": attr("wavelength", 0.0),
    "wavelength-nan": attr("wavelength", float("nan")),
    "wavelength-text": attr("wavelength", "long"),
    "distance-negative": attr("distance", -0.1),
    "pixel-size-inf": attr("pixel_size", float("inf")),
    "beam-center-three": attr("beam_center", [1.0, 2.0, 3.0]),
    "polarization": attr("polarization", 7.0),
    "peaks-not-sorted": replace("peak_frame", np.array([2, 0])),
    "peaks-beyond": replace("peak_frame", np.array([0, 99])),
    "peaks-uneven": replace("peak_fs", np.arange(5.0)),
    "a-coordinate-too-long": replace("x", np.arange(99.0)),
    "an-object-reference": lambda f: f.attrs.__setitem__("ref", f["mask"].ref),
}.items():
    if name != "an-object-reference":
        inspect_and_convert(f"ours-{name}", changed(change))


def rewritten(change: Callable[[Path], object], whole: Callable[[Path], Path] | None = None) -> Callable[[Path], Path]:
    def write(d: Path) -> Path:
        path = (whole or ours(".zarr"))(d)
        change(path)
        return path

    return write


def text(name: str, value: str) -> Callable[[Path], object]:
    return lambda p: (p / name).write_text(value)


def edit(name: str, *steps: object) -> Callable[[Path], object]:
    """The JSON of `name`, with what the steps lead to replaced by the last of them."""

    def change(path: Path) -> None:
        about = json.loads((path / name).read_text())
        place = about
        for step in steps[:-2]:
            place = place[step]
        place[steps[-2]] = steps[-1]
        (path / name).write_text(json.dumps(about))

    return change


SHARD = "intensity/c/0/0/0"
for name, change in {
    "no-shard": lambda p: (p / SHARD).unlink(),
    "empty-shard": lambda p: (p / SHARD).write_bytes(b""),
    "short-shard": lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes()[:99]),
    "noise-in-a-shard": lambda p: (p / SHARD).write_bytes(NOISE),
    "no-coordinate": lambda p: shutil.rmtree(p / "x"),
    "no-intensity": lambda p: shutil.rmtree(p / "intensity"),
    "no-mask": lambda p: shutil.rmtree(p / "mask"),
    "array-json": text("intensity/zarr.json", '{"shape": '),
    "mask-json": text("mask/zarr.json", "[" * 20000),
    "empty-json": text("intensity/zarr.json", ""),
    "other-shape": edit("intensity/zarr.json", "shape", [9, 24, 32]),
    "negative-shape": edit("intensity/zarr.json", "shape", [-3, 24, 32]),
    "huge-shape": edit("intensity/zarr.json", "shape", [1, 10**6, 10**6]),
    "other-type": edit("intensity/zarr.json", "data_type", "int64"),
    "no-such-type": edit("intensity/zarr.json", "data_type", "quaternion"),
    "no-such-codec": edit("intensity/zarr.json", "codecs", [{"name": "zpaq"}]),
    "codecs-a-number": edit("intensity/zarr.json", "codecs", 3),
    "attribute": edit("zarr.json", "attributes", "wavelength", 1.5),
    "digest": edit("zarr.json", "attributes", "xrddiff_digest", "0" * 64),
    "version-99": edit("zarr.json", "attributes", "xrddiff_version", 99),
    "a-pipe-for-a-shard": lambda p: ((p / SHARD).unlink(), os.mkfifo(p / SHARD)),
}.items():
    inspect_and_convert(f"ours-zarr-{name}", rewritten(change))
for name, change in {
    "root-json": text("zarr.json", "{"),
    "deep-json": text("zarr.json", "[" * 100_000),
    "array-json": text("images/zarr.json", "{'shape'"),
    "no-such-codec": edit("images/zarr.json", "codecs", [{"name": "zpaq"}]),
    "no-such-type": edit("images/zarr.json", "data_type", "quaternion"),
    "negative-shape": edit("images/zarr.json", "shape", [-3, 24, 32]),
    "huge-shape": edit("images/zarr.json", "shape", [1, 10**6, 10**6]),
    "huge-chunk": edit("images/zarr.json", "chunk_grid", "configuration", "chunk_shape", [1, 10**6, 10**6]),
    "noise-in-a-chunk": lambda p: (p / "images/c/0/0/0").write_bytes(NOISE),
    "no-arrays": lambda p: shutil.rmtree(p / "images"),
}.items():
    inspect_and_convert(f"zarr-{name}", rewritten(change, foreign_zarr))
for name, change in {
    "group-json": text(".zgroup", "{"),
    "array-json": text("images/.zarray", "[]"),
    "no-such-compressor": edit("images/.zarray", "compressor", {"id": "zpaq"}),
    "noise-in-a-chunk": lambda p: (p / "images" / "0.0.0").write_bytes(NOISE),
}.items():
    inspect_and_convert(f"zarr-v2-{name}", rewritten(change, lambda d: foreign_zarr(d, 2)))


# ---------------------------------------------------------------- what is no file


def folder_of(*names: str) -> Callable[[Path], Path]:
    def write(d: Path) -> Path:
        (d / "run").mkdir()
        for name in names:
            (d / "run" / name).write_bytes(NOISE)
        return d / "run"

    return write


inspect_and_convert("pipe", fifo)
inspect_and_convert("device", lambda d: Path("/dev/zero"))
inspect_and_convert("null", lambda d: Path("/dev/null"))
inspect_and_convert("root", lambda d: Path("/"))
inspect_and_convert("nothing", lambda d: d / "none.h5")
inspect_and_convert("long-name", lambda d: d / ("a" * 300 + ".h5"))
inspect_and_convert("below-a-file", lambda d: Path("/etc/passwd/a.h5"))
inspect_and_convert("passwd", lambda d: Path("/etc/passwd"))
inspect_and_convert("pattern", lambda d: d / "none_*.cbf")
inspect_and_convert("a-name-of-the-catalog", lambda d: Path("sim128"))
inspect_and_convert("link-to-a-pipe", lambda d: (fifo(d), (d / "a.h5").symlink_to("pipe"), d / "a.h5")[2])
inspect_and_convert("link-to-itself", lambda d: ((d / "a.h5").symlink_to("a.h5"), d / "a.h5")[1])
inspect_and_convert("link-to-nothing", lambda d: ((d / "a.h5").symlink_to("gone.h5"), d / "a.h5")[1])
inspect_and_convert("empty-folder", folder_of())
inspect_and_convert("folder-of-text", folder_of("a.txt"))
inspect_and_convert("folder-of-two-kinds", folder_of("a.cbf", "b.tif"))
inspect_and_convert("folder-of-noise", folder_of("a.cbf", "b.cbf"))


# ---------------------------------------------------------------- geometries and words

PANEL = {"min_fs": 0, "max_fs": 31, "min_ss": 0, "max_ss": 23, "corner_x": -16, "corner_y": -12, "res": 10000}


def geom(top: str = "photon_energy = 9500\nclen = 0.1\n", **panel: object) -> str:
    words = {k: v for k, v in (PANEL | panel).items() if v is not None}
    return top + "".join(f"p0/{k} = {v}\n" for k, v in words.items())


GEOMS = {
    "nothing": "", "text": "one two three\n", "binary": "\x00\x01\x02 = \x03", "no-panel": "res = 10000\n",
    "no-corner": geom(corner_x=None), "no-res": geom(res=None), "res-zero": geom(res=0), "res-inf": geom(res="inf"),
    "res-nan": geom(res="nan"), "res-text": geom(res="fine"), "energy-zero": geom("photon_energy = 0\nclen = 0.1\n"),
    "energy-negative": geom("photon_energy = -9500\nclen = 0.1\n"), "energy-unit": geom("photon_energy = 9 MeV\nclen = 0.1\n"),
    "energy-nowhere": geom("photon_energy = /LCLS/none\nclen = 0.1\n"), "wavelength-zero": geom("wavelength = 0 A\nclen = 0.1\n"),
    "wavelength-inf": geom("wavelength = inf A\nclen = 0.1\n"), "clen-text": geom("photon_energy = 9500\nclen = far\n"),
    "clen-inf": geom("photon_energy = 9500\nclen = inf\n"), "corner-inf": geom(corner_x="inf"), "corner-text": geom(corner_y="left"),
    "fs-zero": geom(fs="0x +0y"), "fs-text": geom(fs="along"), "fs-parallel": geom(fs="x", ss="x"), "edge": geom(mask_edge_pixels=-5),
    "edge-text": geom(mask_edge_pixels="two"), "min-negative": geom(min_fs=-5), "max-below": geom(max_fs=-1), "max-beyond": geom(max_fs=99),
    "max-float": geom(max_fs=31.5), "max-digits": geom(max_fs="9" * 5000), "gain-zero": geom(adu_per_photon=0),
    "gain-nan": geom(adu_per_eV="nan"), "dims": geom(dim0="ss", dim1="%", dim2="fs"), "dims-text": geom(dim0="x", dim1="ss", dim2="fs"),
    "dims-far": geom(dim9="fs"), "bad-word": geom() + "bad1/min_z = 3\n", "bad-panel": geom() + "bad1/min_fs = 3\nbad1/panel = none\n",
    "bad-text": geom() + "bad1/min_x = left\n", "mask-nowhere": geom() + "mask0_data = /none\n",
    "mask-file": geom() + "mask0_data = /m\nmask0_file = /none.h5\n", "mask-pipe": geom() + "mask0_data = /m\nmask0_file = pipe\n",
    "mask-bits": geom() + "mask0_data = /m\nmask0_goodbits = few\n", "two-sizes": geom() + geom("", res=5000).replace("p0", "p1"),
    "no-equals": geom() + "clen 0.1\n", "no-value": geom() + "clen =\n", "data-of-panels": geom(data="/%/data"),
}  # fmt: skip
for name, body in GEOMS.items():

    def write_geom(d: Path, body=body) -> list[str]:
        (d / "a.geom").write_text(body)
        if "pipe" in body:
            os.mkfifo(d / "pipe")
        return ["data", "convert", str(npy(d)), str(d / "out.h5"), f"geometry={d / 'a.geom'}"]

    case(f"geom-{name}", write_geom)

PONI = "poni_version: 2\nDetector: Detector\nDetector_config: {config}\nDistance: {d}\nPoni1: {p}\nPoni2: 0.0016\nRot1: {r}\nRot2: 0.0\nRot3: 0.0\nWavelength: {w}\n"
KNOWN = {"config": '{"pixel1": 1e-4, "pixel2": 1e-4, "max_shape": [24, 32]}', "d": 0.1, "p": 0.0012, "r": 0, "w": 1e-10}
for name, words in {
    "rot": {"r": np.pi / 2}, "rot-back": {"r": 3.0}, "rot-nan": {"r": "nan"}, "rot-text": {"r": "left"}, "distance-zero": {"d": 0},
    "distance-inf": {"d": "inf"}, "distance-text": {"d": "far"}, "distance-negative": {"d": -0.1}, "poni-nan": {"p": "nan"},
    "wavelength-negative": {"w": -1e-10}, "wavelength-nan": {"w": "nan"}, "json": {"config": "{"}, "config-list": {"config": "[1]"},
    "pixels-zero": {"config": '{"pixel1": 0, "pixel2": 0}'}, "pixels-oblong": {"config": '{"pixel1": 1e-4, "pixel2": 2e-4}'},
}.items():  # fmt: skip

    def write_poni(d: Path, words=words) -> list[str]:
        (d / "a.poni").write_text(PONI.format(**(KNOWN | words)))
        return ["data", "convert", str(npy(d)), str(d / "out.h5"), f"geometry={d / 'a.poni'}"]

    case(f"poni-{name}", write_poni)

WORDS = {"wavelength": "1.3", "distance": "0.1", "pixel_size": "1e-4", "beam_center": "[16,12]"}
VALUES = {"zero": "0", "negative": "-1", "nan": ".nan", "inf": ".inf", "text": "abc", "list": "[1,2,3]", "nothing": "{}", "yes": "true", "date": "2026-01-01"}  # fmt: skip
for word in WORDS:
    for name, value in VALUES.items():
        if (word, name) not in (("beam_center", "date"),) and not (word != "beam_center" and name == "yes"):
            given = [f"{k}={value if k == word else v}" for k, v in WORDS.items()]
            case(
                f"word-{word}-{name}",
                lambda d, given=given: ["data", "convert", str(npy(d)), str(d / "out.h5"), *given],
            )
for word in (
    "geometry=3", "geometry=[1]", "geometry=none.poni", "geometry=.", "geometry=/dev/zero", "mask=3", "mask=none.npy", "mask=/dev/zero", "outside=3",
    "outside=maybe", "units=bananas", "units=3", "gain=0", "gain=high", "polarization=3", "dataset=/none", "dataset=3", "wavelenght=1", "=3",
    "two words=3", "frame=3", "png=a.png", "progress=1", "complete=3", "variables=3", "variables=[1]", "peaks=3", "panels=3", "x: [",
    "wavelength=[", "wavelength=!!python/object/apply:os.system [touch pwned]", "background_sigma=-1", "beam_center=[1]", "wavelength=" + "[" * 3000,
):  # fmt: skip
    source = cxi if word.startswith("dataset") else npy
    case(
        f"word-{word[:40]}", lambda d, w=word, s=source: ["data", "convert", str(s(d)), str(d / "out.h5"), *GEOMETRY, w]
    )


# ---------------------------------------------------------------- arguments of every command

ARGUMENTS = [
    "", "rum", "data", "data lost", "data list extra", "data fetch", "data fetch none", "data fetch sim128 extra", "data inspect", "data inspect a b c",
    "data inspect --frame x a", "data inspect --png", "data convert a", "data simulate", "data simulate sim128", "data simulate none -o a.h5",
    "data simulate sim128 -n 0 -o a.h5", "data simulate sim128 -n -3 -o a.h5", "data simulate sim128 -n many -o a.h5", "data simulate sim128 -n 1e3 -o a.h5",
    "data simulate sim128 -n 999999999999 -o a.h5", "data simulate sim128 -n 99999999999999999999999 -o a.h5", "data simulate sim128 --seed -1 -o a.h5",
    "data simulate sim128 --seed x -o a.h5", "data simulate sim128 --seed 99999999999999999999 -n 1 -o a.h5", "data simulate sim128 -o a.txt",
    "data simulate sim128 -o /proc/a.h5", "data simulate sim128 -o /dev/null/a.h5", "data simulate sim128 -n 1 -o /dev/zero",
    "run model=none", "run modle=ddpm", "run training.batch_size=0", "run training.batch_size=x", "run training.batch_size=4,8", "run training.lr=nan",
    "run training.lr=-1", "run training.num_epochs=0", "run data.topk=2", "run data.topk=-1", "run data.limit=-1", "run data.train_ratio=1.5",
    "run data.data_path=none.h5", "run data.geometry=none.poni", "run data.outside=maybe", "run resume=none", "run resume=/etc/passwd", "run --quick", "run =3", "run training=",
    "run data=none", "run data.seed=x", "run 'data.crop=[1]'", "run data.patch=0", "run data.pool=0", "run -m training.batch_size=4,0",
    "sample", "sample none", "sample none -n 3", "sample /etc/passwd", "sample . -n 0", "sample . -n x", "sample / -n 1", "sample none --workers x:y",
    "evaluate", "evaluate none", "evaluate /etc/passwd", "evaluate . --name x", "evaluate . x=y",
    "cluster submit --dry-run -p none", "cluster submit --dry-run --config none.yaml", "cluster submit --dry-run --config /etc/passwd", "cluster submit --dry-run -p small --nodes x",
    "cluster submit --dry-run -p small --nodes 0", "cluster submit --dry-run -p small --nodes -1", "cluster submit --dry-run -p small --time never", "cluster submit --dry-run -p small model=none",
    "cluster submit --dry-run -p small --script none.py", "cluster submit --nothing", "cluster status --last x", "cluster logs", "cluster cancel", "cluster resume", "cluster resume none", "cluster profiles extra",
    "cluster scaling", "cluster scaling none", "cluster scaling --params x --bandwidth 1", "cluster scaling --params 1M --bandwidth 0", "cluster scaling --params 1M --bandwidth x", "cluster scaling --params 1M --comm none.json",
    "cluster scaling --params 1M --bandwidth 1 --nodes x", "cluster scaling --params 1M --bandwidth 1 --overlap x", "cluster accelerate-config", "cluster accelerate-config none",
    "cluster accelerate-config small --machine-rank 99", "cluster accelerate-config small --main-process-port x", "cluster comm-test --sizes x", "cluster comm-test --rounds x", "cluster comm-test extra",
]  # fmt: skip
for line in ARGUMENTS:
    argv = line.split()
    if argv[:1] == ["run"]:
        argv.insert(1, "--dry-run")  # a word that is accepted by mistake must not start a run
    case(f"args-{line[:60] or 'none'}", lambda d, argv=argv: argv)

PROFILES = {
    "empty": "", "list": "- 1\n- 2\n", "text": "hello", "broken": "nodes: [1,\n", "unknown": "name: a\nnodez: 3\n", "nodes-text": "nodes: many\n", "nodes-zero": "nodes: 0\n",
    "time": "time_limit: never\n", "python": "!!python/object/apply:os.system [touch pwned]\n", "deep": "a: " + "[" * 3000 + "\n", "binary": "\x00\x01",
}  # fmt: skip
for name, body in PROFILES.items():

    def write_profile(d: Path, body=body) -> list[str]:
        (d / "p.yaml").write_text(body)
        return ["cluster", "submit", "--dry-run", "--config", str(d / "p.yaml")]

    case(f"profile-{name}", write_profile)


def run_folder(**files: str) -> Callable[[Path], Path]:
    def write(d: Path) -> Path:
        (d / "run").mkdir()
        for name, body in files.items():
            (d / "run" / name.replace("__", ".")).write_text(body)
        return d / "run"

    return write


for name, write in {
    "empty": run_folder(), "config-empty": run_folder(config__yaml=""), "config-list": run_folder(config__yaml="- 1\n"),
    "config-broken": run_folder(config__yaml="a: ["), "config-other": run_folder(config__yaml="a: 3\n"), "config-binary": run_folder(config__yaml="\x00"),
    "config-deep": run_folder(config__yaml="[" * 5000),
}.items():  # fmt: skip
    case(f"sample-run-{name}", lambda d, write=write: ["sample", str(write(d)), "-n", "1"])
    case(f"evaluate-run-{name}", lambda d, write=write: ["evaluate", str(write(d))])
    case(f"resume-run-{name}", lambda d, write=write: ["run", f"resume={write(d)}"])


# ---------------------------------------------------------------- the test


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_there_are_enough():
    assert len(CASES) >= 300


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """What is imported late is imported before any clock runs, with what it has to say about the machine."""
    folder = tmp_path_factory.mktemp("warm")
    for write in (cxi, ours(".zarr"), image("tif")):
        source = write(folder)
        assert main(["data", "convert", str(source), str(folder / f"{source.suffix[1:]}.h5"), *GEOMETRY]) == 0
    import matplotlib.pyplot  # noqa: F401
    import pyFAI  # noqa: F401


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_nothing_left(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "cache"))
    argv = CASES[name](tmp_path)
    before = listing(tmp_path)

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    monkeypatch.setattr(sys, "stdin", io.StringIO())
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)  # 10 s on an idle machine
    try:
        code = main(argv)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if not line.startswith("xrddiff: note: ")]
    assert code in (1, 2), (code, out[-500:], err)
    assert len(said) == 1 and said[0].startswith("xrddiff: ") and 20 < len(said[0]) < 900, err
    assert "Traceback" not in out + err and " object at 0x" not in err
    assert listing(tmp_path) == before and not (tmp_path / "pwned").exists()


CRASHES = ("virtual-of-itself", "virtual-of-its-name", "virtual-in-a-ring", "nested", "link-to-pipe")


def test_what_could_take_the_process_along(tmp_path):
    """The same, in processes of their own, where a signal would show."""
    files = []
    for name in CRASHES:
        (tmp_path / name).mkdir()
        files.append(str(hdf5(HDF5[name])(tmp_path / name)))
    code = "import sys\nfrom xrddiff.app.verbs.main import main\nprint([main(['data', 'inspect', '--no-png', f]) for f in sys.argv[1:]])"
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str([2] * len(CRASHES)), done.stderr
    assert "Traceback" not in done.stderr
