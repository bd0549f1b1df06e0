"""Exported models: packages beside the runs they are from, in Python and in C++, whole and damaged."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import clean_environment, missing, need
from test_run import xrddiff

import xrddiff as xd
from xrddiff.app.verbs.main import build_parser
from xrddiff.core.errors import BadInput
from xrddiff.core.files import sha256
from xrddiff.core.safe_write import MARK
from xrddiff.judge.exports.exporters import export_run
from xrddiff.judge.exports.package import MANIFEST, SUMS, read_package
from xrddiff.learn.models.autoregressive import AutoregressiveDiffusion
from xrddiff.learn.models.unet import UNet
from xrddiff.learn.training.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow
CPP = Path(__file__).parent.parent / "examples" / "cpp"


@pytest.fixture(scope="module")
def latent_run(runs, tmp_path_factory):
    """A diffusion model of the latent, told maps, hits and light, with a small U-Net, of a detector that moved."""

    def make(drawn: dict, told: dict) -> UNet:
        return small_unet(drawn, told | {"conditions": {"hit_class": 3, "photons": [50.0, 20.0]}})

    about = {
        "places": {"distance": [0.1, 0.2, 0.3, 0.4]},
        "conditions": {"hit_class": [0, 1, 2, 1], "photons": [30.0, 40.0, None, 60.0]},
        "classes": {"hit_class": ["blank", "single", "multiple"]},
    }
    return with_model(runs("latent_diff"), tmp_path_factory.mktemp("unet"), make, **about)


@pytest.fixture(scope="module")
def package(latent_run, tmp_path_factory):
    """The latent model as compiled libraries: three graphs, with maps."""
    if shutil.which("g++") is None:
        missing("no C++ compiler: g++ is not installed (Debian: g++)")
    folder = tmp_path_factory.mktemp("export")
    printed = xrddiff("export", str(latent_run), "--format", "pt2", folder=folder, timeout=1800)
    assert "denoiser.pt2" in printed.stdout and "exported: " in printed.stdout
    return latent_run / "exported" / "pt2"


@pytest.fixture(scope="module")
def onnx_package(runs):
    """The model of frames as an ONNX graph, with classes and numbers."""
    need("onnxruntime")
    return export_run(runs("ddpm"), "onnx", words=["inference.steps=4"])


def with_model(run: Path, folder: Path, make: Callable[[dict, dict], torch.nn.Module], **about: object) -> Path:
    """A copy of a run with another network, not trained: `make(generator, model)` from what its checkpoint says.

    Small networks compile faster, and what is tested is not how well they draw.
    """
    copy = shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("exported"))
    known = load_checkpoint(copy)
    torch.manual_seed(0)
    model = make(known.state["generator"], known.state["model"])
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    weights = dict(model.named_parameters())
    state = known.state | {"model": model.config, "generator": known.state["generator"] | about}
    save_checkpoint(copy / "checkpoints", known.step + 1, {"model": weights, "ema": weights}, state)
    return copy


def small_unet(drawn: dict, told: dict) -> UNet:
    """The U-Net of a run with fewer channels and blocks."""
    return UNet(**told | dict(widths=[8, 16], attention=None, layers_per_block=1, norm_groups=4, mid_attention=False))


def by_token(run: Path, folder: Path, order: str) -> Path:
    """A copy of a run that draws its frames, or its latents, with a small autoregressive model."""

    def make(drawn: dict, told: dict) -> AutoregressiveDiffusion:
        return AutoregressiveDiffusion(
            drawn["shape"][0],
            drawn["shape"][1:],
            drawn["shape"][1] // 4,
            width=16,
            depth=1,
            heads=2,
            mlp_depth=1,
            order=order,
            mask_channel=drawn["autoencoder"] is None,
            conditions=told["conditions"],
            maps=told["maps"],
        )

    return with_model(run, folder, make, kind="autoregressive", denoiser=None)


@pytest.fixture(scope="module")
def tokens_run(runs, tmp_path_factory):
    """A model of tokens of the latent, group by group, told maps."""
    return by_token(runs("latent_diff"), tmp_path_factory.mktemp("latent"), "random")


@pytest.fixture(scope="module")
def tokens_package(tokens_run):
    """It as ONNX graphs."""
    need("onnxruntime")
    return export_run(tokens_run, "onnx", words=["inference.steps=3"])


def same(found, wanted, bound=1e-4):
    """Frames with the same numbers, to `bound` of the largest."""
    a, b = found["intensity"].values, wanted["intensity"].values
    assert a.shape == b.shape and np.abs(a - b).max() <= bound * max(1, np.abs(b).max())


def test_a_compiled_model_draws_and_reconstructs_as_its_run(package, latent_run):
    run, model = xd.open_run(latent_run), xd.load_exported(package)
    words = dict(seed=3, batch_size=2, steps=4)
    ours, theirs = model.sample(3, **words), run.sample(3, progress=False, **words)
    same(ours, theirs)
    assert ours.attrs == theirs.attrs and set(ours.variables) == set(theirs.variables)
    held_out = run.frames("held_out", 3)
    same(model.reconstruct(held_out), run.reconstruct(held_out))
    z = model.encode(held_out)
    assert np.abs(model.decode(z) - model.reconstruct(held_out)["intensity"].values).max() < 1e-3
    assert "encoder, decoder, denoiser as pt2" in repr(model)


def test_frames_before_pooling_are_pooled(package, latent_run):
    run, model = xd.open_run(latent_run), xd.load_exported(package)
    whole = xd.load("sim-422", limit=2)
    assert whole["intensity"].shape[1:] != tuple(model.about["frame"]["shape"])
    same(model.reconstruct(whole), run.reconstruct(whole))


def test_the_manifest_says_what_a_program_needs(package, latent_run):
    about, steps = read_package(package), xd.open_run(latent_run).config.inference.steps
    assert about["sampling"]["sigmas"][-1] == 0 and len(about["sampling"]["sigmas"]) == steps + 1
    assert about["graphs"]["denoiser"]["inputs"]["x"] == {
        "dtype": "float64",
        "shape": ["batch", *about["latent"]["shape"]],
    }
    assert about["graphs"]["denoiser"]["order"][:2] == ["x", "sigma"]
    assert len(about["latent"]["statistics"]["mean"]) == about["latent"]["shape"][0]
    done = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_model_of_frames_as_onnx_draws_as_its_run(onnx_package, runs):
    run, model = xd.open_run(runs("ddpm")), xd.load_exported(onnx_package)
    same(model.sample(3), run.sample(3, progress=False, steps=4))  # the words of the export are its defaults
    words = dict(steps=2, hit_class="single", guidance_scale=2.0, first_sample=5)
    same(model.sample(2, **words), run.sample(2, progress=False, **words))
    with pytest.raises(BadInput, match="has no autoencoder"):
        model.reconstruct(run.frames("held_out", 1))
    with pytest.raises(BadInput, match="hit_klass"):
        model.sample(1, hit_klass="single")


def test_frames_that_grow_are_drawn_by_onnx_as_by_their_run(runs):
    need("onnxruntime")
    run = runs("photons")
    model = xd.load_exported(export_run(run, "onnx", words=["inference.steps=3"]))
    same(model.sample(2), xd.open_run(run).sample(2, progress=False, steps=3))


def test_an_autoencoder_with_codes_as_onnx_reconstructs_as_its_run(runs):
    need("onnxruntime")
    run = xd.open_run(runs("vq"))
    model, held_out = xd.load_exported(run.export("onnx")), run.frames("held_out", 3)
    same(model.reconstruct(held_out), run.reconstruct(held_out))
    codes = model.encode(held_out, codes=True)
    assert codes.shape == (3, *model.about["latent"]["shape"][1:]) and codes.dtype == torch.int64
    with pytest.raises(BadInput, match="holds no denoiser"):
        model.sample(1)


def test_tokens_of_a_latent_as_onnx_are_drawn_as_by_the_run(tokens_package, tokens_run):
    run, model = xd.open_run(tokens_run), xd.load_exported(tokens_package)
    assert "encoder, decoder, transformer, head as onnx" in repr(model)
    same(model.sample(3, seed=3, batch_size=2), run.sample(3, progress=False, steps=3, seed=3, batch_size=2))
    words = dict(steps=2, guidance_scale=2.0, first_sample=5, sampler="heun", sampler_options={"S_churn": 5.0})
    ours, theirs = model.sample(2, **words), run.sample(2, progress=False, **words)
    same(ours, theirs)
    assert ours.attrs == theirs.attrs and set(ours.variables) == set(theirs.variables)
    held_out = run.frames("held_out", 2)
    same(model.reconstruct(held_out), run.reconstruct(held_out))
    about = read_package(tokens_package)
    tokens, drawn = about["generator"]["tokens"], about["graphs"]["transformer"]["inputs"]["tokens"]["shape"]
    assert drawn == ["batch", 16, tokens["dim"]] and tokens["grid"] == [4, 4] and tokens["order"] == "random"
    assert sum(about["sampling"]["groups"]) == 16 and about["sampling"]["sigmas"][-1] == 0


def test_tokens_of_frames_as_libraries_are_drawn_as_by_the_run(tokens_library, runs):
    path, source = tokens_library
    run, model = xd.open_run(source), xd.load_exported(path)
    words = dict(seed=3, batch_size=2, steps=3)
    same(model.sample(3, **words), run.sample(3, progress=False, **words))
    with pytest.raises(BadInput, match="has no autoencoder"):
        model.reconstruct(run.frames("held_out", 1))


@pytest.fixture(scope="module")
def tokens_library(runs, tmp_path_factory):
    """A model of tokens of frames, one after another, as compiled libraries: the package, and its run."""
    if shutil.which("g++") is None:
        missing("no C++ compiler: g++ is not installed (Debian: g++)")
    run = by_token(runs("diff"), tmp_path_factory.mktemp("frames"), "raster")
    return export_run(run, "pt2"), run


def test_damaged_graphs_of_tokens_are_refused(tokens_package, tmp_path):
    for name in ("transformer", "head"):
        copy = shutil.copytree(tokens_package, tmp_path / name)
        flip(copy / f"{name}.onnx")
        with pytest.raises(BadInput, match=f"{name}.onnx is not the exported file"):
            xd.load_exported(copy)
    copy = shutil.copytree(tokens_package, tmp_path / "version")
    other_version(copy)
    with pytest.raises(BadInput, match="version 2; expected"):
        xd.load_exported(copy)
    graphs = xd.load_exported(tokens_package).generator.model.graphs
    dim = graphs["head"].about["inputs"]["x"]["shape"][1]
    with pytest.raises(BadInput, match="head got x of shape"):
        graphs["head"](
            torch.zeros(2, dim + 1, dtype=torch.float64), torch.ones((), dtype=torch.float64), torch.zeros(2, 16)
        )
    with pytest.raises(BadInput, match="transformer got tokens of shape"):
        given = [
            torch.zeros(2, *k["shape"][1:]).to(getattr(torch, k["dtype"]))
            for k in graphs["transformer"].about["inputs"].values()
        ]
        graphs["transformer"](given[0][:, 1:], *given[1:])


def test_what_cannot_be_exported_is_said(runs, tmp_path):
    done = xrddiff("export", str(runs("diff")), "--format", "diffusers", folder=tmp_path, check=False)
    assert done.returncode == 2 and "draws frames token by token" in done.stderr and "Traceback" not in done.stderr
    assert not (runs("diff") / "exported" / "diffusers").exists()
    done = xrddiff("export", str(runs("ddpm")), "--format", "onyx", folder=tmp_path, check=False)
    assert done.returncode == 2 and "did you mean 'onnx'?" in done.stderr
    half = shutil.copytree(
        runs("vq"), tmp_path / "half", ignore=shutil.ignore_patterns("report.html", "samples", "exported")
    )
    with pytest.raises(BadInput, match="expected the whole folder"):
        export_run(half, "onnx")
    found = load_checkpoint(half)
    state = dict(found.state) | {"finished": False}
    save_checkpoint(half / "checkpoints", found.step + 1, {"model": found.weights()}, state)
    with pytest.raises(BadInput, match="is not finished"):
        export_run(half, "onnx")
    with pytest.raises(BadInput, match="exists already"):
        export_run(runs("vq"), "onnx", runs("vq"))


def test_diffusers_load_the_networks_of_a_run(runs, tmp_path):
    """That they give the same numbers is compared when they are written, and refused otherwise."""
    diffusers = need("diffusers")
    path = export_run(runs("vae_kl"), "diffusers", tmp_path / "vae")  # the run itself is everybody's
    vae = diffusers.AutoencoderKL.from_pretrained(path / "vae", use_safetensors=True)
    about = read_package(path)
    p = about["diffusers"]["vae"]["patch"]
    assert vae.config.in_channels == 2 * p**2 and not list(path.rglob("*.bin"))
    with pytest.raises(BadInput, match="which other programs open"):
        xd.load_exported(path)
    with pytest.raises(BadInput, match="hit_class, wavelength, and UNet2DModel on one class"):
        export_run(runs("ddpm"), "diffusers")
    assert not (runs("ddpm") / "exported" / "diffusers").exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def resum(package: Path) -> None:
    """The table of hashes of what is there now, as somebody would write it who changes a package on purpose."""
    names = sorted(p.name for p in package.iterdir() if p.name not in (SUMS, MARK))
    (package / SUMS).write_text("".join(f"{sha256(package / name)}  {name}\n" for name in names))


def other_version(package: Path) -> None:
    about = json.loads((package / MANIFEST).read_text())
    (package / MANIFEST).write_text(json.dumps(about | {"version": 2}))
    resum(package)


DAMAGE = {
    "denoiser.pt2 is not the exported file": lambda p: flip(p / "denoiser.pt2"),
    "template.h5 is not the exported file": lambda p: flip(p / "template.h5"),
    "decoder.pt2 is missing": lambda p: (p / "decoder.pt2").unlink(),
    "encoder.pt2 is not the exported file": lambda p: os.truncate(p / "encoder.pt2", 1000),
    "has no hash": lambda p: (p / "extra.pt2").write_bytes(b"0"),
    "version 2; expected": other_version,
}


@pytest.fixture(params=DAMAGE)
def damaged(package, tmp_path, request):
    """A package that is damaged, and what is said of it."""
    copy = shutil.copytree(package, tmp_path / "package")
    DAMAGE[request.param](copy)
    return copy, request.param


def test_a_damaged_package_is_refused(damaged):
    with pytest.raises(BadInput, match=damaged[1]):
        xd.load_exported(damaged[0])


def test_another_processor_is_refused(package, tmp_path):
    copy = shutil.copytree(package, tmp_path / "package")
    about = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(about | {"processor": "AVX1024"}))
    resum(copy)
    with pytest.raises(BadInput, match="compiled for processors with AVX1024"):
        xd.load_exported(copy)


# ------------------------------------------------------------------------------------- C++


@pytest.fixture(scope="module")
def infer(tmp_path_factory):
    """The program of examples/cpp, built: `infer(*words)` -> the finished process."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed (Debian: {tool})")
    if not Path("/usr/include/nlohmann/json.hpp").exists() or not list(Path("/usr/include").glob("hdf5/*/hdf5.h")):
        missing("the headers of HDF5 and JSON are not installed (Debian: libhdf5-dev nlohmann-json3-dev)")
    build = tmp_path_factory.mktemp("cpp")
    configure = [
        "cmake",
        "-S",
        CPP,
        "-B",
        build,
        f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
        "-DCMAKE_BUILD_TYPE=Release",  # as quick to build, and it hashes faster
    ]
    for command in (configure, ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def call(*words: object, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [build / "xrddiff-infer", *map(str, words)], capture_output=True, text=True, env=environment()
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    call.program = build / "xrddiff-infer"
    return call


def environment() -> dict[str, str]:
    import hdf5plugin  # its filters are found by any program

    return clean_environment() | {"HDF5_PLUGIN_PATH": hdf5plugin.PLUGIN_PATH}


def test_frames_are_written_where_the_filters_have_a_path(tmp_path):
    """HDF5 then finds copies of the filters by itself, which cannot write."""
    words = ["data", "simulate", "sim128", "-n", "1", "-o", tmp_path / "x.h5"]
    done = subprocess.run(
        [sys.executable, "-m", "xrddiff", *words], capture_output=True, text=True, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert xd.open_frames(tmp_path / "x.h5").sizes["frame"] == 1


def test_keys_are_those_of_python(infer):
    from xrddiff.core.seeds import numpy_rng, seed_from, torch_generator

    for i, line in enumerate(infer("keys", 11).stdout.splitlines()):
        said, rng = json.loads(line), numpy_rng(11, "condition", i)
        assert said["seed"] == seed_from(11, "sample", i)
        assert said["integers"] == [int(rng.integers(n)) for n in (10, 50, 1, 3_000_000_000, 7)]
        noise = torch.empty(20).normal_(generator=torch_generator(11, "sample", i))
        assert np.array_equal(np.array(said["normal"], np.float32), noise.numpy())


def test_cpp_reconstructs_as_python(infer, package, latent_run, tmp_path):
    from xrddiff.data.formats.store import save_frames

    held_out = xd.open_run(latent_run).frames("held_out", 5)
    save_frames(held_out, tmp_path / "in.h5")
    infer("reconstruct", package, tmp_path / "in.h5", tmp_path / "out.h5", "--batch", 2)
    found, model = xd.open_frames(tmp_path / "out.h5"), xd.load_exported(package)
    same(found, model.reconstruct(held_out))
    assert found.attrs["distance"] == held_out.attrs["distance"] and np.array_equal(found["mask"], held_out["mask"])
    infer("encode", package, tmp_path / "in.h5", tmp_path / "z.h5")
    with h5py.File(tmp_path / "z.h5") as file:
        assert np.abs(file["latent"][()] - model.encode(held_out).numpy()).max() < 1e-4


def test_cpp_draws_as_python(infer, package, latent_run, tmp_path):
    from xrddiff.judge.exports.exporters import export_maps

    words = ["inference.seed=5", "inference.batch_size=2"]
    maps = export_maps(latent_run, tmp_path / "maps.h5", 4, words)
    infer("sample", package, tmp_path / "out.h5", "-n", 3, "--seed", 5, "--batch", 2, "--maps", maps)
    found = xd.open_frames(tmp_path / "out.h5")
    wanted = xd.load_exported(package).sample(3, *words)
    same(found, wanted)
    assert found["sample"].values.tolist() == [0, 1, 2] and found["intensity"].attrs["units"] == "ADU"
    for name in ("distance", "hit_class", "photons"):
        assert np.array_equal(found[name], wanted[name], equal_nan=True), name
    with h5py.File(maps, "a") as file:  # of other training frames than those of the seed
        file["training_row"][:] = [2, 0, 1, 3]
    infer("sample", package, tmp_path / "other.h5", "-n", 3, "--seed", 5, "--batch", 2, "--maps", maps)
    assert xd.open_frames(tmp_path / "other.h5")["distance"].values.tolist() == [0.3, 0.1, 0.2]
    with h5py.File(maps, "a") as file:
        del file["training_row"]
    infer(
        "sample",
        package,
        tmp_path / "drawn.h5",
        "-n",
        3,
        "--seed",
        5,
        "--maps",
        maps,
        "--condition",
        "hit_class=single",
    )
    found, given = xd.open_frames(tmp_path / "drawn.h5"), xd.load_exported(package).generator.scenes.given
    rows = given.rows(range(3), 5, {"hit_class": "single"})
    assert set(rows) <= {1, 3} and found["distance"].values.tolist() == [[0.1, 0.2, 0.3, 0.4][row] for row in rows]
    assert found["hit_class"].values.tolist() == [1, 1, 1] and np.array_equal(
        found["photons"], given.columns["photons"][rows]
    )
    for wrong, sentence in ((maps, "exists"), (tmp_path / "none.h5", "expected at least 1")):
        with pytest.raises(BadInput, match=sentence):
            export_maps(latent_run, wrong, 0 if "least" in sentence else 4, words)


def test_cpp_readme_as_written(infer, package, latent_run, tmp_path):
    """Every command of the README but the building, which `infer` did, and the exporting, which `package` did."""
    from xrddiff.judge.exports.exporters import export_maps

    text = (CPP / "README.md").read_text(encoding="utf-8")
    lines = [line[2:] for line in re.search(r"```console\n(.*?)```", text, re.S)[1].splitlines()]
    export, *rest = lines
    said = build_parser().parse_args(shlex.split(export)[1:])
    assert (said.format, said.output, said.maps, said.n) == ("pt2", "package", "maps.h5", 64)
    export_maps(latent_run, tmp_path / "maps.h5", said.n)
    (tmp_path / "package").symlink_to(package)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "xrddiff-infer").symlink_to(infer.program)
    xd.convert(xd.open_run(latent_run).frames("held_out", limit=2).load(), tmp_path / "run_17.h5")
    (tmp_path / "arriving").mkdir()
    shutil.copy(tmp_path / "run_17.h5", tmp_path / "arriving")
    script = "\n".join(line for line in rest if not line.startswith("cmake")).replace("/data/", "")
    script = script.replace("--watch arriving", "--watch arriving --idle 2").replace(
        "$(python ", f"$({shlex.quote(sys.executable)} "
    )
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert xd.open_frames(tmp_path / "samples.h5").sizes["frame"] == 64
    for name in ("out.h5", "reconstructed/run_17.h5"):
        assert xd.open_frames(tmp_path / name).sizes["frame"] == 2
    assert sum(line.startswith("build/") for line in rest) == 5 and (tmp_path / "latents.h5").exists()


def test_cpp_refuses_what_is_damaged(infer, damaged):
    done = infer("check", damaged[0], check=False)
    assert (
        done.returncode == 2 and damaged[1].split(";")[0] in done.stderr and done.stderr.startswith("xrddiff-infer: ")
    )


def test_cpp_refuses_other_input(infer, package, onnx_package, tokens_library, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["intensity"] = np.zeros((2, 8, 8), np.float32)
    with h5py.File(tmp_path / "no_maps.h5", "w") as file:
        file["pixels"] = np.zeros((2, 8, 8), np.float32)
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n and no more")
    out = tmp_path / "out.h5"
    for words, says in {
        ("reconstruct", package, tmp_path / "other.h5", out): "have 8 x 8 pixels; expected 64 x 64",
        ("reconstruct", package, tmp_path / "broken.h5", out): "is no HDF5 file, or not a whole one",
        ("reconstruct", package, tmp_path / "none.h5", out): "there is no file",
        ("sample", package, out, "-n", 1): "expected --maps",
        ("sample", package, out, "-n", "x"): "expected a whole number",
        ("sample", package, out, "--condition", "hit_class=single", "--maps", tmp_path / "no_maps.h5"): "holds no map",
        ("check", onnx_package): "expected pt2",
        ("sample", tokens_library[0], out): "draws frames token by token",
        ("reconstrict", package): "there is no command reconstrict",
    }.items():
        done = infer(*words, check=False)
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not out.exists() and not list(tmp_path.glob(".*.part"))


def test_cpp_takes_files_as_they_arrive(infer, package, latent_run, tmp_path):
    from xrddiff.data.formats.store import save_frames

    arriving, made = tmp_path / "in", tmp_path / "out"
    arriving.mkdir()
    frames = xd.open_run(latent_run).frames("held_out", 2)
    words = ["reconstruct", package, "--watch", arriving, "--out", made]
    child = subprocess.Popen(
        [infer.program, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert child.stdout.readline().startswith("watching ")
        save_frames(frames, arriving / "a.h5")
        (arriving / "bad.h5").write_bytes(b"nothing")
        assert child.stdout.readline().startswith(str(made / "a.h5"))
        save_frames(frames, arriving / "b.h5")
        assert child.stdout.readline().startswith(str(made / "b.h5"))
        while not any(made.glob("b.h5")):
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate()
    assert child.returncode == 0 and "bad.h5 is no HDF5 file" in said
    same(xd.open_frames(made / "a.h5"), xd.load_exported(package).reconstruct(frames))
