"""Posteriors of crystals: on detectors of several panels, on ranks, as a command, stopped and continued, and refused.

This file is run as a script, in a process that has imported PyTorch (tests/warm.py), which forks the ranks.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import warm
from test_run import xrddiff
from test_training import on_ranks

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.geometry import PanelGeometry, lab_to_panel
from xrddiff.judge.posteriors.crystal_densities import Density, SpotDensity
from xrddiff.judge.posteriors.crystal_sampling import draw_particles, find_maximum
from xrddiff.judge.posteriors.crystal_stills import CrystalPlan, StillSettings, open_still
from xrddiff.judge.posteriors.crystals import CrystalPrior, ExpectedCounts, Still, choose_reflections
from xrddiff.judge.posteriors.likelihoods import Poisson
from xrddiff.judge.views.crystal_posteriors import posterior_report
from xrddiff.physics.indexing.cells import Cell
from xrddiff.physics.simulation.crystal import Crystal, Wilson, random_rotation, reflections
from xrddiff.physics.simulation.experiments import find_experiment
from xrddiff.physics.simulation.simulate import draw_shots, expected_counts, simulate

ORTHORHOMBIC = (36.0, 44.0, 52.0, 90.0, 90.0, 90.0)


class Bent(Density):
    """A density with a maximum that is not a Gaussian's."""

    names = ["x", "y", "z"]

    def log_likelihood(self, theta):
        x, y, z = theta.unbind(-1)
        return -8 * (y - 0.4 * x**2) ** 2 - 3 * (z - 1) ** 2 - 0.1 * x**4

    def values(self, theta):
        return pd.DataFrame(np.asarray(theta), columns=self.names)


def script_particles(folder):
    """Seven particles on 1 and 2 ranks, for each sampler."""
    from xrddiff.core.ranks.agreement import Ranks
    from xrddiff.core.ranks.rendezvous import initialize_distributed

    def work(rank):
        info = initialize_distributed(backend="gloo", timeout=60)
        ranks = Ranks(SimpleNamespace(process_index=info.process_id, num_processes=info.num_processes))
        for sampler, steps in (("hmc", 4), ("svgd", 6)):
            where = folder / f"{sampler}-{ranks.size}"
            drawn = draw_particles(
                Bent(), particles=7, sampler=sampler, steps=steps, ranks=ranks, folder=where, chunk=4 // ranks.size
            )
            np.save(folder / f"{sampler}-{ranks.size}-{rank}.npy", drawn.theta.numpy())

    for n in (1, 2):
        on_ranks(n, work)
    out = {}
    for sampler in ("hmc", "svgd"):
        one, *two = (np.load(folder / f"{sampler}-{n}-{r}.npy") for n, r in ((1, 0), (2, 0), (2, 1)))
        out[sampler] = [one.shape, float(np.abs(two[0] - one).max()), bool((two[0] == two[1]).all())]
    return out


