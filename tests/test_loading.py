"""Splits, orders, batches: what the notebook does not show (many processes, threads that fail, memory, broken files)."""

import gc
import itertools
import os
import subprocess
import sys
import threading
import time

import h5py
import hdf5plugin
import numpy as np
import pytest
import torch

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames import rows
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.selection import concat_frames, select_frames
from xrddiff.data.transforms.pipelines import Pipeline
from xrddiff.data.transforms.spatial import Pool, as_images
from xrddiff.data.transforms.values import Asinh, Linear, MinMaxPerImage
from xrddiff.learn.loading.loader import FrameLoader, epoch_order, split_by_group

RAW = Linear(standardise=False)


def counts(n=23, h=12, w=20, dtype=np.uint16):
    return np.random.default_rng(0).poisson(7.0, (n, h, w)).astype(dtype)


def write(path, values, **words):
    with h5py.File(path, "w") as f:
        words = words or {"chunks": (1, *values.shape[1:]), **hdf5plugin.Bitshuffle(cname="lz4")}
        f.create_dataset("entry_1/data_1/data", data=values, **words)
    return path


class Reads:
    """A lazy array that notes, delays or breaks reads."""

    def __init__(self, values, broken=(), delay=0.0):
        self.values, self.shape, self.dtype, self.chunks = values, values.shape, values.dtype, None
        self.broken, self.delay, self.rows = set(broken), delay, []

    def __getitem__(self, key):
        rows = np.atleast_1d(np.arange(len(self.values))[key[0]])
        self.rows += rows.tolist()
        time.sleep(self.delay)
        if self.broken & set(rows.tolist()):
            raise OSError("the disk is on fire")
        return self.values[key]


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("frames")]


def same(a, b):
    cond = a["cond"].keys() == b["cond"].keys() and all(torch.equal(a["cond"][k], b["cond"][k]) for k in a["cond"])
    return cond and all(torch.equal(a[k], b[k]) for k in ("x", "mask", "index"))


# ---- split


def test_no_group_on_both_sides_and_the_ratio_is_the_best_there_is():
    rng = np.random.default_rng(0)
    for trial in range(60):
        sizes = rng.integers(1, 30, rng.integers(2, 11))
        labels = rng.permutation(np.repeat([f"run {k}" for k in range(len(sizes))], sizes))
        ratio = rng.uniform(0.05, 0.95)
        train, val = split_by_group(labels, ratio, seed=trial)
        assert not set(labels[train]) & set(labels[val]) and len(train) and len(val)
        assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
        assert (np.diff(train) > 0).all() and train.dtype == val.dtype == np.int64
        sums = [sum(c) for r in range(1, len(sizes)) for c in itertools.combinations(sizes, r)]
        target = round(ratio * len(labels))
        assert abs(len(train) - target) == min(abs(s - target) for s in sums)


def test_the_split_of_many_groups_is_a_function_of_the_seed():
    labels = np.repeat(np.arange(4000), 25)
    train, _ = split_by_group(labels)
    assert len(train) == 80_000
    assert np.array_equal(split_by_group(labels)[0], train)
    assert 0.7 < np.isin(split_by_group(labels, seed=43)[0], train).mean() < 0.9  # independent draws share 80%


def test_contiguous_splits_have_few_edges():
    for n, blocks in ((647, 10), (40, 10), (7, 10), (2, 10), (1000, 4)):
        train, val = split_by_group(np.arange(n), contiguous=True, blocks=blocks)
        assert len(val) and (np.diff(val) > 1).sum() + 1 <= max(1, round(0.2 * min(blocks, n)) + 1)
        assert n < 40 or abs(len(train) / n - 0.8) < 0.06
    scans = np.repeat(np.arange(20), np.random.default_rng(1).integers(10, 50, 20))  # borders are kept
    train, val = split_by_group(scans, contiguous=True)
    assert not set(scans[train]) & set(scans[val]) and abs(len(train) / len(scans) - 0.8) < 0.1
    interleaved = np.tile([0, 1], 30)
    with pytest.raises(BadInput, match="one contiguous stretch"):
        split_by_group(interleaved, contiguous=True)


