"""Geometry against pyFAI, and the real CSPAD frame in and out of one image."""

import logging
from importlib.resources import files

import numpy as np
import pytest
from conftest import need

from xrddiff.core.errors import BadInput
from xrddiff.data.frames import geometry as G
from xrddiff.data.frames.frames import make_frames

FLAT = G.Geometry(1.24, 0.08, 172e-6, (70.3, -12.6), (195, 487), 0.9)


@pytest.fixture(scope="module")
def cspad():
    h5py = need("h5py")
    need("hdf5plugin")
    with h5py.File(files("xrddiff") / "data" / "samples" / "cspad_lysozyme_r0015.h5") as f:
        detector = f["entry_1/instrument_1/detector_1"]
        vectors = [detector[f"panel_{k}"][:] for k in ("origin", "fs", "ss")]
        stack = f["entry_1/data_1/data"][0]
        return stack, G.PanelGeometry(*vectors, stack.shape, float(f["entry_1/instrument_1/source_1/wavelength"][()]))


def pyfai(**kw):
    need("pyFAI")
    logging.disable(logging.WARNING)
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    return AzimuthalIntegrator(**kw)


def test_flat_detector_equals_pyfai():
    g = FLAT
    ai = pyfai(
        dist=g.distance,
        poni1=g.beam_center[1] * g.pixel_size,
        poni2=g.beam_center[0] * g.pixel_size,
        pixel1=g.pixel_size,
        pixel2=g.pixel_size,
        wavelength=g.wavelength * 1e-10,
    )
    assert np.allclose(G.two_theta(g), ai.array_from_unit(g.shape, "center", "2th_rad"), rtol=1e-10)
    assert np.allclose(G.q_map(g), ai.array_from_unit(g.shape, "center", "q_A^-1"), rtol=1e-10)
    assert np.allclose(1 / G.d_map(g) ** 2, ai.array_from_unit(g.shape, "center", "d*2_A^-2"), rtol=1e-10)
    assert np.allclose(G.solid_angle(g), ai.solidAngleArray(g.shape), rtol=1e-6)
    assert np.allclose(G.polarization_factor(g), ai.polarization(g.shape, g.polarization), rtol=1e-6)
    chi = ai.chiArray(g.shape)
    assert np.allclose(np.exp(1j * G.azimuth(g)), np.exp(1j * chi), atol=1e-6)


def test_tilted_panel_equals_pyfai():
    p, shape = 100e-6, (90, 120)
    ai = pyfai(dist=0.1, poni1=3e-3, poni2=5e-3, rot1=0.3, rot2=-0.2, rot3=0.1, pixel1=p, pixel2=p, wavelength=1.1e-10)
    corners = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # (ss, fs) in pixels, on the panel
    z, y, x = ai.calc_pos_zyx(d1=corners[:, 0] - 0.5, d2=corners[:, 1] - 0.5)  # pyFAI counts from pixel centres here
    r = np.stack([x, y, z], 1)
    panel = G.PanelGeometry(r[:1], r[1:2] - r[:1], r[2:] - r[:1], (1, *shape), 1.1)
    assert np.allclose(G.two_theta(panel)[0], ai.array_from_unit(shape, "center", "2th_rad"), rtol=1e-9)
    assert np.allclose(G.polarization_factor(panel)[0], ai.polarization(shape, 0.99), rtol=1e-6)
    assert np.allclose(np.exp(1j * G.azimuth(panel)[0]), np.exp(1j * ai.chiArray(shape)), atol=1e-6)
    ratio = G.solid_angle(panel)[0] / ai.solidAngleArray(shape)
    assert np.allclose(ratio, (panel.distance / 0.1) ** 2, rtol=1e-6)  # pyFAI is relative to its own distance


def test_flat_detector_is_one_panel():
    panel = G.PanelGeometry.from_flat(FLAT)
    for f in (G.pixel_positions, G.two_theta, G.q_map, G.azimuth, G.polarization_factor, G.solid_angle):
        assert np.allclose(f(panel)[0], f(FLAT))
    steradian = G.solid_angle(panel, relative=False)[0]
    assert np.allclose(steradian, G.solid_angle(FLAT, relative=False))
    image, seen = panel.assemble(np.arange(195 * 487).reshape(1, 195, 487))
    assert seen.all() and np.array_equal(image, np.arange(195 * 487).reshape(195, 487))


