"""What people wait for is not waited for twice: no command imports what it does not need, and a few samples are not judged."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import xrddiff as xd
from xrddiff.app.verbs.main import main
from xrddiff.core.gate import read_json
from xrddiff.core.launcher import python_words, run
from xrddiff.data.formats.store import save_frames
from xrddiff.run.execution.sharing import JUDGED
from xrddiff.run.studies.listing import PICTURES, ROW, list_runs

HEAVY = (
    "torch",
    "sklearn",
    "scipy",
    "papermill",
    "accelerate",
    "zarr",
    "matplotlib",
    "xarray",
    "pandas",
)
LISTED = f"""
import sys
here = [name for name in {HEAVY} if name in sys.modules]
import scipy  # its parts are imported one by one
here += [name for name in ("scipy.ndimage", "scipy.stats", "scipy.special") if name in sys.modules and "scipy" in here]
if "dask" in sys.modules:  # xarray asks for it where it is installed, as it is here, and it imports parts of scipy
    here = [name for name in here if not name.startswith("scipy.")]
print("imported", *here)
"""
COMMAND = "import sys; from xrddiff.app.verbs.main import main; assert not main(sys.argv[1:])\n"


def imported(code: str, *words: str) -> set[str]:
    """Which of the heavy packages a process has imported when it has executed `code`."""
    done = run(python_words(*words, code=code + LISTED), timeout=600, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_a_small_file_is_inspected_without_networks_and_statistics(tmp_path):
    counts = np.random.default_rng(0).poisson(5, (1, 128, 128)).astype(np.int32)
    frames = xd.make_frames(counts, wavelength=1.3, distance=0.1, pixel_size=1e-4, beam_center=(64, 64))
    file = save_frames(frames, tmp_path / "one.h5")
    plain = imported(COMMAND, "data", "inspect", str(file), "--no-png")
    assert plain - {"scipy"} == {"xarray", "pandas"}, plain
    drawn = imported(COMMAND, "data", "inspect", str(file), "--png", str(tmp_path / "one.png"))
    assert drawn - {"scipy"} == {"xarray", "pandas", "matplotlib"} and (tmp_path / "one.png").stat().st_size > 5000


def test_the_probe_of_files_imports_what_reads_files():
    assert imported("from xrddiff.data.headers.open_in_subprocess import serve\n") == set()


def test_a_list_of_runs_imports_nothing_heavy(tmp_path):
    (tmp_path / "output").mkdir()
    assert imported(COMMAND, "runs", "list", str(tmp_path / "output")) == set()


@pytest.fixture
def trained(runs, tmp_path):
    return shutil.copytree(runs("ddpm"), tmp_path / "run")


def test_a_run_is_opened_without_numbers(trained):
    opened = "import sys; import xrddiff as xd; run = xd.open_run(sys.argv[1]); assert run.config.model.model_name\n"
    assert imported(opened, str(trained)) == set()
    frames = opened + "found = run.frames('samples'); assert found.frames and 'xarray' in sys.modules\n"
    assert "torch" not in imported(frames, str(trained))


def test_a_run_is_shown_without_networks(trained):
    shown = "import sys; import xrddiff as xd; page = xd.open_run(sys.argv[1])._repr_html_(); assert 'base64' in page\n"
    assert not imported(shown, str(trained)) & {"torch", "sklearn", "papermill", "accelerate"}


def test_few_samples_are_judged_on_request(trained, capsys):
    words = ["inference.steps=2", "inference.limit=8", "inference.index_frames=0", "threads=1"]
    assert main(["sample", str(trained), "-n", "3", "--name", "few", *words]) == 0
    few = trained / "samples" / "few"
    said = capsys.readouterr().out
    assert f"not judged: sets of fewer than {JUDGED} samples are judged on request" in said
    assert "--judge" in said and "--name few" in said and "verdict" not in said
    assert not (few / "generation.json").exists() and read_json(few / "metrics/summary.json") == {}
    page = (few / "report.md").read_text()
    assert "Not compared with reference frames" in page and "on request" in page

    assert main(["sample", str(trained), "-n", "3", "--name", "judged", "--judge", *words]) == 0
    judged = trained / "samples" / "judged"
    assert "not judged" not in capsys.readouterr().out
    assert (judged / "generation.json").is_file()
    assert "Samples beside reference frames" in (judged / "report.md").read_text()
    same = [xd.open_frames(folder / "samples.zarr", complete=False)["intensity"].values for folder in (few, judged)]
    assert (same[0] == same[1]).all()


def test_the_display_of_a_run_is_drawn_once_and_follows_its_files(trained, monkeypatch):
    monkeypatch.setattr("xrddiff.run.studies.listing.RECENT", 0.0)
    (trained / PICTURES).unlink(missing_ok=True)
    first = xd.open_run(trained)._repr_html_()
    assert first.count("data:image/png") >= 2 and (trained / PICTURES).is_file()
    assert xd.open_run(trained)._repr_html_() == first
    shown = "import sys, xrddiff as xd; xd.open_run(sys.argv[1])._repr_html_()\n"
    assert not imported(shown, str(trained)) & {"matplotlib", "zarr", "xarray", "torch"}
    store = next((trained / "samples").rglob("samples.zarr")) / "zarr.json"
    store.write_text(store.read_text().replace("}", "}\n", 1))
    made = []
    monkeypatch.setattr("xrddiff.app.front_door.run_numbers.run_pictures", lambda run: made.append(run) or [])
    assert "data:image/png" not in xd.open_run(trained)._repr_html_() and len(made) == 1


def test_the_row_of_a_run_follows_what_is_done_with_it(trained, monkeypatch):
    monkeypatch.setattr("xrddiff.run.studies.listing.RECENT", 0.0)
    before = list_runs(trained.parent)
    assert (trained / ROW).is_file() and before[0].state == "finished"
    assert list_runs(trained.parent) == before
    summary = trained / "metrics" / "summary.json"
    summary.write_text(json.dumps({"radial profile": {"samples": 0.125}}))
    assert list_runs(trained.parent)[0].value == 0.125
    (trained / "report.html").unlink()
    assert list_runs(trained.parent)[0].state != "finished"
