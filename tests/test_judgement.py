"""Judging samples: sets without peaks, too few frames, conditions, what was asked for and got, words, and the page that shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from browser import chromium

from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput, XrddiffError
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.selection import select_frames
from xrddiff.judge.inference.evaluation import samples_of
from xrddiff.judge.inference.judges import ConditionJudges, asked_of_all, label_classes
from xrddiff.judge.metrics.baselines import scene_again
from xrddiff.judge.metrics.conditions import (
    FoundConditions,
    answer_table,
    answer_words,
    class_answer,
    confusion_matrix,
    number_answer,
    same_condition,
)
from xrddiff.judge.metrics.corruptions import blur
from xrddiff.judge.metrics.distribution import DISTANCES, times_floor
from xrddiff.judge.metrics.diversity import wilson_interval
from xrddiff.judge.metrics.judgement import Judgement, judge_samples, judge_summaries, judged_rows
from xrddiff.judge.metrics.physics import summarise_physics
from xrddiff.judge.metrics.reconstruction import score_scene
from xrddiff.judge.metrics.set_summaries import Ruler
from xrddiff.judge.metrics.verdict import verdict_of
from xrddiff.judge.views.judgement import add_generation, generation_pictures
from xrddiff.judge.views.report import Report
from xrddiff.judge.views.samples import origin_of
from xrddiff.learn.loading.datasets import prepare_frames
from xrddiff.learn.recipes.classifiers import fit_classifier, open_classifier, save_classifier
from xrddiff.physics.simulation.simulate import simulate


def blobs(n, seed=0):
    """Plain images without geometry and without a peak: one broad blob each, in noise of ±1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    at = rng.uniform(12, 20, (n, 2, 1, 1))
    smooth = 40 * np.exp(-((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2) / 128)
    return make_frames((100 + smooth.round() + rng.integers(-1, 2, (n, 32, 32))).astype(np.float32))


def words_of(judgement):
    """Everything that is said about the samples, the verdict first."""
    return [words for _, words in verdict_of(judgement).lines]


@pytest.fixture(scope="module")
def plain():
    return blobs(48)


@pytest.fixture(scope="module")
def stills():
    return simulate("sim128", range(96))


def page_of(judgement, real, samples, tmp_path):
    report = Report("a run")
    add_generation(report, judgement, generation_pictures(judgement, real, samples, 9))
    report.write(tmp_path, dpi=40)
    return (tmp_path / "report.md").read_text()


# ---------------------------------------------------------------- what has no number


def test_no_peaks_anywhere_is_a_reason_and_the_rest_stands(plain, tmp_path):
    samples = select_frames(plain, range(36, 48))
    judgement = judge_samples(plain, range(24), range(24, 36), samples, expected=False, splits=4)
    assert judgement.why["peak_count"] == "no peaks in the held-out frames"
    table = judgement.table()
    assert (
        np.isnan(table["peak count"]["samples / floor of reference frames"])
        and table["radial profile"]["samples / floor of reference frames"] < 3
    )
    text = page_of(judgement, select_frames(plain, range(24, 36)), samples, tmp_path)
    assert "Peak count: no peaks in the held-out frames." in text
    row = next(line for line in text.splitlines() if line.startswith("| peak count"))
    assert row.endswith("| – |")
    json.dumps(judgement.record())


def test_peaks_where_real_frames_have_none_are_told(plain, tmp_path):
    values = select_frames(plain, range(36, 48))["intensity"].values.copy()
    for image, (y, x) in zip(values, np.random.default_rng(1).integers(3, 28, (12, 2)), strict=True):
        image[y : y + 2, x : x + 2] += 500
    samples = make_frames(values)
    judgement = judge_samples(plain, range(24), range(24, 36), samples, expected=False, splits=4)
    assert np.isnan(judgement.ratio("peak_count"))
    assert any("too many peaks" in text and "reference frames 0–0" in text for text in words_of(judgement))
    page_of(judgement, select_frames(plain, range(24, 36)), samples, tmp_path)


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_samples_are_shown_and_the_reason_told(plain, tmp_path, count):
    samples = select_frames(plain, range(count))
    judgement = judge_samples(plain, range(24), range(24, 36), samples, expected=False)
    assert (
        judgement.rows == {}
        and judgement.table() == {}
        and f"{count} samples; at least 4" in judgement.why["distances"]
    )
    text = page_of(judgement, select_frames(plain, range(24, 36)), samples, tmp_path)
    assert "at least 4 of each can be compared" in text and "![Distributions]" in text and "## Peaks in a frame" in text


def test_a_set_that_is_not_there_is_a_reason(plain):
    ruler = Ruler(plain)
    seen = {name: ruler.measure(plain) for name in ("train", "samples")}
    judgement = judge_summaries(seen, ruler)
    assert "no held-out frames; at least 4" in judgement.why["distances"] and judgement.copies is None


def test_frames_of_zeros_have_no_profile():
    dark = make_frames(np.zeros((24, 16, 16), np.float32))
    with np.errstate(all="raise"):
        judgement = judge_samples(dark, range(8), range(8, 16), select_frames(dark, range(16, 24)), expected=False)
    assert judgement.why["profile"] == "the reference frames have no intensity" and set(judgement.why) == {
        *DISTANCES,
        "two-sample AUC",
    }
    assert np.isnan(times_floor(1.0, 0.0)) and np.isnan(times_floor(1.0, np.nan)) and times_floor(3.0, 2.0) == 1.5


# ---------------------------------------------------------------- ceilings of an autoencoder (data.topk)


def test_thinned_frames_have_no_expected_counts_but_a_second_measurement(stills):
    thinned = prepare_frames(stills, topk=0.5)
    measured = select_frames(thinned.frames, [0, 1])
    again = thinned.regions.apply(scene_again(stills, [0, 1]))
    assert list(score_scene(measured, again)) == ["same scene measured again"]
    whole = prepare_frames(stills)
    again = whole.regions.apply(scene_again(stills, [0, 1]))
    rows = score_scene(select_frames(whole.frames, [0, 1]), again)
    assert list(rows) == ["true expected counts", "same scene measured again"]


# ---------------------------------------------------------------- words and pictures


def test_too_few_peaks_are_told_with_their_range(stills, tmp_path):
    smooth = stills["intensity"].rolling(x=5, y=5, center=True, min_periods=1).mean().round()
    samples = select_frames(stills, range(64, 96)).assign(intensity=smooth[64:].astype(np.float32))
    samples["intensity"].attrs = stills["intensity"].attrs
    judgement = judge_samples(stills, range(40), range(40, 64), samples, expected=False, splits=8)
    words = next(text for text in words_of(judgement) if "too few peaks: " in text)
    high = judgement.peaks().loc["held out", "95%"]
    assert f"reference frames 0–{high:.0f}" in words
    text = page_of(judgement, stills, samples, tmp_path)
    assert words in text and "| held out |" in text and "share without any" in text


def test_frames_that_index_stand_beside_real_ones(stills, tmp_path):
    """Their share, with its interval, is a row of the summary, a section of the report and, if it is off, a sentence."""
    real, samples = select_frames(stills, range(24)), select_frames(stills, range(24, 36))
    words = judge_samples(stills, range(36, 60), range(24), samples, expected=False, splits=2)
    shares = {"held out": [1.0] * 30, "samples": [0.0] * 20 + [1.0] + [np.nan] * 9}
    lattices = {name: summarise_physics(pd.DataFrame({"indexed": share})) for name, share in shares.items()}
    judgement = replace(words, lattices=lattices)
    assert judgement.table()["frames that index"] == {"samples": pytest.approx(1 / 21), "held out": 1.0}
    assert "fewer frames index: 5%, in the reference 100%." in words_of(judgement)[0]
    text = page_of(judgement, real, samples, tmp_path)
    rows = [line for line in text.partition("## Frames that index")[2].splitlines() if line.startswith("| ")]
    header, made = (next(r for r in rows if r.startswith(f"| {name}")).split("|") for name in ("", "samples"))
    found = dict(zip((h.strip() for h in header), made, strict=True))
    low, high = wilson_interval(1 / 21, 21)
    assert float(found["from"]) == pytest.approx(low, rel=0.01) and float(found["to"]) == pytest.approx(high, rel=0.01)
    assert float(found["frames with enough peaks"]) == 0.7
    json.dumps(judgement.record())
    missing = page_of(replace(words, why={"rate": "there is no cell"}), real, samples, tmp_path)
    assert "Frames that index: there is no cell." in missing and "Rate:" not in missing


def test_the_floor_is_drawn_at_one(stills):
    judgement = judge_samples(stills, range(40), range(40, 70), select_frames(stills, range(70, 96)), expected=False)
    ratios = judgement.ratios()
    assert list(ratios.index) == ["samples", "reference frames"]
    assert (ratios.loc["reference frames", list(DISTANCES)] == 1).all()
    rows = judgement.rows | {"autoencoder": judgement.rows["samples"]}
    latent = Judgement(rows, judgement.summaries, judgement.copies, judgement.scale)
    assert list(latent.ratios().index) == ["samples", "reconstructions", "reference frames"]
    row = latent.distances()["radial profile"]
    assert row["samples / floor of reference frames"] == judgement.ratio("profile")
    assert row["samples / floor of the autoencoder"] == 1 == latent.ratio("profile", "autoencoder")


def test_simulated_frames_are_called_so(stills, plain):
    assert origin_of(stills) == "simulated" and origin_of(plain) == "measured"
    assert origin_of(prepare_frames(stills, avg_pooling=True, pool=2).frames) == "simulated"
    picture = generation_pictures(None, stills, stills, 4)["samples"]
    assert picture.axes[0].get_title() == "simulated"
    assert len(generation_pictures(None, None, stills, 4)["samples"].axes) == 2  # the set alone and its colour bar


# ---------------------------------------------------------------- conditions


def test_the_same_condition():
    known = {"kind": np.array([0, 1, 1, -1]), "size": np.array([1.0, 1.2, np.nan, 1.0])}
    fields = {"kind": 2, "size": [1.0, 0.5]}
    assert same_condition(known, {"kind": 1}, fields).tolist() == [False, True, True, False]
    assert same_condition(known, {"size": 1.0}, fields).tolist() == [True, True, False, True]
    assert same_condition(known, {"size": 1.5}, fields).tolist() == [False] * 4


def test_answers_of_any_parts_are_the_answers_of_all():
    rng = np.random.default_rng(0)
    number, asked, got = rng.permutation(20), rng.integers(0, 3, 20), rng.integers(0, 3, 20)
    whole = FoundConditions(number, {"kind": asked}, {"kind": got}).merge()
    cut = [
        FoundConditions(number[s], {"kind": asked[s]}, {"kind": got[s]})
        for s in (slice(0, 7), slice(7, 8), slice(8, 20))
    ]
    parts = cut[1].merge(cut[2], cut[0])
    assert (whole.number == np.arange(20)).all() and len(parts) == 20
    assert all((getattr(whole, w)["kind"] == getattr(parts, w)["kind"]).all() for w in ("asked", "got"))


def test_a_class_that_no_held_out_frame_has_is_a_reason():
    held_out = np.array([[5, 0, 0], [1, 4, 0], [0, 0, 0]])
    answer = class_answer(list("abc"), confusion_matrix(np.array([0, 2]), np.array([0, 2]), 3), held_out)
    assert answer["why"] == "no held-out frames of c" and answer_table(answer).loc["c", "got it"] == "100%"
    assert answer_words("kind", answer) == "kind: not told, no held-out frames of c."
    nothing = class_answer(list("ab"), np.zeros((2, 2), int), np.eye(2, dtype=int))
    assert nothing["why"] == "no samples of a known class" and len(answer_table(nothing)) == 0
    assert class_answer(list("ab"), np.eye(2, dtype=int), np.eye(2, dtype=int)[::-1])["why"].startswith(
        "the classifier is right about no"
    )


def test_classes_with_the_wrong_number_of_peaks_are_told():
    answer = class_answer(["blank", "hit"], np.diag([6, 5]), np.diag([5, 5]))
    real = {"5%": 0.0, "50%": 0.0, "95%": 1.0, "mean": 0.1, "none": 0.9}
    answer["peaks"] = {"blank": {"samples": real | {"50%": 12.0}, "held out": real}, "hit": {"samples": real}}
    words = answer_words("hit_class", answer)
    assert words.endswith("hit_class=blank: 12 peaks in the median sample, 0 (0–1) in held-out frames.")
    answer["peaks"]["blank"]["samples"] = real
    assert "peaks" not in answer_words("hit_class", answer)


def test_numbers_asked_for_and_got():
    found = number_answer(np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.5, 2.5, np.nan, 1.0]), "Å")
    assert found["measured"] == 2 and found["median_difference"] == 0.5 and found["correlation"] > 0.99
    assert number_answer(np.ones(4), np.arange(4.0))["correlation"] is None
    assert "0 of 4" in number_answer(np.ones(4), np.full(4, np.nan))["why"]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(frames of two kinds ready to be judged, a plan, a run folder that keeps the judge)."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    values, kind = rng.poisson(0.3, (96, 32, 32)).astype(np.float32), np.arange(96) // 2 % 2
    for i in np.flatnonzero(kind):
        for y, x in rng.integers(2, 28, (8, 2)):
            values[i, y : y + 2, x : x + 2] += 15
    about = dict(flag_values=[0, 1], flag_meanings="blank hit")
    frames = make_frames(values).assign(kind=("frame", kind, about), size=("frame", np.linspace(1, 2, 96)))
    return prepare_frames(frames), compose_plan([]), tmp_path_factory.mktemp("judged")


