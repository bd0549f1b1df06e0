"""Run notebooks: both engines, live output, failures, signals, the run folder."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from xrddiff.config.plan import compose_plan, saved_plan
from xrddiff.config.saved_config import load_config
from xrddiff.core.errors import BadInput, XrddiffError
from xrddiff.core.files import write_text
from xrddiff.core.gate import read_json
from xrddiff.run.execution import notebooks
from xrddiff.run.execution import phases as jobs
from xrddiff.run.execution import run_folder as runs
from xrddiff.run.execution.live import CellStream, LineLog, LiveOutput, Screen
from xrddiff.run.execution.notebooks import NotebookFailed, run_notebook
from xrddiff.run.execution.phases import execute_run
from xrddiff.run.execution.run_folder import create_run, hold_run, open_run, reopen_run

ENGINES = ("inprocess", "kernel")


def write_notebook(path, *cells):
    """A notebook of these code cells; the first is its parameters cell, text that starts with # is a heading."""
    nb = nbformat.v4.new_notebook()
    for source in cells:
        make = nbformat.v4.new_markdown_cell if source.startswith("# ") else nbformat.v4.new_code_cell
        nb.cells.append(make(source))
    nb.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, path)
    return path


def outputs(path):
    return [o for c in nbformat.read(path, 4).cells if c.cell_type == "code" for o in c.outputs]


# ---------------------------------------------------------------- both engines


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs(tmp_path, engine):
    outer = plt.figure()  # of whoever executes the notebook: no output of it, and open afterwards
    before = plt.get_fignums()
    source = write_notebook(
        tmp_path / "toy.ipynb",
        "n = 1\nname = 'a'\nwords = []",
        "# A section",
        "print(n, name, words)",
        "import matplotlib.pyplot as plt\nprint('before')\nplt.figure(figsize=(1, 1)).gca().plot([1, 2])\nplt.show()\nprint('after')",
        "{'table': n}",
        "n;",
        "from IPython.display import update_display\ndisplay('one', display_id='x')\nupdate_display('two', display_id='x')",
        "from IPython.display import clear_output\nprint('gone')\nclear_output()\nprint('stays')",
        "from tqdm import tqdm\nfor _ in tqdm(range(20), desc='bar', mininterval=0, bar_format='{desc} {n}'): pass",
        "__name__",
    )
    target, log = tmp_path / "notebook.ipynb", tmp_path / "log.txt"
    assert run_notebook(source, target, dict(n=2, words=["a=1"]), engine=engine, log=log, terminal=False) == target
    found = [
        o.get("text") or o.get("data", {}).get("text/plain") if "image/png" not in o.get("data", {}) else "png"
        for o in outputs(target)
    ]
    wanted = [
        "2 a ['a=1']\n",
        "before\n",
        "png",
        "after\n",
        "{'table': 2}",
        "'two'",
        "stays\n",
        "bar 20\n",
        "'__main__'",
    ]
    assert found == wanted
    assert plt.get_fignums() == before
    plt.close(outer)
    cells = nbformat.read(target, 4).cells
    assert [c.execution_count for c in cells if c.cell_type == "code"] == list(range(1, 11))
    assert [c.metadata.tags for c in cells if c.metadata.get("tags")] == [["parameters"], ["injected-parameters"]]
    text = log.read_text()
    assert "== A section" in text and "bar 20" in text and "\r" not in text
    nbformat.validate(nbformat.read(target, 4))


