"""A report on a disk that is full: one sentence, and the report that was there stays."""

from __future__ import annotations

import resource
from pathlib import Path

import pandas as pd
import pytest

from xrddiff.errors import XrddiffError
from xrddiff.views.report import Report


@pytest.fixture
def small_files():
    """No file may grow beyond 2 kB, as on a full disk; a signal would end the process, so it is ignored as Python does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def make(rows: int) -> Report:
    report = Report("a run")
    report.add("Table", table=pd.DataFrame({"value": range(rows)}))
    return report


def test_a_full_disk_leaves_the_former_report(tmp_path, small_files):
    former = tmp_path / "report.md"
    former.write_text("the report of before")
    with pytest.raises(XrddiffError, match=r"cannot save .*report\.md"):
        make(1000).write(tmp_path)
    assert former.read_text() == "the report of before"
    assert [p.name for p in Path(tmp_path).iterdir()] == ["report.md"]