def test_a_judge_is_trained_once_and_kept_with_the_run(told):
    prepared, plan, run = told
    fields = {"kind": 2, "size": [1.5, 0.3]}
    judges = ConditionJudges(run, plan, prepared, fields)
    assert judges.kept.open("kind") is None
    judges.fit()
    kept = sorted(p.relative_to(run).as_posix() for p in (run / "judge").rglob("*") if p.is_file())
    assert any(name.endswith("model.safetensors") for name in kept) and not any("pkl" in n or ".pt" in n for n in kept)
    other = ConditionJudges(run, plan, prepared, fields)  # a worker: it opens what is there
    samples = select_frames(prepared.frames, prepared.held_out).assign(
        sample=("frame", np.arange(len(prepared.held_out)))
    )
    a, b = (j.measure(samples, samples) for j in (judges, other))
    assert (a.got["kind"] == b.got["kind"]).all() and np.isnan(a.got["size"]).all()
    ruler = Ruler(samples)
    answers = judges.answers(a, {"samples": ruler.measure(samples)})
    assert answers["kind"]["recovery"]["recovery"] == 1 and answers["kind"]["peaks"]["blank"]["samples"]["50%"] == 0
    assert answers["size"]["why"] == "it cannot be measured on a sample"
    swapped = samples.assign(kind=("frame", 1 - samples["kind"].values))
    found = judges.answers(judges.measure(swapped, samples), {"samples": ruler.measure(samples)})["kind"]
    assert found["recovery"]["recovery"] < 0.2
    # other classes than the kept judge was trained on: it does not count
    assert ConditionJudges(run, plan, prepared, {"kind": 3}).kept.open("kind") is None


