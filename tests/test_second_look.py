"""Headers that can be read in several ways: each way is tried on the image; detectors that are known; angles of the detector."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pytest
from conftest import measured
from test_headers import cbf, edf, mccd, opened, smv
from test_shadows import ABOUT, CENTER, SIZE, light

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.automask import masking_of, with_automask
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.geometry import PanelGeometry, geometry_of, q_map
from xrddiff.data.headers.imgcif import turn_about
from xrddiff.data.headers.second_look import module_mask

SHAPE, PIXEL, DISTANCE = (300, 260), 1e-3, 0.4


def rings(center=(100.0, 170.0), turn=None, shape=SHAPE, seed=0):
    """Counts of a background that depends on 2θ alone, on a detector that may be turned about the sample."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    at = np.stack([PIXEL * (x - center[0]), PIXEL * (y - center[1]), np.full(shape, DISTANCE)], -1)
    x, y, z = np.moveaxis(at if turn is None else at @ turn.T, -1, 0)
    two_theta = np.arctan2(np.hypot(x, y), z)
    return np.random.default_rng(seed).poisson(4 + 60 * np.exp(-two_theta / 0.2)).astype("u2")


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (170.0, 100.0, "in mm as Mosflm does"),
        (100.0, 130.0, "in mm as ADXV does"),
        (100.0, 170.0, "in mm from the first row"),
    ],
)
def test_a_centre_without_a_convention_is_read_as_the_image_says(tmp_path, x, y, said):
    words = {"PIXEL_SIZE": 1.0, "DISTANCE": 400}
    ds, notes = opened(smv(tmp_path / "a.img", rings(), BEAM_CENTER_X=x, BEAM_CENTER_Y=y, **words))
    assert ds.attrs["beam_center"] == pytest.approx((100, 170)) and said in notes[0] and "rings explain" in notes[0]


@pytest.mark.parametrize(("x", "y"), [(170.0, 100.0), (100.0, 130.0), (100.0, 170.0)])
def test_a_centre_in_pixels_is_not_taken_for_mm(tmp_path, x, y):
    """Pixels of 55 µm, as of a Timepix: in mm, the beam would be far outside."""
    words = {"PIXEL_SIZE": 0.055, "DISTANCE": 22}
    ds, notes = opened(smv(tmp_path / "a.img", rings(), BEAM_CENTER_X=x, BEAM_CENTER_Y=y, **words))
    assert ds.attrs["beam_center"] == pytest.approx((100, 170)) and "in px" in notes[0]
    middle = smv(tmp_path / "b.img", rings((130, 130), shape=(260, 260)), BEAM_CENTER_X=130, BEAM_CENTER_Y=130, **words)
    ds, notes = opened(middle)
    assert ds.attrs["beam_center"] == (130, 130) and "130, 130 mm would be far outside: taken as px" in notes[0]


def test_a_stated_centre_is_only_contradicted_by_a_clear_image(tmp_path):
    words = {"Pixel_size": "1e-3 m x 1e-3 m", "Wavelength": "1 A", "Detector_distance": "0.4 m"}
    mm = cbf(tmp_path / "mm.cbf", rings((150.0, 130.0)).astype("i4"), Beam_xy="(0.15, 0.13) pixels", **words)
    assert opened(mm)[0].attrs["beam_center"] == (0.15, 0.13)  # in no unit that is tried
    far = cbf(tmp_path / "far.cbf", rings((20.0, 30.0)).astype("i4"), Beam_xy="(20.00, 30.00) pixels", **words)
    ds, notes = opened(far)
    assert ds.attrs["beam_center"] == (20, 30) and not notes
    up = cbf(tmp_path / "up.cbf", rings((30.0, 20.0)).astype("i4"), Beam_xy="(30.00, 280.00) pixels", **words)
    ds, notes = opened(up)
    assert ds.attrs["beam_center"] == (30, 20) and "from the last row" in notes[0]
    flat = cbf(tmp_path / "flat.cbf", np.ones(SHAPE, "i4"), Beam_xy="(20.00, 30.00) pixels", **words)
    assert opened(flat)[0].attrs["beam_center"] == (20, 30)
    # a unit that is written is used
    fields = {"Pixel_size": "1e-3 m x 1e-3 m"}
    said = cbf(tmp_path / "said.cbf", np.ones(SHAPE, "i4"), Beam_xy="(101.5, 130.5) mm", **(words | fields))
    assert opened(said)[0].attrs["beam_center"] == pytest.approx((101.5, 130.5))


