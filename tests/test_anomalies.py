"""Anomaly scores of runs, in a latent and in pixels: the same for any batch, finite, refused where there are no noise levels."""

from __future__ import annotations

import numpy as np
import pytest

import xrddiff as xd
from xrddiff.core.errors import BadInput
from xrddiff.judge.inference.anomalies import anomaly_scores
from xrddiff.judge.metrics.anomalies import darkest_area, good_frames, reconstruction_scores, with_dead_panel


@pytest.mark.slow
@pytest.mark.parametrize("model", ["latent_diff", "ddpm", "vae_kl"])
def test_scores_do_not_depend_on_the_batch(runs, one_thread, model):
    run = runs(model)
    frames = xd.open_run(run).frames("all", limit=5)
    whole, parts = (anomaly_scores(run, frames, batch=batch) for batch in (5, 2))
    assert len(whole) == 5 and np.isfinite(whole.to_numpy()).all()
    assert np.allclose(whole, parts, rtol=1e-4)
    assert ("deviance" in whole) == (model != "ddpm") and ("denoising" in whole) == (model != "vae_kl")


@pytest.mark.slow
def test_an_autoregressive_run_has_no_noise_levels(runs):
    with pytest.raises(BadInput, match="autoregressive"):
        anomaly_scores(runs("diff"), good_frames("sim128", range(1)))


def test_a_dead_area_is_noticed():
    """A twentieth of the frame that counts nothing: 95 of 100 are noticed where one good frame in a hundred is."""
    limit = np.quantile(darkest_area(good_frames("sim128", range(5_000_000, 5_000_200))), 0.01)
    dead = with_dead_panel(good_frames("sim128", range(5_000_200, 5_000_300)), 0, 1 / 20)
    assert (darkest_area(dead) < limit).mean() >= 0.95
    masked = dead.assign(mask=(dead["intensity"].dims, dead["intensity"].values > 0))
    assert (darkest_area(masked) > darkest_area(dead)).all()  # a part that the mask leaves out is not dark


def test_another_shape_is_refused():
    frames = good_frames("sim128", range(2))
    with pytest.raises(BadInput, match="shape"):
        reconstruction_scores(frames, frames.isel(x=slice(0, 64)))
