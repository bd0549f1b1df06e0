"""How many known spots a program finds: of a twin's frames, of frames with their truth, by commands and files of other programs."""

from __future__ import annotations

import json
import shlex
import sys

import numpy as np
import pandas as pd
import pytest

import xrddiff as xd
from xrddiff.app.verbs.main import main
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.peaks import PEAKFINDER8, find_frame_peaks
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.views.report import read_report
from xrddiff.physics.indexing.series import index_series
from xrddiff.physics.indexing.stream import write_stream
from xrddiff.physics.simulation.simulate import simulate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shots():
    return simulate("sim-522", range(20), seed=11).load()


@pytest.fixture(scope="module")
def twin_recovery(shots, tmp_path_factory):
    """The folder of a recovery on a twin, by our finder, and by a program that is a command."""
    folder = tmp_path_factory.mktemp("recovery")
    save_frames(shots.drop_dims("peak"), folder / "shots.h5")
    (folder / "finder.py").write_text(
        "import sys\n"
        "from xrddiff.data.formats.readers import open_frames\n"
        "from xrddiff.data.frames.peaks import PEAKFINDER8, find_frame_peaks\n"
        "find_frame_peaks(open_frames(sys.argv[1]), **PEAKFINDER8).to_csv(sys.argv[2], index=False)\n"
    )
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(folder / 'finder.py'))} {{frames}} {{peaks}}.csv"
    words = ["-n", "6", "--distance-range", "0", "-o", str(folder / "out")]
    assert main(["recover", str(folder / "shots.h5"), *words, "--program", "ours", "--program", command]) == 0
    return folder


def test_a_twin_says_what_programs_find(twin_recovery, shots):
    folder = twin_recovery / "out"
    record = json.loads((folder / "metrics" / "recovery.json").read_text())["programs"]
    ours, other = record["classical"], record[next(name for name in record if name != "classical")]
    recall = [[row["recall"] for row in one["by snr"]] for one in (ours, other)]
    assert recall[0][3] > 0.9 and recall[1][1] < recall[0][1] - 0.1  # peakfinder8's settings miss what is weak
    assert other["false peaks a frame"][0] < ours["false peaks a frame"][0]
    assert len(ours["words"]) == 4 and "measured" in ours and "measured" not in other
    titles = [section.title for section in read_report(folder).sections]
    assert titles == ["What is found", "By brightness", "By resolution and place", "Is the twin right?"]
    made = open_frames(folder / "frames.cxi")
    assert made.sizes["frame"] == 6 and len(pd.read_csv(folder / "truth.csv")) == made.sizes["peak"]


def test_a_program_answers_later_through_its_file(twin_recovery, monkeypatch, capsys):
    """CrystFEL's stream of the frames of the recovery: its peaks, and its integrated reflections."""
    monkeypatch.chdir(twin_recovery)
    made = open_frames("out/frames.cxi").load()
    found = find_frame_peaks(made, **PEAKFINDER8)
    write_stream("my.stream", made, index_series(made, peaks=found, distance_range=0.0), "out/frames.cxi")
    assert main(["recover", "out", "--program", "my.stream"]) == 0
    record = json.loads((twin_recovery / "out-again" / "metrics" / "recovery.json").read_text())["programs"]
    earlier = json.loads((twin_recovery / "out" / "metrics" / "recovery.json").read_text())["programs"]
    other = next(one for name, one in earlier.items() if name != "classical")
    same = [[row["found"] for row in one["by snr"]] for one in (record["my.stream"], other)]
    assert same[0] == same[1]  # places in a stream have two decimals
    bright = record["my.stream, integrated"]["by snr"][5]
    assert bright["recall"] > 0.6 and 0.8 < bright["ratio"] < 1.2
    assert not (twin_recovery / "out-again" / "frames.cxi").exists()


def test_both_ways_to_the_same_frames_agree_to_the_last_digit(twin_recovery, monkeypatch):
    """A twin's frames are recovered while they are made, from their file, and from the folder: one definition of I/σ."""
    monkeypatch.chdir(twin_recovery)
    assert main(["recover", "out/frames.cxi", "-o", "by-file", "--program", "ours"]) == 0
    assert main(["recover", "out", "-o", "by-folder", "--program", "ours"]) == 0
    first, *others = (
        json.loads((twin_recovery / name / "metrics" / "recovery.json").read_text())["programs"]["classical"]
        for name in ("out", "by-file", "by-folder")
    )
    for other in others:
        assert other["by snr"] == first["by snr"] and other["false peaks a frame"] == first["false peaks a frame"]


def test_peaks_that_are_half_a_pixel_off_are_noticed(twin_recovery, monkeypatch):
    monkeypatch.chdir(twin_recovery)
    found = find_frame_peaks(open_frames("out/frames.cxi"))
    shifted = found.assign(fs=found["fs"] - 0.5, ss=found["ss"] - 0.5)[["frame", "fs", "ss"]]
    for name, table in (("whole.csv", shifted), ("half.csv", found[["frame", "fs", "ss"]])):
        table.to_csv(name, index=False)
    assert main(["recover", "out", "-o", "off", "--program", "whole.csv", "--program", "half.csv"]) == 0
    record = json.loads((twin_recovery / "off" / "metrics" / "recovery.json").read_text())["programs"]
    said = {name: " ".join(one["words"]) for name, one in record.items()}
    assert "centre of the first pixel is (0.5, 0.5)" in said["whole.csv"] and "centre of" not in said["half.csv"]


def test_frames_with_their_truth_need_no_twin(shots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_frames(select_frames(shots, range(4)), "known.h5")
    assert main(["recover", "known.h5", "--program", "peakfinder8"]) == 0
    record = json.loads((tmp_path / "known-recovery" / "metrics" / "recovery.json").read_text())["programs"]
    assert list(record) == ["peakfinder8"] and "measured" not in record["peakfinder8"]


def test_from_python_tables_of_any_program_are_compared(shots):
    twin = xd.twin(shots, distance_range=0.0)
    made = twin.frames(3).load()
    found = find_frame_peaks(made)
    both = xd.recover(twin, {"mine": found, "half of mine": found.iloc[::2]}, 3)
    ours = xd.recover(twin, ["classical"], 3)
    np.testing.assert_allclose(both.loc["mine"], ours.loc["classical"])
    sums = [(both.loc[name, "recall"] * both.loc[name, "spots"]).sum() for name in ("mine", "half of mine")]
    assert abs(sums[1] / sums[0] - 0.5) < 0.1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["known.h5", "--program", "peakfinder9"], "the program is 'peakfinder9'; expected classical"),
        (["known.h5", "--program", "net:none.safetensors"], "none.safetensors"),
        (["known.h5", "--program", "false {frames} {peaks}"], "false ended with code 1"),
        (["known.h5", "--program", "far.csv"], "peaks of frame 9; expected 0 to 1"),
        (["few.h5", "--cell", "79,79,38,90,90,90"], "beside the other: 2; expected at least 8"),
        (["known.h5", "--timeout", "0"], "expected a program, and seconds"),
    ],
)
def test_bad_input_is_one_sentence(words, said, shots, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_frames(few := select_frames(shots, range(2)), "known.h5")
    save_frames(few.drop_dims("peak"), "few.h5")
    pd.DataFrame({"frame": [9], "fs": [1.0], "ss": [1.0]}).to_csv("far.csv", index=False)
    assert main(["recover", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("xrddiff: ") and said in error
