"""Maps of lattices as conditions: what a model is asked for, from training to the table of spots."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from xrddiff.config.composition import compose_config
from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.geometry import Geometry, q_map
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.inference.crystals import asked_lattices, lattice_table, measured_maps
from xrddiff.judge.inference.generators import open_generator
from xrddiff.learn.diffusion.keyed_sampling import Sampler
from xrddiff.learn.loading.condition_maps import ConditionMaps
from xrddiff.learn.models.generative import DrawSettings
from xrddiff.physics.indexing.cells import Cell
from xrddiff.physics.indexing.expected_intensities import CrystalIntensities, intensities_of, save_intensities
from xrddiff.physics.indexing.known_lattices import known_lattices
from xrddiff.physics.indexing.lattice_maps import LatticeMap
from xrddiff.physics.simulation.simulate import simulate


@pytest.fixture(scope="module")
def frames():
    return simulate("sim128", range(30), seed=9)


def test_maps_are_those_of_a_plain_loop(frames):
    """Every reflection of the full sphere, one at a time, in float64."""
    geometry = Geometry.from_frames(frames)
    draw = LatticeMap(geometry, sigma=1.2, radius=2e-3, growth=1e-3)
    i = int(np.flatnonzero(frames["crystals"].values == 2)[0])
    cells, turns = frames["cell"].values[i], frames["orientation"].values[i]
    k, scale = 1 / geometry.wavelength, geometry.distance / geometry.pixel_size
    y, x = np.mgrid[:128, :128] + 0.5
    expected = np.zeros((128, 128))
    for cell, U in zip(cells, turns, strict=True):
        B = np.diag(1 / cell[:3])  # orthorhombic
        most = np.ceil(cell[:3] / draw.d_min).astype(int)
        for hkl in np.ndindex(*(2 * most + 1)):
            g = U @ B @ (np.array(hkl) - most)
            length = np.linalg.norm(g)
            if not 0 < length <= 1 / draw.d_min:
                continue
            out = g + [0, 0, k]
            u = (np.linalg.norm(out) - k) / (2e-3 + 1e-3 * length)
            if abs(u) > 2.5 or out[2] <= 0:
                continue
            fs, ss = (geometry.beam_center[n] + scale * out[n] / out[2] for n in (0, 1))
            near = (abs(np.floor(x) - np.floor(fs)) <= 5) & (abs(np.floor(y) - np.floor(ss)) <= 5)
            spot = np.exp(-0.5 * u**2) * np.exp(-((x - fs) ** 2 + (y - ss) ** 2) / (2 * 1.2**2))
            expected = np.maximum(expected, np.where(near, spot, 0))
    np.testing.assert_allclose(draw(cells, turns), expected, atol=2e-4)


@pytest.mark.slow
def test_samples_carry_what_they_were_asked_for(runs, tmp_path):
    """The run keeps the crystals of its training frames; a sample is a function of its number, also in what it is asked for."""
    from test_run import xrddiff

    run = runs("latent_diff")
    generator = open_generator(run)
    assert generator.maps == {"lattice": {"wider": 2}, "intensity": {}, "q": {}}
    assert generator.model.net.config["maps"] == {"lattice": 16, "intensity": 16, "q": 16}
    assert "Requested lattice over generated frame" in (run / "report.md").read_text()
    settings = DrawSettings(seed=1)
    maps = generator.scenes.condition_maps(range(4), settings)
    assert torch.equal(generator.scenes.condition_maps([2], settings)["lattice"][0], maps["lattice"][2])
    flat = torch.nn.functional.pixel_shuffle(maps["q"], generator.space.downsampling)[0, 0]
    height, width = generator.template["intensity"].shape[1:]
    np.testing.assert_allclose(flat[:height, :width], q_map(Geometry.from_frames(generator.template)) / 2, rtol=1e-5)
    unknown = {name: torch.full_like(m, torch.nan) for name, m in maps.items()}
    z = torch.randn(4, *generator.shape, generator=torch.Generator().manual_seed(0))
    told, free = (generator.model(z, 1.0, cond) for cond in (maps, unknown))
    assert not torch.allclose(told, free) and torch.equal(free, generator.model(z, 1.0, None))

    bright = maps["intensity"].amax((1, 2, 3)) > 0
    assert torch.equal(bright, maps["lattice"].amax((1, 2, 3)) > 0) and intensities_of(generator.template).width[0] > 0

    np.save(tmp_path / "turns.npy", known_orientations(6))
    wanted = f"inference.lattice={{cell: '60,60,40,90,90,90', orientations: {tmp_path / 'turns.npy'}}}"
    words = [wanted, "inference.num_samples=5", "inference.first_sample=1", "inference.steps=2"]
    xrddiff("sample", str(run), *words, "--name=asked", "--judge", folder=tmp_path)
    asked = run / "samples" / "asked"
    made = open_frames(asked / "samples.zarr")
    np.testing.assert_allclose(made["orientation"].values[:, 0], known_orientations(6)[1:], atol=1e-12)
    assert (made["cell"].values[:, 0] == [60, 60, 40, 90, 90, 90]).all()
    assert intensities_of(made).fits([60, 60, 40, 90, 90, 90])  # nobody knows its structure: one is drawn
    spots = pd.read_csv(asked / "asked_spots.csv")
    assert {"frame", "h", "k", "l", "fs", "ss", "found"} <= {*spots} and set(spots["frame"]) == set(range(5))
    theirs = known_lattices(made).of(0)[0].spots
    assert len(theirs) == (spots["frame"] == 0).sum()

    other = CrystalIntensities(Cell((60, 60, 40, 90, 90, 90)), "P 1", np.array([[3, 1, 2], [5, 0, 1]]), np.ones(2))
    wanted = {"reflections": str(save_intensities(other, tmp_path / "other.mtz"))}
    made, _ = generator.sample([0], DrawSettings(Sampler("ddim", 1), lattice=wanted))
    assert made["cell"].values[0, 0].tolist() == [60, 60, 40, 90, 90, 90]
    assert intensities_of(made).hkl.tolist() == other.hkl.tolist()
    assert generator.scenes.condition_maps([0], DrawSettings(lattice=wanted))["intensity"].isfinite().all()
    with pytest.raises(BadInput, match="expected the same"):
        asked_lattices(generator.lattices, {"cell": [30, 30, 30, 90, 90, 90], **wanted}, generator.template)


def known_orientations(n: int) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.random(n, random_state=4).as_matrix()


@pytest.mark.slow
def test_what_cannot_be_asked_for(runs, tmp_path):
    from test_run import xrddiff

    run = runs("latent_diff")
    (tmp_path / "notes.txt").write_text("h k l")
    np.save(tmp_path / "few.npy", known_orientations(2))
    np.save(tmp_path / "mirror.npy", known_orientations(8) * [1, 1, -1])
    for words, sentence in {
        "{cell: '60,60,40,90,90,190'}": "no parallelepiped has these edges and angles",
        "{cell: nowhere.pdb}": "nowhere.pdb does not exist",
        f"{{orientations: {tmp_path / 'few.npy'}}}": "has 2 orientations, but sample 7 needs one",
        f"{{orientations: {tmp_path / 'mirror.npy'}}}": "is a reflection",
        "{cel: '60,60,40,90,90,90'}": "did you mean 'cell'",
        "{reflections: notes.txt}": "notes.txt is not a crystal",
    }.items():
        done = xrddiff("sample", str(run), "-n", "8", f"inference.lattice={words}", folder=tmp_path, check=False)
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
    done = xrddiff(
        "sample", str(runs("ddpm")), "inference.lattice={cell: '60,60,40,90,90,90'}", folder=tmp_path, check=False
    )
    assert done.returncode == 2 and "lattice" in done.stderr


def test_maps_need_crystals_and_a_geometry(frames):
    from xrddiff.learn.loading.condition_maps import ConditionMaps

    plain = frames.drop_vars(["cell", "orientation"])
    for ds, name, sentence in (
        (plain, "lattice", "no cell and no orientation"),
        (
            frames.assign_attrs({k: v for k, v in frames.attrs.items() if k != "distance"}).drop_attrs(deep=False),
            "q",
            "no",
        ),
        (frames, "lattise", "did you mean 'lattice'"),
    ):
        with pytest.raises(BadInput, match=sentence):
            ConditionMaps(ds, [name])


def test_a_measured_frame_tells_its_lattice(frames):
    """Its crystals are those that it says it has, or those that indexing finds; without either they are unknown."""
    cells = lattice_table(frames, np.arange(30))
    model = SimpleNamespace(
        maps={"lattice": {}, "q": {}}, lattices=cells, template=frames, shape=(1, 128, 128), space=None, device="cpu"
    )
    count = frames["crystals"].values
    some = select_frames(frames, [*np.flatnonzero(count == 0)[:2], *np.flatnonzero(count == 1)[:10]])
    told, maps = measured_maps(some, model)
    assert told is some and not maps["lattice"].isnan().any()
    blank = some["crystals"].values == 0
    assert blank.any() and not maps["lattice"][blank].any()
    found, own = measured_maps(some.drop_vars(["cell", "orientation"]), model)
    known = np.isfinite(found["cell"].values).all(-1).any(-1)
    assert known.sum() >= 0.7 * (~blank).sum() and not known[blank].any()
    assert own["lattice"][~known].isnan().all()
    assert torch.allclose(own["q"], maps["q"], atol=2e-3)  # the detector was refined with them
    for i in np.flatnonzero(known):
        a, b = (m["lattice"][i].numpy().ravel() for m in (maps, own))
        assert np.corrcoef(a, b)[0, 1] > 0.8
    bare = some.drop_vars(["cell", "orientation"])
    del bare.attrs["distance"]
    assert measured_maps(bare, model)[1] == {}


def test_options_of_maps(frames):
    """They reach the map, and what is wrong with them is said."""
    narrow, wide = (ConditionMaps(frames, {"lattice": {"wider": w}})(range(8))["lattice"] for w in (1.0, 4.0))
    assert (wide >= narrow - 1e-6).all() and wide.sum() > 2 * narrow.sum()
    maps = ["model=ddpm", "model.condition_maps=[lattice]"]
    for words, sentence in (
        (["model.condition_map_options={q: {}}"], "q is not in model.condition_maps"),
        (["model.condition_map_options={lattice: 2}"], "expected its options, as in"),
        (["model.condition_map_options={lattice: {wider: 0}}"], "wider: found 0.*more than 0"),
        (["model.condition_map_options={lattice: {width: 1}}"], "no option 'width'"),
    ):
        with pytest.raises(BadInput, match=sentence):
            compose_config([*maps, *words])


def test_a_network_that_takes_no_maps_is_named():
    from xrddiff.core.registry import forget, register
    from xrddiff.judge.inference.model_from_plan import build_network
    from xrddiff.learn.models.unet import UNet

    @register("network", "plain_test", help="takes no maps")
    class Plain(torch.nn.Module):
        def __init__(self, in_channels, out_channels, *, mask_channel, conditions):
            super().__init__()

    try:
        words = ["model=ddpm", "network=plain_test"]
        assert isinstance(build_network(compose_plan(words).model.denoiser, 1, None, {}), Plain)
        with pytest.raises(BadInput, match="the network plain_test has no parameter maps"):
            build_network(compose_plan([*words, "model.condition_maps=[q]"]).model.denoiser, 1, None, {})
    finally:
        forget(__name__)
    told = build_network(compose_plan(["model=ddpm", "model.condition_maps=[q]"]).model.denoiser, 1, None, {})
    assert isinstance(told, UNet) and told.config["maps"] == {"q": 1}
