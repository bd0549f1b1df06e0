"""What no input does: end a stream, hide what it could not answer, or change what it said."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
import zmq
from hostile_messages import frames as shots
from hostile_messages import fuzzed, good

from xrddiff.core.errors import BadInput
from xrddiff.core.launcher import python_words, run
from xrddiff.data.formats.store import save_frames
from xrddiff.run.streaming import answering, stream
from xrddiff.run.streaming.answers import STORE, Answers, read_answers, read_stack, read_stream_summary
from xrddiff.run.streaming.arrivals import Arrived, Listening, layout_of, written_name
from xrddiff.run.streaming.detector_messages import MOST_SERIES, SERIES, Senders, decompress, header_message, open_pull
from xrddiff.run.streaming.stream import NOT_YET, Stream, StreamPlan

WORDS = dict(wavelength=1.3, distance=0.1, pixel_size=1e-4, beam_center=(32, 32))


@pytest.fixture(scope="module")
def images():
    return shots(12)["intensity"].values


def put(path: Path | bytes, image: np.ndarray | bytes, age: float = 1e6) -> None:
    """A file of one image that was written so many seconds ago."""
    with open(path, "wb") as file:
        np.save(file, image) if isinstance(image, np.ndarray) else file.write(image)
    os.utime(path, (time.time() - age,) * 2)


def listen(folder: Path, out: Path, **words) -> Stream:
    """A stream of a folder, after its end."""
    words = dict(idle=1.0, page=0, min_peaks=5, words=WORDS) | words
    opened = Stream(StreamPlan(str(folder), **words), out)
    opened()
    return opened


def test_no_file_ends_a_stream_or_comes_twice(tmp_path, images):
    folder = tmp_path / "frames"
    folder.mkdir()
    names = [
        b"run_1.npy",
        b"run_\xff.npy",
        b"run$_$2.npy",
        b"[red]\x1b[31m.npy",
        b"<script>.npy",
        b"a\\b.npy",
        b"line\nbreak.npy",
    ]
    for name in names:
        put(os.path.join(os.fsencode(folder), name), images[0])  # each a hit
    put(folder / "short.h5", b"\x89HDF\r\n\x1a\n")
    put(folder / "empty.npy", b"")
    os.mkfifo(folder / "pipe.npy")
    (folder / "zero.npy").symlink_to("/dev/zero")
    (folder / "gone.npy").symlink_to("nowhere")
    (folder / "loop.npy").symlink_to("loop.npy")
    (folder / "inner").mkdir(mode=0)
    with socket.socket(socket.AF_UNIX) as sock:
        os.chdir(folder)  # names of sockets are short
        sock.bind("socket.npy")
        os.chdir(tmp_path)
    opened = listen(folder, tmp_path / "out")
    table = read_answers(tmp_path / "out").set_index("name")
    assert {written_name(os.fsdecode(name)) for name in names} == set(table.index[table["hit"]])
    whys = table["why"][table["why"] != ""]
    odd = {
        "short.h5 (8 bytes)",
        "empty.npy (0 bytes)",
        "pipe.npy (a named pipe)",
        "zero.npy (a device)",
        "socket.npy (a socket)",
    }
    assert odd <= set(whys.index) and "named pipe; expected a file" in whys["pipe.npy (a named pipe)"]
    assert read_stream_summary(tmp_path / "out")[NOT_YET] == {"gone.npy": "it is a link, and its target is missing"}
    assert not opened.standing.page
    page = (tmp_path / "out" / "live.html").read_text()
    assert (
        "could not be drawn" not in page and "The last hit" in page and "<script>." not in page and "gone.npy" in page
    )
    again = listen(folder, tmp_path / "out")  # nothing is answered twice
    assert again.standing.frames == 0 and len(read_answers(tmp_path / "out")) == len(table)


def test_names_stay_apart():
    names = [
        "a",
        "å$_$",
        "run\udcff",
        "run\xff",
        r"run\udcff",
        r"run\xff",
        "\x1b",
        r"\x1b",
        "\n",
        "\\",
        "\\\\",
        "\ud800",
        "a\x9b",
        "a\udc9b",
    ]
    assert len({written_name(name) for name in names}) == len(names)
    assert all(written_name(name).encode().decode().isprintable() for name in names)
    assert written_name("å$_$") == "å$_$"


def test_a_frame_that_breaks_what_answers_it_has_a_row(tmp_path, monkeypatch, images):
    """Whatever raises: finding peaks, the page, stacking frames; the others are answered."""
    real = answering.find_frame_peaks

    def find(frames, **words):
        if (frames["intensity"].values == images[5]).all((1, 2)).any():
            raise ZeroDivisionError("nobody\nthought \x1b of this")
        return real(frames, **words)

    def fail(*args, **words):
        raise OSError("no page today")

    monkeypatch.setattr(answering, "find_frame_peaks", find)
    monkeypatch.setattr(stream, "write_page", fail)
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, image in enumerate(images):
        put(folder / f"run_{i}.npy", image)
    opened = listen(folder, tmp_path / "out")
    table = read_answers(tmp_path / "out")
    assert table["name"].tolist() == [f"run_{i}.npy" for i in range(12)]
    assert np.flatnonzero(table["why"]).tolist() == [5]
    assert table["why"][5] == "it could not be answered: nobody thought \\x1b of this"
    assert np.flatnonzero(table["hit"]).tolist() == [0, 3, 6, 9]
    count = read_answers(tmp_path / "out", "peaks")["row"].value_counts().reindex(range(12), fill_value=0)
    assert np.array_equal(count, table["peaks"])
    assert opened.standing.page == "no page today" and (tmp_path / "out" / "answers.csv").is_file()


def test_arrivals_that_do_not_go_together(tmp_path, images):
    """One lacks what the others have of their own, one has another shape than it says, one has no numbers."""
    layout = layout_of(shots(1))
    came = [
        Arrived("a", layout, images[0], 1.0, own={"wavelength": 1.3}),
        Arrived("b", layout, images[3], 1.0),
        Arrived("c", layout, images[0][:9], 1.0),
        Arrived("d", layout, np.full(images[0].shape, None), 1.0),
        Arrived("e\udcff", layout, images[0], 1.0, own={"distance": 0.1}),
    ]
    opened = Stream(StreamPlan(str(tmp_path), idle=1.0), tmp_path / "out")
    opened.reception.start(lambda: iter(came))
    while not opened.reception.buffer.closed:
        time.sleep(0.01)
    told = []
    batches = [opened.reception.buffer.take(9, 0.0) for _ in came]
    for _, task in filter(None, stream.Tasks(opened.question, None).of(batches)):
        said = stream._answer(*task, device=None)
        told += zip(said.table["name"], said.table["why"], said.table["hit"], strict=True)
    assert [(name, bool(why), bool(hit)) for name, why, hit in told] == [
        ("a", False, True), ("b", False, True), ("c", True, False), ("d", True, False), ("e\\udcff", False, True)
    ]  # fmt: skip
    opened._hold.close()


LEFT = """
import h5py, numpy as np, os, sys
with h5py.File(sys.argv[1], "w", libver="latest") as file:
    data = file.create_dataset("data", (3, 64, 64), "u2", maxshape=(None, 64, 64), chunks=(1, 64, 64))
    if sys.argv[2] == "swmr":
        file.swmr_mode = True
        data[:2] = np.load(sys.argv[3])[:2]
        data.flush()
    os._exit(0)  # killed
