"""Frames cut with xarray's own `isel` have the geometry of the pixels that are left, as frames cut by the transform."""

import numpy as np
import pytest

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.display import summary_rows
from xrddiff.data.frames.frames import beam_center_of, frame_peaks, make_frames, peaks_table
from xrddiff.data.frames.geometry import d_map, geometry_of, panel_vectors, q_map
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.data.frames.selection import concat_frames
from xrddiff.data.transforms.spatial import Crop, Pool
from xrddiff.judge.inference.detectors import on_detector, template_frames
from xrddiff.judge.metrics.reconstruction import score_peaks
from xrddiff.judge.metrics.set_summaries import ReferenceDetector
from xrddiff.physics.indexing.lattice_maps import LatticeMap
from xrddiff.physics.simulation.simulate import simulate


@pytest.fixture(scope="module")
def stills():
    return simulate("sim128", range(3), seed=1)


@pytest.fixture
def panels():
    vectors = dict(
        origin=[[-0.01, -0.008, 0.1], [0.002, -0.008, 0.101]], fs=[[1e-4, 1e-6, 0]] * 2, ss=[[0, 1e-4, 2e-6]] * 2
    )
    return make_frames(np.ones((1, 2, 40, 60), np.float32), wavelength=1.0, panels=vectors)


def test_q_of_a_cut_is_the_cut_of_q(stills):
    cut = stills.isel(y=slice(30, 90), x=slice(20, 100))
    np.testing.assert_allclose(q_map(geometry_of(cut)), q_map(geometry_of(stills))[30:90, 20:100])
    again = cut.isel(y=slice(5, None), x=slice(None, 40))
    np.testing.assert_allclose(q_map(geometry_of(again)), q_map(geometry_of(stills))[35:90, 20:60])
    every = stills.isel(y=slice(0, None, 2), x=slice(0, None, 2))
    np.testing.assert_allclose(q_map(geometry_of(every)), q_map(geometry_of(stills))[::2, ::2])


def test_panels_move_too(panels):
    cut = panels.isel(ss=slice(10, 30), fs=slice(20, None))
    np.testing.assert_allclose(q_map(geometry_of(cut)), q_map(geometry_of(panels))[:, 10:30, 20:])


def test_maps_of_a_cut_are_cuts_of_the_maps(stills):
    crystals = [stills[name].values[1] for name in ("cell", "orientation")]
    whole = LatticeMap(geometry_of(stills, 1), d_min=2.5)(*crystals)
    cut = LatticeMap(geometry_of(stills.isel(y=slice(30, 90), x=slice(20, 100)), 1), d_min=2.5)(*crystals)
    assert whole.max() > 0.5
    np.testing.assert_allclose(cut, whole[30:90, 20:100], atol=1e-5)


def test_peaks_rings_and_texts_of_a_cut_know_the_beam(stills):
    cut, cropped = stills.isel(y=slice(30, 90), x=slice(20, 100)), Crop(60, 80, 30, 20).apply(stills)
    assert find_frame_peaks(cut).equals(find_frame_peaks(cropped))
    assert dict(summary_rows(cut))["beam centre"] == dict(summary_rows(cropped))["beam centre"]


def test_what_is_cut_can_be_cut_and_pooled_by_transforms(stills):
    cut = stills.isel(y=slice(30, 90), x=slice(20, 100))
    for transform in (Crop(20, 40, 4, 8), Pool(2)):
        a, b = transform.apply(cut), transform.apply(Crop(60, 80, 30, 20).apply(stills))
        assert geometry_of(a) == geometry_of(b)
        assert a["intensity"].equals(b["intensity"]) and peaks_table(a).equals(peaks_table(b))


CUTS = {
    "a part": dict(y=slice(30, 90), x=slice(20, 100)),
    "every second": dict(y=slice(1, None, 2), x=slice(0, None, 2)),
    "panels": dict(ss=slice(10, 30), fs=slice(20, None)),
}


@pytest.mark.parametrize("how", CUTS)
def test_a_detector_that_was_cut_is_where_it_is(how, stills, panels):
    """As the detector that samples are drawn on, and that which they are judged with."""
    whole = panels if how == "panels" else stills
    cut = whole.isel(CUTS[how])
    moved = on_detector(template_frames(whole), cut)
    np.testing.assert_allclose(d_map(geometry_of(moved)), d_map(geometry_of(template_frames(cut))))
    detector = ReferenceDetector.of(cut)
    if how != "panels":
        assert detector.attrs["beam_center"] == pytest.approx(beam_center_of(cut))
        assert detector.attrs["pixel_size"] == pytest.approx(geometry_of(cut).pixel_size)
    else:
        np.testing.assert_allclose(detector.places["panel_origin"], panel_vectors(cut)[0])
    read = detector.read(cut, [0], None, "intensity")
    assert np.array_equal(read["intensity"].values[0], cut["intensity"].values[0])


def test_a_beam_center_that_is_told_is_meant_in_the_pixels_that_are_there(stills, tmp_path):
    save_frames(stills.isel(y=slice(30, 90), x=slice(20, 100)), tmp_path / "cut.h5")
    ds = open_frames(tmp_path / "cut.h5")
    told = open_frames(tmp_path / "cut.h5", beam_center=beam_center_of(ds))
    assert beam_center_of(told) == pytest.approx(beam_center_of(ds))
    assert geometry_of(open_frames(tmp_path / "cut.h5", pixel_size=1e-4)).pixel_size == 1e-4
    assert peaks_table(told).equals(peaks_table(Crop(60, 80, 30, 20).apply(stills)))


def test_different_cuts_of_a_detector_are_not_joined(stills, panels):
    """The second half had the beam centre of the first."""
    upper, lower = stills.isel(y=slice(0, 60)), stills.isel(y=slice(60, 120))
    with pytest.raises(
        BadInput, match="part 1 has the pixels 60.5 to 119.5 along y; expected 0.5 to 59.5 as in part 0"
    ):
        concat_frames([upper, lower])
    with pytest.raises(BadInput, match="along ss"):
        concat_frames([panels.isel(ss=slice(0, 20)), panels.isel(ss=slice(20, 40))])
    assert beam_center_of(concat_frames([lower, lower])) == beam_center_of(lower)


def test_known_peaks_of_a_frame_that_was_cut_are_where_its_picture_has_them(stills):
    cut, cropped = stills.isel(y=slice(30, 90), x=slice(20, 100)), Crop(60, 80, 30, 20).apply(stills)
    for i in range(3):
        a, b = frame_peaks(cut, i), frame_peaks(cropped, i)
        assert np.allclose(a[["fs", "ss"]], b[["fs", "ss"]]) and len(a) == len(b)
    assert len(frame_peaks(cut, 1)) > 10
    assert score_peaks(cut, cropped) == score_peaks(cropped, cropped)


def test_pixels_without_a_place_need_no_grid():
    plain = make_frames(np.ones((2, 4, 6), np.float32))
    turned = plain.isel(y=slice(None, None, -1))
    assert concat_frames([plain, turned]).sizes["frame"] == 4
    assert ReferenceDetector.of(turned).dims == plain["intensity"].dims


def test_pixels_that_are_no_grid_are_refused(stills):
    for wrong in (stills.isel(x=[1, 2, 9]), stills.isel(y=slice(None, None, -1)), stills.isel(x=slice(0, None, 2))):
        with pytest.raises(BadInput, match="square pixels"):
            geometry_of(wrong)
