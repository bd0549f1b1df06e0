"""Files that somebody else may send: bombs, lies about sizes, loops, and what is no file. `python tests/hostile_files.py FOLDER` writes them.

Every one is small on the disk. None of them may execute anything, hang, or take more memory than `xrddiff.data.frames.bounds` says.
"""

from __future__ import annotations

import bz2
import json
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

Make = Callable[[Path], object]
KINDS: dict[str, tuple[str, Make]] = {}  # name -> (file name, what writes it)
MB, GB = 1 << 20, 1 << 30


def kind(name: str, file: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        assert name not in KINDS, name
        KINDS[name] = file, make
        return make

    return add


def hostile_files(folder: str | os.PathLike) -> dict[str, Path]:
    """Write all of them, each in a folder of its own; name -> path."""
    out = {}
    for name, (file, make) in KINDS.items():
        place = Path(folder) / name
        place.mkdir(parents=True)
        path = place / file
        make(path)
        out[name] = path
    return out


# ---------------------------------------------------------------- HDF5


def hdf5(name: str, build: Callable[[h5py.File, Path], object], file: str = "a.h5") -> None:
    def make(path: Path) -> None:
        with h5py.File(path, "w") as f:
            build(f, path.parent)

    kind(name, file)(make)


def counts(n: int = 2) -> np.ndarray:
    return np.arange(n * 24 * 32, dtype="u2").reshape(n, 24, 32)


def chunk_that_lies(packed: bytes, **words: object) -> Callable[[h5py.File, Path], object]:
    """A data set of small chunks, the first of which unpacks to what `packed` says."""

    def build(f: h5py.File, d: Path) -> None:
        data = f.create_dataset("data", (2, 24, 32), "u2", chunks=(1, 24, 32), **words)
        data[:] = counts()
        data.id.write_direct_chunk((1, 0, 0), packed)

    return build


@cache
def _zeros(n: int) -> bytes:
    """A part of a deflate stream that unpacks to n zeros, and can follow itself."""
    out = zlib.compressobj(9, zlib.DEFLATED, -15)
    return out.compress(bytes(n)) + out.flush(zlib.Z_FULL_FLUSH)


def big(n: int) -> bytes:
    """Deflate of at least n zeros; nobody should come to its end, which has no checksum."""
    return b"x\xda" + _zeros(16 * MB) * -(-n // (16 * MB)) + b"\x03\0"


def gzipped(head: bytes, n: int) -> bytes:
    """The same as gzip, after some bytes."""
    out = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = out.compress(head) + out.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + head + _zeros(16 * MB) * -(-n // (16 * MB)) + b"\x03\0" + bytes(8)


@cache
def bzipped(n: int) -> bytes:
    return bz2.compress(bytes(n))


def first_bytes(size: int, block: int = 8192) -> bytes:
    """The header that bitshuffle and HDF5's LZ4 believe."""
    return struct.pack(">QI", size, block) + bytes(64)


def whole_text(f: h5py.File, d: Path) -> None:
    """A hundred thousand texts that are all the same megabyte of the file."""
    f["data"] = counts()
    texts = f.create_dataset("entry_1/names", (40,), h5py.string_dtype())
    for i in range(40):
        texts[i] = "x" * (200_000)
    f.attrs["title"] = "x" * 60_000


def deep(f: h5py.File, d: Path) -> None:
    group = f
    for _ in range(90):
        group = group.create_group("g")
    group["data"] = counts()


def ring(f: h5py.File, d: Path) -> None:
    f["a/b/c"] = counts()
    f["a/b/up"] = h5py.SoftLink("/a")
    f["a/b/hard"] = f["a"]
    f["data"] = h5py.SoftLink("/a/b/up/b/up/b/c")


def virtual_ring(f: h5py.File, d: Path) -> None:
    for own, other in (("data", "other"), ("other", "data")):
        layout = h5py.VirtualLayout((2, 24, 32), "u2")
        layout[:] = h5py.VirtualSource("a.h5", other, (2, 24, 32))
        f.create_virtual_dataset(own, layout)


def virtual_bomb(f: h5py.File, d: Path) -> None:
    with h5py.File(d / "b.h5", "w") as other:
        other.create_dataset("data", (1, 24, 32), "u2")
    layout = h5py.VirtualLayout((1, 1_000_000, 1_000_000), "u2")
    layout[:, :24, :32] = h5py.VirtualSource("b.h5", "data", (1, 24, 32))
    f.create_virtual_dataset("data", layout)


def chain(f: h5py.File, d: Path) -> None:
    """Forty files, each of which links to the next, and the last to the first."""
    f["data"] = h5py.ExternalLink("n0.h5", "/data")
    for k in range(40):
        with h5py.File(d / f"n{k}.h5", "w") as other:
            other["data"] = h5py.ExternalLink(f"n{(k + 1) % 40}.h5", "/data")


def nexus(**fields: tuple) -> Callable[[h5py.File, Path], object]:
    """Frames with a field of the detector that is far too large."""

    def build(f: h5py.File, d: Path) -> None:
        f["entry/data/data"] = counts()
        for name, shape in fields.items():
            f.create_dataset(
                f"entry/instrument/{name}",
                shape,
                "f8",
                chunks=tuple(min(n, 1 << 16) for n in shape),
                compression="gzip",
            )

    return build


def unknown_filter(code: int, values: tuple = ()) -> Callable[[h5py.File, Path], object]:
    def build(f: h5py.File, d: Path) -> None:
        space, plist = h5py.h5s.create_simple((2, 24, 32)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 24, 32))
        plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL, values)
        h5py.h5d.create(f.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)

    return build


def many(f: h5py.File, d: Path) -> None:
    for i in range(1500):
        f[f"g{i % 50}/d{i}"] = 1.0


def peaks_that_never_end(f: h5py.File, d: Path) -> None:
    f["entry_1/data_1/data"] = counts()
    f["entry_1/result_1/nPeaks"] = np.full(2, 2**31 - 1, "i8")
    for name in ("peakXPosRaw", "peakYPosRaw"):
        f.create_dataset(f"entry_1/result_1/{name}", (2, 2**31), "f4", chunks=(1, 4096))


def packed_twice(f: h5py.File, d: Path) -> None:
    space, plist = h5py.h5s.create_simple((2, 24, 32)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, 24, 32))
    plist.set_deflate(9)
    plist.set_filter(32004, h5py.h5z.FLAG_OPTIONAL, (0,))
    data = h5py.Dataset(h5py.h5d.create(f.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist))
    data.id.write_direct_chunk((0, 0, 0), first_bytes(4 * GB))


