"""Every child process: isolated from the folder in which somebody types a command, with the environment it needs, within limits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import warm
from conftest import SMALL, clean_environment, need
from lab import end_server

from xrddiff.app.verbs.main import build_parser
from xrddiff.app.verbs.verb import Parser
from xrddiff.core import launcher
from xrddiff.run.execution import run_folder
from xrddiff.run.execution.detached_runs import LaunchedRun

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name("xrddiff")

# Files that the tools we start read where they find them, and would execute.
SETTINGS = (
    "jupyter_config jupyter_server_config jupyter_lab_config jupyter_notebook_config ipython_config "
    "ipython_kernel_config sitecustomize usercustomize conftest setup __main__ hostile_backend"
).split()


@cache
def names() -> set[str]:
    """Python's own modules, those of every installed package, and ours."""
    found = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), *SETTINGS, "xrddiff"}
    assert found > {"pip", "torch", "h5py", "yaml", "numpy", "fabio", "random", "pickle", "jupyterlab", "distributed"}
    return {name for name in found if name.isidentifier()}


class Hostile:
    """A folder with frames of somebody else, and beside them a module under each name that a Python might look for.

    Each writes a mark when it is executed, and does nothing else.
    """

    def __init__(self, folder: Path):
        self.folder, self.marks = folder / "theirs", folder / "executed"
        for path in (self.folder, self.marks, folder / "state"):
            path.mkdir()
        self.modules(self.folder)
        (self.folder / "matplotlibrc").write_text("backend: module://hostile_backend\n")
        about = self.folder / "hostile-1.0.dist-info"  # as if it were installed, with a plug-in for everybody
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
        groups = ("xrddiff", "xarray.backends", "papermill.engine", "fsspec.specs", "matplotlib.backend", "dask.sizeof")
        points = [f"[{group}]\nhostile = hostile_backend\n" for group in groups]
        (about / "entry_points.txt").write_text("".join(points))
        self.env = clean_environment() | {
            "XRDDIFF_STATE": str(folder / "state"),
            "PIP_NO_INDEX": "1",  # pip is started, and has nowhere to ask
            "IPYTHONDIR": str(folder / "ipython"),
            **{f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")},
        }
        for name in ("PYTHONSAFEPATH", "MPLBACKEND"):
            self.env.pop(name, None)

    def modules(self, folder: Path) -> None:
        """A module under each of these names."""
        names = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), *SETTINGS, "xrddiff"}
        assert names > {
            "pip",
            "torch",
            "h5py",
            "yaml",
            "numpy",
            "fabio",
            "random",
            "pickle",
            "jupyterlab",
            "distributed",
        }
        for name in names:
            (folder / f"{name}.py").write_text(f"open({str(self.marks / name)!r}, 'w').close()\n")

    def executed(self) -> list[str]:
        return sorted(path.name for path in self.marks.iterdir())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Hostile:
    return Hostile(tmp_path_factory.mktemp("hostile"))


def test_without_the_launcher_they_would_be_executed(hostile, tmp_path):
    """The marks are real: a Python that is started as everybody starts one executes these modules."""
    one = Hostile(tmp_path)
    subprocess.run([sys.executable, "-m", "pip", "--version"], cwd=one.folder, env=one.env, capture_output=True)
    assert one.executed() != []


