"""Many runs together: lists, comparisons, sweeps."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import clean_environment

import xrddiff as xd
from xrddiff.app.verbs.main import main
from xrddiff.core.errors import BadInput
from xrddiff.core.gate import read_json
from xrddiff.run.studies.comparison import execute_comparison, open_comparison, shared_samples
from xrddiff.run.studies.listing import list_runs
from xrddiff.run.studies.study import Agent, Study, best_trial, make_study, open_study, take_trial, trial_rows
from xrddiff.run.studies.sweep_file import make_plan


def without_seal(text: str) -> str:
    """YAML that somebody changes by hand: without the checksum in its last line."""
    return re.sub("# crc32: .*", "", text)


@pytest.fixture(scope="module")
def two(runs, tmp_path_factory):
    """A trained autoencoder, a copy of it that was set and did otherwise, and a folder that is damaged."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("a", "b"):
        shutil.copytree(runs("vae_kl"), folder / name)
    for name, loss in (("a", "mse"), ("b", "l1")):
        config = folder / name / "config.yaml"
        text = re.sub("recons_loss: .*", f"recons_loss: {loss}", config.read_text())
        config.write_text(without_seal(text))
    summary = read_json(folder / "b" / "metrics" / "summary.json")
    summary["Poisson deviance"]["vae_kl"] += 1.0
    summary["peak F1"]["vae_kl"] = json.loads((folder / "a/metrics/summary.json").read_text())["peak F1"]["vae_kl"]
    (folder / "b" / "metrics" / "summary.json").write_text(json.dumps(summary))
    (folder / "c" / "checkpoints").mkdir(parents=True)
    (folder / "c" / "config.yaml").write_text("presets: [")
    return folder


def test_the_page_of_two_runs(two, capsys):
    assert main(["runs", "compare", str(two)]) == 0
    out = capsys.readouterr().out
    assert "3 runs: 2 finished, 1 damaged." in out and "They differ in training.recons_loss." in out
    assert "Best by Poisson deviance (lowest): mse" in out
    html = (two / "comparison" / "compare.html").read_text()
    assert "The same shots, reconstructed" in html and "is not YAML" in html
    table = pd.read_csv(two / "comparison" / "compare.csv").set_index("run")
    assert table.loc["l1", "Poisson deviance"] == pytest.approx(table.loc["mse", "Poisson deviance"] + 1)
    assert len(list_runs(two)) == 3  # the comparison is no run


def test_samples_are_compared_by_their_numbers(runs, tmp_path):
    """Rows of two sets that are in another order are matched by the numbers of the samples."""
    from xrddiff.data.formats.store import read_store, save_frames
    from xrddiff.data.frames.selection import select_frames

    for name in ("a", "b"):
        shutil.copytree(runs("ddpm"), tmp_path / name)
    config = tmp_path / "b" / "config.yaml"
    config.write_text(without_seal(config.read_text().replace("seed: 0", "seed: 5", 1)))
    store = tmp_path / "b" / "samples" / "samples.zarr"
    samples = read_store(store).load()
    shutil.rmtree(store)
    save_frames(select_frames(samples, list(range(7, 1, -1))), store)
    shared = shared_samples(open_comparison([tmp_path]), 3)
    assert shared.numbers == [2, 3, 4] and "seed 0" in shared.text
    a, b = (ds["intensity"].values for ds in shared.frames.values())
    assert (a == b).all()


def test_what_cannot_be_compared_is_said_in_one_sentence(two, tmp_path):
    for given, sentence in (
        ([tmp_path / "nothing"], "does not exist"),
        ([tmp_path], "holds no run"),
        ([two / "a"], "1 run that can be compared; expected two or more"),
        ([two / "a", two / "c"], "c is damaged"),
    ):
        with pytest.raises(BadInput, match=sentence) as error:
            execute_comparison(given, tmp_path / "out")
        assert "\n" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is not a folder"):
        execute_comparison([two], tmp_path / "file" / "out")


# ---------------------------------------------------------------- sweeps

TOY = Path(__file__).with_name("toy_trial.py")
LR = {"training.lr": {"min": 1e-5, "max": 1e-2, "distribution": "log_uniform"}}
TOY_SWEEP = {
    "method": "random",
    "metric": {"name": "distance"},
    "run_cap": 8,
    "words": ["training.seed=0"],
    "parameters": LR,
}


def toy_agents(folder: Path, count: int, *words: str) -> list[subprocess.Popen]:
    """Agents whose trials train nothing (tests/toy_trial.py)."""
    command = [sys.executable, str(TOY), "agent", str(folder), *words]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [subprocess.Popen(command, env=clean_environment(), **pipe) for _ in range(count)]