def compressed(f: h5py.File, shape: tuple, chunk: tuple, dtype: str = "u2") -> None:
    f.create_dataset("data", shape, dtype, chunks=chunk, compression="gzip")


BSLZ4, LZ4, ZSTD = (dict(p) for p in (hdf5plugin.Bitshuffle(cname="lz4"), hdf5plugin.LZ4(), hdf5plugin.Zstd()))
BLOSC, BZIP2 = dict(hdf5plugin.Blosc(cname="lz4")), dict(hdf5plugin.BZip2())
ZSTD_FRAME = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 4 * GB) + bytes(64)
ZSTD_BLOCKS = b"\x28\xb5\x2f\xfd\x00\x58" + 20_000 * (((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0")
BLOSC_CHUNK = bytes([2, 1, 1, 2]) + struct.pack("<III", 2**31 - 17, 2**20, 80) + bytes(64)

hdf5("hdf5-frame-of-a-chunk-of-gigabytes", lambda f, d: compressed(f, (1, 16_000, 16_000), (1, 16_000, 16_000), "u4"))
hdf5("hdf5-frame-of-many-chunks", lambda f, d: compressed(f, (3, 100_000, 100_000), (1, 100, 100)))
hdf5("hdf5-chunks-of-many-frames", lambda f, d: compressed(f, (10**6, 512, 512), (10**4, 512, 512)))
hdf5("hdf5-frames-without-end", lambda f, d: compressed(f, (2**40, 24, 32), (1, 24, 32)))
hdf5("hdf5-four-axes-of-gigabytes", lambda f, d: compressed(f, (1, 10_000, 1000, 1000), (1, 1, 1000, 1000)))
hdf5("hdf5-gzip-chunk-of-gigabytes", chunk_that_lies(big(2 * GB), compression="gzip"))
hdf5("hdf5-gzip-shuffle-chunk", chunk_that_lies(big(GB), compression="gzip", shuffle=True))
hdf5("hdf5-bzip2-chunk-of-gigabytes", chunk_that_lies(bzipped(64 * MB), **BZIP2))
hdf5("hdf5-lz4-chunk-says-terabytes", chunk_that_lies(first_bytes(1 << 42), **LZ4))
hdf5("hdf5-lz4-chunk-says-gigabytes", chunk_that_lies(first_bytes(4 * GB - 1), **LZ4))
hdf5("hdf5-bitshuffle-chunk-says-gigabytes", chunk_that_lies(first_bytes(4 * GB), **BSLZ4))
hdf5("hdf5-zstd-chunk-says-gigabytes", chunk_that_lies(ZSTD_FRAME, **ZSTD))
hdf5("hdf5-zstd-blocks-without-end", chunk_that_lies(ZSTD_BLOCKS, **ZSTD))
hdf5("hdf5-blosc-chunk-says-gigabytes", chunk_that_lies(BLOSC_CHUNK, **BLOSC))
hdf5("hdf5-packed-twice", packed_twice)
hdf5("hdf5-scale-offset-of-gigabytes", unknown_filter(6, (2, 0, 2**30, 1, 4, 1, 0, 0)))
hdf5("hdf5-nbit-of-gigabytes", unknown_filter(5, (8, 0, 2**30, 1, 4, 0, 16, 0)))
hdf5("hdf5-lzf-of-gigabytes", unknown_filter(32000, (4, 0, 2**32 - 1)))
hdf5("hdf5-unknown-filter", unknown_filter(31_337))
hdf5("hdf5-filter-number-of-hdf5", unknown_filter(255))
hdf5("hdf5-attribute-of-text", whole_text)
hdf5("hdf5-deep-groups", deep)
hdf5("hdf5-soft-links-in-a-ring", ring)
hdf5("hdf5-virtual-in-a-ring-by-name", virtual_ring)
hdf5("hdf5-virtual-frame-of-terabytes", virtual_bomb)
hdf5("hdf5-chain-of-files", chain)
hdf5("hdf5-many-objects", many)
hdf5(
    "hdf5-mask-of-gigabytes",
    lambda f, d: (
        nexus()(f, d),
        f.create_dataset("entry/instrument/detector/pixel_mask", (2**16, 2**16), "u4", chunks=(1024, 1024)),
    ),
)
hdf5("hdf5-wavelength-of-gigabytes", nexus(**{"beam/incident_wavelength": (2**33,)}))
hdf5("hdf5-distance-of-gigabytes", nexus(**{"detector/detector_distance": (2**31,)}))
hdf5("hdf5-panels-of-gigabytes", nexus(**{f"detector/panel_{k}": (2**26, 3) for k in ("origin", "fs", "ss")}))
hdf5("hdf5-corner-of-gigabytes", nexus(**{"detector_1/corner_position": (2**28, 3)}))
hdf5("hdf5-peaks-without-end", peaks_that_never_end)
hdf5(
    "hdf5-external-in-a-pipe",
    lambda f, d: (os.mkfifo(d / "p"), f.create_dataset("data", (2, 9, 9), "u1", external=[("p", 0, 162)])),
)
hdf5(
    "hdf5-external-beyond",
    lambda f, d: f.create_dataset("data", (2, 9, 9), "u1", external=[("../../../../etc/hostname", 0, 162)]),
)
hdf5("hdf5-link-up", lambda f, d: f.__setitem__("data", h5py.ExternalLink("../../secret.h5", "/data")))
hdf5(
    "hdf5-values-of-records",
    lambda f, d: f.create_dataset("data", (2, 24, 32), np.dtype([("a", "u2", (1000, 1000))]), chunks=(1, 1, 1)),
)
kind("hdf5-signature-only", "a.h5")(lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"))
kind("hdf5-signature-late", "a.h5")(lambda p: p.write_bytes(bytes(1 << 20) + b"\x89HDF\r\n\x1a\n"))
kind("hdf5-signature-and-zeros", "a.h5")(lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(4096)))
kind("hdf5-superblock-says-exabytes", "a.h5")(
    lambda p: p.write_bytes(
        b"\x89HDF\r\n\x1a\n\x02\x08\x08\x00" + struct.pack("<QQQQ", 0, 2**64 - 1, 2**62, 48) + bytes(4)
    )
)


# ---------------------------------------------------------------- npy and zip


def npy_header(text: str, version: int = 1, length: int | None = None, then: int = 0) -> Make:
    def make(path: Path) -> None:
        body = text.encode("latin-1")
        size = struct.pack("<H" if version == 1 else "<I", len(body) if length is None else length)
        path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + size + body + bytes(then))

    return make


def about(shape: str, descr: str = "'<u2'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


def hole(path: Path, size: int, head: bytes = b"") -> None:
    """A file of any length that takes nothing on the disk."""
    with open(path, "wb") as f:
        f.write(head)
        f.truncate(size)


def zipped(path: Path, name: str, data: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, data)


kind("npy-frame-of-gigabytes", "a.npy")(
    lambda p: hole(
        p, 4 * GB, b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + about("(1, 46000, 46000)").ljust(118).encode()
    )
)
kind("npy-header-of-gigabytes", "a.npy")(lambda p: hole(p, 4 * GB, b"\x93NUMPY\x02\x00\xff\xff\xff\xef{"))
kind("npy-frames-without-end", "a.npy")(npy_header(about("(1000000000000, 24, 32)"), then=3072))
kind("npy-empty-frames-without-end", "a.npy")(npy_header(about("(1000000000000, 0, 32)")))
kind("npy-itemsize", "a.npy")(npy_header(about("(2, 24, 32)", "'<U268435456'")))
kind("npy-objects-in-records", "a.npy")(npy_header(about("(2, 24, 32)", "[('a', 'O')]"), then=999))
kind("npy-nested-records", "a.npy")(npy_header(about("(2,)", "[" * 200 + "('a','<u2')" + "]" * 200)))
kind("npy-version-255", "a.npy")(npy_header(about("(2, 24, 32)"), version=255))
kind("npz-bomb", "a.npz")(lambda p: zipped(p, "data.npy", bytes(32 * MB)))
kind("zip-upwards", "a.npz")(lambda p: zipped(p, "../../../../tmp/upwards", b"x"))
kind("zip-says-nothing", "a.npz")(lambda p: p.write_bytes(b"PK\x03\x04" + b"\xff" * 26))


# ---------------------------------------------------------------- images


def tiff(tags: list[tuple[int, int, int, int]], then: bytes = b"", next_page: int = 0) -> bytes:
    """A TIFF of one page with these tags (tag, type, count, value)."""
    body = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    body += b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return body + struct.pack("<I", next_page) + then


def tiff_page(
    width: int, height: int, bits: int = 16, compression: int = 1, strip: int = 200, length: int = 64
) -> list:
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, 1), (273, 4, 1, strip), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, length)]  # fmt: skip


