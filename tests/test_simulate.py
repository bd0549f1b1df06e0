"""The simulator against gemmi, pyFAI, closed forms and a plain loop; its frames against their keys."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from conftest import need

from xrddiff.core.errors import BadInput
from xrddiff.data.frames.frames import frame_peaks, validate_frames
from xrddiff.physics.simulation.crystal import CRYSTAL_SYSTEMS, Crystal, Wilson, reciprocal_matrix, reflections
from xrddiff.physics.simulation.experiments import EXPERIMENTS, Detector, detector_mask
from xrddiff.physics.simulation.simulate import detect, draw_shots, expected_counts, find_spots, simulate

ROOT = Path(__file__).parents[1]
SMALL = EXPERIMENTS["sim128"]


def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))  # where it has its harness
    spec = importlib.util.spec_from_file_location("bench_simulator", ROOT / "bench" / "simulator.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_version(experiment, **sample):
    """The experiment with a small protein, so that a loop over its reflections ends soon."""
    crystal = Crystal((23.0, 27.0, 31.0, 90.0, 101.0, 90.0), "P 1 21 1", Wilson(12.0, 0.4, 7))
    return replace(experiment, name="loop", sample=replace(experiment.sample, crystal=crystal, **sample))


@pytest.mark.parametrize("name", ["sim-522", "sim128"])
def test_expected_counts_are_those_of_a_plain_loop(name, monkeypatch):
    experiment = small_version(EXPERIMENTS[name], hits=(0.0, 0.5, 0.5))
    experiment = replace(experiment, background=replace(experiment.background, ice=1.0, ice_probability=0.5, dark=0.1))
    mu, drawn, _ = expected_counts(experiment, range(4), seed=3)
    reference = bench(monkeypatch).loop_expected(experiment, drawn)
    np.testing.assert_allclose(mu, reference, rtol=1e-5, atol=1e-12)
    assert set(drawn.crystals) == {1, 2} and (drawn.ice > 0).any()


@pytest.mark.parametrize("name", ["sim128", "sim-422", "sim-522"])
def test_a_shot_does_not_depend_on_its_batch(name):
    shots = [7, 0, 131, 8, 9, 10, 11, 12, 13, 14, 15]
    together = simulate(name, shots, seed=5, expected=True, threads=2)
    validate_frames(together, values=True)
    for position in (0, 2, 10):
        alone = simulate(name, [shots[position]], seed=5, expected=True, threads=1)
        for variable in ("intensity", "expected", "wavelength", "crystals", "orientation", "cell", "shot_group"):
            np.testing.assert_array_equal(alone[variable].values[0], together[variable].values[position])
        table, other = frame_peaks(alone, 0), frame_peaks(together, position)
        assert len(table) == len(other)
        for column in table.columns.difference(["frame"]):
            np.testing.assert_array_equal(table[column].to_numpy(), other[column].to_numpy())


def test_a_shot_is_the_same_in_another_process():
    code = "import hashlib; from xrddiff.physics.simulation.simulate import simulate; print(hashlib.sha256(simulate('sim128', [41], 2).intensity.values.tobytes()).hexdigest())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"OMP_NUM_THREADS": n, "PYTHONHASHSEED": n},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_seeds_and_shots_differ():
    a, b = simulate("sim128", [0, 1]), simulate("sim128", [0, 1], seed=1)
    images = [*a.intensity.values, *b.intensity.values]
    assert all((x != y).mean() > 0.3 for i, x in enumerate(images) for y in images[:i])


@pytest.mark.parametrize("system", CRYSTAL_SYSTEMS)
def test_every_crystal_system_diffracts_where_pyfai_says(system):
    detectors = need("pyFAI.detectors")
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    experiment = replace(
        SMALL,
        name=system,
        sample=replace(SMALL.sample, crystal=Crystal.example(system), hits=(0.0, 1.0), cell_spread=0.0),
    )
    drawn = draw_shots(experiment, range(3))
    spots = find_spots(experiment, drawn)
    # g-vectors and d are gemmi's
    cell = gemmi.UnitCell(*experiment.sample.crystal.cell)
    np.testing.assert_allclose(spots.d, [cell.calculate_d(h.tolist()) for h in spots.hkl], rtol=1e-9)
    # scattering angles of the spots that lie on the sphere are pyFAI's of their pixels
    d = experiment.detector
    near = np.abs(spots.excitation) < 1e-4
    ai = AzimuthalIntegrator(
        d.distance,
        d.beam_center[1] * d.pixel_size,
        d.beam_center[0] * d.pixel_size,
        detector=detectors.Detector(d.pixel_size, d.pixel_size, max_shape=d.shape),
    )
    angle = ai.tth(spots.ss[near] - 0.5, spots.fs[near] - 0.5)  # pyFAI counts from the first pixel's centre
    bragg = 2 * np.arcsin(drawn.wavelength[spots.frame[near]] / (2 * spots.d[near]))
    assert near.sum() >= 5
    np.testing.assert_allclose(angle, bragg, atol=1e-4)


def test_reciprocal_axes_and_directions_are_gemmis():
    for cell, _ in CRYSTAL_SYSTEMS.values():
        np.testing.assert_allclose(
            reciprocal_matrix(cell), np.array(gemmi.UnitCell(*cell).frac.mat.tolist()).T, atol=1e-15
        )


def test_full_intensities_follow_wilson():
    crystal = Crystal.example("triclinic", Wilson(b_factor=20.0, seed=3))
    r = reflections(crystal, 2.5)
    shell = np.digitize(r.g2, np.quantile(r.g2, np.linspace(0, 1, 21)[1:-1]))
    moments = [(r.f2[shell == i] ** 2).mean() / r.f2[shell == i].mean() ** 2 for i in range(20)]
    assert abs(np.mean(moments) - 2) < 0.1


def test_crystals_from_a_cif_diffract():
    sample = replace(SMALL.sample, crystal=Crystal.from_cif("quartz"), size=1.0, mosaicity=5e-3, hits=(0.0, 1.0))
    beam = replace(SMALL.beam, wavelength=0.6, fluence=1e12)
    experiment = replace(SMALL, name="quartz", beam=beam, sample=sample)
    spots = find_spots(experiment, draw_shots(experiment, range(200)))
    assert len(spots.d) > 20
    cell = gemmi.UnitCell(*experiment.sample.crystal.cell)
    group = gemmi.SpaceGroup(experiment.sample.crystal.space_group)
    assert not group.operations().systematic_absences(spots.hkl.astype(np.int32)).any()
    np.testing.assert_allclose(
        spots.d, [cell.calculate_d(h.tolist()) for h in spots.hkl], rtol=6e-3
    )  # cells vary by 0.1 %


def test_intensities_scale_as_darwin_says():
    drawn = draw_shots(SMALL, range(30))
    base = find_spots(SMALL, drawn)
    brighter = replace(SMALL, beam=replace(SMALL.beam, fluence=2 * SMALL.beam.fluence), faint=2 * SMALL.faint)
    np.testing.assert_allclose(find_spots(brighter, drawn).photons, 2 * base.photons, rtol=1e-12)
    half = replace(SMALL, detector=replace(SMALL.detector, efficiency=0.5), faint=SMALL.faint / 2)
    np.testing.assert_allclose(find_spots(half, drawn).photons, base.photons / 2, rtol=1e-12)


def test_photon_statistics():
    ds = simulate("sim128", range(64), expected=True)
    n, mu = (ds[v].values[:, ds.mask.values].astype(float) for v in ("intensity", "expected"))
    chi2 = (n - mu) ** 2 / mu
    assert abs(chi2.mean() - 1) < 0.01
    for low, high in ((0.5, 1.5), (1.5, 3), (3, 6), (6, 30), (30, 1e6)):
        at = (mu > low) & (mu < high)
        assert abs(chi2[at].mean() - 1) < 6 * np.sqrt(2.5 / at.sum())
    assert (ds.intensity.values[:, ~ds.mask.values] == 0).all() and (ds.expected.values[:, ~ds.mask.values] == 0).all()


def test_adu_statistics():
    ds = simulate("sim-422", range(4), expected=True)
    gain, read = ds.intensity.attrs["gain"], ds.attrs["read_noise"]
    x, mean = (ds[v].values[:, ds.mask.values].astype(float) for v in ("intensity", "expected"))
    variance = gain * (mean - ds.attrs["pedestal"]) + read**2 + 1 / 12
    assert ds.intensity.attrs["units"] == "ADU" and ds.intensity.dtype == np.int16
    assert abs(((x - mean) ** 2 / variance).mean() - 1) < 0.01 and abs((x - mean).mean()) < 0.1
    assert x.min() < 0


def test_detectors_mask_gaps_beamstop_and_bad_pixels():
    d = Detector(
        "masked", "counting", (100, 90), 1e-4, 0.1, (45.0, 50.0), module=(48, 43), gaps=4, beamstop=6.0, bad=0.01
    )
    mask = detector_mask(d)
    assert not mask[48:52].any() and not mask[:, 43:47].any() and not mask[50, 45] and not mask[99, 45]
    open_part = detector_mask(replace(d, beamstop=0.0))[:48, :43]
    assert 0.002 < 1 - open_part.mean() < 0.03
    assert (detector_mask(replace(d)) == mask).all()  # bad pixels belong to the detector
    assert detect(d, np.full((100, 90), 50, np.float32), 0).min() > 0  # the detector itself sees everything it is given


def test_dead_time_and_saturation():
    d = Detector("slow", "counting", (64, 64), 1e-4, 0.1, (32.0, 32.0), dead_time=0.05, saturation=12)
    flat = np.full((64, 64), 8.0, np.float32)
    n = detect(replace(d, saturation=10**6), flat, 1)
    assert abs(n.mean() - 8 * np.exp(-0.4)) < 0.2
    assert detect(d, flat, 1).max() == 12
    ds = simulate(
        replace(SMALL, name="slow", detector=replace(SMALL.detector, dead_time=0.01)), range(8), expected=True
    )
    fast = simulate(replace(SMALL, name="slow"), range(8), expected=True)
    np.testing.assert_allclose(ds.expected, fast.expected * np.exp(-0.01 * fast.expected), rtol=1e-5)


def test_truth_is_complete():
    ds = simulate("sim128", range(50))
    table = {c for c in map(str, ds.variables) if c.startswith("peak_")}
    columns = "frame panel fs ss intensity background sigma h k l excitation_error partiality d crystal".split()
    assert table == {f"peak_{c}" for c in columns}
    y, x = ds.peak_ss.values.astype(int), ds.peak_fs.values.astype(int)
    assert ds.mask.values[y, x].all() and (ds.peak_intensity.values >= SMALL.listed).all()
    assert ds.peak_partiality.values.min() > 0 and ds.peak_partiality.values.max() <= 1
    assert (ds.shot_group.values == 0).all() and ds.sizes["crystal"] == 2
    # a crystal's orientation and cell give its peaks back
    i = int(np.flatnonzero(ds.crystals.values == 2)[0])
    t = frame_peaks(ds, i)
    assert set(t.crystal) == {0, 1}
    for c in (0, 1):
        own = t[t.crystal == c]
        ray = (
            own[["h", "k", "l"]].to_numpy()
            @ (ds.orientation.values[i, c] @ reciprocal_matrix(tuple(ds.cell.values[i, c]))).T
        )
        ray[:, 2] += 1 / ds.wavelength.values[i]
        for j, column in enumerate(("fs", "ss")):
            predicted = (
                ds.attrs["beam_center"][j] + ds.attrs["distance"] / ds.attrs["pixel_size"] * ray[:, j] / ray[:, 2]
            )
            np.testing.assert_allclose(own[column], predicted, atol=1e-3)


def test_frames_without_crystals_and_without_truth():
    jet = replace(SMALL, name="jet", sample=replace(SMALL.sample, hits=(1.0,)))
    ds = simulate(jet, range(3))
    assert ds.sizes["peak"] == 0 and (ds.crystals.values == 0).all()
    assert "peak" not in simulate(SMALL, range(3), truth=False).dims


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: simulate("sim-52", [0]), "sim-522"),
        (lambda: simulate("sim128", [-1]), "negative"),
        (lambda: simulate("sim128", []), "at least one shot"),
        (lambda: replace(SMALL.beam, wavelength=-1.0), "wavelength"),
        (lambda: replace(SMALL.sample, hits=(0.2, 0.2)), "add up to 1"),
        (lambda: replace(SMALL.detector, kind="ccd"), "counting"),
        (lambda: replace(SMALL.detector, psf=0.0), "psf"),
        (lambda: Crystal((10, 10, 10, 90, 90), "P 1"), "six"),
        (lambda: Crystal((10, 20, 10, 90, 90, 90), "P 4"), "tetragonal"),
        (lambda: Crystal.from_cif("/nowhere/structure.cif"), "structure.cif"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(make, words):
    with pytest.raises(BadInput, match=words):
        make()


def test_a_broken_cif_is_refused(tmp_path):
    path = tmp_path / "broken.cif"
    path.write_text("this is not a CIF")
    with pytest.raises(BadInput, match="broken.cif"):
        Crystal.from_cif(path)
    path.write_text("data_empty\n_cell_length_a 5\n")
    with pytest.raises(BadInput, match="broken.cif"):
        Crystal.from_cif(path)
