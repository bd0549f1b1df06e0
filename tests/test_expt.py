"""Experiment lists of DIALS as geometry: hierarchies, beams, stacks and images, against 4 × 4 matrices and a measured file."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from conftest import measured, need
from scipy.spatial.transform import Rotation
from test_imgcif import corner, tables_of

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.geometry import geometry_of, pixel_positions, q_map

H, W = 20, 30
TO_LAB = np.array([1, -1, -1])


def panel(fast=(1, 0, 0), slow=(0, -1, 0), origin=(0, 0, 0), size=(W, H), **more):
    """A panel as dxtbx writes it."""
    return {
        "name": "Panel", "type": "SENSOR_PAD", "fast_axis": list(fast), "slow_axis": list(slow), "origin": list(origin),
        "raw_image_offset": [0, 0], "image_size": list(size), "pixel_size": [0.1, 0.1], "trusted_range": [-5, 60000],
        "thickness": 0.3, "material": "Si", "mu": 3.2, "identifier": "", "mask": [], "gain": 1.0, "pedestal": 0.0,
        "px_mm_strategy": {"type": "SimplePxMmStrategy"},
    } | more  # fmt: skip


def expt(path, panels, hierarchy=None, beams=None, **more):
    """An experiment list as `dials.import` writes it."""
    beam = {"__id__": "monochromatic", "direction": [0.0, 0.0, 1.0], "wavelength": 1.2, "divergence": 0.0}
    beams = [beam | b for b in beams or [{}]]
    about = {
        "__id__": "ExperimentList",
        "experiment": [
            {"__id__": "Experiment", "identifier": "a", "beam": k, "detector": 0, "imageset": 0} for k in range(len(beams))
        ],
        "imageset": [{"__id__": "ImageSet", "images": ["none.cbf"], "mask": "", "gain": "", "pedestal": "", "dx": "", "dy": ""}],
        "beam": beams, "detector": [{"panels": panels}], "goniometer": [], "scan": [], "crystal": [], "profile": [], "scaling_model": [],
    }  # fmt: skip
    if hierarchy is not None:
        about["detector"][0]["hierarchy"] = hierarchy
    path.write_text(json.dumps(about | more))
    return path


def stored(path, shape):
    np.save(path, np.random.default_rng(0).poisson(4, shape).astype("i4"))
    return path


def nested(rng):
    """Two levels of groups with two panels each; (panels, hierarchy, the 4 × 4 matrix of each panel)."""

    def group(at):
        m = np.eye(4)
        m[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.05, 3)).as_matrix()
        m[:3, 3] = at
        about = {
            "name": "g",
            "type": "",
            "fast_axis": m[:3, 0].tolist(),
            "slow_axis": m[:3, 1].tolist(),
            "origin": m[:3, 3].tolist(),
        }
        return about, m

    root, top = group([0.3, -0.2, -90])
    panels, matrices, root["children"] = [], [], []
    for k in range(2):
        node, mid = group([12 * k - 6, 3, 0.5 * k])
        node["children"] = []
        for j in range(2):
            _, own = group([-1.5, 4 * j - 3, 0.1 * j])
            panels.append(panel(own[:3, 0], own[:3, 1], own[:3, 3]))
            matrices.append(top @ mid @ own)
            node["children"].append({"panel": len(panels) - 1})
        root["children"].append(node)
    return panels, root, matrices


def test_a_hierarchy_is_where_matrices_say_and_the_beam_may_be_tilted(tmp_path):
    panels, root, matrices = nested(np.random.default_rng(1))
    file = expt(tmp_path / "a.expt", panels, root)
    ds = open_frames(stored(tmp_path / "a.npy", (2, 4, H, W)), geometry=file, automask=[])
    y, x = np.mgrid[:H, :W] + 0.5
    own = np.stack([0.1 * x, 0.1 * y, 0 * x, 0 * x + 1], -1)
    found = pixel_positions(geometry_of(ds)) * 1e3
    for k, m in enumerate(matrices):
        assert np.abs(found[k] - (own @ m.T)[..., :3] * TO_LAB).max() < 1e-9  # mm; a pixel is .1
    assert ds.attrs["wavelength"] == 1.2 and ds["intensity"].shape == (2, 4, H, W)
    # everything turned, the beam with it: the same scattering angles
    turn = Rotation.from_rotvec([0.3, -0.2, 0.5])
    for word in ("fast_axis", "slow_axis", "origin"):
        root[word] = turn.apply(root[word]).tolist()
    other = expt(tmp_path / "b.expt", panels, root, [{"direction": turn.apply([0, 0, 1]).tolist()}])
    again = open_frames(tmp_path / "a.npy", geometry=other, automask=[])
    assert np.allclose(q_map(geometry_of(again)), q_map(geometry_of(ds)), rtol=1e-9)


def test_panels_of_an_image_and_panels_below_each_other(tmp_path):
    flat = [panel(origin=(-3 + 3.2 * k, 1, -80), raw_image_offset=[32 * k, 0], name="m") for k in range(2)]
    flat[1]["mask"] = [[0, 0, 5, 2]]
    path = stored(tmp_path / "a.npy", (3, H, 62))
    ds = open_frames(path, geometry=expt(tmp_path / "a.expt", flat), automask=[])
    assert ds["intensity"].shape == (3, H, 62) and ds.attrs["beam_center"] == pytest.approx((30, 10))
    assert ds.attrs["distance"] == pytest.approx(0.08) and ds.attrs["pixel_size"] == pytest.approx(1e-4)
    good = np.asarray(ds["mask"])
    good = good[0] if good.ndim == 3 else good
    assert not good[:, 30:32].any() and not good[:2, 32:37].any() and good.sum() == 2 * H * W - 10
    below = [p | {"raw_image_offset": [0, 0], "mask": [], "origin": [5 * k, 1, -80 - k]} for k, p in enumerate(flat)]
    path = stored(tmp_path / "b.npy", (3, 2 * H, W))
    ds = open_frames(path, geometry=expt(tmp_path / "b.expt", below), automask=[])
    assert np.array_equal(ds["intensity"].values, np.load(path).reshape(3, 2, H, W))
    (tmp_path / "c.expt.gz").write_bytes(gzip.compress((tmp_path / "b.expt").read_bytes()))
    assert open_frames(path, geometry=tmp_path / "c.expt.gz", automask=[])["panel_origin"].equals(ds["panel_origin"])


def test_trusted_ranges_mask_and_gains_are_taken(tmp_path):
    one = panel(origin=(-1.5, 1, -80), trusted_range=[1, 7], gain=2.5)
    path = stored(tmp_path / "a.npy", (2, H, W))
    ds = open_frames(path, geometry=expt(tmp_path / "a.expt", [one]), automask=[])
    values = np.load(path)
    assert (
        np.array_equal(np.asarray(ds["mask"]), (values >= 1) & (values <= 7)) and ds["intensity"].attrs["gain"] == 2.5
    )


def test_beams_of_many_stills(tmp_path):
    one, path = panel(origin=(-1.5, 1, -80)), stored(tmp_path / "a.npy", (2, H, W))
    near = expt(tmp_path / "a.expt", [one], beams=[{"wavelength": 1.2 + 1e-5 * k} for k in range(3)])
    assert open_frames(path, geometry=near, automask=[]).attrs["wavelength"] == pytest.approx(1.20001)
    far = expt(tmp_path / "b.expt", [one], beams=[{"wavelength": 1.2 + 0.01 * k} for k in range(3)])
    with pytest.warns(UserWarning, match="3 beams have wavelengths from 1.2 to 1.22 Å"):
        assert open_frames(path, geometry=far, wavelength=1.21, automask=[]).attrs["wavelength"] == 1.21


def test_the_cspad_of_lcls_as_experiments_is_where_the_header_says(tmp_path):
    """Panels walked from the text of an imgCIF header, written as an experiment list, against the file itself."""
    path = measured("thermolysin_cspad_401.cbf")
    need("pycbf")
    whole, found = open_frames(path, automask=[]), tables_of(path)
    lists, panels, pitch = found["array_structure_list"], [], 0.10992
    sets = [a for a, s in zip(lists["axis_set_id"], lists["array_section_id"], strict=True) if s != "."]
    for fast, slow in zip(sets[::2], sets[1::2], strict=True):
        at = [corner(found, fast, slow, *ij) for ij in ((0, 0), (1, 0), (0, 1))]
        axes = [(a - at[0]) / np.linalg.norm(a - at[0]) for a in at[1:]]
        panels.append(panel(*axes, at[0], size=(194, 185), pixel_size=[pitch, pitch]))
    file = expt(tmp_path / "cspad.expt", panels, beams=[{"wavelength": whole.attrs["wavelength"]}])
    ds = open_frames(path, geometry=file, automask=[])
    a, b = (pixel_positions(geometry_of(d)) for d in (whole, ds))
    assert np.abs(a - b * [-1, -1, 1]).max() < 0.001 * 1e-3 * pitch  # .001 px; half a turn about the beam between them
    assert np.array_equal(ds["intensity"].values, whole["intensity"].values)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"experiment": 3}, "is not an experiment list"),
        ({"__id__": "other"}, "is not an experiment list"),
        ({"detector": []}, "has no detector 0"),
        ({"detector": [{"panels": []}]}, "no list of 1 to"),
        ({"detector": [{"panels": [panel()] * 5000}]}, "no list of 1 to"),
        ({"beam": []}, "has no beam"),
        ({"beam": [{"wavelength": "x"}]}, "wavelength"),
        ({"beam": [{"wavelength": 1.2, "direction": [0, 0, 0]}]}, "the beam has no direction"),
        ({"detector": [{"panels": [panel(fast=(1, 0, float("inf")))]}]}, "three finite|3 finite|cannot be read|not JSON"),
        ({"detector": [{"panels": [panel(slow=(1, 0, 0))]}]}, "at right angles"),
        ({"detector": [{"panels": [panel(size=(0, 5))]}]}, "expected a part of an image"),
        ({"detector": [{"panels": [panel(size=(10**9, 5))]}]}, "expected a part of an image"),
        ({"detector": [{"panels": [panel(pixel_size=[0.1, 0.2])]}]}, "expected square pixels"),
        ({"detector": [{"panels": [panel(size=(W + 1, H), origin=(0, 0, -80))]}]}, "and frames have shape"),
        ({"detector": [{"panels": [panel()], "hierarchy": {"children": []}}]}, "fast_axis"),
        ({"detector": [{"panels": [panel()], "hierarchy": panel() | {"children": [{"panel": 3}]}}]}, "a hierarchy of others"),
        ({"experiment": [{"detector": 0}, {"detector": 1}], "detector": [{"panels": [panel()]}, {"panels": [panel(), panel()]}]}, "experiments on 2 detectors"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_one_sentence(tmp_path, change, sentence):
    file = expt(tmp_path / "a.expt", [panel(origin=(0, 0, -80))], **change)
    with pytest.raises(BadInput, match=sentence) as caught:
        open_frames(stored(tmp_path / "a.npy", (2, H, W)), geometry=file, automask=[])
    assert "\n" not in str(caught.value) and "a.expt" in str(caught.value)
