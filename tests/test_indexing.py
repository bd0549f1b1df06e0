"""Indexing against the truth of simulated stills, a real still, and hostile tables of peaks."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import measured

from xrddiff.core.errors import BadInput
from xrddiff.data.formats.peak_files import read_stream
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.geometry import Geometry, geometry_of
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.judge.metrics.physics import turned_peaks
from xrddiff.learn.loading.catalog import load
from xrddiff.physics.indexing.cells import Cell, orientation_error
from xrddiff.physics.indexing.indexer import INDEXED, Indexer, index_frames, make_indexer
from xrddiff.physics.indexing.rays import miller_sphere, predict_spots, scattering_vectors
from xrddiff.physics.indexing.series import index_series
from xrddiff.physics.indexing.stream import write_stream
from xrddiff.physics.simulation.crystal import CRYSTAL_SYSTEMS, random_rotation
from xrddiff.physics.simulation.experiments import EXPERIMENTS
from xrddiff.physics.simulation.simulate import simulate

LYSOZYME = (79.1, 79.1, 37.9, 90, 90, 90)


@pytest.fixture(scope="module")
def cspad():
    return load("cspad-lysozyme")


@pytest.fixture(scope="module")
def peakfinder8(cspad):
    """The 243 peaks that peakfinder8 finds in the CSPAD still."""
    table = pd.read_csv(Path(__file__).parent / "peakfinder8_cspad.csv", comment="#")
    return table.assign(frame=0)


@pytest.fixture(scope="module")
def indexed_cspad(cspad, peakfinder8):
    return index_frames(cspad, LYSOZYME, peaks=peakfinder8, distance_range=0.03, controls=30)


def test_a_real_still_is_lysozyme_at_153_mm(indexed_cspad, peakfinder8):
    assert len(peakfinder8) == 243
    row, (lattice,) = indexed_cspad.table.loc[0], indexed_cspad.of(0)
    assert row["indexed"] >= 205 and lattice.p < 1e-12
    assert abs(row["distance_mm"] - 153) < 0.5
    assert abs(np.array(lattice.cell.parameters) / LYSOZYME - 1).max() < 0.01
    assert float(indexed_cspad.chance.expected(243)) < 60


def test_the_cell_of_a_real_still_is_found(cspad, peakfinder8):
    """At the header's distance, which is 2 % short, so is the cell. It is made exactly tetragonal, which the peaks at that distance are not: two fewer index."""
    found = index_frames(cspad, "unknown", peaks=peakfinder8, controls=10)
    assert found.table.loc[0, "indexed"] >= 203
    scale = cspad.attrs["distance"] / 0.153
    assert abs(np.array(found.cell.parameters[:3]) / (scale * np.array([79.1, 79.1, 37.9])) - 1).max() < 0.02
    a, b, _, *angles = found.cell.parameters
    assert found.cell.centring == "P" and a == pytest.approx(b) and angles == [90, 90, 90]  # tetragonal, as it is


@pytest.mark.slow
def test_few_peaks_are_a_lattice_with_their_pixels_or_with_none():
    """Stills of sim128 with a twelfth of their photons; turned peaks, and the pixels of another frame, prove nothing."""
    frames = simulate("sim128", range(60), seed=2)
    frames, indexer = frames.isel(frame=np.flatnonzero(frames["crystals"] == 1)), make_indexer(frames, controls=60)
    kept = np.random.default_rng(0).binomial(frames["intensity"].values, 1 / 12)
    thin = frames.assign(intensity=frames["intensity"].copy(data=kept))
    peaks = find_frame_peaks(thin)
    few = peaks.groupby("frame").filter(lambda own: 6 <= len(own) <= 9)
    words = dict(frames=sorted(set(few["frame"])), indexer=indexer)
    alone, asked = (index_frames(thin, peaks=few, pixels=pixels, **words) for pixels in (False, True))
    assert len(words["frames"]) >= 6 and alone.rate < 0.7 and asked.rate > 0.9
    for i in asked.table.index[asked.table["lattices"] > 0]:
        assert orientation_error(asked.of(i)[0].U, thin["orientation"].values[i, 0], indexer.cell) < 1
    assert index_frames(thin, peaks=turned_peaks(thin, few), **words).rate == 0
    elsewhere = thin.assign(intensity=thin["intensity"].copy(data=np.roll(thin["intensity"].values, 1, axis=0)))
    assert index_frames(elsewhere, peaks=few, **words).rate <= alone.rate


