"""Settings that every test shares."""

from __future__ import annotations

import os

import pytest

# A shared machine has two cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("MPLBACKEND", "agg")


def missing(reason: str) -> None:
    """Skip for want of an optional tool; where the full suite must run (`CI=true`) that is a failure."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason} (CI needs it)")
    pytest.skip(reason)