@pytest.mark.parametrize("engine", ENGINES)
def test_failure_keeps_the_notebook(tmp_path, engine, capsys):
    source = write_notebook(tmp_path / "toy.ipynb", "n = 0", "print('so far')\n1 / n", "print('not reached')")
    target, log = tmp_path / "notebook.ipynb", tmp_path / "log.txt"
    with pytest.raises(NotebookFailed) as failed:
        run_notebook(source, target, dict(n=0), engine=engine, log=log)
    assert "cell [3] with ZeroDivisionError: division by zero" in str(failed.value) and str(target) in str(failed.value)
    kinds = [o.get("ename") or o.text for o in outputs(target)]
    assert kinds == ["so far\n", "ZeroDivisionError"]
    assert "papermill-error-cell" in target.read_text()  # papermill marks the place
    assert "ZeroDivisionError" in log.read_text()
    assert "ZeroDivisionError" in capsys.readouterr().err  # nobody expected it: the traceback is shown


@pytest.mark.parametrize("engine", ENGINES)
def test_refusal_is_a_sentence(tmp_path, engine, capsys):
    source = write_notebook(
        tmp_path / "toy.ipynb", "n = 0", "from xrddiff.core.errors import BadInput\nraise BadInput('n: found 0')"
    )
    target, log = tmp_path / "notebook.ipynb", tmp_path / "log.txt"
    with pytest.raises(BadInput, match="^n: found 0"):
        run_notebook(source, target, engine=engine, log=log)
    assert "Traceback" not in "".join(capsys.readouterr())
    assert "Traceback" in log.read_text() or "BadInput" in log.read_text()
    assert [o.ename for o in outputs(target)] == ["BadInput"]


@pytest.mark.parametrize("engine", ENGINES)
def test_sys_exit_ends_in_order(tmp_path, engine):
    source = write_notebook(
        tmp_path / "toy.ipynb", "n = 0", "import sys\nprint('checkpoint')\nsys.exit()", "print('not reached')"
    )
    run_notebook(source, tmp_path / "a.ipynb", engine=engine, terminal=False)
    assert [o.text for o in outputs(tmp_path / "a.ipynb") if "text" in o and o.name == "stdout"] == ["checkpoint\n"]
    source = write_notebook(tmp_path / "toy.ipynb", "n = 0", "import sys\nsys.exit(3)")
    with pytest.raises(NotebookFailed, match="SystemExit"):
        run_notebook(source, tmp_path / "b.ipynb", engine=engine, terminal=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_syntax_error(tmp_path, engine):
    source = write_notebook(tmp_path / "toy.ipynb", "n = 0", "if n")
    with pytest.raises(NotebookFailed, match="SyntaxError"):
        run_notebook(source, tmp_path / "b.ipynb", engine=engine, terminal=False)


def test_a_dead_kernel(tmp_path):
    source = write_notebook(tmp_path / "toy.ipynb", "n = 0", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookFailed, match="died"):
        run_notebook(source, tmp_path / "b.ipynb", engine="kernel", terminal=False)
    assert (tmp_path / "b.ipynb").exists()


def test_the_kernel_is_not_on_the_network(tmp_path):
    cell = "import ipykernel.kernelapp as k\nprint(k.IPKernelApp.instance().transport, k.IPKernelApp.instance().ip)"
    source = write_notebook(
        tmp_path / "toy.ipynb",
        "n = 0",
        cell + "\nimport os; print(os.stat(os.path.dirname(k.IPKernelApp.instance().ip)).st_mode & 0o777)",
    )
    run_notebook(source, tmp_path / "b.ipynb", engine="kernel", terminal=False)
    transport, rest = outputs(tmp_path / "b.ipynb")[0].text.split(" ", 1)
    folder, mode = rest.split("\n")[:2]
    assert transport == "ipc" and mode == str(0o700)
    assert not Path(folder).parent.exists()  # gone with the kernel


def test_in_process_leaves_no_trace(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "home" / ".ipython"))
    other = tmp_path / "other" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    other.mkdir(parents=True)  # of an environment that the user's shell has activated, whose packages are not ours
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "other"))
    source = write_notebook(
        tmp_path / "toy.ipynb", "n = 0", "import matplotlib.pyplot as plt\nfig = plt.figure()\nbig = list(range(9))"
    )
    before = (
        sys.stdout,
        sys.stderr,
        sys.displayhook,
        sys.modules["__main__"],
        list(sys.path),
        signal.getsignal(signal.SIGUSR2),
    )
    figures = plt.get_fignums()  # those that other tests left open
    for _ in range(2):
        run_notebook(source, tmp_path / "b.ipynb", terminal=False)
    assert before == (
        sys.stdout, sys.stderr, sys.displayhook, sys.modules["__main__"], list(sys.path), signal.getsignal(signal.SIGUSR2)
    )  # fmt: skip
    assert not (tmp_path / "home").exists()
    assert plt.get_fignums() == figures


