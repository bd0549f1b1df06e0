"""Each graded corruption is ranked by the metric that is named for it; shuffled spots are seen by indexing alone."""

import numpy as np
import pytest

from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.metrics.corruptions import CORRUPTIONS, NAMED
from xrddiff.judge.metrics.distribution import DISTANCES, set_distances
from xrddiff.judge.metrics.physics import physics_numbers
from xrddiff.judge.metrics.set_summaries import Ruler
from xrddiff.physics.indexing.indexer import make_indexer
from xrddiff.physics.simulation.simulate import simulate

SHOTS = 20


@pytest.fixture(scope="module")
def sets():
    """(reference, other frames of the same experiment)."""
    frames = simulate("sim128", range(2 * SHOTS), seed=7)
    return select_frames(frames, np.arange(SHOTS)), select_frames(frames, np.arange(SHOTS, 2 * SHOTS))


@pytest.fixture(scope="module")
def indexer(sets):
    return make_indexer(sets[0], sets[0].attrs["unit_cell"], controls=40, lattices=1)


@pytest.fixture(scope="module")
def untouched(sets, indexer):
    return physics_numbers(sets[1], indexer)


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grades_are_ranked(name, sets, indexer, untouched):
    corrupt, grades = CORRUPTIONS[name]
    lattice = indexer if NAMED[name] in ("on_lattice", "completeness") else None  # nothing else needs it
    numbers = [untouched] + [physics_numbers(corrupt(sets[1], g), lattice) for g in grades]
    worse = np.array([n[NAMED[name]] for n in numbers])
    if NAMED[name] in ("on_lattice", "completeness"):
        worse = -worse
    if NAMED[name] == "zeros":
        worse = np.abs(1 - worse)
    steps = np.diff(worse)
    assert (steps > -0.01).all(), worse  # a first grade may be too small to be seen
    assert worse[4] - worse[0] > 3 * max(worse[1] - worse[0], 0.01), worse


@pytest.mark.slow
def test_only_indexing_sees_that_the_lattice_is_gone(sets, indexer, untouched):
    corrupt, grades = CORRUPTIONS["shuffled spots"]
    reference, other = sets
    shuffled = corrupt(other, grades[-1])
    ruler = Ruler(reference)
    real, own, gone = (ruler.measure(ds, numbers=np.arange(SHOTS)) for ds in (reference, other, shuffled))
    before, after = set_distances(real, own), set_distances(real, gone)
    for distance in DISTANCES:
        assert after[distance] < 1.3 * before[distance], distance
    numbers = physics_numbers(shuffled, indexer)
    for name in ("fano", "zeros", "width", "elongation"):
        assert numbers[name] == pytest.approx(untouched[name], rel=0.06, abs=0.01), name
    assert untouched["rate"] > 0.9 and numbers["rate"] < 0.1
    assert untouched["on_lattice"] > 0.95 and numbers["on_lattice"] < 0.45