def test_crystals_of_a_frame_are_found_one_after_the_other():
    """Two crystals in each frame, one in each; peaks belong to one lattice at most."""
    still, found = EXPERIMENTS["sim128"], {}
    for crystals in (1, 2):
        hits = tuple(float(n == crystals) for n in range(3))
        frames = simulate(replace(still, sample=replace(still.sample, hits=hits)), range(16), seed=4)
        indexing = index_frames(frames, controls=40)
        found[crystals] = indexing.table["lattices"].to_numpy()
        for i, lattices in indexing.lattices.items():
            assert sum(x.indexed.astype(int) for x in lattices).max(initial=0) <= 1
            for x in lattices[: indexing.table.loc[i, "lattices"]]:
                assert orientation_error(x.U, frames["orientation"].values[i, :crystals], indexing.cell).min() < 1
    assert (found[1] == 1).mean() > 0.9 and found[1].max() == 1 and (found[2] == 2).mean() > 0.7


@pytest.mark.parametrize(("name", "shots", "within"), [("sim-522", 16, 0.1), ("sim128", 40, 0.5)])
def test_orientations_are_those_that_were_simulated(name, shots, within):
    frames = simulate(name, range(shots), seed=1)
    crystals = frames["crystals"].values
    found = index_frames(frames, frames.attrs["unit_cell"], controls=40)
    errors, doubles = [], []
    for i in np.flatnonzero(crystals):
        true = frames["orientation"].values[i, : crystals[i]]
        for lattice in found.of(i):
            if lattice.p < INDEXED:
                errors.append(float(orientation_error(lattice.U, true, lattice.cell).min()))
        if crystals[i] == 2:
            doubles.append(found.table.loc[i, "lattices"])
    assert np.median(errors) < within and np.quantile(errors, 0.95) < 2 * within
    assert not (found.table.loc[crystals == 0, "lattices"] > 0).any()
    rich = (crystals > 0) & (found.table["peaks"] >= 15)
    assert (found.table.loc[rich, "lattices"] > 0).mean() > 0.95
    assert not doubles or np.mean(np.array(doubles) == 2) >= 0.5


@pytest.mark.slow
def test_chance_is_what_it_says():
    """Frames whose spots were shuffled around the beam are not indexed, and their p is uniform or
    larger.
    """
    frames = simulate("sim128", range(60), seed=2)
    peaks = find_frame_peaks(frames)
    turned = turned_peaks(frames, peaks)
    found = index_frames(frames, frames.attrs["unit_cell"], peaks=turned, controls=120, lattices=1)
    p = found.table.loc[found.table["peaks"] >= 10, "p"]
    assert found.rate == 0 and (p < 0.05).mean() < 0.15 and p.median() > 0.2
    real = index_frames(frames, frames.attrs["unit_cell"], peaks=peaks, controls=40, lattices=1).table
    assert (real.loc[real["peaks"] >= 10, "lattices"] == 1).mean() > 0.95


@pytest.mark.parametrize("system", CRYSTAL_SYSTEMS)
def test_every_crystal_system(system):
    """Centred and unequal cells; a lattice's rotations do not count as errors."""
    parameters, group = CRYSTAL_SYSTEMS[system]
    cell = Cell(parameters, group[0])
    rng = np.random.default_rng(4)
    detector = Geometry(1.24, 0.1, 172e-6, (256, 256), (512, 512))
    U = random_rotation(rng, 1)[0]
    spots = predict_spots(miller_sphere(cell, 3.2), cell.A @ U.T, detector, 5e-4)
    spots = spots.sample(min(60, len(spots)), random_state=1)
    peaks = spots.assign(fs=spots["fs"] + rng.normal(0, 0.3, len(spots)), intensity=1.0).reset_index(drop=True)
    (lattice,) = Indexer(cell, 0.32, lattices=1)(peaks, detector)
    assert lattice.indexed.mean() > 0.95 and orientation_error(lattice.U, U, cell) < 0.2
    again = predict_spots(lattice.hkl[lattice.indexed], lattice.A, detector, 1.0)
    assert (
        np.hypot(
            again["fs"] - peaks["fs"][lattice.indexed].to_numpy(), again["ss"] - peaks["ss"][lattice.indexed].to_numpy()
        ).median()
        < 0.5
    )