def cbf(fast: int, slow: int, size: int, data: bytes, packing: str = "x-CBF_BYTE_OFFSET") -> bytes:
    text = f'###CBF: VERSION 1.5\n\ndata_a\n\n_array_data.data\n;\n--CIF-BINARY-FORMAT-SECTION--\nContent-Type: application/octet-stream;\n     conversions="{packing}"\nContent-Transfer-Encoding: BINARY\nX-Binary-Size: {size}\nX-Binary-ID: 1\nX-Binary-Element-Type: "signed 32-bit integer"\nX-Binary-Element-Byte-Order: LITTLE_ENDIAN\nX-Binary-Number-of-Elements: {fast * slow}\nX-Binary-Size-Fastest-Dimension: {fast}\nX-Binary-Size-Second-Dimension: {slow}\nX-Binary-Size-Padding: 0\n\n'
    return (
        text.replace("\n", "\r\n").encode()
        + b"\x0c\x1a\x04\xd5"
        + data
        + b"\r\n--CIF-BINARY-FORMAT-SECTION----\r\n;\r\n"
    )


def edf(data: bytes, **fields: object) -> bytes:
    known = {
        "HeaderID": "EH:000001:000000:000000",
        "Image": 1,
        "ByteOrder": "LowByteFirst",
        "DataType": "UnsignedShort",
        "Dim_1": 32,
        "Dim_2": 24,
    }
    text = "{\n" + "".join(f"{k} = {v} ;\n" for k, v in (known | fields).items())
    return text.ljust(510).encode() + b"}\n" + data


