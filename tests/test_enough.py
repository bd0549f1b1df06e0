"""Streams that are merged while they go: every crystal once, what is asked for is said, and what cannot be is a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import gemmi
import numpy as np
import pytest

import xrddiff as xd
from xrddiff.config.words.inference import ENOUGH
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.peak_files import read_stream
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.physics.merging.forecast import forecast, made_up_beamtime
from xrddiff.physics.merging.merged import merge_reflections
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.streaming.answers import read_answers
from xrddiff.run.streaming.stream import Stream, StreamPlan

CELL, GROUP = "36,44,52,90,90,90", "P 21 21 21"


def put(folder: Path, number: int, rows: slice) -> None:
    """Frames of the simulator as a file that nobody writes to any more."""
    folder.mkdir(exist_ok=True)
    frames = simulate("sim128", range(rows.start, rows.stop), seed=5)
    frames = frames.drop_vars([v for v in frames.variables if {"peak", "crystal"} & set(frames[v].dims)])
    del frames.attrs["unit_cell"]
    save_frames(frames, folder / f"run_{number}.h5")
    os.utime(folder / f"run_{number}.h5", (0, 0))


def plan(folder: Path, **words) -> StreamPlan:
    told = dict(
        cell=CELL, group=GROUP, batch=8, idle=0.5, page=0, enough="cc_half=0.9,completeness=0.9", save="hits,stream"
    )
    return StreamPlan(str(folder), **told | words)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory) -> Path:
    """The answers of a stream that ended before its second file, and was continued."""
    place = tmp_path_factory.mktemp("enough")
    put(place / "part", 1, slice(0, 24))
    Stream(plan(place / "part"), place / "twice")()
    put(place / "part", 2, slice(24, 48))
    Stream(plan(place / "part"), place / "twice")()
    return place / "twice"


def test_each_crystal_is_merged_once(streamed):
    twice = read_answers(streamed, "reflections")
    assert not twice.duplicated(["row", "crystal", "h", "k", "l", "isym"]).any()
    table = read_answers(streamed)
    assert table["name"].is_unique and len(table) == 48 and table["merged"].sum() == table["lattices"].sum() > 15
    crystals = twice.groupby(["row", "crystal"]).ngroups
    mtz = gemmi.read_mtz_file(str(streamed / "merged" / "unmerged.mtz"))
    assert crystals == table["merged"].sum() == len(mtz.batches) and mtz.spacegroup.hm == GROUP


def test_the_page_says_whether_it_is_enough(streamed):
    page = (streamed / "live.html").read_text()
    assert "crystals from 48 frames are merged" in page and "CC1/2 is" in page and "Completeness is" in page


def test_hits_are_kept_once(streamed):
    table = read_answers(streamed)
    assert open_frames(str(streamed / "hits")).sizes["frame"] == table["hit"].sum()
    crystals = read_stream(streamed / "hits.stream")["crystals"]
    assert len(crystals) == table["merged"].sum() and abs(crystals["a"].median() / 36 - 1) < 0.02


def test_the_front_door_has_the_reflections(streamed):
    answers = xd.open_answers(streamed)
    assert len(answers.reflections) == len(read_answers(streamed, "reflections")) > 500


@pytest.mark.parametrize(
    "words, sentence",
    [
        (dict(cell=None), "needs a cell"),
        (dict(group="P 43 21 2"), "does not fit the space group"),
        (dict(group="nonsense"), "is unknown"),
        (dict(enough="cc_half=1.5"), "expected cc_half=0.95"),
        (dict(save="frames"), "expected hits, stream"),
        (dict(group=None, save="stream", enough=ENOUGH), "expected a cell and a space group"),
        (dict(group=None), "expected one too"),
        (dict(method="median"), "expected one of mean, partial"),
    ],
)
def test_mistakes_are_said_before_a_frame_is_taken(tmp_path, words, sentence):
    put(tmp_path / "frames", 1, slice(0, 2))
    with pytest.raises(BadInput, match=sentence):
        Stream(plan(tmp_path / "frames", **words), tmp_path / "out")
    assert not (tmp_path / "out" / "answers.zarr").exists()


def test_a_folder_belongs_to_its_space_group(streamed):
    source = streamed.parent / "part"
    with pytest.raises(BadInput, match="space-group P 21 21 21; expected the same here, not None"):
        Stream(StreamPlan(str(source), cell=CELL), streamed)


def test_a_forecast_is_the_same_again():
    beamtime = made_up_beamtime(1, 60)
    merged = merge_reflections(beamtime.table, "mean", rounds=3)
    one, two = (
        forecast(merged, beamtime.crystals, beamtime.cell, beamtime.group, d_min=beamtime.d_min, draws=10)
        for _ in range(2)
    )
    for name in one:
        assert np.array_equal(one[name].values, two[name].values)
        low, middle, high = one[name].frames_to(
            min(one[name].now * 1.05, 0.999) if name != "i_over_sigma" else one[name].now * 1.2
        )
        assert len(beamtime.crystals) <= low <= middle <= high