def test_no_judge_is_trained_where_none_is_wanted_or_possible(told, tmp_path):
    prepared, plan, _ = told
    off = compose_plan(["inference.judge_conditions=false"])
    for words, fields in ((off, {"kind": 2}), (plan, {}), (plan, {"size": [1.5, 0.3]})):
        judges = ConditionJudges(tmp_path, words, prepared, fields)
        judges.fit()
        assert not (tmp_path / "judge").exists() and not judges.why
    one = SimpleNamespace(**{**vars(prepared), "loader": prepared.loader, "train": prepared.train[prepared.frames["kind"].values[prepared.train] == 1]})  # fmt: skip
    judges = ConditionJudges(tmp_path, plan, one, {"kind": 2})
    judges.fit()
    assert "one class of kind" in judges.why["kind"]
    samples = select_frames(prepared.frames, range(4)).assign(sample=("frame", np.arange(4)))
    answers = judges.answers(judges.measure(samples, samples), {"samples": Ruler(samples).measure(samples)})
    assert answers["kind"]["why"] == judges.why["kind"]


def test_what_was_asked_of_a_whole_set_is_read_from_the_samples(plain):
    samples = plain.assign(kind=("frame", np.full(48, 2)), sample=("frame", np.arange(48)))
    asked = samples.assign_attrs(config="inference:\n  condition:\n    kind: multiple\n")
    assert asked_of_all(asked) == {"kind": 2.0}
    for config in ("inference:\n  condition: {}\n", "", "[1", "3"):
        assert asked_of_all(samples.assign_attrs(config=config)) == {}
    assert asked_of_all(samples) == {}


