"""The suite's own workings: which tests stay on one worker, and the processes that are forked for commands."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm

HERE = Path(__file__).parent
MODULE = """
import os
import pytest

@pytest.fixture(scope="module")
def costly():
    return os.getpid()

@pytest.mark.parametrize("i", range(6))
def test_shares(costly, i):
    assert costly == os.getpid()
    with open(os.environ["SEEN"], "a") as file:
        file.write(f"{costly}\\n")

@pytest.mark.slow
@pytest.mark.parametrize("i", range(2))
def test_alone(i):
    with open(os.environ["SEEN"], "a") as file:
        file.write(f"alone {os.getpid()}\\n")
"""


def test_tests_that_share_a_fixture_stay_on_one_worker(tmp_path):
    (tmp_path / "conftest.py").symlink_to(HERE / "conftest.py")
    (tmp_path / "warm.py").symlink_to(HERE / "warm.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: takes long\n")
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(MODULE)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "XRDDIFF_TESTS"))}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--cost", str(tmp_path / "cost")]
    done = subprocess.run(
        command, cwd=tmp_path, env=env | {"SEEN": str(tmp_path / "seen")}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "16 passed" in done.stdout, done.stdout + done.stderr
    seen = (tmp_path / "seen").read_text().splitlines()
    shared = [line for line in seen if not line.startswith("alone")]
    assert len(shared) == 12 and {shared.count(pid) for pid in set(shared)} <= {6, 12}
    assert len({line.removeprefix("alone ") for line in seen}) == 2  # both workers have worked
    assert len((tmp_path / "cost").read_text().splitlines()) == 16


SCRIPT = """
import os, signal, sys
sys.stderr.write("on stderr\\n")
print(os.getcwd(), os.environ.get("MINE"), "PATH" in os.environ, sys.argv[1:], sys.stdin.read() == "", "torch" in sys.modules)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "sleep":
    import time
    open(sys.argv[2], "w").write(str(os.getpid()))
    time.sleep(600)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_forked_process_is_as_one_that_was_started(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = warm.run(script, 3, "a b", cwd=tmp_path, env={"MINE": "yes"})
    assert (done.returncode, done.stderr) == (3, "on stderr\n")
    assert done.stdout == f"{tmp_path} yes False ['3', 'a b'] True True\n"
    assert warm.run(script, "kill").returncode == -9
    script.write_text("raise ValueError('no')")
    done = warm.run(script)
    assert done.returncode == 1 and done.stderr.endswith("ValueError: no\n") and "warm.py" in done.stderr
    assert warm.run("xrddiff", "--nonsense").returncode == 2 and len(warm.spent) >= 4


@pytest.mark.slow
def test_a_forked_process_runs_on_until_it_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = warm.start(script, "sleep", "pid", cwd=tmp_path)
    for _ in range(500):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        time.sleep(0.02)
    assert process.pid == int((tmp_path / "pid").read_text()) and process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.kill()
    assert process.wait(30) == process.poll() == -9
    said, _ = process.communicate(timeout=30)
    assert said == "on stderr\n"
    script.write_text("import resource\nprint(resource.getrlimit(resource.RLIMIT_FSIZE))")
    process = warm.start(script, limits=[(resource.RLIMIT_FSIZE, 1, 2)])
    assert process.communicate(timeout=30)[0] == "(1, 2)\n" and process.returncode == 0


@pytest.mark.slow
def test_a_forked_process_ends_when_nobody_waits_for_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(script, "sleep", tmp_path / "pid", timeout=5)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} goes on")


def test_the_cache_of_a_session_ends_with_it_but_for_what_costs_time(tmp_path, monkeypatch):
    from conftest import COSTLY, cache_of_tests

    from xrddiff.core.files import cache_dir

    here = Path(os.environ["XRDDIFF_TESTS"])
    assert cache_dir() == here / "cache" and not (here / "cache" / "masks").is_symlink()
    assert not any((here / "cache" / name).resolve().is_relative_to(here) for name in COSTLY)
    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()  # where no folder can be
    assert not list(cache_of_tests(tmp_path / "mine").iterdir())