def test_a_centre_in_hdf5_has_its_unit(tmp_path):
    for name, unit, scale in (("px", "pixel", 1.0), ("mm", "mm", 1.0), ("m", "m", 1e-3)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["entry/data/data"] = rings()[None]
            d = f.create_group("entry/instrument/detector")
            for key, value, of in (("beam_center_x", 100 * scale, unit), ("beam_center_y", 170 * scale, unit)):
                d[key] = value
                d[key].attrs["units"] = of
            for key, value in (("detector_distance", 0.4), ("x_pixel_size", 1e-3), ("y_pixel_size", 1e-3)):
                d[key] = value
                d[key].attrs["units"] = "m"
            f["entry/instrument/beam/incident_wavelength"] = 1.0
        assert open_frames(tmp_path / f"{name}.h5").attrs["beam_center"] == pytest.approx((100, 170)), name


# ---------------------------------------------------------------- angles of the detector


@pytest.mark.parametrize(
    ("axis", "sign", "said"),
    [((1, 0, 0), 1, "up"), ((1, 0, 0), -1, "down"), ((0, 1, 0), 1, "to the right"), ((0, 1, 0), -1, "to the left")],
)
@pytest.mark.parametrize("kind", ["cbf", "smv", "mccd", "eiger"])
def test_two_theta_is_applied_as_the_image_says(tmp_path, axis, sign, said, kind):
    turn = turn_about(axis, 20 * sign)
    image = rings((130.0, 150.0), turn)
    path = tmp_path / {"cbf": "a.cbf", "smv": "a.img", "mccd": "a.mccd", "eiger": "a.h5"}[kind]
    if kind == "cbf":
        words = {"Wavelength": "1 A", "Detector_distance": "0.4 m", "Pixel_size": "1e-3 m x 1e-3 m"}
        cbf(path, image.astype("i4"), Beam_xy="(130.00, 150.00) pixels", Detector_2theta="20.0000 deg.", **words)
    elif kind == "smv":
        smv(path, image, PIXEL_SIZE=1.0, DISTANCE=400, DENZO_X_BEAM=150, DENZO_Y_BEAM=130, TWOTHETA=20.0)
    elif kind == "mccd":
        mccd(path, image, wavelength=1.0, pixel=1e-3, distance=0.4, beam=(130, 150))
        raw = bytearray(path.read_bytes())
        raw[1024 + 668 : 1024 + 672] = (20_000).to_bytes(4, "little")
        path.write_bytes(raw)
    else:
        with h5py.File(path, "w") as f:
            f["entry/data/data"] = image[None]
            d = f.create_group("entry/instrument/detector")
            d["beam_center_x"], d["beam_center_y"] = 130.0, 150.0
            d["goniometer/two_theta"] = [20.0]
            for key, value in (("detector_distance", 0.4), ("x_pixel_size", 1e-3), ("y_pixel_size", 1e-3)):
                d[key] = value
                d[key].attrs["units"] = "m"
            f["entry/instrument/beam/incident_wavelength"] = 1.0
    ds, notes = opened(path, automask=[])
    assert any(f"20: applied, {said}" in n and "rings explain" in n for n in notes)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    at = np.stack([PIXEL * (x - 130), PIXEL * (y - 150), np.full(SHAPE, DISTANCE)], -1) @ turn.T
    q = 4 * np.pi * np.sin(np.arctan2(np.hypot(at[..., 0], at[..., 1]), at[..., 2]) / 2)
    assert np.allclose(np.squeeze(q_map(geometry_of(ds))), q, rtol=1e-6)


def test_two_theta_without_a_tell_tale_image_and_with_a_callers_centre(tmp_path):
    words = {"Wavelength": "1 A", "Detector_distance": "0.4 m", "Pixel_size": "1e-3 m x 1e-3 m"}
    path = cbf(tmp_path / "a.cbf", np.ones(SHAPE, "i4"), Beam_xy="(130, 150)", Detector_2theta="20.0000 deg.", **words)
    ds, notes = opened(path, automask=[])
    assert "Detector_2theta 20: applied, up" in notes[0] and "the image does not tell" in notes[0]
    middle = geometry_of(ds).origin[0] + 130 * geometry_of(ds).fs[0] + 150 * geometry_of(ds).ss[0]
    assert middle == pytest.approx(turn_about((1, 0, 0), 20) @ (0, 0, 0.4)) and middle[1] < 0
    moved = geometry_of(opened(path, automask=[], beam_center=(100, 150), distance=0.5)[0])
    assert moved.origin[0] + 100 * moved.fs[0] + 150 * moved.ss[0] == pytest.approx(
        turn_about((1, 0, 0), 20) @ (0, 0, 0.5)
    )
    none = cbf(
        tmp_path / "none.cbf", np.ones(SHAPE, "i4"), Beam_xy="(130, 150)", Detector_2theta="20.0", Wavelength="1 A"
    )
    assert "which is not applied without" in opened(none, complete=False)[1][0]
    zero = cbf(
        tmp_path / "zero.cbf", np.ones(SHAPE, "i4"), Beam_xy="(130, 150)", Detector_2theta="0.0000 deg.", **words
    )
    assert not opened(zero)[1]


def test_angles_of_edf_are_those_of_pyfai(tmp_path):
    """rot1 = Rot_2, rot2 = Rot_1, rot3 = −Rot_3; the image cannot tell the rotation about the beam."""
    integrator = pytest.importorskip("pyFAI.integrator.azimuthal").AzimuthalIntegrator
    turn = {"Rot_1": 0.25, "Rot_2": -0.3, "Rot_3": 0.1}
    ai = integrator(
        dist=0.4, poni1=0.150, poni2=0.130, rot1=-0.3, rot2=0.25, rot3=-0.1, pixel1=1e-3, pixel2=1e-3, wavelength=1e-10
    )
    two_theta = ai.twoThetaArray(SHAPE)
    image = np.random.default_rng(0).poisson(4 + 60 * np.exp(-two_theta / 0.2)).astype("i4")
    words = {
        "WaveLength": 1e-10,
        "SampleDistance": 0.4,
        "PSize_1": 1e-3,
        "PSize_2": 1e-3,
        "Center_1": 130,
        "Center_2": 150,
    }
    ds, notes = opened(edf(tmp_path / "a.edf", image, **words, **turn), automask=[])
    assert "Rot_1 0.25 and Rot_2 -0.3 and Rot_3 0.1: applied, as it says" in notes[0]
    assert np.allclose(np.squeeze(q_map(geometry_of(ds))), ai.qArray(SHAPE) / 10, atol=1e-4)
    reverse = integrator(
        dist=0.4, poni1=0.150, poni2=0.130, rot1=0.3, rot2=0.25, rot3=-0.1, pixel1=1e-3, pixel2=1e-3, wavelength=1e-10
    )
    image = np.random.default_rng(0).poisson(4 + 60 * np.exp(-reverse.twoThetaArray(SHAPE) / 0.2)).astype("i4")
    assert "applied, Rot_2 reversed" in opened(edf(tmp_path / "b.edf", image, **words, **turn), automask=[])[1][0]


def test_an_angle_belongs_to_all_files_and_a_geometry_file_says_it_all(tmp_path):
    words = {"PIXEL_SIZE": 1.0, "DISTANCE": 400, "BEAM_CENTER_X": 170, "BEAM_CENTER_Y": 100}
    a, b = (smv(tmp_path / f"{n}.img", rings(), TWOTHETA=angle, **words) for n, angle in (("a", 0.0), ("b", 20.0)))
    with pytest.raises(BadInput, match="differ in how the detector stands: a.img has no angle, b.img has TWOTHETA 20"):
        open_frames([a, b])
    poni = "poni_version: 2.1\nDetector: Detector\n"
    poni += 'Detector_config: {"pixel1": 0.001, "pixel2": 0.001, "max_shape": [300, 260], "orientation": 3}\n'
    poni += "Distance: 0.4\nPoni1: 0.17\nPoni2: 0.1\nRot1: 0\nRot2: 0\nRot3: 0\nWavelength: 1e-10\n"
    (tmp_path / "g.poni").write_text(poni)
    ds, notes = opened(b, geometry=tmp_path / "g.poni", automask=[])
    assert (
        ds.attrs["beam_center"] == pytest.approx((100, 170)) and not {"choices", "turns"} & set(ds.attrs) and not notes
    )
    assert open_frames([a, b], geometry=tmp_path / "g.poni", automask=[]).sizes["frame"] == 2
    none = smv(tmp_path / "c.img", rings(), TWOTHETA=20.0)
    assert "TWOTHETA 20, which is not applied without a beam centre" in opened(none, complete=False)[1][0]


# ---------------------------------------------------------------- values that change the numbers


def test_pedestals_and_dummies_of_headers_are_applied(tmp_path):
    ds, notes = opened(smv(tmp_path / "a.img", IMAGE_PEDESTAL=40, DENZO_X_BEAM=2.2, DENZO_Y_BEAM=3.1))
    assert ds.attrs["pedestal"] == 40 and "IMAGE_PEDESTAL 40: applied" in notes[0]
    image = np.full((40, 60), 7.0, "f4")
    image[3:5], image[8, 8] = -10, -10.04
    ds = opened(edf(tmp_path / "b.edf", image, Dummy=-10, DDummy=0.1), automask=[])[0]
    assert (~ds["mask"].values).sum() == 2 * 60 + 1
    ds = opened(edf(tmp_path / "c.edf", image, Dummy=-10, DDummy=1.0), automask=[])[0]
    assert (~ds["mask"].values).sum() == 2 * 60 + 1
    _, notes = opened(edf(tmp_path / "d.edf", Offset_1=100, RasterOrientation=1))
    assert "Offset_1 100, which is not applied" in notes[0] and len(notes) == 1


# ---------------------------------------------------------------- detectors that are known


@pytest.mark.parametrize(
    ("name", "said"),
    [("Pilatus6M", "PILATUS3 6M"), ("Eiger4M", "Dectris Eiger 4M"), ("Eiger16M", "EIGER X 16M"), ("Eiger2_16M", "Dectris EIGER2 Si 16M"), ("Jungfrau4M", "JUNGFRAU 4M")],
)  # fmt: skip
def test_gaps_of_known_detectors_are_those_of_pyfai(name, said):
    detectors = pytest.importorskip("pyFAI.detectors")
    detector = detectors.detector_factory(name)
    found = module_mask(said, detector.shape)
    gaps = np.asarray(detector.mask, bool)
    assert np.array_equal(~found, gaps)


def test_gaps_that_hold_zeros_are_masked(tmp_path):
    image = np.ones((407, 487), "i4")
    image[195:212] = 0
    words = {
        "Wavelength": "1 A",
        "Detector_distance": "0.4 m",
        "Beam_xy": "(240, 200) pixels",
        "Detector:": "PILATUS 200K",
    }
    ds = open_frames(cbf(tmp_path / "a.cbf", image, **words), automask=[])
    assert np.array_equal(ds["mask"].values, image > 0)
    assert any("gaps between its modules: 8,279 pixels" in line for line in ds.attrs["mask_sources"])
    other = open_frames(cbf(tmp_path / "b.cbf", image[:400], **words), automask=[])
    assert "mask" not in other or other["mask"].values.all()


def test_a_stack_without_a_geometry_is_said_to_be_of_a_detector(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 16, 512, 128), "u2"))
    with pytest.raises(BadInput, match="those of AGIPD 1M, whose panels move"):
        open_frames(tmp_path / "a.npy")


