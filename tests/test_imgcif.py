"""imgCIF files: many panels on many axes, against CBFlib's own detector and a walk over the header's text."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from conftest import measured, need

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.geometry import geometry_of, pixel_positions, q_map
from xrddiff.data.headers.imgcif import TO_LAB, is_imgcif, read_imgcif

AXIS = ("id", "type", "equipment", "depends_on", *(f"{w}[{k}]" for w in ("vector", "offset") for k in (1, 2, 3)))
LIST = ("array_id", "index", "dimension", "precedence", "direction", "axis_set_id")
H, W, PITCH = 12, 16, 0.1  # px, px, mm


def axes(n=3):
    """The axes of n panels: the arm, then for each a rotation about an oblique axis and its two surface axes."""
    rows = [("Z", "translation", "detector", ".", 0, 0, 1, ".", ".", ".")]
    rows += [("X", "translation", "detector", "Z", 1, 0, 0, 0.1, 0.2, 0.3)]
    for k in range(n):
        rows += [(f"R{k}", "rotation", "detector", "X", 0.1 * k, 0.2, 1, 2.0 * k - 1, -1.5 * k, 0.05 * k)]
        rows += [(f"S{k}", "translation", "detector", f"R{k}", 0, -1, 0, -W * PITCH / 2, H * PITCH / 2, 0)]
        rows += [(f"F{k}", "translation", "detector", f"S{k}", 1, 0, 0, 0, 0, 0)]
    return rows


def header(n=3, wavelength=1.25, distance=90.0):
    """The tables of a file whose n panels are n arrays, as (columns, rows)."""
    settings = [("Z", "FRAME1", 0, -distance), ("X", "FRAME1", 0, 0.4)]
    settings += [(f"R{k}", "FRAME1", 20 + 35 * k, 0) for k in range(n)]
    settings += [(f"{a}{k}", "FRAME1", 0, 0) for k in range(n) for a in "SF"]
    sizes = ((1, W, "F"), (2, H, "S"))
    return {
        "diffrn": (("id",), [("DS1",)]),
        "diffrn_radiation": (("diffrn_id", "wavelength_id"), [("DS1", "W1")]),
        "diffrn_radiation_wavelength": (("id", "wavelength", "wt"), [("W1", wavelength, 1)]),
        "diffrn_detector": (("id", "diffrn_id", "type", "number_of_axes"), [("D", "DS1", "CS PAD", 2 + n)]),
        "diffrn_detector_axis": (("detector_id", "axis_id"), [("D", row[0]) for row in axes(n) if row[0][0] not in "SF"]),
        "diffrn_detector_element": (("id", "detector_id"), [(f"E{k}", "D") for k in range(n)]),
        "diffrn_data_frame": (
            ("id", "detector_element_id", "array_id", "binary_id"),
            [("FRAME1", f"E{k}", f"A{k}", k + 1) for k in range(n)],
        ),
        "array_structure_list": (
            LIST, [(f"A{k}", i, size, i, "increasing", f"{a}{k}") for k in range(n) for i, size, a in sizes],
        ),
        "array_structure_list_axis": (
            ("axis_set_id", "axis_id", "displacement", "displacement_increment"),
            [(f"{a}{k}", f"{a}{k}", 0, PITCH) for k in range(n) for a in "FS"],
        ),
        "axis": (AXIS, axes(n)),
        "diffrn_scan": (("id", "frame_id_start", "frame_id_end", "frames"), [("SCAN1", "FRAME1", "FRAME1", 1)]),
        "diffrn_scan_frame": (("frame_id", "frame_number", "scan_id"), [("FRAME1", 1, "SCAN1")]),
        "diffrn_scan_axis": (
            ("axis_id", "scan_id", "angle_start", "angle_range", "angle_increment")
            + ("displacement_start", "displacement_range", "displacement_increment"),
            [(a, "SCAN1", r, 0, 0, d, 0, 0) for a, _, r, d in settings],
        ),
        "diffrn_scan_frame_axis": (("axis_id", "frame_id", "angle", "displacement"), settings),
        "array_intensities": (
            ("array_id", "binary_id", "overload", "undefined_value"), [(f"A{k}", k + 1, 60000, -9) for k in range(n)],
        ),
    }  # fmt: skip


def panels(n=3, seed=0):
    return np.random.default_rng(seed).poisson(30, (n, H, W)).astype("<i4")


def write(path, tables, arrays, floats=False):
    """An imgCIF file with these tables and one array for each panel."""
    pycbf = need("pycbf")
    handle = pycbf.cbf_handle_struct()
    handle.new_datablock(b"frame")
    rows = [(f"A{k}", k + 1) for k in range(len(arrays))]
    for name, (columns, values) in (tables | {"array_data": (("array_id", "binary_id"), rows)}).items():
        handle.new_category(name.encode())
        for column in columns:
            handle.new_column(column.encode())
        for row in values:
            handle.new_row()
            for k, value in enumerate(row):
                handle.select_column(k)
                handle.set_value(str(value).encode())
    handle.new_column(b"data")
    for k, a in enumerate(arrays):
        handle.select_row(k)
        size = (a.size, b"little_endian", a.shape[1], a.shape[0], 1, 0)
        if floats:
            handle.set_realarray_wdims_fs(pycbf.CBF_CANONICAL, k + 1, a.astype("<f4").tobytes(), 4, *size)
        else:
            handle.set_integerarray_wdims_fs(pycbf.CBF_BYTE_OFFSET, k + 1, a.tobytes(), 4, 1, *size)
    handle.write_widefile(str(path).encode(), pycbf.CBF, pycbf.MIME_HEADERS | pycbf.MSG_DIGEST, 0)
    return path


def made(path, n=3, **words):
    return write(path, header(n, **words), panels(n))


# a second implementation: the tables from the text of the header, the chain as matrices of 4 × 4


def tables_of(path):
    """The tables of a header as dicts of columns, read from its text without CBFlib."""
    text = path.read_bytes().partition(b"--CIF-BINARY")[0].decode("latin-1")
    words = re.findall(r"(?m)^;.*?^;|'[^'\n]*'|\"[^\"\n]*\"|[^\s]+", re.sub(r"(?m)^#.*$", "", text), re.S)
    found, i = {}, 0
    while i < len(words):
        if words[i].lower() == "loop_":
            names, i = [], i + 1
            while words[i].startswith("_"):
                names.append(words[i])
                i += 1
            start = i
            while i < len(words) and not words[i].startswith("_") and words[i].lower() != "loop_":
                i += 1
            cells = words[start:i]
            for k, name in enumerate(names):
                table, _, column = name[1:].partition(".")
                found.setdefault(table.lower(), {})[column.lower()] = [c.strip("'\"") for c in cells[k :: len(names)]]
        elif words[i].startswith("_") and i + 1 < len(words):
            table, _, column = words[i][1:].partition(".")
            found.setdefault(table.lower(), {})[column.lower()] = [words[i + 1].strip("'\"")]
            i += 2
        else:
            i += 1
    return found


def matrices(found):
    """axis -> its 4 × 4 matrix at the setting of the header, as a function of a further displacement."""
    t = found["axis"]
    number = lambda text: 0.0 if text in (".", "?") else float(text)  # noqa: E731
    s = found["diffrn_scan_frame_axis"]
    settings = {a: (number(r), number(d)) for a, r, d in zip(s["axis_id"], s["angle"], s["displacement"], strict=True)}
    out = {}
    for k, name in enumerate(t["id"]):
        v, o = (np.array([number(t[f"{w}[{j}]"][k]) for j in (1, 2, 3)]) for w in ("vector", "offset"))
        v = v / np.linalg.norm(v)
        angle, way = settings.get(name, (0.0, 0.0))
        m = np.eye(4)
        if t["type"][k] == "rotation":
            half = np.radians(angle) / 2  # by a quaternion
            w, (x, y, z) = np.cos(half), np.sin(half) * v
            m[:3, :3] = [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
            m[:3, 3] = o
        else:
            m[:3, 3] = o + way * v
        out[name] = (m, v, t["depends_on"][k])
    return out


def corner(found, fast, slow, i, j):
    """Where the corner (fast i, slow j) of a panel is, imgCIF's frame, mm."""
    at = matrices(found)
    steps = found["array_structure_list_axis"]
    pitch = {a: float(p) for a, p in zip(steps["axis_set_id"], steps["displacement_increment"], strict=True)}
    point, name = np.array([0, 0, 0, 1.0]), fast
    while name in at:
        m, v, parent = at[name]
        point = m @ point
        way = i * pitch[fast] if name == fast else j * pitch[slow] if name == slow else 0.0
        point[:3] += way * v
        name = parent
    return point[:3]


