"""Frames on a web server or in an S3 store: the same as in the folder, through failures, from the cache, and never of two contents.

Every server here is a real one on this machine.
"""

from __future__ import annotations

import contextlib
import gzip
import multiprocessing
import os
import pickle
import shutil
import socket
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from fsspec.config import conf as fsspec_conf
from range_server import RangeServer

from xrddiff.core.errors import BadInput
from xrddiff.core.seeds import numpy_rng
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.rows import frame_reader
from xrddiff.data.remote import byte_cache, remote_folder, servers
from xrddiff.data.remote.byte_cache import KeptBytes, Stamp

GEOMETRY = {"wavelength": 1.3, "distance": 0.1, "pixel_size": 1e-4, "beam_center": (32.0, 32.0)}
FRAMES, SIDE = 48, 64


def counts(seed: str = "remote") -> np.ndarray:
    return numpy_rng("test", seed).poisson(2.0, (FRAMES, SIDE, SIDE)).astype(np.uint16)


def write_foreign(path: Path, values: np.ndarray, **words) -> None:
    """A store of another program: an array with its geometry, one chunk per frame, blank frames left out."""
    group = zarr.open_group(path, mode="w")
    array = group.create_array("data", shape=values.shape, dtype=values.dtype, chunks=(1, SIDE, SIDE), **words)
    array[...] = values
    array.attrs.update(GEOMETRY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a store of ours, three shards, and one of another program; and a cache of its own."""
    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("xrddiff.data.formats.store.BLOCK", 16 * SIDE * SIDE * 2)
    save_frames(make_frames(counts(), units="photon", **GEOMETRY), tmp_path / "ours.zarr")
    values = counts("foreign")
    values[3] = 0
    write_foreign(tmp_path / "other.zarr", values)
    return tmp_path


@pytest.fixture
def web(place):
    with RangeServer(place) as server:
        yield server


@pytest.fixture
def hasty(monkeypatch):
    """Little patience, so that what fails for good does so soon."""
    monkeypatch.setattr(remote_folder, "PATIENCE", 1.0)
    monkeypatch.setattr(remote_folder, "FIRST", 0.6)
    monkeypatch.setattr(servers, "STALL", 0.3)


def same(a, b) -> None:
    """The frames of a folder and of a server; a frame that was never written is masked in the folder, whose files can be listed."""
    if "mask" in a:
        assert (~a["mask"]).all(["y", "x"]).sum() == (a["intensity"] == 0).all(["y", "x"]).sum() == 1
    assert a.drop_vars("mask", errors="ignore").drop_attrs(deep=False).identical(b.drop_attrs(deep=False))


def shard(path: Path, k: int) -> Path:
    return path / "intensity" / "c" / str(k) / "0" / "0"


def test_frames_are_those_of_the_folder(place, web):
    for name in ("ours.zarr", "other.zarr"):
        here, there = open_frames(place / name, automask=[]), open_frames(f"{web.address}/{name}/", automask=[])
        same(here.load(), there.load())
    both = open_frames([f"{web.address}/ours.zarr"] * 2)
    assert both.sizes["frame"] == 2 * FRAMES


def test_only_the_needed_ranges_are_read(place, web):
    ds = open_frames(f"{web.address}/ours.zarr")
    web.asked.clear()
    assert np.array_equal(ds["intensity"][17].values, counts()[17])
    index, chunk = web.asked
    size = shard(place / "ours.zarr", 1).stat().st_size
    assert {index.path, chunk.path} == {"ours.zarr/intensity/c/1/0/0"} and index.status == chunk.status == 206
    assert index.span == f"bytes {size - 16 * 16 - 4}-{size - 1}/{size}" and chunk.sent < size / 10


def test_a_second_epoch_asks_nothing_and_a_second_run_one_question_per_file(web):
    ds = open_frames(f"{web.address}/ours.zarr")
    read = frame_reader(ds["intensity"].variable)
    order = numpy_rng("test", "order").permutation(FRAMES).tolist()
    with ThreadPoolExecutor(4) as pool:
        first = list(pool.map(read, order))
        web.asked.clear()
        assert all(map(np.array_equal, first, pool.map(read, order))) and not web.asked
    again = open_frames(f"{web.address}/ours.zarr")
    assert np.array_equal(again["intensity"].values, counts())
    asked = [a.path for a in web.asked]
    assert {a.status for a in web.asked} <= {304, 404} and len(asked) == len(set(asked))
    worker = pickle.loads(pickle.dumps(again["intensity"]))
    web.asked.clear()
    assert np.array_equal(worker.values, counts()) and not web.asked


def test_processes_share_a_cold_cache(place, web):
    """Forked ones too, whose parent has connections of its own."""
    ds = open_frames(f"{web.address}/ours.zarr")
    assert np.array_equal(ds["intensity"][0].values, counts()[0])

    def total(k: int) -> None:
        found = ds["intensity"].values if k else open_frames(f"{web.address}/ours.zarr")["intensity"].values
        os._exit(0 if np.array_equal(found, counts()) else 1)

    workers = [multiprocessing.get_context("fork").Process(target=total, args=(k,)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    web.asked.clear()
    assert np.array_equal(open_frames(f"{web.address}/ours.zarr")["intensity"].values, counts())
    assert {a.status for a in web.asked} <= {304, 404}


def test_a_server_without_ranges_or_etags_gives_the_same(place):
    for words in ({"ranges": False}, {"etags": False}, {"ranges": False, "etags": False}):
        with RangeServer(place, **words) as web:
            for _ in range(2):
                ds = open_frames(f"{web.address}/ours.zarr")
                assert np.array_equal(ds["intensity"].values, counts()), words
            assert words.get("ranges", True) or max(a.sent for a in web.asked) > 1e4
            shards = [a for a in web.asked if "intensity/c/" in a.path and a.sent]
            assert len(shards) == (3 if "ranges" in words else FRAMES + 3)


def test_an_answer_that_does_not_say_its_length(place, web, hasty, monkeypatch):
    """It has as long as it goes on coming, and is not read without end."""
    monkeypatch.setattr(servers, "SLOWEST", 1 << 8)
    ds = open_frames(f"{web.address}/other.zarr")
    web.pause = 0.1  # more than the time for a stall, all together
    assert np.array_equal(ds["intensity"][7].values, counts("foreign")[7])
    monkeypatch.setattr(servers, "most_bytes", lambda: 1000)
    sentence(lambda: ds["intensity"][8].values, "more than 1000 bytes")


FAULTS = {
    "503 three times": [("status", 503)] * 3,
    "too many requests": [("status", 429)],
    "dropped connections": [("drop", 0)] * 3,
    "half of an answer": [("cut", 0), (None, 0), ("cut", 0)],
    "a stalled answer": [("slow", 0.6)],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_is_not_noticed(web, hasty, monkeypatch, faults):
    monkeypatch.setattr(remote_folder, "PATIENCE", 20.0)
    ds = open_frames(f"{web.address}/ours.zarr")
    web.faults.extend(faults)
    assert np.array_equal(ds["intensity"][[1, 20, 40]].values, counts()[[1, 20, 40]]) and not web.faults


def sentence(action, *words: str) -> str:
    """The one sentence of an action that fails, which says all of the `words`."""
    with pytest.raises(BadInput) as caught:
        action()
    said = str(caught.value)
    assert "\n" not in said and all(w in said for w in words), said
    return said


def test_a_server_that_stays_away_gets_one_sentence(place, web, hasty):
    ds = open_frames(f"{web.address}/ours.zarr")
    web.faults.extend([("status", 503)] * 100)
    sentence(lambda: ds["intensity"][5].values, web.address, "503 Service Unavailable", "tried", "times in")
    assert 80 < len(web.faults) < 99  # more than one try, with waits between them
    web.faults.clear()
    web.stop()
    sentence(lambda: ds["intensity"][5].values, "no connection", "tried")
    sentence(lambda: open_frames(f"{web.address}/ours.zarr"), "no connection", "tried")
    web.start()
    assert np.array_equal(ds["intensity"][5].values, counts()[5])  # nothing was lost


def test_what_is_not_there_is_said_at_once(place, web):
    sentence(lambda: open_frames(f"{web.address}/none.zarr"), f"{web.address}/none.zarr", "404")
    assert len({a.path for a in web.asked}) == len(web.asked)  # nothing was asked for twice
    sentence(lambda: open_frames(f"{web.address}/ours.zarr", dataset="no/such"), "expected no dataset")
    sentence(lambda: open_frames(f"{web.address}/other.zarr", dataset="no/such"), "has no array 'no/such'")
    (place / "page.zarr").mkdir()
    (place / "page.zarr" / "zarr.json").write_text("<html>please log in</html>")
    sentence(lambda: open_frames(f"{web.address}/page.zarr"), "page.zarr", "zarr store that can be read")
    web.faults.append(("status", 403))
    sentence(lambda: open_frames(f"{web.address}/ours.zarr"), "403 Forbidden", "permission to read it")
    sentence(lambda: open_frames("gs://bucket/a.zarr"), "expected http://, https://, s3://")
    (place / "bare.zarr").mkdir()
    zarr.open_group(place / "bare.zarr", mode="w").create_array("data", shape=(2, 9, 9), dtype="u2")
    sentence(lambda: open_frames(f"{web.address}/bare.zarr"), "consolidated metadata")


def test_a_lost_shard_of_ours_is_never_zeros(place, web):
    shard(place / "ours.zarr", 1).unlink()
    ds = open_frames(f"{web.address}/ours.zarr")
    assert np.array_equal(ds["intensity"][0].values, counts()[0])
    sentence(lambda: ds["intensity"][20].values, "frames 20 to 20", "lost", "c/1/0/0 is missing")
    sentence(lambda: ds["intensity"][20, :5].values, "lost", "c/1/0/0 is missing")


def test_a_chunk_of_others_is_blank_only_if_it_never_was_there(place, web, capsys):
    address, chunk = f"{web.address}/other.zarr", place / "other.zarr" / "data" / "c" / "5" / "0" / "0"
    ds = open_frames(address, automask=[])
    assert (ds["intensity"][3].values == 0).all() and "data/c/3/0/0 is not on the server" in capsys.readouterr().err
    assert (ds["intensity"][5].values == counts("foreign")[5]).all()
    chunk.unlink()
    assert (ds["intensity"][5].values == counts("foreign")[5]).all()  # it is here
    again = open_frames(address, automask=[])
    said = sentence(lambda: again["intensity"][5].values, "was there before", "is gone", "remove the folder")
    shutil.rmtree(said.rpartition("folder ")[2])
    assert (open_frames(address, automask=[])["intensity"][5].values == 0).all()


@pytest.mark.parametrize("etags", [True, False], ids=["ETag", "date"])
def test_other_bytes_than_before_end_the_reading_and_are_what_a_new_one_reads(place, etags):
    with RangeServer(place, etags=etags) as web:
        ds = open_frames(f"{web.address}/ours.zarr")
        assert np.array_equal(ds["intensity"][17].values, counts()[17])
        save_frames(make_frames(counts("new"), units="photon", **GEOMETRY), place / "ours.zarr")
        os.utime(shard(place / "ours.zarr", 1), (1e9, 1e9))  # older, as rsync leaves it
        sentence(lambda: ds["intensity"][18].values, "c/1/0/0 was changed on the server while it was read")
        new = open_frames(f"{web.address}/ours.zarr")
        assert np.array_equal(new["intensity"].values, counts("new"))


def test_damage_is_asked_for_once_more_and_not_kept(place):
    """A server, or something on the way, gives wrong bytes under the old date; later the right ones."""
    path = shard(place / "ours.zarr", 0)
    whole, status = path.read_bytes(), path.stat()

    def give(content: bytes) -> None:
        path.write_bytes(content)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        web.read.clear()

    with RangeServer(place, etags=False) as web:
        give(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
        ds = open_frames(f"{web.address}/ours.zarr")
        wrong = [i for i in range(16) if not reads(ds, i)]
        assert len(wrong) == 1
        give(whole)
        assert np.array_equal(ds["intensity"].values, counts())
        assert np.array_equal(open_frames(f"{web.address}/ours.zarr")["intensity"].values, counts())


def reads(ds, i: int) -> bool:
    """Whether frame i can be read; if not, its checksum is the reason."""
    try:
        return np.array_equal(ds["intensity"][i].values, counts()[i])
    except BadInput as error:
        assert "checksum" in str(error)
        return False


def test_a_cache_that_cannot_be_written_costs_only_time(place, web, monkeypatch, capsys):
    (place / "file").write_text("")
    monkeypatch.setenv("XRDDIFF_CACHE", str(place / "file"))
    ds = open_frames(f"{web.address}/ours.zarr")
    assert np.array_equal(ds["intensity"].values, counts()) and capsys.readouterr().err.count("are not kept in") == 1


@pytest.fixture
def bucket(place, monkeypatch):
    """An S3 store on this machine, with the stores in a bucket; `put(name)` puts one into it again."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    words = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "none"}
    for name, value in (words | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="beamline")

    def put(name: str) -> None:
        for path in (place / name).rglob("*"):
            if path.is_file():
                client.upload_file(str(path), "beamline", path.relative_to(place).as_posix())

    for name in ("ours.zarr", "other.zarr"):
        put(name)
    put.client, put.server = client, server
    yield put
    for found in client.list_objects_v2(Bucket="beamline")["Contents"]:  # what is stored is that of the process
        client.delete_object(Bucket="beamline", Key=found["Key"])
    client.delete_bucket(Bucket="beamline")
    put.server.stop()


def test_frames_in_an_s3_store(place, bucket, capsys):
    for name in ("ours.zarr", "other.zarr"):
        same(open_frames(place / name, automask=[]).load(), open_frames(f"s3://beamline/{name}", automask=[]).load())
    assert "data/c/3/0/0 is not on the server" in capsys.readouterr().err
    sentence(lambda: open_frames("s3://beamline/none.zarr"), "s3://beamline/none.zarr", "404")
    sentence(lambda: open_frames("s3://nowhere/none.zarr"), "NoSuchBucket")
    ds = open_frames("s3://beamline/ours.zarr")
    assert np.array_equal(ds["intensity"][1].values, counts()[1])
    save_frames(make_frames(counts("new"), units="photon", **GEOMETRY), place / "ours.zarr")
    bucket("ours.zarr")
    assert np.array_equal(ds["intensity"][1].values, counts()[1])  # kept
    shutil.rmtree(place / "cache")
    sentence(lambda: ds["intensity"][2].values, "c/0/0/0 was changed on the server while it was read")
    assert np.array_equal(open_frames("s3://beamline/ours.zarr")["intensity"].values, counts("new"))
    bucket.client.delete_object(Bucket="beamline", Key="ours.zarr/intensity/c/1/0/0")
    sentence(lambda: open_frames("s3://beamline/ours.zarr")["intensity"][20].values, "was there before", "is gone")


def test_an_s3_store_lists_what_is_not_consolidated_and_asks_for_its_library(place, bucket, monkeypatch):
    group = zarr.open_group(place / "bare.zarr", mode="w")
    array = group.create_array("data", shape=(4, SIDE, SIDE), chunks=(1, SIDE, SIDE), dtype=np.uint16)
    array[...] = counts()[:4]
    array.attrs.update(GEOMETRY)
    bucket("bare.zarr")
    assert np.array_equal(open_frames("s3://beamline/bare.zarr")["intensity"].values, counts()[:4])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    sentence(lambda: open_frames("s3://beamline/bare.zarr"), "needs s3fs", "pip install 'xrddiff[s3]'")


def test_an_s3_store_that_is_away_for_a_moment(place, bucket, monkeypatch):
    monkeypatch.setattr(servers, "STALL", 2.0)
    ds = open_frames("s3://beamline/ours.zarr")
    thread = bucket.server._server  # werkzeug's: the port closes, what is stored stays
    port = thread.server_port
    thread.shutdown()
    thread.server_close()
    from moto.server import ThreadedMotoServer

    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    threading.Timer(1.0, again.start).start()
    try:
        assert np.array_equal(ds["intensity"][[1, 20, 40]].values, counts()[[1, 20, 40]])
    finally:
        bucket.server = again


def train(source, folder: Path):
    """Weights after nine steps of a small network on the frames of `source`, a checkpoint after every second."""
    import torch

    from xrddiff.data.transforms.pipelines import make_transform
    from xrddiff.learn.loading.loader import FrameLoader
    from xrddiff.learn.training.trainer import Trainer

    class Objective(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.model = torch.nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, batch, step):
            return {"loss": (self.model(batch["x"]) - batch["x"]).square().mean((1, 2, 3))}

    ds = open_frames(source)
    loader = FrameLoader(ds, make_transform("asinh").fit(ds, np.arange(8)), batch_size=8, seed=3)
    options = dict(max_steps=9, checkpoint_every=2, global_batch_size=8, batch_size=8, lr=1e-2, log_every=1)
    trainer = Trainer(Objective(), loader, folder, progress=False, **options)
    trainer.fit()
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


def test_a_training_survives_the_loss_of_its_server_and_ends_as_on_local_files(place, web, one_thread):
    import torch

    here = train(place / "ours.zarr", place / "here")
    web.faults.extend([(None, 0)] * 30 + [("call", lambda: web.lost(3.0))])
    assert torch.equal(train(f"{web.address}/ours.zarr", place / "cold"), here)
    assert not web.faults
    web.asked.clear()
    assert torch.equal(train(f"{web.address}/ours.zarr", place / "warm"), here)
    assert {a.status for a in web.asked} <= {304, 404}


def test_a_training_whose_frames_change_stops_with_its_checkpoints(place, web, one_thread):
    import torch

    def change():
        save_frames(make_frames(counts("new"), units="photon", **GEOMETRY), place / "ours.zarr")

    web.faults.extend([(None, 0)] * 45 + [("call", change)])
    sentence(lambda: train(f"{web.address}/ours.zarr", place / "run"), "was changed on the server while it was read")
    assert not web.faults and list((place / "run" / "checkpoints").glob("step-*"))
    here = train(place / "ours.zarr", place / "here")
    assert torch.equal(train(f"{web.address}/ours.zarr", place / "again"), here)


# ---------------------------------------------------------------- servers that are somebody else's


class _Raw:
    """A server that answers every question with what `answer(question)` yields, piece by piece."""

    def __init__(self, answer):
        self.answer, self.asked, self.sent = answer, [], 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                here, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(here,), daemon=True).start()

    def _one(self, here):
        question = b""
        with contextlib.suppress(OSError), here:
            while b"\r\n\r\n" not in question and (more := here.recv(65536)):
                question += more
            self.asked.append(question.decode("latin-1"))
            for piece in self.answer(question.decode("latin-1")):
                here.sendall(piece)
                self.sent += len(piece)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()


