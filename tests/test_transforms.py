"""Value transforms, pooling, crops, tiles, thinned peaks: what the notebooks do not show."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

from xrddiff.core.errors import BadInput
from xrddiff.data.frames.frames import frame_mask, frame_peaks, make_frames, peaks_table, validate_frames
from xrddiff.data.frames.geometry import Geometry, PanelGeometry, q_map, with_q
from xrddiff.data.frames.noise import background_sigma
from xrddiff.data.frames.peaks import find_frame_peaks
from xrddiff.data.frames.rows import is_lazy
from xrddiff.data.transforms.pipelines import Pipeline, make_transform, transform_from_state
from xrddiff.data.transforms.spatial import Crop, Panels, Patches, Pool, TopK, as_images, pool_mean, tile_geometry
from xrddiff.data.transforms.values import (
    TRANSFORMS,
    Anscombe,
    Asinh,
    Linear,
    Log1p,
    MinMaxPerImage,
    Sqrt,
    ValueTransform,
)

GEOMETRY = dict(wavelength=1.3, distance=0.1, pixel_size=1e-4)
RANGE = np.unique(
    np.concatenate([np.linspace(-100, 200, 2001), np.geomspace(1e-3, 1e6, 4001), -np.geomspace(1e-3, 100, 500)])
).astype(np.float32)


class Disk:
    """An array that counts what is read from it."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.chunks, self.reads = values, values.shape, values.dtype, None, []

    def __getitem__(self, key):
        self.reads.append(key)
        return self.values[key]


def counts(n=6, size=32, seed=0, mean=20.0):
    rng = np.random.default_rng(seed)
    out = rng.poisson(mean, (n, size, size))
    at = rng.integers(2, size - 2, (n, 5, 2))
    for i in range(n):
        out[i, at[i, :, 0], at[i, :, 1]] += rng.integers(100, 100_000, 5)
    return out.astype(np.int32)


def frames(n=6, size=32, **kw):
    return make_frames(kw.pop("values", counts(n, size)), **GEOMETRY | {"beam_center": (size / 2 + 3, size / 2)} | kw)


# ---- values

CASES = [
    Asinh(),
    Asinh(scale=30.0, pedestal=10.0),
    Asinh(scale=0.5, standardise=False),
    Log1p(),
    Log1p(scale=3.0, standardise=False),
    Sqrt(),
    Sqrt(pedestal=-5.0),
    Anscombe(),
    Anscombe(scale=40.0, read_noise=7.0, pedestal=12.0),
    Linear(),
    Linear(standardise=False),
]


@pytest.mark.parametrize("t", CASES, ids=repr)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_what_is_marked_invertible_inverts_to_float32(t, kind):
    t.fit(frames(units="ADU", gain=1.0))
    assert t.invertible
    x = RANGE if kind == "numpy" else torch.from_numpy(RANGE)
    y = t.forward(x)
    back = t.inverse(y)
    assert y.dtype == back.dtype == (np.float32 if kind == "numpy" else torch.float32)
    # float32 carries 6e-8: y and the few steps on it lose some of the last bits of the curve's value v, whose error dv is (dx/dv) dv in x
    eps = np.finfo(np.float32).eps
    v = (np.abs(np.asarray(y, np.float64)) + 1) * t.std + abs(t.mean)
    x64 = RANGE.astype(np.float64)
    slope = {
        "asinh": np.sqrt((x64 - t.pedestal) ** 2 + t.fitted_scale**2),
        "log1p": np.abs(x64 - t.pedestal) + t.fitted_scale,
        "sqrt": 2 * np.sqrt(np.abs(x64 - t.pedestal)),
        "anscombe": np.sqrt(np.abs(x64 - t.pedestal + t.fitted_scale)) * np.sqrt(t.fitted_scale) + t.fitted_scale,
        "linear": np.ones_like(x64),
    }[t.name]
    error = np.abs(np.asarray(back, np.float64) - x64)
    assert (error <= 4 * eps * (v * slope + np.abs(x64) + abs(t.pedestal) + 0.5 * t.fitted_scale)).all()
    # and in plain words: no worse than 4 in a million, or a ten thousandth of a count where there is hardly any
    assert (
        error <= 4e-6 * np.abs(x64) + 2e-5 * max(1.0, t.fitted_scale, abs(t.mean) if t.name == "linear" else 0)
    ).all()


