"""What an earlier version wrote still opens: a run that was stopped goes on to the same samples, stores read as they did.

`written_before.zip` was made by the version before the rooms were redrawn: a latent run stopped after the training of its
autoencoder (`run/`), what that version made of it when it was resumed (`after_resume.*`), and two stores.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_run import xrddiff

from xrddiff.data.formats.readers import open_frames

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    with zipfile.ZipFile(Path(__file__).parent / "written_before.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def resumed(before):
    return xrddiff("run", "resume=run", folder=before)


def test_a_run_goes_on_where_it_was_stopped(before, resumed):
    ours, theirs = (pd.read_csv(before / f) for f in ("run/metrics/training_metrics.csv", "after_resume.csv"))
    for column in theirs.columns.drop("split"):
        # another processor sums in another order
        np.testing.assert_allclose(ours[column], theirs[column], rtol=2e-4, err_msg=column)
    assert (ours["split"] == theirs["split"]).all()
    assert "report.html" in resumed.stdout and (before / "run" / "report.html").exists()


def test_it_draws_the_samples_that_it_drew(before, resumed):
    ours = open_frames(before / "run" / "samples" / "samples.zarr")["intensity"].values
    theirs = np.load(before / "after_resume.npz")["intensity"]
    assert ours.shape == theirs.shape and theirs.std() > 0
    np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2 * theirs.std())


@pytest.mark.parametrize("name", ["store_v2.h5", "store_v2.zarr"])
def test_stores_read_as_they_did(before, name):
    frames, expected = open_frames(before / name).load(), json.loads((before / "store.json").read_text())
    assert frames["intensity"].values.sum() == expected["sum"] and frames.sizes["peak"] == expected["peaks"]
    assert frames.attrs["distance"] > 0 and frames["mask"].dtype == bool
