"""Frames of one detector at several distances from the sample: what is computed of a frame is what its own distance gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.geometry import Geometry, closest_geometry
from xrddiff.data.frames.labels import peak_resolution
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.data.frames.selection import concat_frames, select_frames
from xrddiff.judge.inference.generators import open_generator
from xrddiff.judge.metrics.q_profiles import common_q, q_profiles
from xrddiff.learn.loading.condition_maps import ConditionMaps
from xrddiff.learn.models.generative import DrawSettings
from xrddiff.physics.indexing.indexer import index_frames
from xrddiff.physics.simulation.experiments import EXPERIMENTS
from xrddiff.physics.simulation.simulate import simulate

DISTANCES = (0.045, 0.06)


@pytest.fixture(scope="module")
def parts():
    e = EXPERIMENTS["sim128"]
    return [simulate(replace(e, detector=replace(e.detector, distance=d)), range(6), seed=3) for d in DISTANCES]


@pytest.fixture(scope="module")
def frames(parts):
    return concat_frames(parts, moved=True)


def test_each_frame_has_its_distance(parts, frames, tmp_path):
    assert frames["distance"].values.tolist() == [DISTANCES[0]] * 6 + [DISTANCES[1]] * 6
    assert Geometry.from_frames(frames, 0) == Geometry.from_frames(parts[0], 0)
    assert Geometry.from_frames(frames).distance == frames.attrs["distance"] == pytest.approx(np.mean(DISTANCES))
    assert closest_geometry(frames).distance == DISTANCES[0]
    again = open_frames(save_frames(frames, tmp_path / "moved.h5"))
    np.testing.assert_array_equal(again["distance"], frames["distance"])
    assert "45 to 60" in repr(again.frames) and select_frames(again, [7])["distance"] == DISTANCES[1]


def test_what_is_computed_is_that_of_the_parts(parts, frames):
    names = ["lattice", "q", "solid_angle"]
    maps, rows = ConditionMaps(frames, names)(range(12)), [ConditionMaps(p, names)(range(6)) for p in parts]
    for name in names:
        np.testing.assert_array_equal(maps[name], np.concatenate([r[name] for r in rows]))
    edges = common_q(parts)
    np.testing.assert_allclose(edges, common_q([frames, parts[0]]), rtol=1e-3)  # the mean wavelength differs a little
    own = np.concatenate([q_profiles(p, edges).profile for p in parts])
    np.testing.assert_allclose(q_profiles(frames, edges).profile, own, rtol=1e-12)
    peaks = find_frame_peaks(frames)
    d = np.concatenate([peak_resolution(p, find_frame_peaks(p)) for p in parts])
    np.testing.assert_allclose(peak_resolution(frames, peaks), d, rtol=1e-6)
    found = index_frames(frames, frames.attrs["unit_cell"], lattices=1, controls=20).table
    sure = found["lattices"] > 0
    assert sure.sum() >= 8
    np.testing.assert_allclose(found["distance_mm"][sure], 1e3 * frames["distance"].values[sure], rtol=0.02)


def test_what_cannot_be_joined(parts):
    with pytest.raises(BadInput, match="has distance 0.06; expected 0.045"):
        concat_frames(parts)
    bare = parts[0].copy()
    del bare.attrs["distance"]
    with pytest.raises(BadInput, match="a part has no distance"):
        concat_frames([bare, parts[1]], moved=True)


@pytest.mark.slow
def test_samples_stand_where_training_frames_stood(runs):
    generator = replace(open_generator(runs("latent_diff")), places={"distance": DISTANCES})
    made, _ = generator.sample(range(6), settings := DrawSettings(seed=2))
    assert set(made["distance"].values) == set(DISTANCES)
    maps = generator.scenes.condition_maps([4], settings)
    alone = generator.scenes.label(generator.readout.frames(made["intensity"].values[4:5], [4]), settings)
    assert float(alone["distance"][0]) == float(made["distance"][4])
    fixed = replace(generator, places={}).scenes.condition_maps([4], settings)
    assert not np.allclose(maps["q"], fixed["q"]) and not np.allclose(maps["lattice"], fixed["lattice"])