def test_panels_stand_where_cbflib_and_the_text_of_the_header_say(tmp_path):
    pycbf = need("pycbf")
    path = made(tmp_path / "a.cbf")
    ds = open_frames(path)
    handle, found = pycbf.cbf_handle_struct(), tables_of(path)
    handle.read_widefile(str(path).encode(), pycbf.MSG_DIGEST)
    assert ds["intensity"].dims == ("frame", "panel", "ss", "fs") and ds["intensity"].shape == (1, 3, H, W)
    for k in range(3):
        detector = handle.construct_detector(k)
        for ss, fs in ((0, 0), (0, W), (H, 0), (H, W)):
            own = ds["panel_origin"].values[k] + fs * ds["panel_fs"].values[k] + ss * ds["panel_ss"].values[k]
            theirs = 1e-3 * TO_LAB * detector.get_pixel_coordinates(ss, fs)
            walked = 1e-3 * TO_LAB * corner(found, f"F{k}", f"S{k}", fs, ss)
            assert np.allclose(own, theirs, rtol=0, atol=1e-3 * PITCH * 1e-3)  # 0.001 px
            assert np.allclose(own, walked, rtol=0, atol=1e-3 * PITCH * 1e-3)
    assert (ds["intensity"].values[0] == panels()).all()
    assert ds.attrs["wavelength"] == 1.25 and ds.attrs["detector"] == "CS PAD" and ds.attrs["saturation"] == 60000
    # and every further step has them from the frames
    where = pixel_positions(geometry_of(ds))
    centre = ds["panel_origin"].values + 0.5 * (ds["panel_fs"].values + ds["panel_ss"].values)
    assert np.allclose(where[:, 0, 0], centre, atol=1e-9)
    two_theta = np.arctan2(np.hypot(where[..., 0], where[..., 1]), where[..., 2])
    assert np.allclose(q_map(geometry_of(ds)), 4 * np.pi * np.sin(two_theta / 2) / 1.25)