def test_bad_splits_are_refused():
    for labels, ratio, words in (
        ([1] * 9, 0.8, "all 9 frames form one group"),
        ([], 0.8, "one label per frame"),
        ([[1, 2]], 0.8, "one label per frame"),
        ([1, 2], 1.0, "between 0 and 1"),
        ([1, 2], 0, "between 0 and 1"),
    ):
        with pytest.raises(BadInput, match=words):
            split_by_group(labels, ratio)


# ---- order and shares


def test_orders_are_permutations_and_never_change():
    assert epoch_order(6, 42, 1).tolist() == [4, 1, 3, 5, 2, 0]
    seen = {tuple(epoch_order(8, s, e)) for s in range(10) for e in range(10)}
    assert len(seen) > 95 and all(sorted(o) == list(range(8)) for o in seen)
    assert len(epoch_order(0, 1, 1)) == 0


@pytest.mark.parametrize("batch_size", [1, 4, 7, 23, 50])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_each_batch_and_nothing_is_lost(batch_size, ranks):
    index = np.random.default_rng(1).permutation(23)[:19]
    ds = make_frames(counts(), variables={"label": np.arange(23)})
    words = {"batch_size": batch_size, "prefetch": 0}
    one = FrameLoader(ds, RAW, index, **words)
    loaders = [FrameLoader(ds, RAW, index, rank=r, world_size=ranks, **words) for r in range(ranks)]
    for epoch, start in ((0, 0), (3, 8)):
        whole = list(one.batches(epoch, start))
        parts = [list(x.batches(epoch, start)) for x in loaders]
        assert all(len(p) == len(whole) for p in parts)
        for k, b in enumerate(whole):
            shares = [p[k] for p in parts]
            assert max(len(s["index"]) for s in shares) - min(len(s["index"]) for s in shares) <= 1
            assert all(s["x"].shape[1:] == (1, 12, 20) and s["mask"].shape == s["x"].shape for s in shares)
            assert torch.equal(torch.cat([s["x"] for s in shares]), b["x"])
            assert torch.equal(torch.cat([s["cond"]["label"] for s in shares]), b["index"])
        assert np.array_equal(torch.cat([b["index"] for b in whole]).numpy(), one.order(epoch)[start:])


def test_resuming_in_an_epoch_continues_it():
    loader = FrameLoader(make_frames(counts()), RAW, batch_size=5)
    whole = list(loader.batches(2))
    for k in range(len(whole) + 1):
        rest = list(loader.batches(2, start=min(5 * k, 23)))
        assert len(rest) == len(whole) - k and all(same(a, b) for a, b in zip(rest, whole[k:], strict=True))
    with pytest.raises(BadInput, match="from frame 24"):
        loader.batches(2, start=24)  # at once, not when the first batch is asked for


def test_lengths_and_last_batches():
    ds = make_frames(counts())
    for drop, n, sizes in ((False, 5, [5, 5, 5, 5, 3]), (True, 4, [5, 5, 5, 5])):
        loader = FrameLoader(ds, RAW, batch_size=5, drop_last=drop)
        assert len(loader) == n and [len(b["index"]) for b in loader.batches()] == sizes


def test_validation_keeps_the_order():
    index = [5, 3, 3, 20]
    loader = FrameLoader(make_frames(counts()), RAW, index, batch_size=3, shuffle=False)
    for epoch in (0, 1):
        assert torch.cat([b["index"] for b in loader.batches(epoch)]).tolist() == index


# ---- batches


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32])
def test_every_type_is_read_as_it_is_and_becomes_float32(dtype):
    values = counts(40, 64, 80, dtype)
    source = Reads(values)
    ds = make_frames(source)
    assert ds["intensity"].dtype == dtype
    t = Asinh().fit(ds, np.arange(5))
    for batch in FrameLoader(ds, t, batch_size=16).batches():
        assert batch["x"].dtype == torch.float32 and batch["mask"].dtype == torch.bool and batch["mask"].all()
        assert np.array_equal(batch["x"][:, 0].numpy(), t.forward(values[batch["index"].numpy()]))