# The commands, with words with which each does what it is for; {names} are made by the fixture `filled`.
TINY = ["model=vae_kl", *SMALL, "data.limit=16"]
COMMANDS = {
    "run": ["run", *TINY, "engine=kernel", "run_name=kernel"],
    "sample": ["sample", "{ddpm}", "-n", "2", "inference.steps=2", "--workers", "local:1"],
    "posterior inpaint": ["posterior", "inpaint", "{ddpm}", "--frames", "shots.h5", "--mask", "mask.npy", "--limit", "1", "--draws", "1", "inference.steps=2"],
    "posterior interpolate": ["posterior", "interpolate", "{ddpm}", "shots.h5:0", "shots.h5:1", "-n", "3", "inference.steps=2"],
    "evaluate": ["evaluate", "frames.h5", "--reference", "frames.h5", "--limit", "4"],
    "twin": ["twin", "many.h5", "-n", "1", "--distance-range", "0"],
    "recover": ["recover", "many.h5", "--program", "ours"],
    "merge": ["merge", "many.h5", "--draws", "5"],
    "posterior pixels": ["posterior", "pixels", "{ddpm}", "--frames", "shots.h5", "--limit", "1", "--draws", "2", "--method", "interpolation"],
    "posterior crystal": ["posterior", "crystal", "frames.h5", "--particles", "2", "--sampler", "laplace"],
    "stream": ["stream", "frames.h5", "-n", "2", "--page", "0"],
    "data replay": ["data", "replay", "frames.h5", "tcp://127.0.0.1:0", "--wait", "1"],
    "runs report": ["runs", "report", "{ddpm}"],
    "export": ["export", "{ddpm}", "--format", "onnx", "inference.steps=2"],
    "data list": ["data", "list"],
    "data fetch": ["data", "fetch", "pilatus-reflectivity"],
    "data simulate": ["data", "simulate", "sim128", "-n", "2", "-o", "more.h5"],
    "data inspect": ["data", "inspect", "image.cbf", "wavelength=1", "distance=0.1", "pixel_size=1e-4", "beam_center=[32,32]"],
    "data mask": ["data", "mask", "frames.h5", "-o", "bad.npy"],
    "data index": ["data", "index", "frames.h5", "--controls", "2"],
    "data convert": ["data", "convert", "frames.h5", "copy.h5"],
    "config list": ["config", "list"],
    "config check": ["config", "check", "{plugin}"],
    "config completion": ["config", "completion", "bash"],
    "config show": ["config", "show", "{ddpm}"],
    "config diff": ["config", "diff", "{ddpm}", "{ddpm}"],
    "runs watch": ["runs", "watch", "{ddpm}", "--once"],
    "cluster submit": ["cluster", "submit", "--local", "--profile", "debug", "--script", "{script}"],
    "cluster status": ["cluster", "status"],
    "cluster logs": ["cluster", "logs", "4711"],
    "cluster cancel": ["cluster", "cancel", "4711"],
    "cluster resume": ["cluster", "resume", "4711"],
    "cluster profiles": ["cluster", "profiles"],
    "cluster comm-test": ["cluster", "comm-test", "--sizes", "4", "--rounds", "1"],
    "cluster scaling": ["cluster", "scaling", "--params", "{ddpm}", "--bandwidth", "10"],
    "cluster accelerate-config": ["cluster", "accelerate-config", "debug"],
    "runs list": ["runs", "list", "."],
    "runs compare": ["runs", "compare", "{ddpm}", "{other}"],
    "sweep": ["sweep", "sweep.yaml"],
    "lab": [],  # it does not end by itself: a test of its own
}  # fmt: skip
SLURM = {
    f"cluster {name}" for name in ("status", "logs", "cancel", "resume")
}  # there is no cluster: refused when squeue is asked
MAY_FAIL = SLURM | {"data fetch", "data replay"}


def leaves(parser: Parser, words: tuple[str, ...] = ()) -> Iterator[str]:
    """The commands of a parser, with the commands of these."""
    for name, below in parser.commands.items():
        yield from leaves(below, (*words, name))
    if not parser.commands:
        yield " ".join(words)


def test_every_command_is_among_those_tried():
    assert set(leaves(build_parser())) == set(COMMANDS)


