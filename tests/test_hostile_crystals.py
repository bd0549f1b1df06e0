"""Files of `hostile_crystals`: each is refused in a sentence, with little memory; no expression of the package stumbles over 100,000 digits."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_crystals import ANSWERED, MADE, made

from xrddiff.data.formats.store import save_frames
from xrddiff.physics.simulation.simulate import simulate

ROOT = Path(__file__).resolve().parent.parent
MOST = 1 << 30  # bytes of a process with its libraries, which take a part of it

# Each command in turn, in one process: its code, what it said, and the memory that it took at most.
CHILD = """
import contextlib, io, json, os, re, sys, traceback
from pathlib import Path
from xrddiff.app.verbs.main import main

for name, (folder, words) in json.loads(sys.stdin.read()).items():
    os.chdir(folder)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except BaseException:
            code, said = -1, err.write(traceback.format_exc())
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
    print(json.dumps([name, code, peak, err.getvalue()[-3000:]]), flush=True)
"""


@pytest.mark.slow
def test_files_of_crystals_are_refused_in_a_sentence(tmp_path):
    shots = save_frames(simulate("sim128", range(2), seed=5), tmp_path / "shots.h5")
    calls = {}
    for number, name in enumerate(MADE):
        (folder := tmp_path / str(number)).mkdir()
        (folder / "shots.h5").symlink_to(shots)
        calls[name] = str(folder), made(name, folder)
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(calls), capture_output=True, text=True, timeout=1500
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(MADE), done.stderr[-3000:]
    for name, code, peak, said in rows:
        errors = [line for line in said.splitlines() if line and not line.startswith("xrddiff: note: ")]
        assert "Traceback" not in said and peak < MOST, (name, peak, said)
        assert code == 2 and len(errors) == 1 or name in ANSWERED, (name, code, said)
        assert not list(Path(calls[name][0]).glob("out*")) or code == 0, name


def patterns() -> list[tuple[str, str, bool, str]]:
    """(place, pattern, is it of bytes, how it is used) of every expression that stands in the package as a text."""
    found = []
    for path in sorted((ROOT / "xrddiff").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            used = re.fullmatch(
                r"re\.(compile|match|search|fullmatch|findall|finditer|split|sub)", ast.unparse(node.func)
            )
            if used and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str | bytes):
                text = node.args[0].value
                raw = isinstance(text, bytes)
                found.append((f"{path.name}:{node.lineno}", text.decode("latin-1") if raw else text, raw, used[1]))
    return found


TRY = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
texts = ["9" * 100_000, " " * 100_000, "1 " * 50_000, "a" * 100_000, "a." * 50_000, "-" * 100_000, "1e" * 50_000, "/" * 100_000, "[" * 2000, "\\t" * 100_000,
         "50%|" + "9" * 100_000, "x/min_fs = " + "9" * 100_000, "Cell parameters" + " 1" * 50_000, "0.1" * 30_000]
for place, pattern, raw, used in json.loads(sys.stdin.read()):
    print(place, flush=True)
    made = re.compile(pattern.encode("latin-1") if raw else pattern)
    for text in texts:
        text = text.encode() if raw else text
        for method in ("search", "match", "fullmatch") if used == "compile" else (used if used in ("match", "fullmatch") else "search",):
            getattr(made, method)(text)
print("done")
"""


@pytest.mark.slow
def test_no_expression_stumbles_over_digits():
    """Some seconds of CPU for all of them, where a single quadratic one takes minutes: the process has 300."""
    found = patterns()
    assert len(found) > 80
    done = subprocess.run([sys.executable, "-c", TRY], input=json.dumps(found), capture_output=True, text=True)
    assert done.stdout.endswith("done\n"), done.stdout.splitlines()[-1:]