def test_a_chain_that_is_wrong_is_found_by_the_comparison(tmp_path):
    """The comparison can fail: a panel that is turned by another degree is some pixels off."""
    path = made(tmp_path / "a.cbf")
    found = tables_of(path)
    at = found["diffrn_scan_frame_axis"]["axis_id"].index("R1")
    found["diffrn_scan_frame_axis"]["angle"][at] = "60"
    own = read_imgcif(path).panels[0][1].origin
    assert np.abs(own - 1e-3 * TO_LAB * corner(found, "F1", "S1", 0, 0)).max() > 0.1 * 1e-3 * PITCH


def test_one_panel_across_the_beam_is_an_image(tmp_path):
    tables = header(1)
    tables["axis"] = (AXIS, [(*r[:4], 0, 0, 1, *r[7:]) if r[0] == "R0" else r for r in axes(1)])
    at = tables["diffrn_scan_frame_axis"]
    tables["diffrn_scan_frame_axis"] = (at[0], [(a, f, 0, d) for a, f, _, d in at[1]])
    ds = open_frames(write(tmp_path / "a.cbf", tables, panels(1)))
    assert ds["intensity"].shape == (1, H, W)
    assert np.isclose(ds.attrs["pixel_size"], 1e-4) and np.isclose(ds.attrs["distance"], 0.0897)  # the offset is .3 mm
    # x: offset -1, arm .1 + .4, half a panel .8; y: .2 + .6 above the beam
    assert np.allclose(ds.attrs["beam_center"], (13.0, 8.0))


