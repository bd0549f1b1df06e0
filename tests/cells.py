"""Run every cell of a notebook, as `nbdev_test` does: `python tests/cells.py NOTEBOOK`."""

from __future__ import annotations

import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import test_nb

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    passed, _ = test_nb(Path(sys.argv[1]), skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    sys.exit(not passed)