@pytest.mark.parametrize("t", CASES, ids=repr)
def test_monotonic_and_the_same_in_torch_and_float64(t):
    t.fit(frames(units="ADU", gain=1.0))
    y = t.forward(RANGE)
    assert (np.diff(y) >= 0).all()
    assert np.allclose(t.forward(torch.from_numpy(RANGE)).numpy(), y, rtol=2e-6, atol=2e-6)
    u = (RANGE.astype(np.float64) - t.pedestal) / t.fitted_scale
    shifted = u + 3 / 8 + (getattr(t, "read_noise", 0) / t.fitted_scale) ** 2
    exact = {
        "asinh": np.arcsinh(u),
        "log1p": np.sign(u) * np.log1p(np.abs(u)),
        "sqrt": np.sign(u) * np.sqrt(np.abs(u)),
        "anscombe": 2 * np.sign(shifted) * np.sqrt(np.abs(shifted)),
        "linear": u,
    }[t.name]
    assert np.allclose(y, (exact - t.mean) / t.std, rtol=3e-6, atol=3e-6)


def test_integers_are_looked_up_to_the_same_bits():
    rng = np.random.default_rng(1)
    t = Asinh().fit(frames())
    for dtype, low, high in (
        (np.uint16, 0, 65536),
        (np.int16, -32768, 32768),
        (np.int32, 0, 60_000),
        (np.int32, -50, 10**7),
    ):
        x = rng.integers(low, high, (2, 80, 90)).astype(dtype)
        assert np.array_equal(t.forward(x), t.forward(x.astype(np.float32))), dtype
    refit = t.forward(x.astype(np.uint16))
    t.fit(frames(values=counts(mean=300.0)))  # new statistics, new table
    assert not np.array_equal(t.forward(x.astype(np.uint16)), refit)


def test_large_images_go_through_in_pieces():
    rng = np.random.default_rng(2)
    x = rng.poisson(5.0, (2, 700, 800)).astype(np.float32)
    mask = rng.random((700, 800)) > 0.1
    x[:, ~mask] = np.inf
    t = Asinh(2.0, standardise=False)
    whole = np.where(mask, np.arcsinh(x * np.float32(0.5)), 0)
    assert np.allclose(t.forward(x, mask), whole, rtol=1e-6)
    assert np.array_equal(t.forward(x, np.broadcast_to(mask, x.shape)), t.forward(x, mask))
    out = np.full((2, 704, 808), 7.0, np.float32)
    t.forward(x, mask, out=out[:, :700, :800])
    assert np.array_equal(out[:, :700, :800], t.forward(x, mask)) and (out[:, 700:] == 7).all()


def test_statistics_come_from_the_training_split_alone():
    disk = Disk(counts(10).astype(np.float32))
    disk.values[5:] = np.nan
    t = Asinh().fit(make_frames(disk), np.arange(5))
    rows = np.concatenate([np.atleast_1d(np.arange(10)[k[0]]) for k in disk.reads])
    assert rows.max() < 5
    y = t.forward(disk.values[:5])
    assert abs(y.mean()) < 1e-3 and abs(y.std() - 1) < 1e-3
    with pytest.raises(BadInput, match="frame 5 holds nan"):
        Asinh(3.0).fit(make_frames(disk), [4, 5])


def test_asinh_scale_is_the_noise_of_the_background():
    rng = np.random.default_rng(3)
    adu = rng.normal(100.0, 12.0, (4, 128, 128)).astype(np.float32)
    adu[:, 40, 40:60] = 1e5
    adu += np.linspace(0, 400, 128, dtype=np.float32)  # a slope is not noise
    assert abs(Asinh().fit(make_frames(adu, units="ADU")).fitted_scale / 12 - 1) < 0.05
    sparse = rng.poisson(0.01, (4, 64, 64)).astype(np.int32)
    assert Asinh().fit(make_frames(sparse)).fitted_scale == 1.0  # there is nothing below one photon
    # after pooling a photon is worth 1/16, and so may the scale be
    assert Asinh().fit(Pool(4).apply(make_frames(sparse))).fitted_scale < 0.1
    with pytest.raises(BadInput, match="does not vary"):
        Asinh().fit(make_frames(np.ones((2, 8, 8), np.float32), units="ADU"))
    assert np.isnan(background_sigma(np.ones((4, 4)), np.zeros((4, 4), bool)))


