"""NXmx files as Dectris, Diamond and LCLS write them: where their pixels are, against dxtbx's published numbers, the package
nxmx and a chain of 4 × 4 matrices."""

from __future__ import annotations

import shutil

import h5py
import hdf5plugin
import numpy as np
import pytest
from conftest import need
from scipy.spatial.transform import Rotation

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.geometry import geometry_of, pixel_positions

TO_IMGCIF = np.array([-1, 1, -1])  # NeXus' frame is ours; dxtbx has that of imgCIF
AXES = "/entry/instrument/detector/transformations"


def axis(group, name, value, kind, vector, on, units, **more):
    """An axis with its attributes, as bytes where writers use bytes."""
    group[name] = value
    group[name].attrs.update(
        {"transformation_type": kind, "vector": np.array(vector, float), "depends_on": on, "units": units} | more
    )


def entry_of(file, wavelength=0.9762, detector="detector"):
    """The groups that every writer has; the detector."""
    file["entry/definition"] = np.bytes_("NXmx")
    file["entry/instrument/beam/incident_wavelength"] = wavelength
    file["entry/instrument/beam/incident_wavelength"].attrs["units"] = b"angstrom"
    for name, kind in (("entry", "entry"), ("entry/instrument", "instrument"), ("entry/instrument/beam", "beam")):
        file[name].attrs["NX_class"] = np.bytes_(f"NX{kind}")
    out = file.create_group(f"entry/instrument/{detector}")
    out.attrs["NX_class"] = np.bytes_("NXdetector")
    return out


def module_of(detector, name, origin, size, on, fast, slow, pixel, units):
    module = detector.create_group(name)
    module.attrs["NX_class"] = np.bytes_("NXdetector_module")
    module["data_size"] = np.array(size, "u4")
    if origin is not None:
        module["data_origin"] = np.array(origin, "u4")
    for word, vector in (("fast", fast), ("slow", slow)):
        axis(module, f"{word}_pixel_direction", pixel, "translation", vector, on, units)
    return module


def blank(file, shape, name="entry/data/data"):
    """Frames of which nothing is stored."""
    file.create_dataset(name, shape, "u4", chunks=(1, *shape[1:]), **hdf5plugin.Bitshuffle(cname="lz4"))


def stands(ds):
    """origin, fs, ss of the frames' panels, in mm and with pixels in px, in dxtbx's frame."""
    if "panel_origin" in ds.coords:
        return [ds[f"panel_{k}"].values * 1e3 * TO_IMGCIF for k in ("origin", "fs", "ss")]
    (x, y), p = ds.attrs["beam_center"], ds.attrs["pixel_size"] * 1e3
    return x * p, y * p, ds.attrs["distance"] * 1e3


# ---------------------------------------------------------------- dxtbx's published numbers


def test_a_module_offset_of_diamond_is_where_dxtbx_says(tmp_path):
    """The Eiger 16M of dxtbx's tests: its corner at (-155.985, 166.904, -289.3) mm."""
    with h5py.File(tmp_path / "a.nxs", "w") as f:
        detector = entry_of(f)
        arm = detector.create_group("transformations")
        axis(arm, "det_z", np.array([289.3]), "translation", (0, 0, 1), b".", b"mm")
        module = module_of(
            detector,
            "module",
            (0, 0),
            (4362, 4148),
            f"{AXES[:26]}/module/module_offset",
            (-1, 0, 0),
            (0, -1, 0),
            7.5e-5,
            b"m",
        )
        axis(
            module,
            "module_offset",
            0,
            "translation",
            (0, 0, 0),
            f"{AXES}/det_z",
            b"mm",
            offset=[155.985, 166.904, -0.0],
        )
        detector["beam_center_x"], detector["beam_center_y"] = 2079.79727597266, 2225.38773853771
        blank(f, (2, 4362, 4148))
    ds = open_frames(tmp_path / "a.nxs", automask=[])
    assert ds["intensity"].shape == (2, 4362, 4148)
    assert stands(ds) == pytest.approx((155.985, 166.904, 289.3), abs=1e-6)
    shutil.copy(tmp_path / "a.nxs", tmp_path / "b.nxs")
    with h5py.File(tmp_path / "b.nxs", "a") as f:  # dxtbx then uses the beam centre of the detector
        f[f"{AXES[:26]}/module/module_offset"].attrs["offset"] = [0.0, 0, 0]
    assert stands(open_frames(tmp_path / "b.nxs", automask=[])) == pytest.approx((155.985, 166.904, 289.3), rel=1e-5)


