"""A run folder of somebody else: what opens it answers or refuses it in a sentence, executes nothing of it, and asks nobody.

The folders are those of `hostile_runs`; here all of them meet the commands that cost little, and a few the others.
`bench/hostile.py` takes the whole product.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hostile_runs import KINDS, NAMES, Trap, hostile_runs

import xrddiff as xd
from xrddiff.addresses import ADDRESSES, remember_addresses
from xrddiff.cli.main import main
from xrddiff.config import compose_config
from xrddiff.errors import BadInput, XrddiffError
from xrddiff.saved_config import load_config, to_yaml
from xrddiff.views.report import Report

SECRET = "secret-7f3a-of-the-environment"
HANGS = 60  # s after which an answer is taken for one that never comes


def make_good_run(folder: Path) -> Path:
    """A finished run of an autoencoder, with every file that one has, without training it."""
    with zipfile.ZipFile(Path(__file__).parent / "written_before.zip") as archive:
        archive.extractall(folder)
    old, run = folder / "run", folder / "good"
    shutil.move(old / "autoencoder", run)
    for name in ("plots", "samples", "metrics", "ranks"):
        (run / name).mkdir(exist_ok=True)
    cfg = compose_config(["model=vae_kl", "data=sim128", "experiment_type=test", "size.widths=[8,8,32]", "threads=1"])
    (run / "config.yaml").write_text(to_yaml(cfg))
    shutil.copy(old / "environment.json", run)
    epochs = dict(epoch=[1, 2], step=[1, 2], loss_mean=[0.5, 0.4], batches_per_second=[1.0, 1.0])
    pd.DataFrame(epochs).to_csv(run / "metrics" / "epochs.csv", index=False)
    (run / "metrics" / "summary.json").write_text(json.dumps({"peak F1": {"VAE": 0.5}}))
    (run / "metrics" / "health.json").write_text("[]")
    (run / "log.txt").write_text("epoch 1\n")
    (run / ".lock").write_text("process 1 on nowhere")
    Report("A run").write(run)
    shutil.rmtree(folder / "run")
    return run


@contextlib.contextmanager
def ends(seconds: int = HANGS) -> Iterator[None]:
    """What takes longer than this raises `TimeoutError`."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_good_run(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def server():
    """A place that listens, and the test that nobody came."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


@pytest.fixture(scope="module")
def hostile(good, server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret.txt").write_text("nobody's business")
    host, port = server.getsockname()
    trap = Trap("XRDDIFF_SECRET_OF_TESTS", str(folder / "marker"), f"{host}:{port}", str(folder / "secret.txt"))
    (folder / "runs").mkdir()
    with warnings.catch_warnings():
        return folder, hostile_runs(folder / "runs", good, trap)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("XRDDIFF_SECRET_OF_TESTS", SECRET)
    monkeypatch.setenv("XRDDIFF_STATE", str(tmp_path / "state"))
    monkeypatch.delenv(ADDRESSES, raising=False)
    monkeypatch.delenv("XRDDIFF_TRUST_PLUGINS", raising=False)


def unharmed(folder: Path, server: socket.socket) -> None:
    """Nothing was executed, and nobody was asked."""
    assert not (folder / "marker").exists()
    with pytest.raises(BlockingIOError):
        server.accept()


def leaks(run: Path) -> list[str]:
    """The files of a run, but its configuration, with what only the environment says or a file elsewhere."""
    found = []
    for path in run.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 24:
            data = path.read_bytes()
            found += [path.name] if SECRET.encode() in data or b"nobody's business" in data else []
    return found


def command(*words: object) -> tuple[int, str]:
    """(exit code, what was printed) of a command in this process; a traceback is a failure of the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), ends():
        code = main([str(word) for word in words])
    return code, out.getvalue() + err.getvalue()
