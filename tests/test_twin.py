"""A twin of a detector: learnt from exposures, judged beside others, written with its truth; panels, readouts, bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

import xrddiff as xd
from xrddiff.app.verbs.main import main
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
from xrddiff.physics.simulation.experiments import EXPERIMENTS, Artefacts
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.physics.twins.twin import learn_twin, twin_frames


@pytest.fixture(scope="module")
def shots():
    """Sixteen shots of a simulated detector."""
    return simulate("sim-522", range(16), seed=11).load()


@pytest.fixture(scope="module")
def disturbed(shots):
    """The same shots with a stop that moves by four pixels, a beam that fills pixels beside it, spots cut at 100 photons, and
    two shots of another crystal.
    """
    out = shots.copy(deep=True)
    x = out["intensity"].values
    base = EXPERIMENTS["sim-522"]
    foreign = replace(base, name="foreign", sample=replace(base.sample, crystal=EXPERIMENTS["sim-422"].sample.crystal))
    others = simulate(foreign, range(40, 56), seed=8).load()
    rich = np.argsort(np.bincount(others["peak_frame"].values, minlength=16))[-len(LOOSE) :]
    x[list(LOOSE)] = others["intensity"].values[rich]
    (x0, y0), r = out.attrs["beam_center"], np.indices((512, 512)) + 0.5
    for f in range(16):
        x[f][np.hypot(r[1] - x0 + 2 * (-1) ** (f // 2), r[0] - y0) < 20] = 0
    x[:, int(y0) + 40 : int(y0) + 44, int(x0) + 40 : int(x0) + 44] = 100
    np.minimum(x, 100, out=x)
    del out.attrs["saturation"]
    return out


LOOSE = (3, 5)  # shots of another crystal


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
    assert abs(twin.noise.readout - 12 / 8) < 0.2 and twin.seen == ()  # its noise is no stop that moves
    made = twin_frames(twin, 4, seed=1).load()
    assert made["intensity"].attrs["gain"] == 8 and made.attrs["pedestal"] == 20
    dim = made["intensity"].values[:, 250:260, 5:15]
    assert abs(np.median(dim) - np.median(x[:, 250:260, 5:15])) < 12


def test_what_cannot_be_learnt_from_is_seen_and_said(shots, disturbed):
    twin = learn_twin(disturbed, distance_range=0.0)
    said = " ".join(twin.seen)
    assert "16 pixels are full (at 100) in half of the exposures or more" in said
    assert "pixels are dark in some exposures and not in others" in said and len(twin.seen) == 2
    made = twin_frames(twin, 16, seed=1).load()
    x0, y0 = (int(v) for v in shots.attrs["beam_center"])
    mask = made["mask"].values
    assert not mask[y0 + 40 : y0 + 44, x0 + 40 : x0 + 44].any() and not mask[y0, x0 - 21 : x0 - 18].any()
    assert mask.sum() > 0.99 * shots["mask"].values.sum() and made["intensity"].values.max() <= 100
    plain = learn_twin(shots, distance_range=0.0)
    height = [t.brightness.mean(0, np.full(9, 4.0), np.linspace(0, 2, 9)).sum() for t in (twin, plain)]
    assert 0.75 < height[0] / height[1] < 1.33  # counts of full pixels are a bound

    kinds = twin.kinds
    assert [kinds[f] for f in LOOSE] == ["hit that no lattice explains"] * 2 and plain.seen == ()
    truth, like = peaks_table(made), made["likeness"].values
    found, real = (find_frame_peaks(d) for d in (made, disturbed))
    for i in np.flatnonzero(np.isin(like, LOOSE)):
        assert made["crystals"].values[i] == made["hit_class"].values[i] == -1
        own = truth[truth["frame"] == i]
        assert (
            (own[["h", "k", "l"]] == 0).all(axis=None)
            and (own["crystal"] == -1).all()
            and own["d"].between(1, 50).all()
        )
        ours, theirs = found[found["frame"] == i], real[real["frame"] == like[i]]
        assert abs(np.log(len(ours) / len(theirs))) < 0.25 and len(theirs) > 15
        assert abs(np.log(ours["intensity"].median() / theirs["intensity"].median())) < 0.3
    others = truth[~np.isin(like[truth["frame"]], LOOSE)]
    assert (others["crystal"] >= 0).all() and others[["h", "k", "l"]].any(axis=1).all()


def test_a_shadow_a_streak_and_rings_of_ice_are_reproduced():
    base = EXPERIMENTS["sim-522"]
    icy = replace(base.background, ice=4.0, ice_probability=0.25)
    hidden = replace(base, name="hidden", artefacts=Artefacts(key=3), background=icy)
    shots = simulate(hidden, range(12), seed=9, expected=True).load()
    twin = learn_twin(shots, base.sample.crystal.cell, group=base.sample.crystal.space_group, distance_range=0.0)
    assert len(twin.seen) == 1 and "exposures differ in rings, such as those of ice" in twin.seen[0]
    for f in range(12):
        free, true = twin.exposures.free(f), shots["expected"].values[f]
        ratio = ndimage.uniform_filter(np.where(free, twin.backgrounds.of(f), 0), 15)
        ratio = ratio / np.maximum(ndimage.uniform_filter(np.where(free, true, 0), 15), 1e-9)
        assert np.quantile(np.abs(ratio[free] - 1), 0.95) < 0.12


@pytest.fixture(scope="module")
def blanks():
    """Eight shots without a crystal."""
    many = simulate("sim-522", range(320), seed=2)
    return select_frames(many, np.flatnonzero(many["crystals"].values == 0)[:8]).load()


def test_frames_that_make_no_twin_are_refused_in_a_sentence(shots, blanks):
    places = shots.assign(distance=("frame", np.where(np.arange(16) < 8, 0.12, 0.156)))
    unknown = shots.assign_attrs({k: v for k, v in shots.attrs.items() if k != "unit_cell"})
    del unknown.attrs["unit_cell"]
    for frames, words, said in (
        (blanks, {}, "none of the 8 frames has more than . peaks?, and none has a lattice: blanks; expected hits"),
        (shots, {"cell": (31, 44, 52, 90, 90, 90)}, "none of the 16 frames has a lattice of the cell P 31.00 44.00"),
        (select_frames(shots, [0]), {}, "too few frames to learn a twin from: 1; expected at least 4"),
        (select_frames(shots, [0, 1]), {}, "a detector cannot be told from what one crystal scatters"),
        (places, {}, "detectors at 120.0 to 156.0 mm; expected one detector position"),
        (unknown, {}, "a twin needs the cell"),
    ):
        with pytest.raises(BadInput, match=said):
            xd.twin(frames, distance_range=0.0, **words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["few.h5"], "beside the other: 5; expected at least 8"),
        (["one.h5"], "beside the other: 1; expected at least 8"),
        (["shots.h5", "--cell", "7,8"], "cell"),
        (["shots.h5", "--format", "txt"], "frames.txt"),
        (["none.h5"], "none.h5"),
        (["shots.h5", "small.h5"], "small.h5"),
        (["two"], "the files differ in distance"),
        (["shots.h5", "pixel.h5"], "the files differ in pixel_size"),
        pytest.param(["blanks.h5"], "blanks; expected hits among them", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(words, said, shots, blanks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, n in (("few", 5), ("shots", 8), ("one", 1)):
        save_frames(select_frames(shots, range(n)), f"{name}.h5")
    save_frames(simulate("sim128", range(8)), "small.h5")
    save_frames(blanks, "blanks.h5")
    part = select_frames(shots, range(2))
    save_frames(part.assign_attrs(pixel_size=1.3 * part.attrs["pixel_size"]), "pixel.h5")
    (tmp_path / "two").mkdir()
    for name, far in (("a", 1.0), ("b", 1.3)):
        save_frames(part.assign_attrs(distance=far * part.attrs["distance"]), f"two/{name}.h5")
    assert main(["twin", *words, "--distance-range", "0"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*-twin/frames.h5"))
    assert words == ["blanks.h5"] or not list(tmp_path.glob("*-twin"))  # there is a notebook that says where it ended


@pytest.mark.slow
def test_the_command_writes_frames_with_their_truth_and_says_what_they_are_good_for(
    disturbed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_frames(disturbed, "shots.h5")
    assert main(["twin", "shots.h5", "-n", "5", "--format", "cxi", "--distance-range", "0"]) == 0
    said = capsys.readouterr().out
    assert "exposures of about" in said and "Not good for" in said and "|F|² was drawn" in said
    assert "Seen in the exposures: 16 pixels are full (at 100)" in said and "where a beamstop moves" in said
    folder = tmp_path / "shots-twin"
    made = open_frames(folder / "frames.cxi")
    assert made.sizes["frame"] == 5 and {"peak_h", "peak_k", "peak_l", "peak_intensity"} <= {*made.variables}
    record = json.loads((folder / "metrics" / "twin.json").read_text())
    assert record["best"] in ("twin", "blanks") and record["frames"]["twin"]["frames"] == 8
    assert record["windows"]["twin"]["copies"]["copied"] < 0.06 < record["windows"]["blanks"]["copies"]["copied"]
    titles = [section.title for section in read_report(folder).sections]
    assert titles[0] == "What it is good for" and titles[-1] == "The key"
    assert main(["twin", "shots.h5", "--format", "cxi", "-o", "shots-twin"]) == 2
    assert "exists already" in capsys.readouterr().err