def smv(data: bytes, **fields: object) -> bytes:
    known = {
        "HEADER_BYTES": 512,
        "DIM": 2,
        "BYTE_ORDER": "little_endian",
        "TYPE": "unsigned_short",
        "SIZE1": 32,
        "SIZE2": 24,
        "PIXEL_SIZE": 0.1,
    }
    text = "{\n" + "".join(f"{k}={v};\n" for k, v in (known | fields).items()) + "}\n"
    return text.ljust(512).encode() + data


def png(width: int, height: int, data: bytes) -> bytes:
    def block(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
        + block(b"IDAT", data)
        + block(b"IEND", b"")
    )


def written(name: str, file: str, content: Callable[[], bytes]) -> None:
    kind(name, file)(lambda p: p.write_bytes(content()))


written("tiff-frame-of-gigabytes", "a.tif", lambda: tiff(tiff_page(100_000, 100_000, compression=8), big(MB)))
written("tiff-deflate-bomb", "a.tif", lambda: tiff(tiff_page(20_000, 20_000, 8, 8, 122, 400_000), big(400 * MB)))
written("tiff-strip-beyond", "a.tif", lambda: tiff(tiff_page(32, 24, strip=2**31), bytes(999)))
written(
    "tiff-strips-of-gigabytes",
    "a.tif",
    lambda: tiff([*tiff_page(32, 24)[:5], (273, 4, 2**30, 8), (279, 4, 2**30, 8)], bytes(999)),
)
written(
    "tiff-a-million-strips",
    "a.tif",
    lambda: tiff([*tiff_page(32, 24)[:5], (273, 4, 10**6, 8), (279, 4, 10**6, 8)], bytes(4 * 10**6)),
)
written("tiff-pages-with-the-same-strips", "a.tif", lambda: many_pages(400))
written("tiff-page-says-itself", "a.tif", lambda: tiff(tiff_page(32, 24), bytes(2000), next_page=8))
written("cbf-frame-of-terabytes", "a.cbf", lambda: cbf(10**6, 10**6, 64, bytes(64)))
written("cbf-lying-size", "a.cbf", lambda: cbf(32, 24, 10**12, bytes(768)))
written("cbf-many-pixels-in-few-bytes", "a.cbf", lambda: cbf(5000, 5000, 64, bytes(64)))
written("cbf-unknown-packing", "a.cbf", lambda: cbf(32, 24, 768, bytes(768), "x-CBF_NIBBLE_OFFSET"))
written("cbf-negative", "a.cbf", lambda: cbf(-32, 24, 768, bytes(768)))
written("edf-frame-of-gigabytes", "a.edf", lambda: edf(bytes(1536), Dim_1=10**6, Dim_2=10**6, Size=1536))
written("edf-says-exabytes", "a.edf", lambda: edf(bytes(1536), EDF_BinarySize=10**14))
written(
    "edf-packed-images",
    "a.edf",
    lambda: 3 * edf(gzipped(b"", 1 << 24), COMPRESSION="GZIP", EDF_BinarySize=16_346, Size=16_346),
)
written("edf-header-without-end", "a.edf", lambda: b"{\nDim_1 = 32 ;\n" + b"a = 1 ;\n" * 300_000)
written("edf-in-gzip-of-gigabytes", "a.edf.gz", lambda: gzipped(edf(b""), GB))
written("cbf-in-bzip2", "a.cbf.bz2", lambda: bz2.compress(cbf(32, 24, 1 << 30, b"")) + bzipped(64 * MB) * 16)
written("smv-frame-of-terabytes", "a.img", lambda: smv(bytes(1536), SIZE1=10**7, SIZE2=10**7, COMPRESSION="gzip"))
written("smv-header-of-gigabytes", "a.img", lambda: smv(bytes(1536), HEADER_BYTES=4 * 10**9))
written(
    "mccd-frame-of-gigabytes",
    "a.mccd",
    lambda: tiff(tiff_page(2**30, 2**30), bytes(4096)).replace(b"\0" * 3, b"MMX", 1),
)
written("png-frame-of-gigabytes", "a.png", lambda: png(2**31 - 1, 2**31 - 1, big(MB)))
written("png-bomb", "a.png", lambda: png(20_000, 20_000, big(400 * MB)))
written("pgm-frame-of-terabytes", "a.pgm", lambda: b"P5\n1000000 1000000\n65535\n" + bytes(64))
written("mrc-of-gigabytes", "a.mrc", lambda: struct.pack("<10i", 50_000, 50_000, 1, 1, 0, 0, 0, 0, 0, 0) + bytes(984))
written("gzip-of-gigabytes", "a.cbf", lambda: gzipped(b"", GB))