def said_by(answer, part=(0, None)) -> str:
    """The sentence about a server, and that it did not send for long."""
    with _Raw(answer) as raw:
        with pytest.raises(BadInput) as caught:
            remote_folder.RemoteFolder(f"{raw.address}/a.zarr").part("zarr.json", *part)
        assert raw.sent < 64 << 20 and str(caught.value).isprintable(), (raw.sent, str(caught.value))
    return str(caught.value)


OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def endless(head: bytes, piece: bytes = bytes(1 << 16)):
    def answer(_):
        yield head
        while True:
            yield piece

    return answer


def test_a_server_that_sends_without_end_is_cut_off(hasty, monkeypatch):
    monkeypatch.setattr(servers, "most_bytes", lambda: 1 << 20)
    assert "more than 1048576 bytes" in said_by(endless(OK + b"\r\n"))
    many = b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-99/100\r\nConnection: close\r\n\r\n"
    assert "more than 100 bytes" in said_by(endless(many), (0, 100))
    assert "more than the" in said_by(endless(OK + b"Content-Length: 99999999999\r\n\r\n"))
    said_by(endless(OK, b"X-A: " + b"b" * 1000 + b"\r\n"))  # header fields
    said_by(endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100))


def test_what_a_server_compresses_is_unpacked_to_a_limit(hasty, monkeypatch):
    monkeypatch.setattr(servers, "most_bytes", lambda: 1 << 20)
    head = OK + b"Content-Encoding: gzip\r\n\r\n"
    bomb = gzip.compress(bytes(1 << 24))
    assert "unpacks to more than 1048576 bytes" in said_by(lambda _: iter([head, bomb]))
    assert "in the encoding br" in said_by(lambda _: iter([OK + b"Content-Encoding: br\r\n\r\n", b"abc"]))
    with _Raw(lambda _: iter([head, gzip.compress(b"{}")])) as raw:
        assert remote_folder.RemoteFolder(f"{raw.address}/a.zarr").part("zarr.json")[0] == b"{}"