@pytest.fixture(scope="module")
def filled(hostile, runs) -> dict[str, object]:
    """The folder with frames, a picture, a mask, a sweep and a trained run; what stands for {names} in words of commands."""
    import fabio.cbfimage
    import numpy as np

    for name, file, n in (("sim128", "frames.h5", "2"), ("sim-422", "shots.h5", "2"), ("sim128", "many.h5", "12")):
        made = ["data", "simulate", name, "-n", n, "-o", file]
        warm.run("xrddiff", *made, cwd=hostile.folder, env=hostile.env, check=True)
    fabio.cbfimage.CbfImage(data=np.ones((64, 64), np.int32)).write(str(hostile.folder / "image.cbf"))
    np.save(hostile.folder / "mask.npy", np.arange(512 * 512).reshape(512, 512) % 7 > 0)
    sweep = dict(method="random", run_cap=1, metric={"name": "peak F1"}, words=TINY)
    sweep |= dict(parameters={"training.lr": {"values": [1e-3]}})
    (hostile.folder / "sweep.yaml").write_text(json.dumps(sweep))
    without = shutil.ignore_patterns("exported")  # of the tests of exports, in the same process
    ddpm, other = (
        shutil.copytree(runs("ddpm"), hostile.folder / name, ignore=without) for name in ("trained", "other")
    )
    script, plugin = (hostile.folder.with_name(name) for name in ("own.py", "plugin.py"))
    script.write_text("import torch; print(torch.__version__)")
    plugin.write_text(
        "from xrddiff.core.registry import register\n\n\n@register('metric', 'mean count', of='frames')\n"
        "def mean_count(frames):\n    return frames.intensity.where(frames.mask).mean(['y', 'x']).values\n"
    )
    return dict(ddpm=ddpm, other=other, script=script, plugin=plugin)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"lab"}))
def test_no_command_executes_what_lies_in_the_present_folder(hostile, filled, name):
    words = [word.format(**filled) if "{" in word else word for word in COMMANDS[name]]
    empty = {"XRDDIFF_CACHE": str(hostile.folder.with_name("cache"))} if name == "data fetch" else {}
    done = warm.run("xrddiff", *words, cwd=hostile.folder, env=hostile.env | empty)
    assert hostile.executed() == []
    said = done.stdout[-2000:] + done.stderr[-2000:]
    assert done.returncode in ((0, 1, 2) if name in MAY_FAIL else (0,)), said
    assert "Traceback" not in said
    assert name != "data fetch" or "islatu" in done.stderr  # pip was asked


@pytest.mark.slow
@pytest.mark.parametrize("words", [["data", "inspect", "frames.h5"], ["config", "list"]], ids=" ".join)
def test_nor_does_one_that_has_imported_nothing_yet(hostile, filled, words):
    """The commands above are forked from a process that has imported; these start as from a terminal."""
    done = subprocess.run([COMMAND, *words], cwd=hostile.folder, env=hostile.env, capture_output=True, text=True)
    assert hostile.executed() == []
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_nor_does_a_run_that_a_notebook_starts(hostile, monkeypatch):
    for name, value in hostile.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(hostile.folder)
    launched = LaunchedRun(["model=vae_kl", "training.lr=-1"])
    assert launched.process.wait(120) == 2 and "lr" in launched.problem
    assert hostile.executed() == []


def get(url: str, token: str, **body: object) -> dict:
    request = urllib.request.Request(f"{url}?token={token}", json.dumps(body).encode() if body else None)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@contextlib.contextmanager
def talk(client):
    """The client of a kernel, when the kernel answers."""
    if client.connection_file:
        client.load_connection_file()
    client.start_channels(hb=False)  # on a busy machine a beat comes late
    try:
        client.wait_for_ready(timeout=300)
        yield client
    finally:
        client.stop_channels()