def many_pages(count: int) -> bytes:
    """Pages whose strips are listed at the same place of the file."""
    strips, page, start = 100_000, 2 + 12 * 7 + 4, 8
    out, table = b"II*\0" + struct.pack("<I", 8), 8 + count * page
    for i in range(count):
        tags = sorted([*tiff_page(32, 24)[:5], (273, 4, strips, table), (279, 4, strips, table)])
        after = start + page if i < count - 1 else 0
        out += (
            struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + struct.pack("<I", after)
        )
        start += page
    return out + bytes(4 * strips)


# ---------------------------------------------------------------- zarr


def zarr(name: str, change: Callable[[Path, dict], object], version: int = 3, **words: object) -> None:
    """A store of another program, whose metadata and files `change(array, about)` alters."""

    def make(path: Path) -> None:
        import zarr as library

        group = library.open_group(str(path), mode="w", zarr_format=version)
        group.create_array("images", data=counts() + 1, chunks=(1, 24, 32), **words)
        about = path / "images" / ("zarr.json" if version == 3 else ".zarray")
        found = json.loads(about.read_text())
        change(path / "images", found)
        about.write_text(json.dumps(found))

    kind(name, "a.zarr")(make)


def first_chunk(content: bytes | Callable[[Path], object], version: int = 3) -> Callable[[Path, dict], object]:
    def change(array: Path, about: dict) -> None:
        for i in (0, 1):
            chunk = array / (f"c/{i}/0/0" if version == 3 else f"{i}.0.0")
            chunk.unlink()
            content(chunk) if callable(content) else chunk.write_bytes(content)

    return change


