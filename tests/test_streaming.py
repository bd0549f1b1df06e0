"""Streams of frames: none lost, none twice, whoever stalls or dies, and what a run says of them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import warm
import xarray as xr
import zarr
from conftest import local_workers
from hostile_messages import frames as small
from test_run import xrddiff

import xrddiff as xd
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.store import save_frames
from xrddiff.judge.inference.anomalies import Scorer
from xrddiff.run.streaming.answers import STORE, read_answers, read_stack
from xrddiff.run.streaming.arrivals import Listening, open_source
from xrddiff.run.streaming.detector_messages import header_message, image_message, open_pull, read_message, send_frames
from xrddiff.run.streaming.stream import Stream, StreamPlan


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def begin(*words: object, folder: Path) -> warm.Forked:
    """`xrddiff stream …` in the background."""
    return warm.start("xrddiff", "stream", *words, cwd=folder)


def answered(folder: Path) -> int:
    """How many frames a stream has answered."""
    try:
        return zarr.open_group(folder / STORE, mode="r").attrs["rows"]["frames"]
    except (KeyError, FileNotFoundError):
        return 0


def wait_for(true, process: warm.Forked, seconds: float = 600) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate(10)[0]
        assert time.monotonic() < ends, "nothing came"
        time.sleep(0.05)


def in_old_files(frames: xr.Dataset, folder: Path, each: int) -> Path:
    """The frames in files of so many, as if they had been there for long."""
    folder.mkdir()
    for i in range(0, frames.sizes["frame"], each):
        file = save_frames(frames.isel(frame=slice(i, i + each)), folder / f"run_{i // each}.h5")
        os.utime(file or folder / f"run_{i // each}.h5", (0, 0))
    return folder


@pytest.mark.slow
def test_a_listener_that_stalls_loses_nothing(tmp_path):
    """2000 frames as fast as they are taken; the listener is stopped for ten seconds in the midst of them."""
    frames, address = small(2000, 128), f"tcp://127.0.0.1:{free_port()}"
    sent = []

    def note(n: int) -> None:
        sent.append(n)
        if len(sent) == 1000:  # by the sender, so that there are frames left however fast the listener is
            stream.send_signal(signal.SIGSTOP)

    sender = threading.Thread(
        target=send_frames, args=(frames, address), kwargs=dict(encoding="none", sent=note, wait=120)
    )
    sender.start()
    # a buffer of a few frames, so that the sender has to wait for the listener
    stream = begin(address, "-n", 2000, "--batch", 32, "--memory", 1, "-o", "out", folder=tmp_path)
    wait_for(lambda: len(sent) >= 1000, stream)
    time.sleep(3)
    held = len(sent)
    time.sleep(7)
    assert held == len(sent) < 2000  # it waits
    stream.send_signal(signal.SIGCONT)
    said = stream.communicate(timeout=300)[0]
    sender.join(30)
    assert stream.returncode == 0, said
    table = read_answers(tmp_path / "out")
    assert table["name"].tolist() == [f"1:{i}" for i in range(2000)]
    assert np.array_equal(np.flatnonzero(table["hit"]), np.arange(0, 2000, 3))
    assert table["seconds"].max() > 7 and not table["why"].any()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["frames"] == 2000 and summary["hits"] == 667
    page = (tmp_path / "out" / "live.html").read_text()
    assert "2000 frames answered" in page and "refresh" not in page


@pytest.mark.slow
def test_nothing_is_lost_when_a_sender_of_this_machine_closes_while_nobody_reads(tmp_path):
    """ZeroMQ drops what is unread of such a connection when it is closed; the messages here are more than it holds itself."""
    address = f"ipc://{tmp_path}/detector"
    sender = threading.Thread(target=send_frames, args=(small(8), address))
    with open_pull(address) as pull:
        sender.start()
        sender.join(0.5)  # it has sent, or waits until it is read
        messages = list(itertools.takewhile(lambda m: m is not None, iter(lambda: pull.receive(5.0), ())))
    sender.join()
    assert len(messages) == 10


def test_a_sender_ends_when_its_last_frame_has_left(tmp_path):
    """The last frames are still in the socket when a slow listener comes to them."""
    address = f"tcp://127.0.0.1:{free_port()}"
    save_frames(small(8, 3072), tmp_path / "frames.h5")
    sender = warm.start("xrddiff", "data", "replay", "frames.h5", address, "--encoding", "none", cwd=tmp_path)
    pull, got = open_pull(address), []
    while not got or got[-1] != "dseries_end-1.0":
        message = pull.receive(20)
        assert message is not None, f"only {len(got)} messages came"
        time.sleep(0.2)
        got.append(json.loads(message[1][0])["htype"])
    pull.close()
    assert sender.wait(60) == 0
    assert got == ["dheader-1.0", *8 * ["dimage-1.0"], "dseries_end-1.0"]


@pytest.mark.slow
def test_a_stream_that_was_killed_goes_on(tmp_path):
    """Killed between two frames of a folder, with one file damaged, and given another file: each frame once."""
    folder = in_old_files(small(240), tmp_path / "frames", 24)
    (folder / "run_4.h5").write_bytes(b"damaged")
    os.utime(folder / "run_4.h5", (0, 0))
    late = tmp_path / "late.h5"
    (folder / "run_9.h5").rename(late)  # so that there is something left, however fast the stream is
    stream = begin("frames", "--batch", 4, "-o", "out", folder=tmp_path)
    wait_for(lambda: answered(tmp_path / "out") >= 20, stream)
    stream.kill()
    stream.wait()
    before = answered(tmp_path / "out")
    assert 20 <= before < 217
    late.rename(folder / "run_9.h5")
    done = xrddiff("stream", "frames", "--idle", "1", "-o", "out", folder=tmp_path)
    assert f"{before} frames were answered before" in done.stdout
    table = read_answers(tmp_path / "out")
    names = [f"run_{k}.h5:{i}" for k in range(10) if k != 4 for i in range(24)]
    assert sorted(table["name"]) == sorted([*names, "run_4.h5 (7 bytes)"])
    assert table["hit"].sum() == 72 and (table["why"] != "").sum() == 1
    assert "run_4.h5 is not HDF5" in table.set_index("name")["why"]["run_4.h5 (7 bytes)"]
    assert pd.read_csv(tmp_path / "out" / "answers.csv")["name"].tolist() == table["name"].tolist()
    count = read_answers(tmp_path / "out", "peaks")["row"].value_counts().reindex(range(len(table)), fill_value=0)
    assert np.array_equal(count, table["peaks"]) and count.sum() > 72 * 10


def test_a_file_that_was_looked_at_too_early_comes_again(tmp_path):
    frames = in_old_files(small(3), tmp_path / "frames", 3)
    whole = (frames / "run_0.h5").read_bytes()
    (frames / "run_0.h5").write_bytes(whole[:3000])
    os.utime(frames / "run_0.h5", (0, 0))
    source = open_source(str(frames), Listening({}))
    first = next(a for a in source if a is not None)
    assert first.layout is None and first.name == "run_0.h5 (3000 bytes)"
    (frames / "run_0.h5").write_bytes(whole)
    os.utime(frames / "run_0.h5", (0, 0))
    assert [next(a for a in source if a is not None).name for _ in range(3)] == [f"run_0.h5:{i}" for i in range(3)]
    shutil.rmtree(frames)
    with pytest.raises(BadInput, match="can no longer be read"):
        list(source)


WRITER = """
import sys, h5py, numpy as np
path, each = sys.argv[1], int(sys.argv[2])
images, flags = np.load(path + ".npy"), np.load(path + ".flags.npy")
with h5py.File(path, "w", libver="latest") as file:
    data = file.create_dataset("entry/data", (0, 64, 64), "u2", maxshape=(None, 64, 64), chunks=(each, 64, 64))
    file["entry/pixel_mask"] = flags
    file.swmr_mode = True
    print("open", flush=True)
    input()
    data.resize(6, axis=0)
    for i, image in enumerate(images[:5]):
        data[i] = image
        data.flush()
    print("five", flush=True)
    input()
    data[5] = images[5]
