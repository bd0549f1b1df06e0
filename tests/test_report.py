"""A report on a disk that is full: one sentence, and the report that was there stays."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: the limit on the size of files holds for everything that a process writes, its log too.
CODE = """
import resource, sys
import pandas as pd
from xrddiff.errors import XrddiffError
from xrddiff.views.report import Report

report = Report("a run")
report.add("Table", table=pd.DataFrame({"value": range(1000)}))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    report.write(sys.argv[1])
except XrddiffError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_former_report(tmp_path):
    former = tmp_path / "report.md"
    former.write_text("the report of before")
    done = subprocess.run([sys.executable, "-c", CODE, tmp_path], text=True, capture_output=True, check=True)
    assert done.stdout.startswith("cannot save ") and "report.md" in done.stdout and len(done.stdout.splitlines()) == 1
    assert former.read_text() == "the report of before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]