def test_class_names_of_frames_of_the_registry_or_numbers(plain):
    named = plain.assign(digit=("frame", np.zeros(48, int), {"classes": ["0", "nine"]}))
    assert label_classes(named, "digit", 2) == ["0", "nine"]
    assert label_classes(plain, "hit_class", 3) == ["blank", "single", "multiple"]
    assert label_classes(plain, "crystals", 2) == ["0", "1"]


def test_a_classifier_does_not_depend_on_what_was_drawn_before(told, tmp_path):
    prepared = told[0]
    loader = prepared.loader(prepared.train, batch_size=8, prefetch=0)
    torch.manual_seed(1)
    a = fit_classifier(loader, "kind", 2, steps=3, noise="lognormal")
    state = torch.get_rng_state()
    torch.manual_seed(2)
    b = fit_classifier(loader, "kind", 2, steps=3, noise="lognormal")
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    save_classifier(a, tmp_path, "kind", 3)
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(XrddiffError, match="intact"), pytest.warns(UserWarning, match="skipped"):
        open_classifier(tmp_path)
    with pytest.raises(BadInput, match="expected 'knd'"):
        fit_classifier(loader, "knd", 2)


def test_judged_rows_are_spread_evenly():
    rows = judged_rows(range(1000), range(1000, 1010), 10)
    assert len(rows["train"]) == 10 and rows["train"][-1] > 900 and rows["held out"].tolist() == list(range(1000, 1010))


