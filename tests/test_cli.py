"""The command line: its commands, its one-line errors, its exit codes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
import yaml
from test_notebooks import TOY_RUN, write_notebook

from xrddiff import __version__
from xrddiff.app.verbs.main import main, parse
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.learn.loading.catalog import fetch
from xrddiff.run.execution import phases as jobs


def said(capsys):
    out, err = capsys.readouterr()
    return out, err.splitlines()


def test_version_and_help_are_quick_and_light():
    code = (
        "import sys, xrddiff.app.verbs.main as c\ntry:\n    c.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'hydra', 'xarray', 'rich', 'papermill') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]" and "run" in out and "data" in out


@pytest.mark.parametrize(
    "argv", [["--version"], ["--help"], ["run", "--help"], ["data", "--help"], ["data", "inspect", "--help"]]
)
def test_help_exits_zero(argv, capsys):
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    out, _ = said(capsys)
    assert code == 0 and out
    if argv == ["--version"]:
        assert out.strip() == f"xrddiff {__version__}"
    if argv[0] == "run":
        assert "training.recons_loss=iwmse" in out and "pooling_422" in out


def test_help_of_a_model_shows_what_it_uses(capsys):
    assert (
        main(["run", "model=ddpm", "--help"])
        == main(["run", "--help", "model=vae_kl", "training.recons_loss=mse"])
        == 0
    )
    denoiser, autoencoder = said(capsys)[0].split("usage: ")[1:]
    assert "P_mean: 0.8 " in denoiser and "inference.steps=" in denoiser and "training.recons_loss=" not in denoiser
    assert (
        "training.recons_loss=mse" in autoencoder
        and "inference.steps=" not in autoencoder
        and "  alpha_mse: " not in autoencoder
    )


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["run", "model=vea_kl"], "did you mean 'vae_kl'"),
        (["run", "training.num_epoch=3"], "did you mean 'training.num_epochs'"),
        (["run", "training.batch_size=4,8"], "--multirun"),
        (["run", "resume=/no/such"], "does not exist"),
        (["run", "--quick"], "no option '--quick'"),
        (["rum"], "invalid choice: 'rum'"),
        ([], "required"),
        (["data", "simulate", "sim128", "-n", "many", "-o", "x.zarr"], "invalid int value"),
        (["data", "simulate", "sim128"], "-o"),
        (["submit"], "there is no command 'submit'; did you mean xrddiff cluster submit?"),
        (["list"], "did you mean xrddiff data list or config list or runs list?"),
        (["data", "list", "extra"], "'extra' is one argument too many"),
        # before the run or the files, which do not exist, are opened
        (["sample", "/no/such", "--workers", "lokal:2"], "as in `--workers local:2`"),
        (["evaluate", "/no/such", "--workers", "local"], "as in `--workers local:2`"),
        (["evaluate", "/no/a.cxi", "--reference", "/no/b.cxi", "--workers", "two"], "as in `--workers local:2`"),
        (["data", "inspect"], "required: FILE (see"),
        (["data", "inspect", "--no-pgn", "a.h5"], "did you mean '--no-png'"),
        (["data", "convert", "a.h5", "/dev/null/b.zarr"], "cannot write /dev/null/b.zarr: /dev/null is not a folder"),
    ],
)
def test_errors_are_one_line_and_two(argv, sentence, capsys):
    assert main(argv) == 2
    out, err = said(capsys)
    assert out == "" and len(err) == 1 and err[0].startswith("xrddiff: ") and sentence in err[0]


def test_several_problems_are_a_line_each(capsys):
    assert main(["run", "data.topk=3", "training.lr=0"]) == 2
    assert [line[:9] for line in said(capsys)[1]] == ["xrddiff: "] * 2


def test_overrides_stand_anywhere():
    args = parse(["run", "--dry-run", "a=1", "-m", "b=2", "~c"])
    assert args.dry_run and args.multirun and args.overrides == ["a=1", "b=2", "~c"]
    with pytest.raises(BadInput, match="--nothing"):
        parse(["run", "a=1", "--nothing"])


def test_dry_run_prints_the_configuration(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "model=vae_kl", "data=pooling_422", "training.num_epochs=2", "--dry-run"]) == 0
    cfg = yaml.safe_load(said(capsys)[0])
    assert (cfg["data"]["data_id"], cfg["training"]["num_epochs"], cfg["presets"]["data"]) == (422, 2, "pooling_422")
    assert main(["run", "-m", "training.batch_size=4,8,16", "--dry-run"]) == 0
    assert [c["training"]["batch_size"] for c in yaml.safe_load_all(said(capsys)[0])] == [4, 8, 16]
    assert not list(tmp_path.iterdir())


def test_a_note_is_one_line(capsys):
    assert main(["run", "model=vae_kl", "inference.seed=3", "--dry-run"]) == 0
    assert said(capsys)[1] == ["xrddiff: note: no effect in this run: inference.seed (the model has no denoiser)"]


@pytest.fixture
def toy_run(tmp_path, monkeypatch):
    source = write_notebook(tmp_path / "toy.ipynb", *TOY_RUN)
    monkeypatch.setattr(jobs, "run_notebook_path", lambda name: source)
    monkeypatch.chdir(tmp_path)
    return source


def test_run_resume_and_summary(toy_run, capsys):
    assert main(["run", "data=sim128", "training.num_epochs=3"]) == 1  # its toy trainer meets a power cut
    out, err = said(capsys)
    path = re.search(r"^run: (.*)$", out, re.MULTILINE).group(1)
    assert f"xrddiff: the run is kept; resume it with: xrddiff run resume={path}" in err
    assert "RuntimeError: power cut" in err[-1] and err[-1].startswith("xrddiff: toy.ipynb failed in cell")
    assert main(["run", f"resume={path}"]) == 0
    out, err = said(capsys)
    assert "epochs 2 to 3" in out and re.search(r"epochs\s.*3", out)
    assert out.splitlines()[-1] == f"report: {path}/report.html" and not err


@pytest.mark.slow
def test_multirun_runs_them_all(toy_run, tmp_path, capsys):
    assert main(["run", "-m", "data=sim128", "training.num_epochs=1,3,2", "run_name=sweep"]) == 1
    out, err = said(capsys)
    assert out.count("=== run") == 3 and err[-1] == "xrddiff: 1 of 3 runs failed"
    done = {p.parent.parent.name: json.loads(p.read_text())["epochs"] for p in tmp_path.rglob("summary.json")}
    assert done == {"sweep": 1, "sweep-3": 2}


def test_a_wrong_word_stops_a_sweep_before_it_starts(toy_run, tmp_path, capsys):
    assert main(["run", "-m", "training.recons_loss=mse,l2"]) == 2
    assert not (tmp_path / "output").exists()


def test_an_unwritable_output_folder(toy_run, capsys):
    assert main(["run", "output_dir=toy.ipynb"]) == 2
    assert "output_dir=toy.ipynb must be a folder" in said(capsys)[1][0]


@pytest.mark.slow
def test_ctrl_c_is_130(tmp_path):
    source = write_notebook(
        tmp_path / "toy.ipynb", TOY_RUN[0], "import time\nprint('begun', flush=True)\ntime.sleep(60)"
    )
    code = (
        "import sys\nfrom xrddiff.run.execution import notebooks\nfrom xrddiff.app.verbs.main import main\n"
        f"notebooks.run_notebook_path = lambda name: {str(source)!r}\nsys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "data=sim128"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("begun") for line in lines)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert "resume it with: xrddiff run resume=output/vae_kl/" in err and err.endswith("xrddiff: interrupted\n")


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(tmp_path):
    command = f'{sys.executable} -c \'import sys; from xrddiff.app.verbs.main import main; sys.exit(main(["run", "-m", "training.seed=range(0,40)", "--dry-run"]))\' | head -1'
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert done.stdout == "model:\n" and "Traceback" not in done.stderr


# ---------------------------------------------------------------- data


def test_data_list(capsys):
    assert main(["data", "list"]) == 0
    out, _ = said(capsys)
    assert all(name in out for name in ("sim-422", "sim-522", "sim128", "cspad-lysozyme", "pilatus-reflectivity"))


def test_simulate_inspect_convert(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "simulate", "sim128", "-n", "3", "-o", "new/a.zarr", "--seed", "5"]) == 0
    assert main(["data", "convert", "new/a.zarr", "b.h5"]) == 0
    said(capsys)
    assert main(["data", "inspect", "b.h5", "--frame", "2"]) == 0
    out, _ = said(capsys)
    assert "3 × 128 × 128" in out and "wavelength" in out
    assert (tmp_path / "b-2.png").read_bytes().startswith(b"\x89PNG")
    assert (
        main(["data", "inspect", "b.h5", "--no-png"]) == 0
        and main(["data", "inspect", "b.h5", "--png", "c/d.png"]) == 0
    )
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["b-2.png", "d.png"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["data", "fetch", "sim12"], "did you mean 'sim128'"),
        (["data", "simulate", "sim12", "-o", "x.h5"], "sim12"),
        (["data", "simulate", "sim128", "-n", "0", "-o", "x.h5"], "1 or more"),
        (["data", "simulate", "sim128", "-n", "1", "-o", "x.jpg"], "expected a name that ends in"),
        (["data", "inspect", "none.h5"], "none.h5"),
        (["data", "inspect", "text.h5"], "text.h5"),
        (["data", "convert", "none.h5", "b.h5"], "none.h5"),
        (["data", "convert", "text.h5", "b.h5", "wavelength"], "'wavelength' is not a word"),
        (["data", "convert", "none.h5", "new/b.h5"], "none.h5 does not exist"),
        (["data", "inspect", "none.h5", "--png", "new/a.png"], "none.h5 does not exist"),
        (["data", "simulate", "sim12", "-o", "new/x.h5"], "did you mean 'sim128'"),
        (["data", "inspect", "sim128"], "named data set; `xrddiff data fetch sim128`"),
        (["data", "inspect", "run.npy", "geometry=none.poni"], "none.poni does not exist"),
        (["data", "inspect", "run.npy", "frame=1"], "frame does not describe frames"),
        (["data", "inspect", "run.npy", "sample={a: b"], "'sample={a: b' cannot be read"),
        (["data", "inspect", "run.npy", "variables=1"], "variables is 1"),
        (["data", "inspect", "run.npy", "peaks=1"], "peaks=1: expected classical, peakfinder8, or net:FILE"),
        (["data", "inspect", "run.npy", "--frame", "99"], "run.npy has 3 frames; there is no frame 99"),
        (["data", "inspect", "closed/a.h5"], "closed/a.h5 cannot be read"),
    ],
)
def test_data_errors_are_one_line(argv, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.h5").write_text("no HDF5")
    np.save(tmp_path / "run.npy", np.ones((3, 16, 16), "f4"))
    monkeypatch.setattr("os.stat", closed(os.stat))
    assert main(argv) == 2
    _, err = said(capsys)
    assert len(err) == 1 and err[0].startswith("xrddiff: ") and sentence in err[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.npy", "text.h5"]


def closed(stat):
    """`os.stat` of somebody who may not enter the folder 'closed' (root may enter any)."""

    def refusing(path, *args, **kwargs):
        if str(path).startswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *args, **kwargs)

    return refusing


def test_words_of_the_data_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("run.npy", np.ones((3, 16, 16), "f4"))
    known = ["wavelength=1.3", "distance=1e-1", "pixel_size=1e-4", "beam_center=[8,8]"]
    assert main(["data", "convert", "run.npy", "run.h5", *known, "source=LCLS", "sample=lysozyme", "flux=1e12"]) == 0
    attrs = open_frames("run.h5").attrs
    assert (attrs["source"], attrs["sample"], attrs["flux"], attrs["distance"]) == ("LCLS", "lysozyme", 1e12, 0.1)
    with h5py.File("two.h5", "w") as f:
        f["u"], f["v"] = np.ones((2, 16, 16)), np.zeros((2, 16, 16))
    assert main(["data", "inspect", "two.h5", "--no-png"]) == 2
    out, err = said(capsys)
    assert "/u" in out and len(err) == 1 and "name one with dataset=" in err[0]
    assert main(["data", "inspect", "two.h5", "--no-png", "dataset=/v"]) == 0
    assert main(["data", "convert", "two.h5", "v.zarr", "dataset=/v", *known]) == 0
    assert not open_frames("v.zarr")["intensity"].any()


def test_pictures_have_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "day").mkdir()
    np.save("day/run_1.npy", np.ones((3, 16, 16), "f4"))
    assert main(["data", "inspect", "day/run_*.npy"]) == 0 and main(["data", "inspect", "day/run_1.npy"]) == 0
    monkeypatch.chdir(tmp_path / "day")
    save_frames(make_frames(np.ones((1, 16, 16), "f4")), "a.h5")
    assert main(["data", "inspect", ".", "--frame", "0"]) == 0
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["day-0.png", "run-0.png", "run_1-0.png"]
    said(capsys)
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.R_OK)  # a folder of raw data is often read-only
    assert main(["data", "inspect", "run_1.npy"]) == 0
    out, err = said(capsys)
    assert "3 × 16 × 16" in out and "picture" not in out and err[0].startswith("xrddiff: note: no picture")
    assert main(["data", "inspect", "run_1.npy", "--png", "b.png"]) == 2 and "not writable" in said(capsys)[1][0]


def on_terminal(argv):
    """The exit code of a command whose output goes to a terminal, and what the terminal got, without colours."""
    parts, (screen, keyboard) = [], os.openpty()

    def read():
        with contextlib.suppress(OSError):  # the other end was closed
            while part := os.read(screen, 4096):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with open(keyboard, "w") as terminal, contextlib.redirect_stdout(terminal):
        code = main(argv)
    reader.join()
    os.close(screen)
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(parts).decode())


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_page_fits_the_terminal(columns, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    code, page = on_terminal(["data", "inspect", str(fetch("cspad-lysozyme")), "--no-png", "automask=[]"])
    assert code == 0
    lines = page.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= columns
    if columns >= 80:  # nothing is cut: names whole, values with their digits
        assert "/entry_1/instrument_1/detector_1/panel_origin" in "\n".join(lines)
        assert re.search(r"-3939 +-2 +32 +40.62 +136 +12979", lines[-1])