def test_one_tilted_panel_is_a_panel(tmp_path):
    ds = open_frames(made(tmp_path / "a.cbf", 1))
    assert ds["intensity"].shape == (1, 1, H, W) and ds["panel_origin"].shape == (1, 3)


def test_a_series_has_one_geometry(tmp_path):
    for k, wavelength in enumerate((1.25, 1.26)):
        made(tmp_path / f"a_{k}.cbf", wavelength=wavelength)
    ds = open_frames(tmp_path / "a_*.cbf")
    assert ds.sizes["frame"] == 2 and ds["wavelength"].values.tolist() == [1.25, 1.26]
    made(tmp_path / "a_2.cbf", distance=95.0)
    with pytest.raises(BadInput, match=r"the panel 'A0' of .*a_2\.cbf is not where that of a_0\.cbf is"):
        open_frames(tmp_path / "a_*.cbf")
    made(tmp_path / "a_2.cbf", 2)
    with pytest.raises(BadInput, match=r"a_2\.cbf has 2 panels"):
        open_frames(tmp_path / "a_*.cbf")


def test_floats_and_panels_of_two_sizes(tmp_path):
    tables = header(2)
    rows = tables["array_structure_list"][1]
    tables["array_structure_list"] = (LIST, [(*r[:2], 9, *r[3:]) if r[0] == "A1" and r[1] == 1 else r for r in rows])
    a, b = panels(2)
    ds = open_frames(write(tmp_path / "a.cbf", tables, [a, b[:, :9] + 0.5], floats=True))
    assert ds["intensity"].dtype == np.float32 and ds["intensity"].shape == (1, 2, H, W)
    assert (ds["intensity"].values[0, 1, :, :9] == b[:, :9] + 0.5).all()
    mask = np.broadcast_to(ds["mask"].values, ds["intensity"].shape)[0]
    assert not mask[1, :, 9:].any() and mask[0].any()


def test_what_was_not_measured_is_no_lowest_value(tmp_path):
    """The undefined value of a panel is masked there and nowhere else, and overload is its own as well."""
    tables, arrays = header(2), panels(2)
    columns = ("array_id", "binary_id", "overload", "undefined_value")
    tables["array_intensities"] = (columns, [("A0", 1, 60000, -9), ("A1", 2, 100, 7)])
    arrays[:, 0, :3], arrays[:, 1, :3], arrays[:, 2, :3] = -9, 7, 200
    mask = open_frames(write(tmp_path / "a.cbf", tables, arrays), automask=[])["mask"].values.reshape(2, H, W)
    assert not mask[0, 0, :3].any() and mask[0, 1, :3].all() and mask[0, 2, :3].all()
    assert mask[1, 0, :3].all() and not mask[1, 1, :3].any() and not mask[1, 2, :3].any()
    assert (arrays[0][mask[0]] != -9).all() and (arrays[1][mask[1]] != 7).all()


def test_without_pycbf_the_extra_is_named(tmp_path, monkeypatch):
    path = made(tmp_path / "a.cbf")
    monkeypatch.setitem(sys.modules, "pycbf", None)
    with pytest.raises(BadInput, match=r"full imgCIF header, which pycbf reads.*install xrddiff\[imgcif\]"):
        open_frames(path)


