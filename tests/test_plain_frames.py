"""Frames without geometry, from file to report: plain labelled images and Laue frames train, sample and are judged; what needs a wavelength or a beam centre says so."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from conftest import need
from scipy.ndimage import zoom

from xrddiff.app.verbs.main import main
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.labels import class_names
from xrddiff.judge.inference.generators import open_generator

pytestmark = pytest.mark.slow

SMALL = ["experiment_type=test", "size=tiny", "training.batch_size=16", "training.max_steps=2", "threads=1"]
SMALL += ["inference.num_samples=4", "inference.steps=2", "inference.limit=8", "training.ema_decay=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    digits = need("sklearn.datasets").load_digits()
    x = np.clip(np.rint(16 * zoom(digits.images[:60], (1, 4, 4), order=1)), 0, None).astype(np.float32)
    with h5py.File(folder / "digits.h5", "w") as f:
        f["/entry/data/data"], f["/entry/data/digit"] = x, digits.target[:60]
    np.save(folder / "plain.npy", x)
    rng = np.random.default_rng(0)
    laue = rng.poisson(20.0, (24, 32, 32))
    for frame in laue:
        for y, z in rng.integers(3, 29, (5, 2)):
            frame[y - 1 : y + 2, z - 1 : z + 2] += 400
    white = make_frames(laue.astype(np.int32), wavelength_range=(0.5, 2.5), beam_center=(16.0, 15.0))
    save_frames(white, folder / "laue.h5")
    return folder


@pytest.fixture(scope="module")
def runs(folder):
    """(model, file, words) -> the folder of a run of two steps."""
    made = {}

    def run(model: str, file: str, *words: str):
        if (model, file) not in made:
            place = [f"data.data_path={folder / file}", f"output_dir={folder}", f"run_name={file}"]
            assert main(["run", f"model={model}", *place, *SMALL, *words]) == 0
            made[model, file] = folder / f"{model}_test" / file
        return made[model, file]

    return run


def test_an_autoencoder_of_a_plain_array(runs):
    report = (runs("vae_kl", "plain.npy") / "report.md").read_text()
    assert "The profile distance needs the beam centre: data.beam_center=\\[x,y\\] gives it." in report
    assert (
        "need values that the frames do not contain: data.wavelength, data.distance, data.pixel_size, data.beam_center"
        in report
    )
    assert "masked MSE, counts" in report and "## Radial profiles" not in report and "## Latents" in report


def test_an_autoencoder_of_laue_frames(runs):
    report = (runs("vae_kl", "laue.h5") / "report.md").read_text()
    assert (
        "Radial profiles over q need values that the frames do not contain: data.distance, data.pixel_size." in report
    )
    assert "profile distance |" in report and "Poisson deviance |" in report  # in pixels around the beam


def test_diffusion_of_labelled_images_and_its_samples(runs, folder):
    """Two commands: a run on `digit`, and samples of one digit, by its name."""
    run = runs("ddpm", "digits.h5", "model.condition=[digit]")
    assert (run / "report.html").is_file()
    generator = open_generator(run)
    assert generator.classes == {"digit": list("0123456789")} and generator.fields == {"digit": 10}
    words = ["-n", "3", "--name", "threes", "--judge", "inference.steps=2", "inference.condition={digit: 3}"]
    assert main(["sample", str(run), *words]) == 0
    samples = open_frames(run / "samples" / "threes" / "samples.zarr", complete=False)
    assert samples["digit"].values.tolist() == [3, 3, 3] and class_names(samples, "digit") == tuple("0123456789")
    assert samples["intensity"].shape == (3, 32, 32) and "wavelength" not in samples.attrs
    assert (run / "samples" / "threes" / "report.html").is_file()
    with pytest.raises(BadInput, match="digit=12: there is no such class; expected 0, 1, 2"):
        generator.scenes.given.draw([0], 0, {"digit": 12})


def test_diffusion_in_a_latent_of_plain_images(runs):
    autoencoder = runs("vae_kl", "plain.npy")
    run = runs("latent_diff", "plain.npy", f"training.pretrained_vae_path={autoencoder}")
    assert (run / "report.html").is_file()
    assert open_frames(run / "samples" / "samples.zarr").sizes["frame"] == 4


def test_a_run_without_what_its_condition_needs_leaves_nothing(folder, capsys):
    words = [f"data.data_path={folder / 'digits.h5'}", f"output_dir={folder / 'none'}", "model=ddpm"]
    for condition, sentence in (("wavelength", "data.wavelength= (Å)"), ("digt", "did you mean 'digit'?")):
        assert main(["run", *words, *SMALL, f"model.condition=[{condition}]"]) == 2
        assert sentence in capsys.readouterr().err and not (folder / "none").exists()
