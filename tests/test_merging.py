"""`xrddiff merge`: files that other programs read, sources of every kind, and refusals that lose nothing."""

from __future__ import annotations

import re
import subprocess

import gemmi
import numpy as np
import pandas as pd
import pytest
from conftest import measured

from xrddiff.app.verbs.main import main
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import frame_peaks
from xrddiff.judge.inference.merges import MergePlan, gather_reflections, merge_data
from xrddiff.physics.indexing.expected_intensities import merged_intensities
from xrddiff.physics.indexing.indexer import index_frames
from xrddiff.physics.indexing.known_lattices import known_lattices
from xrddiff.physics.indexing.reflections import reflection_table
from xrddiff.physics.indexing.series import index_series
from xrddiff.physics.indexing.stream import write_stream
from xrddiff.physics.merging.files import read_dials, read_unmerged_mtz, write_unmerged_mtz
from xrddiff.physics.merging.merged import merge_reflections
from xrddiff.physics.merging.observations import OVERLAPPED
from xrddiff.physics.merging.statistics import half_set_agreement, shell_table
from xrddiff.physics.merging.symmetry import asymmetric_unit, space_group
from xrddiff.physics.simulation.crystal import reflections
from xrddiff.physics.simulation.experiments import find_experiment
from xrddiff.physics.simulation.simulate import simulate
from xrddiff.run.execution.comparing import save_merged


@pytest.fixture(scope="module")
def stills():
    return simulate("sim-422", range(24), seed=1)


@pytest.fixture(scope="module")
def table(stills):
    return reflection_table(stills, index_frames(stills, lattices=1, controls=30))


