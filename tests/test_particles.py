"""Particles on real gloo ranks: rings of uneven counts, ranks that end, the same result for any number of ranks.

This file is run as a script, in a process that has imported PyTorch (tests/warm.py), which forks the ranks.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import warm
from test_training import end_codes, on_ranks

COUNTS = {1: [101], 2: [64, 37], 3: [1, 99, 1], 4: [26, 25, 25, 25]}


# Processes. What follows runs inside the script.


def meet():
    """The ranks that have been forked."""
    from types import SimpleNamespace

    from xrddiff.ranks.agreement import Ranks
    from xrddiff.ranks.rendezvous import initialize_distributed

    info = initialize_distributed(backend="gloo", timeout=60)
    return Ranks(SimpleNamespace(process_index=info.process_id, num_processes=info.num_processes))


def rows(n=101, width=3):
    import torch

    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def own(ranks, x, counts=None):
    """The rows of one rank."""
    counts = counts or COUNTS[ranks.size]
    first = sum(counts[: ranks.rank])
    return x[first : first + counts[ranks.rank]]


def script_ring(folder):
    """Every rank sees all rows in order, holds few of them, and adds them up to the same bits."""
    import torch

    from xrddiff.ranks.ring import Ring

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
    from xrddiff.errors import BadInput, RankFailed
    from xrddiff.ranks.ring import Ring

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


if __name__ == "__main__":
    script, where = sys.argv[1:]
    import torch

    torch.set_num_threads(1)
    print(json.dumps(globals()[f"script_{script}"](Path(where))))
