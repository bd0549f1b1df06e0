"""`xrddiff evaluate FILE`: frames that xrddiff did not make, by physics and beside a reference."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from xrddiff.app.verbs.main import main
from xrddiff.judge.inference.comparison import ComparisonPlan
from xrddiff.judge.metrics.corruptions import shuffle_spots
from xrddiff.learn.telemetry.rules import verdict_words
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.execution.comparing import compare_together
from xrddiff.run.execution.workers import parse_workers


def write_cxi(path: Path, frames, wavelength: bool = True) -> str:
    """A plain CXI file, as a program at a beamline would write it."""
    a = frames.attrs
    x0, y0 = a["beam_center"]
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        entry = file.create_group("entry_1")
        entry["data_1/data"] = frames["intensity"].values
        detector = entry.create_group("instrument_1/detector_1")
        detector["distance"], detector["x_pixel_size"], detector["y_pixel_size"] = (
            a["distance"],
            a["pixel_size"],
            a["pixel_size"],
        )
        detector["corner_position"] = np.array([[-x0 * a["pixel_size"], -y0 * a["pixel_size"], a["distance"]]])
        detector["basis_vectors"] = np.array([[[0, a["pixel_size"], 0], [a["pixel_size"], 0, 0]]])
        detector["mask"] = (~frames["mask"].values).astype(np.uint32)
        if wavelength:
            entry["instrument_1/source_1/energy"] = 12398.4198 / a["wavelength"] * 1.602176634e-19
    return str(path)


EACH = 40  # frames of a set: enough that sets of P 1 share ten reflections measured twice


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cxi")
    frames = simulate("sim128", range(2 * EACH), seed=5)
    real, other = frames.isel(frame=slice(0, EACH)), frames.isel(frame=slice(EACH, 2 * EACH))
    return {
        "real": write_cxi(folder / "real.cxi", real),
        "made": write_cxi(folder / "made.cxi", shuffle_spots(other, 1.0)),
        "blind": write_cxi(folder / "blind.cxi", other, wavelength=False),
        "small": write_cxi(folder / "small.cxi", other.isel(y=slice(0, 120))),
    }


CELL = "36,44,52,90,90,90"


@pytest.mark.slow
def test_two_files_that_xrddiff_did_not_make(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", files["made"], "--reference", files["real"], "--cell", CELL]) == 0
    out = capsys.readouterr().out
    assert "frames that index" in out and "Fewer frames index" in out
    folder = tmp_path / "made-evaluation"
    found = json.loads((folder / "metrics" / "evaluation.json").read_text())
    assert found["physics"]["reference"]["rate"]["value"] > 0.85 and found["physics"]["frames"]["rate"]["value"] < 0.2
    assert found["sizes"] == {"reference": EACH, "frames": EACH} and "profile" in found["distances"]["samples"]
    rows = pd.read_csv(folder / "metrics" / "frames.csv")
    assert len(rows) == 2 * EACH and set(rows["set"]) == {"reference", "frames"}
    assert "Fewer frames index" in (folder / "report.html").read_text()
    assert found["words"][0] == verdict_words(folder) in out.replace("\n", " ")


@pytest.mark.slow
def test_workers_measure_the_same(files):
    plan = ComparisonPlan(files["made"], files["real"], CELL, controls=20)
    alone, shared = compare_together(plan), compare_together(plan, parse_workers("local:2"))
    for name in ("reference", "frames"):
        pd.testing.assert_frame_equal(alone.rows[name], shared.rows[name], check_exact=True)
    assert json.dumps(alone.record()) == json.dumps(shared.record())


@pytest.mark.slow
def test_what_cannot_be_measured_leaves_the_rest(files):
    blind = compare_together(ComparisonPlan(files["blind"], files["real"], CELL, controls=20))
    assert any("wavelength" in reason for reason in blind.why.values())
    assert np.isnan(blind.physics["frames"].loc["rate", "value"]) and blind.physics["frames"].loc["fano", "value"] > 0.9
    assert blind.judgement.rows
    other = compare_together(ComparisonPlan(files["small"], files["real"], CELL, controls=20))
    assert "detectors differ" in other.why["distances"] and other.judgement is None
    assert other.physics["frames"].loc["rate", "value"] > 0.8
    shape = other.profiles["q_shape"]  # cut at the edge, the detector sees the same profile
    assert shape["low"] < 1.3 * shape["floor"] and np.isfinite(other.table()["CC with the reference"]["frames"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gone.cxi"], "gone.cxi"),
        (["{real}", "--reference", "nothing"], "nothing"),
        (["{real}", "--cell", "10,10,10,90,90,180"], "no parallelepiped"),
        (["{real}", "--limit", "0"], "limit is 0"),
        (["{real}", "inference.limit=3"], "belongs to the evaluation of a run"),
        (["{real}", "-o", "{real}/x"], "cannot write"),
    ],
)
def test_mistakes(words, sentence, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *(w.format(**files) for w in words)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