def listens(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{url}api", timeout=60))
    except OSError:
        return False


@pytest.mark.slow
def test_nor_does_jupyterlab(hostile, tmp_path):
    """It is started in the folder, on tutorials that somebody put there with settings; then a kernel is, in it."""
    need("jupyterlab")
    from jupyter_client.blocking import BlockingKernelClient

    theirs = hostile.folder / "xrddiff-tutorials"
    for folder in (theirs, theirs / ".xrddiff" / "config", theirs / ".xrddiff" / "share"):
        folder.mkdir(parents=True)
        hostile.modules(folder)
    command = [COMMAND, "lab", "--no-browser", "--", "--port=0", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    with open(tmp_path / "log", "w") as out:
        server = subprocess.Popen(
            command, cwd=hostile.folder, env=hostile.env, stdout=out, stderr=out, start_new_session=True
        )
    runtime = Path(hostile.env["JUPYTER_RUNTIME_DIR"])
    try:
        while not (found := list(runtime.glob("jpserver-*.json"))) or not found[0].read_text():
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        said = json.loads(found[0].read_text())
        assert said["root_dir"] == str(theirs)
        while not listens(said["url"]):
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        kernel = get(f"{said['url']}api/kernels", said["token"], name="xrddiff")
        with talk(BlockingKernelClient(connection_file=str(runtime / f"kernel-{kernel['id']}.json"))) as client:
            client.execute("import fabio", reply=True, timeout=120)
        assert hostile.executed() == []
    finally:
        end_server(server)


@pytest.mark.slow
def test_a_notebook_imports_what_lies_beside_it_after_all_others(tmp_path, monkeypatch):
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import KernelManager

    from xrddiff.app.verbs.lab import prepare_jupyter

    monkeypatch.setenv("XRDDIFF_STATE", str(tmp_path / "state"))
    share = Path(prepare_jupyter(tmp_path, {})["JUPYTER_PATH"])
    (tmp_path / "mine.py").write_text("value = 7")
    (tmp_path / "colorsys.py").write_text("raise SystemExit")
    manager = KernelManager()
    manager._kernel_spec = KernelSpec(**json.loads((share / "kernels/xrddiff/kernel.json").read_text()))
    manager.start_kernel(cwd=str(tmp_path))
    try:
        with talk(manager.client()) as client:
            asked = {"found": "__import__('mine').value + bool(__import__('colorsys').rgb_to_hsv)"}
            answer = client.execute("", user_expressions=asked, reply=True, timeout=60)
            assert answer["content"]["user_expressions"]["found"]["data"]["text/plain"] == "8"
    finally:
        manager.shutdown_kernel(now=True)


# Reads the environment of a child: what it says itself.
SAY = "import json, os, sys; print(json.dumps([sys.path, dict(os.environ)]))"


def test_an_entry_of_the_path_that_means_the_present_folder_is_dropped(tmp_path, monkeypatch):
    """`export PYTHONPATH=$PYTHONPATH:/x` makes such an entry by accident."""
    (tmp_path / "colorsys.py").write_text("print('executed')")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f":.:there:{tmp_path / 'there'}")
    for env in (launcher.own_environment(), launcher.bare_environment()):
        done = launcher.run(launcher.python_words(code=SAY), env=env, cwd=tmp_path, text=True, timeout=60)
        path, seen = json.loads(done.stdout)
        assert str(tmp_path) not in path and path.count(str(tmp_path / "there")) == 1
        assert seen["PYTHONPATH"] == str(tmp_path / "there") and seen["PYTHONSAFEPATH"] == "1"
    # the command itself: what it imports from then on, and what its children are told
    command = [
        sys.executable,
        "-P",
        "-c",
        f"from xrddiff.core.launcher import isolate; isolate(); import colorsys; {SAY}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    path, seen = json.loads(done.stdout)
    assert str(tmp_path) not in path and seen["PYTHONPATH"] == str(tmp_path / "there")


def test_no_program_or_library_is_looked_for_in_the_present_folder(monkeypatch):
    monkeypatch.setenv("PATH", f":.:bin:{os.environ['PATH']}:")
    monkeypatch.setenv("LD_LIBRARY_PATH", ":")
    env = launcher.bare_environment()
    assert "LD_LIBRARY_PATH" not in env and all(os.path.isabs(p) for p in env["PATH"].split(os.pathsep))


def test_the_folder_that_holds_xrddiff_stays_on_the_path(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert launcher.safe_python({"PYTHONPATH": "."})["PYTHONPATH"] == str(ROOT)


def test_what_tries_a_file_knows_no_password_and_has_limits(tmp_path, monkeypatch):
    """The process that opens somebody's file: its environment and limits as the kernel has them."""
    from xrddiff.data.headers.open_in_subprocess import _Probe

    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # a notebook has it
    (tmp_path / "h5py.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()")
    probe = _Probe()
    try:
        assert "FileNotFoundError" in probe.ask(str(tmp_path / "none.h5"), False)  # it has started, and answered
        about = Path(f"/proc/{probe.process.pid}")
        assert b"secret" not in (about / "environ").read_bytes()
        command = (about / "cmdline").read_text()
        assert str(tmp_path) not in command.replace("none.h5", "") and "\0-I\0-S\0" in command
        limit = next(line for line in (about / "limits").read_text().splitlines() if line.startswith("Max data size"))
        assert int(limit.split()[3]) == 1 << 30
    finally:
        probe.stop()
    assert not (tmp_path / "executed").exists()


def test_a_child_is_ended_in_time():
    with pytest.raises(launcher.TimeoutExpired):  # else it would be waited for
        launcher.run(["sleep", "3600"], timeout=0.5)


BANNED = [
    "import subprocess", "from subprocess import run", "import multiprocessing.pool", "from sys import executable",
    "import sys\n\nprint(sys.executable)", "import os\n\nos.system('ls')", "import os\n\nos.execv('ls', [])",
    "import os\n\nos.fork()", "import os\n\nos.posix_spawn('ls', [], {})", "from os import popen",
    "from concurrent.futures import ProcessPoolExecutor", "from asyncio import create_subprocess_exec",
]  # fmt: skip


def test_nothing_else_starts_a_process():
    """`make lint` refuses it, in a module and in a notebook alike."""
    cells = [dict(cell_type="code", metadata={}, outputs=[], execution_count=None, source=code) for code in BANNED]
    notebook = json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=4))
    for name, text in (("nbs/data/frames/new.ipynb", notebook), ("nbs/runs/new.ipynb", notebook)):
        assert refused(name, text) == len(BANNED)
    for code in BANNED:
        assert refused("xrddiff/data/frames/new.py", code) == 1, code
        assert refused("xrddiff/core/launcher.py", code) == 0


def refused(name: str, text: str) -> int:
    """How often the rule that bans other starts of processes is broken in a file of this name."""
    words = ["check", "--no-cache", "--select", "TID251", "--output-format", "json", "--stdin-filename", name, "-"]
    done = subprocess.run([COMMAND.with_name("ruff"), *words], cwd=ROOT, input=text, capture_output=True, text=True)
    return len(json.loads(done.stdout))


def test_git_executes_nothing_that_a_configuration_names(tmp_path, monkeypatch):
    root, mark = tmp_path / "checkout", tmp_path / "executed"
    (root / "xrddiff").mkdir(parents=True)
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    evil.chmod(0o755)

    def git(*words: str) -> str:
        own = ["-c", "user.name=me", "-c", "user.email=me@here", "-C", root]
        return subprocess.run(["git", *own, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (root / "xrddiff" / "__init__.py").write_text("")
    (root / ".gitattributes").write_text("* filter=evil diff=evil\n")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    for name in (
        *("core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "diff.external", "diff.evil.command"),
        *("diff.evil.textconv", "filter.evil.clean", "filter.evil.process", "filter.evil.smudge"),
    ):
        git("config", name, str(evil))
    for hook in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        shutil.copy(evil, root / ".git" / "hooks" / hook)
    monkeypatch.setattr(run_folder, "package_folder", lambda: root / "xrddiff")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # only that checkout is asked about
    (root / "xrddiff" / "__init__.py").touch()  # git must look at it
    found = run_folder.environment()["git"]
    assert not mark.exists()
    monkeypatch.delenv("GIT_DIR")
    assert found["commit"] == git("rev-parse", "HEAD") and found["dirty"] is False
    (root / "xrddiff" / "__init__.py").write_text("changed")
    assert run_folder.environment()["git"]["dirty"] is True and not mark.exists()
    subprocess.run(["git", "-C", root, "status"], capture_output=True)
    assert mark.exists()  # as git does when it is asked as usual
