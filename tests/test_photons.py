"""Frames that grow photon by photon: the pretrained model draws counts that depend on its number alone, and measured frames grow on from their own photons."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import xrddiff as xd
from xrddiff.app.verbs.main import main
from xrddiff.config.plan import compose_plan, saved_plan
from xrddiff.config.saved_config import run_place
from xrddiff.data.formats.store import read_store, save_frames
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.exports.graphs import open_exportable
from xrddiff.judge.inference.generators import open_generator
from xrddiff.judge.inference.sample_jobs import open_sample_job
from xrddiff.judge.metrics.coverage import coverage
from xrddiff.learn.diffusion.photons import exposure_of, grow, level_of_octaves
from xrddiff.physics.indexing.indexer import cell_of_frames
from xrddiff.physics.indexing.series import index_series
from xrddiff.physics.simulation.simulate import simulate

RUN = run_place("pretrained:sim128")


@pytest.fixture(scope="module")
def drawn():
    return open_sample_job(RUN, ["inference.num_samples=8", "inference.batch_size=4"]).make(slice(None))[0]


def test_samples_are_whole_photons_and_depend_on_their_number_alone(drawn):
    counts = drawn["intensity"].values
    assert counts.shape == (8, 128, 128) and (counts == np.rint(counts)).all() and counts.min() == 0
    assert not counts[:, ~drawn["mask"].values].any()
    last = open_sample_job(RUN, ["inference.num_samples=8", "inference.batch_size=4"]).make(slice(4, 8))[0]
    np.testing.assert_array_equal(last["intensity"].values, counts[4:])
    other = open_sample_job(RUN, ["inference.num_samples=4", "inference.batch_size=2"]).make(slice(None))[0]
    assert (other["intensity"].values != counts[:4]).mean() < 1e-3  # to rounding: a photon here and there
    again = open_sample_job(RUN, ["inference.num_samples=4", "inference.batch_size=4", "inference.seed=1"]).make(
        slice(None)
    )[0]
    assert (again["intensity"].values != counts[:4]).mean() > 0.2


def test_most_hits_index_with_the_crystal_that_was_asked_for(drawn):
    hits = np.flatnonzero(drawn["hit_class"].values == 1)
    series = index_series(select_frames(drawn, hits), cell_of_frames(drawn), distance_range=0.0)
    assert (series.table["lattices"] > 0).sum() >= 0.8 * len(hits)


def test_the_crystal_of_a_file_is_drawn(tmp_path):
    words = ["inference.num_samples=2", "inference.lattice={cell: [40, 47, 55, 90, 90, 90]}", "inference.batch_size=2"]
    made = open_sample_job(RUN, words).make(slice(None))[0]
    np.testing.assert_allclose(made["cell"].values[:, 0], [[40, 47, 55, 90, 90, 90]] * 2)


def test_a_model_of_the_package_is_copied_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "pretrained:sim128", "-n", "2", "inference.batch_size=2"]) == 0
    run = xd.pretrained("sim128")
    assert run.path.resolve() == (tmp_path / "output" / "pretrained" / "sim128").resolve()
    assert read_store(next((run.path / "samples").glob("*/samples.zarr"))).sizes["frame"] == 2
    assert not (RUN / "samples").exists()
    with pytest.raises(xd.BadInput, match="no pretrained model 'sim12'.*sim128"):
        xd.pretrained("sim12")
    told = next(run.path.glob("checkpoints/*/manifest.json"))
    told.write_text(told.read_text().replace("a", "b"))  # as that of another version of the package
    with pytest.raises(xd.BadInput, match="copy of an earlier pretrained:sim128; move it away"):
        xd.pretrained("sim128")


def test_training_begins_with_its_weights_or_says_why_not():
    plan = compose_plan(["experiment_type=demo"])
    assert plan.training.init == "pretrained:sim128" and plan.presets["model"] == "photons"
    with pytest.raises(xd.BadInput, match="expected the same|run of the same kind"):
        compose_plan(["model=latent_diff", "data=sim128", "init=pretrained:sim128"])


def test_a_measured_frame_grows_on_and_its_longer_exposure_is_within_the_intervals(tmp_path, monkeypatch):
    """Frames are thinned to a quarter of their photons; draws of four times this exposure are compared with the frames."""
    monkeypatch.chdir(tmp_path)
    frames = simulate("sim128", range(7000, 7004), seed=0).load()
    whole = frames["intensity"].values
    rng = np.random.default_rng(0)
    short = frames.assign(
        intensity=(frames["intensity"].dims, rng.binomial(whole, 0.25).astype(np.int32), frames["intensity"].attrs)
    )
    save_frames(short, "short.h5")
    words = ["--from", "short.h5", "--exposure", "4", "-n", "39", "--name", "longer"]
    assert main(["sample", "pretrained:sim128", *words]) == 0
    from xrddiff.judge.inference.posterior import open_posterior

    job = open_posterior("output/pretrained/sim128", frames="short.h5", draws=39, options={"exposure": 4.0})
    draws = np.stack([d.measured for d in job.make().found], 1)
    found = coverage(draws, np.where(frames["mask"].values, whole, np.nan))
    assert abs(found.found - found.promised) < 0.04
    assert (draws >= short["intensity"].values[None]).all()  # no photon is lost


def test_the_sampler_keeps_the_photons_that_it_begins_with():
    X = torch.poisson(torch.full((2, 1, 8, 8), 5.0), generator=torch.Generator().manual_seed(0)).double()
    levels = level_of_octaves(torch.tensor([2.0, 1.0, 0.0]))
    noise = lambda: torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()  # noqa: E731
    grown = grow(lambda x, sigma, cond=None: torch.full_like(x, 20.0), X / exposure_of(levels[0]), levels, noise=noise)
    assert (grown >= X).all() and (grown == grown.round()).all() and abs(float(grown.mean()) - 20) < 2


@pytest.fixture
def few(tmp_path, monkeypatch):
    """A file of three frames, in the folder in which the test runs, and a mask with a dead panel."""
    monkeypatch.chdir(tmp_path)
    frames = simulate("sim128", range(7000, 7003), seed=0).load()
    save_frames(frames, "few.h5")
    valid = np.ones((128, 128), bool)
    valid[24:60, 60:110] = False
    np.save("valid.npy", valid)
    return frames, ~valid & frames["mask"].values


def test_counts_scatter_as_those_of_the_detector(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = simulate("sim128", range(40)).load()
    counts = np.random.default_rng(0).binomial(2 * frames["intensity"].values.astype(int), 0.5)  # variance 1.5 λ
    save_frames(frames.assign(intensity=frames["intensity"].copy(data=counts.astype(np.float32))), "frames.zarr")
    words = ["run", "model=photons", "size=tiny", "data.data_path=frames.zarr", "model.condition_maps=[q]"]
    words += ["model.diff_epochs=1", "model.diff_batch_size=8", "inference.num_samples=2", "run_name=own"]
    assert main([*words, "training.max_steps=1", "inference.index_frames=0"]) == 0
    run = next(tmp_path.glob("output/*/own"))
    found = open_generator(run).model.scatter
    assert abs(found - 1.5) < 0.05
    assert open_sample_job(run, []).sampler.options["scatter"] == found
    assert open_sample_job(run, ["inference.sampler_options={scatter: 1}"]).sampler.options["scatter"] == 1
    assert open_generator(RUN).model.scatter == 1  # simulated counts are Poisson's


def test_frames_of_any_size_grow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_frames(simulate("sim128", range(40)).load().isel(y=slice(0, 100), x=slice(0, 109)), "frames.zarr")
    words = ["run", "model=photons", "size=tiny", "data.data_path=frames.zarr", "run_name=own", "training.max_steps=2"]
    words += ["model.condition_maps=[lattice,q,scattering]", "model.diff_epochs=1", "model.diff_batch_size=8"]
    assert main([*words, "inference.num_samples=2", "inference.index_frames=0"]) == 0  # padded to 104 × 112
    made = read_store(next(tmp_path.glob("output/*/own")) / "samples/samples.zarr")["intensity"].values
    assert made.shape == (2, 100, 109) and np.isfinite(made).all()


def test_holes_are_filled_with_photons_that_fit_the_others(few):
    frames, hole = few
    words = ["--mask", "valid.npy", "--mask-true", "good", "--draws", "2", "--frames", "few.h5"]
    assert main(["posterior", "inpaint", "pretrained:sim128", *words]) == 0
    filled = read_store("output/pretrained/sim128/samples/inpaint/samples.zarr")["intensity"].values.reshape(
        3, 2, 128, 128
    )
    measured = frames["intensity"].values[:, None]
    kept = frames["mask"].values & ~hole
    np.testing.assert_array_equal(filled[..., kept], np.broadcast_to(measured, filled.shape)[..., kept])
    assert (filled == np.rint(filled)).all() and (filled[:, 0][:, hole] != filled[:, 1][:, hole]).mean() > 0.2
    inside, true = filled[..., hole].mean((1, 2)), measured[..., hole].mean((1, 2))
    np.testing.assert_allclose(inside, true, rtol=0.25)  # each frame has a background and a crystal of its own
    rates = np.log1p(np.stack([measured[..., hole][:, 0], filled[..., hole][:, 0]]))
    assert np.corrcoef(rates.reshape(2, -1))[0, 1] > 0.4  # spots are where the crystal has them


def test_a_frame_is_retraced_and_grows_again(few):
    assert main(["posterior", "interpolate", "pretrained:sim128", "few.h5:0", "few.h5:1", "-n", "3"]) == 0
    way = read_store("output/pretrained/sim128/samples/interpolate/samples.zarr")
    whole, ends = few[0]["intensity"].values[:2], way["intensity"].values[[0, 2]]
    valid = way["mask"].values
    np.testing.assert_array_equal(ends[:, valid], whole[:, valid])
    assert max(way.attrs["round_trip"]) == 0


def test_a_method_for_gaussian_noise_is_refused_in_a_sentence(few, capsys):
    for words in (
        ["posterior", "inpaint", "pretrained:sim128", "--frames", "few.h5", "--method", "repaint"],
        ["posterior", "pixels", "pretrained:sim128", "--frames", "few.h5", "--method", "counts"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("xrddiff: ") and ("photon by photon" in said or "growth" in said)


def test_frames_without_a_crystal_can_grow_too():
    """Maps and conditions that are not known: a network that was trained with some of them withheld."""
    g = open_generator(RUN)
    x = torch.zeros(1, 1, 128, 128)
    rate = g.model(x, level_of_octaves(17.0), {"mask": torch.ones(1, 1, 128, 128, dtype=torch.bool)})
    assert rate.isfinite().all() and 0.05 < float(rate.mean()) < 50


def test_predicted_noise_is_clamped_unless_the_user_says_otherwise():
    for words in (["model=ddpm_published"], ["experiment_type=small_28"], ["experiment_type=xl_128"]):
        assert compose_plan([*words, "data=sim128"]).sampling.clamp
    assert not compose_plan(["model=ddpm_published", "data=sim128", "inference.clamp=false"]).sampling.clamp
    assert not compose_plan(["model=ddpm", "data=sim128"]).sampling.clamp


def test_a_model_of_the_package_is_taken_wherever_a_run_is_read(capsys):
    assert saved_plan("pretrained:sim128").model.denoiser.network.name == "photon_net"
    assert open_exportable("pretrained:sim128").graphs[0].name == "denoiser"
    assert main(["config", "show", "pretrained:sim128"]) == 0 and "octaves" in capsys.readouterr().out
    assert main(["evaluate", "pretrained:sim12"]) == 2 and "did you mean 'sim128'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--exposure", "3"], ["--from", "x.h5", "--judge"], ["--from", "x.h5", "--workers", "local:2"]]
)
def test_words_that_would_change_nothing_are_refused(words, capsys):
    assert main(["sample", "pretrained:sim128", *words]) == 2
    assert re.search(r"--(exposure|judge|workers) is for", capsys.readouterr().err)
