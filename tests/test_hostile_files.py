"""Every file of `hostile_files` is looked at by one process: an answer or a sentence, and little memory. And servers that send without end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hostile_files import hostile_files

from xrddiff.core.launcher import python_words, run

MOST = 1 << 30  # bytes of the whole process, with its libraries

# each file in turn: exit code, what was said, the largest memory of the process since the one before, what the probe took at most
CHILD = """
import contextlib, io, json, re, resource, signal, sys, threading, traceback
from pathlib import Path
from xrddiff.app.verbs.main import main
from xrddiff.data.formats import readers

class Hang(BaseException):
    pass

def late(*_):
    raise Hang("it hangs")

signal.signal(signal.SIGALRM, late)  # waits
signal.signal(signal.SIGPROF, late)  # computes
for name, path in json.loads(sys.stdin.read()).items():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    words = ["data", "inspect", "--no-png", path]
    frames = sys.argv[1]
    if path.endswith((".geom", ".poni")):
        words = ["data", "inspect", "--no-png", frames, f"geometry={path}"]
    if path.endswith(".csv"):
        words = ["data", "inspect", "--no-png", frames, f"labels={path}"]
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(600)
    signal.setitimer(signal.ITIMER_PROF, 60)  # generous: a test asks no clock
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except BaseException:
            code, said = -1, err.write(traceback.format_exc())
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) << 10
    print(json.dumps([name, code, peak, out.getvalue()[-300:], err.getvalue()[-3000:]]), flush=True)
probe = readers.probe_file.__globals__["_probe"]
probe.stop()
print(json.dumps(["the probe", 0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10, "", ""]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple]:
    """name -> (exit code, bytes, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret.h5").write_bytes(b"")
    np.save(folder / "frames.npy", np.arange(2 * 24 * 32, dtype="u2").reshape(2, 24, 32))
    files = hostile_files(folder / "files")
    asked = json.dumps({name: os.fspath(path) for name, path in files.items()})
    env = os.environ | {"XRDDIFF_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    words = python_words(str(folder / "frames.npy"), code=CHILD)
    done = run(words, timeout=900, input=asked, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: tuple(rest) for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert found.keys() - {"the probe"} == files.keys() and len(files) >= 100
    return found


@pytest.mark.slow
def test_every_hostile_file_is_one_sentence_or_an_answer(answers):
    wrong = {}
    for name, (code, _, out, err) in answers.items():
        said = [line for line in err.splitlines() if not line.startswith("xrddiff: note: ")]
        sentence = code in (1, 2) and len(said) == 1 and said[0].startswith("xrddiff: ") and 20 < len(said[0]) < 900
        if not (sentence or (code == 0 and not said)) or "Traceback" in out + err or "\x1b" in err:
            wrong[name] = code, err
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_no_hostile_file_takes_more_than_a_gigabyte(answers):
    large = {name: found[1] >> 20 for name, found in answers.items() if found[1] > MOST}
    assert not large, large
