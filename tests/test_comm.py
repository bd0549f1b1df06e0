"""The communication test over real processes: exact sums, an error that it must see, a rank that is slow; the cost model and measured runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from xrddiff.cluster.comm import SIZES, CommReport, comm_test, slow_ranks
from xrddiff.errors import BadInput

COMM = """
import json, sys
from xrddiff.cluster.comm import comm_test
from xrddiff.cluster.ranks import initialize_distributed
info = initialize_distributed(timeout=60)
if "corrupt" in sys.argv and info.process_id == 1:  # a transport that loses the last element on one rank
    import torch.distributed as dist
    whole = dist.all_reduce
    def broken(message, *words, **options):
        whole(message, *words, **options)
        if len(message) > 1000:
            message[-1] += 1
    dist.all_reduce = broken
if "slow" in sys.argv and info.process_id == 2:
    import time
    import xrddiff.cluster.comm as comm
    work = comm._work
    comm._work = lambda *words: work(*words) + 0.5
report = comm_test(sizes=[4, 64_000, 1_000_000], rounds=3)
print("REPORT " + json.dumps(json.loads(report.to_json()) | {"seen_by": info.process_id}))
"""


def reports(processes: int, *words: str) -> list[dict]:
    """The report as each rank has it."""
    mine = ("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "PMI_", "OMPI_", "TORCHELASTIC", "ACCELERATE")
    env = {k: v for k, v in os.environ.items() if not k.startswith(mine)}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": str(processes)}
    env["MASTER_PORT"] = str(20000 + os.getpid() % 9000)
    command = [sys.executable, "-c", COMM, *words]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = [subprocess.Popen(command, env=env | {"RANK": str(r)}, **pipe) for r in range(processes)]
    found = []
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        found.append(json.loads(out.split("REPORT ", 1)[1]))
    return found


def test_three_ranks_add_up():
    found = reports(3, "slow")
    assert [r.pop("seen_by") for r in found] == [0, 1, 2]
    report = found[0]
    assert all(r == report for r in found)  # every rank has the same report
    assert report["passed"] and report["num_processes"] == 3 and report["backend"] == "gloo"
    assert [(m["operation"], m["bytes"]) for m in report["messages"]] == [
        (operation, size) for operation in ("all-reduce", "broadcast") for size in (4, 64_000, 1_000_000)
    ]
    for m in report["messages"]:
        assert m["wrong"] == [] and m["ms"] > 0
        assert m["bandwidth"] == pytest.approx(m["bytes"] / m["ms"] / 1e6)
        assert m["bus_bandwidth"] == pytest.approx(m["bandwidth"] * (4 / 3 if m["operation"] == "all-reduce" else 1))
    assert [r["rank"] for r in report["ranks"]] == [0, 1, 2]
    assert all(r["work_ms"] > 0 and r["exchange_ms"] > 0 for r in report["ranks"])
    assert any(h.startswith("rank 2 on ") and "its own work" in h for h in report["hints"])


def test_a_wrong_sum_is_seen_and_placed():
    report = reports(2, "corrupt")[0]
    assert not report["passed"]
    assert [m["wrong"] for m in report["messages"]] == [[], [1], [1], [], [], []]


def test_under_srun_on_two_nodes(lab, tmp_path):
    script = tmp_path / "comm.py"
    script.write_text(COMM)
    env = lab.env | {"OMP_NUM_THREADS": "1"}
    words = ["-N2", "--ntasks-per-node=1", f"--output={tmp_path}/%t.txt"]
    lab.call("srun", *words, sys.executable, str(script), timeout=120, env=env)
    report = json.loads((tmp_path / "0.txt").read_text().split("REPORT ", 1)[1])
    assert report["passed"] and report["num_nodes"] == report["num_processes"] == 2
    assert len({row["host"] for row in report["ranks"]}) == 2


@pytest.mark.parametrize(
    "bad", [dict(sizes=[]), dict(sizes=[0]), dict(sizes=[4, -4]), dict(sizes=[1.5]), dict(rounds=0)]
)
def test_sizes_that_are_none(bad):
    with pytest.raises(BadInput, match="expected bytes of at least 1"):
        comm_test(**bad)


def test_alone():
    report = comm_test(rounds=1)
    assert report.passed and report.messages == [] and report.latency_ms is None
    assert report.ranks[0]["work_ms"] > 0 and len(SIZES) == 5
    assert json.loads(report.to_json())["num_processes"] == 1


def row(rank: int, work: float, exchange: float | None = None) -> dict:
    return dict(rank=rank, host=f"n{rank}", work_ms=work, exchange_ms=exchange)


def test_a_slow_node_is_told_from_its_neighbours():
    """Of four nodes n2 has a bad cable: its partners are as fast as ever with their other neighbour."""
    slow = slow_ranks([row(0, 1.0, 1.0), row(1, 1.0, 1.0), row(2, 1.0, 8.0), row(3, 1.0, 1.2)])
    assert len(slow) == 1 and "rank 2 on n2 needs 8.00 ms for an exchange" in slow[0] and "8.0 times" in slow[0]


def test_of_two_the_slower_one_is_named():
    assert "rank 1 on n1" in slow_ranks([row(0, 1.0), row(1, 2.0)])[0]
    assert slow_ranks([row(0, 1.0, 1.0), row(1, 1.4, 9.0)]) == []  # one pair: its exchange has no other to compare with


def test_a_report_reads():
    report = CommReport(1, 1, "gloo", 3, [], [row(0, 1.0)])
    assert "nothing to send" in str(report) and "<table" in report._repr_html_()