def test_the_words_of_an_answer_are_harmless_text(hasty):
    said = said_by(
        lambda _: iter([b"HTTP/1.1 418 \x1b[31mred\x1b]0;title\x07" + b"x" * 500 + b"\r\nContent-Length: 0\r\n\r\n"])
    )
    assert "\x1b" not in said and len(said) < 300
    said_by(
        lambda _: iter([b"HTTP/1.1 503 No\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n"])
    )  # a digit that is no number


def test_secrets_go_to_the_server_that_was_named(hasty, monkeypatch):
    words = {
        "client_kwargs": {"headers": {"X-Token": "secret", "Authorization": "Bearer secret"}},
        "headers": {"X-Key": "secret"},
    }
    monkeypatch.setitem(fsspec_conf, "http", words)
    body = OK + b"Content-Length: 2\r\n\r\n{}"
    with _Raw(lambda _: iter([body])) as other:
        to = other.address.encode()
        with _Raw(
            lambda _: iter([b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + to + b"/b\r\n\r\n"])
        ) as named:
            assert remote_folder.RemoteFolder(f"{named.address}/a.zarr").part("zarr.json")[0] == b"{}"
        assert named.asked[0].count("secret") == 3 and other.asked and "secret" not in "".join(other.asked)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/a", "//127.0.0.1:99999/", "http://[", "/again"])