"""


@pytest.fixture(scope="module")
def left_open(tmp_path_factory, images):
    """Files whose writers were killed: one in SWMR mode, one not."""
    folder = tmp_path_factory.mktemp("left")
    np.save(folder / "images", images)
    for name in ("swmr", "other"):
        run(
            python_words(str(folder / f"{name}.h5"), name, str(folder / "images.npy"), code=LEFT),
            timeout=120,
            check=True,
        )
    return folder


def test_files_ahead_of_the_clock_or_left_by_their_writer(tmp_path, images, left_open):
    folder = tmp_path / "frames"
    folder.mkdir()
    put(folder / "ahead.npy", images[0], age=-3600)
    for name in ("swmr.h5", "other.h5"):
        put(folder / name, (left_open / name).read_bytes())
    early = listen(folder, tmp_path / "early", idle=2.0)
    assert set(read_answers(tmp_path / "early")["name"]) == {"ahead.npy"}
    said = read_stream_summary(tmp_path / "early")[NOT_YET]
    assert set(said) == {"swmr.h5", "other.h5"} and "its writer has not closed it" in said["swmr.h5"]
    page = (tmp_path / "early" / "live.html").read_text()
    assert "Not answered at all" in page and "swmr.h5" in page and early.plan.patience == 60
    listen(folder, tmp_path / "late", idle=2.0, patience=0.5)
    table = read_answers(tmp_path / "late").set_index("name")
    assert table.loc[["ahead.npy", "swmr.h5:0", "swmr.h5:1"], "why"].eq("").all()
    rest = table["why"][table["why"] != ""]
    assert sorted(name.split()[0] for name in rest.index) == ["other.h5", "swmr.h5"]
    assert rest.str.contains("its writer has not closed it").all()
    alone = listen(folder / "swmr.h5", tmp_path / "alone", idle=2.0, patience=0.5)
    assert alone.standing.frames == 3 and read_stream_summary(tmp_path / "alone")[NOT_YET].keys() == {"swmr.h5"}
    with h5py.File(left_open / "closed.h5", "w") as file:  # the rest is answered when it is closed
        file["data"] = images[:3]
    put(folder / "swmr.h5", (left_open / "closed.h5").read_bytes())
    listen(folder, tmp_path / "late", idle=1.0, patience=0.5)
    assert {f"swmr.h5:{i}" for i in range(3)} <= set(read_answers(tmp_path / "late")["name"])


def test_messages_that_were_tampered_with_leave_good_ones_alone():
    senders, told = Senders(), Listening({})
    answered, refused, before = [], 0, psutil.Process().memory_info().rss
    messages, images = iter(list(good(40))), shots(40)["intensity"].values
    for k, parts in enumerate(fuzzed(2000)):
        try:
            arrived = senders.read(2 + k % 3, parts, told)
            refused += arrived is not None and arrived.layout is None
        except BadInput as error:
            refused += 1
            assert str(error).encode().decode().isprintable()
        if k % 40 == 0 and (one := next(messages, None)) is not None and (arrived := senders.read(1, one, told)):
            answered.append(arrived)
    assert [a.name for a in answered] == [f"1:{i}" for i in range(40)] and 1000 < refused < 2000
    assert all(np.array_equal(a.image, image) for a, image in zip(answered, images, strict=True))
    assert {a.layout.key for a in answered} == {answered[0].layout.key}
    assert answered[0].layout.frames.attrs["beam_center"] == (32, 32)
    assert psutil.Process().memory_info().rss - before < 300 << 20


def test_headers_and_blocks_that_would_take_all_memory():
    senders, told, before = Senders(), Listening({}), psutil.Process().memory_info().rss
    large = header_message(shots(1, 1024), 0)
    for k in range(3000):
        head = json.dumps({"htype": "dheader-1.0", "series": k}).encode()
        config = json.dumps({"wavelength": 1.3, "x": "x" * 500_000} if k % 10 == 0 else {}).encode()
        senders.read(k % 500, [head, config, *(large[2:] if k % 100 == 0 else ())], told)
    assert all(len(own) <= SERIES for own in senders._of.values())
    assert sum(map(len, senders._of.values())) <= MOST_SERIES
    assert psutil.Process().memory_info().rss - before < 200 << 20
    for blob, shape, encoding in (
        (bytes(1 << 20), (1 << 15, 1 << 15), "lz4<"),  # 4 GB
        (bytes(1000), (4096, 4096), "lz4<"),  # 64 MB in a kB
        (bytes(1000), (4096, 4096), "bs32-lz4<"),
        (b"", (1 << 40, 1 << 40), "<"),
    ):
        with pytest.raises(BadInput):
            decompress(blob, shape, "uint32", encoding)
    with pytest.raises(BadInput, match="65 parts; expected at most 64"):
        senders.read(1, [b"{}"] * 65, told)
    assert psutil.Process().memory_info().rss - before < 200 << 20


def test_only_the_interface_that_is_named_listens(tmp_path):
    for address, host in (
        ("tcp://*:*", "127.0.0.1"),
        ("listen://127.0.0.2:*", "127.0.0.2"),
        ("tcp://0.0.0.0:*", "0.0.0.0"),
    ):
        with open_pull(address) as pull:
            here = {c.laddr for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
            assert (host, pull.port) in here
    for bad in ("listen://nowhere.invalid:9999", "tcp://127.0.0.1:*", "listen://:9999", "tcp://a b:1", "ipc://"):
        with pytest.raises(BadInput, match=r"listen|expected a port"):
            open_pull(bad)


def test_frames_come_through_whoever_else_connects(tmp_path):
    """Good frames beside idle connections, other protocols, endless messages and messages that were tampered with."""
    opened = Stream(StreamPlan("tcp://*:*", idle=2.0, page=2.0), tmp_path / "out")
    ended, idle = threading.Event(), []

    def send() -> None:
        while not opened.listening.listens:
            time.sleep(0.01)
        host, port = opened.listening.listens.split(":")
        for k in range(150):
            idle.append(sock := socket.create_connection((host, int(port))))
            if k % 3:
                sock.sendall((b"GET / HTTP/1.1\r\n" * 5, b"\xff" + bytes(8) + b"\x7f\x03\x00NULL")[k % 3 - 1])
        with zmq.Context() as context:
            pushes = [context.socket(zmq.PUSH) for _ in range(3)]
            for push in pushes:
                push.connect(f"tcp://{host}:{port}")
            messages = good(30)
            pushes[0].send_multipart(next(messages))
            pushes[1].send_multipart([b'{"htype":"dimage-1.0","series":1,"frame":"\\ud800"}'])
            pushes[1].send_multipart([b'{"htype":"\\ud800"}', b"\xff", b""])
            for k, parts in enumerate(fuzzed(300)):
                pushes[1].send_multipart(parts)
                if k % 10 == 0:
                    pushes[0].send_multipart(next(messages))
            pushes[2].send_multipart([b"x"] * 1000)
            pushes[0].send_multipart(next(messages))
            for push in pushes:
                push.close(linger=3000)
        ended.set()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    opened()
    sender.join(60)
    assert ended.is_set()
    for sock in idle:
        sock.close()
    table = read_answers(tmp_path / "out").set_index("name")
    own = table.loc[[f"1:{i}" for i in range(30)]]
    assert own["why"].eq("").all() and np.flatnonzero(own["hit"]).tolist() == list(range(0, 30, 3))
    assert (table["why"] != "").sum() > 10 and table["why"].str.contains("more than 64 parts").any()
    assert not opened.standing.page


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A folder of answers with latents, and its plan."""
    root = tmp_path_factory.mktemp("answered")
    (root / "frames").mkdir()
    ds = shots(8)
    save_frames(ds, root / "frames" / "run_1.h5")
    os.utime(root / "frames" / "run_1.h5", (0, 0))
    plan = StreamPlan(str(root / "frames"), idle=0.3, page=0, min_peaks=9)
    opened = Stream(plan, root / "out")
    opened()
    latents = np.random.default_rng(0).random((8, 2, 3, 3), np.float32)
    other = Answers(root / "latents")
    some = pd.DataFrame({"name": [f"é{i}" for i in range(8)], "peaks": np.arange(8), "why": ""})
    other.append(some, pd.DataFrame({"row": [0, 3], "fs": [1.0, 2.0]}), {"latent": latents})
    return root, plan


