"""A twin of a detector: learnt from exposures, judged beside others, written with its truth; panels, readouts, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xrddiff.app.cli.main import main
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames, peaks_table
from xrddiff.data.frames.geometry import PanelGeometry, geometry_of
from xrddiff.data.frames.peak_matching import match_tables
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.views.report import read_report
from xrddiff.physics.indexing.known_lattices import known_lattices
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.physics.twins.twin import learn_twin, twin_frames


@pytest.fixture(scope="module")
def shots():
    """Sixteen shots of a simulated detector."""
    return simulate("sim-522", range(16), seed=11).load()


def in_panels(ds):
    """The same frames as four panels, with a gap of ten pixels across."""
    n, p = 256, ds.attrs["pixel_size"]
    corners = [(y, x) for y in (0, n) for x in (0, n)]
    (x0, y0), z = ds.attrs["beam_center"], ds.attrs["distance"]
    stack = np.stack([ds["intensity"].values[:, y : y + n, x : x + n] for y, x in corners], 1)
    mask = np.stack([ds["mask"].values[y : y + n, x : x + n] for y, x in corners])
    panels = {
        "origin": [[p * (x - x0), p * (y - y0), z] for y, x in corners],
        "fs": [[p, 0, 0]] * 4,
        "ss": [[0, p, 0]] * 4,
    }
    words = {k: ds.attrs[k] for k in ("wavelength", "unit_cell", "space_group")}
    return make_frames(stack, mask=mask, panels=panels, **words)


def test_panels_have_a_twin_of_panels(shots):
    twin = learn_twin(in_panels(shots), distance_range=0.0)
    made = twin_frames(twin, 6, seed=3).load()
    assert made["intensity"].dims == ("frame", "panel", "ss", "fs") and made["intensity"].dtype == np.int32
    assert isinstance(geometry_of(made), PanelGeometry)
    found = known_lattices(made).table
    assert found["indexed"].sum() > 0.9 * found["peaks"].sum() > 0
    truth = peaks_table(made)
    assert set(truth["panel"]) == {0, 1, 2, 3}
    bright = truth[truth["intensity"] > 150]
    pairs, _ = match_tables(bright, find_frame_peaks(made))
    assert len(pairs) > 0.9 * len(bright) > 20


def test_a_readout_has_its_noise_and_its_gain(shots):
    rng = np.random.default_rng(0)
    x = 8.0 * shots["intensity"].values + 20 + 12 * rng.standard_normal(shots["intensity"].shape)
    words = {
        k: shots.attrs[k] for k in ("wavelength", "distance", "pixel_size", "beam_center", "unit_cell", "space_group")
    }
    integrating = make_frames(
        x.astype(np.float32), mask=shots["mask"].values, units="ADU", gain=8.0, pedestal=20.0, **words
    )
    twin = learn_twin(integrating, distance_range=0.0)
    assert abs(twin.noise.readout - 12 / 8) < 0.2
    made = twin_frames(twin, 4, seed=1).load()
    assert made["intensity"].attrs["gain"] == 8 and made.attrs["pedestal"] == 20
    dim = made["intensity"].values[:, 250:260, 5:15]
    assert abs(np.median(dim) - np.median(x[:, 250:260, 5:15])) < 12


def test_blanks_alone_and_few_frames_are_refused(shots):
    blanks = simulate("sim-522", range(60), seed=2)
    blanks = select_frames(blanks, np.flatnonzero(blanks["crystals"].values == 0)[:5]).load()
    with pytest.raises(BadInput, match="none of the 5 frames has a lattice of the cell"):
        learn_twin(blanks, distance_range=0.0)
    with pytest.raises(BadInput, match="too few frames to learn a twin from: 2; expected at least 4"):
        learn_twin(shots.isel(frame=slice(0, 2)))
    with pytest.raises(BadInput, match="a twin needs the cell"):
        learn_twin(shots.drop_attrs().assign_attrs({k: v for k, v in shots.attrs.items() if k != "unit_cell"}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["few.h5"], "5 exposures are too few"),
        (["shots.h5", "--cell", "7,8"], "cell"),
        (["shots.h5", "--name", "frames.txt"], "frames.txt"),
        (["none.h5"], "none.h5"),
        (["shots.h5", "small.h5"], "small.h5"),
    ],
)
def test_what_cannot_be_is_said_before_a_folder_is_made(words, said, shots, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_frames(select_frames(shots, range(5)), "few.h5")
    save_frames(select_frames(shots, range(8)), "shots.h5")
    save_frames(simulate("sim128", range(8)), "small.h5")
    assert main(["twin", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*-twin"))


@pytest.mark.slow
def test_the_command_writes_frames_with_their_truth_and_says_what_they_are_good_for(
    shots, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_frames(shots, "shots.h5")
    assert main(["twin", "shots.h5", "-n", "5", "--name", "made.cxi", "--distance-range", "0"]) == 0
    said = capsys.readouterr().out
    assert "A classifier" in said and "Not good for" in said and "|F|² was drawn" in said
    folder = tmp_path / "shots-twin"
    made = open_frames(folder / "made.cxi")
    assert made.sizes["frame"] == 5 and {"peak_h", "peak_k", "peak_l", "peak_intensity"} <= {*made.variables}
    record = json.loads((folder / "metrics" / "twin.json").read_text())
    assert record["best"] in ("twin", "blanks") and record["frames"]["twin"]["frames"] == 8
    assert record["windows"]["twin"]["memory"]["copied"] < 0.02 < record["windows"]["blanks"]["memory"]["copied"]
    titles = [section.title for section in read_report(folder).sections]
    assert titles[0] == "What it is good for" and titles[-1] == "The key"
    assert main(["twin", "shots.h5", "--name", "made.cxi"]) == 2
    assert "exists already" in capsys.readouterr().err
