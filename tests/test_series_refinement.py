"""A simulated series whose header is wrong comes back within three standard deviations, from five seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from xrddiff.data.frames.geometry import PanelGeometry
from xrddiff.physics.indexing.cells import Cell
from xrddiff.physics.indexing.rays import miller_sphere, predict_spots
from xrddiff.physics.indexing.series_refinement import SeriesRestraints, Start, refine_series

PX, SIDE, DISTANCE = 172e-6, 500, 0.15
GIVEN, TRUE = Cell((79.1, 79.1, 37.9, 90, 90, 90)), Cell((79.3, 79.3, 38.0, 90, 90, 90))


def header() -> PanelGeometry:
    """2 × 2 panels across the beam."""
    edge = 1.01 * SIDE * PX
    corners = [[x * edge, y * edge, DISTANCE] for y in (-1, 0) for x in (-1, 0)]
    return PanelGeometry(corners, [[PX, 0, 0]] * 4, [[0, PX, 0]] * 4, (4, SIDE, SIDE), 1.0)


def wrong_by(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift (3,) m: 3 px along a direction in the detector and .5 % of the distance. Tilt (2,): .3° about an
    axis in the detector, as turns about x, then y. Panels (4, 2) m: .5 px each.
    """
    rng = np.random.default_rng(seed)
    way, axis = rng.uniform(0, 2 * np.pi, 2)
    shift = np.array([3 * PX * np.cos(way), 3 * PX * np.sin(way), 0.005 * DISTANCE * rng.choice([-1, 1])])
    return shift, np.radians(0.3) * np.array([np.cos(axis), np.sin(axis)]), rng.normal(0, 0.5 * PX, (4, 2))


def series(seed: int, count: int = 8):
    """The true geometry, and starts and peaks of stills: found to .2 px, a tenth of them somewhere else."""
    rng, flat = np.random.default_rng(100 + seed), header()
    shift, (about_x, about_y), panels = wrong_by(seed)
    T = Rotation.from_rotvec([0, about_y, 0]).as_matrix() @ Rotation.from_rotvec([about_x, 0, 0]).as_matrix()
    beam = np.array([0, 0, DISTANCE])
    moved = flat.origin + np.column_stack([panels, np.zeros(4)])
    true = replace(flat, origin=(moved - beam) @ T.T + beam + shift, fs=flat.fs @ T.T, ss=flat.ss @ T.T)
    starts, tables = {}, {}
    for i in range(count):
        U = Rotation.random(random_state=100 * seed + i).as_matrix()
        spots = predict_spots(miller_sphere(TRUE, 1.7), TRUE.A @ U.T, true, 6e-4)
        spots = spots.sample(150, replace=False, random_state=seed).reset_index(drop=True)
        spots[["fs", "ss"]] += rng.normal(0, 0.2, (150, 2))
        spots.loc[:14, ["fs", "ss"]] = rng.uniform(0, SIDE, (15, 2))
        tables[i] = spots[["panel", "fs", "ss"]]
        starts[i] = Start(Rotation.from_rotvec(rng.normal(0, 1e-3, 3)).as_matrix() @ U, GIVEN, np.zeros(3))
    return true, starts, tables


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_header_is_found_within_three_standard_deviations(seed):
    true, starts, tables = series(seed)
    known = SeriesRestraints(distance=0.005, offset=0.05)
    found = refine_series(GIVEN, starts, tables, dict.fromkeys(starts, header()), known)
    shift, tilt, panels = wrong_by(seed)
    shift = shift + [*panels.mean(0), 0]  # what all panels have in common
    assert (abs(found.detector.tilt - tilt) < 3 * found.sigma.tilt).all()
    assert abs(found.detector.shift[2] - shift[2]) < 3 * found.sigma.shift[2] < 3e-3 * DISTANCE
    assert (abs(found.detector.shift - shift)[:2] < 3 * found.sigma.shift[:2]).all()
    edges = np.array(found.cell.parameters)[:3] - TRUE.parameters[:3]
    assert (abs(edges) < 3 * found.cell_sigma[:3]).all()
    # where the panels are in the end, which is shift and panels together
    assert abs(found.geometry.origin - true.origin)[:, :2].max() < 0.2 * PX
    error = np.concatenate([frame.error for frame in found.frames.values()])
    assert np.sqrt((error**2).mean()) < 0.32  # .2 px along fs and along ss
    stray = np.concatenate([frame.indexed[:15] for frame in found.frames.values()])
    kept = np.concatenate([frame.indexed[15:] for frame in found.frames.values()])
    assert kept.mean() > 0.97 and stray.mean() < 0.1


def test_a_longer_series_costs_its_frames_and_knows_more():
    _, starts, tables = series(1, count=4)
    short = refine_series(GIVEN, starts, tables, dict.fromkeys(starts, header()))
    _, starts, tables = series(1, count=16)
    long = refine_series(GIVEN, starts, tables, dict.fromkeys(starts, header()))
    assert long.sigma.shift[2] < 0.7 * short.sigma.shift[2] and (long.sigma.tilt < 0.7 * short.sigma.tilt).all()


def test_what_is_held_does_not_move():
    _, starts, tables = series(2, count=3)
    held = SeriesRestraints(edges=0, distance=0, tilt=0, panels=0, center=3)
    found = refine_series(GIVEN, starts, tables, dict.fromkeys(starts, header()), held)
    assert found.cell == GIVEN and not found.detector.shift[2] and not found.detector.tilt.any()
    assert not found.detector.panels.any() and found.detector.shift[:2].any()
    assert not found.sigma.tilt.any() and not found.sigma.shift[2] and not found.cell_sigma.any()