def test_two_theta_is_where_dxtbx_says(tmp_path):
    with h5py.File(tmp_path / "a.nxs", "w") as f:
        detector = entry_of(f)
        arm = detector.create_group("transformations")
        axis(arm, "det_z", 120.0, "translation", (0, 0, 1), f"{AXES}/two_theta", b"mm")
        axis(arm, "two_theta", 45, "rotation", (-1, 0, 0), b".", b"deg")
        on = "/entry/instrument/detector/module/module_offset"
        module = module_of(detector, "module", None, (2162, 2068), on, (-1, 0, 0), (0, -1, 0), 7.5e-5, "m")
        direction = (0.72264186, 0.69122265, 0.0)
        axis(module, "module_offset", 112.19250476301882, "translation", direction, f"{AXES}/det_z", b"mm")
        blank(f, (1, 2162, 2068))
    ds = open_frames(tmp_path / "a.nxs", automask=[])
    origin, fs, ss = stands(ds)
    assert np.allclose(origin, [-81.07500032000678, 139.68894494331983, -30.01668254145155], atol=1e-9)
    assert np.allclose(fs / 0.075, [1, 0, 0]) and np.allclose(ss / 0.075, [0, -np.sqrt(0.5), -np.sqrt(0.5)])


def lcls(path):
    """Four ASICs of the Jungfrau 16M of dxtbx's tests, in one large frame."""
    with h5py.File(path, "w") as f:
        detector = entry_of(f, detector="ELE_D0")
        for name, origin, fast, slow in (
            ("Q0M0A0", (1, 1), (-0.999998, -0.001781, 0), (-0.001781, 0.999998, 0)),
            ("Q0M0A1", (1, 259), (-0.999998, -0.001781, 0), (-0.001781, 0.999998, 0)),
            ("Q0M12A0", (6169, 1), (-0.999996, 0.00279501, 0), (0.00279501, 0.999996, 0)),
            ("Q0M12A1", (6169, 259), (-0.999996, 0.00279501, 0), (0.00279501, 0.999996, 0)),
        ):
            on = f"/entry/instrument/ELE_D0/transformations/AXIS_D0{name}"
            module_of(detector, f"ARRAY_D0{name}", origin, (254, 254), on, fast, slow, 0.075, "mm")
        arm = detector.create_group("transformations")
        for name, on, offset in (
            ("D0Q0M0A0", "D0Q0M0", (38.5842, -19.1314, 0)), ("D0Q0M0A1", "D0Q0M0", (19.2342, -19.1658, 0)),
            ("D0Q0M12A0", "D0Q0M12", (38.4963, -19.3077, 0)), ("D0Q0M12A1", "D0Q0M12", (19.1463, -19.2536, 0)),
            ("D0Q0M0", "D0Q0", (38.3107, -61.1138, 0)), ("D0Q0M12", "D0Q0", (39.1843, 61.4038, 0)),
            ("D0Q0", "D0", (75.1333, -84.6597, 0)), ("D0", "RAIL", (-0.429033, 0.121021, -0.294)),
        ):  # fmt: skip
            more = {"offset": np.array(offset, float), "offset_units": b"mm"}
            axis(arm, f"AXIS_{name}", 0, "rotation", (0, 0, -1), f"AXIS_{on}".encode(), b"degrees", **more)
        axis(arm, "AXIS_RAIL", 97.83, "translation", (0, 0, 1), b".", b"mm", offset=np.zeros(3), offset_units=b"mm")
        blank(f, (2, 6425, 514))
        f["entry/data/data"][1, 1 + 3, 259 + 5] = 77
        f["entry/data/data"][1, 6169 + 253, 1] = 78
    return path


def test_nested_modules_of_lcls_are_where_dxtbx_says(tmp_path):
    ds = open_frames(lcls(tmp_path / "a.nxs"), automask=[])
    assert ds["intensity"].shape == (2, 4, 254, 254) and ds.attrs["distance"] == pytest.approx(0.097536)
    origin, fs, ss = stands(ds)
    assert np.allclose(origin[0], [-151.599167, -164.783879, -97.536], atol=1e-9)
    assert np.allclose(fs[0] / 0.075, [0.9999984140169291, -0.0017810007373656254, 0], atol=2e-6)
    assert np.allclose(ss[0] / 0.075, [0.0017810007373656254, 0.9999984140169291, 0], atol=2e-6)
    values = ds["intensity"].values
    assert values[1, 1, 3, 5] == 77 and values[1, 2, 253, 0] == 78 and values.sum() == 155


