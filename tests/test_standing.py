"""How a run stands: 60 standings made from one real run by editing what it wrote, and a few real ones; everything that shows a state says the same."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_run import COMMAND, xrddiff

from xrddiff.app.front_door import run_numbers
from xrddiff.app.front_door.door import open_run
from xrddiff.app.front_door.door import runs as run_table
from xrddiff.app.verbs.main import main
from xrddiff.app.widgets import training_monitor
from xrddiff.app.widgets.training_monitor import TrainingFiles
from xrddiff.core.errors import BadInput, XrddiffError
from xrddiff.core.files import sha256, write_json
from xrddiff.data.formats.store import save_frames
from xrddiff.judge.views import charts
from xrddiff.judge.views import run_reports as model_card
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.execution import status
from xrddiff.run.execution.status import (
    PHASES,
    STATES,
    TRAINING,
    USE,
    Here,
    mark_stopped,
    run_state,
    write_failure,
)
from xrddiff.run.slurm import job_table, ledger
from xrddiff.run.slurm.commands import QueuedJob
from xrddiff.run.slurm.job_table import find_watched
from xrddiff.run.slurm.ledger import Submission, record_submission

NOW = 1_700_000_000.0
HERE = dict(host="here", place="aaaa", boot="b1")
FAR = dict(host="n7", place="bbbb", boot="b2")
TABLE = "metrics/training_metrics.csv"


@dataclass
class World:
    """What surrounds a run: whether its lock is held, the processes of this machine, SLURM, and the job of the run."""

    run: Path
    locked: bool = False
    processes: dict[int, str] = field(default_factory=dict)
    queued: list[QueuedJob] = field(default_factory=list)
    past: dict[str, str] = field(default_factory=dict)
    job: bool = True  # submitted here as job 17; SLURM has forgotten it unless it is in `queued` or `past`

    def attempt(self, name: str = TRAINING, *, beat: float = 10.0, wrote: float = 10.0, **changes: Any) -> None:
        """Write the record of an attempt that began long ago, on this machine unless `changes` say otherwise."""
        known = dict(phase="denoiser", number=1, pid=4711, start="77", inode=self.run.stat().st_ino, began=NOW - 5000)
        record = HERE | known | dict(locked=True, job="", ended=None, before="", how="", part="") | changes
        write_json(self.run / name, record | dict(time=NOW - beat, wrote=NOW - wrote))

    def forget(self, *names: str) -> None:
        """Remove files of the run, and everything that it made after them."""
        for name in names:
            path = self.run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def unfinished(self, **changes: Any) -> None:
        """The run trains its denoiser; nothing says how that ended."""
        self.forget("report.html")
        self.attempt(**changes)

    def squeue(self, state: str, where: str = "", number: str = "17") -> None:
        """What squeue says of the job."""
        fields = dict(partition="cpu", elapsed="1:00", limit="2:00", nodes="1", user="me", name="job")
        self.queued.append(QueuedJob(id=number, base=17, state=state, where=where, **fields))


CASES: dict[str, tuple[Callable[[World], Any], str, str]] = {}


def case(state: str, phase: str, name: str = "") -> Callable:
    """Add a case: the function makes it from a finished run of latent_diff."""
    assert state in STATES and phase in ("", *PHASES)

    def add(make: Callable[[World], Any]) -> Callable[[World], Any]:
        CASES[name or make.__name__.replace("_", " ")] = make, state, phase
        return make

    return add


# ---- killed in each phase, on this machine

for doing in ("autoencoder", "latents", "denoiser", "sample", "evaluate"):
    case("killed", doing, f"killed in {doing}")(lambda w, doing=doing: w.unfinished(phase=doing))
    case("running", doing, f"works in {doing}")(
        lambda w, doing=doing: (w.unfinished(phase=doing), setattr(w, "locked", True))
    )


@case("killed", "denoiser")
def killed_and_its_number_given_to_another_process(w):
    w.unfinished()
    w.processes[4711] = "99"


@case("killed", "denoiser")
def killed_by_a_restart_of_the_machine(w):
    w.unfinished(boot="b0")
    w.processes[4711] = "77"


@case("killed", "denoiser")
def killed_just_now_with_a_fresh_heartbeat(w):
    w.unfinished(beat=0.5, wrote=0.5)


@case("killed", "denoiser")
def killed_where_locks_are_not_seen(w):
    w.unfinished(locked=False)


@case("killed", "denoiser")
def killed_where_locks_are_not_seen_and_its_number_given_away(w):
    w.unfinished(locked=False)
    w.processes[4711] = "99"


@case("killed", "denoiser")
def killed_where_locks_are_not_seen_by_a_restart(w):
    w.unfinished(locked=False, boot="b0")
    w.processes[4711] = "77"


@case("running", "denoiser")
def works_where_locks_are_not_seen(w):
    w.unfinished(locked=False)
    w.processes[4711] = "77"


@case("killed", "denoiser")
def alive_but_without_its_lock(w):
    """The process of a notebook may live on after the run that it executed."""
    w.unfinished()
    w.processes[4711] = "77"


@case("running", "denoiser")
def works_and_is_silent(w):
    w.unfinished(wrote=4000)
    w.locked = True


# ---- how it ended, in its own words

for sign in ("SIGTERM", "SIGUSR2", "SIGINT"):
    case("stopped", "denoiser", f"stopped by {sign}")(
        lambda w, sign=sign: (w.unfinished(ended=NOW - 50), mark_stopped(w.run, sign))
    )


@case("stopped", "denoiser")
def stopped_and_killed_before_the_record_was_written(w):
    w.unfinished()
    mark_stopped(w.run, "SIGTERM")


@case("stopped", "autoencoder")
def interrupted_by_the_user(w):
    w.unfinished(phase="autoencoder", ended=NOW - 50, how="interrupted")


@case("failed", "denoiser")
def a_rank_failed(w):
    w.unfinished()
    write_failure(w.run, 3, "no memory")


@case("failed", "denoiser")
def every_rank_failed_after_a_stop(w):
    w.unfinished(ended=NOW - 50)
    mark_stopped(w.run, "SIGTERM")
    for rank in range(3):
        write_failure(w.run, rank, f"rank {rank} lost the others", follows=rank > 0)


@case("failed", "evaluate")
def refused_before_it_began(w):
    w.unfinished(phase="evaluate", ended=NOW - 50, how="the disk is full")


@case("finished", "evaluate")
def finished(w):
    w.attempt(phase="evaluate", number=1, ended=NOW - 50)


@case("finished", "evaluate")
def finished_and_killed_before_the_record_was_written(w):
    w.attempt(phase="evaluate")


@case("finished", "evaluate")
def finished_without_a_status(w):
    w.forget(TRAINING)


@case("finished", "denoiser")
def finished_with_old_marks(w):
    """They are removed when an attempt begins; the report says more than what is left of them."""
    w.attempt(ended=NOW - 50)
    mark_stopped(w.run, "SIGTERM")


# ---- resumed


def resumed(w: World, **changes: Any) -> None:
    """A run that was finished is trained further: the report is that of before."""
    w.attempt(number=2, before=sha256(w.run / "report.html"), **changes)


@case("killed", "denoiser")
def killed_when_it_was_resumed_after_it_had_finished(w):
    resumed(w)


@case("running", "denoiser")
def resumed_after_it_had_finished(w):
    resumed(w)
    w.locked = True


@case("finished", "evaluate")
def finished_for_the_second_time(w):
    resumed(w, phase="evaluate", ended=NOW - 50)
    (w.run / "report.html").write_text("<p>of the second attempt</p>")


@case("finished", "denoiser")
def resumed_with_nothing_left_to_do(w):
    resumed(w, ended=NOW - 50)


@case("stopped", "denoiser")
def stopped_when_it_was_resumed_after_it_had_finished(w):
    resumed(w, ended=NOW - 50)
    mark_stopped(w.run, "SIGTERM")


@case("running", "denoiser")
def resumed_after_a_failure(w):
    """The marks of the attempt before are about to be removed."""
    w.unfinished(number=2)
    write_failure(w.run, 0, "no memory")
    w.locked = True


# ---- something done with a finished run


@case("running", "sample")
def finished_and_sampled(w):
    w.attempt(USE, phase="sample", began=NOW - 100)
    w.locked = True


@case("running", "posterior")
def finished_and_used_on_another_host(w):
    w.attempt(USE, phase="posterior", began=NOW - 100, **FAR)


@case("finished", "evaluate")
def finished_and_killed_while_it_was_sampled(w):
    w.attempt(USE, phase="sample", began=NOW - 100)


@case("finished", "evaluate")
def finished_and_lost_on_another_host_while_it_was_used(w):
    w.attempt(USE, phase="inpaint", began=NOW - 9000, beat=4000, **FAR)


@case("running", "denoiser")
def sampled_once_and_trained_now(w):
    w.attempt(USE, phase="sample", began=NOW - 9000, ended=NOW - 8000)
    resumed(w)
    w.locked = True


# ---- on another host


@case("running", "denoiser")
def on_another_host_with_a_fresh_heartbeat(w):
    w.job = False
    w.unfinished(**FAR)


@case("unknown", "denoiser")
def on_another_host_without_a_heartbeat_for_long(w):
    w.job = False
    w.unfinished(beat=4000, **FAR)


@case("unknown", "denoiser")
def on_another_host_whose_clock_is_far_ahead(w):
    w.job = False
    w.unfinished(beat=-4000, **FAR)


@case("running", "denoiser")
def in_another_container_of_this_host(w):
    w.job = False
    w.unfinished(place="cccc")


@case("stopped", "denoiser")
def stopped_on_another_host(w):
    w.unfinished(ended=NOW - 50, **FAR)
    mark_stopped(w.run, "SIGUSR2")


@case("unknown", "")
def locked_on_another_host_without_a_status(w):
    w.job = False
    w.forget("report.html", TRAINING)
    (w.run / ".lock").write_text("process 5 on n7")


@case("killed", "")
def killed_on_this_host_without_a_status(w):
    w.job = False
    w.forget("report.html", TRAINING)
    (w.run / ".lock").write_text("process 5 on here")


# ---- jobs of SLURM

JOB = FAR | dict(job="17")


@case("running", "denoiser")
def a_job_works(w):
    w.unfinished(beat=4000, **JOB)  # its file system shows new files late
    w.squeue("RUNNING", "n7")


@case("requeued", "denoiser")
def stopped_and_back_in_the_queue(w):
    w.unfinished(ended=NOW - 50, **JOB)
    mark_stopped(w.run, "SIGUSR2")
    w.squeue("PENDING", "(BeginTime)")


@case("requeued", "autoencoder")
def back_in_the_queue_after_its_node_failed(w):
    w.unfinished(phase="autoencoder", beat=4000, **JOB)
    w.squeue("REQUEUED")


@case("waiting", "autoencoder")
def waits_in_the_queue(w):
    w.forget("report.html", TRAINING, TABLE, "autoencoder", "log.txt")
    w.squeue("PENDING", "(Priority)")


@case("waiting", "denoiser")
def killed_here_and_submitted_to_a_cluster(w):
    w.unfinished()
    w.squeue("PENDING", "(Priority)")


@case("running", "denoiser")
def stopped_here_and_a_job_has_begun_with_it(w):
    w.unfinished(ended=NOW - 50)
    mark_stopped(w.run, "SIGTERM")
    w.squeue("RUNNING", "n7")


@case("running", "denoiser")
def starts_again_after_its_node_failed(w):
    """The marks of the attempt before are still there."""
    w.unfinished(ended=NOW - 50, **JOB)
    write_failure(w.run, 0, "lost the others")
    w.squeue("RUNNING", "n3")


for word in ("TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY"):
    case("killed", "denoiser", f"its job ended with {word}")(
        lambda w, word=word: (w.unfinished(**JOB), w.past.update({"17": word}))
    )


@case("killed", "denoiser")
def its_job_has_left_the_queue(w):
    w.unfinished(beat=4000, **JOB)


@case("running", "denoiser")
def trained_on_here_after_its_job_was_cancelled(w):
    w.unfinished(number=2)
    w.locked, w.past = True, {"17": "CANCELLED"}


@case("finished", "evaluate")
def finished_and_its_job_waits_for_the_other_runs(w):
    w.attempt(phase="evaluate", ended=NOW - 50, **JOB)
    w.squeue("PENDING")


# ---- copies, which have new dates and other inodes


def copied(w: World) -> None:
    """The folder becomes a copy of itself; its newest file is the table of the autoencoder."""
    original = w.run.with_name("original")
    w.run.rename(original)
    shutil.copytree(original, w.run, copy_function=shutil.copyfile)
    later = w.run / "autoencoder" / TABLE
    os.utime(later, (later.stat().st_mtime + 500,) * 2)


@case("copied", "denoiser")
def a_copy_on_this_host_while_it_worked(w):
    w.unfinished()
    w.processes[4711] = "77"
    copied(w)


@case("copied", "sample")
def a_copy_from_another_host_while_it_worked(w):
    w.unfinished(phase="sample", **FAR)
    copied(w)


@case("finished", "evaluate")
def a_copy_of_a_finished_run(w):
    w.attempt(phase="evaluate", ended=NOW - 50, **FAR)
    copied(w)


@case("failed", "denoiser")
def a_copy_of_a_failed_run(w):
    w.unfinished(ended=NOW - 50, **FAR)
    write_failure(w.run, 0, "no memory")
    copied(w)


@case("finished", "evaluate")
def a_copy_of_a_run_without_a_status(w):
    w.forget(TRAINING)
    copied(w)


@case("running", "denoiser")
def a_copy_that_is_trained_on(w):
    w.unfinished()
    copied(w)
    w.attempt(number=2)
    w.locked = True


@case("running", "denoiser")
def moved_while_it_worked(w):
    w.job = False
    w.unfinished(**FAR)
    w.run.rename(w.run.with_name("elsewhere"))
    w.run.with_name("elsewhere").rename(w.run)


# ---- begun, empty, half written, of somebody else


@case("created", "autoencoder")
def created(w):
    w.job = False
    w.forget("report.html", TRAINING, TABLE, "autoencoder", "log.txt")


@case("half-written", "")
def an_empty_folder(w):
    w.job = False
    shutil.rmtree(w.run)
    for part in ("checkpoints", "samples", "metrics", "plots"):
        (w.run / part).mkdir(parents=True)


@case("damaged", "")
def a_configuration_that_cannot_be_read(w):
    (w.run / "config.yaml").write_text("model: [")


@case("unknown", "")
def without_records(w):
    """As after `cp run/*`, or on a disk that was full."""
    w.job = False
    w.forget("report.html", TRAINING)


for text in ("", '{"pid": 4711, "phase": "den', '{"pid": "x"}', "[" * 5000, '{"pid": 1, "phase": "coffee"}'):
    case("unknown", "", f"a half-written record {text[:20]!r}")(
        lambda w, text=text: (w.unfinished(), setattr(w, "job", False), (w.run / TRAINING).write_text(text))
    )


@case("unknown", "")
def a_pipe_in_place_of_its_record(w):
    w.job = False
    w.forget("report.html", TRAINING)
    os.mkfifo(w.run / TRAINING)


@case("unknown", "denoiser")
def a_record_of_endless_numbers(w):
    w.job = False
    w.unfinished(began=1e308, beat=-1e308, **FAR)


@case("finished", "evaluate")
def in_a_folder_that_can_only_be_read(w):
    w.attempt(phase="evaluate", ended=NOW - 50)
    for folder in (w.run / "metrics", w.run):
        folder.chmod(0o555)


# ---- everything says the same


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory) -> Path:
    """The records of a real run of latent_diff, without its weights and pictures."""
    place = tmp_path_factory.mktemp("whole") / "run"
    leave = shutil.ignore_patterns("*.zarr", "*.safetensors", "*.png", "*.ipynb", "step-*", "epochs.csv", "report.json")
    shutil.copytree(runs("latent_diff"), place, ignore=leave)
    for name in (USE, "autoencoder/report.html"):
        (place / name).unlink(missing_ok=True)
    return place


def said_by_the_commands(run: Path, capsys) -> dict[str, tuple[str, str]]:
    """(state, phase) in the words of `runs`, `watch`, `status`, the monitor and pages, by who says it."""
    found = {}
    assert main(["runs", "list", str(run), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    found["runs"] = row["state"], row["phase"]
    assert main(["cluster", "status", "--json"]) == 0
    for job in json.loads(capsys.readouterr().out):
        found["status"] = job["run_state"], job["phase"]
    if row["state"] == "half-written" and "status" not in found:
        return found  # it is refused as no run
    watched = find_watched(run)
    assert main(["runs", "watch", str(run), "--once", "--width", "200"]) == 0
    head = capsys.readouterr().out
    s = watched.standing()
    found["watch"] = s.state, s.phase
    assert f" {s.state} " in head.splitlines()[0] and PHASES.get(s.phase, "progress") in head
    seen = TrainingFiles(find_watched(run)).look()
    found["monitor"] = seen.standing.state, seen.standing.phase
    known = run_table(run.parent).loc[str(run)]
    found["xd.runs"] = known["state"], known["phase"]
    if row["state"] != "damaged":
        opened = open_run(run)
        found["xd.open_run"] = opened.stands.state, opened.stands.phase
        assert opened.stands.sentence.partition("(")[0].strip() in opened._repr_html_()
        if not opened.stands.finished and (run / TABLE).is_file() and os.access(run, os.W_OK):
            assert main(["runs", "report", str(run)]) == 0
            capsys.readouterr()
            assert f"not finished: {opened.stands.sentence.partition('(')[0].strip()}" in (
                (run / "report-so-far.md").read_text()
            )
    return found


@pytest.mark.parametrize("name", CASES)
def test_everything_says_how_a_run_stands(name, whole, tmp_path, monkeypatch, capsys):
    make, state, phase = CASES[name]
    run = tmp_path / "output" / "run"
    shutil.copytree(whole, run)
    world = World(run)
    make(world)
    monkeypatch.setenv("XRDDIFF_STATE", str(tmp_path / "state"))
    record_submission(
        Submission(
            17, dict(kind="run", run_dirs=[str(run)]), {}, f"{tmp_path}/%j.log", "", cluster="c" if world.job else "far"
        )
    )

    def here() -> Here:
        known = dict(locked=lambda path: world.locked, start=lambda pid: world.processes.get(pid, ""))
        return Here(now=NOW, **HERE, **known)

    def away(*_: Any) -> str:
        raise XrddiffError("no such job")

    def undrawn(*_: Any) -> None:
        raise BadInput("pictures take seconds and say nothing of the state")

    monkeypatch.setattr(charts, "plot_history", undrawn)
    monkeypatch.setattr(model_card, "finish_report", lambda report, *_, **__: report)
    monkeypatch.setattr(training_monitor, "chart_pictures", lambda *_: (b"", b""))
    monkeypatch.setattr(run_numbers, "run_pictures", lambda _: [])
    monkeypatch.setattr(status, "Here", here)
    monkeypatch.setattr(job_table, "queue", lambda *_: world.queued)
    monkeypatch.setattr(job_table, "cluster_name", lambda: "c")
    monkeypatch.setattr(job_table, "past_states", lambda numbers: world.past)
    monkeypatch.setattr(ledger, "batch_script", away)
    found = said_by_the_commands(run, capsys)
    assert set(found.values()) == {(state, phase)}, found
    assert {"runs", "status"} <= set(found) if world.job else "status" not in found
    again = run_state(run, None, here())
    for path in [run, *run.rglob("*")]:
        os.utime(path, (1, 1), follow_symlinks=False)
    assert run_state(run, None, here()) == again  # whatever the dates of the files
    run.chmod(0o755), (run / "metrics").chmod(0o755)


def test_there_are_fifty():
    assert len(CASES) >= 50 and {state for _, state, _ in CASES.values()} == set(STATES)


# ---- real runs

WORDS = ["model=vae_kl", "size=tiny", "data.name=null", "data.crop=[64,64]", "threads=1", "training.batch_size=4"]
WORDS += ["training.num_epochs=1", "training.log_every=1", "training.test_pipeline=true", "run_name=one"]


def stands(run: Path) -> tuple[str, str]:
    how = run_state(run)
    return how.state, how.phase


@pytest.mark.slow
def test_a_run_that_is_copied_killed_failed_and_finished(tmp_path):
    """All of it with a real process, on this machine."""
    data, run = tmp_path / "frames.zarr", tmp_path / "output" / "vae_kl" / "one"
    save_frames(simulate("sim128", range(16)).load(), data)
    words = [*WORDS, f"data.data_path={data}", f"output_dir={tmp_path / 'output'}"]
    command = [COMMAND, "run", *words, "training.num_epochs=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path) as process:
        try:
            said = []
            while not (run / TABLE).is_file() or len((run / TABLE).read_text().splitlines()) < 3:
                said.append(process.stdout.read1())
                assert process.poll() is None, b"".join(said)
            assert stands(run) == ("running", "autoencoder") and f"process {process.pid} on" in run_state(run).why
            copy = tmp_path / "copy"
            with contextlib.suppress(shutil.Error):  # part of a checkpoint went away; all else is copied
                shutil.copytree(run, copy, copy_function=shutil.copyfile)
            assert stands(copy) == ("copied", "autoencoder") and stands(run)[0] == "running"
        finally:
            process.send_signal(signal.SIGKILL)
    assert stands(run) == ("killed", "autoencoder") and f"process {process.pid} on" in run_state(run).why
    assert stands(copy) == ("copied", "autoencoder")
    assert stands(shutil.move(copy, tmp_path / "moved")) == ("copied", "autoencoder")

    table = (run / TABLE).rename(run / "kept.csv")
    (run / TABLE).mkdir()  # where the training wants to write its table
    resume = [f"resume={run}", "training.num_epochs=1"]
    failed = xrddiff("run", *resume, folder=tmp_path, check=False)
    assert failed.returncode and stands(run) == ("failed", "autoencoder") and run_state(run).why, failed.stderr
    (run / TABLE).rmdir()
    table.rename(run / TABLE)
    xrddiff("run", *resume, folder=tmp_path)
    assert stands(run) == ("finished", "evaluate") and run_state(run).finished
    assert stands(shutil.copytree(run, tmp_path / "later", copy_function=shutil.copyfile)) == ("finished", "evaluate")


@pytest.mark.slow
def test_what_a_real_run_has_written(runs):
    """Its last phase, one attempt, and the latent model that it evaluated; then it is sampled."""
    run = runs("latent_diff")
    record = json.loads((run / TRAINING).read_text())
    assert stands(run) == ("finished", "evaluate") and record["number"] == 1 and record["ended"] >= record["began"]
    assert not (run / ".lock").read_text()
    xrddiff("sample", str(run), "-n", "2", "--name", "two", folder=run.parent)
    assert stands(run) == ("finished", "evaluate")
    used = json.loads((run / USE).read_text())
    assert (used["phase"], used["how"]) == ("sample", "") and used["ended"] >= used["began"]
    assert json.loads((run / TRAINING).read_text()) == record
