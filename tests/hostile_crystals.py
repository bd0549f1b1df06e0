"""Files of crystals, reflections and peaks that would take more memory or time than they are worth, or make a reader stumble.

Used by `test_hostile_crystals.py`.
"""

from __future__ import annotations

import bz2
import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

MADE: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {}  # name -> file, what makes it, the command
CRYST = "CRYST1   57.800   57.800  150.200  90.00  90.00  90.00 P 41 21 2\n"
ATOM = "ATOM  {:5d}  CA  ALA A{:4d}      11.000  12.000  13.000  1.00 20.00           C\n"
SIMULATE = ("data", "simulate", "FILE", "-n", "1", "--detector", "sim128", "-o", "out.h5")
MERGE = ("merge", "FILE", "--space-group", "P 41 21 2", "--method", "mean", "-o", "out")
MERGE_TABLE = (
    "merge",
    "FILE",
    "--cell",
    "57.8,57.8,150.2,90,90,90",
    "--space-group",
    "P 41 21 2",
    "--method",
    "mean",
    "-o",
    "out",
)
INDEX = ("data", "index", "shots.h5", "--cell", "FILE", "--png", "x.png", "--controls", "0")
RECOVER = ("recover", "shots.h5", "--program", "FILE", "-o", "out")


def hostile(name: str, file: str, *commands: tuple[str, ...]) -> Callable:
    """Register what makes a file; it is given to each command."""

    def add(make: Callable[[Path], None]) -> Callable[[Path], None]:
        for command in commands:
            MADE[f"{name}: {' '.join(command[:2] if command[0] == 'data' else command[:1])}"] = file, make, command
        return make

    return add


def text(name: str, file: str, content: str | bytes | Callable[[], str | bytes], *commands: tuple[str, ...]) -> None:
    """Register a file of this content."""

    def make(path: Path) -> None:
        data = content() if callable(content) else content
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    hostile(name, file, *commands)(make)


def mtz(
    columns: int = 4, rows: int = 1, symmetry: str = "8", batches: int = 0, start: int | None = None, size: int = 0
) -> bytes:
    """An MTZ file whose header declares this much."""
    head = struct.pack("<4si4s68s", b"MTZ ", 21 if start is None else start, b"DA\0\0", b"")
    lines = [
        "VERS MTZ:V1.1",
        f"NCOL {columns:8d} {rows:12d} {batches:8d}",
        "CELL 57.8 57.8 150.2 90 90 90",
        f"SYMINF {symmetry:>3} 8 P 92 'P41212' PG422",
    ]
    lines += [f"COLUMN {label:30} {kind} 0 1 1" for label, kind in (("H", "H"), ("K", "H"), ("L", "H"), ("IMEAN", "J"))]
    return head + b"".join(line.ljust(80).encode() for line in [*lines, "END", "MTZENDOFHEADERS"]) + bytes(size)


for many in (2**31 - 1, 99_999_999, -1):
    text(f"an MTZ of {many} columns", "a.mtz", mtz(columns=many), SIMULATE, MERGE)
text("an MTZ of 84 bytes", "a.mtz", mtz(columns=2**31 - 1)[:84], SIMULATE, MERGE)
text("an MTZ of too many rows", "a.mtz", mtz(rows=2**31 - 1), SIMULATE, MERGE)
text("an MTZ of too many operations", "a.mtz", mtz(symmetry="999999999"), SIMULATE, MERGE)
text("an MTZ of too many batches", "a.mtz", mtz(batches=2**31 - 1), SIMULATE, MERGE)
text("an MTZ whose header is elsewhere", "a.mtz", mtz(start=2**30), SIMULATE, MERGE)
text("an MTZ whose header is far away", "a.mtz", mtz(start=-1), SIMULATE, MERGE)
text("an MTZ of noise", "a.mtz", b"MTZ " + bytes(range(256)) * 40, SIMULATE, MERGE)
text(
    "copies of atoms",
    "a.pdb",
    lambda: (
        CRYST
        + "".join(f"MTRIX1 {i:3d}  1.000000  0.000000  0.000000        0.00000\n" for i in range(1, 3001))
        + "".join(ATOM.format(i, i % 9999) for i in range(3000))
    ),
    SIMULATE,
    INDEX,
)
text("a packed PDB of blank lines", "a.pdb.gz", lambda: gzip.compress(CRYST.encode() + b"\n" * (1 << 28)), SIMULATE)
text("a PDB packed by bzip2", "a.pdb.bz2", lambda: bz2.compress(CRYST.encode() + b"\n" * (1 << 28)), SIMULATE)
text("a PDB of blank lines", "a.pdb", lambda: CRYST.encode() + b"\n" * (1 << 26), SIMULATE, INDEX)
for what, cell in (("NaN", "nan"), ("huge", "1e30"), ("infinite", "inf"), ("zero", "0.0"), ("negative", "-57.8")):
    text(
        f"a CRYST1 with a {what} edge",
        "a.pdb",
        CRYST.replace("57.800   57.800", f"{cell:>6}   57.800") + ATOM.format(1, 1),
        SIMULATE,
        INDEX,
    )
    text(
        f"a CIF with a {what} edge",
        "a.cif",
        f"data_a\n_cell_length_a {cell}\n_cell_length_b 5\n_cell_length_c 5\n_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n",
        SIMULATE,
        INDEX,
    )
