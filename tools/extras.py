"""Each extra alone in an empty environment: `python tools/extras.py [EXTRA …] [--fresh]`, or `make extras-test`.

The wheel is built once. A plain installation trains a small model, draws from it, and says for the main use of each extra which one is missing. Then
the wheel is installed with each extra alone, in an environment of its own, where that use must work from beginning to end: a copy of the plain one,
or, with --fresh, one made from nothing. Writes bench/results/extras.json and extras.md; extras that are not tried keep their rows.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

from harness import machine, markdown, read_results, write_results  # noqa: E402

TINY = "model=ddpm data=sim128 size=tiny data.limit=24 data.avg_pooling=true training.num_epochs=1 inference.num_samples=4 inference.index_frames=0 inference.steps=2 threads=1".split()
SWEEP = f"""
words: [{", ".join(TINY)}]
metric: {{name: loss, goal: minimize}}
method: random
run_cap: 2
parameters:
  training.lr: {{values: [0.001, 0.01]}}
"""
PONI = (
    'poni_version: 2\nDetector: Detector\nDetector_config: {"pixel1": 1e-4, "pixel2": 1e-4}\nDistance: 0.2\n'
    "Poni1: 0.003\nPoni2: 0.005\nRot1: 0.1\nRot2: 0\nRot3: 0\nWavelength: 1.1e-10\n"
)


class Place(NamedTuple):
    """An environment with the wheel, and a folder to work in."""

    env: Path
    folder: Path
    run: Path  # a run that the plain installation trained

    def python(self, code: str, *words: object) -> str:
        """What a program prints there."""
        return self.call(self.env / "bin" / "python", "-c", code, *words)

    def xrddiff(self, *words: object, **env: str) -> str:
        """What the command prints there."""
        return self.call(self.env / "bin" / "xrddiff", *words, **env)

    def call(self, *words: object, **env: str) -> str:
        """What a command prints; its failure is raised with the end of that."""
        done = self.start(*words, **env)
        said, _ = done.communicate(timeout=1200)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}\nended with {done.returncode}:\n{said[-3000:]}")
        return said

    def start(self, *words: object, **env: str) -> subprocess.Popen:
        """A process with nothing of the checkout."""
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        clean |= {"OMP_NUM_THREADS": "1", "XRDDIFF_CACHE": str(self.run.parent / "cache")} | env
        return subprocess.Popen(
            [str(w) for w in words], cwd=self.folder, env=clean, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


# --- the main uses --------------------------------------------------------------------------------------------------------


def kernel(at: Place) -> str:
    at.xrddiff("run", *TINY, "engine=kernel", "run_name=kernel")
    assert (at.folder / "output/ddpm/kernel/report.md").is_file()
    return "`xrddiff run … engine=kernel`: a training in a Jupyter kernel"


def sweeps(at: Place) -> str:
    (at.folder / "search.yaml").write_text(SWEEP)
    at.xrddiff("sweep", "search.yaml")
    found = at.xrddiff("sweep", "best", "output/sweeps/search")
    assert len(list((at.folder / "output").rglob("report.md"))) == 2, found
    assert "training.lr" in found
    return "`xrddiff sweep search.yaml`: two trainings; `sweep best` says the learning rate of the better one"


def workers(at: Place) -> str:
    run = shutil.copytree(at.run, at.folder / "run")
    at.xrddiff("sample", run, "-n", "4", "--name", "shared", "--workers", "local:2", "inference.steps=2")
    at.xrddiff("sample", run, "-n", "4", "--name", "alone", "inference.steps=2")
    same = "import sys, xrddiff as xd; r = xd.open_run(sys.argv[1]); a, b = (r.frames(n)['intensity'].values for n in ('shared', 'alone')); print((a == b).all())"
    assert "True" in at.python(same, run)
    return "`xrddiff sample RUN -n 4 --workers local:2`: the frames that one process draws, bit for bit"


def remote(at: Place) -> str:
    from range_server import RangeServer

    _frames(at.folder / "served.zarr")
    with RangeServer(at.folder) as web:
        said = at.xrddiff("data", "inspect", f"{web.address}/served.zarr", "--no-png")
    assert "4 × 128 × 128" in said, said
    return "`xrddiff data inspect http://…/served.zarr`: a store of a web server"


@contextmanager
def _bucket(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of an S3 store on this machine, with a store of frames in the bucket `beamline`."""
    import boto3
    from moto.server import ThreadedMotoServer

    _frames(folder / "kept.zarr")
    logging.getLogger("werkzeug").setLevel("ERROR")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    words = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "none"}
    words |= {"AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= words
    client = boto3.client("s3")
    client.create_bucket(Bucket="beamline")
    for path in (p for p in (folder / "kept.zarr").rglob("*") if p.is_file()):
        client.upload_file(str(path), "beamline", path.relative_to(folder).as_posix())
    try:
        yield words
    finally:
        server.stop()


def s3(at: Place) -> str:
    with _bucket(at.folder) as words:
        said = at.xrddiff("data", "inspect", "s3://beamline/kept.zarr", "--no-png", **words)
    assert "4 × 128 × 128" in said, said
    return "`xrddiff data inspect s3://beamline/kept.zarr`: a store of an S3 server"


def lab(at: Place) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (f"--port={port}", "--allow-root", "--IdentityProvider.token=open")
    process = at.start(at.env / "bin" / "xrddiff", "lab", "--no-browser", "--", *options)
    try:
        page = _answer(f"http://127.0.0.1:{port}/lab?token=open", process)
        assert "JupyterLab" in page, page[:500]
    finally:
        process.terminate()
        said = process.communicate(timeout=60)[0]
    assert "Traceback" not in said, said[-2000:]
    shown = "import xrddiff as xd; w = xd.explore(xd.load('sim128', limit=2)); print(type(w).__name__, w.n_frames)"
    assert "FrameExplorer 2" in at.python(shown)
    return "`xrddiff lab` starts and answers; `xd.explore(frames)` is a widget"


def _answer(address: str, process: subprocess.Popen) -> str:
    """The page of a server that is starting."""
    for _ in range(240):
        try:
            return urllib.request.urlopen(address, timeout=60).read().decode()
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(process.communicate()[0][-2000:]) from None
            time.sleep(0.5)
    raise TimeoutError(address)


READ_BACK = """
import pathlib, sys, trackio
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trackio.sqlite_storage import SQLiteStorage
from wandb.proto import wandb_internal_pb2
run = pathlib.Path(sys.argv[1])
board = EventAccumulator(str(run / "tracking/tensorboard")).Reload()
steps = {"tensorboard": [e.step for e in board.Scalars("train/loss")]}
client = MlflowClient(f"sqlite:///{run}/tracking/mlflow/mlflow.db")
(one,) = client.search_runs([client.get_experiment_by_name("frames").experiment_id])
steps["mlflow"] = [m.step for m in client.get_metric_history(one.info.run_id, "train/loss")]
(theirs,) = trackio.Api().runs("frames")
steps["trackio"] = [r["step"] for r in SQLiteStorage.get_logs("frames", theirs.name) if "train/loss" in r]
(file,) = (run / "tracking/wandb").rglob("offline-run-*/*.wandb")
assert b"train/loss" in file.read_bytes() and b"training.lr" in file.read_bytes()
assert steps["tensorboard"] and len({tuple(s) for s in steps.values()}) == 1, steps
print("read back", steps)
"""


def trackers(at: Place) -> str:
    chosen = "training.trackers=[jsonl,tensorboard,wandb,mlflow,trackio]"
    home = {"TRACKIO_DIR": str(at.folder / "trackio")}
    at.xrddiff("run", *TINY, chosen, "training.project=frames", "training.log_every=1", "run_name=tracked", **home)
    run = at.folder / "output/ddpm/tracked"
    said = at.call(at.env / "bin" / "python", "-c", READ_BACK, run, **home)
    assert "read back" in said, said
    return "a training that TensorBoard, W&B (offline), MLflow and Trackio follow; their own readers have its steps"


def onnx(at: Place) -> str:
    run = shutil.copytree(at.run, at.folder / "run")
    at.xrddiff("export", run, "--format", "onnx", "inference.steps=2")
    same = "import sys, numpy as np, xrddiff as xd; r, m = xd.open_run(sys.argv[1]), xd.load_exported(sys.argv[1] + '/exported/onnx'); a = m.sample(2, steps=2)['intensity'].values; b = r.sample(2, name='two', steps=2, progress=False)['intensity'].values; print('largest difference', abs(a - b).max() / b.max())"
    said = re.search(r"largest difference (\S+)", at.python(same, run))
    assert said and float(said[1]) < 1e-3, said
    apart = f"which differ by {float(said[1]):.0e} of their maximum" if float(said[1]) else "count by count"
    return f"`xrddiff export RUN --format onnx`; ONNX Runtime draws the frames of the run, {apart}"


def io(at: Place) -> str:
    _counts(at.folder / "own.npy")
    (at.folder / "own.poni").write_text(PONI)
    said = at.xrddiff("data", "inspect", "own.npy", "geometry=own.poni", "--no-png")
    assert re.search(r"wavelength Å +1\.1\b", said) and "1 of 60 × 100 pixels" in said, said
    return "`xrddiff data inspect own.npy geometry=own.poni`: pyFAI's geometry, tilted"


def stream2(at: Place) -> str:
    _frames(at.folder / "shots.h5")
    said = at.python(
        "from xrddiff.data.formats.readers import open_frames; from xrddiff.run.streaming import stream2_messages as m; "
        "print(*(len(m.as_version_1(p[0], 1 << 24)) for p in m.messages_of_version_2(open_frames('shots.h5'), 1)))"
    )
    assert said.split() == ["4", "3", "3", "3", "3", "1"], said
    return "four frames as CBOR messages of a detector, and read again"


def imgcif(at: Place) -> str:
    _panels(at.folder / "panels.cbf")
    said = at.xrddiff("data", "inspect", "panels.cbf", "--no-png")
    assert "1 × 3 × 12 × 16" in said, said
    return "`xrddiff data inspect panels.cbf`: a full imgCIF header with three panels"


def real(at: Place) -> str:
    said = at.xrddiff("data", "list")
    (at.folder / "here").mkdir()
    names = at.python(
        "from xrddiff.learn.loading.catalog import measured_sets as m; print(len(m()), 'thaumatin_grid_scan' in m())"
    )
    assert names.split()[1] == "True", names
    return (
        f"`xrddiff data fetch NAME` knows {names.split()[0]} measured sets by size and SHA-256 (nothing is downloaded here)"
        if said
        else ""
    )


def gpu(at: Place) -> str:
    said = at.xrddiff("watch", at.run, "--once")
    found = at.python("import pynvml; from xrddiff.run.execution.status import gpus; print('gpus', len(gpus()))")
    assert "gpus" in found, found
    return f"`xrddiff runs watch RUN --once`; {found.split()[-1]} GPUs here" if said else ""


class Extra(NamedTuple):
    """The main use of an extra, and the command that a plain installation refuses with its name (none: it does without)."""

    use: Callable[[Place], str]
    refused: tuple[str, ...] = ()


EXTRAS = {
    "kernel": Extra(kernel, ("run", *TINY, "engine=kernel")),
    "sweeps": Extra(sweeps, ("sweep", "search.yaml")),
    "workers": Extra(workers, ("sample", "RUN", "-n", "4", "--name", "shared", "--workers", "local:2")),
    "remote": Extra(remote, ("data", "inspect", "https://localhost/served.zarr")),
    "s3": Extra(s3, ("data", "inspect", "s3://beamline/kept.zarr")),
    "lab": Extra(lab, ("lab",)),
    "trackers": Extra(trackers, ("run", *TINY, "training.trackers=[tensorboard]")),
    "onnx": Extra(onnx, ("export", "RUN", "--format", "onnx")),
    "stream2": Extra(stream2, ("replay", "sim128", "tcp://127.0.0.1:9999", "--version", "2")),
    "io": Extra(io, ("data", "inspect", "own.npy", "geometry=own.poni")),
    "imgcif": Extra(imgcif, ("data", "inspect", "panels.cbf")),
    "real": Extra(real, ("data", "fetch", "thaumatin_grid_scan")),
    "gpu": Extra(gpu),
}


# --- files ------------------------------------------------------------------------------------------------------------------


def _frames(file: Path) -> None:
    """Four simulated frames in a file or store."""
    from xrddiff.data.formats.store import save_frames
    from xrddiff.physics.simulation.simulate import simulate

    save_frames(simulate("sim128", range(4)), file)


def _counts(file: Path) -> None:
    import numpy as np

    np.save(file, np.random.default_rng(0).poisson(5, (2, 60, 100)).astype(np.int32))


def _panels(file: Path) -> None:
    from test_imgcif import made

    made(file)


# --- environments -----------------------------------------------------------------------------------------------------------


def install(folder: Path, name: str, wheel: Path, run: Path, fresh: bool) -> Place:
    """An environment with the wheel and an extra ("" for none).

    fresh: installed from nothing; otherwise on a copy of the plain one, which has the same packages in a tenth of the time.
    """
    env, work = folder / f"env-{name or 'plain'}", folder / (name or "plain")
    work.mkdir()
    at = Place(env, work, run)
    if name and not fresh:
        _copy(folder / "env-plain", env)
    else:
        at.call(sys.executable, "-m", "venv", env)
    what = f"{wheel}[{name}]" if name else str(wheel)
    pip = (env / "bin" / "python", "-m", "pip")
    at.call(*pip, "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", what)
    at.call(*pip, "check")
    return at


def _copy(source: Path, target: Path) -> None:
    """An environment with the files of another one, whose scripts start its own Python."""
    shutil.copytree(source, target, symlinks=True, copy_function=os.link)
    for file in (f for f in (target / "bin").iterdir() if f.is_file() and not f.is_symlink()):
        text = file.read_bytes().replace(str(source).encode(), str(target).encode())
        file.unlink()  # it is the file of both
        file.write_bytes(text)
        file.chmod(0o755)


def count(at: Place) -> int:
    """How many packages are there, but pip, with xrddiff."""
    code = "from importlib.metadata import distributions as d; print(len({x.name.lower() for x in d()} - {'pip'}))"
    return int(at.python(code))


def plain(folder: Path, wheel: Path, fresh: bool) -> tuple[int, Path, dict[str, str]]:
    """The packages of a plain installation, a run that it trained, and what it says for each extra."""
    at = install(folder, "", wheel, folder / "plain/output/ddpm/plain", fresh)
    assert str(at.env) in at.python("import xrddiff; print(xrddiff.__file__)")
    print(at.xrddiff("run", *TINY, "run_name=plain")[-600:], flush=True)
    (at.folder / "search.yaml").write_text(SWEEP)
    (at.folder / "own.poni").write_text(PONI)
    _counts(at.folder / "own.npy")
    _panels(at.folder / "panels.cbf")
    said = {}
    for name, extra in EXTRAS.items():
        if not extra.refused:
            continue
        words = [str(at.run) if w == "RUN" else w for w in extra.refused]
        process = at.start(at.env / "bin" / "xrddiff", *words)
        out = process.communicate(timeout=600)[0].strip()
        said[name] = out.splitlines()[-1] if out else ""
        assert process.returncode and f"xrddiff[{name}]" in said[name] and "Traceback" not in out, (name, out[-2000:])
        print(f"plain: {said[name]}", flush=True)
    return count(at), at.run, said


def described(name: str) -> str:
    """What settings.ini says an extra has."""
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return ", ".join(re.match(r"[\w-]+", word)[0] for word in settings["DEFAULT"][f"{name}_requirements"].split())


def page(found: dict) -> list[str]:
    """bench/results/extras.md."""
    rows = [[f"`{n}`", *found["rows"][n]] for n in EXTRAS if n in found["rows"]]
    said = [[f"`{n}`", found["said"][n]] for n in EXTRAS if n in found["said"]]
    return [
        "# Each extra alone",
        "",
        f"`{found['command']}`, {found['machine']}. The wheel in an environment of its own with one extra, and its main use from beginning to end, in seconds of a busy machine. A plain installation has {found['plain']} packages with xrddiff, trains and draws; the second table is what it says to the same commands.",
        "",
        *markdown(["extra", "brings", "packages", "its main use", "s"], rows, "lllll"),
        "",
        *markdown(["extra", "what a plain installation says"], said, "ll"),
    ]


def main() -> None:
    fresh = "--fresh" in sys.argv
    names = [word for word in sys.argv[1:] if word != "--fresh"] or list(EXTRAS)
    if unknown := set(names) - set(EXTRAS):
        sys.exit(f"there is no extra {', '.join(unknown)}; expected some of {', '.join(EXTRAS)}")
    failed = []
    found = {"rows": {}} | read_results("extras", {})
    found["command"] = "python tools/extras.py" + " --fresh" * fresh
    found["machine"] = machine("cores", "python", "torch", "day")
    with tempfile.TemporaryDirectory(prefix="xrddiff-extras-") as place:
        folder = Path(place)
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT],
            check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wheel = next((folder / "dist").glob("*.whl"))
        found["plain"], run, said = plain(folder, wheel, fresh)
        found["said"] = {name: text.removeprefix("xrddiff: ").replace(place, "…") for name, text in said.items()}
        for name in names:
            try:
                at = install(folder, name, wheel, run, fresh)
                more, began = count(at) - found["plain"], time.perf_counter()
                used = EXTRAS[name].use(at)
                found["rows"][name] = [described(name), f"+{more}", used, f"{time.perf_counter() - began:.0f}"]
                print(name, *found["rows"][name], sep=" | ", flush=True)
                write_results("extras", page, found)
            except Exception as error:
                failed.append(name)
                print(f"{name} FAILED: {type(error).__name__}: {error}", flush=True)
            shutil.rmtree(folder / f"env-{name}", ignore_errors=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