def test_a_set_that_is_not_there_lists_those_that_are(tmp_path):
    (tmp_path / "samples" / "samples.zarr").mkdir(parents=True)
    with pytest.raises(BadInput, match="no samples 'foo'; it has only those made at the end of the run"):
        samples_of(tmp_path, "foo")
    for name in ("blanks", "whole"):
        (tmp_path / "samples" / name / "samples.zarr").mkdir(parents=True)
    with pytest.raises(BadInput, match="no samples 'foo'; expected one of blanks, whole"):
        samples_of(tmp_path, "foo")
    assert samples_of(tmp_path, "whole").is_dir() and samples_of(tmp_path).is_dir()


# ---------------------------------------------------------------- the page


def test_pictures_of_a_report_can_be_enlarged_with_mouse_and_keyboard(plain, tmp_path):
    report = Report("a run")
    add_generation(report, None, generation_pictures(None, plain, plain, 9), why="the frames are elsewhere")
    path = report.write(tmp_path)
    with chromium(700, 500) as page:
        page.goto(path.as_uri())
        width = lambda: page.evaluate("document.querySelector('figure img').getBoundingClientRect().width")  # noqa: E731
        natural = page.evaluate("document.querySelector('figure img').naturalWidth")
        small = width()
        assert small <= 700 < natural
        page.locator("figure img").click()
        assert width() == natural
        page.locator("figure img").click()
        assert width() == small
        page.locator("figure input").focus()
        for key, expected in (("Space", natural), ("Escape", small), ("Enter", natural), ("Enter", small)):
            page.keyboard.press(key)
            assert width() == expected, key
        assert [r for r in page.requested if not r.startswith(("file:", "data:"))] == []