def test_anscombe_takes_the_gain_of_the_frames():
    assert Anscombe().fit(frames(units="ADU", gain=25.0)).fitted_scale == 25.0
    with pytest.raises(BadInput, match="gain"):
        Anscombe().fit(frames(units="ADU"))


def test_masked_pixels_are_left_out_and_zero():
    values = counts().astype(np.float32)
    mask = np.ones(values.shape, bool)
    mask[:, 10:12] = False
    clean = Asinh().fit(make_frames(values, mask=mask))
    values[:, 10], values[:, 11] = np.nan, 1e30
    spoilt = Asinh().fit(make_frames(values, mask=mask))
    assert spoilt.state() == clean.state()
    assert (spoilt.forward(values, mask)[:, 10:12] == 0).all()
    y = spoilt.forward(torch.from_numpy(values), torch.from_numpy(mask))
    assert (y[:, 10:12] == 0).all() and torch.isfinite(y).all()


def test_inverse_is_float32_under_bf16_and_lets_gradients_through():
    t = Asinh().fit(frames())
    assert t.inverse(torch.randn(4, dtype=torch.bfloat16)).dtype == torch.float32
    assert t.inverse(np.zeros(3, np.float16)).dtype == np.float32
    y = torch.randn(16, requires_grad=True)
    t.inverse(y).sum().backward()
    assert torch.allclose(y.grad, t.fitted_scale * t.std * torch.cosh(y.detach() * t.std + t.mean), rtol=1e-4)
    assert torch.isfinite(t.inverse(torch.tensor([1e4, -1e4]))).all()  # a wild network stays finite


INVERTIBLE = [name for name, kind in TRANSFORMS.items() if issubclass(kind, ValueTransform) and kind.invertible]


@pytest.mark.parametrize("name", INVERTIBLE)
def test_drawn_values_come_back_as_counts_can_be(name):
    """Whatever a network draws; what the training frames hold, and a fifth more, is left as it is."""
    train = frames(units="photon", gain=1.0)
    t = make_transform(name).fit(train)
    lower, upper = t.limits
    x = train["intensity"].values.astype(np.float32)
    assert lower < x.min() and np.isclose(upper, x.max() + 0.2 * np.ptp(x)) and upper <= 1.2 * x.max()
    known = np.concatenate([x.ravel(), np.linspace(0, 0.999 * upper, 100, dtype=np.float32)])[None]
    assert np.array_equal(t.bounded_inverse(t.forward(known)), t.inverse(t.forward(known)))
    wild = np.float32([[-np.inf, -1e30, -1e3, -8.0, 8.0, 1e3, 1e30, np.inf]])
    for made in (t.bounded_inverse(wild), t.bounded_inverse(torch.from_numpy(wild).bfloat16()).numpy()):
        assert made.dtype == np.float32 and np.isfinite(made).all()
        assert made.min() == np.float32(lower) and made.max() == np.float32(upper)
    bright = (
        100 * x[0]
    )  # measured, and far above the training: `inverse` is exact, and a reconstruction may be as bright
    back = t.inverse(t.forward(bright))
    assert np.allclose(back, bright, rtol=1e-5, atol=1e-5 * max(t.fitted_scale, t.std if name == "linear" else 0))
    assert np.array_equal(t.restore(t.forward(bright), bright), back)
    assert t.restore(t.forward(bright) * 10, bright).max() <= 1.2 * bright.max()
    again = transform_from_state(json.loads(json.dumps(t.state())))
    assert again.limits == t.limits and np.array_equal(again.bounded_inverse(wild), t.bounded_inverse(wild))