def _table(xy: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"frame": 0, "fs": xy[:, 0], "ss": xy[:, 1], "intensity": 10.0})


@pytest.mark.parametrize(
    ("xy", "reason"),
    [
        (np.zeros((0, 2)), "0 peaks"),
        (np.array([[10.5, 20.5], [30.5, 90.5], [100.5, 40.5]]), "3 peaks"),
        (np.stack([np.linspace(70, 120, 12), np.full(12, 63.2)], 1), ""),  # in a line through the beam
        (np.full((8, 2), 80.5), ""),  # all in one place
        (np.tile([64.6, 63.2], (8, 1)), ""),  # in the beam itself
    ],
)
def test_tables_that_cannot_be_indexed(xy, reason):
    frames = simulate("sim128", [0], seed=1)
    found = index_frames(frames, frames.attrs["unit_cell"], peaks=_table(xy), controls=10)
    row = found.table.loc[0]
    assert row["lattices"] == 0 and row["p"] > 0.001
    assert not reason or row["reason"].startswith(reason)


def test_bad_input_is_refused_with_a_sentence():
    frames = simulate("sim128", [0], seed=1)
    for cell, sentence in (
        ((10, 10, 10, 90, 90, 180), "parallelepiped"),
        ("none.cif", "none.cif does not exist"),
        ("P4", "expected a,b,c"),
    ):
        with pytest.raises(BadInput, match=re.escape(sentence)):
            index_frames(frames, cell)
    with pytest.raises(BadInput, match="wavelength"):
        bare = frames.drop_vars("wavelength")
        bare.attrs.pop("wavelength")
        index_frames(bare, frames.attrs["unit_cell"])
    white = replace(geometry_of(frames), wavelength=None)
    with pytest.raises(BadInput, match="white"):
        scattering_vectors(_table(np.ones((3, 2))), white)
    with pytest.raises(BadInput, match="larger d_min"):
        miller_sphere(Cell((800, 800, 800, 90, 90, 90)), 0.8)


def test_masked_and_non_finite_pixels(tmp_path):
    """A mask that hides everything and pixels that are not numbers leave the other frames alone."""
    frames = simulate("sim128", [0, 1, 2], seed=5)
    frames = frames.assign(intensity=frames["intensity"].astype(np.float32))
    frames["intensity"][1, 40:60] = np.nan
    found = index_frames(frames, frames.attrs["unit_cell"], controls=20)
    assert np.isfinite(found.table["share"]).all()
    hidden = frames.assign(mask=(("y", "x"), np.zeros((128, 128), bool)))
    nothing = index_frames(hidden, frames.attrs["unit_cell"], controls=5)
    assert (nothing.table["peaks"] == 0).all() and nothing.rate == 0


def test_a_stream_has_what_was_indexed(indexed_cspad, cspad, tmp_path):
    text = write_stream(tmp_path / "still.stream", cspad, indexed_cspad, "r0015.cxi").read_text()
    chunk = re.search(r"----- Begin chunk -----\n(.*?)----- End chunk -----", text, re.S)[1]
    peaks = re.search(r"Peaks from peak search\n.*?\n(.*?)\nEnd of peak list", chunk, re.S)[1].split("\n")
    rows = re.search(r"Reflections measured after indexing\n.*?\n(.*?)\nEnd of reflections", chunk, re.S)[1].split("\n")
    (lattice,) = indexed_cspad.of(0)
    assert len(peaks) == 243 and len(rows) == int(re.search(r"num_reflections = (\d+)", chunk)[1])
    hkl = np.array([row.split()[:3] for row in rows], int)
    assert {tuple(h) for h in hkl} <= {tuple(h) for h in lattice.spots[list("hkl")].to_numpy()}
    stars = np.array([re.search(rf"{n}star = (.*) nm", chunk)[1].split() for n in "abc"], float).T / 10
    energy = float(re.search(r"photon_energy_eV = (.*)", chunk)[1])
    u = hkl @ stars.T + [0, 0, energy / 12398.4198]
    assert abs(np.linalg.norm(u, axis=1) - energy / 12398.4198).max() < 0.01  # near the Ewald sphere
    strong = {tuple(h) for h in lattice.hkl[lattice.indexed]}
    intensity = np.array([row.split()[3] for row in rows], float)
    found = np.array([tuple(h) in strong for h in hkl])
    assert np.median(intensity[found]) > 5 * max(np.median(intensity[~found]), 1)