@pytest.mark.parametrize(
    "table, change, said",
    [
        ("axis", lambda r: (*r[:3], "F1", *r[4:]) if r[0] == "Z" else r, "depends on itself|is not described"),
        ("axis", lambda r: (*r[:4], "nan", *r[5:]) if r[0] == "X" else r, r"vector\[1\] is 'nan'; expected a finite number"),
        ("axis", lambda r: (*r[:4], 0, 0, 0, *r[7:]) if r[0] == "X" else r, "has no direction"),
        ("axis", lambda r: ("other", *r[1:]) if r[0] == "Z" else r, "the axis 'Z' is not described"),
        ("array_structure_list", lambda r: (*r[:4], "decreasing", r[5]), "expected increasing"),
        ("array_structure_list", lambda r: (*r[:2], 99, *r[3:]), "at .* of an array of shape"),
        ("array_structure_list_axis", lambda r: (*r[:3], 0.2 if r[0][0] == "F" else 0.1), "expected square pixels"),
        ("diffrn_data_frame", lambda r: (*r[:3], 77), "no pixels of the array"),
    ],
)  # fmt: skip
def test_headers_that_cannot_be_right_are_refused(tmp_path, table, change, said):
    tables = header()
    columns, rows = tables[table]
    path = write(tmp_path / "a.cbf", tables | {table: (columns, [change(r) for r in rows])}, panels())
    with pytest.raises(BadInput, match=said) as caught:
        open_frames(path)["intensity"].values  # noqa: B018
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_damaged_pixels_are_refused(tmp_path):
    path = made(tmp_path / "a.cbf")
    data = bytearray(path.read_bytes())
    at = data.index(b"\x0c\x1a\x04\xd5") + 40
    data[at] ^= 3
    (tmp_path / "b.cbf").write_bytes(data)
    with pytest.raises(BadInput, match=r"b\.cbf is a damaged imgCIF file"):
        open_frames(tmp_path / "b.cbf")["intensity"].values  # noqa: B018
    (tmp_path / "c.cbf").write_bytes(path.read_bytes()[:-900])
    with pytest.raises(BadInput, match=r"c\.cbf"):
        open_frames(tmp_path / "c.cbf")["intensity"].values  # noqa: B018


# ---- a measured frame: 64 sensors of an LCLS CSPAD, in four arrays


def test_a_measured_cspad_has_its_64_panels():
    pycbf = need("pycbf")
    path = measured("thermolysin_cspad_401.cbf")
    assert is_imgcif(path)
    ds, found = open_frames(path), tables_of(path)
    assert ds["intensity"].shape == (1, 64, 185, 194) and ds.attrs["wavelength"] == 1.272607
    pixel = np.linalg.norm(ds["panel_fs"].values, axis=1)
    assert np.allclose(pixel, 109.92e-6)
    lists = found["array_structure_list"]
    sets = [a for a, s in zip(lists["axis_set_id"], lists["array_section_id"], strict=True) if s != "."]
    for k, (fast, slow) in enumerate(zip(sets[::2], sets[1::2], strict=True)):
        for fs, ss in ((0, 0), (194, 0), (0, 185)):
            own = ds["panel_origin"].values[k] + fs * ds["panel_fs"].values[k] + ss * ds["panel_ss"].values[k]
            walked = 1e-3 * TO_LAB * corner(found, fast, slow, fs, ss)
            assert np.abs(own - walked).max() < 0.001 * pixel[k]
    handle = pycbf.cbf_handle_struct()
    handle.read_widefile(str(path).encode(), pycbf.MSG_DIGEST)
    for quadrant in range(4):  # CBFlib places the first panel of each array
        detector = handle.construct_detector(quadrant)
        for fs, ss in ((0, 0), (194, 185)):
            k = 16 * quadrant
            own = ds["panel_origin"].values[k] + fs * ds["panel_fs"].values[k] + ss * ds["panel_ss"].values[k]
            assert np.abs(own - 1e-3 * TO_LAB * detector.get_pixel_coordinates(ss, fs)).max() < 0.001 * pixel[k]
    # every pixel once: the four arrays, sensor by sensor
    handle.find_category(b"array_data")
    handle.find_column(b"data")
    stacks = []
    for row in range(4):
        handle.select_row(row)
        stacks.append(np.frombuffer(handle.get_integerarray_as_string(), "<i4").reshape(8, 185, 2, 194))
    assert (ds["intensity"].values[0] == np.concatenate(stacks).transpose(0, 2, 1, 3).reshape(64, 185, 194)).all()


@pytest.mark.slow
def test_a_measured_cspad_is_indexed():
    from xrddiff.physics.indexing.indexer import index_frames

    ds = open_frames(measured("thermolysin_cspad_401.cbf"))
    found = index_frames(ds, cell=(92.9, 92.9, 130.4, 90, 90, 120))
    assert len(found.lattices) >= 1