def test_limits_come_from_valid_pixels_of_the_training_split_and_saturation():
    x = counts(8).astype(np.float32)
    x[0], x[1, :, 0] = 1e9, 1e8  # held out; masked
    mask = np.ones(x.shape[1:], bool)
    mask[:, 0] = False
    t = Asinh().fit(frames(values=x, mask=mask), np.arange(1, 8))
    own = x[1:, mask]
    assert np.allclose(t.limits, (own.min() - 0.2 * np.ptp(own), own.max() + 0.2 * np.ptp(own)))
    top = float(own.max())
    full = frames(values=x, mask=mask).assign_attrs(saturation=top + 1)
    assert Asinh().fit(full, np.arange(1, 8)).limits[1] == top + 1
    assert Asinh().fit(full.assign_attrs(saturation=5.0), np.arange(1, 8)).limits[1] == top  # a wrong attribute


def test_a_transform_that_was_fitted_before_there_were_limits_has_none():
    t = Asinh().fit(frames())
    state = t.state()
    del state["fitted"]["lower_limit"], state["fitted"]["upper_limit"]
    old = transform_from_state(state)
    y = np.float32([[50.0]])
    assert old.limits is None and np.array_equal(old.bounded_inverse(y), old.inverse(y)) and old.state() == state
    assert np.array_equal(old.restore(y, y), old.inverse(y))
    chain = Pipeline([Linear(pedestal=3.0, standardise=False), Asinh()]).fit(frames())
    assert chain.limits == chain.transforms[0].limits
    assert chain.restore(y, np.float32([[5.0]])).max() == np.float32(chain.limits[1]) < chain.inverse(y).max()


def test_reference_intensity_makes_weights_of_order_one():
    for name in ("asinh", "log1p", "sqrt", "anscombe", "linear", "minmax"):
        ds = frames(values=counts(20))
        t = make_transform(name).fit(ds)
        w = 1 + 2.0 * np.maximum(t.forward(ds["intensity"].values), 0) / t.reference_intensity
        assert w.min() >= 1 and t.reference_intensity > 0 and w.mean() < 6, name


def test_one_value_everywhere_is_refused():
    with pytest.raises(BadInput, match="same value"):
        Log1p().fit(make_frames(np.full((2, 8, 8), 3, np.int32)))
    with pytest.raises(BadInput, match="no frames"):
        Log1p().fit(frames(), [])
    with pytest.raises(BadInput, match="no statistics"):
        Asinh().forward(RANGE)


def test_per_image_minmax_is_a_baseline_without_inverse():
    t = MinMaxPerImage().fit(frames())
    x = counts(3).astype(np.float32)
    mask = np.ones(x.shape, bool)
    mask[0, :5], x[0, :5] = False, 1e9
    for y in (t.forward(x, mask), t.forward(torch.from_numpy(x), torch.from_numpy(mask)).numpy()):
        assert (
            (y[mask] >= 0).all() and np.allclose([y[i][mask[i]].max() for i in range(3)], 1) and (y[0, :5] == 0).all()
        )
    assert not t.invertible and np.allclose(t.restore(y, x, mask)[mask], x[mask], rtol=1e-4, atol=0.5)
    with pytest.raises(BadInput, match="no inverse"):
        t.inverse(y)
    assert (t.forward(np.full((4, 4), 7.0, np.float32)) == 0).all()


@pytest.mark.parametrize(
    "t",
    [*CASES, MinMaxPerImage(), Pool(3), Crop(8, 6, 1, 2), Patches(8), Panels(), TopK(0.3, {"snr": 7.0})]
    + [Pipeline([TopK(0.5), Pool(2), Asinh()])],
    ids=repr,
)
def test_state_is_json_and_comes_back(t):
    ds = frames(units="ADU", gain=1.0)
    t.fit(ds)
    state = json.loads(json.dumps(t.state()))
    back = transform_from_state(state)
    assert type(back) is type(t) and back.state() == t.state()
    x = ds["intensity"].values
    if not isinstance(t, Panels) or isinstance(t, Patches):
        assert np.array_equal(back.forward(x), t.forward(x))