def ended(agents: list[subprocess.Popen]) -> list[tuple[int, str]]:
    said = [agent.communicate(timeout=120) for agent in agents]
    return [(agent.returncode, out + err) for agent, (out, err) in zip(agents, said, strict=True)]


def trial_in_the_middle(study: Study) -> tuple[int, int]:
    """A trial with a checkpoint and without an end, and the process of its agent."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for claim in sorted(study.folder.glob("claims/*-1")):
            run = study.run_dir(int(claim.name[:4]))
            with contextlib.suppress(OSError, ValueError):
                if (run / "checkpoints" / "2").exists() and not (run / "checkpoints" / "8").exists():
                    name = json.loads(claim.read_text())["agent"]
                    agent = json.loads((study.folder / "agents" / f"{name}.json").read_text())
                    return int(claim.name[:4]), agent["pid"]
        time.sleep(0.01)
    raise AssertionError("no trial got that far")


def test_eight_trials_by_two_agents_one_of_them_killed(tmp_path):
    """The trial of the dead agent is continued from its checkpoint; all eight end with what one agent would have found."""
    study = make_study(make_plan(TOY_SWEEP), tmp_path / "study")
    agents = toy_agents(study.folder, 2)
    number, pid = trial_in_the_middle(study)
    os.kill(pid, signal.SIGKILL)
    codes = sorted(code for code, _ in ended(agents))
    assert codes == [-signal.SIGKILL, 0]
    rows = trial_rows(study)
    assert [row["state"] for row in rows] == ["complete"] * 8
    assert [row["attempts"] for row in rows] == [2 if i == number else 1 for i in range(8)]
    assert all(row["value"] == pytest.approx((row["params"]["training.lr"] - 1e-3) ** 2) for row in rows)
    processes = [
        p.read_text() for p in sorted((study.run_dir(number) / "checkpoints").iterdir(), key=lambda p: int(p.name))
    ]
    assert len(processes) == 10 and len(set(processes)) == 2  # two processes, and no epoch done twice
    alone = make_study(make_plan(TOY_SWEEP), tmp_path / "alone")
    assert ended(toy_agents(alone.folder, 1, "--runs", "3"))[0][0] == 0
    again = [row["params"] for row in trial_rows(alone)]
    assert again[:3] == [row["params"] for row in rows[:3]] and again[3:] == [{}] * 5
    assert best_trial(study)["value"] == min(row["value"] for row in rows)


def toy_crew(folder: Path, count: int, **environment: str) -> subprocess.Popen:
    """The command that starts agents and looks after them."""
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, str(TOY), "crew", str(folder), str(count)]
    return subprocess.Popen(command, env=clean_environment() | environment, **pipe)


def living(study: Study) -> list[int]:
    """The processes of the agents that count."""
    beats = [study.watchman.read(name) for name in study.watchman.names() if not study.watchman.is_gone(name)]
    return sorted(beat.pid for beat in beats)


@pytest.mark.slow
def test_agents_that_are_killed_are_replaced(tmp_path):
    """Twelve kills of two agents, a few epochs apart: every trial ends as it does undisturbed, and no epoch is done twice."""
    study = make_study(make_plan(TOY_SWEEP | {"run_cap": 5}), tmp_path / "study")
    crew, chance, killed, due = toy_crew(study.folder, 2), random.Random(0), {}, 1
    while crew.poll() is None and len(killed) < 12:
        time.sleep(0.01)
        if len(list(study.folder.glob("runs/*/checkpoints/*"))) < due:
            continue
        if alive := [pid for pid in living(study) if pid not in killed]:
            killed[pid := chance.choice(alive)] = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, killed[pid])
            due += chance.randint(1, 4)
    _, err = crew.communicate(timeout=300)
    assert crew.returncode == 0, err
    assert len(killed) > 4 and len(killed) - 1 <= err.count("another one takes its place") <= len(killed), err
    rows = trial_rows(study)
    assert [row["state"] for row in rows] == ["complete"] * 5 and sum(row["attempts"] for row in rows) > 7
    alone = make_study(make_plan(TOY_SWEEP | {"run_cap": 5}), tmp_path / "alone")
    with Agent(alone.folder) as agent:
        assert [take_trial(alone, agent).params for _ in rows] == [row["params"] for row in rows]
    assert [row["value"] for row in rows] == [(row["params"]["training.lr"] - 1e-3) ** 2 for row in rows]
    for row in rows:
        epochs = pd.read_csv(Path(row["run"]) / "metrics" / "epochs.csv")["epoch"]
        assert list(epochs) == list(range(1, 11))


def test_a_trial_that_ends_its_own_process(tmp_path):
    """One that gets further each time goes on; one that ends three times in the same step is given up."""
    sweep = {k: v for k, v in TOY_SWEEP.items() if k != "run_cap"} | {"method": "grid", "words": []}
    sweep |= {"parameters": {"training.lr": {"values": [1e-4]}, "training.seed": {"values": [9, 10, 0]}}}
    study = make_study(make_plan(sweep), tmp_path / "study")
    [(code, said)] = ended(toy_agents(study.folder, 1))
    rows = trial_rows(study)
    assert code == 0 and [row["state"] for row in rows] == ["complete", "fail", "complete"]
    why = "was ended by SIGKILL, as where memory runs out, 3 times and got no further than step 2"
    assert why in rows[1]["reason"] and "0001.txt" in rows[1]["reason"]
    assert said.count("trial 0: its process was ended") == 10 and said.count("trial 1: its process was ended") == 2


def test_agents_that_are_killed_in_vain(tmp_path):
    """Where every agent is killed, no more are started after some."""
    study = make_study(make_plan(TOY_SWEEP | {"run_cap": 1}), tmp_path / "study")
    crew = toy_crew(study.folder, 1, TOY_AGENTS_DIE="1", TOY_RESTARTS="2")
    _, err = crew.communicate(timeout=120)
    assert crew.returncode == 1 and err.count("another one takes its place") == 2
    assert err.splitlines()[-1].endswith("was killed by signal 9; no other is started, after 2 in vain")


def test_trials_that_fail_are_ill_or_measure_nothing(tmp_path):
    sweep = TOY_SWEEP | {
        "method": "grid",
        "words": [],
        "parameters": {"training.lr": {"values": [1e-4]}, "training.seed": {"values": [0, 7, 8]}},
    }
    del sweep["run_cap"]
    study = make_study(make_plan(sweep), tmp_path / "study")
    [(code, _)] = ended(toy_agents(study.folder, 1))
    rows = trial_rows(study)
    assert code == 0 and [row["state"] for row in rows] == ["complete", "fail", "pruned"]
    assert (
        rows[1]["reason"] == "the frames are not there"
        and rows[2]["reason"] == "not_finite in epoch 3: the loss is NaN"
    )
    for name, code, sentence in (
        ("distence", 2, "did you mean 'distance'?"),
        ("nothing", 0, "has no value of nothing"),
    ):
        study = make_study(make_plan(TOY_SWEEP | {"metric": {"name": name}, "run_cap": 1}), tmp_path / name)
        assert ended(toy_agents(study.folder, 1))[0][0] == code
        assert sentence in trial_rows(study)[0]["reason"]


def test_an_agent_that_is_stopped_leaves_its_trial_to_the_next(tmp_path):
    study = make_study(make_plan(TOY_SWEEP | {"run_cap": 2}), tmp_path / "study")
    agents = toy_agents(study.folder, 1)
    number, pid = trial_in_the_middle(study)
    os.kill(pid, signal.SIGTERM)
    assert ended(agents)[0][0] == 75 and trial_rows(study)[number]["state"] == "running"
    assert ended(toy_agents(study.folder, 1))[0][0] == 0
    assert [row["attempts"] for row in trial_rows(study)] == [2, 1] and open_study(study.folder).over


def test_a_lock_left_by_a_dead_process_is_taken_from_it(tmp_path, monkeypatch):
    from optuna.storages.journal import _file

    study = make_study(make_plan(TOY_SWEEP | {"run_cap": 2}), tmp_path / "study")
    (study.folder / "journal.log.lock").touch()
    monkeypatch.setattr(_file.JournalFileOpenLock.__init__, "__defaults__", (3,))
    began = time.monotonic()
    assert len(make_study(make_plan(TOY_SWEEP | {"run_cap": 3}), study.folder).trials()) == 3
    assert time.monotonic() - began > 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sweep", "no.yaml"], "no.yaml does not exist"),
        (["sweep", "bad.yaml"], "bad.yaml is not YAML"),
        (["sweep", "word.yaml"], "there is no word 'training.lrr'; did you mean 'training.lr'?"),
        (["sweep", "sweep.yaml", "-o", "sweep.yaml/study"], "sweep.yaml is not a folder"),
        (["sweep", "status", "nowhere"], "nowhere holds no study"),
        (["sweep", "best", "study"], "no trial of"),
        (["sweep", "broken"], "journal.log is damaged"),
        (["sweep", "sweep.yaml", "surplus"], "one argument too many"),
        (["sweep", "sweep.yaml", "--agents", "0"], "expected a whole number from 1"),
        (["sweep", "sweep.yaml", "--profile", "small", "--config", "own.yaml"], "each name a profile; expected one"),
        (["sweep", "sweep.yaml", "--profile", "smal"], "did you mean 'small'"),
    ],
)
def test_sweeps_are_refused_in_one_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("words: [")
    Path("sweep.yaml").write_text(json.dumps(TOY_SWEEP))
    Path("word.yaml").write_text(json.dumps(TOY_SWEEP | {"parameters": {"training.lrr": {"values": [1]}}}))
    if words[-1] in ("study", "broken"):
        make_study(make_plan(TOY_SWEEP | {"run_cap": 1}), words[-1])
    if words[-1] == "broken":
        with open("broken/journal.log", "a") as f:
            f.write("}{\n{}\n")
    assert main(words) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and sentence in err[0] and not Path("output").exists()
    if words[-1] == "smal":
        with pytest.raises(BadInput, match="did you mean 'small'"):
            xd.sweep("sweep.yaml", profile="smal")
        assert not Path("output").exists()


def test_the_sweeps_of_the_page(tmp_path):
    """The files on docs/many_runs.md are sweeps."""
    page = (Path(__file__).parent.parent / "docs" / "many_runs.md").read_text()
    files = re.findall(r"```yaml\n(.*?)```", page, re.S)
    plans = [make_plan(yaml.safe_load(text)) for text in files]
    assert [plan.method for plan in plans] == ["tpe", "grid"] and plans[1].run_cap == 6


@pytest.mark.slow
def test_the_sweep_of_the_page_runs(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "many_runs.md").read_text()
    sweep = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.S)[1])
    (tmp_path / "mine.py").write_text("open('loaded', 'a').write('x')\n")
    words = [*sweep["words"], "plugins=[mine.py]"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"run_cap": 1, "words": words}))
    command = [
        sys.executable,
        "-c",
        "from xrddiff.app.entry import command_line; command_line()",
        "sweep",
        "sweep.yaml",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"best: trial 0, Poisson deviance \d", done.stdout)
    study = tmp_path / "output" / "sweeps" / "sweep"
    assert f"{study}/plugins/mine.py" in (study / "runs" / "0000" / "config.yaml").read_text()
    assert (tmp_path / "loaded").read_text() == "xxx"  # by the command, its agent and the process of the trial


SWARM = """\
nodes: 4
tasks_per_node: 2
cpus_per_node: 4
memory_per_cpu: 1G
time_limit: 00:10:00
signal_seconds: 10
"""
# In the Python of a job: trials that train nothing.
HOOK = f"""\
import sys
if "xrddiff.run.slurm.job" in sys.orig_argv:
    from xrddiff.run.studies import agents
    agents.TRIAL, agents.POLL = (sys.executable, {str(TOY)!r}), 0.05
