"""The search for quiet areas, which works with bit images and looks only where something can be found, against the plain definition: sums over every window."""

import numpy as np
import pytest
from scipy import ndimage

from xrddiff.data.frames.masks import SeriesStatistics, Values, cold, edges, rims
from xrddiff.data.frames.quiet_areas import ALPHA, ROW, SHARP, fewest_events, quiet_areas, window_shapes


def sums(x, h, w):
    """Sums over the windows of h × w pixels from every corner (panel, y, x)."""
    table = np.pad(x.astype(np.int64).cumsum(1).cumsum(2), [(0, 0), (1, 0), (1, 0)])
    return table[:, h:, w:] - table[:, :-h, w:] - table[:, h:, :-w] + table[:, :-h, :-w]


def paint(shape, corners, h, w):
    out = np.zeros(shape, bool)
    for p, y, x in zip(*corners, strict=True):
        out[p, y : y + h, x : x + w] = True
    return out


def plain_windows(events, n, h, w, log_p):
    """The corners of the unlikely windows, one by one."""
    dy, dx = max(1, h // 16), max(1, w // 16)
    found = []
    for p, y, x in zip(*np.nonzero(sums(events, h, w) == 0), strict=True):
        if y % dy or x % dx:
            continue
        for down, across, along in ((1, h, w), (0, w, h)):
            t = max(1, across // 2)
            need = max(fewest_events(h * w * n, t * along * n, log_p), ROW * t)
            if across > along or need > t * along * n:
                continue
            for strips in ((across, across + t), (-t, -2 * t)):
                parts = []
                for d in strips:
                    a, b = (y + d, x) if down else (y, x + d)
                    hh, ww = (t, along) if down else (along, t)
                    whole = a >= 0 and b >= 0 and a + hh <= events.shape[1] and b + ww <= events.shape[2]
                    parts.append(events[p, a : a + hh, b : b + ww].sum() if whole else 0)
                if min(parts) >= need:
                    found.append((p, y, x))
    return tuple(np.array(found, int).reshape(-1, 3).T)


def plain_areas(events, image, n=1):
    """`quiet_areas` from its definition."""
    events = events.astype(int)
    height, width = events.shape[1:]
    shapes = window_shapes(height, width)
    log_p = np.log(ALPHA / (4 * len(shapes) * events.size))
    found = np.zeros(events.shape, bool)
    for h, w in shapes:
        found |= paint(events.shape, plain_windows(events, n, h, w, log_p), h, w)
    if not found.any():
        return found
    b = min(32, height, width)
    rate = sums(events, b, b)[:, ::b, ::b] / (b * b * n)
    mu = -n * np.log1p(-min(np.quantile(rate[rate > 0], 0.05), 0.999))
    k = int(np.ceil(max(8, np.sqrt(np.log(events.size / ALPHA) / mu), ROW / mu)))
    area = found.copy()
    for h, w in ((k, k), (1, max(64, k * k)), (max(64, k * k), 1)):
        if h <= height // 2 and w <= width // 2:
            area |= paint(events.shape, np.nonzero(sums(events, h, w) == 0), h, w)
    out = np.zeros_like(found)
    for p in range(len(events)):
        label, _ = ndimage.label(area[p], np.ones((3, 3)))
        label[~np.isin(label, label[found[p]])] = 0
        if not label.any():
            continue
        far, at = ndimage.distance_transform_edt(label == 0, return_indices=True)
        near = label[tuple(at)]
        for part in set(label[label > 0].tolist()):
            rings = [(near == part) & (far > low) & (far <= high) for low, high in ((0, 1.5), (2.5, 5))]
            inner, outer = (image[p][r].mean() if r.any() else 0 for r in rings)
            if inner >= SHARP * outer:
                out[p] |= label == part
    return out


def frames(seed, n=1, panels=1, shape=(150, 180), level=3.0):
    """Counts with gaps, a border, a corner and a shadow, and now and then a ring on no background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    r = np.hypot(x - shape[1] / 2, y - shape[0] / 2)
    mu = level * np.exp(-r / 80) if seed % 3 else level * np.exp(-(((r - 40) / 4) ** 2))
    shadow = (r < rng.integers(4, 20)) | (x + y < rng.integers(0, 60))
    shadow[:, 100 : 100 + rng.integers(1, 9)] = shadow[40 : 40 + rng.integers(1, 18)] = True
    shadow[-2:] = shadow[:, :1] = True
    counts = rng.poisson(mu, (n, panels, *shape)).astype(np.int32)
    counts[:, 0, shadow] = rng.integers(0, 2)
    return counts


@pytest.mark.parametrize("level", [0.02, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("seed", range(6))
def test_areas_are_those_of_the_definition(seed, level):
    x = frames(seed, level=level)[0]
    for v in (0, 1):
        found = quiet_areas(x != v, lambda *at, v=v: abs(x[at] - float(v)))
        assert np.array_equal(found, plain_areas(x != v, abs(x - float(v))))


def test_they_are_in_series_and_panels_too():
    some = 0
    for seed, n, panels, shape in ((1, 6, 1, (96, 130)), (2, 32, 3, (64, 70)), (4, 3, 2, (40, 300))):
        x = frames(seed, n, panels, shape, 0.8)
        v = x[0, 0, -1, -1]
        events, mean = (x != v).sum(0), x.mean(0)
        found = quiet_areas(events, lambda *at, mean=mean, v=v: abs(mean[at] - v), n)
        assert np.array_equal(found, plain_areas(events, abs(mean - v), n))
        some += found.sum()
    assert some > 1000


def test_there_is_something_to_find():
    assert sum(quiet_areas((x := frames(seed)[0]) != 0, lambda *at, x=x: x[at]).sum() for seed in range(6)) > 5000


def plain_cold(x, known):
    """Pixels 8 σ below the second lowest neighbour."""
    x, size = x.astype(float), 32
    step = abs(np.diff(x, axis=2))
    pad = [(0, 0), (0, -step.shape[1] % size), (0, -step.shape[2] % size)]
    tiles = np.pad(step, pad, mode="symmetric" if min(step.shape[1:]) >= size else "edge")
    out = np.zeros(known.shape, bool)
    wide = np.pad(x, [(0, 0), (1, 1), (1, 1)], mode="reflect")
    for p, y, i in np.ndindex(x.shape):
        around = np.sort(np.delete(wide[p, y : y + 3, i : i + 3].ravel(), 4))
        a, b = y // size * size, min(i, x.shape[2] - 2) // size * size
        sigma = 1.4826 / 2**0.5 * np.median(tiles[p, a : a + size, b : b + size])
        out[p, y, i] = around[1] - x[p, y, i] > 8 * max(sigma, 1)
    return out & known


@pytest.mark.parametrize("shape", [(70, 90), (20, 64), (33, 31)])
def test_cold_pixels_are_those_of_the_definition(shape):
    rng = np.random.default_rng(3)
    x = rng.poisson(np.linspace(5, 400, shape[1]), (2, *shape)).astype(np.uint16)
    at = tuple(rng.integers(0, n, 40) for n in x.shape)
    x[at] = rng.integers(0, 200, 40)
    x[0, 0, 0] = x[1, -1, -1] = 0
    stats = SeriesStatistics(Values(x.dtype), np.ones(x.shape, bool))
    stats.add(x, np.zeros(x.shape, bool), False)
    found = cold(stats)
    assert found.sum() > 10 and np.array_equal(found, plain_cold(x, stats.known))


def test_edges_of_one_frame_and_of_a_series_agree():
    """The first frame alone is kept as it is; as soon as there is a second one, sums are."""
    x = frames(5, 2)
    bad = x[0] > 8
    alone, both = (SeriesStatistics(Values(x.dtype), np.ones(x[0].shape, bool)) for _ in range(2))
    alone.add(x[0], bad, False)
    for _ in range(2):
        both.add(x[0], bad, False)
    assert alone.total is None and both.only is None and edges(alone).any()
    assert np.array_equal(alone.mean, both.mean) and np.array_equal(alone.known, both.known)
    assert all(np.array_equal(2 * alone.events(v), both.events(v)) for v in alone.gap_values)


@pytest.mark.parametrize("factor", [1.0, 1.6])
def test_rims_stand_at_every_edge(factor):
    rng = np.random.default_rng(1)
    valid = np.ones((1, 200, 260), bool)
    valid[:, 90:97] = valid[:, :, 120:140] = False
    image = rng.poisson(30, valid.shape).astype(np.int32)
    rim = valid & (ndimage.uniform_filter(valid.astype(float), (1, 3, 3), mode="constant") < 0.99)
    image[rim] = (factor * image[rim]).astype(np.int32)
    found = rims(valid, image)
    assert (found[rim].mean() > 0.9) == (factor > 1) and found[~rim].mean() < 0.01
