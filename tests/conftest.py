"""Settings that every test shares."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

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


def need(name: str) -> ModuleType:
    """The module `name`, which is no requirement of the package but of this test; `missing` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"{name} is not installed (make dev)")
