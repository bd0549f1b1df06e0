"""What a file or a user says is applied, refused or named: each case is a public bug report of another program, made small here."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from pathlib import Path

import fabio.cbfimage
import gemmi
import h5py
import msgspec
import numpy as np
import pytest
import zarr

from xrddiff.app.verbs.main import main
from xrddiff.core.errors import BadInput
from xrddiff.core.gate import read_cells, read_table
from xrddiff.data.formats.peak_files import read_peaks
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.data.frames.rows import frame_origin
from xrddiff.data.headers.dials_experiments import read_crystal, read_images, read_refl
from xrddiff.judge.views.inspection import explain_mask
from xrddiff.physics.indexing.cells import Cell
from xrddiff.physics.indexing.expected_intensities import CrystalIntensities, read_intensities
from xrddiff.physics.indexing.stream import _place
from xrddiff.physics.merging.files import read_dials, read_unmerged_mtz

KNOWN = {"wavelength": 1.0, "distance": 0.1, "pixel_size": 1e-4, "beam_center": (16.0, 16.0)}
GEOM = """photon_energy = 9000
clen = 0.1
res = 10000
data = /data/data
dim0 = %
dim1 = ss
dim2 = fs
p0/min_fs = 0
p0/max_fs = 31
p0/min_ss = 0
p0/max_ss = 31
p0/corner_x = -36
p0/corner_y = -16
p1/min_fs = 0
p1/max_fs = 31
p1/min_ss = 32
p1/max_ss = 63
p1/corner_x = 4
p1/corner_y = -16.5
p1/fs = +0.999x +0.0447y
p1/ss = -0.0447x +0.999y
"""


def masked(path: Path, **words) -> np.ndarray:
    """The pixels that are masked in each frame, without rules that look at the pixels."""
    return ~open_frames(path, automask=[], **words)["mask"].values


# ---------------------------------------------------------------- an explicit rule replaces the default


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Four frames of two panels: a mask for each frame, 1 = good, without four columns; and one for all, 8 in four rows."""
    own, static = np.ones((4, 64, 32), "u2"), np.zeros((64, 32), "u2")
    own[:, :, :4], static[:4] = 0, 8
    with h5py.File(tmp_path / "two.h5", "w") as f:
        f["data/data"] = np.random.default_rng(0).poisson(5, (4, 64, 32)).astype("u2")
        f["data/mask_event"], f["data/mask_static"] = own, static
    return tmp_path / "two.h5"


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ("mask0_data = /data/mask_event\nmask0_goodbits = 0x1\n", 4 * 64),
        ("mask0_data = /data/mask_event\nmask0_badbits = 0x8\n", 0),
        (
            "mask0_data = /data/mask_event\nmask0_goodbits = 0x1\nmask1_data = /data/mask_static\nmask1_badbits = 0x8\n",
            4 * 64 + 4 * 32 - 16,
        ),
    ],
)
def test_bits_of_a_geometry_are_applied_to_masks_of_each_frame(two, lines, count):
    """CrystFEL: a pixel is valid if all good bits are set, and no bad one."""
    geom = two.with_name("bits.geom")
    geom.write_text(GEOM + lines)
    assert [int(m.sum()) for m in masked(two, geometry=geom)] == [count] * 4
    _, reasons, good, about = explain_mask(two, automask=[], geometry=geom)
    assert (~good).sum() == count
    assert sum("mask_" in line for line in about["notes"]) == lines.count("_data")  # each rule is told


