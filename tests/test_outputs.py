"""No command that writes loses, replaces or mistakes anything of the user: see `hostile_outputs`."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile_outputs import WRITERS, cases, hashes, leftovers, make_inputs, standing

from xrddiff.app.verbs.main import main
from xrddiff.core.safe_write import read_mark

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs") / "in")


@pytest.mark.parametrize("writer", WRITERS, ids=lambda w: w.name)
def test_nothing_is_lost_or_replaced(writer, inputs, tmp_path, monkeypatch, capsys):
    numbers, tried = itertools.count(), 0

    def work() -> Path:
        (place := tmp_path / str(next(numbers))).mkdir()
        return place

    for case in cases(writer, inputs, work):
        if writer.slow and not case.refused:
            continue
        monkeypatch.chdir(case.place)
        code = main(case.argv)
        said = capsys.readouterr()
        assert case.faults(code, said.err) == [], (case.name, case.argv, said.err)
        if case.name == "not hostile":
            assert code == 0 and case.out.exists(), said.err
        elif code == 2:
            errors = [line for line in said.err.splitlines() if not line.startswith("xrddiff: note: ")]
            assert len(errors) == 1, said.err
        tried += 1
    assert tried >= 3


def started(words: list[str], place: Path) -> subprocess.Popen:
    log = open(place / f"log-{time.monotonic_ns()}.log", "wb")
    return subprocess.Popen(
        [sys.executable, "-m", "xrddiff", *words],
        cwd=place,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.parametrize("name", ["data simulate", "merge", "recover"])
def test_two_at_once_make_one_result(name, inputs, tmp_path):
    """The second is told who has the output, or finds it finished; what is there is whole."""
    writer = next(w for w in WRITERS if w.name == name)
    place = make_inputs(tmp_path / "in")
    words = writer.argv(f"out{writer.suffix}", *(["-n", "400"] if name == "data simulate" else []))
    both = [started(words, place) for _ in range(2)]
    codes = sorted(p.wait(300) for p in both)
    logs = " ".join(p.read_text() for p in place.glob("log-*.log"))
    assert codes == [0, 2] and ("is being written by" in logs or "exists already" in logs), logs
    assert not leftovers(place)


@pytest.mark.parametrize("name", ["data simulate", "data convert folder", "merge", "recover"])
def test_a_kill_leaves_nothing_that_is_taken_as_whole(name, inputs, tmp_path):
    writer = next(w for w in WRITERS if w.name == name)
    place = make_inputs(tmp_path / "in")
    before = hashes(place)
    out = place / f"out{writer.suffix}"
    words, begun = writer.argv(out.name), time.monotonic()
    assert started(writer.argv(f"whole{writer.suffix}"), place).wait(300) == 0
    whole, rng = time.monotonic() - begun, random.Random(name)
    for _ in range(3):
        process = started(words, place)
        time.sleep(whole * rng.uniform(0.3, 1.0))
        os.killpg(process.pid, signal.SIGKILL)
        ended = process.wait() == 0
        now = hashes(place)
        assert {k: now.get(k) for k in before} == before
        assert standing(writer, out, ended) == []
        if (
            ended := ended
            or out.exists()
            and (writer.kind == "file" or getattr(read_mark(out), "state", "") == "finished")
        ):
            break
    if not ended:
        assert started(words, place).wait(300) == 0
    assert standing(writer, out, True) == [] and not leftovers(place)