def test_redirects_lead_to_the_web_and_to_an_end(hasty, to):
    answer = f"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nConnection: close\r\nLocation: {to}\r\n\r\n".encode()
    assert "leads" in said_by(lambda _: iter([answer]))


def test_what_is_written_during_the_first_look_is_kept(tmp_path, monkeypatch):
    began, go_on, written = threading.Event(), threading.Event(), []
    make_room = byte_cache.make_room

    def slow(folder):
        began.set()
        go_on.wait(60)
        return make_room(folder)

    monkeypatch.setattr(byte_cache, "make_room", slow)
    kept, stamp = KeptBytes(tmp_path / "remote" / "a"), Stamp('"one"', 20)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept.write, "c/0", stamp, 0, b"0123456789")
        assert began.wait(60)
        second = pool.submit(lambda: written.append(kept.write("c/0", stamp, 10, b"abcdefghij")))
        with contextlib.suppress(TimeoutError):  # it waits for the look; before, it was let go
            second.result(0.2)
        assert not written
        go_on.set()
        first.result(60), second.result(60)
    assert kept.read("c/0", stamp, 5, 10) == b"56789abcde"


def test_two_that_find_a_file_at_the_same_time_keep_both_pieces(tmp_path, monkeypatch):
    kept, other = KeptBytes(tmp_path / "remote" / "a"), KeptBytes(tmp_path / "remote" / "a")
    stamp, asked = Stamp('"one"', 20), kept.stamp

    def late(name):  # the other one writes between the question and what follows from its answer
        found = asked(name)
        monkeypatch.setattr(kept, "stamp", asked)
        other.write("c/0", stamp, 0, b"0123456789")
        return found

    monkeypatch.setattr(kept, "stamp", late)
    kept.write("c/0", stamp, 10, b"abcdefghij")
    assert kept.read("c/0", stamp, 5, 10) == b"56789abcde"


def test_what_is_written_while_a_list_begins_is_kept(tmp_path, monkeypatch):
    """As soon as the list of a file is there, others write pieces; whoever made it leaves them alone."""
    from xrddiff.data.remote import byte_cache

    stamp, (first, second) = byte_cache.Stamp('"one"', 30), (byte_cache.KeptBytes(tmp_path / "a") for _ in range(2))
    made = byte_cache._new_file

    def then_the_other_writes(path, content):
        done = made(path, content)
        second.write("c/0", stamp, 10, b"of another")
        return done

    monkeypatch.setattr(byte_cache, "_new_file", then_the_other_writes)
    first.write("c/0", stamp, 0, b"its own ..")
    assert (
        second.read("c/0", stamp, 10, 10) == b"of another"
        and first.read("c/0", stamp, 0, 20) == b"its own ..of another"
    )