text("a CIF of digits", "a.cif", "data_a\n_cell_length_a " + "9" * 100_000 + "\n", SIMULATE, INDEX)

HEAD = "CrystFEL stream format 2.3\n----- Begin chunk -----\nImage filename: a.cxi\n"
LIST = "Peaks from peak search\n  fs/px   ss/px (1/d)/nm^-1   Intensity  Panel\n"
END = "End of peak list\n----- End chunk -----\n"
CRYSTAL = "photon_energy_eV = 9000.0\n--- Begin crystal\nCell parameters 5.78 5.78 15.02 nm, 90 90 90 deg\nastar = 0.17 0 0 nm^-1\nbstar = 0 0.17 0 nm^-1\ncstar = 0 0 0.066 nm^-1\ncentering = P\n"
ROWS = "Reflections measured after indexing\n   h    k    l          I   sigma(I)       peak background  fs/px  ss/px panel\n"
for word in ("nan", "inf", "1e300", "-inf", "9" * 100_000):
    shown = word if len(word) < 10 else "100,000 digits"
    text(
        f"a stream with a peak at {shown}",
        "a.stream",
        HEAD + "Event: //0\n" + LIST + f"{word} 20.0 1.2 99.0 p0\n" + END,
        RECOVER,
    )
    text(
        f"a stream with an intensity of {shown}",
        "a.stream",
        HEAD
        + "Event: //0\n"
        + CRYSTAL
        + ROWS
        + f"1 1 2 {word} 1.0 1 1 10 10 p0\nEnd of reflections\n----- End chunk -----\n",
        MERGE,
    )
    text(f"a table with a peak at {shown}", "a.csv", f"frame,fs,ss,intensity\n0,{word},10.5,3\n", RECOVER)
    text(f"a table with a peak of frame {shown}", "a.csv", f"frame,fs,ss\n{word},10.0,10.5\n", RECOVER)
    text(
        f"observations with an intensity of {shown}",
        "a.csv",
        f"frame,h,k,l,intensity,sigma\n0,1,1,2,{word},1\n1,1,1,2,3,1\n",
        MERGE_TABLE,
    )
text(
    "an event of 30 digits",
    "a.stream",
    HEAD + "Event: //" + "9" * 30 + "\n" + LIST + "10 20 1.2 99 p0\n" + END,
    RECOVER,
)
text("an event without a number", "a.stream", HEAD + "Event: //\n" + LIST + "10 20 1.2 99 p0\n" + END, RECOVER)
text(
    "a cell of digits",
    "a.stream",
    HEAD + "Event: //0\n--- Begin crystal\nCell parameters" + " 7" * 2000 + "9" * 60_000 + "\n----- End chunk -----\n",
    MERGE,
)
text(
    "axes of digits",
    "a.stream",
    HEAD + "Event: //0\n--- Begin crystal\nastar = " + "1" * 60_000 + "\n----- End chunk -----\n",
    MERGE,
)
text("a line without an end", "a.stream", lambda: HEAD + "x" * (1 << 28), MERGE, RECOVER)
text(
    "a chunk without an end",
    "a.stream",
    lambda: HEAD + "Event: //0\n" + LIST + "10.0 20.0 1.2 99.0 p0\n" * 10_000_000,
    MERGE,
    RECOVER,
)
text(
    "a list without an end",
    "a.stream",
    HEAD + "Event: //0\n" + LIST + "10.0 20.0 1.2 99.0 p0\n----- End chunk -----\n",
    MERGE,
    RECOVER,
)
text(
    "a list before the first chunk",
    "a.stream",
    "CrystFEL stream format 2.3\n" + LIST + "10.0 20.0 1.2 99.0 p0\n" + END,
    MERGE,
    RECOVER,
)
text("a row with too few numbers", "a.stream", HEAD + "Event: //0\n" + LIST + "10.0 20.0 p0\n" + END, RECOVER)
text(
    "a row with too many numbers",
    "a.stream",
    HEAD + "Event: //0\n" + LIST + "10.0 20.0 1 2 3 4 5 6 p0\n" + END,
    RECOVER,
)
text(
    "many crystals in a frame", "a.stream", HEAD + "Event: //0\n" + CRYSTAL * 60_000 + "----- End chunk -----\n", MERGE
)
text("a table that is cut", "a.csv", "frame,fs,ss,intensity\n0,1.0,10.5,3\n0,2.0", RECOVER)
text("a table without rows", "a.csv", "frame,fs,ss,intensity\n", RECOVER)


@hostile("a named pipe", "a.stream", MERGE, RECOVER)
@hostile("a named pipe in place of an MTZ", "a.mtz", MERGE, SIMULATE)
@hostile("a named pipe in place of a PDB", "a.pdb", SIMULATE, INDEX)
def _pipe(path: Path) -> None:
    os.mkfifo(path)


@hostile("a folder", "a.mtz", MERGE, SIMULATE)
@hostile("a folder in place of a stream", "a.stream", MERGE, RECOVER)
def _folder(path: Path) -> None:
    path.mkdir()


ANSWERED = ("a table without rows: recover", "many crystals in a frame: merge")  # which may be no mistake


def made(name: str, folder: Path) -> list[str]:
    """Make the file of a case in a folder; returns the command."""
    file, make, command = MADE[name]
    make(folder / file)
    return [word.replace("FILE", file) for word in command]
