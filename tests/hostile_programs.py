"""Programs of users that behave badly, as shell scripts for `xrddiff recover --program`.

Used by `test_programs.py`. SLEEP is a child that must not be left; OUT the file of peaks.
"""

from __future__ import annotations

import psutil

GOOD = 'printf "frame,fs,ss\\n0,10,10\\n" > OUT'
# name -> script, exit code of xrddiff, what it says (none: it succeeds)
PROGRAMS: dict[str, tuple[str, int, str]] = {
    "prints without end": ("yes", 2, "ran for more than"),
    "prints 200 MB and succeeds": (f"head -c 200000000 /dev/zero; {GOOD}", 0, ""),
    "prints errors without end": ("yes >&2", 2, "ran for more than"),
    "ignores its end": ("trap '' TERM INT HUP; SLEEP", 2, "ran for more than"),
    "leaves a child that holds its output": (f"SLEEP & {GOOD}", 0, ""),
    "leaves a child in a session of its own": (f"setsid SLEEP & {GOOD}", 0, ""),
    "forks twice": (f"(setsid sh -c 'SLEEP & SLEEP' >/dev/null 2>&1 &) ; {GOOD}", 0, ""),
    "leaves twenty children": (
        f"for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do SLEEP & done; {GOOD}",
        0,
        "",
    ),
    "signals its group": ("kill -TERM 0; SLEEP", 2, "was ended by signal 15"),
    "kills its parent": ("kill -KILL $PPID; SLEEP", 2, "was ended by signal 9"),
    "ends by a signal": ("kill -SEGV $$", 2, "was ended by signal 11"),
    "reads its input": (f"cat > /dev/null; {GOOD}", 0, ""),
    "writes nothing": ("true", 2, "wrote no {peaks} file"),
    "fails and says why": ("echo no such detector >&2; exit 3", 2, "ended with code 3: no such detector"),
    "removes its folder": ('rm -rf "$PWD"', 2, "wrote no {peaks} file"),
    "talks to the terminal": (f"printf '\\033]0;X\\007\\033[2J'; {GOOD}; exit 1", 2, "ended with code 1"),
    "writes numbers that are none": ('printf "frame,fs,ss\\n0,nan,10\\n" > OUT', 2, "fs of peak 1 is nan"),
}


def script(name: str, mark: str) -> str:
    """The script of a program, whose children are known by `mark`, a number of seconds."""
    return PROGRAMS[name][0].replace("SLEEP", f"sleep {mark}").replace("OUT", '"$2.csv"')


def left(mark: str) -> list[int]:
    """The processes that are still there of a program with this mark."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or [])]