def test_padding_and_masks_per_frame():
    rng = np.random.default_rng(5)
    values, mask = counts(9, 13, 18, np.float32), rng.random((9, 13, 18)) > 0.3
    values[~mask] = np.nan
    t = Asinh().fit(make_frames(values, mask=mask))
    for shape, multiple in (((16, 24), 8), ((13, 18), 1), ((16, 32), 16)):
        loader = FrameLoader(make_frames(values, mask=Reads(mask)), t, batch_size=4, multiple=multiple)
        assert loader.shape == shape
        for b in loader.batches(1):
            i = b["index"].numpy()
            assert np.array_equal(loader.unpad(b["mask"])[:, 0].numpy(), mask[i])
            assert not b["mask"][..., 13:, :].any() and not b["mask"][..., 18:].any()
            assert (b["x"][~b["mask"]] == 0).all() and torch.isfinite(b["x"]).all()
            assert np.allclose(loader.unpad(b["x"])[:, 0].numpy(), np.where(mask[i], t.forward(values[i]), 0))


def test_conditions():
    ds = make_frames(
        counts(6),
        wavelength=1.3,
        variables={
            "label": np.array([2, 0, 1, 1, 0, 2], np.uint8),
            "dose": np.linspace(0, 1, 6),
            "name": np.array(list("abcdef")),
            "cell": np.ones((6, 6)),
        },
    )
    batch = FrameLoader(ds, RAW, batch_size=6, shuffle=False).batch([3, 0])
    assert set(batch["cond"]) == {"label", "dose", "wavelength"}
    assert batch["cond"]["label"].tolist() == [1, 2] and batch["cond"]["label"].dtype == torch.int64
    assert batch["cond"]["dose"].dtype == torch.float32 and torch.allclose(
        batch["cond"]["wavelength"], torch.tensor(1.3)
    )
    assert set(FrameLoader(ds, RAW, batch_size=2, cond=["dose"]).batch([1])["cond"]) == {"dose"}
    with pytest.raises(BadInput, match="did you mean 'label'"):
        FrameLoader(ds, RAW, batch_size=2, cond=["labl"])
    per_frame = make_frames(counts(6), variables={"wavelength": np.linspace(1, 2, 6)})
    assert FrameLoader(per_frame, RAW, batch_size=2).batch([5])["cond"]["wavelength"].tolist() == [2.0]


def test_pipelines_and_the_per_image_baseline():
    values, mask = counts(8, 12, 20).astype(np.float32), np.ones((12, 20), bool)
    mask[3], values[:, 3] = False, 1e9
    ds = make_frames(values, mask=mask)
    for t in (MinMaxPerImage().fit(ds), Pipeline([Linear(pedestal=2.0, standardise=False), Asinh()]).fit(ds)):
        b = FrameLoader(ds, t, batch_size=8, multiple=8, shuffle=False).batch(np.arange(8))
        x = b["x"][:, 0, :12, :20].numpy()
        assert (x[:, ~mask] == 0).all() and np.allclose(x[:, mask], t.forward(values, mask)[:, mask])


# ---- laziness and memory


def test_only_the_frames_of_a_batch_are_read_and_each_once():
    source = Reads(counts(60))
    loader = FrameLoader(make_frames(source), RAW, np.arange(40), batch_size=10, prefetch=2)
    assert source.rows == []
    batches = loader.batches()
    next(batches)
    time.sleep(0.2)
    assert len(source.rows) <= 30  # this batch and two ahead
    for _ in batches:
        pass
    assert sorted(source.rows) == list(range(40))


