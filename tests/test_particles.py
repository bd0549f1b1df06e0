"""Particles on real gloo ranks: rings of uneven counts, ranks that end, the same result for any number of ranks.

This file is run as a script, in a process that has imported PyTorch (tests/warm.py), which forks the ranks.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import warm
from test_training import end_codes, on_ranks
from torch.utils._python_dispatch import TorchDispatchMode

from xrddiff.core.errors import BadInput, RankFailed, XrddiffError
from xrddiff.core.ranks.agreement import Ranks
from xrddiff.core.ranks.rendezvous import initialize_distributed
from xrddiff.core.ranks.ring import Ring, latest_rows, load_rows
from xrddiff.learn.diffusion.particle_kernels import common_sample, find_kernel, stein_sums
from xrddiff.learn.diffusion.particles import BadScore, svgd

COUNTS = {1: [101], 2: [64, 37], 3: [1, 99, 1], 4: [26, 25, 25, 25]}


# Processes. What follows runs inside the script.


def meet():
    """The ranks that have been forked."""
    info = initialize_distributed(backend="gloo", timeout=60)
    return Ranks(SimpleNamespace(process_index=info.process_id, num_processes=info.num_processes))


def rows(n=101, width=3):
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def own(ranks, x, counts=None):
    """The rows of one rank."""
    counts = counts or COUNTS[ranks.size]
    first = sum(counts[: ranks.rank])
    return x[first : first + counts[ranks.rank]]


def script_ring(folder):
    """Every rank sees all rows in order, holds few of them, and adds them up to the same bits."""
    x = rows()

    def work(rank):
        ranks = meet()
        mine = own(ranks, x)
        ring = Ring(ranks, len(mine), block=8)
        sums = []
        for _ in range(3):  # what is left over from one round must not end up in the next
            seen = list(ring.blocks(mine, mine[:, :1].reshape(-1, 1, 1) + 1))
            assert max(len(a) for a, _ in seen) <= 8
            a, b = (torch.cat(t) for t in zip(*seen, strict=True))
            assert torch.equal(a, x) and b.shape == (101, 1, 1) and torch.equal(b.flatten(), x[:, 0] + 1)
            sums.append(sum(block.sum(0) for block, _ in seen).tolist())
        picked = torch.tensor([100, 0, 63, 64, 64])
        assert torch.equal(ring.rows(mine, picked), x[picked])
        (folder / f"ring-{ranks.size}-{rank}").write_text(json.dumps([sums, ring.waited, ring.first, ring.last]))

    for n in COUNTS:
        on_ranks(n, work)
    return {n: [json.loads((folder / f"ring-{n}-{r}").read_text()) for r in range(n)] for n in COUNTS}


def script_ring_faults(folder):
    """A rank without rows is told to all; one that ends leaves a sentence on the others."""

    def empty(rank):
        ranks = meet()
        try:
            Ring(ranks, 3 * (rank != 1))
        except BadInput as e:
            (folder / f"empty-{rank}").write_text(str(e))

    on_ranks(3, empty)

    def dies(rank):
        ring = Ring(meet(), 40, block=8)
        try:
            for k, _ in enumerate(ring.blocks(rows(40))):
                if rank == 1 and k == 6:
                    os._exit(9)
        except RankFailed as e:
            (folder / f"dies-{rank}").write_text(str(e))
            os._exit(0)

    start = time.monotonic()
    ended = end_codes(3, dies)
    said = [(folder / f"{what}-{r}").read_text() for what, r in [("empty", 0), ("empty", 2), ("dies", 0), ("dies", 2)]]
    return ended, said, time.monotonic() - start


def banana(x):
    """∇ log p for x₁ ~ N(0, 1) and x₂ ~ N(x₁²/2, 1), beside which any further coordinate is N(0, 1)."""
    bent = x[:, 1] - x[:, 0] ** 2 / 2
    return torch.cat([(x[:, 0] * bent - x[:, 0])[:, None], -bent[:, None], -x[:, 2:]], 1)


WORDS = dict(lr=0.1, steps=12, check_every=5, block=16)


def script_svgd(folder):
    """101 particles on 1, 2, 3 and 4 ranks, with three kernels; saved by one number of ranks, continued by another."""
    start = rows(101, 3)

    def work(rank, name="whole", **words):
        ranks = meet()
        words = {**WORDS, "optimizer": "adagrad", "kernel": "rbf", **words}
        result = svgd(banana, own(ranks, start), ranks=ranks, folder=folder / name, **words)
        assert [r["rows"] for r in result.ranks] == COUNTS[ranks.size]
        assert all(0 <= r["waiting"] <= r["seconds"] and 0 <= r["score"] for r in result.ranks)
        np.save(folder / f"{name}-{ranks.size}-{rank}.npy", result.particles.numpy())
        (folder / f"{name}-{ranks.size}-{rank}.json").write_text(json.dumps(result.history))

    def joined(name, n):
        history = [json.loads((folder / f"{name}-{n}-{r}.json").read_text()) for r in range(n)]
        assert all(h == history[0] for h in history)  # of all particles, whoever has them
        parts = [np.load(folder / f"{name}-{n}-{r}.npy") for r in range(n)]
        return np.concatenate(parts), history[0]

    def compare(name, n, reference):
        (x, history), (one, first) = joined(name, n), reference
        for a, b in zip(history, first, strict=True):
            numbers = [(a[k], b[k]) for k in ("weight", "ksd", "ksd_u", "move") if a[k] is not None]
            assert a["step"] == b["step"] and all(abs(v - w) < 1e-9 for v, w in numbers)
        return float(np.abs(x - one).max())

    out = {}
    for kernel, words in {
        "rbf": {"kernel": "rbf"},
        "imq": {"kernel": "imq", "optimizer": "adam", "annealing": "linear"},
        "sliced": {"kernel": "sliced", "optimizer": "sgd", "bandwidth": 0.5},
    }.items():
        for n in COUNTS if kernel == "rbf" else (1, 3):
            name = f"{kernel}-{n}"
            on_ranks(n, lambda r, name=name, words=words: work(r, name, **words))
            if n > 1:
                out[name] = compare(name, n, joined(f"{kernel}-1", 1))

    # stopped after 7 steps on some ranks, continued on others
    for before, after in ((2, 2), (2, 4), (4, 1)):
        name = f"resumed-{before}-{after}"
        on_ranks(before, lambda r, name=name: work(r, name, steps=7))
        on_ranks(after, lambda r, name=name: work(r, name))
        out[name] = compare(name, after, joined(f"rbf-{before}", before))
    return out


def script_faults(folder):
    """What goes wrong on one rank is said by all, and the last good particles stay."""
    start, said = rows(101, 3), {}

    def work(rank, name, score=banana, n=101, **words):
        ranks, calls = meet(), []

        def counted(x):
            calls.append(1)
            return score(x, rank, len(calls)) if score is not banana else banana(x)

        try:
            svgd(counted, own(ranks, start)[:n], ranks=ranks, folder=folder / name, **{**WORDS, **words})
        except (BadScore, RankFailed) as e:
            assert e.result.particles.isfinite().all() and e.result.stopped == "failed"
            (folder / f"{name}-{rank}").write_text(str(e))
            if isinstance(e, RankFailed):
                os._exit(0)  # the others may never answer
        except (BadInput, XrddiffError) as e:
            (folder / f"{name}-{rank}").write_text(str(e))

    def collect(name, ranks):
        said[name] = [(folder / f"{name}-{r}").read_text() for r in ranks]

    def not_finite(x, rank, call):
        g = banana(x)
        g[3, 0] = torch.nan if rank == 1 and call == 6 else g[3, 0]
        return g

    def fails(x, rank, call):
        if rank == 1 and call == 6:
            raise RuntimeError("CUDA out of memory")
        return banana(x)

    def dies(x, rank, call):
        if rank == 1 and call == 6:
            os._exit(9)
        return banana(x)

    for name, score in (("nan", not_finite), ("fails", fails)):
        on_ranks(2, lambda r, name=name, score=score: work(r, name, score))
        collect(name, range(2))
        assert latest_rows(folder / name).name == "step-00000005"
        tensors, state = load_rows(Ring(None, 101), latest_rows(folder / name))
        assert tensors["particles"].isfinite().all() and state["steps"] == 5

    ended = end_codes(3, lambda r: work(r, "dies", dies, save_every=2))
    assert ended == [0, 9, 0] and latest_rows(folder / "dies").name == "step-00000004"
    collect("dies", (0, 2))

    def full(rank):
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
        work(rank, "full")

    on_ranks(2, full)
    collect("full", range(2))
    assert list((folder / "full").iterdir()) == []  # not even a hidden folder
    on_ranks(3, lambda r: work(r, "few", n=1 if r < 2 else 0))
    collect("few", range(3))
    return said


# Tests.


def in_processes(script, folder):
    done = warm.run(__file__, script, folder, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_ring_shows_all_rows_to_each_rank(tmp_path):
    seen = in_processes("ring", tmp_path)
    reference = seen["1"][0][0]
    for n, ranks in seen.items():
        assert [r[2:] for r in ranks] == [
            [sum(COUNTS[int(n)][:k]), sum(COUNTS[int(n)][: k + 1])] for k in range(int(n))
        ]
        for sums, waited, *_ in ranks:
            assert sums == ranks[0][0] and waited >= 0  # to the bit on all ranks of a ring
            assert all(
                abs(a - b) < 1e-12 for x, y in zip(sums, reference, strict=True) for a, b in zip(x, y, strict=True)
            )


def test_a_ring_that_breaks(tmp_path):
    ended, said, seconds = in_processes("ring_faults", tmp_path)
    assert ended == [0, 9, 0] and seconds < 60  # noticed at once, not when a timeout is over
    assert said[0] == said[1] == "of 6 rows rank 1 of 3 has none; expected at least one for each rank"
    for r, text in ((0, said[2]), (2, said[3])):
        assert f"rank {r} of 3 lost the connection" in text and "one of the ranks has ended" in text
        assert "\n" not in text


@pytest.mark.slow
def test_any_number_of_ranks_moves_particles_alike(tmp_path):
    differences = in_processes("svgd", tmp_path)
    assert differences.pop("resumed-2-2") == 0  # to the bit on as many ranks
    assert set(differences) == {"rbf-2", "rbf-3", "rbf-4", "imq-3", "sliced-3", "resumed-2-4", "resumed-4-1"}
    assert max(differences.values()) < 1e-6, differences


@pytest.mark.slow
def test_what_goes_wrong_on_one_rank(tmp_path):
    said = in_processes("faults", tmp_path)
    for name in ("nan", "fails", "full", "few"):
        assert len(set(said[name])) == 1 and "\n" not in said[name][0], said
    # rank 0 has 64 of the particles
    assert said["nan"][0].startswith("on rank 1 of 2, the score of particle 67 is not finite at step 5;")
    assert said["fails"][0] == "on rank 1 of 2, the score failed at step 5: CUDA out of memory"
    assert "cannot be saved: file too large" in said["full"][0] and "(rank 1 of 2)" in said["full"][0]
    assert said["few"][0] == "of 2 particles rank 2 of 3 has none; expected at least one for each rank"
    assert all("lost the connection" in text and "has ended" in text for text in said["dies"])


def metropolis(log_p, chains=400, steps=6000, width=0.9):
    """A long random walk of many chains in NumPy, whose first third is left out: mean and covariance of its places."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((chains, 2))
    old, sums, squares, n = log_p(x), np.zeros(2), np.zeros((2, 2)), 0
    for step in range(steps):
        y = x + width * rng.standard_normal(x.shape)
        new = log_p(y)
        taken = np.log(rng.random(chains)) < new - old
        x[taken], old[taken] = y[taken], new[taken]
        if step >= steps // 3:
            sums, squares, n = sums + x.sum(0), squares + x.T @ x, n + chains
    mean = sums / n
    return mean, squares / n - np.outer(mean, mean)