def test_any_number_of_ranks_draws_the_same_particles(tmp_path):
    done = warm.run(__file__, "particles", tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    for shape, apart, alike in json.loads(done.stdout.splitlines()[-1]).values():
        assert shape == [7, 3] and apart < 1e-6 and alike


def script_indexed(folder):
    """A still on two ranks, of which only the first can index."""
    from xrddiff.core.ranks.agreement import Ranks
    from xrddiff.core.ranks.rendezvous import initialize_distributed
    from xrddiff.judge.posteriors.crystal_stills import StillSettings, open_still
    from xrddiff.physics.indexing.indexer import make_indexer

    base = find_experiment("sim128")
    frames = simulate(replace(base, sample=replace(base.sample, hits=(0.0, 1.0))), [4])
    found = make_indexer(frames, ORTHORHOMBIC, lattices=1, controls=40)

    def refuses(*words):
        raise AssertionError("this rank indexed the still")

    def work(rank):
        info = initialize_distributed(backend="gloo", timeout=60)
        ranks = Ranks(SimpleNamespace(process_index=info.process_id, num_processes=info.num_processes))
        settings = StillSettings(CrystalPrior(edges=0.003), indexer=found if ranks.rank == 0 else refuses)
        one = open_still(frames, settings=settings, ranks=ranks)
        kinds = [str(v.dtype) for v in (one.lattice.hkl, one.lattice.indexed, *(one.peaks[n] for n in one.peaks))]
        values = [one.refined.U, one.refined.covariance, one.lattice.spots["fs"], one.peaks["fs"], one.fit.theta]
        (folder / f"{ranks.rank}.json").write_text(
            json.dumps([kinds, str(one.refined.cell), *(np.asarray(v).tolist() for v in values)])
        )

    on_ranks(2, work)
    alone = open_still(frames, settings=StillSettings(CrystalPrior(edges=0.003), indexer=found))
    first, second = (json.loads((folder / f"{r}.json").read_text()) for r in (0, 1))
    return [first == second, first[2] == alone.refined.U.tolist(), first[-1] == alone.fit.theta.tolist()]


@pytest.mark.slow
def test_rank_0_indexes_for_all(tmp_path):
    done = warm.run(__file__, "indexed", tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [True, True, True]


def tilted(wavelength=1.3):
    """Four panels, turned and tilted, around the beam."""
    rng = np.random.default_rng(3)
    shape, size = (4, 60, 60), 3e-4
    origin, fs, ss = [], [], []
    for x, y in ((-0.019, -0.019), (0.001, -0.019), (-0.019, 0.001), (0.001, 0.001)):
        turn = np.eye(3) + 0.02 * rng.normal(size=(3, 3))
        fs.append(size * turn[0])
        ss.append(size * turn[1])
        origin.append([x, y, 0.06 + 0.001 * rng.normal()])
    return PanelGeometry(origin, fs, ss, shape, wavelength, 0.9)


def a_still(seed=0, **prior):
    panels, rng = tilted(), np.random.default_rng(seed)
    crystal = Crystal.example("triclinic", Wilson(seed=1))
    every = reflections(crystal, 2.2)
    U, cell = random_rotation(rng, 1)[0], Cell(crystal.cell)
    widths = dict(radius=8e-4, mosaicity=1e-3, bandwidth=1e-3)
    rows, panel = choose_reflections(every.hkl, U, cell, panels, **widths)
    known = (every.hkl[rows], panel, every.f2[rows])
    return Still(panels, cell, U, *known, *widths.values(), 2e-3, prior=CrystalPrior(**prior))


def test_spots_hit_tilted_panels_where_rays_do():
    """Against NumPy's intersection of rays and panels, for a cell without symmetry and a detector that has moved."""
    still = a_still()
    theta = still.theta(rotation_x=0.1, a=34.1, alpha=75.2, distance=1e3 * still.geometry.distance + 0.4, center_y=0.7)
    values = still.values(theta[None]).iloc[0]
    p = still.predict(theta[None])
    A = np.array([values[n] for n in ("a", "b", "c", "alpha", "beta", "gamma")])
    U = still.turned(theta[None])[0].numpy()
    ray = still.hkl @ (U @ Cell(tuple(A)).B).T + [0, 0, 1 / 1.3]
    moved = still.geometry.moved([0, -0.7 * still.geometry.pixel_size, 4e-4])
    panel, fs, ss = lab_to_panel(ray, moved)
    same = panel == still.panel
    assert same.mean() > 0.9
    assert np.allclose(p.fs[0][same], fs[same], atol=1e-9) and np.allclose(p.ss[0][same], ss[same], atol=1e-9)
    assert np.allclose(p.excitation[0], np.linalg.norm(ray, axis=1) - 1 / 1.3, atol=1e-14)


def test_counts_of_another_experiment_are_those_of_the_simulator():
    """512 × 512 pixels, a trigonal crystal, another bandwidth and spot: where two crystals overlap, they add up."""
    experiment = find_experiment("sim-522")
    experiment = replace(experiment, sample=replace(experiment.sample, hits=(0.0, 1.0)))
    mu, drawn, spots = expected_counts(experiment, [1])
    without, _, _ = expected_counts(replace(experiment, faint=1e12), [1])
    still = replace(
        a_still(),
        geometry=PanelGeometry.from_flat(replace(experiment.geometry, wavelength=float(drawn.wavelength[0]))),
        cell=Cell((*np.array(experiment.sample.crystal.cell[:3]) * drawn.cell_scale[0, 0], 90, 90, 120)),
        U=drawn.orientation[0, 0], hkl=spots.hkl, panel=np.zeros(len(spots.hkl), int),
        radius=experiment.sample.profile_radius, mosaicity=experiment.sample.mosaicity,
        bandwidth=experiment.beam.bandwidth, scale=1.0, intensity=np.ones(len(spots.hkl)),
    )  # fmt: skip
    unit = still.predict(torch.zeros(1, len(still.names), dtype=torch.float64))
    assert np.allclose(unit.partiality[0], spots.partiality, rtol=1e-9)
    still = replace(still, intensity=spots.photons / unit.photons[0].numpy())
    mask = mu[0] > 0
    model = ExpectedCounts(still, mask, experiment.spot_sigma, without[0])
    ours = model(torch.zeros(1, model.size, dtype=torch.float64))[0].numpy()
    assert np.abs(ours - mu[0].ravel()[model.pixels]).max() < 1e-5 * mu.max()
    assert mu[0].ravel()[model.pixels].sum() - without[0].ravel()[model.pixels].sum() > 0.999 * (mu - without).sum()


def test_gradients_on_panels_are_differences():
    still = a_still(radius=0.3)
    rng = np.random.default_rng(0)
    p = still.predict(torch.zeros(1, len(still.names), dtype=torch.float64))
    J = rng.exponential(size=len(still.hkl)) * p.photons[0].numpy()
    bright = np.flatnonzero(J > np.quantile(J, 0.7))
    places = [v[0].numpy()[bright] + 0.3 * rng.normal(size=len(bright)) for v in (p.fs, p.ss)]
    density = SpotDensity(still, J, np.full(len(J), 0.1 * J.mean()), bright, *places, 0.1)
    assert density.names[-3:] == ["jitter", "displaced", "warped"]
    theta = 0.03 * torch.tensor(rng.normal(size=(1, density.size)))
    _, exact = density.with_score(theta)
    step = 1e-6 * torch.eye(density.size, dtype=torch.float64)
    differences = (density.log_prob(theta + step) - density.log_prob(theta - step)) / 2e-6
    assert torch.allclose(exact[0], differences, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


def test_a_linear_model_has_its_posterior_in_closed_form():
    """Scale alone is free, one bright spot on nothing: Poisson counts with a log-normal prior, by quadrature."""
    still = a_still(
        orientation=1e-9, edges=0, angles=0, distance=0, center=0, mosaicity=0, radius=0, b_factor=0, scale=0.5
    )
    mask = np.ones(still.geometry.shape, bool)
    model = ExpectedCounts(still, mask, 1.0, np.full(mask.shape, 1e-3))
    photons = float(model(torch.zeros(1, model.size, dtype=torch.float64)).sum())
    counts = torch.poisson(
        1.2 * model(torch.zeros(1, model.size, dtype=torch.float64)), torch.Generator().manual_seed(0)
    )
    picture = np.zeros(mask.size)
    picture[model.pixels] = counts[0]
    from xrddiff.judge.posteriors.crystal_densities import PixelDensity

    density = PixelDensity(model, picture, Poisson(floor=1e-6))
    drawn = draw_particles(density, particles=300, steps=4, chunk=100)
    found = density.values(drawn.theta)["scale"] - np.log(2e-3)
    x = np.linspace(-1, 1, 20001)
    background = 1e-3 * len(model.pixels)
    spots, n = photons - background, float(counts.sum())
    # background is 10⁻³ of a photon: all counts are of spots, whose shares do not depend on the scale
    log_p = n * x - np.exp(x) * spots - 0.5 * (x / 0.5) ** 2
    weight = np.exp(log_p - log_p.max())
    mean = (weight * x).sum() / weight.sum()
    sd = np.sqrt((weight * (x - mean) ** 2).sum() / weight.sum())
    assert abs(found.mean() - mean) < 4 * sd / np.sqrt(300) + 0.02 * sd and abs(found.std() / sd - 1) < 0.2
    assert abs(float(drawn.fit.covariance[-1, -1]) * 0.25 / sd**2 - 1) < 0.05


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    """A file of two frames: one crystal, and none."""
    base = find_experiment("sim128")
    sample = replace(base.sample, hits=(0.5, 0.5))
    experiment = replace(base, sample=sample, background=replace(base.background, ice_probability=0.0))
    crystals = draw_shots(experiment, range(40)).crystals
    frames = simulate(experiment, [int(np.flatnonzero(crystals == 1)[1]), int(np.flatnonzero(crystals == 0)[0])])
    return save_frames(frames, tmp_path_factory.mktemp("stills") / "stills.h5")


PRIORS = ("--prior", "edges=0.003", "--prior", "distance=0.001", "--distance-range", "0.01")


@pytest.mark.slow
def test_the_command_stopped_and_continued(stills, tmp_path):
    words = ("posterior", "crystal", str(stills), *PRIORS, "--particles", "6", "--steps", "3", "-o")
    whole = xrddiff(*words, "whole", folder=tmp_path)
    assert "distance" in whole.stdout and "report: " in whole.stdout
    folder = tmp_path / "whole"
    table = pd.read_csv(folder / "particles.csv")
    assert len(table) == 6 and table["distance"].between(48, 52).all() and np.isfinite(table.to_numpy()).all()
    rows = json.loads((folder / "metrics" / "summary.json").read_text())
    assert abs(rows["distance"]["mean"] - 50) < 4 * rows["distance"]["sd"] + 0.3 and "its sd" in rows["a"]
    assert "least squares" in (folder / "report.html").read_text()
    spots = pd.read_csv(folder / "metrics" / "spots.csv")
    assert {"h", "k", "l", "x", "x sd", "partiality", "intensity"} <= {*spots}

    again = xrddiff(*words, "whole", folder=tmp_path, check=False)  # never overwritten
    assert again.returncode == 2 and "has a finished posterior" in again.stderr
    other = xrddiff(*words, "whole", "--seed", "1", folder=tmp_path, check=False)
    assert other.returncode == 2 and "was started with seed 0" in other.stderr

    # as if it had been stopped after the second step: what comes after is the same, bit for bit
    for name in ("report.html", "particles.csv"):
        (folder / name).rename(folder / f"former-{name}")
    newest = max((folder / "state").glob("step-*"))
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    xrddiff(*words, "whole", folder=tmp_path)
    assert (folder / "particles.csv").read_bytes() == (folder / "former-particles.csv").read_bytes()
    assert (folder / "notebook.1.ipynb").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--particles", "0"), "particles is 0; expected a whole number, at least 1"),
        (("--frame", "2"), "there is no frame 2; expected a number from 0 to 1"),
        (("--frame", "1"), "frame 1 does not index on"),
        (("--cell", "30,30,30,20,20,90"), "no parallelepiped has these edges and angles"),
        (("--sampler", "nuts"), "there is no particle sampler 'nuts'"),
        (("--prior", "edge=0.1"), "'edge' is not a setting of the posterior"),
        (("--prior", "edges=wide"), "expected name=number"),
        (("--intensities", "none.mtz"), "none.mtz does not exist"),
    ],
)
def test_what_is_refused_in_a_sentence(stills, tmp_path, words, said):
    done = xrddiff("posterior", "crystal", str(stills), *words, "-o", "p", folder=tmp_path, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "p").exists()


@pytest.mark.slow
def test_pixels_are_compared_with_what_the_simulator_expects(monkeypatch):
    """Of shots whose spots leave no pixel to the background, have reflections that are faint where the search begins,
    and are where screw axes forbid them: all three made the likelihood another one than the simulator's.
    """
    from scipy.spatial.transform import Rotation

    from xrddiff.judge.posteriors import crystal_stills
    from xrddiff.judge.posteriors.crystal_stills import StillSettings, open_still
    from xrddiff.physics.indexing.expected_intensities import CrystalIntensities
    from xrddiff.physics.indexing.refinement import refine_lattice

    base = find_experiment("sim128")
    crystal, detector = base.sample.crystal, replace(base.detector, distance=0.0505, beam_center=(65.0, 62.8))
    one_crystal, no_ice = replace(base.sample, hits=(0.0, 1.0)), replace(base.background, ice_probability=0.0)
    frames = simulate(replace(base, sample=one_crystal, detector=detector, background=no_ice), [3, 8], expected=True)
    frames.attrs |= {"distance": 0.05, "beam_center": base.detector.beam_center}
    every = reflections(crystal, 1.9)
    known = CrystalIntensities(Cell(crystal.cell), crystal.space_group, every.hkl, every.f2)
    assert (known.lookup(3.0)(torch.tensor([[1, 0, 0], [0, -3, 0], [0, 0, 9], [2, 0, 0]])) > 0).tolist() == [
        False
    ] * 3 + [True]
    prior = CrystalPrior(edges=0.003, distance=1e-3, center=1.0, radius=0.0)
    settings = StillSettings(prior, radius=9e-4, mosaicity=1.2e-3, bandwidth=1.5e-3)
    for frame in (0, 1):
        one = open_still(frames, frame, intensities=known, settings=settings)
        expected = frames["expected"].values[frame].reshape(-1)[one.density.model.pixels].astype(float)
        model = one.density.model(one.fit.theta[None])[0].numpy()
        apart = (expected * np.log(expected / model) - expected + model).sum()
        assert apart < 30, (frame, apart)  # half of chi² of 23 parameters: 11.5 ± 3.4
    turn = Rotation.from_rotvec([0.2, -0.1, 0.3]).as_matrix()

    def by_chance(*words):
        refined = refine_lattice(*words)
        return refined._replace(U=turn @ refined.U)

    monkeypatch.setattr(crystal_stills, "refine_lattice", by_chance)
    with pytest.raises(BadInput, match="perhaps by chance"):
        open_still(frames, 1, intensities=known, settings=settings)


def test_frames_without_a_geometry_or_a_cell_are_refused():
    from xrddiff.judge.posteriors.crystal_stills import open_still

    frames = simulate("sim128", [0])
    for missing, said in (("distance", "no distance"), ("unit_cell", "do not give the cell")):
        bare = frames.copy()
        bare.attrs = {k: v for k, v in frames.attrs.items() if k != missing}
        with pytest.raises(BadInput, match=said):
            open_still(bare)
    bare = frames.drop_vars("wavelength")
    bare.attrs = {k: v for k, v in frames.attrs.items() if k != "wavelength"}
    with pytest.raises(BadInput, match="no wavelength"):
        open_still(bare)


def test_a_start_that_is_impossible_is_told():
    class Nothing(Bent):
        def log_likelihood(self, theta):
            return super().log_likelihood(theta) - torch.inf

    with pytest.raises(BadInput, match="log p is not finite"):
        find_maximum(Nothing())


@pytest.mark.parametrize(("crystals", "number", "others"), [(1, 2, 0), (2, 2, 10)])
def test_a_second_crystal_is_mentioned(crystals, number, others):
    base = find_experiment("sim128")
    hits = tuple(float(n == crystals) for n in range(crystals + 1))
    frames = simulate(replace(base, sample=replace(base.sample, hits=hits)), [number])
    one = open_still(frames, intensities="unknown", settings=StillSettings(controls=40))
    assert (one.peaks["other"].sum() >= others) and (others or not one.peaks["other"].any())
    assert not (one.peaks["other"] & one.lattice.indexed).any()
    drawn = draw_particles(one.density, particles=3, sampler="laplace", fit=one.fit)
    said = str(posterior_report(one, drawn, CrystalPlan("sim128"), "a still").sections)
    assert ("on a second lattice" in said) == (crystals == 2)


if __name__ == "__main__":
    script, where = sys.argv[1:]
    torch.set_num_threads(1)
    import torch._dynamo  # before the forks

    print(json.dumps(globals()[f"script_{script}"](Path(where))))