MEMORY = """
import resource, sys
import h5py, hdf5plugin
import numpy as np, torch
from xrddiff.learn.loading.loader import FrameLoader
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.transforms.values import Asinh
ds = open_frames(sys.argv[1], wavelength=1.0, complete=False)
t = Asinh().fit(ds, range(8))
loader = FrameLoader(ds, t, batch_size=4, prefetch=2)
next(loader.batches())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = sum(len(b["index"]) for b in loader.batches(1))
print(n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_no_full_copy_in_memory(tmp_path):
    values = np.random.default_rng(0).poisson(0.1, (1, 1024, 1024)).astype(np.uint16)
    with h5py.File(tmp_path / "big.h5", "w") as f:
        data = f.create_dataset(
            "data", (200, 1024, 1024), np.uint16, chunks=(1, 1024, 1024), **hdf5plugin.Bitshuffle(cname="lz4")
        )
        data[0] = values[0]
        raw = data.id.read_direct_chunk((0, 0, 0))[1]
        for i in range(1, 200):
            data.id.write_direct_chunk((i, 0, 0), raw)
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "big.h5"], capture_output=True, text=True, timeout=120
    )
    assert out.returncode == 0, out.stderr
    n, grown = map(int, out.stdout.split())
    assert n == 200 and grown < 120, f"{grown} MB more for 400 MB of frames (1.6 GB as float32 with masks)"


def test_memory_is_used_again_but_never_while_somebody_looks():
    values = counts(64, 32, 32)
    loader = FrameLoader(make_frames(values), RAW, batch_size=4)
    held = list(loader.batches())
    assert all(np.array_equal(b["x"][:, 0].numpy(), values[b["index"].numpy()]) for b in held)
    pieces = [(b["x"][1:, 0, :8].numpy(), b["index"][1:].numpy()) for b in loader.batches(1)]  # views of views
    assert all(np.array_equal(x, values[i][:, :8]) for x, i in pieces)
    del held, pieces
    gc.collect()
    where = {b["x"].data_ptr() for b in loader.batches(2)}
    assert len(where) <= loader.prefetch + 3


# ---- HDF5, quickly


def test_the_short_cut_to_chunks_is_taken_and_agrees(tmp_path):
    values = counts(30, 64, 80)
    path = write(tmp_path / "a.cxi", values)
    ds = open_frames(path, wavelength=1.0, complete=False)
    for some, want in (
        (ds, values),
        (select_frames(ds, [7, 3, 29]), values[[7, 3, 29]]),
        (select_frames(ds, slice(5, 9)), values[5:9]),
    ):
        assert rows._direct(some["intensity"].variable) is not None
        got = FrameLoader(some, RAW, batch_size=4, shuffle=False).batches()
        assert np.array_equal(torch.cat([b["x"] for b in got])[:, 0].numpy(), want)
    for words in (
        {"chunks": (4, 64, 80)},
        {"compression": "gzip"},
        {"chunks": (1, 64, 80), "shuffle": True, **hdf5plugin.LZ4()},
    ):
        other = open_frames(write(tmp_path / "b.cxi", values, **words), wavelength=1.0, complete=False)
        assert rows._direct(other["intensity"].variable) is None
        assert np.array_equal(
            FrameLoader(other, RAW, batch_size=30, shuffle=False).batch(range(30))["x"][:, 0].numpy(), values
        )
        (tmp_path / "b.cxi").unlink()


def test_after_a_fork_the_file_is_opened_anew(tmp_path):
    values = counts(30, 64, 80)
    loader = FrameLoader(
        open_frames(write(tmp_path / "a.cxi", values), wavelength=1.0, complete=False), RAW, batch_size=4, prefetch=0
    )
    next(loader.batches())
    pid = os.fork()
    if pid == 0:
        ok = all(np.array_equal(b["x"][:, 0].numpy(), values[b["index"].numpy()]) for b in loader.batches(1))
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- threads


def test_an_error_comes_out_at_its_batch_and_leaves_no_thread():
    source = Reads(counts(40), broken=[17])
    loader = FrameLoader(make_frames(source, source="run9.h5"), RAW, batch_size=4, shuffle=False, prefetch=3)
    seen = []
    with pytest.raises(BadInput, match="frame 17 of run9.h5 cannot be read: the disk is on fire"):
        for b in loader.batches():
            seen += b["index"].tolist()
    assert seen == list(range(16)) and not threads()
    assert len(list(loader.batches(0, start=20))) == 5  # the loader itself is fine


def test_a_loop_that_is_left_leaves_nothing_behind():
    loader = FrameLoader(make_frames(Reads(counts(60), delay=0.002)), RAW, batch_size=2, prefetch=4)
    for _ in loader.batches():
        break
    batches = loader.batches()
    next(batches)
    del batches
    with pytest.raises(ZeroDivisionError):
        for _ in loader.batches():
            1 / 0  # noqa: B018
    loader.batches()  # never started
    gc.collect()
    assert not threads()


EXIT = """
import numpy as np
from xrddiff.data.frames.frames import make_frames
from xrddiff.learn.loading.loader import FrameLoader
from xrddiff.data.transforms.values import Linear
loader = FrameLoader(make_frames(np.ones((50, 8, 8), np.uint16)), Linear(standardise=False), batch_size=2, prefetch=5)
batches = [loader.batches(), loader.batches(1)]
for b in batches:
    next(b)