# ---------------------------------------------------------------- as their writers lay them out


def diamond(folder, n=3):
    """As nexgen writes it: a virtual data set over numbered files, links to them beside it, and a swung detector."""
    frames = np.random.default_rng(3).poisson(2, (2 * n, 100, 120)).astype("u4")
    layout = h5py.VirtualLayout(frames.shape, "u4")
    for k in range(2):
        with h5py.File(folder / f"run_{k + 1:06d}.h5", "w") as f:
            f.create_dataset("data", data=frames[k * n : (k + 1) * n], chunks=(1, 100, 120), **hdf5plugin.Bitshuffle())
        source = h5py.VirtualSource(f"run_{k + 1:06d}.h5", "data", (n, 100, 120))
        layout[k * n : (k + 1) * n] = source
    with h5py.File(folder / "run_meta.h5", "w") as f:
        f["mask"] = np.zeros((100, 120), "u4")
        f["mask"][:, 7] = 1
    with h5py.File(folder / "run.nxs", "w") as f:
        detector = entry_of(f)
        detector["description"], detector["sensor_material"] = np.bytes_("Eiger 2X"), np.bytes_("CdTe")
        detector["pixel_mask"] = h5py.ExternalLink("run_meta.h5", "mask")
        for word, value in (("beam_center_x", 90.5), ("beam_center_y", 80.25)):
            detector[word] = value
            detector[word].attrs["units"] = b"pixels"
        detector["distance"] = 0.15
        detector["distance"].attrs["units"] = np.bytes_("m")
        detector["saturation_value"], detector["underload_value"] = 46051, -1
        arm = detector.create_group("transformations")
        axis(arm, "two_theta", np.array([20.0]), "rotation", (-1, 0, 0), b".", b"deg")
        axis(arm, "det_z", np.array([150.0]), "translation", (0, 0, 1), f"{AXES}/two_theta".encode(), b"mm")
        on = b"/entry/instrument/detector/module/module_offset"
        module = module_of(detector, "module", (0, 0), (100, 120), on, (-1, 0, 0), (0, -1, 0), 7.5e-5, b"m")
        module["data_stride"] = np.array([1, 1], "u4")
        offset = np.array([90.5, 80.25, 0]) * 7.5e-5  # its length is in the vector, its value is 1
        axis(module, "module_offset", 1.0, "translation", offset, f"{AXES}/det_z".encode(), b"m", offset=[0, 0, 0], offset_units=b"mm")  # fmt: skip
        detector["detector_z/det_z"] = f[f"{AXES}/det_z"]
        detector["depends_on"] = f"{AXES}/det_z".encode()
        data = f.create_group("entry/data")
        data.attrs.update({"NX_class": b"NXdata", "signal": b"data", "axes": [b"omega", b".", b"."]})
        f.create_virtual_dataset("entry/data/data", layout)
        for k in range(2):
            data[f"data_{k + 1:06d}"] = h5py.ExternalLink(f"run_{k + 1:06d}.h5", "data")
    return folder / "run.nxs", frames


def test_diamond_with_a_virtual_data_set(tmp_path):
    path, frames = diamond(tmp_path)
    ds = open_frames(path, automask=[])
    assert np.array_equal(ds["intensity"].values[:, 0], frames) and ds.attrs["detector"] == "Eiger 2X"
    good = np.asarray(ds["mask"])[0]
    assert not good[:, 7].any() and good.sum() == 100 * 119
    origin, fs, ss = (ds[f"panel_{k}"].values[0] for k in ("origin", "fs", "ss"))
    # in its own frame: the detector at 150 mm, swung about -x
    swing = Rotation.from_euler("x", -20, degrees=True)
    assert np.allclose(origin, swing.apply([90.5 * 75e-6, 80.25 * 75e-6, 0.15]), atol=1e-12)
    assert np.allclose(fs, [-75e-6, 0, 0]) and np.allclose(ss, swing.apply([0, -75e-6, 0]))