def test_every_flipped_bit_of_answers_is_seen_or_harmless(answered):
    root, plan = answered

    def outcome() -> list:
        found = [read_answers(root / name, table) for name in ("out", "latents") for table in ("frames", "peaks")]
        opened = Stream(plan, root / "out")  # reads stream.json, and what it goes on from
        opened._hold.close()
        return [*found, read_stack(root / "latents"), read_stream_summary(root / "out"), sorted(opened.answers.names)]

    expected = outcome()
    files = [p for name in ("out", "latents") for p in sorted((root / name).rglob("*")) if p.is_file()]
    files = [
        p for p in files if p.name not in ("live.html", "answers.csv", "xrddiff.json")
    ]  # for people; nothing reads them
    whole = [(f, i) for f in files for i in range(8 * f.stat().st_size)]
    kept, seen = {f: f.read_bytes() for f in files}, 0
    assert {f.name for f in files} == {"0", "stream.json", "summary.json", "zarr.json"}
    for k in np.linspace(0, len(whole) - 1, 240).astype(int):
        file, bit = whole[k]
        damaged = bytearray(kept[file])
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            for one, other in zip(outcome(), expected, strict=True):
                if isinstance(one, pd.DataFrame):
                    pd.testing.assert_frame_equal(one, other)
                else:
                    assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
        except BadInput as error:
            seen += 1
            assert "\n" not in str(error), error
        for f in files:  # opening a store may write to it
            if f.read_bytes() != kept[f]:
                f.write_bytes(kept[f])
    assert seen > 180


def test_damage_names_the_rows(answered):
    root, _ = answered
    chunk = root / "out" / STORE / "frames" / "numbers" / "c" / "0" / "0"
    kept = chunk.read_bytes()
    try:
        chunk.write_bytes(kept[:20] + bytes([kept[20] ^ 4]) + kept[21:])
        with pytest.raises(BadInput, match="the rows 0 to 7 of frames/numbers are damaged"):
            read_answers(root / "out")
        chunk.unlink()
        with pytest.raises(BadInput, match="their file is missing"):
            read_answers(root / "out")
    finally:
        chunk.write_bytes(kept)
