"""The network of expected counts of a latent model: trained on request, used in samples and in reconstructions, kept with its run."""

from __future__ import annotations

import shutil
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import need
from test_run import xrddiff

from xrddiff.config.plan import inference_plan
from xrddiff.core.errors import BadInput
from xrddiff.core.ranks.agreement import Ranks
from xrddiff.data.formats.readers import open_frames
from xrddiff.judge.exports.exporters import export_run
from xrddiff.judge.inference import fit_counts_net
from xrddiff.judge.inference.evaluation import SampleEvaluation
from xrddiff.judge.inference.generators import open_generator
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.learn.models.counts_net import CountsNet
from xrddiff.learn.recipes.counts_nets import open_counts_net, save_counts_net
from xrddiff.learn.training.checkpoints import load_checkpoint

pytestmark = pytest.mark.slow

FEW = ["inference.num_samples=4", "inference.steps=3", "inference.batch_size=2", "threads=1"]


@pytest.fixture(scope="module")
def counted(runs, tmp_path_factory):
    """(a copy of the small latent run without a network of counts, the same run with one, what was printed)."""
    folder = tmp_path_factory.mktemp("counted")
    before, run = folder / "before", folder / "run"
    shutil.copytree(runs("latent_diff"), before)
    shutil.copytree(before, run)
    said = xrddiff("run", f"resume={run}", "training.counts_steps=6", folder=folder).stdout
    return before, run, said


def drawn(run, *words):
    return open_sample_job(run, [*FEW, *words]).make(slice(0, 4))[0]


def test_it_is_trained_on_request_and_used_in_samples(counted, tmp_path):
    before, run, _ = counted
    assert load_checkpoint(run).sha256 == load_checkpoint(before).sha256
    state = load_checkpoint(run / "counts").state
    assert state["step"] == 6 and set(state["counts"]["maps"]) == {"lattice", "intensity", "q"}
    loss = state["about"]["loss"]
    assert np.isfinite([loss["decoder"], loss["network of counts"]]).all()
    assert "Expected counts" in (run / "report.md").read_text()

    plain, mine = drawn(before), drawn(run)
    a, b = plain["intensity"].values, mine["intensity"].values
    assert (a != b).any() and (b >= 0).all() and not b[:, ~mine["mask"].values.astype(bool)].any()
    for name in ("cell", "orientation"):
        assert np.array_equal(plain[name].values, mine[name].values, equal_nan=True)
    xrddiff("sample", str(run), *FEW, "--name", "more", "--workers", "local:2", folder=tmp_path)
    assert (open_frames(run / "samples" / "more" / "samples.zarr")["intensity"].values == b).all()


def test_reconstructions_that_samples_are_judged_beside_have_it_too(counted):
    before, run, _ = counted
    made = []
    for folder in (before, run):
        evaluation = SampleEvaluation(folder, inference_plan(folder), folder / "samples" / "samples.zarr")
        made.append(evaluation._reconstruct(np.arange(2))["intensity"].values)
    generator = open_generator(run)
    frames = evaluation.prepared.frames.isel(frame=evaluation.judged[:2])
    assert np.allclose(generator.counts(made[0], frames), made[1], rtol=1e-4, atol=1e-4)
    assert not np.allclose(made[0], made[1], rtol=1e-3)


def test_one_that_is_there_is_kept_and_one_of_another_autoencoder_refused(counted, tmp_path):
    _, run, said = counted
    assert "exists already" not in said
    sha256 = load_checkpoint(run / "counts").sha256
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "report.html").unlink()
    assert "the network of counts exists already" in xrddiff("run", f"resume={other}", folder=tmp_path).stdout
    assert load_checkpoint(other / "counts").sha256 == sha256

    state = load_checkpoint(run / "counts")
    net, _ = open_counts_net(run)
    shutil.rmtree(other / "counts")
    (other / "counts").mkdir()  # killed while it saved the first one
    assert open_generator(other).counts is None
    save_counts_net(net, other, 6, **state.state["about"] | {"latent": "0" * 64})
    with pytest.raises(BadInput, match="is of another autoencoder"):
        open_generator(other)


def test_samples_stay_within_what_counts_can_be(counted):
    _, run, _ = counted
    job = open_sample_job(run, FEW)
    torch.nn.init.constant_(job.generator.counts.net.last.bias, 4.0)
    made = job.make(slice(0, 2))[0]
    assert made["intensity"].values.max() == np.float32(made.attrs["intensity_limits"][1])


def test_the_other_ranks_wait_for_it_and_one_without_a_finite_loss_is_not_kept(counted, tmp_path, monkeypatch, capsys):
    _, run, _ = counted
    evaluation = SampleEvaluation(run, inference_plan(run), run / "samples" / "samples.zarr")
    told = []

    def diverged(frames, **_):
        net = CountsNet(list(frames.maps))
        torch.nn.init.constant_(net.last.bias, float("nan"))
        return net

    class Waiting(Ranks):
        def __init__(self, place, patience=None):
            told.append((place.process_index, place.num_processes, patience))
            self.rank, self.size = 0, 1

    monkeypatch.setattr(fit_counts_net, "Ranks", Waiting)
    monkeypatch.setattr(fit_counts_net, "fit_counts_net", diverged)
    other = tmp_path / "run"
    shutil.copytree(run, other)
    shutil.rmtree(other / "counts")
    plan, place = inference_plan(other), SimpleNamespace(rank=1, size=2)
    assert fit_counts_net.train_counts(other, plan, evaluation.prepared, place) is None
    assert told == [(1, 2, timedelta(days=30))] and "its loss was no number" in capsys.readouterr().out
    assert open_counts_net(other) is None


def test_what_is_exported_has_no_such_network_and_says_so(counted, tmp_path):
    _, run, _ = counted
    need("onnxruntime")
    with pytest.warns(UserWarning, match="the network of expected counts is not exported"):
        export_run(run, "onnx", tmp_path / "package")