def codecs(*names: str | dict) -> Callable[[Path, dict], object]:
    def change(array: Path, about: dict) -> None:
        about["codecs"] = [n if isinstance(n, dict) else {"name": n, "configuration": {}} for n in names]

    return change


def both(*changes: Callable[[Path, dict], object]) -> Callable[[Path, dict], object]:
    return lambda array, about: [change(array, about) for change in changes] and None


def grid(chunk: list[int], shape: list[int] | None = None) -> Callable[[Path, dict], object]:
    def change(array: Path, about: dict) -> None:
        about["chunk_grid"]["configuration"]["chunk_shape"] = chunk
        about["shape"] = shape or about["shape"]

    return change


def shards(shape: list[int], inner: list[int]) -> Callable[[Path, dict], object]:
    plain = {"name": "bytes", "configuration": {"endian": "little"}}
    own = {"chunk_shape": inner, "codecs": [plain], "index_codecs": [plain, {"name": "crc32c"}]}
    return both(grid(shape, shape), codecs({"name": "sharding_indexed", "configuration": own}))


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
zarr(
    "zarr-gzip-bomb",
    both(codecs(LITTLE, {"name": "gzip", "configuration": {"level": 5}}), first_chunk(gzipped(b"", GB))),
)
zarr(
    "zarr-zstd-says-gigabytes",
    both(codecs(LITTLE, {"name": "zstd", "configuration": {"level": 0, "checksum": False}}), first_chunk(ZSTD_FRAME)),
)
zarr(
    "zarr-blosc-says-gigabytes",
    both(
        codecs(
            LITTLE,
            {
                "name": "blosc",
                "configuration": {"typesize": 2, "cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0},
            },
        ),
        first_chunk(BLOSC_CHUNK),
    ),
)
zarr(
    "zarr-bz2-bomb",
    both(codecs(LITTLE, {"name": "numcodecs.bz2", "configuration": {"level": 1}}), first_chunk(bzipped(64 * MB) * 8)),
)
zarr(
    "zarr-lz4-says-gigabytes",
    both(
        codecs(LITTLE, {"name": "numcodecs.lz4", "configuration": {"acceleration": 1}}),
        first_chunk(struct.pack("<I", 2**31 - 1) + bytes(64)),
    ),
)
zarr("zarr-pcodec", codecs(LITTLE, {"name": "numcodecs.lzma", "configuration": {"preset": 9}}))
zarr("zarr-codecs-without-end", codecs(LITTLE, *[{"name": "gzip", "configuration": {"level": 1}}] * 500))
zarr("zarr-chunk-is-a-hole", both(codecs(LITTLE), first_chunk(lambda p: hole(p, 1 << 40))))
zarr("zarr-chunk-is-a-pipe", first_chunk(lambda p: os.mkfifo(p)))
zarr("zarr-chunk-is-a-device", first_chunk(lambda p: p.symlink_to("/dev/zero")))
zarr("zarr-huge-chunks", grid([1, 10**6, 10**6], [1, 10**6, 10**6]))
zarr("zarr-chunks-of-many-frames", grid([10**6, 24, 32], [10**6, 24, 32]))
zarr("zarr-frames-without-end", grid([1, 24, 32], [2**50, 24, 32]))
zarr("zarr-shards-of-billions", shards([2**36, 24, 32], [1, 24, 32]))
zarr("zarr-shards-of-pixels", shards([1, 2**15, 2**15], [1, 1, 1]))
zarr("zarr-fill-of-text", lambda a, m: m.__setitem__("fill_value", "x" * 10**6))
zarr("zarr-attributes-of-megabytes", lambda a, m: m.__setitem__("attributes", {"a": ["x"] * 3_000_000}))
zarr("zarr-digits", lambda a, m: m.__setitem__("shape", [2, 24, int("9" * 4000)]))
zarr("zarr-v2-pickle", lambda a, m: m.__setitem__("compressor", {"id": "pickle"}), version=2)
zarr("zarr-v2-pickled-filter", lambda a, m: m.__setitem__("filters", [{"id": "pickle"}]), version=2)
zarr(
    "zarr-v2-zlib-bomb",
    both(lambda a, m: m.__setitem__("compressor", {"id": "zlib", "level": 1}), first_chunk(big(GB), 2)),
    version=2,
)
zarr("zarr-v2-text-itemsize", lambda a, m: m.__setitem__("dtype", "<U400000000"), version=2)


@kind("zarr-json-is-a-pipe", "a.zarr")
def _json_pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "zarr.json")