def test_wrong_words_are_refused_with_the_nearest():
    for call, words in (
        (lambda: make_transform("asinhh"), "asinh"),
        (lambda: make_transform("pool", n=2), "pool has no parameter 'n'"),
        (lambda: make_transform("asinh", scael=2), "did you mean 'scale'"),
        (lambda: make_transform("asinh", scale=0), "positive"),
        (lambda: make_transform("pool", k=0), "at least 1"),
        (lambda: make_transform("pool", k=2.5), "whole number"),
        (lambda: make_transform("topk", fraction=1.5), "from 0 to 1"),
        (lambda: transform_from_state({}), "transform"),
        (lambda: Crop(99).apply(frames()), "height 32"),
        (lambda: Patches(99).apply(frames()), "height 99"),
        (lambda: Linear(standardise=False).forward([1, 2]), "list"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
    assert set(TRANSFORMS) >= {
        "asinh",
        "log1p",
        "anscombe",
        "sqrt",
        "linear",
        "minmax",
        "pool",
        "crop",
        "patches",
        "panels",
        "topk",
    }


# ---- chains


def test_a_chain_fits_each_link_on_what_comes_before():
    ds = frames(size=64, variables={"shot_group": np.arange(6)})
    chain = Pipeline([Patches(16), Pool(2), Asinh()]).fit(ds, [0, 2])
    geometry, values = chain.split()
    small = geometry.apply(ds)
    assert len(small["frame_source"]) == 6 * 16 and set(small["shot_group"].values) == set(range(6))
    index = geometry.forward_index([0, 2])
    assert set(small["frame_source"].values[index]) == {0, 2}
    y = values.forward(small["intensity"].values[index])
    assert abs(y.mean()) < 1e-3 and abs(y.std() - 1) < 1e-3
    assert np.allclose(chain.forward(ds["intensity"].values[[0, 2]]), y, rtol=1e-5, atol=1e-5)
    assert chain.reference_intensity == values.reference_intensity > 0
    assert not chain.invertible and values.invertible
    with pytest.raises(BadInput, match="no inverse"):
        chain.inverse(y)
    with pytest.raises(BadInput, match="transformed last"):
        Pipeline([Asinh(), Pool(2)]).split()


# ---- pooling


def brute_pool(x, m, k):
    h, w = x.shape
    out, valid = np.zeros((-(-h // k), -(-w // k))), np.zeros((-(-h // k), -(-w // k)), bool)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            at = np.s_[i * k : (i + 1) * k, j * k : (j + 1) * k]
            valid[i, j] = m[at].sum() >= k * k / 2
            out[i, j] = x[at][m[at]].mean() if m[at].any() else 0
    return out, valid


@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(24, 20), (23, 31), (195, 487)])
def test_pooling_is_the_masked_mean(k, shape):
    rng = np.random.default_rng(k)
    x = rng.integers(0, 10**6, shape).astype(np.int32)
    m = rng.random(shape) > 0.45
    mean, valid = brute_pool(x, m, k)
    for got, ok in (pool_mean(x, k, m), pool_mean(torch.from_numpy(x), k, torch.from_numpy(m))):
        assert np.array_equal(np.asarray(ok), valid)
        assert np.allclose(np.asarray(got), mean, rtol=1e-6)
    spoilt = np.where(m, x, np.nan).astype(np.float32)
    assert np.allclose(pool_mean(spoilt, k, m)[0], mean, rtol=1e-6)


def test_pooled_frames_are_lazy_and_true():
    rng = np.random.default_rng(0)
    disk, expected = Disk(counts(8, 64)), Disk(rng.random((8, 64, 64)).astype(np.float32))
    mask = rng.random((8, 64, 64)) > 0.3
    peaks = {
        "frame": [1, 6],
        "panel": [0, 0],
        "fs": [10.5, 33.0],
        "ss": [20.0, 63.9],
        "intensity": [160.0, 32.0],
        "background": [4.0, 5.0],
    }
    ds = with_q(
        frames(
            8,
            64,
            values=disk,
            mask=mask,
            peaks=peaks,
            background_sigma=4.0,
            variables={"expected": expected, "crystals": np.arange(8)},
        )
    )
    disk.reads.clear()
    out = validate_frames(Pool(4).apply(ds))
    assert disk.reads == [] and expected.reads == [] and is_lazy(out["intensity"]) and is_lazy(out["mask"])
    assert out["intensity"].isel(frame=3).shape == (16, 16)
    assert np.allclose(out["intensity"].isel(frame=3).values, brute_pool(disk.values[3], mask[3], 4)[0])
    assert np.allclose(out["expected"].isel(frame=3).values, brute_pool(expected.values[3], mask[3], 4)[0], rtol=1e-5)
    assert np.array_equal(frame_mask(out, 3), brute_pool(disk.values[3], mask[3], 4)[1])
    assert [k[0] for k in disk.reads] == [3]
    table = peaks_table(out)
    assert table["fs"].tolist() == [10.5 / 4, 33 / 4] and table["ss"].tolist() == [5.0, 63.9 / 4]
    assert table["intensity"].tolist() == [10.0, 2.0] and table["background"].tolist() == [4.0, 5.0]
    assert out["intensity"].attrs == {"units": "photon", "gain": 1 / 16, "background_sigma": 1.0}
    assert ds["intensity"].attrs["gain"] == 1.0 and ds.attrs["pixel_size"] == 1e-4  # the original is as it was
    geometry = Geometry.from_frames(ds).pool(4)
    assert Geometry.from_frames(out) == geometry and np.allclose(out["q"], q_map(geometry), rtol=1e-6)
    assert np.allclose(out["x"], np.arange(16) + 0.5) and Pool(1).apply(ds) is ds


def test_pooling_averages_noise_as_it_says():
    out = Pool(4).apply(make_frames(np.random.default_rng(0).poisson(50.0, (20, 64, 64)).astype(np.int32)))
    value = out["intensity"]
    assert abs(value.values.var() / (value.attrs["gain"] * 50) - 1) < 0.05


def test_an_edge_that_is_hardly_there_is_masked():
    out = Pool(4).apply(make_frames(np.ones((2, 18, 17), np.int32)))
    assert out["intensity"].shape == (2, 5, 5)
    assert out["mask"].values[:4, :4].all() and out["mask"].values[4, :4].all() and not out["mask"].values[:, 4].any()
    assert (out["intensity"].values == 1).all()  # means of the pixels there are


def panels(n=2, p=3, h=20, w=30, **kw):
    rng = np.random.default_rng(7)
    origin = rng.normal(0, 0.01, (p, 3)) + [0, 0, 0.1]
    angle = rng.uniform(0, 2 * np.pi, p)
    fs = 1e-4 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    ss = 1e-4 * np.stack([-np.sin(angle), np.cos(angle), 0 * angle], 1)
    values = rng.poisson(5.0, (n, p, h, w)).astype(np.int16)
    peaks = {"frame": [0, 1, 1], "panel": [2, 0, 1], "fs": [25.5, 3.0, 11.0], "ss": [2.0, 12.5, 19.5]}
    words = dict(
        units="ADU",
        wavelength=1.0,
        panels={"origin": origin, "fs": fs, "ss": ss},
        peaks=peaks,
        mask=rng.random((p, h, w)) > 0.1,
    )
    return with_q(make_frames(kw.pop("values", values), **words | kw))


def test_pooled_and_cropped_panels_stay_in_the_laboratory():
    ds = panels()
    out = validate_frames(Pool(2).apply(ds))
    assert out["intensity"].dims == ds["intensity"].dims and out["intensity"].shape == (2, 3, 10, 15)
    a, b = PanelGeometry.from_frames(ds), PanelGeometry.from_frames(out)
    assert np.allclose(a.to_lab(1, 7.0, 3.0), b.to_lab(1, 3.5, 1.5))
    assert np.allclose(out["q"], q_map(b), rtol=1e-5)
    assert np.allclose(
        out["intensity"].values[1, 2], brute_pool(ds["intensity"].values[1, 2], ds["mask"].values[2], 2)[0]
    )
    cut = validate_frames(Crop(8, 12, 10, 4).apply(ds))
    c = PanelGeometry.from_frames(cut)
    assert np.allclose(a.to_lab(2, 7.5, 13.0), c.to_lab(2, 3.5, 3.0)) and np.allclose(cut["q"], q_map(c), rtol=1e-5)
    assert peaks_table(cut)[["frame", "panel", "fs", "ss"]].values.tolist() == []
    assert peaks_table(Crop(20, 12, 0, 0).apply(ds))[["frame", "panel", "fs", "ss"]].values.tolist() == [
        [1, 0, 3, 12.5],
        [1, 1, 11, 19.5],
    ]


# ---- crops and tiles


def test_crops_move_the_beam_and_drop_peaks():
    peaks = {"frame": [0, 0, 2], "fs": [5.0, 20.0, 11.0], "ss": [5.0, 20.0, 15.9], "intensity": [1.0, 2.0, 3.0]}
    disk = Disk(counts())
    ds = frames(values=disk, peaks=peaks)
    disk.reads.clear()
    out = validate_frames(Crop(12, 10, y0=4, x0=11).apply(ds))
    assert disk.reads == [] and out.attrs["beam_center"] == (8.0, 12.0) and ds.attrs["beam_center"] == (19.0, 16.0)
    assert peaks_table(out)[["frame", "fs", "ss", "intensity"]].values.tolist() == [[2, 0, 11.9, 3]]
    assert np.array_equal(out["intensity"].values, disk.values[:, 4:16, 11:21])
    middle = Crop(10).apply(ds)
    assert np.array_equal(middle["intensity"].values, disk.values[:, 11:21, 11:21]) and middle["x"].values[0] == 0.5
    x = torch.from_numpy(disk.values[:, None])
    assert torch.equal(Crop(10).forward(x), x[..., 11:21, 11:21])


def test_tiles_cover_every_pixel_and_know_where_they_are():
    disk = Disk(counts(3, 50))
    mask = np.ones((50, 50), bool)
    mask[:20, :20] = False
    table = {
        "frame": np.repeat(np.arange(3), 40),
        "fs": np.tile(np.linspace(1, 49, 40), 3),
        "ss": np.tile(np.linspace(49, 1, 40), 3),
    }
    ds = frames(3, 50, values=disk, mask=mask, peaks=table, variables={"shot_group": [4, 4, 9]})
    disk.reads.clear()
    tiles = validate_frames(Patches(20).apply(ds))
    assert disk.reads == [] and len(tiles["frame_source"]) == 3 * 8  # 9 tiles, one of them without a valid pixel
    seen = np.zeros((50, 50), bool)
    for y0, x0 in Patches(20).corners((50, 50)):
        seen[y0 : y0 + 20, x0 : x0 + 20] = True
    assert seen.all() and tiles["shot_group"].values.tolist() == [4] * 16 + [9] * 8
    lab = Geometry.from_frames(ds)
    for j in (0, 5, 17):
        geometry, source = tile_geometry(tiles, j), int(tiles["frame_source"].values[j])
        x, y, z = geometry.to_lab(0, np.array([0.0]), np.array([0.0]))
        x0, y0 = (round(float(v[0] / 1e-4 + b)) for v, b in zip((x, y), lab.beam_center, strict=True))
        assert np.array_equal(tiles["intensity"].values[j], disk.values[source, y0 : y0 + 20, x0 : x0 + 20])
        assert np.array_equal(frame_mask(tiles, j), mask[y0 : y0 + 20, x0 : x0 + 20])
        mine = frame_peaks(ds, source)
        inside = mine[(mine.fs >= x0) & (mine.fs < x0 + 20) & (mine.ss >= y0) & (mine.ss < y0 + 20)]
        assert np.allclose(frame_peaks(tiles, j)[["fs", "ss"]] + [x0, y0], inside[["fs", "ss"]])


def test_panels_become_images_with_their_own_place():
    ds = panels()
    images = validate_frames(as_images(ds))
    lab = PanelGeometry.from_frames(ds)
    for j in range(6):
        assert np.array_equal(images["intensity"].values[j], ds["intensity"].values[j // 3, j % 3])
        assert np.allclose(tile_geometry(images, j).to_lab(0, 4.0, 9.0), lab.to_lab(j % 3, 4.0, 9.0))
    assert peaks_table(images)[["frame", "fs", "ss"]].values.tolist() == [[2, 25.5, 2], [3, 3, 12.5], [4, 11, 19.5]]
    assert np.allclose(images["q"].values, np.concatenate([ds["q"].values] * 2), rtol=1e-5)
    tiles = Patches(10, 15).apply(images)
    assert np.allclose(tile_geometry(tiles, 4 * 4 + 3).to_lab(0, 1.0, 2.0), lab.to_lab(1, 16.0, 12.0))
    t = Panels()
    t.apply(ds)
    assert t.forward_index([1]).tolist() == [3, 4, 5] and as_images(images) is images
    x = ds["intensity"].values[:, None]
    assert np.array_equal(t.forward(x)[:, 0], images["intensity"].values)
    with pytest.raises(BadInput, match="not applied yet"):
        Panels().forward_index([0])


def test_frames_without_a_geometry_can_be_cut_too():
    ds = make_frames(counts())
    for t in (Pool(2), Crop(8), Patches(16)):
        assert np.isfinite(t.apply(ds)["intensity"].values).all()
    with pytest.raises(BadInput, match="frame_panel"):
        tile_geometry(Patches(16).apply(ds), 0)


# ---- strongest peaks


def spotty(n=3, size=96, seed=0, dtype=np.int32):
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:size, :size] + 0.5
    mu = np.full((n, size, size), 6.0)
    grid = np.stack(np.meshgrid(np.arange(10, size - 8, 14.0), np.arange(10, size - 8, 14.0)), -1).reshape(-1, 2)
    for i in range(n):
        for fs, ss in grid + rng.uniform(-2, 2, grid.shape):
            mu[i] += rng.uniform(150, 3000) / (2 * np.pi) * np.exp(-((xx - fs) ** 2 + (yy - ss) ** 2) / 2)
    return rng.poisson(mu).astype(dtype), len(grid)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_topk_keeps_the_strongest_and_hides_the_rest(dtype):
    values, n = spotty(dtype=dtype)
    mask = np.ones((96, 96), bool)
    mask[:, 40:44] = False
    disk = Disk(values)
    ds = make_frames(disk, mask=mask, **GEOMETRY, beam_center=(48, 48), peaks={"frame": [0], "fs": [1.0], "ss": [1.0]})
    disk.reads.clear()
    thin = TopK(0.25).apply(ds)
    assert (
        disk.reads == [] and is_lazy(thin["intensity"]) and "peak" not in thin.dims and thin["intensity"].dtype == dtype
    )
    before, after = find_frame_peaks(ds), find_frame_peaks(thin)
    for i in range(3):
        b, a = before[before.frame == i], after[after.frame == i]
        strong = b.nlargest(int(np.ceil(len(b) / 4)), "intensity")
        d = np.hypot(*(strong[["fs", "ss"]].to_numpy()[:, None] - a[["fs", "ss"]].to_numpy()).T)
        assert d.min(0).max() < 0.5 and len(a) <= len(strong) + 1
    thinned = thin["intensity"].values
    assert np.array_equal(thinned[:, ~mask], values[:, ~mask])  # masked pixels are nobody's business
    assert np.array_equal(thinned, TopK(0.25).apply(ds)["intensity"].values)
    gone = thinned != values
    assert (
        0.02 < gone.mean() < 0.4 and thinned[gone].mean() < 12 and thinned[gone].std() > 1
    )  # background, noise and all
    assert TopK(1.0).apply(ds) is ds


def test_topk_on_arrays_and_stacks():
    values, _ = spotty()
    x = values[:, None]
    thin = TopK(0.5).forward(x)
    assert thin.shape == x.shape and thin.dtype == x.dtype and (thin != x).any()
    assert torch.equal(TopK(0.5).forward(torch.from_numpy(x)), torch.from_numpy(thin))
    stack = values.reshape(1, 3, 96, 96)
    words = {"origin": [[0.01 * p, 0, 0.1] for p in range(3)], "fs": [[1e-4, 0, 0]] * 3, "ss": [[0, 1e-4, 0]] * 3}
    ds = make_frames(stack, units="ADU", gain=1.0, wavelength=1.0, panels=words)
    before, after = find_frame_peaks(ds), find_frame_peaks(TopK(0.2).apply(ds))
    strong = before.nlargest(int(np.ceil(len(before) / 5)), "intensity")
    assert abs(len(after) - len(strong)) <= 2 and after["intensity"].min() > 0.8 * strong["intensity"].min()


def test_value_apply_is_lazy():
    disk = Disk(counts())
    t = Asinh().fit(make_frames(disk))
    disk.reads.clear()
    out = t.apply(make_frames(disk))
    assert disk.reads == [] and is_lazy(out["intensity"]) and isinstance(out, xr.Dataset)
    assert np.array_equal(out["intensity"].isel(frame=2).values, t.forward(disk.values[2]))