@pytest.fixture
def peakbits(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A CXI file with a bad row, and pixels where the hit finder found a spot (bit 13)."""
    spots = np.random.default_rng(1).random((3, 64, 64)) < 0.02
    bits = np.where(spots, 0x2000, 0).astype("u4")
    bits[:, 10] = 1
    with h5py.File(tmp_path / "peaks.cxi", "w") as f:
        f["entry_1/data_1/data"] = np.ones((3, 64, 64), "i4")
        f["entry_1/data_1/mask"] = bits
        f["entry_1/instrument_1/detector_1/distance"] = 0.1
    return tmp_path / "peaks.cxi", spots


def test_a_bit_that_only_informs_masks_nothing(peakbits):
    path, spots = peakbits
    found = masked(path, **KNOWN)
    assert found[:, 10].all() and found.sum() == 3 * 64
    assert masked(path, mask_badbits="0x2001", **KNOWN).sum() == 3 * 64 + (spots.sum() - spots[:, 10].sum())
    assert masked(path, mask_badbits=0x2000, **KNOWN).sum() == spots.sum() - spots[:, 10].sum()  # the row is 1 alone
    np.save(path.with_name("plain.npy"), np.ones((2, 16, 16), "u2"))
    with pytest.warns(UserWarning, match="change nothing: it has no mask"):
        open_frames(path.with_name("plain.npy"), mask_badbits=1, **KNOWN)
    for word in ("0x", 1.5, -1, True):
        with pytest.raises(BadInput, match="expected the bits of a mask"):
            masked(path, mask_badbits=word, **KNOWN)


def test_a_rule_of_a_geometry_replaces_that_of_the_format(peakbits):
    path, spots = peakbits
    panel = "p/min_fs = 0\np/max_fs = 63\np/min_ss = 0\np/max_ss = 63\np/corner_x = -32\np/corner_y = -32\n"
    head = GEOM.partition("p0/")[0].replace("/data/data", "/entry_1/data_1/data")
    geom = path.with_name("bits.geom")
    geom.write_text(head + panel + "mask0_data = /entry_1/data_1/mask\nmask0_badbits = 0x2000\n")
    assert masked(path, geometry=geom).sum() == spots.sum() - spots[:, 10].sum()


def test_the_upper_bits_of_nxmx_inform(tmp_path):
    """NXdetector: a bit of the upper two bytes would not be a sole reason to reject the value."""
    with h5py.File(tmp_path / "a.nxs", "w") as f:
        f["entry/data/data"] = np.ones((2, 16, 16), "i4")
        mask = np.zeros((16, 16), "u4")
        mask[0], mask[1], mask[2] = 1 << 31, 1, (1 << 31) + 2
        f["entry/instrument/detector/pixel_mask"] = mask
    found = masked(tmp_path / "a.nxs", **KNOWN)
    assert not found[0].any() and found[1:3].all() and found.sum() == 32


# ---------------------------------------------------------------- a value of a panel stays with its panel


def test_values_of_panels_stay_with_them(two):
    geom = two.with_name("values.geom")
    words = (
        "p0/adu_per_eV = 0.001\np1/adu_per_eV = 0.004\np0/mask_edge_pixels = 5\np0/flag_morethan = 7\np1/max_adu = 90\n"
    )
    geom.write_text(GEOM + words)
    with pytest.warns(UserWarning, match="the gains 9, 36: applied"):
        ds = open_frames(two, geometry=geom, automask=[])
    with h5py.File(two) as f:
        stored = f["data/data"][:].reshape(4, 2, 32, 32)
    assert np.allclose(ds["intensity"].values, stored / np.array([9, 36])[:, None, None], rtol=1e-5)
    assert ds["intensity"].attrs["units"] == "photon" and ds["intensity"].attrs["gain"] == 1
    inner, bad = np.zeros((32, 32), bool), ~ds["mask"].values
    inner[5:-5, 5:-5] = True
    assert not bad[:, 1].any() and np.array_equal(bad[:, 0], ~inner | (stored[:, 0] > 7))
    other = shutil.copy(two, two.with_name("other.h5"))
    with h5py.File(other, "r+") as f:
        f["data/data"][1, 40, 3] = 65535  # no value
    bad = ~open_frames(other, geometry=geom, automask=[])["mask"].values
    assert bad[1, 1].sum() == 1 and bad[1, 1, 8, 3]
    geom.write_text(GEOM + "p0/adu_per_eV = 0.001\np1/adu_per_eV = 0.001\np0/max_adu = 90\np1/max_adu = 90\n")
    alike = open_frames(two, geometry=geom, automask=[])
    assert alike["intensity"].dtype == "u2" and alike["intensity"].attrs["gain"] == pytest.approx(9)
    assert alike.attrs["saturation"] == 90


# ---------------------------------------------------------------- absence is not a value


def test_frames_that_were_never_written_are_no_zeros(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "aborted.h5", "w") as f:
        data = f.create_dataset("entry/data/data", (9, 32, 32), "u2", chunks=(1, 16, 32))
        data[:3], data[4, :16], data[6] = rng.poisson(3, (3, 32, 32)), 1, 2
        f["entry/run"] = np.arange(9)
    with pytest.warns(UserWarning, match="2 of 9 frames were never written and are left out, 2 of 9 .* masked, 1 of 9"):
        ds = open_frames(tmp_path / "aborted.h5", automask=[], **KNOWN)
    bad = (~ds["mask"].values).sum((1, 2)).tolist()
    assert bad == [0, 0, 0, 1024, 512, 1024, 0] and ds["run"].values.tolist() == list(range(7))
    store = zarr.open_group(tmp_path / "lost.zarr", mode="w")
    store.create_array("images", shape=(4, 32, 32), chunks=(1, 32, 32), dtype="u2")[:] = 1 + rng.poisson(3, (4, 32, 32))
    pieces = [p for p in (tmp_path / "lost.zarr/images").rglob("*") if p.is_file() and p.name != "zarr.json"]
    sorted(pieces)[1].unlink()
    with pytest.warns(UserWarning, match="1 of 4 frames were never written"):
        bad = masked(tmp_path / "lost.zarr", **KNOWN).sum((1, 2))
    assert sorted(bad.tolist()) == [0, 0, 0, 1024]


# ---------------------------------------------------------------- a field is matched whole, or refused with its text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Wavelength 1,0332 A", "Wavelength, '1,0332 A', is not a number"),
        ("Wavelength 1.0332 1.2 A", "Wavelength, '1.0332 1.2 A', is not a number"),
        ("Wavelength 1.0332 furlongs", "Wavelength, '1.0332 furlongs', is not a number"),
        ("Detector_distance 0,25450 m", "Detector_distance, '0,25450 m', is not a number"),
        ("Beam_xy (63,50, 61,25) pixels", "is not a pair of numbers"),
        ("Count_cutoff 1,048,500 counts", "Count_cutoff, '1,048,500 counts', is not one number"),
    ],
)
def test_a_field_that_is_no_number_is_named(tmp_path, line, says):
    plain = ["Pixel_size 172e-6 m x 172e-6 m", "Wavelength 1.0332 A", "Detector_distance 0.2545 m", "Beam_xy (63.50, 61.25) pixels", "Count_cutoff 1048500 counts"]  # fmt: skip
    for name, lines in (
        ("good.cbf", plain),
        ("odd.cbf", [line if p.split()[0] == line.split()[0] else p for p in plain]),
    ):
        text = "\r\n".join(["# Detector: PILATUS 100K, S/N 1-0001", *(f"# {one}" for one in lines)])
        header = {"_array_data.header_convention": "PILATUS_1.2", "_array_data.header_contents": text}
        fabio.cbfimage.CbfImage(data=np.ones((64, 64), np.int32), header=header).write(str(tmp_path / name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good = open_frames(tmp_path / "good.cbf", automask=[]).attrs
    assert (good["wavelength"], good["distance"], good["saturation"]) == (1.0332, 0.2545, 1048500)
    assert tuple(good["beam_center"]) == (63.5, 61.25)
    with pytest.warns(UserWarning, match=re.escape(says)):
        odd = open_frames(tmp_path / "odd.cbf", automask=[], complete=False).attrs
    lost = {"Wavelength": "wavelength", "Detector_distance": "distance", "Beam_xy": "beam_center", "Count_cutoff": "saturation"}  # fmt: skip
    assert lost[line.split()[0]] not in odd


# ---------------------------------------------------------------- one reader of tables

TABLE = {"frame": [0, 1, 2], "digit": [4, 3, 2], "quality": [1.5, 2.5, 3.25]}


@pytest.mark.parametrize(
    "text",
    [
        "frame,digit,quality\n0,4,1.5\n1,3,2.5\n2,2,3.25\n",
        "frame,digit,quality\n0,4,1.5,\n1,3,2.5,\n2,2,3.25,\n",
        "frame,digit,quality,\n0,4,1.5,\n1,3,2.5,\n2,2,3.25,\n",
        "frame;digit;quality\r\n0;4;1,5\r\n1;3;2,5\r\n2;2;3,25\r\n",
        "\ufefframe,digit,quality\n0,4,1.5\n1,3,2.5\n2,2,3.25".replace("\ufefframe", "\ufeffframe"),
        "frame\tdigit\tquality\n0\t4\t1.5\n1\t3\t2.5\n2\t2\t3.25\n",
        ",frame,digit,quality\n0,0,4,1.5\n1,1,3,2.5\n2,2,2,3.25\n",
        'frame, "digit", quality\n0, 4, 1.5\n1, 3, 2.5\n2, 2, 3.25\n',
    ],
)
def test_tables_of_any_spreadsheet(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    assert read_cells(tmp_path / "a.csv", 1 << 20).to_dict("list") == TABLE
    np.save(tmp_path / "f.npy", np.ones((3, 16, 16), "u2"))
    ds = open_frames(tmp_path / "f.npy", labels=tmp_path / "a.csv", **KNOWN)
    assert ds["digit"].values.tolist() == [4, 3, 2] and ds["quality"].values.tolist() == TABLE["quality"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frame,digit\n0,4,9\n1,3,9\n", "row 1 has a value in cell 3, which the first line, 'frame,digit', does not name"),
        ("frame,digit\n0,4,9,9\n1,3\n", "a row with more cells than its first line"),
        ("0,4\n1,3\n", "expected a first line with the names of the columns"),
        ("frame,digit,digit\n0,1,2\n", "two columns called 'digit'"),
        ("frame,digit\n0,4\n1", "its last row, 2, has 1 of 2 columns"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_meant_is_refused(tmp_path, text, says):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BadInput, match=re.escape(says)):
        read_table(tmp_path / "a.csv")


# ---------------------------------------------------------------- a frame is a file and a number there

CHUNK = """----- Begin chunk -----
Image filename: {}
Event: //{}
num_peaks = 1
Peaks from peak search
  fs/px   ss/px (1/d)/nm^-1   Intensity  Panel
  {:5.2f}   8.00   1.0   100.0   p0
End of peak list
----- End chunk -----
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of two frames, and peaks of some of them, each at fs = 10 + the number of its frame among the six."""
    for name in "abc":
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["data/data"] = np.ones((2, 32, 32), "u2")
    return tmp_path


def test_a_stream_of_several_files_is_joined_by_file_and_event(folder):
    ds = open_frames([folder / f"{name}.h5" for name in "abc"], automask=[], **KNOWN)
    chunks = [(folder / "c.h5", 1, 15), (folder / "a.h5", 0, 10), (folder / "b.h5", 1, 13)]
    (folder / "x.stream").write_text("CrystFEL stream format 2.3\n" + "".join(CHUNK.format(*c) for c in chunks))
    peaks = read_peaks(folder / "x.stream", ds)["peaks"]
    assert (peaks["fs"] == 10 + peaks["frame"]).all() and set(peaks["frame"]) == {0, 3, 5}
    # the same from another folder, and of one file of a folder
    (folder / "y.stream").write_text("CrystFEL stream format 2.3\n" + CHUNK.format("/elsewhere/b.h5", 1, 13))
    assert read_peaks(folder / "y.stream", ds)["peaks"]["frame"].tolist() == [3]
    other = "CrystFEL stream format 2.3\n" + "".join(CHUNK.format(f"/elsewhere/{n}.cxi", 0, 10) for n in "xy")
    (folder / "z.stream").write_text(other)
    with pytest.raises(BadInput, match="frames of 2 image files, and none of them is one of these frames"):
        read_peaks(folder / "z.stream", ds)
    one = open_frames(folder / "b.h5", automask=[], **KNOWN)
    assert read_peaks(folder / "x.stream", one)["peaks"]["frame"].tolist() == [1]


def test_a_table_with_files_is_joined_by_them(folder):
    ds = open_frames([folder / f"{name}.h5" for name in "abc"], automask=[], **KNOWN)
    (folder / "p.csv").write_text("file,frame,fs,ss\nc.h5,1,15,8\na.h5,0,10,8\nb.h5,0,12,8\n")
    peaks = read_peaks(folder / "p.csv", ds)["peaks"]
    assert peaks["frame"].tolist() == [5, 0, 2] and (peaks["fs"] == 10 + peaks["frame"]).all()


def test_labels_are_joined_by_file_and_number_and_missing_rows_are_said(folder):
    (folder / "l.csv").write_text("file,number,digit,frame\nc.h5,1,5,9\na.h5,0,0,9\nb.h5,1,3,9\n")
    with pytest.warns(UserWarning, match="it has no row for 3 of the 6 frames: their labels are unknown"):
        ds = open_frames([folder / f"{name}.h5" for name in "abc"], labels=folder / "l.csv", automask=[], **KNOWN)
    assert (
        ds["digit"].values[[0, 3, 5]].tolist() == [0, 3, 5]
        and np.isnan(ds["digit"].values[[1, 2, 4]].astype(float)).all()
    )
    (folder / "l.csv").write_text("file,number,digit\nc.h5,2,5\n")
    with pytest.raises(BadInput, match="expected frames of c.h5 from 0 to 1"):
        open_frames([folder / f"{name}.h5" for name in "abc"], labels=folder / "l.csv", automask=[], **KNOWN)


def write_refl(path: Path, frame: list, fs: list, **more) -> Path:
    """Spots as DIALS writes them."""
    n = len(frame)
    place = np.column_stack([fs, np.full(n, 8.0), np.array(frame) + 0.5]).astype("<f8")
    columns = {
        "xyzobs.px.value": ["vec3<double>", [n, place.tobytes()]],
        "intensity.sum.value": ["double", [n, np.full(n, 100.0, "<f8").tobytes()]],
        "panel": ["std::size_t", [n, np.zeros(n, "<u8").tobytes()]],
    } | {k: ["int", [n, np.array(v, "<i4").tobytes()]] for k, v in more.items()}
    about = {"identifiers": {}, "nrows": n, "data": columns}
    path.write_bytes(msgspec.msgpack.encode(["dials::af::reflection_table", 1, about]))
    return path


def test_spots_of_dials_are_on_the_images_that_its_experiments_name(folder):
    ds = open_frames([folder / f"{name}.h5" for name in "abc"], automask=[], **KNOWN)
    refl = write_refl(folder / "x.refl", [1, 0, 1], [15, 10, 13], imageset_id=[2, 0, 1])
    sets = [
        {"__id__": "ImageSet", "images": [str(folder / f"{n}.h5")] * 2, "single_file_indices": [0, 1]} for n in "abc"
    ]
    experiments = {"__id__": "ExperimentList", "experiment": [{"imageset": k} for k in range(3)], "imageset": sets}
    (folder / "x.expt").write_text(json.dumps(experiments))
    peaks = read_peaks(refl, ds)["peaks"]
    assert (peaks["fs"] == 10 + peaks["frame"]).all() and set(peaks["frame"]) == {0, 3, 5}
    # a sweep that begins at image 3 of a template; without its experiments, stills that are sets of their own
    sweep = {"__id__": "ImageSequence", "template": "/elsewhere/t_####.cbf"}
    scan = [{"image_range": [3, 8], "oscillation": [0, 0.1]}]
    found = experiments | {"experiment": [{"imageset": 0, "scan": 0}], "imageset": [sweep], "scan": scan}
    (folder / "y.expt").write_text(json.dumps(found))
    refl = write_refl(folder / "y.refl", [2, 5, 7], [10, 13, 15])
    assert read_peaks(refl, 6)["peaks"]["frame"].tolist() == [0, 3, 5]
    assert read_images(folder / "y.expt")[0].place(2) == ("/elsewhere/t_0003.cbf", 0)
    refl = write_refl(folder / "z.refl", [0, 0, 0], [10, 13, 15], id=[0, 3, 5])
    assert read_peaks(refl, 6)["peaks"]["frame"].tolist() == [0, 3, 5]


def test_peaks_of_xds_stand_where_it_counts_them(tmp_path):
    """From 1 at pixel centres, and images from 0."""
    items = ("H", "K", "L", "IOBS", "SIGMA(IOBS)", "XD", "YD", "ZD", "RLP", "PEAK", "CORR", "PSI")
    head = ["!FORMAT=XDS_ASCII    MERGE=FALSE", "!Generated by CORRECT   (VERSION Jan 10, 2022)", "!SPACE_GROUP_NUMBER=   96", "!UNIT_CELL_CONSTANTS= 79.1 79.1 37.9 90 90 90", "!X-RAY_WAVELENGTH=  0.9795", "!NUMBER_OF_ITEMS_IN_EACH_DATA_RECORD=12"]  # fmt: skip
    head += [*(f"!ITEM_{name}={i}" for i, name in enumerate(items, 1)), "!END_OF_HEADER"]
    rows = [" 2 1 3 1.2E+02 5.0E+00 300.5 20.0 4.2 .1 99 50 10.", " 4 1 3 1.0E+01 2.0E+00 100.5 200.5 0.7 .1 99 50 10."]
    (tmp_path / "XDS_ASCII.HKL").write_text("\n".join([*head, *rows, "!END_OF_DATA", ""]))
    peaks = read_peaks(tmp_path / "XDS_ASCII.HKL", 5)["peaks"]
    assert peaks[["frame", "fs", "ss"]].to_numpy().tolist() == [[0, 100, 200], [4, 300, 19.5]]
    with pytest.raises(BadInput, match="has peaks of frame 4; expected 0 to 3"):
        read_peaks(tmp_path / "XDS_ASCII.HKL", 4)


def test_peaks_of_a_file_are_indexed_and_drawn(tmp_path, monkeypatch, capsys):
    """As found by another program: the lattices are those of our own peaks."""
    monkeypatch.chdir(tmp_path)
    assert main(["data", "simulate", "sim128", "-n", "3", "-o", "shots.h5", "--seed", "5"]) == 0
    ds = open_frames("shots.h5")
    own = find_frame_peaks(ds)
    columns = {"frame": own["frame"], "fs": own["fs"], "ss": own["ss"]}
    refl = write_refl(tmp_path / "spots.refl", own["frame"].tolist(), own["fs"].tolist())
    table = own.assign(**columns)[["frame", "fs", "ss", "intensity"]]
    table.to_csv("peaks.csv", index=False)
    assert len(read_peaks(refl, 3)["peaks"]) == len(own)
    assert main(["data", "index", "shots.h5", "peaks=peaks.csv", "--controls", "0", "--png", "a.png"]) == 0
    assert main(["data", "index", "shots.h5", "--controls", "0", "--png", "b.png"]) == 0
    a, b = (read_table(f"{x}.csv") for x in "ab")
    assert a["indexed"].tolist() == b["indexed"].tolist() and a["indexed"].sum() > 10
    assert main(["data", "inspect", "shots.h5", "peaks=peaks.csv", "--no-png"]) == 0
    assert f"{(own['frame'] == 0).sum()}" in capsys.readouterr().out
    assert main(["data", "index", "shots.h5", "peaks=lost.refl"]) == 2


def test_a_merged_list_of_crystfel_gives_intensities(tmp_path):
    known = CrystalIntensities(
        Cell((60, 60, 40, 90, 90, 90)), "P 4 2 2", np.array([[1, 0, 0], [2, 1, 0], [3, 2, 5]]), [4.0, 2.0, 6.0]
    )
    lines = [
        "CrystFEL reflection list version 2.0",
        "Symmetry: 4/mmm",
        "   h    k    l          I    phase   sigma(I)   nmeas",
    ]
    lines += [
        "".join(f"{x:4d} " for x in hkl) + f"{i:10.2f} {'-':>8s} {1:10.2f} {7:7d}"
        for hkl, i in zip(known.hkl, known.intensity, strict=True)
    ]
    (tmp_path / "a.hkl").write_text("\n".join([*lines, "End of reflections", ""]))
    found = read_intensities(tmp_path / "a.hkl", cell="60,60,40,90,90,90")
    assert found.hkl.tolist() == known.hkl.tolist() and found.intensity == pytest.approx(known.intensity, abs=5e-3)
    assert found.group == "P 4 2 2" and found.cell.parameters == known.cell.parameters
    with pytest.raises(BadInput, match="has no cell, as no .hkl has"):
        read_intensities(tmp_path / "a.hkl")
    (tmp_path / "a.hkl").write_text("\n".join(lines))
    with pytest.raises(BadInput, match="is cut or damaged"):
        read_intensities(tmp_path / "a.hkl", cell="60,60,40,90,90,90")


# ---------------------------------------------------------------- what is packed is unpacked by name


def write_mtz(path: Path, rows: list, labels: str = "H K L M/ISYM BATCH I SIGI FRACTIONCALC") -> Path:
    mtz = gemmi.Mtz(with_base=labels.startswith("H K L"))
    mtz.spacegroup, mtz.cell = gemmi.SpaceGroup("P 43"), gemmi.UnitCell(60, 60, 40, 90, 90, 90)
    mtz.add_dataset("d").wavelength = 0.9795
    kinds = {"H": "H", "K": "H", "L": "H", "M/ISYM": "Y", "BATCH": "B", "I": "J", "SIGI": "Q", "FRACTIONCALC": "R"}
    for label in labels.split()[len(mtz.columns) :]:
        mtz.add_column(label, kinds[label])
    mtz.set_data(np.array(rows, np.float32))
    mtz.write_to_file(str(path))
    return path


def test_parts_of_spots_are_added_up(tmp_path):
    rows = [
        [1, 2, 3, 1, 1, 100, 10, 1],
        [1, 2, 3, 257, 3, 60, 6, 0.6], [1, 2, 3, 257, 4, 40, 8, 0.4],  # one spot on two images
        [1, 2, 3, 257, 5, 30, 3, 0.3], [1, 2, 3, 257, 6, 50, 4, 0.5],  # the next one, of which 0.8 was recorded
        [2, 2, 3, 257, 9, 10, 5, 0.2],  # too little of it
    ]  # fmt: skip
    found = read_unmerged_mtz(write_mtz(tmp_path / "parts.mtz", rows))
    table = found.table.sort_values("frame")
    assert table["intensity"].tolist() == pytest.approx([100, 100, 100]) and table["frame"].tolist() == [1, 3, 5]
    assert table["sigma"].tolist() == pytest.approx([10, 10, 5 / 0.8]) and set(table["isym"]) == {1}
    assert found.wavelength == pytest.approx(0.9795) and "5 parts of spots" in found.notes[0]
    assert "1 of which less than half was recorded are left out" in found.notes[0]


def test_batch_headers_say_the_sweeps_and_the_wavelength(tmp_path):
    rows = [[1, 2, 3, 1, n, 100, 10, 1] for n in (1, 2, 101, 102)]
    mtz = gemmi.read_mtz_file(str(write_mtz(tmp_path / "a.mtz", rows)))
    for one in mtz.datasets:
        one.wavelength = 0
    for n in (1, 2, 101, 102):
        batch = gemmi.Mtz.Batch()
        batch.number, batch.dataset_id, batch.wavelength = n, 1, 0.98
        batch.floats[36], batch.floats[37] = (n % 100 - 1) * 0.5, n % 100 * 0.5
        mtz.batches.append(batch)
    mtz.write_to_file(str(tmp_path / "b.mtz"))
    found = read_unmerged_mtz(tmp_path / "b.mtz")
    assert found.wavelength == pytest.approx(0.98) and found.table["crystal"].tolist() == [0, 0, 1, 1]
    assert "2 sweeps: batches 1 to 2 (φ 0 to 1°), batches 101 to 102 (φ 0 to 1°)" in found.notes[0]


def test_columns_of_an_mtz_are_known_by_name(tmp_path):
    rows = np.array([[1, 2, 3, 1, 1, 100, 10, 1], [2, -1, 3, 2, 2, 90, 9, 1]])
    first = read_unmerged_mtz(write_mtz(tmp_path / "a.mtz", rows)).table
    order = [0, 1, 2, 6, 5, 4, 3, 7]
    labels = " ".join("H K L M/ISYM BATCH I SIGI FRACTIONCALC".split()[i] for i in order)
    other = read_unmerged_mtz(write_mtz(tmp_path / "b.mtz", rows[:, order], labels)).table
    assert first.equals(other[first.columns])
    with pytest.raises(BadInput, match="has ISYM 9, and P 43 has 4 operations"):
        read_unmerged_mtz(write_mtz(tmp_path / "c.mtz", [[1, 2, 3, 9, 1, 100, 10, 1]]))


def test_data_mask_says_where_each_mask_comes_from(two, capsys, monkeypatch):
    monkeypatch.chdir(two.parent)
    two.with_name("bits.geom").write_text(GEOM + "mask0_data = /data/mask_event\nmask0_goodbits = 0x1\n")
    assert main(["data", "mask", "two.h5", "geometry=bits.geom", "automask=[]"]) == 0
    said = capsys.readouterr().out
    assert "bits.geom: /data/mask_event of two.h5, bits good 0x1: 256 pixels in 4 frames" in said


# ---------------------------------------------------------------- files of others


def test_reflections_of_dials_are_those_that_dials_has(tmp_path):
    """The scaled quartz of DIALS' own collection: as many reflections, its cell and group, and intensities over their inverse scale factors."""
    folder = os.environ.get("XRDDIFF_DATA")
    path = Path(folder or tmp_path) / "processed" / "quartz__scaled.refl"
    if not path.is_file():
        pytest.skip("XRDDIFF_DATA names no folder with processed/quartz__scaled.refl")
    found, columns = read_dials(path), read_refl(path)
    assert len(columns["d"]) == 1620 and found.group.hm == "P 31 2 1" and found.wavelength == pytest.approx(0.02508)
    assert found.cell == pytest.approx((4.9249, 4.9249, 5.4014, 90, 90, 120), abs=1e-3)
    left = columns["flags"].astype(np.int64) & (7 << 23) > 0
    scaled = (columns["intensity.scale.value"] / columns["inverse_scale_factor"])[~left]
    assert np.isin(np.round(found.table["intensity"], 6), np.round(scaled, 6)).all()
    assert np.allclose(np.sort(found.table["d"])[[0, -1]], np.sort(columns["d"][~left])[[0, -1]], atol=2e-3)
    peaks = read_peaks(path.with_name("quartz__strong.refl"), 100)["peaks"]
    assert len(peaks) == 505 and peaks["frame"].between(0, 99).all()
    with pytest.raises(BadInput, match="is a pickle of an old DIALS"):
        read_refl(path.with_name("lcys__scaled_20_25.refl"))


def test_columns_of_dials_agree_with_its_model_of_the_experiment():
    """Thirteen columns of integrated quartz: d from index and cell, s1 from its place on the detector, mm from px, angle from image, counts of pixels from boxes."""
    folder = os.environ.get("XRDDIFF_DATA")
    path = Path(folder or "") / "processed" / "quartz__integrated.refl"
    if not folder or not path.is_file():
        pytest.skip("XRDDIFF_DATA names no folder with processed/quartz__integrated.refl")
    c, about = read_refl(path), json.loads(path.with_suffix(".expt").read_text())
    cell, _, wavelength = read_crystal(path.with_suffix(".expt"))
    panel, scan = about["detector"][0]["panels"][0], about["scan"][0]
    assert np.allclose(c["d"], gemmi.UnitCell(*cell).calculate_d_array(c["miller_index"].astype(np.int32)), rtol=1e-9)
    assert np.allclose(c["xyzcal.mm"][:, :2], c["xyzcal.px"][:, :2] * panel["pixel_size"], rtol=1e-9)
    angle = np.radians(scan["oscillation"][0] + scan["oscillation"][1] * c["xyzcal.px"][:, 2])
    assert np.allclose(angle, c["xyzcal.mm"][:, 2], atol=1e-9)
    x, y = c["xyzcal.mm"][:, :1], c["xyzcal.mm"][:, 1:2]
    lab = np.array(panel["origin"]) + x * panel["fast_axis"] + y * panel["slow_axis"]
    assert np.allclose(lab / np.linalg.norm(lab, axis=1, keepdims=True) / wavelength, c["s1"], atol=0.03)
    low, high = c["bbox"][:, ::2], c["bbox"][:, 1::2]
    assert ((low <= c["xyzobs.px.value"]) & (c["xyzobs.px.value"] <= high)).all(1).mean() > 0.9
    assert (c["num_pixels.valid"] <= np.prod(high - low, axis=1)).all()
    assert (c["num_pixels.foreground"] + c["num_pixels.background"] <= c["num_pixels.valid"]).all()
    assert (c["panel"] == 0).all() and (c["intensity.sum.variance"] > 0).all() and set(c["id"]) == {0}


def test_a_plain_h5py_opens_what_is_written_for_others(tmp_path):
    """Without filters of a plug-in: what CXI and NXmx are for."""
    values = np.random.default_rng(0).poisson(3, (2, 32, 32)).astype("u2")
    ds = make_frames(values, units="photon", sensor_material="CdTe", sensor_thickness=7.5e-4, **KNOWN)
    for name, place in (("a.cxi", "entry_1/data_1/data"), ("a.nxs", "entry/data/data")):
        save_frames(ds, tmp_path / name)
        with h5py.File(tmp_path / name) as f:
            assert f[place].compression == "gzip" and np.array_equal(f[place][:], values)
        assert np.array_equal(open_frames(tmp_path / name)["intensity"].values, values)
    with h5py.File(tmp_path / "a.nxs") as f:
        detector = f["entry/instrument/detector"]
        assert detector["sensor_material"].asstr()[()] == "CdTe" and detector["sensor_thickness"][()] == 7.5e-4
    save_frames(ds, tmp_path / "b.cxi", compression="lz4")
    with h5py.File(tmp_path / "b.cxi") as f:
        assert f["intensity"].compression not in ("gzip", None)  # of a plug-in
    with pytest.raises(BadInput, match="expected gzip or lz4"):
        save_frames(ds, tmp_path / "c.zarr", compression="lz4")
    assert not (tmp_path / "c.zarr").exists()


def test_the_sensor_of_a_header_is_kept(tmp_path):
    text = "\r\n".join(f"# {one}" for one in ("Detector: PILATUS 100K, S/N 1-0001", "Pixel_size 172e-6 m x 172e-6 m", "Silicon sensor, thickness 0.000320 m", "Wavelength 1 A", "Detector_distance 0.2 m", "Beam_xy (32, 32) pixels"))  # fmt: skip
    header = {"_array_data.header_convention": "PILATUS_1.2", "_array_data.header_contents": text}
    fabio.cbfimage.CbfImage(data=np.ones((64, 64), np.int32), header=header).write(str(tmp_path / "a.cbf"))
    ds = open_frames(tmp_path / "a.cbf", automask=[])
    assert ds.attrs["sensor_material"] == "Si" and ds.attrs["sensor_thickness"] == 3.2e-4
    save_frames(ds, tmp_path / "a.nxs")
    with h5py.File(tmp_path / "a.nxs", "r+") as f:
        del f.attrs["xrddiff_format"]  # as another program would write it
        del f["intensity"]
    again = open_frames(tmp_path / "a.nxs", automask=[])
    assert again.attrs["sensor_material"] == "Si" and again.attrs["sensor_thickness"] == 3.2e-4


def test_a_frame_of_a_folder_is_a_file_and_its_number(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    for k in range(2):
        with h5py.File(folder / f"run{k}.h5", "w") as f:
            f["entry/data/data"] = np.full((3, 16, 16), k, "u2")
    place = frame_origin(open_frames(folder, **KNOWN)["intensity"].variable, 4)
    assert (place.file, place.number) == (str(folder / "run1.h5"), 1)
    assert place == f"frame 1 of data set '/entry/data/data' of {folder / 'run1.h5'}"
    ds = open_frames(folder, **KNOWN)
    assert _place(ds, 4, str(folder)) == (str(folder / "run1.h5"), 1)
    one = open_frames(folder / "run0.h5", **KNOWN)
    assert _place(one, 2, str(folder / "run0.h5")) == (str(folder / "run0.h5"), 2)


def test_an_aborted_series_opens_without_what_is_missing(tmp_path):
    """A master file of an Eiger whose third file was never written, and that announces more images than there are."""
    for k in (1, 2):
        with h5py.File(tmp_path / f"s_data_00000{k}.h5", "w") as f:
            f["entry/data/data"] = np.full((4, 32, 32), k, "u2")
    with h5py.File(tmp_path / "s_master.h5", "w") as f:
        for k in (1, 2, 3):
            f[f"entry/data/data_00000{k}"] = h5py.ExternalLink(f"s_data_00000{k}.h5", "/entry/data/data")
        f["entry/instrument/detector/detectorSpecific/nimages"] = 12
    with pytest.raises(BadInput, match="s_data_000003.h5, which is missing beside it; complete=false opens the others"):
        open_frames(tmp_path / "s_master.h5", **KNOWN)
    with pytest.warns(UserWarning) as said:
        ds = open_frames(tmp_path / "s_master.h5", complete=False, automask=[], **KNOWN)
    assert ds["intensity"].values[:, 0, 0].tolist() == [1] * 4 + [2] * 4
    text = " ".join(str(w.message) for w in said)
    assert "1 of 3 files of frames are missing and left out" in text and "announces 12 images and has 8" in text
    assert main(["data", "convert", str(tmp_path / "s_master.h5"), str(tmp_path / "o.h5"), "complete=false"]) == 0
    assert open_frames(tmp_path / "o.h5", complete=False).sizes["frame"] == 8


def test_frames_of_two_detectors_are_refused(tmp_path):
    for name, serial in (("a", "60-0119"), ("b", "60-0120")):
        text = "\r\n".join(f"# {one}" for one in (f"Detector: PILATUS 100K, S/N {serial}", "Pixel_size 172e-6 m x 172e-6 m", "Wavelength 1 A", "Detector_distance 0.2 m", "Beam_xy (32, 32) pixels"))  # fmt: skip
        header = {"_array_data.header_convention": "PILATUS_1.2", "_array_data.header_contents": text}
        fabio.cbfimage.CbfImage(data=np.ones((64, 64), np.int32), header=header).write(str(tmp_path / f"{name}.cbf"))
    with pytest.raises(BadInput, match="the files differ in detector: a.cbf has 'PILATUS 100K, S/N 60-0119', b.cbf"):
        open_frames(tmp_path)
    assert open_frames(tmp_path, detector="both").sizes["frame"] == 2


def test_the_wavelength_of_electrons_is_one(tmp_path):
    np.save(tmp_path / "f.npy", np.ones((2, 16, 16), "u2"))
    with pytest.warns(UserWarning, match=r"wavelength is 0.02508 Å; taken as that of electrons: kept$"):
        assert open_frames(tmp_path / "f.npy", **KNOWN | {"wavelength": 0.02508}).attrs["wavelength"] == 0.02508


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_checksum_after_gzip_is_not_packed(tmp_path, shuffle):
    """Other programs write both, and large chunks are looked into before they are unpacked."""
    values = np.random.default_rng(0).poisson(3, (2, 512, 512)).astype("i4")
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset(
            "data", data=values, chunks=(1, 512, 512), compression="gzip", shuffle=shuffle, fletcher32=True
        )
    ds = open_frames(tmp_path / "a.h5", automask=[], **KNOWN)
    assert np.array_equal(ds["intensity"].values, values)


# ---------------------------------------------------------------- formats and rules

HERE = Path(__file__).parent
TESTED = {  # format: for each rule the test that shows it
    "CXI": {"bits": "test_a_bit_that_only_informs_masks_nothing", "absence": "test_frames_that_were_never_written_are_no_zeros", "field": "test_a_centre_in_hdf5_has_its_unit"},
    "NXmx, Eiger": {"bits": "test_the_upper_bits_of_nxmx_inform", "absence": "test_an_aborted_series_opens_without_what_is_missing", "field": "test_a_centre_in_hdf5_has_its_unit", "panel": "test_panels_of_nxmx_stand_where_nxmx_says", "named": "test_two_theta_is_applied_as_the_image_says"},
    "zarr": {"absence": "test_frames_that_were_never_written_are_no_zeros"},
    "CBF of Dectris": {"absence": "test_gaps_that_hold_zeros_are_masked", "field": "test_a_field_that_is_no_number_is_named", "named": "test_two_theta_is_applied_as_the_image_says", "look": "test_a_stated_centre_is_only_contradicted_by_a_clear_image"},
    "SMV": {"field": "test_adsc_centre_alone", "named": "test_pedestals_and_dummies_of_headers_are_applied", "look": "test_a_centre_in_pixels_is_not_taken_for_mm"},
    "EDF": {"absence": "test_pedestals_and_dummies_of_headers_are_applied", "named": "test_angles_of_edf_are_those_of_pyfai"},
    "MarCCD": {"field": "test_fields_that_contradict_each_other", "named": "test_two_theta_is_applied_as_the_image_says"},
    "imgCIF": {"absence": "test_what_was_not_measured_is_no_lowest_value", "panel": "test_panels_stand_where_cbflib_and_the_text_of_the_header_say"},
    ".geom": {"bits": "test_bits_of_a_geometry_are_applied_to_masks_of_each_frame", "panel": "test_values_of_panels_stay_with_them"},
    ".expt": {"panel": "test_trusted_ranges_mask_and_gains_are_taken", "named": "test_beams_of_many_stills"},
    "streams": {"identity": "test_a_stream_of_several_files_is_joined_by_file_and_event"},
    ".refl": {"identity": "test_spots_of_dials_are_on_the_images_that_its_experiments_name", "field": "test_columns_of_dials_agree_with_its_model_of_the_experiment"},
    "MTZ": {"identity": "test_batch_headers_say_the_sweeps_and_the_wavelength", "field": "test_columns_of_an_mtz_are_known_by_name", "absence": "test_parts_of_spots_are_added_up"},
    "tables": {"identity": "test_a_table_with_files_is_joined_by_them", "field": "test_a_column_that_is_not_meant_is_refused"},
}  # fmt: skip


def test_the_page_says_which_reader_keeps_which_rule():
    """The table of docs/formats.md has the cells of `TESTED`, and each of them names a test that is there."""
    there = {name for file in HERE.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    assert {name for row in TESTED.values() for name in row.values()} <= there
    lines = (HERE.parent / "docs" / "formats.md").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| format | bits |"))
    rules = [cell.strip() for cell in lines[first].split("|")[2:-1]]
    found = {}
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        found[name] = {rule for rule, cell in zip(rules, cells, strict=True) if cell == "yes"}
    assert found == {name: set(row) for name, row in TESTED.items()}
