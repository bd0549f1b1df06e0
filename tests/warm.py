"""`xrddiff` and scripts of tests in processes of their own, without the seven seconds that each would import for.

A server imports once what a run imports, and forks a process for each command: with its own arguments, environment, folder,
output and exit code, as if it had been started. It is single-threaded, so that forking it is safe, and ends with the session
of tests. Where it matters how a process starts, tests start a real one.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

# What commands and scripts import, most expensive first.
PRELOAD = (
    "torch._dynamo torch.distributed accelerate pandas scipy.optimize scipy.stats scipy.fftpack matplotlib.pyplot "
    "hydra.compose hydra.core.override_parser.overrides_parser hydra._internal.core_plugins.basic_launcher "
    "hydra._internal.core_plugins.bash_completion zarr dask.array fsspec.core importlib_metadata psutil "
    "rich.table rich.console rich.jupyter xrddiff.app.entry xrddiff.app.verbs.main "
    "xrddiff.run.execution.phases xrddiff.run.execution.finished xrddiff.learn.recipes.setup xrddiff.learn.training.trainer xrddiff.judge.inference.evaluation "
    "xrddiff.judge.views.judgement xrddiff.judge.views.report xrddiff.judge.metrics.reconstruction"
).split()

# Seconds of CPU of the processes that this one has waited for: the kernel counts them for the server.
spent: list[float] = []


class Forked:
    """A forked process that has been started, seen as `subprocess.Popen` shows one: its pid, whether it has ended, and how."""

    def __init__(
        self, argv: Sequence[object], files: Sequence[int], cwd: Path | None, env: dict[str, str] | None, **more
    ):
        self.args, self.said, self.returncode = [str(a) for a in argv], b"", None
        place, self.line = server(), socket.socket(socket.AF_UNIX)
        self.line.connect(str(place))
        request = dict(argv=self.args, cwd=str(cwd or Path.cwd()), env=dict(os.environ) if env is None else env, **more)
        socket.send_fds(self.line, [b"-"], files)
        self.line.sendall(json.dumps(request).encode() + b"\n")
        self.answers = b""
        self.pid = self._answer(None)

    def _answer(self, timeout: float | None) -> Any:
        """What the server says next: the pid, then the exit code and the seconds of CPU."""
        while b"\n" not in self.answers:
            if not select.select([self.line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            said = self.line.recv(4096)
            assert said, "the server of forked processes is gone"
            self.answers += said
        answer, _, self.answers = self.answers.partition(b"\n")
        return json.loads(answer)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, as soon as there is one; `subprocess.TimeoutExpired` if there is none in time."""
        if self.returncode is None:
            self.returncode, cpu = self._answer(timeout)
            spent.append(cpu)
            self.line.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def listen(self, pipe: int) -> None:
        """Keep what comes from a pipe, so that the process never waits for a reader."""

        def read() -> None:
            with open(pipe, "rb", buffering=0) as file:
                while text := file.read(1 << 16):
                    self.said += text

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it has said, once it has ended."""
        self.wait(timeout)
        self.reader.join(timeout)
        return self.said.decode(errors="replace"), None


def start(
    *argv: object,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    limits: Collection[tuple[int, int, int]] = (),
) -> Forked:
    """`xrddiff words…`, or a Python file with its arguments, in a forked process that runs on, and may be killed.

    What it prints, on either stream, comes from `communicate`. limits: (kind, soft, hard) of `resource.setrlimit`.
    """
    out, into = os.pipe()
    with open(os.devnull, "rb") as null:
        process = Forked(argv, [null.fileno(), into, into], cwd, env, limits=list(limits))
    os.close(into)
    process.listen(out)
    return process


def run(
    *argv: object, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 600, check: bool = False
) -> subprocess.CompletedProcess:
    """`xrddiff words…`, or a Python file with its arguments, in a forked process; what it printed, and its exit code."""
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        null = stack.enter_context(open(os.devnull, "rb"))
        process = Forked(argv, [null.fileno(), out.fileno(), err.fileno()], cwd, env)
        stack.enter_context(process.line)
        process.wait(timeout)  # if that is not enough, the process ends with this connection
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="replace").replace("\r\n", "\n"))
    done = subprocess.CompletedProcess(process.args, process.returncode, *said)
    if check:
        done.check_returncode()
    return done


def server() -> Path:
    """The socket of this session's server, which is started when it is first needed; workers of one session share it."""
    place = Path(os.environ["XRDDIFF_TESTS"]) / "warm"
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            log = open(place.with_suffix(".log"), "wb")  # noqa: SIM115
            command = [sys.executable, __file__, str(place), os.environ["XRDDIFF_TESTS_OWNER"]]
            started = subprocess.Popen(
                command,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            while not place.exists():
                assert started.poll() is None, place.with_suffix(".log").read_text()
                time.sleep(0.02)
    return place


# What follows runs in the server.


class Line:
    """A connection: a request, then the process that answers it."""

    def __init__(self, connection: socket.socket):
        self.connection, self.files, self.text, self.pid = connection, [], b"", 0

    def read(self) -> dict | None:
        """More of the request; the whole of it once it is there. EOFError where the other side has gone."""
        if not self.files:
            text, self.files, _, _ = socket.recv_fds(self.connection, 1, 3)
        else:
            text = self.connection.recv(1 << 16)
            self.text += text
        if not text:
            raise EOFError
        return json.loads(self.text) if self.text.endswith(b"\n") else None

    def close(self) -> None:
        for file in self.files:
            os.close(file)
        self.files = []
        self.connection.close()


def serve(place: Path, owner: int) -> dict | None:
    """Answer requests. Returns in a forked process, with its request; in the server when `owner` has ended."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place) + ".new")
    listener.listen(16)
    os.rename(str(place) + ".new", place)
    wake, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lines: dict[int, Line] = {}
    while Path(f"/proc/{owner}").exists() and place.exists():
        ready, _, _ = select.select([listener, wake, *lines], [], [], 1)
        for what in ready:
            if what is listener:
                line = Line(listener.accept()[0])
                lines[line.connection.fileno()] = line
            elif what is wake:
                wake.recv(4096)
            else:
                line = lines[what]
                try:
                    request = line.read()
                except (EOFError, OSError):  # nobody waits for it any more
                    del lines[what]
                    if line.pid:
                        os.kill(line.pid, signal.SIGKILL)
                    line.close()
                    continue
                if request is not None and not line.pid:
                    line.pid = os.fork()
                    if line.pid == 0:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        for number, file in enumerate(line.files):
                            os.dup2(file, number)
                        for other in [listener, wake, told, *lines.values()]:
                            other.close()
                        return request
                    with contextlib.suppress(OSError):
                        line.connection.sendall(f"{line.pid}\n".encode())
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if not pid:
                    break
                for fd, line in list(lines.items()):
                    if line.pid == pid:
                        answer = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]
                        with contextlib.suppress(OSError):
                            line.connection.sendall(json.dumps(answer).encode() + b"\n")
                        line.close()
                        del lines[fd]
    return None


def warm_up() -> None:
    """What each command would otherwise find out for itself: the grammar of words, the code of the simulator, fonts."""
    from xrddiff.config.composition import compose_config
    from xrddiff.judge.views.plots import Picture, png
    from xrddiff.learn.loading.cache import _simulator_digest

    os.environ.pop("XRDDIFF_PLUGINS", None)  # those of whoever asked first
    compose_config(["model=vae_kl", "training.max_steps=1"])
    _simulator_digest()
    picture = Picture(2, 2)
    picture.add_subplot().set_title("fonts")
    png(picture)


def become(request: dict) -> int:
    """In the forked process: the command, or the script, with what was asked for; its exit code."""
    for kind, *both in request.get("limits", []):
        resource.setrlimit(kind, both)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.stdin, sys.stdout = (open(fd, mode, closefd=False) for fd, mode in ((0, "r"), (1, "w")))  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = request["argv"]
    if sys.argv[0] == "xrddiff":
        from xrddiff.app.entry import command_line

        return command_line()
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def leave(request: dict) -> NoReturn:
    """Execute the request and end, without the half second in which Python takes all that was imported to pieces."""
    try:
        code = become(request)
    except SystemExit as told:
        if not isinstance(told.code, int | None):
            raise
        code = told.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    import gc
    import importlib

    from PIL import Image

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in PRELOAD:
        importlib.import_module(name)
    Image.init()  # the formats of images
    warm_up()
    assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread: forking would be unsafe"
    gc.freeze()  # the collector of a child need not look at what was imported
    if request := serve(Path(sys.argv[1]), int(sys.argv[2])):
        leave(request)