@kind("zarr-json-of-gigabytes", "a.zarr")
def _json_hole(path: Path) -> None:
    path.mkdir()
    hole(path / "zarr.json", 4 * GB)


@kind("zarr-folders-in-a-ring", "a.zarr")
def _zarr_ring(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    for name in ("a", "b"):
        (path / name).symlink_to(".")


@kind("zarr-texts-say-billions", "a.zarr")
def _zarr_texts(path: Path) -> None:
    import zarr as library

    group = library.open_group(str(path), mode="w")
    group.create_array("images", data=counts() + 1, chunks=(1, 24, 32))
    group.create_array("name", data=np.array(["a", "b"], np.dtypes.StringDType()), chunks=(2,), compressors=None)
    (path / "name" / "c" / "0").write_bytes(struct.pack("<I", 2**32 - 1) + bytes(64))


# ---------------------------------------------------------------- geometry, labels, and what is no file

PANEL = "min_fs = 0\nmax_fs = 31\nmin_ss = 0\nmax_ss = 23\ncorner_x = -16\ncorner_y = -12\nres = 10000\n"

written("geom-of-megabytes", "a.geom", lambda: b"; comment\n" * (1 << 20))
written(
    "geom-many-panels",
    "a.geom",
    lambda: "".join(f"p{i}/{line}\n" for i in range(20_000) for line in PANEL.splitlines()).encode(),
)
written("geom-one-long-line", "a.geom", lambda: b"a" * (4 << 20))
written(
    "poni-deep-json",
    "a.poni",
    lambda: b"poni_version: 2\nDetector: Detector\nDetector_config: " + b"[" * 100_000 + b"\nDistance: 0.1\n",
)
written("poni-of-megabytes", "a.poni", lambda: b"# x\n" * (4 << 20))
kind("csv-is-a-hole", "a.csv")(lambda p: hole(p, 8 * GB, b"phase\n"))
written("csv-one-long-line", "a.csv", lambda: b"a," * (1 << 20))
kind("pipe", "a.h5")(lambda p: os.mkfifo(p))
kind("pipe-called-cbf", "a.cbf")(lambda p: os.mkfifo(p))
kind("device-by-a-link", "a.h5")(lambda p: p.symlink_to("/dev/zero"))
kind("random-by-a-link", "a.tif")(lambda p: p.symlink_to("/dev/urandom"))
kind("folder-called-h5", "a.h5")(lambda p: p.mkdir())
kind("link-to-its-folder", "a.zarr")(lambda p: p.symlink_to("."))
kind("empty", "a.h5")(lambda p: p.write_bytes(b""))
kind("hole", "a.h5")(lambda p: hole(p, 1 << 40))
kind("hole-called-tif", "a.tif")(lambda p: hole(p, 1 << 40, b"II*\0\x08\0\0\0"))
kind("name-not-utf8", os.fsdecode(b"run\xff\xfe.h5"))(lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"))
kind("name-with-escape-codes", "\x1b[31mred[bold]$_$<script>.h5")(lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"))


@kind("folder-of-pipes", "run")
def _pipes(path: Path) -> None:
    path.mkdir()
    for i in range(3):
        os.mkfifo(path / f"a_{i}.cbf")
    (path / "b.h5").symlink_to("/dev/zero")


if __name__ == "__main__":
    for found in hostile_files(sys.argv[1]).items():
        print(*map(ascii, found))