# ---------------------------------------------------------------- parameters and files


def test_parameters_are_checked_before_anything_runs(tmp_path):
    source = write_notebook(tmp_path / "toy.ipynb", "steps: int = 3\nlr = 1e-3\nrun_dir = None\nwords = []")
    target = tmp_path / "b.ipynb"
    for wrong, sentence in (
        (dict(step=1), "did you mean 'steps'"),
        (dict(words="a"), "expected list"),
        (dict(steps="3"), "expected int"),
    ):
        with pytest.raises(BadInput, match=sentence):
            run_notebook(source, target, wrong, terminal=False)
    assert not target.exists()
    run_notebook(source, target, dict(steps=1, lr=1, run_dir="x", words=[1]), terminal=False)
    (tmp_path / "plain.ipynb").write_text(
        nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]))
    )
    with pytest.raises(BadInput, match="no cell is tagged 'parameters'"):
        run_notebook(tmp_path / "plain.ipynb", target, dict(a=1))


def test_what_is_no_notebook(tmp_path):
    with pytest.raises(BadInput, match="cannot read|does not exist"):
        run_notebook(tmp_path / "none.ipynb", tmp_path / "b.ipynb")
    for content in ("", "{", "{}", '{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}'):
        (tmp_path / "broken.ipynb").write_text(content)
        with pytest.raises(BadInput, match="broken.ipynb"):
            run_notebook(tmp_path / "broken.ipynb", tmp_path / "b.ipynb")
    source = write_notebook(tmp_path / "toy.ipynb", "n = 0")
    with pytest.raises(BadInput, match="did you mean 'kernel'"):
        run_notebook(source, tmp_path / "b.ipynb", engine="kernl")
    with pytest.raises(BadInput, match="log"):
        run_notebook(source, tmp_path / "b.ipynb", log=tmp_path / "no" / "log.txt")
    with pytest.raises(BadInput, match="no run notebook 'nothing'"):
        notebooks.run_notebook_path("nothing")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "config.yaml", "old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(XrddiffError, match="config.yaml: the disk is full"):
        write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    source = write_notebook(tmp_path / "toy.ipynb", "n = 0")
    with pytest.raises(XrddiffError, match="b.ipynb: the disk is full"):
        run_notebook(source, tmp_path / "b.ipynb", terminal=False)


def test_a_log_on_a_full_disk(tmp_path, capsys):
    source = write_notebook(tmp_path / "toy.ipynb", "n = 0")
    with pytest.raises(BadInput, match="cannot write to /dev/full: it is not a regular file"):
        run_notebook(source, tmp_path / "b.ipynb", log="/dev/full")
    full = open("/dev/full", "w")
    out = LiveOutput(full)
    for i in range(3):  # it fills up later: the run goes on
        print("line", i, file=CellStream(out, "stdout"))
    out.finish()
    assert out.outputs()[0]["text"] == "line 0\nline 1\nline 2\n"
    shown, err = capsys.readouterr()
    assert shown == "line 0\nline 1\nline 2\n" and err == "\nthe log ends here: No space left on device\n"
    with pytest.raises(OSError):
        full.close()


# ---------------------------------------------------------------- while it runs