@pytest.mark.slow
def test_a_banana_against_a_long_markov_chain():
    """x₁ ~ N(0, 1), x₂ ~ N(x₁²/2, 1): the moments of 200 particles against those of 1.6 million draws."""
    mean, covariance = metropolis(lambda x: -0.5 * x[:, 0] ** 2 - (x[:, 1] - x[:, 0] ** 2 / 2) ** 2 / 2)
    # what is known: E x₂ = ½, var x₂ = ½ + 1
    assert np.allclose(mean, [0, 0.5], atol=0.02) and np.allclose(covariance, [[1, 0], [0, 1.5]], atol=0.05)
    # a kernel of long reach: with rbf the same particles have variances that are 4% and 10% too small
    words = dict(steps=500, lr=0.05, optimizer="adam", kernel="imq", check_every=0)
    moved = svgd(banana, rows(200, 2), **words).particles.numpy()
    assert np.abs(moved.mean(0) - mean).max() < 0.03
    assert np.abs(np.cov(moved.T) - covariance).max() < 0.05 * covariance.max()


def test_memory_does_not_grow_with_the_pairs():
    """The largest tensor of a step of 20,000 particles is that of the particles or of one tile, never n²."""
    largest = 0

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    x = rows(20_000, 2)
    with Spy():
        ring = Ring(None, len(x), block=512)
        fitted = find_kernel("rbf", (2,)).fit(common_sample(ring, x), len(x))
        few = SimpleNamespace(n=ring.n, block=512, blocks=lambda *own: islice(ring.blocks(*own), 2))
        stein_sums(few, x, x, fitted)
    assert largest <= 512**2 + 20_000, largest


if __name__ == "__main__":
    script, where = sys.argv[1:]
    torch.set_num_threads(1)
    # Before the forks, so that none of them has to: the optimiser imports dynamo at its first step.
    import torch._dynamo

    print(json.dumps(globals()[f"script_{script}"](Path(where))))