"""


def test_a_swarm_of_jobs(lab, tmp_path, monkeypatch, capsys):
    """Three nodes, a trial each; what is left is done by the next swarm."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    (tmp_path / "swarm.yaml").write_text(SWARM)
    (tmp_path / "lr.yaml").write_text(json.dumps(TOY_SWEEP | {"run_cap": 4}))
    for name, value in {
        **lab.env,
        "XRDDIFF_STATE": str(tmp_path / "state"),
        "PYTHONPATH": str(tmp_path / "hook"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    swarm = ["--config", "swarm.yaml", "--partition", "main", "--runs", "1"]
    assert main(["sweep", "lr.yaml", *swarm, "--agents", "3"]) == 0
    number = re.search(r"submitted job (\d+): 3 agents on profile swarm, 1 trial each", capsys.readouterr().out)[1]
    for task in range(3):
        lab.wait(f"{number}_{task}", "COMPLETED", 90)
    study = open_study("output/sweeps/lr")
    rows = trial_rows(study)
    assert [row["state"] for row in rows] == ["complete"] * 3 + ["waiting"] and len(
        {row["agent"] for row in rows[:3]}
    ) == 3
    assert main(["sweep", "output/sweeps/lr", *swarm, "--agents", "1"]) == 0
    number = re.search(r"submitted job (\d+)", capsys.readouterr().out)[1]
    lab.wait(f"{number}_0", "COMPLETED", 90)
    assert open_study("output/sweeps/lr").over and list_runs("output/sweeps/lr/runs")[0].state
    assert main(["sweep", "best", "output/sweeps/lr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["words"][0] == "training.seed=0"
