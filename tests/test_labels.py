"""Labels of the user: from HDF5, zarr and tables; which are classes; the same classes for fewer frames and later ones; refusals of one sentence."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from fabio.tifimage import TifImage

from xrddiff.config.composition import compose_config
from xrddiff.config.plan import compose_plan
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.labels import (
    are_classes,
    check_conditions,
    class_names,
    decoded,
    encode,
    label_name,
    label_names,
    label_problem,
    label_value,
)
from xrddiff.judge.views.inspection import inspect_file
from xrddiff.learn.loading.datasets import open_planned, prepare_planned
from xrddiff.learn.models.conditioning import Conditions

N = 20
DIGIT = np.arange(N) % 7 + 3  # 3 … 9
PHASE = np.array(["β phase", "α phase"] * (N // 2))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).poisson(5.0, (N, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("labelled") / "digits.h5"
    with h5py.File(path, "w") as f:
        f["/entry/data/data"], f["/entry/data/digit"] = images, DIGIT
        f["/entry/data/phase"] = PHASE.astype(object)
        f["/entry/sample/temperature"] = np.linspace(290.0, 300.0, N)[:, None]  # a column, in another group
        f["/entry/data/x"] = np.linspace(0, 1, N)  # where a scan stood: not the axis of the pixels
        f["/entry/data/pulse"] = 10**12 + np.arange(N)  # names a frame
        f["/entry/data/type"] = np.array([0, 1] * (N // 2), h5py.enum_dtype({"dark": 0, "light": 1}, "u1"))
        f["/entry/data/good"] = np.arange(N) > 3
        f["/entry/data/other"] = np.arange(N + 1)  # not one for each frame
    return path


def plan(path, *words):
    return compose_plan(["model=ddpm", f"data.data_path={path}", *words])


def test_every_number_and_text_per_frame_is_a_label(hdf5):
    frames = open_frames(hdf5, complete=False)
    names = ["digit", "good", "label_type", "label_x", "phase", "pulse", "temperature"]
    assert sorted(label_names(frames)) == names
    assert frames["digit"].values.tolist() == DIGIT.tolist() and frames["phase"].values.tolist() == PHASE.tolist()
    assert frames["label_type"].values.tolist() == ["dark", "light"] * (N // 2)
    kinds = {row["name"]: row.get("classes") for row in inspect_file(hdf5)["labels"]}
    assert kinds["digit"] == {str(d): int((d == DIGIT).sum()) for d in range(3, 10)}
    assert kinds["phase"] == {"α phase": 10, "β phase": 10} and kinds["good"] == {"false": 4, "true": 16}
    assert kinds["pulse"] is None and kinds["temperature"] is None and kinds["label_x"] is None
    said = str(inspect_file(hdf5))
    assert "7 classes" in said and "3 (3)" in said and "290 to 300" in said


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (np.array([3, 1, 3, -1]), ("1", "3")),
        (np.array([2, 10, 2]), ("2", "10")),  # by size, not by spelling
        (np.array(["b", "", "a"]), ("a", "b")),
        (np.array([True, False]), ("false", "true")),
        (np.array([b"x", b"y", b"x"]), ("x", "y")),
        (np.arange(5), None),  # each frame its own
        (np.repeat(np.arange(2000), 2), None),  # too many to be kinds
        (np.array([1.0, 1.0, np.nan]), None),
    ],
)
def test_the_rule_of_classes_and_numbers(values, classes):
    numbers, names = encode(values)
    assert names == classes and are_classes(values) == (classes is not None)
    assert numbers.dtype == (np.float32 if classes is None else np.int64)
    if classes is not None:  # and back
        back = np.array([*classes, ""])[numbers]
        assert encode(back, classes)[0].tolist() == numbers.tolist()


def test_classes_are_those_of_the_whole_set(hdf5):
    few, all_ = (open_planned(plan(hdf5, "model.condition=[digit,phase]", *w).data) for w in (["data.limit=3"], []))
    assert few.sizes["frame"] == 3 and class_names(few, "digit") == tuple("3456789") == class_names(all_, "digit")
    assert few["digit"].values.tolist() == [0, 1, 2] and class_names(few, "phase") == ("α phase", "β phase")
    later = open_planned(
        plan(hdf5, "model.condition=[digit]").data, classes={"digit": ["5", "4"]}
    )  # as a checkpoint has them
    assert later["digit"].values[:4].tolist() == [-1, 1, 0, -1]
    prepared = prepare_planned(plan(hdf5, "model.condition=[digit,temperature]"))
    batch = prepared.loader(prepared.train, batch_size=4, cond=["digit", "temperature"]).batch([0, 5])
    assert batch["cond"]["digit"].tolist() == [0, 5] and batch["cond"]["temperature"].dtype.is_floating_point


def test_labels_travel_in_our_own_files_and_in_zarr(hdf5, images, tmp_path):
    whole = open_planned(plan(hdf5, "model.condition=[phase]").data)
    for name in ("a.h5", "a.zarr"):
        again = open_frames(save_frames(whole, tmp_path / name), complete=False)
        assert decoded(again["phase"]).tolist() == PHASE.tolist() and again["label_type"].values[1] == "light"
        assert class_names(open_planned(plan(tmp_path / name, "model.condition=[phase]").data), "phase")[0] == "α phase"
    group = zarr.open_group(str(tmp_path / "peaknet"), mode="w")
    group.create_array("images", data=images)
    group.create_array("labels", data=DIGIT)
    group.create_array("x", data=np.arange(N) / 7)
    found = open_frames(tmp_path / "peaknet", complete=False)
    assert found["labels"].values.tolist() == DIGIT.tolist() and set(label_names(found)) == {"labels", "label_x"}


def test_files_with_other_labels_are_joined(images, tmp_path):
    for k, extra in enumerate(({"phase": ["α", "β"]}, {"phase": ["γ", ""], "run": [4, 5]}, {})):
        with h5py.File(tmp_path / f"{k}.h5", "w") as f:
            f["data"] = images[:2]
            for name, values in extra.items():
                f[name] = values
    frames = open_frames(tmp_path, complete=False)
    assert frames["phase"].values.tolist() == ["α", "β", "γ", "", "", ""]
    assert np.isnan(frames["run"].values[[0, 1, 4, 5]]).all() and frames["run"].values[2:4].tolist() == [4, 5]


def table(path, text):
    path.write_text(text)
    return path


def test_a_table_beside_the_frames(hdf5, tmp_path):
    rows = "".join(f"{d * 1.5},{'cat' if d % 2 else 'dog'},{i if i else ''}\n" for i, d in enumerate(DIGIT))
    csv = table(tmp_path / "labels.csv", "length,my species,count\n" + rows)
    frames = open_frames(hdf5, complete=False, labels=csv)
    assert frames["my_species"].values[:2].tolist() == ["cat", "dog"] and frames["length"].values[0] == 4.5
    assert np.isnan(frames["count"].values[0]) and frames["count"].values[1] == 1  # numbers: each frame its own
    keyed = table(tmp_path / "keyed.tsv", "frame\tdigit\n19\t8\n0\t2\n3\t\n5\t2\n")
    digit = open_planned(plan(hdf5, f"data.labels={keyed}", "model.condition=[digit]").data)[
        "digit"
    ]  # wins over the file's
    assert digit.attrs["classes"] == ["2", "8"] and digit.values[[19, 0, 3, 5, 6]].tolist() == [1, 0, -1, 0, -1]
    listed = {row["name"]: row for row in inspect_file(hdf5, labels=csv)["labels"]}
    assert listed["my_species"]["classes"] == {"cat": int((DIGIT % 2).sum()), "dog": int((1 - DIGIT % 2).sum())}


def test_a_table_that_names_files(images, tmp_path):
    for k in range(3):
        TifImage(images[k].astype(np.int32)).write(tmp_path / f"img_{k}.tif")
        with h5py.File(tmp_path / f"set_{k}.h5", "w") as f:
            f["data"] = images[:2]
    series = table(
        tmp_path / "series.csv", "file,phase\nimg_2.tif,α\nsomewhere/img_1.tif,γ\nimg_0.tif,β\nimg_9.tif,β\n"
    )
    frames = open_frames(f"{tmp_path}/img_*.tif", complete=False, labels=series)
    assert frames["phase"].values.tolist() == ["β", "", "α"]
    sets = table(tmp_path / "sets.csv", "path,phase\nset_1.h5,α\n")
    frames = open_frames(f"{tmp_path}/set_*.h5", complete=False, labels=sets)
    assert frames["phase"].values.tolist() == ["", "", "α", "α", "", ""]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "digit\n1\n2\n", "a.csv has 2 rows; expected one for each of the 20 frames"),
        ("a.csv", "frame,digit\n1,1\n1,2\n", "two rows for frame 1, by its column 'frame'"),
        ("a.csv", "frame,digit\n20,1\n", "has '20'; expected frames from 0 to 19"),
        ("a.csv", "frame,digit\none,1\n", "has 'one'; expected frames from 0 to 19"),
        (
            "a.csv",
            "file,digit\nother.h5,1\n",
            "no row belongs to a file of these frames; expected names such as 'digits.h5'",
        ),
        ("a.csv", "frame\n1\n", "no column of labels"),
        ("a.csv", "", "is not a table: its first line is empty"),
        ("a.csv", "frame,x,label_x\n0,1,2\n", "two columns called label_x"),
        ("a.xlsx", "PK", "end in '.xlsx'; expected .csv, .tsv or .parquet"),
        ("missing.csv", None, "missing.csv does not exist"),
        ("a.csv", "frame,wavelength\n0,1.3\n", "one positive number per frame"),
    ],
)
def test_a_table_that_does_not_fit(hdf5, tmp_path, name, text, sentence):
    if text is not None:
        table(tmp_path / name, text)
    with pytest.raises(BadInput) as error:
        open_frames(hdf5, complete=False, labels=tmp_path / name)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_parquet_needs_pyarrow(hdf5, tmp_path):
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        table(tmp_path / "a.parquet", "PAR1")
        with pytest.raises(BadInput, match=r"a.parquet are parquet, which needs pyarrow .*or save them as .csv"):
            open_frames(hdf5, complete=False, labels=tmp_path / "a.parquet")
    else:
        pd.DataFrame({"phase": PHASE}).to_parquet(tmp_path / "a.parquet")
        assert open_frames(hdf5, complete=False, labels=tmp_path / "a.parquet")["phase"].values[0] == "β phase"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["model.condition=[digt]"],
            "model.condition: there is no number or text 'digt' per frame; did you mean 'digit'?",
        ),
        (
            ["model.condition=[digit]", "inference.condition={digit: 12}"],
            "digit=12: there is no such class; expected 3, 4, 5, 6",
        ),
        (["model.condition=[phase]", "inference.condition={phase: gamma}"], "expected 0 (α phase), 1 (β phase)"),
        (["model.condition=[temperature]", "inference.condition={temperature: hot}"], "expected a finite number"),
        (
            ["model.condition=[wavelength]"],
            "wavelength needs values that the frames do not contain: give data.wavelength= (Å)",
        ),
        (["model.condition=[resolution]"], "data.distance= (m), data.pixel_size= (m), data.beam_center= ((x, y) px)"),
        (["model.condition=[hit_class]"], "hit_class needs the crystals of the frames"),
        (["data.labels=nowhere.csv"], "nowhere.csv does not exist"),
    ],
)
def test_what_cannot_be_a_condition_is_said_before_the_run(hdf5, words, sentence):
    with pytest.raises(BadInput) as error:
        open_planned(plan(hdf5, *words).data)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_class_is_asked_for_as_the_user_calls_it():
    digits = tuple("3456789")
    assert (
        label_value("digit", 3, digits) == label_value("digit", "3", digits) == label_value("digit", 3.0, digits) == 0
    )
    with pytest.raises(BadInput, match="digit=0: there is no such class"):
        label_value("digit", 0, digits)  # never the number of the class, where names are numbers
    assert label_value("species", 1, ("cat", "dog")) == label_value("species", "dog", ("cat", "dog")) == 1
    unknown = make_frames(
        np.zeros((3, 8, 8), np.int32), variables={"a": np.array(["", "", ""]), "b": np.full(3, np.nan)}
    )
    for name in "ab":
        assert "is unknown for every frame" in label_problem(unknown, name)
        with pytest.raises(BadInput, match="model.condition"):
            check_conditions(unknown, [name])


def test_a_label_with_a_meaning_may_come_by_name(hdf5, tmp_path):
    rows = "".join(f"{('cubic', 'tetragonal', '')[i % 3]}\n" for i in range(N))
    csv = table(tmp_path / "system.csv", "crystal_system,n\n" + rows.replace("\n", ",1\n"))
    frames = prepare_planned(plan(hdf5, f"data.labels={csv}", "model.condition=[crystal_system]")).frames
    assert frames["crystal_system"].values[:3].tolist() == [6, 3, -1]
    wrong = table(tmp_path / "wrong.csv", "crystal_system,n\n" + "cubik,1\n" * N)
    with pytest.raises(BadInput, match="did you mean 'cubic'"):
        open_planned(plan(hdf5, f"data.labels={wrong}", "model.condition=[crystal_system]").data)


def test_no_label_has_a_name_that_a_network_cannot_take():
    for name in dir(Conditions({}, 4)):
        if not name.startswith("_"):
            Conditions({label_name(name): 2}, 4)
    assert label_name("class") == "label_class" and label_name("ζ-phase (%)") == "ζ_phase" and label_name("") == "label"


def test_patches_can_be_limited(hdf5):
    words = ["data.patch=4", "data.limit=2"]
    whole, few = (prepare_planned(plan(hdf5, *words, *w)) for w in ([], ["data.patch_limit=10"]))
    assert whole.frames.sizes["frame"] == 32 and few.frames.sizes["frame"] == 10
    assert len(few.train) + len(few.held_out) == 10
    assert set(few.frames["frame_source"].values) == {0, 1}
    again = prepare_planned(plan(hdf5, *words, "data.patch_limit=10")).frames["intensity"].values
    assert (again == few.frames["intensity"].values).all()


def test_classes_that_are_one(hdf5):
    merged = plan(hdf5, "data.merge_labels={digit: {4: 3, 5: 3}}", "model.condition=[digit]")
    data = prepare_planned(merged)
    assert class_names(data.frames, "digit") == ("3", "6", "7", "8", "9")
    assert (data.frames["digit"].values == 0).tolist() == np.isin(DIGIT, [3, 4, 5]).tolist()
    table = data.class_table("digit")
    assert (table["training"] + table["held out"]).tolist() == table["frames"].tolist()
    assert table["frames"].sum() == N and f"3 {table.training.iloc[0]} + {table['held out'].iloc[0]}" in str(data)


def test_as_many_of_each_class(hdf5):
    few = ("data.labels=null", "data.merge_labels={digit: {4: 3, 5: 3, 6: 3, 8: 7, 9: 7}}", "data.train_ratio=0.5")
    plain, even = (prepare_planned(plan(hdf5, *few, *more)) for more in ((), ("data.balance=digit",)))
    table = even.class_table("digit")
    for part, those in (("training", "train"), ("held out", "held_out")):
        assert table[part].nunique() == 1 and table[part].iloc[0] == plain.class_table("digit")[part].min() > 0
        assert set(getattr(even, those)) < set(getattr(plain, those))  # of the same split
    again = prepare_planned(plan(hdf5, *few, "data.balance=digit"))
    assert again.train.tolist() == even.train.tolist()
    assert "digit, training + held out" in str(even)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("data.balance=temperature", "temperature is a number; expected a label with classes"),
        ("data.balance=digits", "there is no label 'digits'; did you mean 'digit'"),
        ("data.balance=digit", "one part of the split has no frame with the class"),
        ("data.merge_labels={temperature: {1: 2}}", "temperature is a number"),
        ("data.merge_labels={digit: {44: 3}}", "digit has no class '44'"),
        ("data.merge_labels={digit: 3}", "data.merge_labels.digit: found 3, expected classes"),
    ],
)
def test_what_cannot_be_balanced_or_merged(hdf5, words, sentence):
    with pytest.raises(BadInput) as refused:
        prepare_planned(plan(hdf5, words, "data.train_ratio=0.9"))
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_of_files_is_one_set(images, tmp_path):
    for k in range(3):
        np.save(tmp_path / f"run_{k}.npy", images[4 * k : 4 * k + 4])
    words = ["model=ddpm", "data=folder", f"folder={tmp_path}", "data.automask=[]"]
    frames = open_planned(compose_plan(words).data)
    assert np.array_equal(np.asarray(frames["intensity"][:]), images[:12])
    with pytest.raises(BadInput, match="no data: set data.data_path"):
        compose_config(["data=folder"])