"""


@pytest.mark.parametrize("each", [1, 4])
def test_a_file_that_grows_is_read_as_when_it_is_closed(tmp_path, each):
    """Its mask counts, so do pixels without a value, and no frame of a chunk comes before it is written."""
    path, images = tmp_path / "run.h5", small(6)["intensity"].values
    images[:, 40, 40], images[:, 20:22, 20:22] = 65535, 5000
    flags = np.zeros(images.shape[1:], np.uint32)
    flags[20:22, 20:22] = 4
    np.save(f"{path}.npy", images)
    np.save(f"{path}.flags.npy", flags)
    words = dict(wavelength=1.3, distance=0.1, pixel_size=1e-4, beam_center=(32, 32))
    command, pipes = (
        [sys.executable, "-c", WRITER, path, str(each)],
        dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE),
    )
    with subprocess.Popen(command, text=True, bufsize=1, **pipes) as writer:
        assert writer.stdout.readline() == "open\n"
        source = open_source(str(path), Listening(words))
        assert next(source) is None
        writer.stdin.write("\n")
        assert writer.stdout.readline() == "five\n"
        first = 5 if each == 1 else 4
        there = list(itertools.islice((a for a in source if a is not None), first))
        assert next(source) is None  # the rest may still come
        writer.stdin.write("\n")
    there += [a for a in source if a is not None]
    assert [a.name for a in there] == [f"run.h5:{i}" for i in range(6)]
    assert all(np.array_equal(a.image, image) for a, image in zip(there, images, strict=True))
    mask = there[0].layout.frames["mask"].values
    assert not mask[40, 40] and not mask[20:22, 20:22].any() and (~mask).sum() == 5


def test_a_series_that_begins_again_is_another_one():
    frames, series, known = small(2), {}, set()
    told = Listening({}, known.__contains__)
    for name in ("1", "1.2", "1.3"):
        assert read_message(header_message(frames, 1), series, told) is None
        for i, image in enumerate(frames["intensity"].values):
            arrived = read_message(image_message(image, 1, i), series, told)
            assert arrived.name == f"{name}:{i}" and read_message(image_message(image, 1, i), series, told)
            known.add(arrived.name)
        assert read_message(image_message(image, 1, 1), series, told) is None  # sent twice
    with pytest.raises(BadInput, match="not JSON"):
        read_message([b"[" * 100_000], series, told)
    head, about, *rest = image_message(image, 1, 9)
    about = about.replace(b"[64, 64]", b"[true, true]")
    assert "expected [x, y]" in read_message([head, about, *rest], series, told).why


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cell", "nonsense"], "cell 'nonsense': expected"),
        (["--cell", "gone.pdb"], "gone.pdb does not exist"),
        (["--enough", "cc_half=0.9"], "expected one too"),
        (["wavlength=1.3"], "did you mean 'wavelength'"),
        (["beam_center=64"], "2 finite numbers"),
        (["geometry=gone.geom"], "gone.geom"),
        (["--memory", "nan"], "expected megabytes"),
        (["-o", "frames/run_0.h5"], "is a file; expected the name of a new folder"),
    ],
)
def test_mistakes_are_said_before_a_frame_is_taken(tmp_path, capsys, monkeypatch, words, sentence):
    from xrddiff.app.verbs.main import main

    in_old_files(small(2), tmp_path / "frames", 2)
    monkeypatch.chdir(tmp_path)
    words = words if "-o" in words else [*words, "-o", "out"]
    assert main(["stream", "frames", "--idle", "1", *words]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_port_and_a_damaged_folder(tmp_path):
    with pytest.raises(BadInput, match="port from 1 to 65535"):
        Stream(StreamPlan("tcp://localhost:99999"), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stream.json").write_text("{")
    with pytest.raises(BadInput, match="stream.json cannot be read"):
        Stream(StreamPlan("tcp://localhost:9999"), tmp_path / "out")


@pytest.mark.slow
def test_workers_answer_as_one_process_and_may_die(tmp_path):
    folder = in_old_files(small(120), tmp_path / "frames", 40)
    xrddiff("stream", folder, "--idle", "1", "-o", "alone", folder=tmp_path)
    stream = begin(folder, "--batch", 2, "--workers", 2, "--idle", 3, "-o", "out", folder=tmp_path)
    wait_for(lambda: answered(tmp_path / "out") >= 6, stream)
    local_workers(stream.pid)[0].kill()
    said = stream.communicate(timeout=200)[0]
    assert stream.returncode == 0, said
    alone, shared = (read_answers(tmp_path / name).drop(columns=["arrived", "seconds"]) for name in ("alone", "out"))
    pd.testing.assert_frame_equal(alone, shared)


def test_dropped_frames_have_a_row_that_says_so(tmp_path):
    """With `drop`, a source never waits: the newest frame is answered, and each older one says that it was dropped."""
    folder = in_old_files(small(12), tmp_path / "frames", 12)
    opened = Stream(StreamPlan(str(folder), idle=0.5, page=0, memory=1, drop=True), tmp_path / "out")

    def until_all_were_read(standing) -> None:
        ends = time.monotonic() + 60
        while opened.reception.nothing_since is None and time.monotonic() < ends:
            time.sleep(0.01)

    table = read_answers(opened(until_all_were_read))
    dropped = table["why"].str.startswith("it was dropped")
    assert len(table) == 12 == table["name"].nunique() and dropped.sum() in (10, 11) and not dropped.iloc[-1]
    assert (
        opened.standing.dropped == dropped.sum() == json.loads((tmp_path / "out/summary.json").read_text())["dropped"]
    )
    assert not table["hit"][dropped].any() and opened.standing.refused == 0
    assert f"{dropped.sum()} frames were dropped" in (tmp_path / "out/live.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["latent_diff", "vae_kl"])
def test_what_a_run_says_of_frames(runs, one_thread, tmp_path, model):
    """Scores and latents are those of the run; a frame of another size is answered without them."""
    run = runs(model)
    frames = xd.open_run(run).frames("all", limit=6)
    folder = tmp_path / "frames"
    folder.mkdir()
    save_frames(frames, folder / "run_1.h5")
    save_frames(small(1, 96), folder / "run_2.h5")
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    out = Stream(StreamPlan(str(folder), run=str(run), idle=0.5, page=0), tmp_path / "out")()
    table = read_answers(out)
    assert len(table) == 7 and "96 x 96" in table["why"].iloc[-1] and not table["why"].iloc[:6].any()
    latents = read_stack(out)
    scorer = Scorer(run)
    own = scorer(scorer.fit(frames))[1].numpy()
    assert np.allclose(latents[:6], own, atol=1e-5) and np.isnan(latents[6]).all()
    assert (table["anomaly"].iloc[:6] >= 0).all() and np.isnan(table["anomaly"].iloc[6])
    page = (out / "live.html").read_text()
    assert "7 frames answered" in page
    with pytest.raises(BadInput, match="another folder"):
        Stream(StreamPlan(str(folder)), out)
    with pytest.raises(xd.XrddiffError, match="holds no intact checkpoint"):
        Stream(StreamPlan(str(folder), run=str(folder)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_mistakes_are_sentences(tmp_path):
    for words, sentence in (
        (["nowhere"], "nowhere does not exist"),
        (["ftp://detector"], "expected a folder, a file, or an address"),
        ([".", "--min-peaks", "0"], "min-peaks is 0; expected 1 or more"),
        ([".", "--workers", "many"], "the workers are 'many'"),
        (["tcp://nonsense"], "expected a port from 1 to 65535"),
    ):
        done = xrddiff("stream", *words, "-o", "out", folder=tmp_path, check=False)
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
    done = xrddiff("data", "replay", "nowhere.h5", "tcp://127.0.0.1:1", folder=tmp_path, check=False)
    assert done.returncode == 2 and "nowhere.h5" in done.stderr