def test_a_cell_that_no_frame_supports_is_not_found():
    """Spots turned around the beam have no lattice, whatever the likeliest basis of theirs is."""
    frames = simulate("sim128", range(3), seed=1)
    turned = turned_peaks(frames, find_frame_peaks(frames))
    with pytest.raises(BadInput, match="no cell was found"):
        index_frames(frames, "unknown", peaks=turned, controls=20)


def test_a_tetragonal_stream_says_its_unique_axis(indexed_cspad, cspad, tmp_path):
    """Field by field as CrystFEL writes them, and read back."""
    text = write_stream(tmp_path / "still.stream", cspad, indexed_cspad, "r0015.cxi").read_text()
    axis = "abc"[int(np.argmin(LYSOZYME[:3]))]
    header, chunk = text.split("----- Begin chunk -----")[:2]
    for field in ("adu_per_photon = ", "lattice_type = tetragonal", f"unique_axis = {axis}"):
        assert field in header, field
    fields = ("n_indexing_tries = 1", "beam_divergence = ", "beam_bandwidth = ", "indexed_by = file-latt-cell")
    for field in (*fields, f"unique_axis = {axis}"):
        assert field in chunk, field
    full = int(re.search(r"num_saturated_reflections = (\d+)", chunk)[1])
    assert 0 <= full <= int(re.search(r"num_reflections = (\d+)", chunk)[1])
    assert read_stream(tmp_path / "still.stream")["crystals"].loc[0, "centring"] == "P"


# an Eiger 16M, whose spots are few pixels apart for a cell of 130 Å
LARGE = Geometry(0.98, 0.214, 75e-6, (2216.0, 2300.0), (4362, 4148))
THERMOLYSIN, THAUMATIN = Cell((92.9, 92.9, 130.5, 90, 90, 120)), Cell((57.8, 57.8, 150.2, 90, 90, 90))


def _large_frame(peaks: pd.DataFrame) -> tuple:
    frame = make_frames(np.zeros((1, *LARGE.shape), np.uint8), **LARGE.to_attrs())
    return frame, peaks.reset_index(drop=True).assign(frame=0, intensity=10.0)


def _of_thaumatin(seed: int) -> tuple:
    """160 spots of thaumatin, with the beam centre of the header a few pixels off."""
    rng = np.random.default_rng(seed)
    spots = predict_spots(miller_sphere(THAUMATIN, 2.0), THAUMATIN.A @ random_rotation(rng, 1)[0].T, LARGE, 4e-4)
    spots = spots.sample(min(160, len(spots)), random_state=seed)
    spots[["fs", "ss"]] += rng.normal(0, 0.4, (len(spots), 2)) + [1, -2]
    return _large_frame(spots[["fs", "ss"]])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_peaks_anywhere_on_a_large_detector_are_no_dense_lattice(seed):
    rng = np.random.default_rng(seed)
    radius, angle = rng.uniform(200, 1500, 160), rng.uniform(0, 2 * np.pi, 160)
    places = np.array(LARGE.beam_center) + (radius * [np.cos(angle), np.sin(angle)]).T
    frame, peaks = _large_frame(pd.DataFrame(places, columns=["fs", "ss"]))
    assert index_frames(frame, THERMOLYSIN, peaks=peaks, distance_range=0.03, controls=30).rate == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 7, 9, 10, 11])
def test_a_lattice_of_another_cell_is_refused(seed):
    """Two lattices agree in more places than chance, but not where the peaks are."""
    frame, peaks = _of_thaumatin(seed)
    words = dict(peaks=peaks, distance_range=0.03, controls=30)
    wrong = index_frames(frame, THERMOLYSIN, **words)
    assert wrong.rate == 0 and (wrong.table.loc[0, "p"] < 1 or "another cell" in wrong.table.loc[0, "reason"])
    right = index_frames(frame, THAUMATIN, **words)
    assert right.rate == 1 and right.of(0)[0].indexed.mean() > 0.6


