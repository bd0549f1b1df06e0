"""Programs of users: which one is executed, where, with what, and what is left of it when it has ended."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pytest
from hostile_programs import PROGRAMS, left, script

from xrddiff.app.verbs.main import main
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.selection import select_frames
from xrddiff.physics.simulation.simulate import simulate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    frames = simulate("sim128", range(4), seed=5).load()
    return save_frames(select_frames(frames, [0, 1]), tmp_path_factory.mktemp("shots") / "shots.h5")


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_behaves_badly_is_ended_and_leaves_nothing(name, shots, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mark = f"1000.{uuid.uuid4().int % 10**9}"
    (tmp_path / "find.sh").write_text(script(name, mark))
    code = main(["recover", str(shots), "--timeout", "4", "--program", "sh find.sh {frames} {peaks}", "-o", "out"])
    said = capsys.readouterr().err
    assert code == PROGRAMS[name][1] and PROGRAMS[name][2] in said and "\x1b" not in said and "Traceback" not in said, (
        said
    )
    assert left(mark) == [] and set(os.listdir(tmp_path)) == {"find.sh", "out"}
    assert all(p.stat().st_size <= 100 << 20 for p in tmp_path.rglob("*.txt"))


def test_the_program_that_was_named_is_executed(shots, tmp_path, monkeypatch, capsys):
    """Not one of the same name in the folder of the results, nor with the secrets of the user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_TOKEN", "secret-1")
    monkeypatch.setenv("MY_SITE", "beamline-7")
    (tmp_path / "sub").mkdir()
    good = 'printf "frame,fs,ss\\n0,10,10\\n" > "$2.csv"'
    for folder, word in (("", "mine"), ("sub/", "another")):
        (tmp_path / f"{folder}p.sh").write_text(
            f"#!/bin/sh\necho {word} $PWD; env; cat '$3'; {good}\n".replace("'$3'", '"$3"')
        )
        (tmp_path / f"{folder}p.sh").chmod(0o755)
    (tmp_path / "my settings.txt").write_text("level 5\n")
    words = ["recover", str(shots), "--program", "first=./p.sh {frames} {peaks} 'my settings.txt'", "--env", "MY_SITE"]
    assert main([*words, "--program", "sub/p.sh {frames} {peaks} --level=1", "-o", "out"]) == 0
    printed = {p.parent.name: p.read_text() for p in (tmp_path / "out" / "programs").glob("*/output.txt")}
    assert set(printed) == {"first", "p.sh"}
    assert printed["first"].startswith(f"mine {tmp_path}/out/programs/first") and "level 5" in printed["first"]
    assert (
        printed["p.sh"].startswith("another")
        and "secret-1" not in printed["first"]
        and "beamline-7" in printed["first"]
    )
    assert list(json.loads((tmp_path / "out" / "metrics" / "recovery.json").read_text())["programs"]) == [
        "first",
        "p.sh",
    ]
    capsys.readouterr()
    for more, said in (
        (["--program", "p.sh=classical", "--program", "./p.sh {frames} {peaks}"], "two programs are called 'p.sh'"),
        (["--program", "./none.sh {frames} {peaks}"], "program: ./none.sh does not exist"),
        (["--program", "no-such-finder {frames} {peaks}"], "program: no-such-finder does not exist"),
        (["--program", "./p.sh {frames} {peaks}", "--env", "NOT_SET"], "the variable NOT_SET is not set"),
    ):
        assert main(["recover", str(shots), *more, "-o", "other"]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_python_finders_of_one_interpreter_are_two(shots, tmp_path, monkeypatch):
    """`python a.py` and `python b.py` are called by their scripts, which import what stands beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "places.py").write_text("ROW = '0,10,10'\n")
    for name in "ab":
        text = f"import sys, places\nopen(sys.argv[2] + '.csv', 'w').write('frame,fs,ss\\n' + {len(name)} * (places.ROW + '\\n'))\n"
        (tmp_path / f"{name}.py").write_text(text)
    programs = [f"python3 {name}.py {{frames}} {{peaks}}" for name in "ab"]
    assert main(["recover", str(shots), *(w for p in programs for w in ("--program", p)), "-o", "out"]) == 0
    assert list(json.loads((tmp_path / "out" / "metrics" / "recovery.json").read_text())["programs"]) == [
        "a.py",
        "b.py",
    ]


def test_tables_of_a_recovery_are_checked(shots, tmp_path, monkeypatch, capsys):
    """A cut or changed truth is refused; it is that of another program's folder where nothing says its hash."""
    from xrddiff.core.gate import read_table
    from xrddiff.core.safe_write import write_table

    monkeypatch.chdir(tmp_path)
    assert main(["recover", str(shots), "--program", "classical", "-o", "first"]) == 0
    import pandas as pd

    table = pd.DataFrame({"frame": [0], "fs": [1.0], "ss": [2.0], "intensity": [3.0], "snr": [4.0], "d": [5.0]})
    path = write_table(table, tmp_path / "first" / "truth.csv")
    (tmp_path / "first" / "frames.h5").write_bytes(shots.read_bytes())
    assert main(["recover", "first", "--program", "classical"]) == 0
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    assert main(["recover", "first", "--program", "classical", "-o", "again"]) == 2
    assert "truth.csv is damaged or was changed" in capsys.readouterr().err and not (tmp_path / "again").exists()
    (tmp_path / "first" / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="is cut: its last row"):
        read_table(path)
