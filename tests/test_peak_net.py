"""The peak network on panels, with a mask of each frame and without any peak; average precision against its definition."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from xrddiff.core.errors import BadInput
from xrddiff.data.frames.frames import make_frames
from xrddiff.judge.metrics.reconstruction import average_precision, precision_recall
from xrddiff.learn.models.peak_net import NetworkInput, PeakNet, find_network_peaks, local_maxima
from xrddiff.learn.recipes.peak_nets import fit_peak_net, simulated_peaks
from xrddiff.physics.simulation.simulate import simulate


class Bright(torch.nn.Module):
    """Says that every bright pixel is a peak."""

    def forward(self, x):
        return 4 * x[:, :1] - 12


def panel_frames(images: np.ndarray, **words) -> object:
    origin = np.array([[0.01, 0, 0.1], [-0.02, 0, 0.1]])
    fs, ss = np.array([[1e-4, 0, 0]] * 2), np.array([[0, 1e-4, 0]] * 2)
    return make_frames(images, units="ADU", panels={"origin": origin, "fs": fs, "ss": ss}, wavelength=1.0, **words)


def test_peaks_of_panels():
    rng = np.random.default_rng(0)
    images = rng.normal(50, 5, (2, 2, 40, 50)).astype(np.float32)
    images[1, 1, 20, 30] += 500
    found = find_network_peaks(Bright(), panel_frames(images), threshold=0.9)
    assert list(found.columns[:4]) == ["frame", "panel", "fs", "ss"] and len(found) == 1
    assert found.loc[0, ["frame", "panel"]].tolist() == [1, 1]
    assert abs(found.loc[0, "fs"] - 30.5) < 0.2 and abs(found.loc[0, "ss"] - 20.5) < 0.2


def test_each_frame_has_its_mask():
    rng = np.random.default_rng(0)
    images = rng.normal(50, 5, (2, 40, 50)).astype(np.float32)
    images[:, 20, 30] += 500
    mask = np.ones(images.shape, bool)
    mask[0, 15:25, 25:35] = False
    frames = make_frames(images, mask=mask, units="ADU", beam_center=(25.0, 20.0))
    assert find_network_peaks(Bright(), frames, threshold=0.9)["frame"].tolist() == [1]
    assert not NetworkInput(frames)(0)[0, 1, 15:25, 25:35].any()


def test_not_a_number_is_masked():
    images = np.random.default_rng(0).normal(50, 5, (1, 40, 50)).astype(np.float32)
    images[0, 5, 5] = np.nan
    seen = NetworkInput(make_frames(images, units="ADU", beam_center=(25.0, 20.0)))(0)
    assert torch.isfinite(seen).all() and seen[0, 0, 5, 5] == 0


def test_empty_frames_give_no_peaks():
    frames = make_frames(np.zeros((1, 64, 64), np.int32), units="photon", beam_center=(32.0, 32.0))
    assert len(find_network_peaks(PeakNet(), frames)) == 0
    assert list(local_maxima(np.full((8, 8), -9.0), np.ones((8, 8), bool))) == ["fs", "ss", "probability", "logit"]


def test_average_precision_of_random_ranks():
    """The area is the mean precision at the ranks of the true peaks."""
    rng = np.random.default_rng(3)
    at = pd.DataFrame({"frame": 0, "fs": 10.0 * np.arange(40), "ss": 0.0, "snr": rng.permutation(40).astype(float)})
    true = at.sample(15, random_state=0)
    ranked = at.sort_values("snr", ascending=False, ignore_index=True)
    right = ranked["fs"].isin(true["fs"]).to_numpy()
    expected = (np.cumsum(right)[right] / (np.flatnonzero(right) + 1)).mean()
    assert average_precision(precision_recall(true, at, "snr")) == pytest.approx(expected)


def test_only_images_with_expected_photons_are_learnt_from():
    frames = simulate("sim128", range(2))
    with pytest.raises(BadInput, match="expected photons"):
        simulated_peaks(frames)
    known = simulated_peaks(simulate("sim128", range(2), expected=True))
    with pytest.raises(BadInput, match="images"):
        fit_peak_net([known._replace(expected=known.expected[:, None])], steps=1)