@pytest.fixture(scope="module")
def truth():
    crystal = find_experiment("sim-422").sample.crystal
    every = reflections(crystal, 2.0)
    hkl = asymmetric_unit(every.hkl, space_group(crystal.space_group)).hkl
    return pd.DataFrame(hkl, columns=list("hkl")).assign(f2=every.f2).drop_duplicates(list("hkl"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, stills):
    """Frames, their stream, and what `xrddiff merge` made of the frames."""
    place = tmp_path_factory.mktemp("merging")
    save_frames(stills, place / "shots.h5")
    write_stream(place / "shots.stream", stills, index_series(stills, lattices=1, controls=30), "shots.h5")
    assert main(["merge", str(place / "shots.h5"), "-o", str(place / "merged"), "--draws", "10", "--shells", "5"]) == 0
    return place


def test_expected_intensities_have_the_centring_of_the_frames(stills):
    merged = merged_intensities(stills.assign_attrs(space_group="C 2 2 21"), limit=6)
    assert merged.cell.centring == "C"
    assert not (merged.hkl[:, 0] + merged.hkl[:, 1] & 1).any()


def test_spots_that_touch_have_their_own_photons():
    """On frames of 128 pixels half of the spots touch another one."""
    frames = simulate("sim128", range(40), seed=3)
    none = pd.DataFrame({name: np.zeros(0) for name in ("frame", "fs", "ss")})
    table = reflection_table(frames, known_lattices(frames, peaks=none))
    rows = []
    for i, own in table.groupby("frame"):
        peaks = frame_peaks(frames, int(i))
        away = np.hypot(*(own[n].to_numpy()[:, None] - peaks[n].to_numpy() for n in ("fs", "ss")))
        nearest = away.argmin(1)
        found = own.assign(true=peaks["intensity"].to_numpy()[nearest])
        rows.append(found[(away.min(1) < 0.1) & (abs(own["d"] / peaks["d"].to_numpy()[nearest] - 1) < 2e-3)])
    known = pd.concat(rows)
    pull = (known["intensity"] - known["true"]) / known["sigma"]
    for flag in (0, OVERLAPPED):
        own = pull[known["flag"] == flag]
        spread = 1.4826 * (own - own.median()).abs().median()
        assert len(own) > 500 and abs(own.mean()) < 0.25 and 0.95 < spread < 1.15, flag


def test_partialities_come_nearer_to_the_truth_than_means(table, truth):
    cc = {}
    for method in ("mean", "partial"):
        merged = merge_reflections(table, method)
        known = merged.table[merged.table["count"] >= 2].merge(truth, on=list("hkl"))
        cc[method] = np.corrcoef(known["intensity"], known["f2"])[0, 1]
        # an average of partial spots has a scatter that no error model knows
        assert (abs(merged.chi_squared() - 1) < (0.15 if method == "partial" else 0.2)).all()
    assert cc["partial"] > 0.975 > cc["mean"]


def test_posteriors_come_nearer_still_and_their_intervals_hold_the_truth(folder, table, truth):
    words = ["--method", "posterior", "--draws", "5", "--shells", "5", "-o", str(folder / "posterior")]
    assert main(["merge", str(folder / "merged" / "unmerged.mtz"), *words]) == 0
    written = pd.read_csv(folder / "posterior" / "posterior.csv")
    mtz = gemmi.read_mtz_file(str(folder / "posterior" / "merged.mtz"))
    assert {"IPOST", "SIGIPOST", "ILOW", "IHIGH", "F", "SIGF"} <= {*mtz.column_labels()}
    assert np.isfinite(mtz.column_with_label("F").array).sum() == len(written)
    merged = merge_reflections(table, "posterior", group=space_group("P 43 21 2"))
    both = merged.posterior.table.merge(truth.rename(columns={"f2": "true"}), on=list("hkl"))
    both = both.merge(merged.table[["h", "k", "l", "intensity"]], on=list("hkl"))
    assert np.corrcoef(both["f2"], both["true"])[0, 1] > np.corrcoef(both["intensity"], both["true"])[0, 1] + 0.005
    strong = both[both["f2"] > 10 * both["sigma_f2"]]
    slope, start = np.polyfit(strong["d"] ** -2.0, np.log(strong["f2"] / strong["true"]), 1)
    real = both["true"] * np.exp(start + slope * both["d"] ** -2.0)
    assert 0.85 < ((both["low"] <= real) & (real <= both["high"])).mean() < 0.95
    cell, group = (79.1, 79.1, 37.9, 90, 90, 90), space_group("P 43 21 2")
    read = read_unmerged_mtz(write_unmerged_mtz(merged, folder / "again.mtz", cell, group))[0]
    again = merge_reflections(read, "posterior", group=group).posterior.table
    same = again.merge(merged.posterior.table, on=list("hkl"), suffixes=("", "_first"))
    off = (same["f2"] - same["f2_first"]).abs() / same["sigma_f2"]
    assert len(same) > 0.99 * len(again) and off.median() < 0.05 and off.quantile(0.99) < 0.4


def test_the_files_are_those_of_other_programs(folder):
    merged = gemmi.read_mtz_file(str(folder / "merged" / "merged.mtz"))
    assert merged.spacegroup.hm == "P 43 21 2" and {"IMEAN", "SIGIMEAN", "I(+)", "SIGI(-)"} <= {*merged.column_labels()}
    raw, _, group, *_ = read_unmerged_mtz(folder / "merged" / "unmerged.mtz")
    assert group.hm == "P 43 21 2" and raw["frame"].nunique() == len(
        gemmi.read_mtz_file(str(folder / "merged" / "unmerged.mtz")).batches
    )
    assert (
        (folder / "merged" / "merged.hkl")
        .read_text()
        .startswith("CrystFEL reflection list version 2.0\nSymmetry: 4/mmm\n")
    )
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder / "merged").returncode == 0
    shells = pd.read_csv(folder / "merged" / "shells.csv", index_col="shell")
    assert len(shells) == 6 and (shells["cc_half_low"] <= shells["cc_half"]).all()
    assert (shells["completeness"] <= 1).all()  # no shell holds more than is possible


