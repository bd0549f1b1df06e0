"""Frames cut with xarray's own `isel` have the geometry of the pixels that are left, as frames cut by the transform."""

import numpy as np
import pytest

from xrddiff.core.errors import BadInput
from xrddiff.data.frames.display import summary_rows
from xrddiff.data.frames.frames import make_frames, peaks_table
from xrddiff.data.frames.geometry import geometry_of, q_map
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.data.transforms.spatial import Crop, Pool
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


def test_pixels_that_are_no_grid_are_refused(stills):
    for wrong in (stills.isel(x=[1, 2, 9]), stills.isel(y=slice(None, None, -1)), stills.isel(x=slice(0, None, 2))):
        with pytest.raises(BadInput, match="square pixels"):
            geometry_of(wrong)