def test_the_first_number_is_that_of_the_two_sample_test(stills, tmp_path):
    """Blurred frames are told from real ones, by name and class; the sentence, the table and the record agree."""
    rows = {"train": range(30), "held out": range(30, 52)}
    real = {name: select_frames(stills, at) for name, at in rows.items()}
    ruler = Ruler(real["held out"])
    seen = {name: ruler.measure(ds) for name, ds in real.items()}
    seen["samples"] = ruler.measure(blur(select_frames(stills, range(52, 96)), 0.9))
    classes = {"train": ["hit"] * 30, "held out": ["hit"] * 22, "samples": ["hit"] * 44}
    judgement = judge_summaries(seen, ruler, splits=2, classes=classes)
    told = judgement.two_samples["samples"]
    assert told.interval[0] > 0.8 and told.table["auc"].idxmax() in ("noise", "all", "linear", "boosted")
    assert next(iter(judgement.table().items())) == ("two-sample AUC", {"samples": told.value})
    assert any(text.startswith("A classifier recognises the samples: AUC ") for text in words_of(judgement))
    assert words_of(judgement)[0].startswith("Do not use these frames for ")
    assert judgement.record()["two_samples"]["samples"]["classes"]["hit"]["auc"] == told.value
    assert "two-sample AUC" not in judgement.why
    fewer = judge_summaries(seen | {"samples": seen["samples"].take(slice(0, 15))}, ruler, splits=2)
    assert "samples" not in fewer.two_samples and "it takes 20 frames of either kind" in fewer.why["two-sample AUC"]


def test_a_control_that_fails_stops_the_verdict(stills):
    """Held-out frames that are not as the training frames are: nothing is said of samples, and why is."""
    ruler = Ruler(select_frames(stills, range(40)))
    seen = {
        "train": ruler.measure(select_frames(stills, range(40)), numbers=range(40)),
        "held out": ruler.measure(blur(select_frames(stills, range(40, 70)), 0.9), numbers=range(40, 70)),
        "samples": ruler.measure(select_frames(stills, range(70, 96)), numbers=range(26)),
    }
    verdict = verdict_of(judge_summaries(seen, ruler, splits=2))
    assert verdict.line.startswith("No verdict on these frames: held-out frames differ from training frames themselves")
    assert not verdict.uses("not seen") and not verdict.uses("shown") and verdict.severity == "warning"


def test_few_frames_are_no_praise(stills):
    """Frames that are as good as they can be, but few: the first line says how little so few would show."""
    sets = {"train": range(32), "held out": range(32, 64), "samples": range(64, 96)}
    ruler = Ruler(stills)
    seen = {name: ruler.measure(select_frames(stills, at), numbers=at) for name, at in sets.items()}
    verdict = verdict_of(judge_summaries(seen, ruler, splits=2))
    assert not verdict.uses("not seen") and not verdict.uses("shown")
    assert "ew frames to say (32 samples and 64 reference frames" in verdict.line
