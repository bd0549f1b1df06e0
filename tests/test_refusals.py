"""What cannot work is refused in one sentence, before anything is made: runs, samples and judgements, and the arguments of every command around them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest

from xrddiff.app.verbs.main import main
from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.core.files import scratch_folder
from xrddiff.core.ranks.environment import expand_nodelist, read_environment
from xrddiff.data.formats.store import save_frames
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.execution import phases as jobs
from xrddiff.run.execution.run_folder import FORMER, Run, create_run, keep_former, reopen_run
from xrddiff.run.execution.sharing import PARTS, unfinished_samples
from xrddiff.run.slurm import job_table, ledger

OWN = ["data=full", "data.data_id=null", "threads=1"]


def refused(capsys, *argv: str) -> str:
    """The one sentence with which a command is refused."""
    assert main(list(argv)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("xrddiff: ") and said.err.count("\n") == 1, said.err
    return said.err


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """A file of a hundred simulated frames, and one of plain numbers that says nothing of itself."""
    folder = tmp_path_factory.mktemp("shots")
    frames = simulate("sim128", range(100), truth=False)
    save_frames(frames, folder / "shots.h5")
    dark = frames.copy()
    dark["mask"] = (("frame", "y", "x"), np.zeros(dark["intensity"].shape, bool))
    save_frames(dark, folder / "dark.h5")
    values = frames["intensity"].values.astype(np.float32)
    with h5py.File(folder / "adu.h5", "w") as file:
        file["entry/data/data"] = values
    return folder


WORDS = dict(wavelength=1.3, distance=0.1, pixel_size=1e-4, beam_center="[64,64]")


@pytest.mark.parametrize(
    ("file", "words", "sentence"),
    [
        ("shots.h5", ["data.crop=[200,200]"], "at most the frame's 128 x 128"),
        ("shots.h5", ["data.avg_pooling=true", "data.pool=7"], "do not divide"),
        ("shots.h5", ["data.train_ratio=1"], "train_ratio"),
        ("shots.h5", ["data.limit=1"], "expected at least 2 frames, one to train on and one to hold out"),
        ("shots.h5", ["data.dataset=/nowhere"], "/nowhere"),
        ("shots.h5", ["model=ddpm", "model.condition=[colour]"], "colour"),
        (
            "shots.h5",
            ["model=ddpm", "model.condition=[crystal_system]", "inference.condition={crystal_system: cubical}"],
            "cubical",
        ),
        ("dark.h5", [], "no "),
        ("adu.h5", [f"data.{k}={v}" for k, v in WORDS.items()] + ["training.recons_loss=poisson"], "a photon is"),
        (
            "adu.h5",
            [f"data.{k}={v}" for k, v in WORDS.items()] + ["training.recons_loss=negative_binomial"],
            "a photon is",
        ),
        ("../shots", [], "shots"),
    ],
)
def test_what_a_run_cannot_use_is_found_before_its_folder_is_made(
    shots, tmp_path, monkeypatch, capsys, file, words, sentence
):
    monkeypatch.chdir(tmp_path)
    words = [*OWN, f"data.data_path={shots / file}", *words]
    assert sentence in refused(capsys, "run", *words)
    assert sentence in refused(capsys, "cluster", "submit", "--profile", "small", "--dry-run", *words)
    assert not list(tmp_path.iterdir())


def test_a_run_that_could_not_begin_is_not_said_to_go_on(tmp_path, monkeypatch, capsys, shots):
    """The input is refused by the notebook itself: `resume` would only say it again."""
    from test_notebooks import write_notebook

    source = write_notebook(
        tmp_path / "toy.ipynb", "model = ''\nexperiment_type = ''\ndata = ''\noverrides = []\nrun_dir = None",
        "from xrddiff.core.errors import BadInput\nraise BadInput('frame 57 is torn')",
    )  # fmt: skip
    monkeypatch.setattr(jobs, "run_notebook_path", lambda name: source)
    monkeypatch.chdir(tmp_path)
    assert main(["run", *OWN, f"data.data_path={shots / 'shots.h5'}"]) == 2
    err = capsys.readouterr().err
    assert "frame 57 is torn" in err and "nothing was trained" in err and "resume" not in err


ARGUMENTS = [
    (["run", "-m", "training.seed=range(1,4,0)"], "step of 0"),
    (["run", "-m", "training.seed=range(4,1)"], "no values"),
    (["run", "-m", "training.seed=range(1,1000000000)"], "at most 10000"),
    (["run", "-m", "training.seed=range(0,200)", "data.seed=range(0,200)"], "40000 runs"),
    (["run", "training.seed=99999999999999999999"], "below 2^63"),
    (["run", "hydra.searchpath="], "folders of presets"),
    (["run", "hydra.searchpath=[/no/such]"], "/no/such does not exist"),
    (["run", "data.data_path=" + "a" * 300], "does not exist"),
    (["run", "resume=" + "a" * 300], "does not exist"),
    (["sample", "a" * 300], "does not exist"),
    (["evaluate", "a" * 300], "does not exist"),
    (["cluster", "logs", "a" * 300], "neither a job nor a run"),
    (["cluster", "logs", "1" * 5000], "neither a job nor a run"),
    (["cluster", "scaling", "--params", "1e400", "--bandwidth", "3"], "found '1e400'"),
    (["cluster", "scaling", "--params", "-5", "--bandwidth", "3"], "expected"),
    (["cluster", "scaling", "--params", "0", "--bandwidth", "3"], "above 0"),
    (["cluster", "scaling", "--params", "1e6", "--bandwidth", "3", "--nodes", "1e400"], "found '1e400'"),
    (["cluster", "scaling", "--params", "1e6", "--bandwidth", "3", "--latency-us=-5"], "0 or more"),
    (["cluster", "scaling", "--params", "1e6", "--bandwidth", "3", "--bytes=-5"], "above 0"),
    (["cluster", "scaling", "--params", "1e6", "--comm", "list.json"], "comm-test --json"),
    (["cluster", "scaling", "--params", "1e6", "--comm", "rows.json"], "comm-test --json"),
    (["cluster", "scaling", "--params", "1e6", "--comm", "deep.json"], "comm-test --json"),
    (["cluster", "comm-test", "--sizes", "1e400"], "found '1e400'"),
    (["cluster", "submit", "--config", "deep.yaml"], "nested too deeply"),
    (["cluster", "submit", "-p", "small", "sample", "RUN"], "expected words of a run, or one of comm-test"),
    (["cluster", "submit", "-p", "small", "--array", "comm-test"], "not comm-test"),
    (["cluster", "submit", "-p", "small", "comm-test", "--sizess", "4"], "did you mean '--sizes'"),
    (["data", "inspect", "list.json", "wavelength=" + "[" * 5000], "cannot be read"),
    (["sample", "empty"], "config.yaml is empty"),
    (["sample", "deep"], "nested more than 64 levels deep"),
    (["run", "resume=empty"], "config.yaml is empty"),
]


@pytest.mark.parametrize(("argv", "sentence"), ARGUMENTS, ids=[" ".join(a)[:50] for a, _ in ARGUMENTS])
def test_arguments_that_cannot_be(tmp_path, monkeypatch, capsys, argv, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRDDIFF_STATE", str(tmp_path / "state"))
    files = {
        "list.json": "[1, 2]",
        "rows.json": json.dumps(dict(num_processes=2, num_nodes=2, backend="gloo", rounds=1, messages=[3])),
        "deep.json": "[" * 100_000,
        "deep.yaml": "a: " + "[" * 5000,
        "empty/config.yaml": "",
        "deep/config.yaml": "a: " + "[" * 5000,
    }
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    assert sentence in refused(capsys, *argv)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left == set(files)


def test_a_world_size_that_is_no_number(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "abc")
    assert "WORLD_SIZE is 'abc'" in refused(capsys, "run", "--dry-run")


BEYOND = {
    "digits": (["run", f"training.lr={'9' * 200_000}"], "too many digits"),
    "brackets": (["run", "model=vq", f"model.network_options={'[' * 3000}{']' * 3000}"], "nested too deep"),
    "run name": (["run", f"run_name={'a' * 300}"], "has 300 bytes; expected at most 250"),
    "folder": (["run", f"output_dir='here/{'ä' * 130}'"], "has 260 bytes; expected at most 250"),
    "suffix": (["run", f"training.test_suffix={'s' * 250}"], "expected at most 250"),
    "nodes": (
        ["cluster", "scaling", "--params", "1e6", "--bandwidth", "10", "--nodes", "1e30"],
        "expected at most 100000 nodes",
    ),
}


@pytest.mark.parametrize("case", BEYOND)
def test_what_no_computer_can_take(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv, sentence = BEYOND[case]
    said = refused(capsys, *argv)
    assert sentence in said and len(said) < 400 and not list(tmp_path.iterdir())


def test_more_ranks_than_any_computer_has(monkeypatch):
    place = {"RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (("WORLD_SIZE", "99999999"), ("WORLD_SIZE", "9" * 40), ("RANK", "9" * 5000)):
        with pytest.raises(BadInput, match="expected"):
            read_environment(place | {"WORLD_SIZE": "2"} | {name: value})
    with pytest.raises(BadInput, match="at most 1000000 nodes"):
        expand_nodelist("n[1-999999999999]")


@pytest.mark.parametrize("word", ["model.condition=[nope]", "size.widths=[3,5]"])
def test_a_dry_run_refuses_what_the_run_refuses(word, tmp_path, monkeypatch, capsys):
    """Also where the frames are simulated only when the run begins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "empty"))
    words = ["run", "model=ddpm", "size=tiny", "data=sim128", word]
    assert refused(capsys, *words, "--dry-run") == refused(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_the_run_that_is_meant_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = create_run(compose_plan(["model=latent_diff", "run_name=mine"]))
    (run / "autoencoder").mkdir()
    for wrong in (f"{run}/autoencoder", "output", "output/latent_diff"):
        assert f"did you mean {run}?" in refused(capsys, "sample", wrong)


def test_one_line_of_the_ledger_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XRDDIFF_STATE", str(tmp_path))
    good = ledger.Submission(1, {"run_dirs": ["/a", "/b"], "name": "x"}, {}, "/log-%j", "/", "0-1")
    ledger.record_submission(good)
    wrong = [
        dict(array="0-999999999"), dict(array="x"), dict(array=7), dict(array="0-1:2"), dict(profile=3), dict(id="1"), dict(folder=None),
        dict(submitted=5), dict(cluster=[]), dict(job={"run_dirs": "abc"}), dict(job={"run_dirs": [5]}), dict(job={"overrides": 3}), dict(log=4),
    ]  # fmt: skip
    with open(tmp_path / "jobs.jsonl", "a") as file:
        for change in wrong:
            file.write(json.dumps(asdict(good) | change) + "\n")
        file.write("[" * 100_000 + "\n")
    with pytest.warns(UserWarning, match=f"{len(wrong) + 1} of {len(wrong) + 2} lines cannot be read"):
        assert ledger.submissions() == [good]
    for name, found in (("cluster_name", ""), ("queue", []), ("past_states", {})):
        monkeypatch.setattr(job_table, name, lambda *_, found=found: found)
    with pytest.warns(UserWarning):
        rows = job_table.job_rows()
    text = job_table.status_table([row | dict(name="a [b]\n" * 60) for row in rows], width=100)
    assert [row["id"] for row in rows] == ["1_0", "1_1"] and text.count("\n") == 2
    assert all(len(line) <= 100 for line in text.splitlines()) and "a [b] a [b]" in text


def test_a_submission_that_is_only_shown_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["cluster", "submit", "--profile", "small", "--dry-run", "data=sim128"]) == 0
    assert "#SBATCH --output" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_file_that_a_verb_reads_is_never_its_output(tmp_path, monkeypatch, capsys):
    """Whatever argument names it: a profile, a script, a network of peaks. Without the rule, `--overwrite` replaces it."""
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("nodes: 1\n")
    Path("own.py").write_text("print(1)\n")
    Path("net.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    np.save("run.npy", np.ones((2, 16, 16), np.float32))
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    submit, words = ["cluster", "submit", "--config", "own.yaml"], ["model=vae_kl", "data=sim128"]
    for argv in (
        [*submit, *words, "-o", "own.yaml", "--overwrite"],
        [*submit, "--script", "own.py", "-o", "own.py", "--overwrite"],
        ["data", "inspect", "run.npy", "--png", "net.png", "--overwrite", "peaks=net:net.png"],
    ):
        assert "would be both read and written" in refused(capsys, *argv)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == kept


def test_few_former_attempts_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = create_run(compose_plan(["run_name=often"]))
    for i in range(8):
        (run / "notebook.ipynb").write_text(str(i))
        reopen_run(compose_plan([f"resume={run}"]))
    kept = sorted(p.name for p in run.glob("notebook.*"))
    assert kept == [f"notebook.{n}.ipynb" for n in range(9 - FORMER, 9)]
    assert len(list(run.glob("environment.*.json"))) == FORMER
    (run / "notebook.ipynb").write_text("last")
    keep_former(run / "notebook.ipynb")
    assert (run / "notebook.9.ipynb").read_text() == "last" and len(list(run.glob("notebook.*"))) == FORMER


def test_what_a_killed_process_left_in_tmp_is_removed(tmp_path):
    code = "import os, signal\nfrom xrddiff.core.files import scratch_folder\nwith scratch_folder() as f:\n    os.kill(os.getpid(), signal.SIGKILL)"
    env = os.environ | {"TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    (tmp_path / "xrddiff-of-a-user").mkdir()  # not one of ours
    os.utime(tmp_path / "xrddiff-of-a-user", (0, 0))
    with scratch_folder(tmp_path) as held:
        os.utime(held, (0, 0))
        with scratch_folder(tmp_path):
            assert held.is_dir() and not left.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["xrddiff-of-a-user"]


def test_samples_that_were_killed_before_their_plan_go_on_in_their_folder(tmp_path):
    wanted = tmp_path / "wk"
    assert unfinished_samples(wanted, "config") is None
    wanted.mkdir()
    assert unfinished_samples(wanted, "config") == wanted
    (wanted / "notebook.ipynb").touch()
    (wanted / "log.txt").touch()
    (wanted / ".samples.parts.123").mkdir()
    assert unfinished_samples(wanted, "config") == wanted
    (wanted / "mine.txt").touch()  # somebody's own folder
    assert unfinished_samples(wanted, "config") is None
    (wanted / "mine.txt").unlink()
    (wanted / PARTS).mkdir()
    (wanted / PARTS / "plan.json").write_text(json.dumps({"about": {"config": "another"}}))
    assert unfinished_samples(wanted, "config") is None
    assert unfinished_samples(wanted, "another") == wanted


def test_a_path_is_text_in_html(tmp_path):
    run = Run(Path("<script>alert(1)</script>"), None)
    assert "<script>" not in run._repr_html_()


@pytest.mark.parametrize("wait", [0.0, 0.1, 0.4])
def test_an_early_ctrl_c_is_no_traceback(tmp_path, wait):
    code = "import xrddiff.app.entry\nprint('begun', flush=True)\nxrddiff.app.entry.command_line()"
    words = ["run", "-m", "training.seed=range(0,10000)", "--dry-run"]  # enough to compose for minutes
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "begun\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "xrddiff: interrupted\n")


def test_a_run_that_was_stopped_in_order_is_not_done(tmp_path, monkeypatch, shots):
    """`run … && next` must not go on, and a sweep that was asked to stop begins no other run."""
    from test_notebooks import write_notebook

    source = write_notebook(
        tmp_path / "toy.ipynb", "model = ''\nexperiment_type = ''\ndata = ''\noverrides = []\nrun_dir = None",
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    )  # fmt: skip
    monkeypatch.setattr(jobs, "run_notebook_path", lambda name: source)
    monkeypatch.chdir(tmp_path)
    words = [*OWN, f"data.data_path={shots / 'shots.h5'}"]
    assert main(["run", *words]) == 75
    assert main(["run", "-m", *words, "training.seed=1,2,3"]) == 75
    assert len(list((tmp_path / "output").rglob("stopped.json"))) == 2
