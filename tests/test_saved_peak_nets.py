"""A peak network in a file, and `peaks=net:FILE` wherever peaks are found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save

import xrddiff as xd
from xrddiff.app.verbs.main import main
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames, peaks_table
from xrddiff.data.frames.peaks import find_frame_peaks, make_finder, peaks_of_places
from xrddiff.judge.exports.exporters import export_peaks
from xrddiff.learn.recipes.peak_nets import labelled_windows, spots_of
from xrddiff.learn.recipes.saved_peak_nets import (
    KIND,
    described_way,
    open_peak_net,
    peak_way,
    save_peak_net,
    train_peak_net,
)
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.streaming.answers import read_answers
from xrddiff.run.streaming.stream import Stream, StreamPlan


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    return save_frames(simulate("sim128", range(24)), tmp_path_factory.mktemp("shots") / "shots.h5")


@pytest.fixture(scope="module")
def net_file(shots) -> Path:
    """Trained by the command, on a file."""
    path = shots.with_name("peaks.safetensors")
    assert main(["export", str(shots), "--format", "peaks", "-o", str(path), "--steps", "40", "--seed", "1"]) == 0
    return path


@pytest.fixture(scope="module")
def fresh() -> object:
    return simulate("sim128", range(1000, 1004))


def test_the_command_says_what_it_made(shots, net_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(shots), "--format", "peaks", "--steps", "1"]) == 0
    said = capsys.readouterr().out
    assert "use it: peaks=net:shots-peaks.safetensors" in said and "precision" in said
    assert open_peak_net(net_file).about["steps"] == 40
    for words, sentence in (
        (["--steps", "0"], "0 steps; expected at least 2 frames and 1 step"),
        (["-o", "peaks.pt"], "expected a name that ends in .safetensors"),
        (["--format", "pt2", "--steps", "3"], "are for --format peaks"),
    ):
        assert main(["export", str(shots), "--format", "peaks", "--overwrite", *words]) == 2
        assert sentence in capsys.readouterr().err


def test_same_bits(net_file, tmp_path, fresh):
    one = open_peak_net(net_file)
    path = save_peak_net(one, tmp_path / "again.safetensors")
    two = open_peak_net(path)
    assert path.read_bytes() == net_file.read_bytes() and two.about == one.about and two.threshold == one.threshold
    assert all(torch.equal(a, b) for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True))
    found = [find_frame_peaks(fresh, make=t.make) for t in (one, two)] + [
        find_frame_peaks(fresh, make=peak_way(f"net:{net_file}"))
    ]
    pd.testing.assert_frame_equal(found[0], found[1])
    pd.testing.assert_frame_equal(found[0], found[2])
    trained = train_peak_net(simulate("sim128", range(6)), steps=2, seed=3)
    again = train_peak_net(simulate("sim128", range(6)), steps=2, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(trained.net.parameters(), again.net.parameters(), strict=True))


def test_other_files_are_refused_in_a_sentence(net_file, tmp_path):
    def refusal(data: bytes) -> str:
        path = tmp_path / "other.safetensors"
        path.write_bytes(data)
        with pytest.raises(BadInput) as error:
            open_peak_net(path)
        assert "\n" not in str(error.value) and "expected" in str(error.value)
        return str(error.value)

    whole = net_file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    head = json.loads(whole[8 : 8 + length])

    def with_head(**changes) -> bytes:
        said = json.loads(head["__metadata__"]["xrddiff"]) | changes
        text = json.dumps(head | {"__metadata__": {"xrddiff": json.dumps(said)}}).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + length :]

    assert "no safetensors file" in refusal(b"") and "no safetensors file" in refusal(b"PK" + bytes(20))
    assert "holds no peak network" in refusal(save({"a": torch.zeros(3)}))
    assert "holds no peak network" in refusal(save({"a": torch.zeros(3)}, {"xrddiff": "[]"}))
    assert "holds no peak network" in refusal(whole[:8] + b"\xff" * length + whole[8 + length :])
    assert "is damaged" in refusal(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is damaged" in refusal(whole[:-4])
    assert "is damaged" in refusal(with_head(threshold=0.9))
    assert "another version" in refusal(with_head(kind=KIND + "0"))
    with pytest.raises(BadInput, match="not a regular file"):
        peak_way(f"net:{tmp_path}")
    with pytest.raises(BadInput, match="did you mean 'classical'"):
        peak_way("clasical")
    assert described_way(f"net:{net_file}").startswith(f"net:{net_file} (")


def test_frames_need_labels(tmp_path):
    frames = simulate("sim128", range(3))
    for wrong in (frames.drop_vars("peak_intensity"), frames.drop_vars(["peak_sigma", "peak_background"])):
        with pytest.raises(BadInput, match="no table of spots with intensity"):
            export_peaks(wrong, tmp_path / "a.safetensors", steps=1)
    with pytest.raises(BadInput, match="1 labelled frames"):
        train_peak_net(frames.isel(frame=[0]), steps=1)
    assert spots_of(frames.drop_vars("peak_background"))["background"].gt(0).any()


def test_a_network_has_the_columns_of_the_classical_finder(net_file, fresh):
    ours, theirs = find_frame_peaks(fresh, make=peak_way(f"net:{net_file}")), find_frame_peaks(fresh)
    assert [*ours][: len([*theirs])] == [*theirs] and {"probability", "logit"} < {*ours}
    assert len(ours) > 0.7 * len(theirs) and (ours["intensity"] > 0).all() and ours["probability"].max() <= 1
    one = find_frame_peaks(fresh, 2, make=peak_way(f"net:{net_file}"))
    many = ours[ours["frame"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, many, rtol=1e-4)


def test_panels_are_searched_as_if_flat(net_file, fresh):
    """Two panels, each with an image, give the peaks of the images: bins of tiles do not know of the other."""
    images = fresh["intensity"].values[:2].astype(np.float32)
    origin = np.array([[0.01, 0, 0.1], [-0.02, 0, 0.1]])
    fs, ss = np.array([[1e-4, 0, 0]] * 2), np.array([[0, 1e-4, 0]] * 2)
    flat = make_frames(images, units="photon")
    stack = make_frames(images[None], units="photon", panels={"origin": origin, "fs": fs, "ss": ss}, wavelength=1.0)
    way = peak_way(f"net:{net_file}")
    from xrddiff.data.frames.peaks import PeakFinder, tile_bins
    from xrddiff.learn.models.peak_net import NetworkFinder

    net = open_peak_net(net_file)
    finder = NetworkFinder(net.net, PeakFinder(tile_bins((2, 128, 128))), 0.5, net.threshold)
    a, b = find_frame_peaks(flat, make=way), find_frame_peaks(stack, finder=finder)
    assert len(a) == len(b) > 40 and b["frame"].eq(0).all()
    pd.testing.assert_frame_equal(
        a.drop(columns="frame"), b.drop(columns=["frame", "panel"]), rtol=1e-3, check_exact=False
    )
    assert (b["panel"] == a["frame"]).all()
    assert len(find_frame_peaks(stack, make=way)) > 20  # on rings around its beam


def test_masks_pedestals_and_gains(net_file, fresh):
    way, images = peak_way(f"net:{net_file}"), fresh["intensity"].values.astype(np.float32)
    plain = make_frames(images, units="photon", beam_center=fresh.attrs["beam_center"])
    mask = np.ones(images.shape[1:], bool)
    mask[30:60, 20:90] = False
    spoilt = np.where(mask, images, 1e6)
    found = find_frame_peaks(make_frames(spoilt, mask=mask, units="photon", beam_center=(64.5, 63.2)), make=way)
    assert len(found) > 30 and mask[found["ss"].astype(int), found["fs"].astype(int)].mean() > 0.98
    other = make_frames(
        30 * images + 500, units="ADU", gain=30.0, pedestal=500.0, beam_center=fresh.attrs["beam_center"]
    )
    a, b = find_frame_peaks(plain, make=way), find_frame_peaks(other, make=way)
    assert abs(len(b) / len(a) - 1) < 0.1
    assert np.median(b["intensity"]) / np.median(a["intensity"]) == pytest.approx(30, rel=0.1)
    unknown = other.copy()
    del unknown["intensity"].attrs["gain"]
    assert len(find_frame_peaks(unknown, make=way)) > 0.8 * len(a)  # a gain is not needed
    empty = make_frames(np.zeros((1, 40, 40), np.int32), units="photon")
    assert len(find_frame_peaks(empty, make=way)) == 0


def test_labels_of_panels_and_of_frames_in_adu(fresh):
    images = fresh["intensity"].values[:, None] * 30.0 + 500
    table = peaks_table(fresh)[["frame", "fs", "ss", "intensity", "sigma", "background"]].assign(panel=0)
    table[["intensity", "sigma", "background"]] *= 30
    fs, ss = np.array([[1e-4, 0, 0]]), np.array([[0, 1e-4, 0]])
    panels = {"origin": np.array([[-0.0064, -0.0064, 0.1]]), "fs": fs, "ss": ss}
    words = dict(units="ADU", gain=30.0, pedestal=500.0, panels=panels, wavelength=1.0)
    ds = make_frames(images.astype(np.float32), peaks=table, **words)
    windows = labelled_windows(ds, each=2)
    assert len(windows.windows) == 8 and not windows.poisson
    plain = labelled_windows(fresh, each=2)
    assert spots_of(ds)["intensity"].sum() == pytest.approx(spots_of(fresh)["intensity"].sum(), rel=1e-3)
    for some in (windows, plain):
        x, target, weight = some.pair(np.random.default_rng(0), 64)
        assert x.shape == (2, 64, 64) and target.shape == weight.shape == (64, 64) and np.isfinite(x).all()
    assert plain.poisson and max(w.counts.max() for w in windows.windows) < 2 * fresh["intensity"].values.max()


def test_places_off_the_ring_and_at_the_edge():
    image = np.full((20, 30), 4.0)
    finder = make_finder(make_frames(image[None].astype(np.float32), units="photon"))
    told = peaks_of_places(finder, image, np.array([0.0, 29.99, 15.2]), np.array([0.0, 19.9, 10.1]))
    assert np.abs(told["intensity"]).max() < 1e-6 and np.allclose(told["background"], 4) and (told["pixels"] == 1).all()
    assert len(peaks_of_places(finder, image, np.zeros(0), np.zeros(0))["fs"]) == 0


def test_in_a_stream(shots, net_file, tmp_path):
    word, folder = f"peaks=net:{net_file}", tmp_path / "net"
    argv = ["stream", str(shots), "--idle", "0.1", "--page", "0", "-o"]
    assert main([*argv, str(folder), word]) == 0
    Stream(StreamPlan(str(shots), idle=0.1, page=0), tmp_path / "classical")()
    ours, theirs = (read_answers(tmp_path / n) for n in ("net", "classical"))
    expected = find_frame_peaks(xd.open_frames(shots), make=peak_way(f"net:{net_file}"))
    assert (
        len(ours) == 24
        and ours["peaks"].tolist() == expected.groupby("frame").size().reindex(range(24), fill_value=0).tolist()
    )
    assert (ours["peaks"] != theirs["peaks"]).any() and not ours["why"].any()
    assert len(read_answers(folder, "peaks")) == len(expected)
    assert main([*argv, str(folder), word]) == 0  # the same question again
    with pytest.raises(BadInput, match="stream with peaks net:"):
        Stream(StreamPlan(str(shots), idle=0.1, page=0), folder)
    with pytest.raises(BadInput, match="does not exist"):
        Stream(StreamPlan(str(shots), peaks="net:nowhere"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_in_index_and_inspect(shots, net_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    word = f"peaks=net:{net_file}"
    assert main(["data", "index", str(shots), "--frames", "0:4", "--controls", "10", word]) == 0
    table = pd.read_csv("shots-indexed.csv")
    expected = find_frame_peaks(xd.open_frames(shots), range(4), make=peak_way(f"net:{net_file}"))
    assert table["peaks"].tolist() == expected.groupby("frame").size().reindex(range(4), fill_value=0).tolist()
    again = xd.index(xd.open_frames(shots).isel(frame=slice(0, 4)), controls=10, peaks=f"net:{net_file}")
    assert again.table["peaks"].tolist() == table["peaks"].tolist()
    capsys.readouterr()
    assert main(["data", "inspect", str(shots), "--frame", "1", word]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("peaks found"))
    assert line.split()[-1] == str((expected["frame"] == 1).sum()) and Path("shots-1.png").stat().st_size
    assert main(["data", "inspect", str(shots), "peaks=classical", "--no-png"]) == 0
    for argv in (["data", "index", str(shots)], ["data", "inspect", str(shots)], ["stream", str(shots)]):
        assert main([*argv, "peaks=net:gone.safetensors"]) == 2
        assert "gone.safetensors does not exist (expected the file of a peak network" in capsys.readouterr().err
    assert main(["data", "convert", str(shots), "b.h5", "peaks=classical"]) == 2
    assert "this command finds no peaks" in capsys.readouterr().err