def test_nothing_is_written_over(folder, capsys):
    before = (folder / "merged" / "merged.mtz").read_bytes()
    assert main(["merge", str(folder / "shots.h5"), "-o", str(folder / "merged")]) == 2
    assert "exists already" in capsys.readouterr().err and (folder / "merged" / "merged.mtz").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "-3"], "limit is -3; expected 1 or more frames"),
        (["--distance-range", "nan"], "distance_range is nan; expected 0 to 0.5"),
        (["--distance-range", "5"], "distance_range is 5.0; expected 0 to 0.5"),
        (["-o", "shots.h5/merged"], "is not a folder"),
        (["-o", "n" * 300], "too long"),
    ],
)
def test_mistakes_are_said_before_the_work(folder, words, said, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert main(["merge", "shots.h5", *words]) == 2
    assert said in capsys.readouterr().err and sorted(folder.iterdir()) == before


def test_a_folder_of_a_merge_is_whole_or_not_there(folder, tmp_path, monkeypatch):
    found = merge_data(MergePlan(str(folder / "merged" / "unmerged.mtz"), draws=2))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("xrddiff.physics.merging.files.write_hkl", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_merged(found, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_stream_merges_to_what_its_frames_do(folder, truth):
    found = merge_data(MergePlan(str(folder / "shots.stream"), group="P 43 21 2", draws=5))
    known = found.merged.table[found.merged.table["count"] >= 2].merge(truth, on=list("hkl"))
    assert np.corrcoef(known["intensity"], known["f2"])[0, 1] > 0.97
    again = merge_data(MergePlan(str(folder / "merged" / "unmerged.mtz"), draws=5))
    assert again.summary["crystals"] > 15


def test_axes_in_another_order_are_put_right(stills, table, truth):
    """What a search finds first, 37.9, 79.1, 79.2 Å, is not what P 43 21 2 wants."""
    words = dict(cell=(37.9, 79.1, 79.1, 90, 90, 90), lattices=1, controls=30)
    alone = merge_reflections(reflection_table(stills, index_frames(stills, **words, pixels=False))).table
    known = alone[alone["count"] >= 2].merge(truth, on=list("hkl"))
    assert np.corrcoef(known["intensity"], known["f2"])[0, 1] > 0.9
    turned, cc = reflection_table(stills, index_frames(stills, **words)), []
    for observed in (table, turned):
        merged = merge_reflections(observed, "partial").table
        known = merged[merged["count"] >= 2].merge(truth, on=list("hkl"))
        cc.append(np.corrcoef(known["intensity"], known["f2"])[0, 1])
    assert cc[0] > 0.97 and abs(cc[0] - cc[1]) < 1e-4
    with pytest.raises(BadInput, match="does not fit the space group P 63"):
        reflection_table(stills, index_frames(stills, lattices=1, controls=5, frames=range(4)), "P 63")


def test_the_frames_own_cell_is_used(stills):
    assert index_frames(stills, frames=range(3), controls=5).cell.parameters == tuple(stills.attrs["unit_cell"])


def test_observations_in_a_table_merge(folder, table, tmp_path):
    table.to_csv(file := tmp_path / "observations.csv", index=False)
    found = merge_data(MergePlan(str(file), "79.1,79.1,37.9,90,90,90", "P 43 21 2", draws=5))
    assert found.summary["reflections"] > 1000
    with pytest.raises(BadInput, match="does not say its cell"):
        merge_data(MergePlan(str(file), group="P 43 21 2"))


def test_equivalent_indices_of_a_table_are_one_reflection(table, tmp_path):
    """Also without d, and in the order in which another program wrote them."""
    words = dict(cell="79.1,79.1,37.9,90,90,90", group="P 43 21 2", method="mean", draws=2)
    columns = ["frame", "h", "k", "l", "intensity", "sigma"]
    table[[*columns, "d"]].to_csv(tmp_path / "unique.csv", index=False)
    mates = table[columns].copy()
    mates[["h", "k", "l"]] *= np.where(np.arange(len(mates)) % 2, 1, -1)[:, None]
    mates.to_csv(tmp_path / "mates.csv", index=False)
    unique, found = (merge_data(MergePlan(str(tmp_path / f"{name}.csv"), **words)) for name in ("unique", "mates"))
    assert found.summary["reflections"] == unique.summary["reflections"]
    assert found.summary["cc_half"] == pytest.approx(unique.summary["cc_half"], abs=0.02)


def test_rows_without_numbers_are_counted(table, tmp_path):
    """Words where a number should be, and d of 0: the rows without an intensity are left out and said, d is that of the cell."""
    odd = (
        table[["frame", "h", "k", "l", "d", "intensity", "sigma"]].astype({"intensity": object}).reset_index(drop=True)
    )
    odd.loc[:4, "intensity"], odd.loc[5:9, "sigma"], odd.loc[10, "d"] = "bright", 0, 0
    odd.to_csv(tmp_path / "odd.csv", index=False)
    plan = MergePlan(str(tmp_path / "odd.csv"), "79.1,79.1,37.9,90,90,90", "P 43 21 2", method="mean", draws=2)
    gathered = gather_reflections(plan)
    assert (
        gathered.notes[0].startswith(f"10 of {len(table)} rows have no intensity") and (gathered.table["d"] > 1).all()
    )
    with pytest.raises(BadInput, match="shells is 2.5; expected a whole number"):
        MergePlan("odd.csv", shells=2.5)


def test_a_cell_without_its_centring_has_that_of_the_group(stills):
    frames = stills.isel(frame=slice(0, 2))
    with pytest.raises(BadInput, match="centred otherwise"):
        merge_data(MergePlan("shots", "79.1,79.1,37.9,90,90,90,I", "P 43 21 2"), frames)
    with pytest.raises(BadInput, match="describes a file"):
        merge_data(MergePlan("shots", words={"gain": 2}), frames)


def damaged_mtz(folder, path):
    path.write_bytes((folder / "merged" / "unmerged.mtz").read_bytes()[:3000])


def foreign_stream(folder, path):
    path.write_text("CrystFEL stream format 2.3\n----- Begin chunk -----\nEvent: //0\n----- End chunk -----\n")


def one_crystal(folder, path):
    raw = (folder / "shots.stream").read_text().split("----- Begin chunk -----")
    first = next(chunk for chunk in raw[1:] if "Begin crystal" in chunk)
    path.write_text(raw[0] + "----- Begin chunk -----" + first)


def stream_without_axes(folder, path):
    lines = (folder / "shots.stream").read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "star = " not in line))


def stream_of_huge_indices(folder, path):
    text = (folder / "shots.stream").read_text()
    head, rows, rest = text.partition("fs/px  ss/px panel\n")
    assert rows
    path.write_text(head + rows + re.sub(r"^ *-?\d+", "9999999999", rest, count=1))


def table_of_names(folder, path):
    path.write_text("frame,h,k,l,d,intensity,sigma\nrun-1,1,2,3,10,5,1\n")


def table_of_halves(folder, path):
    path.write_text("frame,h,k,l,d,intensity,sigma\n1,1.5,2,3,10,5,1\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shots.stream", "--cell", "50,60,70,90,90,90"], "has the cell"),
        (["shots.stream", "--limit", "5"], "limit would change nothing"),
        (["shots.stream", "gain=3"], "gain would change nothing"),
        (["merged/unmerged.mtz", "--cell", "50,60,70,90,90,90"], "has the cell"),
        (["merged/unmerged.mtz", "--space-group", "P 21 21 21"], "has the space group P 43 21 2"),
    ],
)
def test_what_would_be_passed_over_is_refused(folder, words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    group = [] if "--space-group" in words else ["--space-group", "P 43 21 2"]
    assert main(["merge", *words, *group, "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (damaged_mtz, "u.mtz", "u.mtz"),
        (foreign_stream, "f.stream", "no integrated reflections"),
        (one_crystal, "one.stream", "expected two or more"),
        (stream_without_axes, "bare.stream", "reciprocal axes"),
        (stream_of_huge_indices, "huge.stream", "whole indices"),
        (table_of_names, "names.csv", "frame of observation 1 is nan; expected a whole number"),
        (table_of_halves, "halves.csv", "h of observation 1 is 1.5; expected a whole number"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_a_sentence(folder, tmp_path, capsys, make, name, said):
    make(folder, tmp_path / name)
    words = [] if name.endswith("mtz") else ["--space-group", "P 43 21 2", "--cell", "79.1,79.1,37.9,90,90,90"]
    assert main(["merge", str(tmp_path / name), *words, "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what a batch of few observations may say


def few_a_batch(each: float, *, stills: bool, batches: int = 180, seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    """Observations of batches that have about `each`, of which each reflection has about twelve; and the true intensities."""
    rng = np.random.default_rng(seed)
    m = max(60, int(each * batches / 12))
    d = rng.uniform(0.9, 8, m)
    true = rng.exponential(400 * np.exp(-3 / d**2))
    hkl = np.column_stack([np.arange(m) + 1, np.zeros((m, 2), int)])
    turn = np.linspace(0, 1, batches)
    log_scale, b = 0.4 * np.sin(5 * turn) + 0.2 * np.cos(13 * turn), 2 * np.sin(3 * turn + 1)
    if stills:
        log_scale, b = rng.normal(0, 0.5, batches), rng.normal(0, 3, batches)
    count = rng.poisson(each, batches).clip(1)
    frame = np.repeat(np.arange(batches), count)
    of = np.concatenate([rng.permutation(m)[:n] for n in count])
    mean = np.exp(log_scale[frame] - b[frame] / (2 * d[of] ** 2)) * true[of]
    sigma = np.sqrt(mean + 30)
    table = pd.DataFrame(hkl[of], columns=["h", "k", "l"]).assign(
        frame=frame, crystal=0, intensity=rng.normal(mean, np.hypot(sigma, 0.03 * mean)), sigma=sigma, d=d[of], isym=1
    )
    table = table if stills else table.assign(sweep=0)
    return table, pd.Series(true, pd.MultiIndex.from_arrays(hkl.T, names=["h", "k", "l"]))


def cc_to(merged, truth: pd.Series) -> float:
    both = pd.concat([merged.table.set_index(["h", "k", "l"])["intensity"], truth], axis=1, join="inner").dropna()
    return float(np.corrcoef(both.to_numpy().T)[0, 1])


@pytest.mark.parametrize("stills", [False, True])
@pytest.mark.parametrize("each", [2, 5, 10, 50])
def test_what_is_printed_agrees_with_the_truth_however_few_observations_a_batch_has(each, stills):
    """CC* of halves that are scaled apart is the correlation to the truth, or less; and both are high."""
    table, truth = few_a_batch(each, stills=stills)
    merged = merge_reflections(table, "mean")
    told, real = half_set_agreement(merged.table)["cc_star"], cc_to(merged, truth)
    assert real > 0.985 and told < real + 0.01


def test_images_of_a_sweep_are_not_scaled_freely():
    table, truth = few_a_batch(2, stills=False)
    free = merge_reflections(table.drop(columns="sweep"), "mean")
    assert cc_to(merge_reflections(table, "mean"), truth) > cc_to(free, truth)


def test_quartz_with_one_image_a_batch_is_as_dials_has_it():
    folder = measured("processed/quartz__scaled.refl").parent
    scaled = read_dials(folder / "quartz__scaled.refl").table
    w = scaled["sigma"] ** -2.0
    sums = scaled.assign(w=w, wi=w * scaled["intensity"]).groupby(["h", "k", "l"])[["w", "wi"]].sum()
    for name, least in (("integrated", 0.99), ("scaled", 0.999)):
        result = merge_data(MergePlan(str(folder / f"quartz__{name}.refl"), draws=20))
        assert cc_to(result.merged, sums["wi"] / sums["w"]) > least
        said = " ".join(result.notes)
        assert "1 sweep of 101 images" in said and "indexed in one" in said and "without partialities" in said


def test_a_sweep_keeps_its_angles_in_files_of_its_own(tmp_path):
    found = read_dials(measured("processed/quartz__scaled.refl"))
    merged = merge_reflections(found.table, "mean", rounds=2)
    again = read_unmerged_mtz(write_unmerged_mtz(merged, tmp_path / "again.mtz", found.cell, found.group)).table
    images = found.table.groupby("frame")[["phi", "phi_end"]].first()
    assert np.allclose(images["phi"], images.index - 50, atol=0.02)  # as its .expt says: from -50°, 1° an image
    assert set(again["sweep"]) == {0}
    assert np.allclose(again.groupby("frame")[["phi", "phi_end"]].first(), images, atol=1e-4)


def test_more_reflections_than_there_are_is_refused():
    table, _ = few_a_batch(10, stills=True)
    every = np.indices((5, 5, 5)).reshape(3, -1).T - 2
    every = every[every.any(1)]
    of = every[np.arange(len(table)) % len(every)]  # all of a sphere, in a group whose unit is a small part of it
    d = 20 / np.linalg.norm(of, axis=1)
    merged = merge_reflections(table.assign(h=of[:, 0], k=of[:, 1], l=of[:, 2], d=d), "mean")
    with pytest.raises(BadInput, match="not in the asymmetric unit"):
        shell_table(merged, (20, 20, 20, 90, 90, 90), gemmi.SpaceGroup("P 4 3 2"), shells=1, d_min=6.0)