def test_solid_angle_of_a_sphere():
    """Six faces of a cube see 4π between them."""
    n, half = 200, 0.1
    face = G.Geometry(1.0, half, 2 * half / n, (n / 2, n / 2), (n, n))
    assert np.isclose(6 * G.solid_angle(face, relative=False).sum(), 4 * np.pi, rtol=1e-4)


def test_attributes_round_trip_and_moves():
    ds = make_frames(np.zeros((2, *FLAT.shape), np.float32), **FLAT.to_attrs())
    assert G.geometry_of(ds) == FLAT
    pooled = FLAT.pool(4)
    assert pooled.shape == (49, 122) and np.isclose(pooled.pixel_size, 4 * FLAT.pixel_size)
    crop = FLAT.crop(10, 20, 30, 40)
    assert np.array_equal(G.q_map(crop), G.q_map(FLAT)[10:40, 20:60])
    q = G.with_q(ds).q
    assert q.dims == ("y", "x") and "2π/d" in q.attrs["long_name"] and np.allclose(q, G.q_map(FLAT))


def test_wavelength_per_frame():
    ds = make_frames(
        np.zeros((2, 4, 4), np.float32),
        distance=1,
        pixel_size=1e-3,
        beam_center=(2, 2),
        variables={"wavelength": [1.0, 2.0]},
    )
    assert G.Geometry.from_frames(ds).wavelength == 1.5 and G.Geometry.from_frames(ds, 1).wavelength == 2.0


def test_rings():
    for geom in (
        FLAT,
        FLAT.crop(0, 0, 195, 487),
        G.Geometry(1.0, 0.2, 300e-6, (500, 520), (1000, 1050)),
        G.Geometry(1.0, 5.0, 1e-4, (-900.0, 50.0), (100, 100)),
    ):
        rings = G.resolution_rings(geom, 4)
        assert rings and rings == sorted(rings, key=lambda r: r[1])
        for d, radius in rings:
            assert np.isclose(G.ring_radius(d, geom), radius) and np.isclose(G.ring_resolution(radius, geom), d)
        radii = np.hypot(*(G.pixel_positions(geom)[..., :2] / geom.pixel_size).transpose(2, 0, 1))
        assert radii.min() - 1 < rings[0][1] and rings[-1][1] < radii.max() + 1
    assert np.isnan(G.ring_radius(0.5, G.Geometry(1.0, 0.1, 1e-4, (0, 0), (10, 10))))


def test_white_beam_and_missing_geometry_are_refused():
    ds = make_frames(
        np.zeros((1, 4, 4), np.float32), distance=0.1, pixel_size=1e-4, beam_center=(2, 2), wavelength_range=(0.5, 2.5)
    )
    geom = G.geometry_of(ds)
    assert G.two_theta(geom).shape == (4, 4)
    with pytest.raises(BadInput, match="white"):
        G.q_map(geom)
    for name in ("distance", "pixel_size", "beam_center"):
        poorer = ds.copy()
        del poorer.attrs[name]
        with pytest.raises(BadInput, match=f"no {name}"):
            G.geometry_of(poorer)
    with pytest.raises(BadInput, match="no panel_origin"):
        G.geometry_of(make_frames(np.zeros((1, 2, 4, 4), np.float32)))
    with pytest.raises(BadInput, match="parallel"):
        G.PanelGeometry(np.zeros((1, 3)), np.ones((1, 3)), np.ones((1, 3)), (1, 4, 4), 1.0)


def test_cspad_every_pixel_there_and_back(cspad):
    stack, geom = cspad
    image, seen = geom.assemble(stack, fill=-9999)
    assert geom.placed.all() and seen.sum() == stack.size == 64 * 185 * 194
    assert (image[~seen] == -9999).all() and np.array_equal(geom.disassemble(image), stack)
    row, column = np.unravel_index(geom.placement.index, image.shape)
    x, y = geom.to_image(np.arange(64)[:, None, None], np.arange(194) + 0.5, np.arange(185)[:, None] + 0.5)
    assert max(np.abs(x - column - 0.5).max(), np.abs(y - row - 0.5).max()) < 0.51
    # in the image, no hole lies inside a panel: all gaps lie between panels, at their 4 edges
    inner = np.zeros(geom.shape, bool)
    inner[:, 2:-2, 2:-2] = True
    flat = geom.placement.index[inner]
    around = flat[:, None] + np.array([1, -1, image.shape[1], -image.shape[1]])
    assert seen.ravel()[around].mean() > 0.9999