def dectris(folder, channels=False):
    """As Dectris' FileWriter lays it out: a master with links, or (version 2) one virtual data set with channels."""
    frames = np.random.default_rng(4).poisson(2, (6, 100, 120)).astype("u4")
    layout = h5py.VirtualLayout((6, 1, 100, 120), "u4")
    for k, part in enumerate(np.split(frames, 2), 1):
        with h5py.File(folder / f"s_data_{k:06d}.h5", "w") as f:
            part = part[:, None] if channels else part
            f.create_dataset(
                "entry/data/data", data=part, chunks=(1, *part.shape[1:]), **hdf5plugin.Bitshuffle(cname="lz4")
            )
        layout[3 * k - 3 : 3 * k] = h5py.VirtualSource(f"s_data_{k:06d}.h5", "entry/data/data", (3, 1, 100, 120))
    with h5py.File(folder / "s_master.h5", "w") as f:
        detector = entry_of(f)
        f.create_group("entry/data").attrs["NX_class"] = b"NXdata"
        if channels:
            f.create_virtual_dataset("entry/data/data", layout)
        else:
            for k in (1, 2):
                f[f"entry/data/data_{k:06d}"] = h5py.ExternalLink(f"s_data_{k:06d}.h5", "/entry/data/data")
        for word, value, unit in (
            ("beam_center_x", 61.5, "pixel"), ("beam_center_y", 44.25, "pixel"), ("distance", 0.2, "m"),
            ("x_pixel_size", 7.5e-5, "m"), ("y_pixel_size", 7.5e-5, "m"),
        ):  # fmt: skip
            detector[word] = np.float32(value)
            detector[word].attrs["units"] = np.bytes_(unit)
        arm = detector.create_group("transformations")
        arm.attrs["NX_class"] = b"NXtransformations"
        axis(arm, "translation", np.float32(0.2), "translation", (0, 0, 1), b".", b"m")
        module = module_of(
            detector, "module", (0, 0), (100, 120), b"module_offset", (-1, 0, 0), (0, -1, 0), np.float32(7.5e-5), b"m"
        )
        axis(
            module, "module_offset", np.float32(0), "translation", (0, 0, 1), f"{AXES}/translation".encode(), b"m",
            offset=[61.5 * 7.5e-5, 44.25 * 7.5e-5, 0.0],
        )  # fmt: skip
    return folder / "s_master.h5", frames


@pytest.mark.parametrize("channels", [False, True])
def test_dectris_master_of_both_versions(tmp_path, channels):
    path, frames = dectris(tmp_path, channels)
    ds = open_frames(path, automask=[])
    assert np.array_equal(ds["intensity"].values, frames)
    assert ds.attrs["beam_center"] == pytest.approx((61.5, 44.25), abs=1e-4)
    assert ds.attrs["distance"] == pytest.approx(0.2) and ds.attrs["pixel_size"] == pytest.approx(7.5e-5)
    (tmp_path / "s_data_000002.h5").unlink()
    with pytest.raises(BadInput, match="s_data_000002.h5"):
        open_frames(path)