DRIVER = """
import sys
from xrddiff.run.execution.notebooks import run_notebook
try:
    run_notebook(*sys.argv[1:3], engine=sys.argv[3], log=sys.argv[4])
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(tmp_path, engine, *cells, **popen):
    source, target, log = (
        write_notebook(tmp_path / "toy.ipynb", *cells),
        tmp_path / "notebook.ipynb",
        tmp_path / "log.txt",
    )
    command = [sys.executable, "-c", DRIVER, str(source), str(target), engine, str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)
    return process, target, log


def wait_for(text, log, process, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if log.exists() and text in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{text!r} did not appear: {process.communicate() if process.poll() is not None else ''}")


@pytest.mark.parametrize("engine", ENGINES)
def test_output_is_live_and_a_kill_leaves_a_notebook(tmp_path, engine):
    process, target, log = start(
        tmp_path, engine, "n = 0", "print('done: 1')", "import time\nprint('begun', flush=True)\ntime.sleep(60)"
    )
    try:
        wait_for("begun", log, process)
    finally:
        process.kill()
        shown = process.communicate()[0]
    assert "begun" in shown
    assert [o.text for o in outputs(target)][:1] == ["done: 1\n"]  # whole, with what had ended


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c(tmp_path, engine):
    process, target, log = start(
        tmp_path, engine, "n = 0", "import time\nprint('begun', flush=True)\ntime.sleep(60)", "print('no')"
    )
    wait_for("begun", log, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert [o.get("ename", o.get("text")) for o in outputs(target)] == ["begun\n", "KeyboardInterrupt"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_usr2_reaches_the_notebook_and_does_not_kill_it(tmp_path, engine):
    trainer = """
import signal, sys, time
print('early', flush=True)
time.sleep(2)
asked = []
signal.signal(signal.SIGUSR2, lambda *a: asked.append(1))
print('training', flush=True)
while not asked:
    time.sleep(0.05)
