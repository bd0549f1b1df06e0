"""Settings and fixtures that every test shares."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import warm

# A thread for each worker (make test): more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("MPLBACKEND", "agg")
# nbformat asks for a check of IRIs whose import takes three seconds, and goes on without it.
sys.modules.setdefault("rfc3987_syntax", None)
# What is started in the background of a shell ignores Ctrl-C, and so does all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cost", metavar="FILE", help="append a line of JSON per test: its seconds, of clock and of CPU")


COSTLY = ("simulated", "downloads", "fetched")  # what the cache holds under the hash of what it is


def pytest_configure(config: pytest.Config) -> None:
    """A folder for what all workers of this session share (tests/warm.py), and a cache in it."""
    if not hasattr(config, "workerinput"):
        folder = Path(tempfile.mkdtemp(prefix="xrddiff-tests-"))
        os.environ |= {
            "XRDDIFF_TESTS": str(folder),
            "XRDDIFF_TESTS_OWNER": str(os.getpid()),
            "XRDDIFF_CACHE": str(cache_of_tests(folder / "cache")),
        }


def cache_of_tests(folder: Path) -> Path:
    """A cache that ends with the session, so that no mask of a series and no list of a folder stays with the user, or comes from
    there. What is `COSTLY` is the user's.
    """
    from xrddiff.core.files import cache_dir

    own = cache_dir().absolute()
    folder.mkdir()
    for name in COSTLY:
        with contextlib.suppress(OSError):  # without a place for it the session makes it
            (own / name).mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to((own / name).resolve())
    return folder


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["XRDDIFF_TESTS"], ignore_errors=True)


@pytest.fixture(autouse=True)
def plug_ins_of_one_test() -> Iterator[None]:
    """What a test loads into the process as a plug-in is not there for the next one."""
    from xrddiff.core.registry import GROUND

    def names() -> set[tuple[str, str]]:
        return {key for key, (entry, _) in GROUND.names.items() if not entry.own}

    plugins, known = dict(GROUND.plugins), names()
    yield
    GROUND.plugins.clear()
    GROUND.plugins.update(plugins)
    for key in names() - known:
        del GROUND.names[key]


OURS = ("conftest", "test_")


def group(item: pytest.Item) -> str:
    """A name for the tests that must run on one worker with this one, because a costly fixture is made once for all of them."""
    found = [item.session._fixturemanager.getfixturedefs(name, item) for name in item.fixturenames]
    shared = [
        f[-1] for f in found if f and f[-1].scope in ("module", "session") and f[-1].func.__module__.startswith(OURS)
    ]
    for name in ("lab", "jupyter"):  # a cluster, a JupyterLab: one of each
        if any(fixture.argname == name for fixture in shared):
            return name
    return item.path.stem if shared or not item.get_closest_marker("slow") else item.nodeid


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay together under `pytest -n 3`, and in which order they are given out.

    Tests of one module share a worker, and so do all that use the lab; a test marked slow that shares nothing goes to
    whichever worker is free. The longest come first, so that all workers end at about the same time.
    """
    groups = {item: group(item) for item in items}
    trained = {item for item in items if "runs" in item.fixturenames}
    for item in items:
        if item in trained or groups[item] in ("lab", "jupyter"):
            item.add_marker("slow")
    slow = {name for item, name in groups.items() if item.get_closest_marker("slow")}
    long = {groups[item] for item in trained}
    items.sort(key=lambda item: [groups[item] != "lab", groups[item] not in long, groups[item] not in slow])
    place = Path(os.environ["XRDDIFF_TESTS"]) / "groups.json"
    new = place.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps({item.nodeid: name for item, name in groups.items()}))
    new.rename(place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Gives groups of tests to workers. (`--dist loadgroup` of pytest-xdist 3.8 cannot name groups under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        @cached_property
        def groups(self) -> dict[str, str]:
            return json.loads((Path(os.environ["XRDDIFF_TESTS"]) / "groups.json").read_text())

        def _split_scope(self, nodeid: str) -> str:
            return self.groups[nodeid]

    config.option.loadscopereorder = False
    return Groups(config, log)


def cpu_seconds() -> float:
    """Seconds of CPU of this process and of every process that it started and waited for."""
    own = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own + sum(warm.spent)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """What a test costs, with the fixtures that it is the first to ask for (bench/suite.py makes a table of it)."""
    began, cpu = time.monotonic(), cpu_seconds()
    try:
        return (yield)
    finally:
        if file := item.config.getoption("--cost"):
            row = dict(seconds=time.monotonic() - began, cpu=cpu_seconds() - cpu)
            row = {name: round(value, 3) for name, value in row.items()}
            row |= dict(test=item.nodeid, worker=os.environ.get("PYTEST_XDIST_WORKER", ""))
            with open(file, "a") as out:
                out.write(json.dumps(row) + "\n")


def missing(reason: str) -> None:
    """Skip for want of an optional tool; where the full suite must run (`CI=true`) that is a failure."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason} (CI needs it)")
    pytest.skip(reason)


def clean_environment() -> dict[str, str]:
    """This process's environment without what a launcher says, for ranks of one thread on the CPU."""
    mine = (
        "SLURM_",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_",
        "MASTER_",
        "PMI_",
        "OMPI_",
        "TORCHELASTIC",
        "ACCELERATE",
        "GROUP_",
        "GLOO_",
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
    return env | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def listening(*pids: int) -> set[str]:
    """The IPv4 and IPv6 addresses at which these processes listen for TCP, by the kernel's table of sockets; with ports."""
    own = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # files come and go
                own.add(os.readlink(fd))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                number, _, port = words[1].partition(":")
                address = socket.inet_ntoa(bytes.fromhex(number)[::-1]) if table == "tcp" else f"IPv6 {number}"
                found.add(f"{address}:{int(port, 16)}")
    return found


def local_workers(pid: int) -> list[psutil.Process]:
    """The workers of a command on this machine: forked from a process that it has started for that."""
    forks = [p for p in psutil.Process(pid).children() if any("multiprocessing.forkserver" in w for w in p.cmdline())]
    return [worker for process in forks for worker in process.children()]


def need(name: str) -> ModuleType:
    """The module `name`, which is no requirement of the package but of this test; `missing` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"{name} is not installed (make dev)")


def measured(name: str) -> Path:
    """A measured file in the folder `XRDDIFF_DATA`; the test is skipped without it."""
    folder = os.environ.get("XRDDIFF_DATA")
    path = Path(folder or ".") / name
    if not folder or not path.exists():
        pytest.skip(f"no measured frame {name}; `XRDDIFF_DATA` names the folder of dials-data's files")
    return path


LAB = Path(__file__).parent.parent / "slurm" / "lab" / "lab.py"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}


class Lab:
    """A toy SLURM cluster that is up. `env` is what a process needs for its `sbatch`, `srun`, `squeue` to mean this cluster."""

    def __init__(self, folder: Path, *options: str):
        self.folder = folder
        # a test session that is killed must not leave a cluster behind
        self.command("up", f"--until={os.getpid()}", *options)
        self.env = runpy.run_path(str(LAB))["environment"](folder)

    def command(self, name: str, *words: str) -> str:
        """A command of slurm/lab/lab.py, with its output; a failure is a failed test."""
        command = [sys.executable, str(LAB), name, "--folder", str(self.folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, *command: str, timeout: float = 60, check: bool = True, **options) -> str:
        """Standard output of any command on the cluster's login node, which is this machine."""
        options = dict(env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL) | options
        done = subprocess.run(command, timeout=timeout, **options)
        assert not check or done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *words: str, **options) -> str:
        """sbatch with these words; the job's id."""
        return self.call("sbatch", "--parsable", *words, **options).strip().partition(";")[0]

    def crash(self, node: str) -> None:
        """Cut the power of a node. SLURM notices about 15 s later."""
        self.command("crash", node)

    def start(self, node: str) -> None:
        """Start a node that was crashed (nothing happens if it runs) and wait until jobs can run on it."""
        if f"{node}: runs" not in self.command("status").splitlines():
            self.command("start", node)
        self.wait_node(node, {"IDLE", "MIXED", "ALLOCATED"})

    def restart_controller(self, crash: bool = False) -> None:
        """End slurmctld, in order or by a power cut, and start it again."""
        self.command("restart-controller", *["--crash"] * crash)

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says of a job, or of the first task of an array: JobState, NodeList, Restarts, ExitCode, StdOut …"""
        lines = self.call("scontrol", "show", "job", "-o", str(job_id)).splitlines()
        return dict(re.findall(r"([A-Za-z][\w:/]*)=(.*?)(?= [A-Za-z][\w:/]*=|$)", lines[0]))

    def wait(self, job_id: str, states: str | Collection[str], timeout: float = 60) -> dict[str, str]:
        """The job as it is in one of these states; fails in time, or as soon as the job has ended otherwise."""
        states = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + timeout
        while (job := self.job(job_id))["JobState"] not in states:
            late = time.monotonic() > end
            if late or job["JobState"] in ENDED:
                out = Path(job.get("StdOut", "/nowhere"))
                said = out.read_text(errors="replace")[-3000:] if out.is_file() else ""
                wanted = f"{' or '.join(sorted(states))}{f' after {timeout:g} s' if late else ''}"
                pytest.fail(f"job {job_id} is {job['JobState']} ({job.get('Reason')}), not {wanted}\n{said}")
            time.sleep(0.2)
        return job

    def wait_node(self, node: str, states: str | Collection[str], timeout: float = 60) -> None:
        """Until SLURM says that a node is in one of these states (IDLE, DOWN …)."""
        states = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + timeout
        while (
            state := self.call("sinfo", "-hN", "-n", node, "-p", "main", "-o%T").strip().strip("*").upper()
        ) not in states:
            assert time.monotonic() < end, f"{node} is {state}, not {' or '.join(states)}, after {timeout:g} s"
            time.sleep(0.2)

    def down(self) -> None:
        """The end of all its processes."""
        self.command("down")


def bring_up(*options: str) -> Lab:
    """A lab of its own for one test; `lab` is the one that tests share."""
    if os.geteuid() != 0:
        missing("a SLURM cluster of our own needs root")
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if lacking := [tool for tool in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(tool, path=path)]:
        missing(f"{', '.join(lacking)} not found (apt-get install slurm-wlm munge)")
    return Lab(Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp")), *options)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A real SLURM cluster of eight nodes, n1 to n8, for the whole session. A test that crashes a node starts it again."""
    lab = bring_up()
    yield lab
    lab.down()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """One JupyterLab for all tests that look at notebooks: (folder, address, token)."""
    from lab import jupyterlab

    folder = tmp_path_factory.mktemp("notebooks")
    with jupyterlab(folder) as (url, token):
        yield folder, url, token


@pytest.fixture
def notebooks(jupyter):
    """Notebooks in that JupyterLab, in a browser (tests/lab.py)."""
    from lab import notebooks_of

    with notebooks_of(jupyter) as found:
        yield found


SMALL = ["size=tiny", "experiment_type=test", "data=pooling_422", "data.pool=8", "data.limit=64", "threads=1"]
SMALL += ["training.num_epochs=1", "training.batch_size=8", "model.diff_epochs=1"]
WORDS = {"ddpm": ["model.condition=[hit_class,wavelength]", "training.ema_tracks=[0.05,0.1]"]}
WORDS["ddpm"] += ["training.checkpoint_every=3", "training.keep_checkpoints=null"]
WORDS["latent_diff"] = [
    "model.condition_maps=[lattice,intensity,q]",
    "model.condition_map_options={lattice: {wider: 2}}",
]


def made_once(name: str, make: Callable[[Path], object], own: Path) -> Path:
    """`own` as a copy of the folder that `make` fills for the first worker that asks; the others wait for it."""
    place = Path(os.environ["XRDDIFF_TESTS"]) / name
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            part = place.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of somebody who failed
            part.mkdir()
            make(part)
            part.rename(place)
    return Path(shutil.copytree(place, own, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """model -> the folder of a small run of it, made when the first worker asks for it; each worker has its own copy."""
    from test_run import xrddiff

    folder, made = tmp_path_factory.mktemp("models"), {}

    def run(model: str) -> Path:
        def make(place: Path) -> None:
            words = [f"model={model}", *SMALL, *WORDS.get(model, []), "run_name=whole"]
            (place / "printed.txt").write_text(xrddiff("run", *words, folder=place).stdout)

        if model not in made:
            made[model] = made_once(model, make, folder / model)
        return made[model] / "output" / f"{model}_test" / "whole"

    run.printed = lambda model: (run(model), (made[model] / "printed.txt").read_text())[1]
    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A test whose numbers depend on how many threads sum them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
