"""Plots: headless, in threads, without global state, on every kind of frame."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from conftest import need

from xrddiff.core.errors import BadInput
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.geometry import geometry_of
from xrddiff.judge.views import charts
from xrddiff.judge.views import plots as V

GEOMETRY = dict(wavelength=1.3, distance=0.1, pixel_size=1e-4, beam_center=(20.0, 16.0))


def toy(n=2, shape=(32, 40), **kw):
    rng = np.random.default_rng(0)
    return make_frames(rng.poisson(5.0, (n, *shape)).astype(np.float32), **GEOMETRY | kw)


@pytest.fixture(scope="module")
def cspad():
    h5py = need("h5py")
    need("hdf5plugin")
    with h5py.File(files("xrddiff") / "data" / "samples" / "cspad_lysozyme_r0015.h5") as f:
        detector = f["entry_1/instrument_1/detector_1"]
        panels = {k: detector[f"panel_{k}"][:] for k in ("origin", "fs", "ss")}
        return make_frames(f["entry_1/data_1/data"][:], units="ADU", wavelength=1.67, panels=panels)


def texts(axes):
    return [t.get_text() for t in axes.texts]


def test_no_pyplot_and_no_rcparams():
    code = (
        "import sys, numpy as np, matplotlib as m; before = dict(m.rcParams);"
        "from xrddiff.data.frames.frames import make_frames; from xrddiff.judge.views.plots import show_frame, png;"
        "png(show_frame(make_frames(np.ones((1, 8, 8), np.float32))).figure);"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules and before == dict(m.rcParams)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "MPLBACKEND": "agg"})


def test_same_picture_in_threads():
    ds = toy()
    alone = V.png(V.compare_frames(ds, ds, 1))
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: V.png(V.compare_frames(ds, ds, 1)), range(4)))
    assert set(many) == {alone} and alone.startswith(b"\x89PNG")


def test_mask_has_its_own_colour():
    mask = np.ones((32, 40), bool)
    mask[5, 7] = False
    ax = V.show_frame(toy(mask=mask), 1)
    shown = ax.images[0]
    grey = np.array([int(V.MASKED[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    colours = shown.cmap(shown.norm(shown.get_array()))[..., :3]
    assert np.allclose(colours[5, 7], grey)
    assert (np.abs(colours - grey).max(-1) < 0.02).sum() == 1
    assert tuple(shown.get_extent()) == (0, 40, 32, 0)


def test_rings_are_labelled_in_angstrom_and_drawn_at_their_radius():
    ds = toy(pixel_size=2e-3)
    ax = V.show_frame(ds, rings=3)
    assert len(ax.patches) == 3 and all(t.endswith(" Å") for t in texts(ax)) and texts(ax)
    geometry = geometry_of(ds)
    for d, radius in V.resolution_rings(geometry, 3):
        assert any(np.isclose(p.radius, radius) and p.center == (20.0, 16.0) for p in ax.patches), d
    assert not V.show_frame(ds, rings=False).patches


def test_frames_without_geometry_or_with_a_white_beam_have_no_rings():
    bare = make_frames(np.ones((1, 8, 8), np.float32))
    assert not V.show_frame(bare).patches
    white = toy(wavelength=None, wavelength_range=(0.5, 2.5))
    assert not V.show_frame(white).patches
    V.png(V.compare_frames(bare, bare))
    V.png(V.show_frame(make_frames(np.ones((1, 3, 8, 8), np.int16), units="ADU")).figure)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1, 8, 8)),
        np.full((1, 8, 8), np.nan),
        np.full((1, 8, 8), -3.0),
        np.eye(8)[None] * 1e9,
        np.ones((1, 2, 300)),
    ],
)
@pytest.mark.parametrize("norm", V.NORMS)
def test_odd_frames_are_drawn(values, norm):
    V.png(V.show_frame(make_frames(values, units="ADU"), norm=norm).figure)


def test_unknown_norm_is_refused():
    with pytest.raises(BadInput, match="did you mean 'asinh'"):
        V.show_frame(toy(), norm="asin")


def test_one_scale_for_original_and_reconstruction():
    ds = toy(3)
    figure = V.compare_frames(ds, ds.assign(intensity=ds.intensity * 3), 2)
    axes = figure.axes[:6]
    norms = {id(a.images[0].norm) for k, a in enumerate(axes) if k % 3 < 2}
    assert len(norms) == 1
    signed = axes[2].images[0].norm
    assert signed.vmin == -signed.vmax
    x = ds.intensity.values[0].astype(float)
    assert np.allclose(axes[2].images[0].get_array(), (x - 3 * x) / np.sqrt(np.maximum(3 * x, 1)))
    assert [a.get_title() for a in axes[:3]] == ["original", "reconstruction", "residual"]
    with pytest.raises(BadInput, match="shape"):
        V.compare_frames(ds, toy(2))


def test_residual_units():
    rng = np.random.default_rng(1)
    mu = np.full((200, 200), 40.0)
    for gain in (1.0, 25.0):
        z = V.residual(gain * rng.poisson(mu), gain * mu, gain)
        assert abs(z.std() - 1) < 0.02
    assert abs(V.residual(rng.normal(0, 7, (200, 200)), np.zeros((200, 200)), None).std() - 1) < 0.03


def test_cspad_is_assembled(cspad):
    ax = V.show_frame(cspad)
    assert ax.get_xlim()[1] > 1600 and len(ax.patches) >= 3
    assert max(ax.images[0].get_array().shape) <= 640
    centre = geometry_of(cspad).to_image([3], [97.0], [92.0])
    ax = V.show_peaks(cspad, 0, pd.DataFrame({"frame": [0], "panel": [3], "fs": [97.0], "ss": [92.0]}))
    assert np.allclose(ax.collections[0].get_offsets()[0], np.ravel(centre))
    assert len(V.png(ax.figure)) < 300_000


def test_show_peaks_picks_the_frame():
    peaks = pd.DataFrame({"frame": [0, 1, 1], "fs": [3.0, 4.0, 5.0], "ss": [3.0, 4.0, 5.0]})
    ds = toy(peaks=peaks)
    assert len(V.show_peaks(ds, 1).collections[0].get_offsets()) == 2
    ax = V.show_peaks(ds, 0, {"truth": peaks, "found": peaks.iloc[:0]})
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["truth (1)", "found (0)"]
    assert len(V.show_peaks(ds, 0, peaks.drop(columns="frame")).collections[0].get_offsets()) == 3


def test_history():
    table = pd.DataFrame(
        {
            "step": [1, 2, 3, 3],
            "epoch": 0,
            "split": ["train"] * 3 + ["validation"],
            "lr": 1e-4,
            "loss": [3.0, 2.0, 1.0, 1.2],
            "reconstruction": [3.0, 2.0, np.nan, 1.1],
            "kl": [0.0, 1.0, 2.0, 2.0],
            "word": "x",
        }
    )
    figure = charts.plot_history(table)
    assert [a.get_title() for a in figure.axes] == ["loss", "reconstruction", "KL divergence"]
    assert len(figure.axes[0].lines) == 2
    V.png(figure)
    V.png(charts.plot_history(table[table.split == "train"].drop(columns="split"), ["loss"]))
    V.png(charts.plot_history(table.assign(loss=-1.0)))
    with pytest.raises(BadInput, match="no column 'los'"):
        charts.plot_history(table, ["los"])
    with pytest.raises(BadInput, match="of numbers"):
        charts.plot_history(pd.DataFrame({"step": []}))


def test_latents_of_arrays_and_tensors():
    torch = need("torch")
    z = torch.randn(2, 10, 4, 6, requires_grad=True, dtype=torch.bfloat16)
    assert len(charts.show_latents(z).axes) == 2 * 8 + 1
    V.png(charts.show_latents(np.zeros((1, 1, 4, 4))))
    with pytest.raises(BadInput, match="latents have shape"):
        charts.show_latents(np.zeros((4, 4)))


def test_profiles_and_scores():
    q = np.linspace(0.1, 3, 50)
    mean = np.where(q > 2.8, np.nan, np.exp(-q))
    ax = charts.plot_profiles({"a": (q, mean), "b": (q, mean)}, log=True)
    assert len(ax.lines) == 2
    V.png(ax.figure)
    V.png(charts.plot_profiles({"a": (q, mean)}).figure)
    scores = {
        "VAE": dict(f1=0.5, precision=np.nan, recall=0.3),
        "floor": dict(f1=0.9, intensity_cc=-0.2, centroid_px=0.1),
    }
    ax = charts.plot_peak_scores(scores, reference="floor")
    assert ax.get_xlim()[0] < -0.2 and "0.10 px" in texts(ax)
    V.png(ax.figure)


def test_given_axes_are_used():
    from matplotlib.figure import Figure

    axes = Figure().subplots(1, 3)
    ds = toy()
    assert V.show_frame(ds, ax=axes[0], colorbar=False) is axes[0]
    assert charts.plot_profiles({"a": ([1, 2], [1, 2])}, axes[1]) is axes[1]
    assert charts.plot_peak_scores({"a": dict(f1=0.5)}, axes[2]) is axes[2]
    V.png(axes[0].figure)