@pytest.mark.slow
def test_a_measured_frame_is_refused_with_the_cell_of_its_name():
    """The Eiger's frame called thermolysin is thaumatin; with the other cell 42 of 162 peaks seemed indexed."""
    ds = open_frames(measured("eiger16m_thermolysin.cbf.gz"))
    peaks = find_frame_peaks(ds)
    wrong = index_series(ds, THERMOLYSIN, peaks=peaks, distance_range=0.03, controls=60)
    assert wrong.rate == 0
    right = index_series(ds, THAUMATIN, peaks=peaks, distance_range=0.03, controls=60)
    assert right.table.loc[0, "indexed"] > 0.9 * len(peaks) and right.table.loc[0, "rmsd_px"] < 0.6


@pytest.mark.slow
def test_spots_two_pixels_apart_are_still_a_lattice():
    """79 Å on 344 µm pixels: chance comes within a pixel of a spot, so distances say nothing there."""
    still = EXPERIMENTS["sim128"]
    crystal = replace(still.sample.crystal, cell=(79.0, 79.0, 38.0, 90.0, 90.0, 90.0))
    frames = simulate(replace(still, sample=replace(still.sample, crystal=crystal, hits=(0.0, 1.0))), range(24), seed=3)
    table = index_frames(frames, crystal.cell, controls=100, lattices=1).table
    assert (table.loc[table["peaks"] >= 12, "lattices"] == 1).mean() > 0.95


@pytest.mark.slow
def test_the_command_writes_a_table_a_picture_and_a_stream(tmp_path, monkeypatch, capsys):
    from xrddiff.app.verbs.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["data", "simulate", "sim128", "-n", "6", "-o", "shots.h5", "--seed", "5"]) == 0
    assert main(["data", "index", "shots.h5", "--frames", "0:4", "--controls", "20", "--distance-range", "0"]) == 0
    out = capsys.readouterr().out
    assert "cell: P 36.00 44.00 52.00" in out and "stream: shots-indexed.stream" in out
    table = pd.read_csv("shots-indexed.csv", index_col="frame")
    assert len(table) == 4 and (tmp_path / "shots-indexed.png").stat().st_size > 10_000
    text = (tmp_path / "shots-indexed.stream").read_text()
    assert text.count("--- Begin crystal") == table["lattices"].sum() > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["shots.h5", "--cell", "10,10,10,90,90,180"], "no parallelepiped has these edges"),
        (["shots.h5", "--cell", "lysozyme.pdb"], "lysozyme.pdb does not exist"),
        (["shots.h5", "--frames", "7:9"], "has 2 frames, numbers 0 to 1"),
        (["shots.h5", "--frames", "all"], "expected a frame number or START:STOP"),
        (["gone.h5"], "gone.h5"),
        (["shots.h5", "--png", "shots.h5/x.png"], "is not a folder"),
        (["shots.h5", "--stream", "./shots.h5"], "would be both read and written"),
        (["shots.h5", "--png", "shots.h5"], "would be both read and written"),
        (["shots.h5", "--stream", "x.png", "--png", "x.png"], "two outputs have one name"),
        (["shots.h5", "--lattices", "0"], "lattices is 0; expected 1 to 1000"),
        (["shots.h5", "--controls", "-5"], "controls is -5; expected 0"),
        (["shots.h5", "--distance-range", "nan"], "distance_range is nan; expected 0 to 0.5"),
        (["shots.h5", "--distance-range", "1e9"], "distance_range is 1000000000.0; expected 0 to 0.5"),
    ],
)
def test_mistakes_on_the_command_line(words, sentence, tmp_path, monkeypatch, capsys):
    from xrddiff.app.verbs.main import main
    from xrddiff.data.formats.store import save_frames

    monkeypatch.chdir(tmp_path)
    save_frames(simulate("sim128", [0, 1], seed=5), "shots.h5")
    before = (tmp_path / "shots.h5").read_bytes()
    assert main(["data", "index", *words]) == 2
    assert (tmp_path / "shots.h5").read_bytes() == before
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not list(tmp_path.glob("*indexed*"))


def test_the_door_indexes_a_file_too(tmp_path):
    import xrddiff as xd
    from xrddiff.data.formats.store import save_frames

    save_frames(simulate("sim128", [0, 1], seed=5), file := tmp_path / "shots.h5")
    assert len(xd.index(file, lattices=1, controls=5, refine=False).table) == 2
    with pytest.raises(BadInput, match="limit is -3; expected 1 or more"):
        xd.index(str(file), limit=-3)
