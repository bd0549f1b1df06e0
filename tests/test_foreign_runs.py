"""A run folder of somebody else: what opens it answers or refuses it in a sentence, executes nothing of it, and asks nobody.

The folders are those of `hostile_runs`; here all of them meet the commands that cost little, and a few the others.
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
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hostile_runs import KINDS, NAMES, Trap, hostile_runs

import xrddiff as xd
from xrddiff.app.front_door.run_numbers import about_run
from xrddiff.app.verbs.main import main
from xrddiff.config.composition import compose_config
from xrddiff.config.plan import compose_plan, saved_plan
from xrddiff.config.saved_config import load_config, to_yaml
from xrddiff.core.addresses import ADDRESSES, remember_addresses
from xrddiff.core.errors import BadInput, XrddiffError
from xrddiff.judge.views.report import Report

SECRET = "secret-7f3a-of-the-environment"
HANGS = 300  # s after which an answer is taken for one that never comes


def make_good_run(folder: Path, made: Path) -> Path:
    """A finished run of an autoencoder, with every file that one has: a copy of `made`."""
    run = shutil.copytree(made, folder / "good")
    for name in ("plots", "samples", "metrics", "ranks"):
        (run / name).mkdir(exist_ok=True)
    cfg = compose_config(["model=vae_kl", "data=sim128", "experiment_type=test", "size=tiny", "threads=1"])
    (run / "config.yaml").write_text(to_yaml(cfg))
    epochs = dict(epoch=[1, 2], step=[1, 2], loss_mean=[0.5, 0.4], batches_per_second=[1.0, 1.0])
    pd.DataFrame(epochs).to_csv(run / "metrics" / "epochs.csv", index=False)
    (run / "metrics" / "summary.json").write_text(json.dumps({"peak F1": {"VAE": 0.5}}))
    (run / "metrics" / "health.json").write_text("[]")
    (run / "log.txt").write_text("epoch 1\n")
    (run / ".lock").write_text("process 1 on nowhere")
    Report("A run").write(run)
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
def good(tmp_path_factory, runs):
    return make_good_run(tmp_path_factory.mktemp("good"), runs("vae_kl"))


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


# ---- all of them, with what costs little


def test_there_are_many_kinds(hostile):
    assert len(KINDS) >= 60 and set(hostile[1]) == {*KINDS, *NAMES}


@pytest.mark.parametrize("form", [["--json"], ["--csv"], []])
def test_a_list_of_runs_has_a_row_for_each(form, hostile, server):
    folder, runs = hostile
    code, said = command("runs", "list", folder / "runs", *form)
    assert code == 0 and SECRET not in said and "\x1b" not in said
    unharmed(folder, server)
    if form == ["--json"]:
        rows = json.loads(said)
        assert len(rows) == len(runs)
        states = {row["run"]: (row["state"], row["note"]) for row in rows}
        for name in ("config aliases", "config.yaml pipe", "config.yaml giant", "environment in data_path"):
            state, why = states[runs[name].name]
            assert state == "damaged" and "config.yaml" in why, name
        assert states[runs["environment.json list"].name][0] == states[runs["metrics summary.json zeros"].name][0]


def test_a_comparison_leaves_out_what_cannot_be_read(hostile, good, server):
    folder, runs = hostile
    with ends():
        table = xd.compare_runs(good, folder / "runs")
    assert str(good) in set(table["folder"]) and str(runs["config aliases"]) not in set(table["folder"])
    assert SECRET not in table.to_csv()
    unharmed(folder, server)


@pytest.mark.parametrize("name", [*KINDS, *NAMES])
def test_a_run_is_looked_at(name, hostile, server, monkeypatch):
    monkeypatch.setattr("xrddiff.run.execution.status.devices", lambda s, interval=None: ("this machine", []))
    folder, runs = hostile
    code, said = command("runs", "watch", runs[name], "--once")
    assert code in (0, 1, 2) and SECRET not in said, said
    with ends(), contextlib.suppress(XrddiffError):
        run = xd.open_run(runs[name])
        assert SECRET not in repr(run) + str(about_run(run)) + run.state + str(run.step)
    unharmed(folder, server)


REPORTED = [*list(KINDS)[::6], "picture that leads out", "report_that_leads_out", "picture_that_leads_out", *NAMES]


@pytest.mark.parametrize("name", [name for name in dict.fromkeys(REPORTED) if name in KINDS or name in NAMES])
def test_its_report_is_written_again(name, hostile, server):
    folder, runs = hostile
    code, said = command("runs", "report", runs[name])
    with ends(), contextlib.suppress(XrddiffError):
        assert SECRET not in xd.open_run(runs[name])._repr_html_()
    assert code in (0, 1, 2) and SECRET not in said and not leaks(runs[name]), said
    assert code == 0 or said.count("\n") <= 3, said  # warnings, and the one sentence
    unharmed(folder, server)


# ---- some, with what costs more


def test_a_page_of_odd_runs(hostile, good, server, tmp_path):
    """One comparison of runs that are read, and are odd in what they say."""
    folder, runs = hostile
    said = ("preset of", "summary of", "table", "epochs", "metrics summary.json", "metrics training_metrics.csv")
    odd = [run for name, run in runs.items() if name.startswith(said)]
    code, text = command("runs", "compare", good, *odd, runs["environment in data_path"], "-o", tmp_path / "page")
    assert code == 0 and SECRET not in text, text
    page = next((tmp_path / "page").glob("*.html")).read_text()
    assert "<script>alert" not in page and not leaks(tmp_path / "page")
    unharmed(folder, server)


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint forged weights",
        "checkpoint forged header",
        "checkpoint forged deep state",
        "checkpoint manifest pipe",
        "kept_plugin",
        "plugin_as_a_preset",
        "environment in an address",
        "address",
        "address of a bucket",
        "pipe_as_data",
        "mask a device",
    ],
)
def test_it_is_not_evaluated(name, hostile, server):
    folder, runs = hostile
    code, said = command("evaluate", runs[name])
    assert code in (1, 2) and SECRET not in said and "Traceback" not in said, said
    unharmed(folder, server)


@pytest.mark.parametrize("name", [".lock pipe", ".lock zeros", "address", "config digits", "kept_plugin"])
def test_it_does_not_go_on(name, hostile, server):
    folder, runs = hostile
    code, said = command("run", f"resume={runs[name]}")
    assert code == 2 and SECRET not in said and "Traceback" not in said, said
    unharmed(folder, server)


def test_a_picture_is_a_picture(hostile):
    """A link to another file of this machine would be shown in the page, and published with it."""
    _, runs = hostile
    assert command("runs", "report", runs["picture_that_leads_out"])[0] == 0
    assert not leaks(runs["picture_that_leads_out"])


# ---- addresses


@pytest.fixture
def remote(good, server, tmp_path):
    """A run of somebody else whose data are on a server, and their address."""
    run = tmp_path / "remote"
    shutil.copytree(good, run)
    host, port = server.getsockname()
    cfg = load_config(run / "config.yaml")
    cfg.data.data_path, cfg.data.name = f"http://{host}:{port}/a.zarr", None
    (run / "config.yaml").write_text(to_yaml(cfg))
    return run, cfg.data.data_path


def test_an_address_is_not_asked_unless_it_is_named(remote, server, tmp_path, monkeypatch):
    run, address = remote
    for words in (["evaluate", run], ["run", f"resume={run}"]):
        code, said = command(*words)
        assert code == 2 and f"data.data_path={address}" in said and "so it was not contacted" in said
    with pytest.raises(BadInput, match="so it was not contacted"):
        xd.open_run(run).frames()
    unharmed(tmp_path, server)


def test_an_address_can_be_named_by_a_word_or_the_environment(remote, monkeypatch):
    from xrddiff.config.composition import inference_config
    from xrddiff.learn.loading import datasets

    run, address = remote
    asked = []
    monkeypatch.setattr(datasets, "open_data", lambda name, path, **words: asked.append(path) or 1 / 0)
    data = saved_plan(run).data
    with pytest.raises(BadInput, match="it was not contacted"):
        datasets.open_planned(data)
    with pytest.raises(BadInput, match="sampling changes the words of inference only"):
        inference_config(run, ["data.data_path=http://127.0.0.1:9/other.zarr"], generative=False)
    assert not asked and ADDRESSES not in os.environ
    inference_config(run, [f"data.data_path={address}"], generative=False)
    with pytest.raises(ZeroDivisionError):
        datasets.open_planned(data)
    monkeypatch.setenv(ADDRESSES, f"http://elsewhere/b.zarr {address}")
    with pytest.raises(ZeroDivisionError):
        datasets.open_planned(data)
    assert asked == [address, address]


def test_the_run_of_this_user_goes_on(remote, monkeypatch):
    """In a later process, which nobody tells the address."""
    run, address = remote
    remember_addresses([address])
    cfg = compose_config([f"resume={run}"])
    assert cfg.data.data_path == address and address not in os.environ[ADDRESSES]


def test_a_run_remembers_the_addresses_that_it_is_started_with(monkeypatch, tmp_path):
    from xrddiff.run.execution.run_folder import create_run

    address = "http://127.0.0.1:9/a.zarr"
    plan = compose_plan(["model=vae_kl", f"data.data_path={address}", "data=full", "data.data_id=null"])
    run = create_run(plan, tmp_path / "run")
    monkeypatch.delenv(ADDRESSES)
    assert compose_config([f"resume={run}"]).data.data_path == address
    monkeypatch.delenv(ADDRESSES)
    monkeypatch.setenv("XRDDIFF_STATE", str(tmp_path / "of somebody else"))
    with pytest.raises(BadInput, match="so it was not contacted"):
        compose_config([f"resume={run}"])


def test_what_is_typed_is_resolved_and_what_is_saved_is_not(good, tmp_path):
    cfg = compose_config(["model=vae_kl", "data=sim128", "run_name='${oc.env:XRDDIFF_SECRET_OF_TESTS}'"])
    assert cfg.run_name == SECRET  # the user's own word
    path = tmp_path / "config.yaml"
    for saved in ("run_name: '${oc.env:XRDDIFF_SECRET_OF_TESTS}'", "presets: {'${x}': a}", "plugins: ['a${b}']"):
        path.write_text(saved)
        with pytest.raises(BadInput, match="interpolation") as refused:
            load_config(path)
        assert SECRET not in str(refused.value)
    from xrddiff.core.ranks.scaling import _words_of_speed

    path.write_text("model: {model_name: '${oc.env:XRDDIFF_SECRET_OF_TESTS}'}")
    assert SECRET not in str(_words_of_speed(tmp_path))


def test_samples_say_their_configuration_as_text():
    """What is read from the attributes of samples: of somebody else, too."""
    import numpy as np
    import xarray as xr

    from xrddiff.judge.inference.judges import asked_of_all
    from xrddiff.run.studies.comparison import _seed

    bomb = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(9))
    for text in (bomb, "[" * 100_000, "inference: {seed: x, condition: 3}", "[1]", "42", "'${oc.env:HOME}'", "", "\0"):
        ds = xr.Dataset({"intensity": (("frame", "y", "x"), np.zeros((1, 2, 2)))}, attrs={"config": text})
        assert _seed(ds) is None and asked_of_all(ds) == {}
    assert _seed(xr.Dataset(attrs={"config": "inference: {seed: 7}"})) == 7