def stack(path, seed=5):
    """A stack of planes as LCLS and cctbx write it: two planes of three ASICs each, on axes that turn about anything."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as f:
        detector = entry_of(f, wavelength=np.array([0.97, 0.971, 0.972]), detector="ELE_D0")
        arm = detector.create_group("transformations")
        names = ["AXIS_RAIL", "AXIS_D0", *(f"AXIS_D0Q{q}" for q in range(2)), *(f"AXIS_D0Q{q}A{a}" for q in range(2) for a in range(3))]  # fmt: skip
        axis(arm, names[0], [0.0971], "translation", (0, 0, 1), ".", "m")
        for name in names[1:]:
            parent = "AXIS_RAIL" if name == "AXIS_D0" else name[:-2]
            axis(
                arm, name, [rng.normal(0, 3)], "rotation", rng.normal(size=3), f"{detector.name}/transformations/{parent}",
                "degrees", offset=rng.normal(0, 9, 3), offset_units="mm", equipment="detector",
            )  # fmt: skip
            arm[name].attrs["vector"] /= np.linalg.norm(arm[name].attrs["vector"])
        for q in range(2):
            for a in range(3):
                turn = Rotation.from_euler("z", rng.normal(0, 2), degrees=True)
                fast, slow = turn.apply([[-1, 0, 0], [0, 1, 0]])
                on = f"{detector.name}/transformations/AXIS_D0Q{q}A{a}"
                module_of(detector, f"ARRAY_D0Q{q}A{a}", (q, 22 * a, 0), (1, 20, 30), on, fast, slow, [0.2], "mm")
        f["entry/data/data"] = rng.poisson(3, (3, 2, 64, 30)).astype("u2")
    return path


def test_panels_of_a_stack_agree_with_nxmx_and_with_matrices(tmp_path):
    path = stack(tmp_path / "a.nxs")
    ds = open_frames(path, automask=[])
    assert ds["intensity"].shape == (3, 6, 20, 30) and np.allclose(ds["wavelength"], [0.97, 0.971, 0.972])
    found = pixel_positions(geometry_of(ds)) * 1e3  # mm
    nxmx = need("nxmx")
    with h5py.File(path) as f:
        detector = nxmx.NXmx(f).entries[0].instruments[0].detectors[0]
        whole = f["entry/data/data"][:]
        y, x = np.mgrid[:20, :30] + 0.5
        for k, module in enumerate(sorted(detector.modules, key=lambda m: tuple(m.data_origin))):
            fast, slow = module.fast_pixel_direction, module.slow_pixel_direction
            there = nxmx.get_cumulative_transformation(nxmx.get_dependency_chain(fast.depends_on))[0]
            own = 0.2 * (x[..., None] * fast.vector + y[..., None] * slow.vector)
            assert np.abs(found[k] - (own @ there[:3, :3].T + there[:3, 3])).max() < 1e-9
            # the same with matrices from the file alone
            matrix, item = np.eye(4), module._handle["fast_pixel_direction"].attrs["depends_on"]
            while item != ".":
                node, step = f[item], np.eye(4)
                if node.attrs["transformation_type"] == "rotation":
                    step[:3, :3] = Rotation.from_rotvec(node[0] * node.attrs["vector"], degrees=True).as_matrix()
                else:
                    step[:3, 3] = 1e3 * node[0] * node.attrs["vector"]
                step[:3, 3] += node.attrs.get("offset", np.zeros(3))
                matrix, item = step @ matrix, node.attrs["depends_on"]
            assert np.allclose(matrix, there, atol=1e-9)
            q, row, _ = module.data_origin
            assert np.array_equal(ds["intensity"].values[:, k], whole[:, q, row : row + 20])


def test_a_spectrum_has_its_mean_wavelength(tmp_path):
    path, _ = dectris(tmp_path)
    channels = 12398.419843320026 / np.linspace(9400, 9600, 500)
    weights = np.exp(-0.5 * ((np.linspace(9400, 9600, 500) - 9500) / 20) ** 2)
    with h5py.File(path, "a") as f:
        del f["entry/instrument/beam/incident_wavelength"]
        f["entry/instrument/beam/incident_wavelength"] = channels
        f["entry/instrument/beam/incident_wavelength"].attrs["units"] = b"angstrom"
        f["entry/instrument/beam/incident_wavelength_weights"] = weights
    assert open_frames(path, automask=[]).attrs["wavelength"] == pytest.approx(12398.419843320026 / 9500, rel=1e-4)


# ---------------------------------------------------------------- chains that lead nowhere


def changed(folder, change):
    """A Dectris master whose chain was changed; the frames, and what was warned of."""
    path, _ = dectris(folder)
    with h5py.File(path, "a") as f:
        change(f["entry/instrument/detector"])
    with pytest.warns(UserWarning) as said:
        ds = open_frames(path, automask=[])
    assert ds.attrs["beam_center"] == (61.5, 44.25) and ds.attrs["distance"] == pytest.approx(0.2)  # of the fields
    return str(said[0].message)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["transformations/translation"].attrs.update(depends_on=b"translation"), "depends on itself"),
        (lambda d: d["module/module_offset"].attrs.update(depends_on=b"/gone"), "'/gone', which is not there"),
        (lambda d: d["module/module_offset"].attrs.update(depends_on=b"/entry"), "'/entry', which is not there"),
        (lambda d: d["module/module_offset"].attrs.update(offset=[np.nan, 0, 0]), "offset is not three finite numbers"),
        (lambda d: d["module/module_offset"].attrs.update(offset="far"), "offset is not three finite numbers"),
        (lambda d: d["module/fast_pixel_direction"].attrs.update(units=b"furlong"), "the unit 'furlong'"),
        (lambda d: d["module/data_size"].write_direct(np.array([100, 121], "u4")), "of frames of shape"),
        (lambda d: d["module/fast_pixel_direction"].write_direct(np.float32([0])), "expected the size of a pixel"),
        (lambda d: d["module/slow_pixel_direction"].write_direct(np.float32([1e-4])), "expected square pixels"),
        (lambda d: (d["transformations"].pop("translation"), axis(d["transformations"], "translation", [0.1, 0.2], "translation", (0, 0, 1), b".", b"m")), "moves from 100 to 200"),
    ],
)  # fmt: skip
def test_a_chain_that_cannot_be_followed_is_said_and_the_fields_are_used(tmp_path, change, sentence):
    assert sentence in changed(tmp_path, change)


def test_a_long_chain_and_many_modules_are_refused(tmp_path):
    def long(detector):
        arm = detector["transformations"]
        for k in range(100):
            axis(arm, f"a{k}", 0.0, "translation", (0, 0, 1), f"a{k + 1}", "mm")
        axis(arm, "a100", 0.0, "translation", (0, 0, 1), ".", "mm")
        arm["translation"].attrs["depends_on"] = "a0"

    assert "more than 64 axes" in changed(tmp_path, long)


def test_a_chain_that_contradicts_the_fields_is_used_and_said(tmp_path):
    path, _ = dectris(tmp_path)
    with h5py.File(path, "a") as f:
        f["entry/instrument/detector/beam_center_x"][()] = 80
    with pytest.warns(UserWarning, match=r"beam_center_x.* is \(80, 44.25\) px; using \(61.5, 44.25\) px of .*module"):
        ds = open_frames(path, automask=[])
    assert ds.attrs["beam_center"] == pytest.approx((61.5, 44.25), abs=1e-4)


REQUIRED = """start_time end_time_estimated definition data/data sample/name sample/depends_on source/name instrument/name
instrument/beam/incident_wavelength instrument/detector/sensor_material instrument/detector/sensor_thickness""".split()
OF_A_MODULE = ("data_origin", "data_size", "fast_pixel_direction", "slow_pixel_direction", "module_offset")


@pytest.mark.parametrize("stack", [False, True])
def test_what_is_written_has_all_that_nxmx_requires(tmp_path, stack):
    """The fields that the definition NXmx calls required, with their units and axes; and pixels stand where they stood."""
    rng, n = np.random.default_rng(stack), 2
    panels = {
        "origin": [[0.01 * p - 0.02, 0.003, 0.1] for p in range(4)],
        "fs": [[1e-4, 0, 0]] * 4,
        "ss": [[0, 1e-4, 0]] * 4,
    }
    where = dict(panels=panels) if stack else dict(distance=0.1, pixel_size=1e-4, beam_center=(11.5, 40.25))
    counts = rng.poisson(3, (n, 4, 20, 30) if stack else (n, 40, 50)).astype(np.int32)
    frames = make_frames(counts, units="photon", wavelength=1.2, mask=rng.random(counts.shape[1:]) > 0.1, **where)
    path = save_frames(frames, tmp_path / "made.nxs")
    with h5py.File(path) as f:
        entry, detector = f["entry"], f["entry/instrument/detector"]
        assert all(name in entry for name in REQUIRED) and entry["definition"].asstr()[()] == "NXmx"
        assert entry["instrument/beam/incident_wavelength"].attrs["units"] == "angstrom"
        modules = [g for g in detector.values() if g.attrs.get("NX_class") == "NXdetector_module"]
        assert len(modules) == (4 if stack else 1)
        for module in modules:
            assert all(name in module for name in OF_A_MODULE)
            for name in OF_A_MODULE[2:]:
                assert {"vector", "offset", "depends_on", "transformation_type", "units"} <= set(module[name].attrs)
        assert entry["data/data"] == f["intensity"]  # stored once
    assert open_frames(path).identical(frames)
    with h5py.File(path, "a") as f:
        del f.attrs["xrddiff_format"]
    seen = open_frames(path, automask=[])
    at = [pixel_positions(geometry_of(ds)).reshape(-1, 3) for ds in (seen, frames)]
    assert np.allclose(*at, atol=1e-9) and np.array_equal(seen["mask"], frames["mask"])
