"""What the benchmarks share: turns, minima and medians, tables, files."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def harness(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_harness", Path(__file__).parents[1] / "bench" / "harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_candidates_take_turns_in_an_order_that_turns_round(harness):
    called = []
    ways = {name: (lambda name=name: called.append(name)) for name in "abc"}
    found = harness.interleaved(ways, rounds=3, warmup=1)
    assert "".join(called) == "abc" + "abc" + "cba" + "abc"
    assert all(len(times.cpu) == len(times.clock) == 3 for times in found.values())
    assert "".join(harness.turns("ab", 4)) == "abbaabba"


def test_a_peer_in_another_process_times_itself(harness):
    found = harness.interleaved({"peer": lambda: harness.Spent(2.0, 3.0), "ours": lambda: None}, rounds=2)
    assert found["peer"] == ([2.0, 2.0], [3.0, 3.0])
    assert min(found["ours"].cpu) >= 0


def test_minimum_median_and_ratio(harness):
    assert harness.min_median([0.003, 0.001, 0.002], ".1f", 1e3) == "1.0 (2.0)"
    # of the minima 4 / 1; of the rounds 4, 5 and 2
    assert harness.ratio([4.0, 10.0, 6.0], [1.0, 2.0, 3.0]) == "4.00 (4.00)"
    with pytest.raises(ValueError):
        harness.ratio([1.0], [1.0, 2.0])


def test_seconds_of_children_are_counted_apart(harness):
    assert harness.cpu_seconds(own=False, children=False) == 0
    assert harness.cpu_seconds() >= harness.cpu_seconds(own=False) >= 0
    out, spent = harness.timed(lambda: "made")
    assert out == "made" and spent.cpu >= 0 and spent.clock > 0


def test_a_table_escapes_bars_and_aligns(harness):
    lines = harness.markdown(["what", "ms", "|F|²"], [["a|b", 1, 2.5]])
    assert lines == [r"| what | ms | \|F\|² |", "| --- | ---: | ---: |", r"| a\|b | 1 | 2.5 |"]
    assert harness.markdown(["a", "b", "c"], [], "lrl")[1] == "| --- | ---: | --- |"
    with pytest.raises(ValueError, match="expected 2 cells"):
        harness.markdown(["a", "b"], [["alone"]])


def test_results_are_written_whole(harness, tmp_path, monkeypatch):
    assert harness.read_results("some", {"rows": []}) == {"rows": []}
    assert harness.write_results("some", ["# Some", "", "text", ""], {"rows": [1]}) == "# Some\n\ntext\n"
    assert (tmp_path / "some.md").read_text() == "# Some\n\ntext\n"
    assert harness.read_results("some", None) == {"rows": [1]}
    with pytest.raises(TypeError):
        harness.write_results("some", "other", {"rows": {1j}})
    with pytest.raises(ZeroDivisionError):
        harness.write_results("some", lambda data: 1 / 0, {"rows": [2]})
    assert (tmp_path / "some.md").read_text() == "# Some\n\ntext\n"
    assert harness.read_results("some", None) == {"rows": [2]}, "a page that fails loses no measurement"
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="cannot save"):
        harness.write_results("some", "half")
    assert (tmp_path / "some.md").read_text() == "# Some\n\ntext\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["some.json", "some.md"]


def test_a_page_is_made_of_the_data(harness):
    assert harness.write_results("some", lambda data: f"# {data['rows']}", {"rows": 2}) == "# 2\n"


def test_a_file_that_is_named_is_written_as_named(harness, tmp_path):
    harness.write_results(tmp_path / "here.txt", "text")
    assert (tmp_path / "here.txt").read_text() == "text\n"


def test_the_line_about_the_machine(harness):
    line = harness.machine("cores", "python", "one thread")
    assert line.endswith(", one thread") and " cores, Python 3." in line


def test_shared_arguments(harness, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = harness.make_parser("50 % of it.", rounds=5, threads=1, device="cpu", folder=None, out=None)
    args = parser.parse_args(["--rounds", "2", "--out", "x.md"])
    assert (args.rounds, args.threads, args.device, args.folder, args.out) == (2, 1, "cpu", None, tmp_path / "x.md")
    assert "50 % of it." in parser.format_help()


def test_memory_is_that_of_the_process_itself(harness):
    """The most that its parent had is not counted."""
    code = f"import sys; sys.path.insert(0, {str(Path(harness.__file__).parent)!r}); from harness import memory; print(memory('VmRSS'), memory())"
    large = bytearray(1 << 28)
    large[:: 1 << 12] = b"x" * len(range(0, len(large), 1 << 12))  # it is in memory
    now, most = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert now <= most < len(large) < harness.memory()