def test_cspad_stacks_masks_and_maps(cspad):
    stack, geom = cspad
    mask = stack > 0
    image, seen = geom.assemble(np.stack([stack, -stack]), np.stack([mask, ~mask]))
    assert image.shape[0] == 2 and np.array_equal(geom.disassemble(seen[1]), ~mask)
    q = G.q_map(geom)
    flat_q = G.q_map(geom.image_geometry)
    difference = geom.disassemble(flat_q) - q
    assert np.abs(difference).max() < 0.01  # the image is a flat approximation to panels that stand within 0.15 mm
    with pytest.raises(BadInput, match="panel stack has shape"):
        geom.assemble(stack[:5])
    with pytest.raises(BadInput, match="assembled image has shape"):
        geom.disassemble(image[..., 1:])


def test_cspad_water_ring(cspad):
    """The diffuse maximum of water and the shadow-free background lie on circles round the beam."""
    stack, geom = cspad
    d = G.d_map(geom)
    bins = np.linspace(1.2, 2.1, 31)  # q, 1/Å
    which = np.digitize(2 * np.pi / d, bins)
    profile = np.array([np.median(stack[which == k]) for k in range(1, len(bins))])
    peak = 2 * np.pi / (0.5 * (bins[1:] + bins[:-1]))[profile.argmax()]
    assert 3.0 < peak < 3.5


def test_cspad_rays(cspad):
    _, geom = cspad
    rng = np.random.default_rng(0)
    p, f, s = rng.integers(0, 64, 5000), rng.uniform(0, 194, 5000), rng.uniform(0, 185, 5000)
    rays = np.stack(geom.to_lab(p, f, s), 1)
    panel, fs, ss = geom.lab_to_panel(rays)
    assert np.array_equal(panel, p) and np.allclose(fs, f, atol=1e-6) and np.allclose(ss, s, atol=1e-6)
    assert (geom.lab_to_panel(-rays)[0] == -1).all()
    tilted = G.PanelGeometry(geom.origin, geom.fs + [0, 0, 3e-5], geom.ss - [0, 0, 2e-5], geom.shape, 1.0)
    panel, fs, ss = tilted.select([5]).lab_to_panel(np.stack(tilted.to_lab(5, f, s), 1))
    assert (panel == 0).all() and np.allclose(fs, f, atol=1e-6) and np.allclose(ss, s, atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 0.3, -0.7, 2, 5, 17, 44.9, 45.1, 89.9, 90, 133, 181, 270.2])
@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("size", [(31, 52), (64, 64)])
def test_any_angle_is_exact(degrees, mirror, size):
    a = np.radians(degrees)
    fs, ss = np.array([[np.cos(a), np.sin(a), 0]]), mirror * np.array([[-np.sin(a), np.cos(a), 0]])
    geom = G.PanelGeometry([[3.21, -7.77, 500.0]], fs, ss, (1, *size), 1.0)
    stack = np.arange(size[0] * size[1]).reshape(1, *size)
    image, seen = geom.assemble(stack)
    assert seen.sum() == stack.size and np.array_equal(geom.disassemble(image), stack)
    row, column = np.unravel_index(geom.placement.index, image.shape)
    x, y = geom.to_image(0, np.arange(size[1]) + 0.5, np.arange(size[0])[:, None] + 0.5)
    assert max(np.abs(x - column - 0.5).max(), np.abs(y - row - 0.5).max()) < 1.25


def test_overlapping_panels_keep_the_first():
    p = np.eye(3) * 1.0
    geom = G.PanelGeometry([[0, 0, 100.0], [2, 0, 100.0]], [p[0]] * 2, [p[1]] * 2, (2, 4, 4), 1.0)
    stack = np.arange(32).reshape(2, 4, 4)
    image, _ = geom.assemble(stack)
    assert image.shape == (4, 6) and geom.placed.sum() == 24
    back = geom.disassemble(image, fill=-1)
    assert np.array_equal(back[0], stack[0]) and (back[~geom.placed] == -1).all()


def test_placement_is_worked_out_once(cspad):
    _, geom = cspad
    assert G.PanelGeometry(geom.origin, geom.fs, geom.ss, geom.shape, 1.0).placement is geom.placement