def test_a_detector_at_one_resolution_is_named(tmp_path):
    words = {"Wavelength": "1 A", "Detector_distance": "0.01 m", "Beam_xy": "(1200, 1300) pixels"}
    _, notes = opened(cbf(tmp_path / "a.cbf", np.ones((2600, 2400), "i4"), **words))
    assert any("of the pixels are at 0.7" in n and "cannot be right" in n for n in notes)


def test_the_barrel_of_i23():
    """Its header describes a flat detector at 10 mm; its 24 banks are at 250 mm all around the sample."""
    ds, notes = opened(measured("pilatus12m_thaumatin.cbf.gz"), automask=[])
    assert ds["intensity"].shape == (1, 24, 195, 2463) and "the 24 banks of the known Pilatus 12M" in notes[0]
    g = geometry_of(ds)
    assert isinstance(g, PanelGeometry)
    middle = g.origin + 97.5 * g.ss + 1231.5 * g.fs
    assert np.hypot(middle[:, 1], middle[:, 2]) == pytest.approx(np.full(24, 0.25), abs=6e-3)
    d = 2 * np.pi / q_map(g)
    assert d.min() < 1.8 and np.median(d) > 2.5 and not any("cannot be right" in n for n in notes)


def test_pixels_behind_kapton_are_kept_and_said():
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    stop, window = np.hypot(x - CENTER[0], y - CENTER[1]) < 26, (x > CENTER[0] + 5) & (abs(y - CENTER[1]) < 90)
    for share in (0.9, 0.75, 0.5):
        mu = light(stop, 60) * np.where(window & ~stop, share, 1.0)
        counts = np.random.default_rng(1).poisson(mu).astype("i4")[None]
        ds = with_automask(make_frames(counts, units="photon", **ABOUT), ["shadow"])
        bad = ~ds["mask"].values.reshape(SIZE)
        assert bad[stop].mean() > 0.95, share
        assert bad[window & (np.hypot(x - CENTER[0], y - CENTER[1]) > 60)].mean() < 0.02, share
        said = re.search(r"(\d+)% dimmer than their ring", masking_of(ds).summary())
        assert abs(int(said[1]) - 100 * (1 - share)) < 8 if share < 0.8 else True, (share, said)
