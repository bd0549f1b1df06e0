"""Crystals and detectors of files: against gemmi's sum over atoms, a forward calculation of their own, and the indexer."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest

from xrddiff.app.verbs.main import main
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.frames.frames import frame_peaks, validate_frames
from xrddiff.data.frames.geometry import PanelGeometry, geometry_of
from xrddiff.physics.indexing.indexer import index_frames
from xrddiff.physics.simulation.crystal import Crystal, Wilson, reciprocal_matrix, reflections
from xrddiff.physics.simulation.crystal_files import AtomFactors, atom_factors, crystal_of_file
from xrddiff.physics.simulation.experiments import Artefacts, Detector, PixelLayout
from xrddiff.physics.simulation.own_experiments import FoundDetector, detector_of_file, own_experiment
from xrddiff.physics.simulation.scattering import ray_polarization
from xrddiff.physics.simulation.simulate import draw_shots, find_spots, simulate

CELL = (41.0, 41.0, 63.0, 90.0, 90.0, 90.0)
GEOM = """clen = 0.07
wavelength = 1.1 A
res = 5000
min_ss = 0
max_ss = 299
a/min_fs = 0
a/max_fs = 149
a/corner_x = -155
a/corner_y = -148
b/min_fs = 150
b/max_fs = 299
b/corner_x = 6
b/corner_y = -151
b/fs = +0.97x +0.02y +0.24z
b/ss = -0.02x +0.9998y
"""


@pytest.fixture(scope="module")
def structure():
    """60 atoms at random places of a tetragonal cell."""
    rng = np.random.default_rng(0)
    out = gemmi.Structure()
    out.cell, out.spacegroup_hm = gemmi.UnitCell(*CELL), "P 41 21 2"
    out.add_model(gemmi.Model(1))
    out[0].add_chain(gemmi.Chain("A"))
    for i, x in enumerate(rng.uniform(3, 20, (20, 3))):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "GLY", gemmi.SeqId(str(i + 1))
        for name in ("N", "C", "O"):
            atom = gemmi.Atom()
            atom.name, atom.element, atom.b_iso = name, gemmi.Element(name), float(rng.uniform(8, 30))
            atom.pos = gemmi.Position(*(x + rng.normal(size=3)))
            residue.add_atom(atom)
        out[0][0].add_residue(residue)
    out.setup_cell_images()
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory, structure):
    where = tmp_path_factory.mktemp("files")
    structure.write_pdb(str(where / "toy.pdb"))
    structure.make_mmcif_document().write_file(str(where / "toy.cif"))
    (where / "two.geom").write_text(GEOM)
    return where


def mtz(path, hkl, cell, **columns):
    out = gemmi.Mtz(with_base=True)
    out.spacegroup = gemmi.SpaceGroup("P 41 21 2")
    out.set_cell_for_all(gemmi.UnitCell(*cell))
    out.add_dataset("toy")
    for label in columns:
        out.add_column(label, {"S": "Q", "I": "J"}.get(label[0], "F"))
    out.set_data(np.column_stack([hkl, *columns.values()]).astype(np.float32))
    out.write_to_file(str(path))
    return path


@pytest.mark.parametrize(
    "name, shots, mean, counted, spots",
    [
        ("sim128", 8, 2.54185611, 2.543015, 1656),
        ("sim-422", 1, 11.7890707, 11.78045, 351),
        ("sim-522", 1, 3.15873546, 3.163776, 244),
    ],
)
def test_named_experiments_are_what_they_were(name, shots, mean, counted, spots):
    """Numbers of before crystals and detectors of files were known; other processors may round otherwise."""
    ds = simulate(name, range(shots), 3, expected=True)
    assert abs(ds.expected.values.mean(dtype=float) / mean - 1) < 1e-7 and ds.sizes["peak"] == spots
    assert abs(ds.intensity.values.mean(dtype=float) / counted - 1) < 1e-4


@pytest.mark.parametrize("name", ["toy.pdb", "toy.cif"])
def test_structure_factors_are_gemmis(folder, structure, name):
    crystal = crystal_of_file(folder / name, solvent=False)
    ours = reflections(crystal, 2.2)
    read = gemmi.read_structure(str(folder / name))  # the file has three decimals
    calculator = gemmi.StructureFactorCalculatorX(read.cell)
    theirs = np.array([abs(calculator.calculate_sf_from_model(read[0], h)) for h in ours.hkl[::7].tolist()])
    np.testing.assert_allclose(np.sqrt(ours.f2[::7]), theirs, rtol=1e-5, atol=1e-3)
    by_density = np.abs(atom_factors(read, ours.hkl[::7], solvent=False, direct=False))
    assert np.abs(by_density - theirs).max() < 2e-3 * theirs.max()


def test_water_changes_what_is_strong_at_low_resolution(folder):
    wet, dry = (reflections(crystal_of_file(folder / "toy.pdb", solvent=s), 2.2) for s in (True, False))
    change = np.abs(np.sqrt(wet.f2) - np.sqrt(dry.f2)) / np.sqrt(dry.f2.mean())
    assert change[dry.g2 < 1 / 12**2].mean() > 20 * change[dry.g2 > 1 / 2.6**2].mean()
    assert isinstance(crystal_of_file(folder / "toy.pdb").factors, AtomFactors)


def test_measured_amplitudes_have_the_scale_of_electrons(folder, tmp_path):
    crystal = Crystal(CELL, "P 41 21 2", Wilson(22.0, 0.45, 3))
    known = reflections(crystal, 2.0)
    rows = slice(40, None)  # the first forty are missing, in groups of mates
    path = mtz(tmp_path / "toy.mtz", known.hkl[rows], CELL, FC=np.ones(len(known) - 40), FP=9 * np.sqrt(known.f2[rows]))
    ours = reflections(crystal_of_file(path), 2.0)
    assert 0 < len(known) - len(ours) <= 40
    truth = dict(zip(map(tuple, known.hkl.tolist()), known.f2, strict=True))
    ratio = ours.f2 / np.array([truth[tuple(h)] for h in ours.hkl.tolist()])
    assert np.ptp(ratio) < 1e-4 * ratio.mean() and abs(ratio.mean() - 1) < 0.25
    with pytest.warns(UserWarning, match="toy.mtz lacks .* they have no spots"):
        own_experiment(path, folder / "two.geom")


def forward(panels, A, hkl, k, axis, width):
    """Where reflections cross the Ewald sphere while the crystal turns, found by bisection, one at a time."""
    turn = lambda phi: gemmi_turn(axis, phi)  # noqa: E731
    out = {}
    for h in hkl.tolist():
        s = lambda phi, h=h: np.linalg.norm(turn(phi) @ A @ h + [0, 0, k]) - k  # noqa: E731
        low, high = -width / 2, width / 2
        if s(low) * s(high) > 0:
            continue
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if s(low) * s(middle) > 0 else (low, middle)
        ray = turn(low) @ A @ h + [0, 0, k]
        for p in range(len(panels.origin)):  # origin + f fs + s ss = t ray
            f, t, q = np.linalg.solve(np.array([panels.fs[p], panels.ss[p], -ray]).T, -panels.origin[p])
            if q > 0 and 0 <= f < panels.shape[2] and 0 <= t < panels.shape[1]:
                out[tuple(h)] = (p, f, t)
    return out


def gemmi_turn(axis, phi):
    """Rotation matrix, by the exponential of the cross product."""
    from scipy.linalg import expm

    x, y, z = axis
    return expm(phi * np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]))


def test_spots_of_a_rotation_are_where_a_forward_calculation_puts_them(folder):
    e = own_experiment(folder / "toy.pdb", folder / "two.geom", rotation=0.5, mosaicity=0.005, bandwidth=1e-6)
    e = replace(e, sample=replace(e.sample, cell_spread=0.0), faint=0.0)
    panels, drawn = e.geometry, draw_shots(e, [0])
    spots = find_spots(e, drawn)
    A = drawn.orientation[0, 0] @ reciprocal_matrix(CELL)
    whole = spots.partiality > 0.999
    truth = forward(panels, A, spots.hkl[whole], 1 / drawn.wavelength[0], (1.0, 0, 0), np.radians(0.5))
    assert isinstance(panels, PanelGeometry) and whole.sum() > 20 and set(spots.panel) == {0, 1}
    for h, p, x, y in zip(spots.hkl[whole].tolist(), spots.panel[whole], spots.fs[whole], spots.ss[whole], strict=True):
        if tuple(h) in truth:
            assert truth[tuple(h)][0] == p and np.hypot(x - truth[tuple(h)][1], y - truth[tuple(h)][2]) < 0.05
    assert len(truth) > 0.9 * whole.sum()
    # photons are those of Darwin's formula for a rotation, with the Lorentz factor 1/|axis·(ray × beam)|
    ray = np.stack(panels.to_lab(spots.panel, spots.fs, spots.ss), 1)[whole]
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    lorentz = 1 / np.abs(np.cross(ray, [0, 0, 1.0])[:, 0])
    f2 = dict(
        zip(
            map(tuple, reflections(e.sample.crystal, e.resolution).hkl.tolist()),
            reflections(e.sample.crystal, e.resolution).f2,
            strict=True,
        )
    )
    expected = (
        e.beam.fluence * 1e-8 * drawn.scale[0] * 2.8179403e-5**2 * drawn.wavelength[0] ** 3 * drawn.volume[0, 0]
        / e.sample.crystal.volume**2 * np.array([f2[tuple(h)] for h in spots.hkl[whole].tolist()])
        * ray_polarization(ray, e.beam.polarization) * lorentz / np.radians(0.5)
    )  # fmt: skip
    np.testing.assert_allclose(spots.photons[whole], expected, rtol=0.02)


@pytest.mark.parametrize(
    "words",
    [
        {"rotation": 0.4},
        {"spectrum": "sase", "bandwidth": 1e-3, "mosaicity": 0.1},
        {"spectrum": "pink", "bandwidth": 1.5e-3},
    ],
    ids=["rotation", "sase", "pink"],
)
def test_simulated_frames_index_with_their_cell(folder, words):
    e = own_experiment(folder / "toy.pdb", folder / "two.geom", size=20.0, background=0.3, **words)
    ds = simulate(e, range(2), expected=True)
    validate_frames(ds, values=True)
    assert float(ds.attrs.get("rotation_width", 0)) == words.get("rotation", 0)
    good = ds.mask.values
    pull = (ds.intensity - ds.expected).values[:, good] / np.sqrt(np.maximum(ds.expected.values[:, good], 1e-3))
    assert abs((pull**2).mean() - 1) < 0.1
    indexing = index_frames(ds, CELL, lattices=1, controls=20)
    for i in range(2):
        (lattice,) = indexing.lattices[i]
        assert lattice.indexed.sum() > 25 and np.sqrt((lattice.error**2).mean()) < 0.5


def test_spectra_are_drawn_per_shot_and_kept_per_seed(folder):
    e = own_experiment(folder / "toy.pdb", folder / "two.geom", spectrum="sase", bandwidth=2e-3)
    a, b = draw_shots(e, [0, 1]), draw_shots(e, [1])
    assert not np.allclose(a.spectrum[0], a.spectrum[1]) and (a.spectrum[1] == b.spectrum[0]).all()
    together, alone = simulate(e, [0, 1]), simulate(e, [1])
    assert (together.intensity.values[1] == alone.intensity.values[0]).all()


def test_a_frame_lends_its_mask_gain_and_pedestal(tmp_path):
    panels = PanelGeometry.from_flat(geometry_of(simulate("sim-422", [0], truth=False)))
    mask = np.ones(panels.shape, bool)
    mask[0, 100:120] = False
    detector = Detector(
        "ours", "integrating", panels.shape, 177e-6, 0.08, (257.3, 254.1), gain=30.0, pedestal=55.0, read_noise=6.0,
        saturation=40_000, layout=PixelLayout(mask, panels),
    )  # fmt: skip
    e = own_experiment(Crystal.example("cubic"), FoundDetector(detector, 1.3, 0.9), background=2.0, size=2.0)
    from xrddiff.data.formats.store import save_frames

    save_frames(simulate(e, [0]), tmp_path / "frame.h5")
    found = detector_of_file(tmp_path / "frame.h5", automask=[])
    again = found.detector
    assert (again.gain, again.pedestal, again.read_noise, again.saturation) == (30.0, 55.0, 6.0, 40_000)
    assert again.layout == detector.layout and found.polarization == 0.9 and again.psf == 0.8
    adu = simulate(replace(e, detector=again), [0], expected=True)
    assert adu.intensity.dtype == np.int32 and adu.intensity.attrs["units"] == "ADU"
    x, mean = (adu[v].values[0][mask].astype(float) for v in ("intensity", "expected"))
    dim = mean < 1000
    variance = 30 * (mean - 55) + 36 + 1 / 12
    assert abs(((x - mean) ** 2 / variance)[dim].mean() - 1) < 0.03


def test_artefacts_are_known_and_not_told():
    plain, hidden = (
        simulate(replace(find("sim-522"), artefacts=a), range(2), expected=True) for a in (None, Artefacts(key=1))
    )
    for i in range(2):
        a, b = frame_peaks(plain, i), frame_peaks(hidden, i)
        assert (a[["fs", "ss", "h", "k", "l"]] == b[["fs", "ss", "h", "k", "l"]]).all(axis=None)
    assert str(plain.attrs) == str(hidden.attrs) and plain.intensity.attrs == hidden.intensity.attrs
    assert (plain.mask == hidden.mask).all() and list(plain.variables) == list(hidden.variables)
    assert np.abs(hidden.expected / plain.expected.where(plain.expected > 0) - 1).mean() > 0.05
    n, mu = (hidden[v].values[:, hidden.mask.values].astype(float) for v in ("intensity", "expected"))
    assert abs(((n - mu) ** 2 / mu).mean() - 1) < 0.02
    adu = simulate(replace(find("sim-422"), artefacts=Artefacts(key=1)), [0], expected=True)
    x, mean = (adu[v].values[:, adu.mask.values].astype(float) for v in ("intensity", "expected"))
    assert abs((x - mean).mean()) < 0.3


def find(name):
    from xrddiff.physics.simulation.experiments import EXPERIMENTS

    return EXPERIMENTS[name]


def test_the_command(folder, tmp_path, capsys):
    out = tmp_path / "shots.h5"
    line = f"data simulate {folder / 'toy.pdb'} --detector {folder / 'two.geom'} -n 3 -o {out} --mosaicity 0.1 --rotation 0.2 --size 10 --artefacts 2 psf=0.9"
    assert main(line.split()) == 0
    ds = open_frames(out, automask=[])
    assert ds.intensity.shape == (3, 2, 300, 150) and ds.sizes["peak"] > 20 and ds.attrs["rotation_width"] == 0.2
    assert ds.attrs["space_group"] == "P 41 21 2" and "artefact" not in str(ds.attrs)
    assert main(f"data simulate sim128 -n 2 -o {tmp_path / 'a.h5'} --rotation 0.2".split()) == 2
    assert "sim128 is a named experiment" in capsys.readouterr().err


def test_bad_files_are_refused_in_a_sentence(folder, tmp_path):
    pdb = (folder / "toy.pdb").read_text()
    hkl = np.array([[1, 0, 2], [2, 1, 0]])
    files = {
        "list.txt": ("bread, milk", "is not a crystal"),
        "nocell.pdb": (pdb[pdb.index("ATOM") :], "has no unit cell"),
        "nogroup.pdb": (pdb.replace("P 41 21 2", "         "), "has no space group"),
        "wronggroup.pdb": (pdb.replace("P 41 21 2", "P 2 3    "), "does not fit space group"),
        "far.pdb": (
            pdb.replace(pdb[pdb.index("ATOM") + 38 : pdb.index("ATOM") + 46], "99999.99", 1),
            "expected numbers of an atom",
        ),
        "noatoms.pdb": ("\n".join(x for x in pdb.splitlines() if not x.startswith("ATOM")), "has no atoms"),
    }
    for name, (text, words) in files.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(BadInput, match=f"{name}.*{words}"):
            crystal_of_file(tmp_path / name)
    with pytest.raises(BadInput, match="has no measured amplitudes: its columns are H"):
        crystal_of_file(mtz(tmp_path / "calculated.mtz", hkl, CELL, FC=np.ones(2)))
    data = bytearray(mtz(tmp_path / "lies.mtz", hkl, CELL, FP=np.ones(2)).read_bytes())
    at = data.index(b"NCOL")
    data[at : at + 40] = b"NCOL        4    2000000000        0    "
    (tmp_path / "lies.mtz").write_bytes(data)
    with pytest.raises(BadInput, match="more than its .* bytes hold"):
        crystal_of_file(tmp_path / "lies.mtz")
    with pytest.raises(BadInput, match="does not exist"):
        own_experiment(folder / "toy.pdb", folder / "none.cbf")
    np.save(tmp_path / "bare.npy", np.zeros((1, 30, 30), np.int32))
    with pytest.raises(BadInput, match="bare.npy.*wavelength"):
        own_experiment(folder / "toy.pdb", tmp_path / "bare.npy")
