"""The shipped encoder: weights that are what their record says, and features that depend on the frame alone."""

import numpy as np
import pytest
import torch

from xrddiff.core.errors import BadInput
from xrddiff.judge.metrics import set_summaries as encoder
from xrddiff.judge.metrics.set_summaries import Ruler
from xrddiff.physics.simulation.simulate import simulate


def test_other_weights_are_refused(monkeypatch):
    record = encoder.encoder_record()
    monkeypatch.setattr(encoder, "encoder_record", lambda: record | {"sha256": "0" * 64})
    encoder.read_encoder.cache_clear()
    with pytest.raises(BadInput, match="damaged"):
        encoder.read_encoder()
    encoder.read_encoder.cache_clear()


def test_the_weights_are_small_and_documented():
    record = encoder.encoder_record()
    assert record["name"] == encoder.ENCODER and record["command"].endswith(f"--seed {record['seed']}")
    assert record["parameters"] < 300_000
    assert (encoder.files("xrddiff") / "judge" / "weights" / f"{encoder.ENCODER}.safetensors").stat().st_size < 500_000


def test_features_depend_on_the_frame_alone():
    frames = simulate("sim128", range(4), seed=3, truth=False)
    ruler = Ruler(frames)
    whole = ruler.measure(frames).features
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        parts = [ruler.measure(frames.isel(frame=[i]), numbers=[i]).features for i in range(4)]
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(np.concatenate(parts), whole) and whole.std(0).min() > 0


def test_summaries_with_another_encoder_are_not_compared(monkeypatch):
    frames = simulate("sim128", range(4), seed=3, truth=False)
    key = Ruler(frames).key
    monkeypatch.setattr("xrddiff.judge.metrics.set_summaries.ENCODER", "another-1")
    assert Ruler(frames).key != key