print('over')
"""


@pytest.mark.slow
def test_a_process_can_end_in_the_middle_of_an_epoch():
    out = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0 and out.stdout.strip() == "over" and not out.stderr, out.stderr


def test_many_loops_at_once():
    values = counts(40, 64, 80)
    loader = FrameLoader(make_frames(values), Asinh().fit(make_frames(values)), batch_size=4)
    want = {e: torch.cat([b["x"] for b in loader.batches(e)]) for e in range(3)}
    loops = [(e, loader.batches(e)) for e in range(3)]
    got = {e: [] for e in range(3)}
    for _ in range(len(loader)):
        for e, loop in loops:
            got[e].append(next(loop)["x"])
    assert all(torch.equal(torch.cat(got[e]), want[e]) for e in range(3))


# ---- refused


def test_broken_frames_are_named_by_their_place_in_the_file(tmp_path):
    values = counts(20, 64, 80).astype(np.float32)
    values[13, 5, 6] = np.inf
    path = write(tmp_path / "run5.cxi", values)
    ds = open_frames(path, wavelength=1.0, complete=False, automask=[])
    chosen = select_frames(concat_frames([select_frames(ds, slice(0, 4)), select_frames(ds, [11, 13])]), [5, 0])
    with pytest.raises(BadInput, match=r"frame 0, frame 13 of data set .*run5.cxi, holds inf at .*\(5, 6\)"):
        list(FrameLoader(chosen, RAW, batch_size=2).batches())
    pooled = Pool(2).apply(chosen)
    with pytest.raises(BadInput, match=r"frame 13 of data set .*run5.cxi, holds inf at .*\(2, 3\)"):
        list(FrameLoader(pooled, RAW, batch_size=2).batches())
    with h5py.File(path) as f:
        where = f["entry_1/data_1/data"].id.get_chunk_info(3)
    damaged = bytearray(path.read_bytes())
    damaged[where.byte_offset + 12 : where.byte_offset + 400] = bytes([255]) * 388
    path.write_bytes(damaged)
    with pytest.raises(
        BadInput, match=r"frame 3, frame 3 of data set .*run5.cxi, cannot be read|frames 3 to 3 of .* cannot be read"
    ):
        FrameLoader(open_frames(path, wavelength=1.0, complete=False), RAW, batch_size=1).batch([3])


def test_frames_without_a_valid_pixel():
    mask = np.ones((6, 12, 20), bool)
    mask[4] = False
    loader = FrameLoader(make_frames(counts(6), mask=mask, source="run3.h5"), RAW, batch_size=6)
    with pytest.raises(BadInput, match="frame 4 of run3.h5 has no valid pixel"):
        next(loader.batches())
    ds = make_frames(counts(6), source="run3.h5")
    ds["mask"] = (("y", "x"), np.zeros((12, 20), bool))
    with pytest.raises(BadInput, match="run3.h5: every pixel is masked"):
        FrameLoader(ds, RAW, batch_size=6)


def test_huge_but_finite_values_are_no_error():
    values = counts(3).astype(np.float32)
    values[1] = 3e38
    loader = FrameLoader(make_frames(values), RAW, batch_size=3, shuffle=False)
    assert torch.isfinite(next(loader.batches())["x"]).all()


def test_bad_words():
    ds, stack = make_frames(counts()), make_frames(counts()[:, None])
    for call, words in (
        (lambda: FrameLoader(ds, RAW, batch_size=0), "batch_size"),
        (lambda: FrameLoader(ds, RAW, batch_size=2, multiple=0), "multiple"),
        (lambda: FrameLoader(ds, RAW, batch_size=2, prefetch=-1), "prefetch"),
        (lambda: FrameLoader(ds, RAW, batch_size=2, rank=2, world_size=2), "rank 2 of 2"),
        (lambda: FrameLoader(ds, RAW, [22, 23], batch_size=2), "from 0 to 22"),
        (lambda: FrameLoader(ds, RAW, [], batch_size=2), "at least one"),
        (lambda: FrameLoader(ds, RAW, [0.5], batch_size=2), "at least one number"),
        (lambda: FrameLoader(stack, RAW, batch_size=2), "as_images"),
        (lambda: FrameLoader(ds, Pipeline([Pool(2), RAW]), batch_size=2), "apply the others"),
        (lambda: FrameLoader(ds, Pipeline([]), batch_size=2), "expected value transforms"),
        (lambda: FrameLoader(ds, Asinh(), batch_size=2).batch([0]), "no statistics"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
    assert len(FrameLoader(as_images(stack), RAW, batch_size=2)) == 12
