"""Run notebooks in place and keep their outputs: `python docs/execute.py [NOTEBOOK …]`, or `make outputs` for all.

Run notebooks (`nbs/runs`) are left out: papermill executes those, with parameters, into a run folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path) -> None:
    """Every cell of one notebook, in this process; an error stops with its traceback."""
    from execnb.shell import CaptureShell
    from nbdev.clean import nbdev_clean

    os.chdir(path.parent)
    CaptureShell(path=str(path.parent)).execute(str(path), str(path), exc_stop=True)
    os.chdir(ROOT)
    nbdev_clean(str(path))
    keep_pictures(path)
    if found := not_for_pages(path):
        raise SystemExit(f"{path.relative_to(ROOT)}: {found}")


def keep_pictures(path: Path) -> None:
    """Of a widget keep its picture and its sentence: the view belongs to a kernel that is gone, and has a new number each time."""
    text = path.read_text(encoding="utf-8")
    if WIDGET not in text:
        return
    nb = json.loads(text)
    for output in (o for cell in nb["cells"] for o in cell.get("outputs", [])):
        output.get("data", {}).pop(WIDGET, None)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def not_for_pages(path: Path) -> str | None:
    """What its outputs hold that nobody should read on a page: a warning, or a folder of this machine."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for output in (o for cell in cells for o in cell.get("outputs", [])):
        shown = "".join(output.get("text", [])) + "".join(output.get("data", {}).get("text/plain", []))
        if output.get("name") == "stderr" and "Warning" in shown:
            return f"an output is a warning: {shown[:200]}"
        if str(ROOT) in shown or str(Path.home()) + os.sep in shown:
            return f"an output names a folder of this machine: {shown[:200]}"
    return None


def main() -> None:
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    names = [Path(a).resolve() for a in sys.argv[1:]]
    if len(names) == 1:
        execute(names[0])
        return
    everything = sorted(
        p for p in (ROOT / "nbs").rglob("*.ipynb") if "runs" not in p.parts and ".ipynb_checkpoints" not in p.parts
    )
    for path in names or everything:
        # A process each, as nbdev_test does: no notebook sees what another one imported or seeded.
        print(path.relative_to(ROOT), flush=True)
        subprocess.run([sys.executable, __file__, str(path)], check=True)


if __name__ == "__main__":
    main()