print('checkpoint')
sys.exit()
"""
    process, target, log = start(tmp_path, engine, "n = 0", trainer, "print('not reached')")
    wait_for("early", log, process)
    process.send_signal(signal.SIGUSR2)  # before the trainer listens: must not kill
    wait_for("training", log, process)
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=30)
    assert process.returncode == 0
    said = "".join(o.get("text", "") for o in outputs(target))
    assert "checkpoint" in said and "not reached" not in said


@pytest.mark.slow
def test_a_terminal_that_goes_away(tmp_path):
    cell = "import time\nfor i in range(40):\n    print('line', i, flush=True); time.sleep(0.05)"
    process, target, log = start(tmp_path, "inprocess", "n = 0", cell)
    wait_for("line 3", log, process)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=30) == 0
    assert "line 39" in log.read_text() and "line 39" in outputs(target)[0].text


@pytest.mark.slow
def test_a_bar_moves_on_a_terminal(tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    source = write_notebook(
        tmp_path / "toy.ipynb", "n = 0", "from tqdm import tqdm\nfor _ in tqdm(range(5), mininterval=0): pass"
    )
    command = [
        sys.executable,
        "-c",
        DRIVER,
        str(source),
        str(tmp_path / "b.ipynb"),
        "inprocess",
        str(tmp_path / "log.txt"),
    ]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with pytest.raises(OSError):  # Linux says so when the other end is closed
        while chunk := os.read(ours, 4096):
            shown += chunk
    assert process.wait() == 0
    assert shown.count(b"\r") > 3 and b"5/5" in shown
    assert "\r" not in (tmp_path / "log.txt").read_text()


# ---------------------------------------------------------------- screens


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\nb\n", "a\nb\n"),
        ("10%\r20%", "20%"),
        ("long line\rab", "abng line"),
        ("ab\b\bX", "Xb"),
        ("one\ntwo\x1b[Athree", "onethree\ntwo"),
        ("abc\r\x1b[Kd", "d"),
        ("\x1b[31mred\x1b[0m\n", "\x1b[31mred\x1b[0m\n"),
        ("a\r\nb", "a\nb"),
        ("", ""),
        ("\x1b[A\x1b[5Aup", "up"),
    ],
)
def test_screen(text, seen):
    screen = Screen()
    screen.write(text)
    assert screen.text() == seen
    by_letter = Screen()
    parts = text.replace("\x1b[A", "\0").replace("\x1b[K", "\1").replace("\x1b[5A", "\2")
    for c in parts if "\x1b" not in parts else [text]:
        by_letter.write({"\0": "\x1b[A", "\1": "\x1b[K", "\2": "\x1b[5A"}.get(c, c))
    assert by_letter.text() == seen


def test_log_is_bounded():
    now = [0.0]
    log = LineLog(StringIO(), clock=lambda: now[0])
    for i in range(36_000):  # an hour of a bar
        now[0] += 0.1
        log.write(f"\r{i}")
    log.finish()
    lines = log.file.getvalue().splitlines()
    assert 60 < len(lines) < 400 and lines[-1] == "35999"


def test_streams_from_threads():
    import threading

    out = LiveOutput(terminal=False)
    threads = [
        threading.Thread(target=lambda: [print("x" * 20, file=CellStream(out, "stdout")) for _ in range(200)])
        for _ in range(4)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert out.outputs()[0]["text"].replace("\n", "") == "x" * 20 * 800


# ---------------------------------------------------------------- the run folder


@pytest.fixture
def plan(tmp_path):
    return compose_plan([f"output_dir={tmp_path}/output", "data=sim128", "experiment_type=test", "model=vae_kl_8"])


def test_folder(tmp_path, plan):
    path = create_run(plan)
    assert (
        path.relative_to(tmp_path).parts[:2] == ("output", "vae_kl_8_test")
        and len(path.relative_to(tmp_path).parts) == 4
    )
    assert {p.name for p in path.iterdir()} == {"config.yaml", "plan.yaml", "environment.json", *runs.PARTS}
    assert saved_plan(path) == plan and (path / "plan.yaml").read_text() == plan.text
    env = json.loads((path / "environment.json").read_text())
    assert env["packages"]["numpy"] and env["ranks"] == 1 and env["host"]


def test_collisions_get_a_suffix(tmp_path):
    plan = compose_plan([f"output_dir={tmp_path}", "run_name=study/one"])
    assert [create_run(plan).name for _ in range(3)] == ["one", "one-2", "one-3"]


@pytest.mark.parametrize("where", ["file/below", "/proc/nothing"])
def test_an_unwritable_output_folder(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot keep a run in .*: .*output_dir="):
        create_run(compose_plan([f"output_dir={where}"]))


def test_open_run(tmp_path, plan, monkeypatch):
    run = open_run(plan)
    assert open_run(plan, run.path) == run and run.is_main and run.report == run.path / "report.html"
    named = open_run(plan, tmp_path / "by" / "hand")
    assert named.path == tmp_path / "by" / "hand" and saved_plan(named.path) == plan
    (tmp_path / "other").mkdir()
    with pytest.raises(BadInput, match="no config.yaml"):
        open_run(plan, tmp_path / "other")
    with pytest.raises(BadInput, match="was started with data.limit=256"):
        open_run(compose_plan(["data=sim128", "experiment_type=test", "model=vae_kl_8", "data.limit=5"]), run.path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(BadInput, match="2 ranks need one run folder"):
        open_run(plan)


def test_threads(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "9")
    open_run(compose_plan([f"output_dir={tmp_path}", "threads=1"]))
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_former_attempts_are_kept(plan):
    path = create_run(plan)
    for n, text in enumerate(("first", "second", "third"), 1):
        (path / "notebook.ipynb").write_text(text)
        reopen_run(compose_plan([f"resume={path}"]))
        assert (path / f"notebook.{n}.ipynb").read_text() == text and not (path / "notebook.ipynb").exists()
    assert not list(path.glob("config.*.yaml"))  # it did not change
    reopen_run(compose_plan([f"resume={path}", "training.num_epochs=99"]))
    assert (
        load_config(path / "config.yaml").training.num_epochs == 99 and load_config(path / "config.yaml").resume is None
    )
    assert load_config(path / "config.4.yaml") == plan.config


def test_one_attempt_at_a_time(tmp_path):
    code = "import sys, time\nfrom xrddiff.run.execution.run_folder import hold_run\nwith hold_run(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=f"process {process.pid}"), hold_run(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()
    with hold_run(tmp_path):  # a killed holder holds nothing
        pass


# ---------------------------------------------------------------- a whole run

TOY_RUN = (
    'model = "vae_kl"\nexperiment_type = "train"\ndata = "full"\noverrides = []\nrun_dir = None',
    "# Train",
    "from xrddiff.run.execution.run_folder import open_run\nfrom xrddiff.config.plan import compose_plan\n"
    'plan = compose_plan([f"model={model}", f"experiment_type={experiment_type}", f"data={data}", *overrides])\n'
    "run = open_run(plan, run_dir)\nepochs = plan.training.either.num_epochs",
    'done = run.checkpoints / "done.txt"\nfirst = int(done.read_text()) if done.exists() else 0\n'
    "for epoch in range(first, epochs):\n"
    "    if epoch == 2 and first < 2:\n        raise RuntimeError('power cut')\n"
    '    run.write_text("checkpoints/done.txt", str(epoch + 1))\nprint(f"epochs {first} to {epochs}")',
    'run.write_json("metrics/summary.json", {"epochs": epochs, "size": plan.size})\n'
    'run.write_text("report.html", "<p>done</p>");',
)


@pytest.fixture
def toy_run(tmp_path, monkeypatch):
    source = write_notebook(tmp_path / "toy.ipynb", *TOY_RUN)
    monkeypatch.setattr(jobs, "run_notebook_path", lambda name: source)
    monkeypatch.chdir(tmp_path)
    return source


@pytest.mark.parametrize("engine", ENGINES)
def test_execute_and_resume(toy_run, engine):
    words = ["model=vae_kl", "data=sim128", "size=small", "training.num_epochs=3", f"engine={engine}"]
    seen = []
    with pytest.raises(NotebookFailed, match="power cut"):
        execute_run(words, on_start=seen.append, terminal=False)
    (path,) = seen
    assert (path / "checkpoints" / "done.txt").read_text() == "2"
    assert execute_run([f"resume={path}", "training.num_epochs=4"], terminal=False) == path
    assert read_json(path / "metrics" / "summary.json") == {"epochs": 4, "size": "small"}
    assert {"notebook.ipynb", "notebook.1.ipynb", "environment.1.json", "config.1.yaml", "log.txt"} <= {
        p.name for p in path.iterdir()
    }
    assert (
        "epochs 2 to 4" in (path / "notebook.ipynb").read_text()
        and "power cut" in (path / "notebook.1.ipynb").read_text()
    )
    assert "power cut" in (path / "log.txt").read_text() and "epochs 2 to 4" in (path / "log.txt").read_text()


def test_run_all_by_hand_is_the_same_run(toy_run, tmp_path):
    by_command = execute_run(["experiment_type=test", "data=sim128", "training.num_epochs=1"], terminal=False)
    parameters = dict(experiment_type="test", data="sim128", overrides=["training.num_epochs=1"])
    run_notebook(toy_run, tmp_path / "by_hand.ipynb", parameters, terminal=False)
    (by_hand,) = [p.parent for p in Path("output").rglob("config.yaml") if p.parent.absolute() != by_command.absolute()]
    assert load_config(by_hand / "config.yaml") == load_config(by_command / "config.yaml")
    assert (by_hand / "metrics" / "summary.json").read_text() == (by_command / "metrics" / "summary.json").read_text()
