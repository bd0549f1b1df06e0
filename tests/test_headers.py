"""Headers and geometry: every fault that real files had, made small, and what is said of it."""

from __future__ import annotations

import struct
import warnings

import h5py
import numpy as np
import pytest
from conftest import need
from PIL import Image

from xrddiff.app.verbs.main import main
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.readers import open_frames
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.geometry import PanelGeometry, q_map
from xrddiff.data.frames.rows import is_lazy
from xrddiff.data.headers.header_rules import FIELDS, QUANTITIES, agree, centre, problem, read_fields, same
from xrddiff.data.headers.raw_headers import raw_header
from xrddiff.judge.views.inspection import inspect_file

KNOWN = {"wavelength": 1.3, "distance": 0.1, "pixel_size": 75e-6, "beam_center": (30.0, 20.0)}
TOLD = ["wavelength=1.3", "distance=0.1", "pixel_size=75e-6", "beam_center=[30,20]"]


def counts(h=40, w=60, seed=0, dtype="u2"):
    return np.random.default_rng(seed).poisson(9, (h, w)).astype(dtype)


def refused(match, *args, **words):
    with pytest.raises(BadInput, match=match) as caught:
        open_frames(*args, **words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def opened(path, **words):
    """Frames and the warnings that opening them gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = open_frames(path, **words)
    return ds, [str(w.message) for w in caught if w.category is UserWarning]


def mccd(path, data=None, wavelength=1.033, pixel=79e-6, distance=0.2, beam=(31.0, 22.0), order="<"):
    """A MarCCD file: a TIFF with 3072 bytes of integers before its pixels."""
    data = counts() if data is None else data
    head = bytearray(4096)
    entries = [(256, 4, data.shape[1]), (257, 4, data.shape[0]), (258, 3, 16), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 4096), (277, 3, 1), (278, 4, data.shape[0]), (279, 4, data.nbytes)]
    struct.pack_into(order + "2sHIH", head, 0, b"II" if order == "<" else b"MM", 42, 8, len(entries))
    for i, (tag, kind, value) in enumerate(entries):
        struct.pack_into(order + "HHI" + ("I" if kind == 4 else "H"), head, 10 + 12 * i, tag, kind, 1, value)
    head[1028:1032] = b"MMX\0"
    values = {640: distance * 1e6, 644: beam[0] * 1e3, 648: beam[1] * 1e3, 772: pixel * 1e9, 776: pixel * 1e9}
    for at, value in (values | {908: wavelength * 1e5}).items():
        struct.pack_into(order + "i", head, 1024 + at, round(value))
    path.write_bytes(bytes(head) + data.astype(order + "u2").tobytes())
    return path


def smv(path, data=None, **fields):
    """An ADSC file as beamlines write it."""
    data = counts() if data is None else data
    fields = {"DIM": 2, "BYTE_ORDER": "little_endian", "TYPE": "unsigned_short"} | {
        "SIZE1": data.shape[1], "SIZE2": data.shape[0], "PIXEL_SIZE": 0.1, "DISTANCE": 200, "WAVELENGTH": 1.0
    } | fields  # fmt: skip
    text = "{\nHEADER_BYTES= 1024;\n" + "".join(f"{k}={v};\n" for k, v in fields.items()) + "}\n"
    path.write_bytes(text.encode().ljust(1024, b" ") + data.astype("<u2").tobytes())
    return path


def cbf(path, data=None, **fields):
    """A Pilatus CBF with its comments."""
    from fabio.cbfimage import CbfImage

    fields = {"Detector:": "PILATUS 100K", "Pixel_size": "172e-6 m x 172e-6 m"} | fields
    contents = "\r\n".join(f"# {k} {v}" for k, v in fields.items())
    head = {"_array_data.header_convention": "PILATUS_1.2", "_array_data.header_contents": contents}
    CbfImage(data=counts(dtype="i4") if data is None else data, header=head).write(str(path))
    return path


def edf(path, data=None, **fields):
    """An EDF with ESRF's words."""
    from fabio.edfimage import EdfImage

    fields = {"WaveLength": 9.5e-11, "SampleDistance": 0.3, "PSize_1": 1e-4, "PSize_2": 1e-4} | fields
    head = {k: str(v) for k, v in ({"Center_1": 31, "Center_2": 22} | fields).items()}
    EdfImage(data=counts(dtype="i4") if data is None else data, header=head).write(str(path))
    return path


# ---------------------------------------------------------------- one geometry for a series


def mixed_folder(folder):
    folder.mkdir()
    for name, wavelength, pixel in (("a", 1.033, 78.5e-6), ("b", 0.685, 79.18e-6), ("c", 0.689, 79.18e-6)):
        mccd(folder / f"{name}.mccd", wavelength=wavelength, pixel=pixel)
    return folder


def test_a_folder_of_mixed_geometry_is_refused_with_two_files_and_values(tmp_path, capsys):
    """I1: three .mccd of three experiments came back as one set."""
    folder = mixed_folder(tmp_path / "mixed")
    message = refused("differ in pixel_size", folder)
    assert "a.mccd has 78.5 µm, b.mccd has 79.18 µm" in message and "give pixel_size=" in message
    refused("differ in pixel_size", str(folder / "*.mccd"))
    refused("differ in pixel_size", [folder / "a.mccd", folder / "c.mccd"])
    assert main(["data", "inspect", str(folder), "--no-png"]) == 2
    assert main(["data", "convert", str(folder), str(tmp_path / "out.h5")]) == 2
    said = capsys.readouterr().err
    assert said.count("a.mccd has 78.5 µm, b.mccd has 79.18 µm") == 2 and not (tmp_path / "out.h5").exists()
    # the caller's word settles it; two files that agree but for the wavelength are one set
    assert open_frames(folder, pixel_size=79e-6).attrs["pixel_size"] == 79e-6
    ds = open_frames([folder / "b.mccd", folder / "c.mccd"])
    assert ds["wavelength"].values == pytest.approx([0.685, 0.689]) and ds.attrs["wavelength"] == pytest.approx(0.687)
    assert is_lazy(ds["intensity"])


@pytest.mark.parametrize(
    ("word", "write", "values"),
    [
        ("distance", mccd, ({"distance": 0.2}, {"distance": 0.21})),
        ("beam_center", mccd, ({"beam": (31, 22)}, {"beam": (32, 22)})),
        ("distance", edf, ({"SampleDistance": 0.3}, {"SampleDistance": 0.31})),
        ("pixel_size", smv, ({"PIXEL_SIZE": 0.1}, {"PIXEL_SIZE": 0.2})),
        ("distance", cbf, ({"Detector_distance": "0.2 m"}, {"Detector_distance": "0.3 m"})),
        ("wavelength", cbf, ({"Wavelength": "1.0 A"}, {})),
    ],
)
def test_each_word_of_the_geometry_must_agree(tmp_path, word, write, values):
    for i, fields in enumerate(values):
        write(tmp_path / f"{i}.img", **fields)
    refused(f"the files differ in {word}: 0.img has .*, 1.img has", str(tmp_path / "*.img"), complete=False)


def test_rounding_and_jitter_are_one_geometry(tmp_path):
    for i, (distance, x) in enumerate([(0.2, 31.0), (0.20005, 31.2)]):
        mccd(tmp_path / f"{i}.mccd", distance=distance, beam=(x, 22))
    assert open_frames(tmp_path).attrs["distance"] == 0.2
    for word, q in QUANTITIES.items():
        a = 10.0 if word == "beam_center" else q.low * 3
        step = q.same * (1 if word == "beam_center" else a)
        assert same(word, a, a + 0.9 * step) and not same(word, a, a + 1.1 * step)


def test_images_of_one_file_must_agree_too(tmp_path):
    from fabio.edfimage import EdfImage

    head = {"SampleDistance": "0.3", "PSize_1": "1e-4", "PSize_2": "1e-4", "Center_1": "31", "Center_2": "22"}
    image = EdfImage(data=counts(), header=head | {"WaveLength": "1e-10"})
    image.append_frame(data=counts(seed=1), header=head | {"WaveLength": "1.1e-10"})
    image.write(str(tmp_path / "two.edf"))
    ds = open_frames(tmp_path / "two.edf")
    assert ds["wavelength"].values == pytest.approx([1.0, 1.1]) and ds.sizes["frame"] == 2
    image.append_frame(data=counts(seed=2), header=head | {"WaveLength": "1e-10", "SampleDistance": "0.5"})
    image.write(str(tmp_path / "three.edf"))
    refused("differ in distance: three.edf has 300 mm, image 2 of three.edf has 500 mm", tmp_path / "three.edf")


def test_joined_sets_keep_a_wavelength_per_frame_or_are_refused(tmp_path):
    for name, words in (("a", {}), ("b", {"wavelength": 1.31}), ("c", {"distance": 0.12})):
        save_frames(make_frames(np.stack([counts()] * 2), **(KNOWN | words)), tmp_path / f"{name}.h5")
    ds = open_frames([tmp_path / "a.h5", tmp_path / "b.h5"])
    assert ds["wavelength"].values == pytest.approx([1.3, 1.3, 1.31, 1.31])
    refused("differ in distance: a.h5 has 100 mm, c.h5 has 120 mm", tmp_path)
    assert open_frames(tmp_path, distance=0.1).sizes["frame"] == 6
    back = save_frames(ds, tmp_path / "joined.zarr")
    assert open_frames(back)["wavelength"].values == pytest.approx(ds["wavelength"].values)


def nexus(path, frames=3, **fields):
    """NXmx with numbers of the beam and the detector, each one or one per frame."""
    fields = {"detector_distance": (0.1, "m"), "x_pixel_size": (75e-6, "m"), "beam_center_x": (30.0, "pixel")} | fields
    fields = {"beam_center_y": (20.0, "pixel"), "incident_wavelength": (1.0, "angstrom")} | fields
    with h5py.File(path, "w") as f:
        f["entry/data/data"] = np.stack([counts()] * frames)
        for name, (value, unit) in fields.items():
            place = "beam" if name.startswith("incident") else "detector"
            f[f"entry/instrument/{place}/{name}"] = value
            f[f"entry/instrument/{place}/{name}"].attrs.update({"units": unit} if unit else {})
    return path


def test_frames_of_one_hdf5_file_that_differ(tmp_path):
    path = nexus(tmp_path / "a.h5", detector_distance=([0.1, 0.11, 0.12], "m"))
    message = refused("a.h5 differ in distance: /entry/instrument/detector/detector_distance runs from 100 mm", path)
    assert "to 120 mm" in message and open_frames(path, distance=0.1).attrs["distance"] == 0.1
    refused("differ in beam_center", nexus(tmp_path / "b.h5", beam_center_x=([30.0, 31, 30], "pixel")))
    ds = open_frames(nexus(tmp_path / "c.h5", incident_wavelength=([1.0, 1.1, 1.2], "angstrom")))
    assert ds["wavelength"].values == pytest.approx([1.0, 1.1, 1.2])


# ---------------------------------------------------------------- ADSC: one centre, written in many ways


def test_adsc_centre_that_a_known_convention_settles(tmp_path):
    """I3: BEAM_CENTER_Y was counted from the wrong edge; DENZO_X_BEAM beside it says so."""
    # 40 rows of 0.1 mm: the beam is 2.2 mm below the first row, 1.8 mm above the last edge
    path = smv(tmp_path / "a.img", BEAM_CENTER_X=3.1, BEAM_CENTER_Y=1.8, DENZO_X_BEAM=2.2, DENZO_Y_BEAM=3.1)
    ds, said = opened(path)
    assert ds.attrs["beam_center"] == pytest.approx((31, 22)) and ds.attrs["distance"] == pytest.approx(0.2)
    assert len(said) == 1 and "a.img: BEAM_CENTER_X, BEAM_CENTER_Y = 3.1, 1.8 mm would be (31, 18) px" in said[0]
    assert "using (31, 22) px of DENZO_X_BEAM, DENZO_Y_BEAM = 2.2, 3.1 mm instead" in said[0] and "ADXV" in said[0]
    # the same in Mosflm's way of counting, and a centre that fits no way
    _, said = opened(smv(tmp_path / "b.img", BEAM_CENTER_X=2.2, BEAM_CENTER_Y=3.1, DENZO_XBEAM=2.2, DENZO_YBEAM=3.1))
    assert "as Mosflm does" in said[0]
    ds, said = opened(smv(tmp_path / "c.img", BEAM_CENTER_X=1, BEAM_CENTER_Y=1, DENZO_XBEAM=2.2, DENZO_YBEAM=3.1))
    assert "the two contradict each other" in said[0] and ds.attrs["beam_center"] == pytest.approx((31, 22))


def test_adsc_centre_alone(tmp_path):
    alone = {"BEAM_CENTER_X": 3.1, "BEAM_CENTER_Y": 1.8}
    ds, said = opened(smv(tmp_path / "ssrl.img", DETECTOR_SN=901, **alone))
    assert ds.attrs["beam_center"] == pytest.approx((31, 22)) and "as this detector is known to" in said[0]
    ds, said = opened(smv(tmp_path / "esrf.img", DETECTOR_SN=413, **alone))
    assert ds.attrs["beam_center"] == pytest.approx((18, 31)) and "it could be" in said[0] and "(31, 22) px" in said[0]
    _, said = opened(smv(tmp_path / "middle.img", data=counts(40, 40), BEAM_CENTER_X=2.0, BEAM_CENTER_Y=2.0))
    assert not said  # in the middle of a square all ways agree


def test_every_way_of_counting_a_centre():
    """nanoBragg writes one beam, at fast 97.185 and slow 90 mm of 1765² pixels of 0.11 mm, in all ways."""
    head = {"SIZE1": "1765", "SIZE2": "1765", "PIXEL_SIZE": "0.11", "DISTANCE": "50", "WAVELENGTH": "1.3"}
    ways = {
        "XDS_ORG": (97.185 / 0.11 + 0.5, 90 / 0.11 + 0.5),
        "DENZO_BEAM": (90, 97.185),
        "ADXV_CENTER": (97.185, 194.15 - 90),
    }
    names = {"XDS_ORG": "XDS_ORG{}", "DENZO_BEAM": "DENZO_{}_BEAM", "ADXV_CENTER": "ADXV_CENTER_{}"}
    for way, (x, y) in ways.items():
        own = {names[way].format("X"): f"{x:.6f}", names[way].format("Y"): f"{y:.6f}"}
        found, notes = read_fields("smv", head | own, (1765, 1765))
        assert found["beam_center"] == pytest.approx((97.185 / 0.11, 90 / 0.11), abs=1e-3), way
        assert not notes
    assert centre("mosflm", 1, 2, (10, 20)) == (2, 1) and centre("adxv", 3, 2, (10, 20)) == (3, 8)
    assert all(f.word in QUANTITIES for f in FIELDS)


# ---------------------------------------------------------------- what cannot be


def test_impossible_headers_are_left_out_with_a_warning(tmp_path):
    """I4: a beam at −5410 px and a detector 60 m away were believed."""
    ds, said = opened(mccd(tmp_path / "a.mccd", beam=(-5410, 22), distance=0.2), complete=False)
    assert "beam_center" not in ds.attrs and ds.attrs["distance"] == 0.2
    assert len(said) == 1 and "a.mccd: beam_x, beam_y = -5410000, 22000 is a beam at (-5410, 22) px" in said[0]
    assert "ignored" in said[0]
    refused("does not say its beam_center", tmp_path / "a.mccd")
    assert opened(tmp_path / "a.mccd", beam_center=(30, 20))[0].attrs["beam_center"] == (30, 20)
    ds, said = opened(edf(tmp_path / "b.edf", SampleDistance=60, WaveLength=0.95), complete=False)
    assert {"distance", "wavelength"}.isdisjoint(ds.attrs) and len(said) == 2
    assert any("SampleDistance = 60 is a distance of 60000 mm; expected 0.001 to 50 m; ignored" in s for s in said)
    ds, said = opened(nexus(tmp_path / "c.h5", detector_distance=(300.0, "m")), complete=False)
    assert "distance" not in ds.attrs and "/entry/instrument/detector/detector_distance is 300000 mm" in said[0]


def test_a_beam_beside_the_detector_is_kept_with_a_warning(tmp_path):
    ds, said = opened(edf(tmp_path / "a.edf", Center_1=-20))
    assert ds.attrs["beam_center"] == (-20, 22) and "beside the detector; used anyway" in said[0]
    _, said = opened(nexus(tmp_path / "b.h5", beam_center_y=(-10.0, "pixel")))
    assert "beside the detector; used anyway" in said[0]


def test_fields_that_contradict_each_other(tmp_path):
    ds, said = opened(cbf(tmp_path / "a.cbf", Wavelength="1.0 A", Photon_energy="8000 eV"), complete=False)
    assert ds.attrs["wavelength"] == 1.0
    assert "Photon_energy = 8000 eV is a wavelength of 1.5498 Å; using 1 Å of Wavelength = 1.0 A instead" in said[0]
    assert not opened(cbf(tmp_path / "b.cbf", Wavelength="1.0 A", Photon_energy="12398 eV"), complete=False)[1]
    ds, said = opened(nexus(tmp_path / "c.h5", incident_energy=(8000.0, "eV")))
    assert ds.attrs["wavelength"] == 1.0 and "incident_energy is a wavelength of 1.5498 Å; using" in said[0]
    mar = mccd(tmp_path / "d.mccd", data=counts(400, 400), pixel=100e-6, beam=(20.5, 19.5))
    assert "read as mm it would be at (205, 195) px, near it" in opened(mar)[1][0]


def test_pixels_that_are_not_square_are_refused(tmp_path):
    refused("PSize_1, PSize_2 = 0.0001, 0.0002: pixels of 100 µm × 200 µm", edf(tmp_path / "a.edf", PSize_2=2e-4))
    refused("expected square pixels", cbf(tmp_path / "a.cbf", Pixel_size="50e-6 m x 172e-6 m"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"distance": 200}, "distance is 200 m; expected 0.001 to 50 m; if 200 mm is meant, say distance=0.2"),
        ({"pixel_size": 75}, "if 75 µm is meant, say pixel_size=7.5e-05"),
        ({"pixel_size": 0.075}, "if 0.075 mm is meant, say pixel_size=7.5e-05"),
        ({"wavelength": 9500}, "if 9500 eV is meant, say wavelength=1.305"),
        ({"wavelength": 1e-10}, "if 1e-10 m is meant, say wavelength=1"),
        ({"beam_center": (-5410, 20)}, "expected a beam on or near the detector of 60 × 40 px"),
    ],
)
def test_the_callers_impossible_word_is_refused_with_the_unit_that_was_meant(tmp_path, words, sentence):
    np.save(tmp_path / "a.npy", counts()[None])
    assert sentence in refused("a.npy: ", tmp_path / "a.npy", **(KNOWN | words))
    saved = save_frames(make_frames(counts()[None], **KNOWN), tmp_path / "a.h5")
    assert sentence in refused("a.h5: ", saved, **words)
    for word in words:
        assert problem(word, KNOWN[word], (40, 60)) is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            {"wavelength": 12},
            "wavelength is 12 Å; expected usually 0.1 to 6 Å; if 12 keV is meant, say wavelength=1.03",
        ),
        (
            {"distance": 20},
            "distance is 20000 mm; expected usually 0.005 to 15 m; if 20 mm is meant, say distance=0.02",
        ),
    ],
)
def test_an_unusual_value_is_kept_with_a_warning_from_the_caller_and_from_a_file(tmp_path, words, sentence):
    np.save(tmp_path / "a.npy", counts()[None])
    ds, said = opened(tmp_path / "a.npy", **(KNOWN | words))
    assert len(said) == 1 and sentence in said[0] and all(ds.attrs[k] == v for k, v in words.items())
    named = {"wavelength": {"WaveLength": 12e-10}, "distance": {"SampleDistance": 20}}[next(iter(words))]
    _, said = opened(edf(tmp_path / "a.edf", **named))
    assert sentence.partition("; if")[0] in said[0]


# ---------------------------------------------------------------- half a file


def six_pages(path, **options):
    pages = [Image.fromarray(counts(seed=i)) for i in range(6)]
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    return path


def pgm(path):
    from fabio.pnmimage import PnmImage

    PnmImage(data=counts()).write(str(path))
    return path


def bruker(path):
    from fabio.bruker100image import Bruker100Image

    Bruker100Image(data=counts(64, 64)).write(str(path))
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("pages.tif", six_pages),
        ("packed.tif", lambda p: six_pages(p, compression="tiff_lzw")),
        ("big.tif", lambda p: six_pages(p, big_tiff=True)),
        ("a.edf", edf),
        ("a.img", smv),
        ("a.cbf", cbf),
        ("a.mccd", mccd),
        ("motorola.mccd", lambda p: mccd(p, order=">")),
        ("a.pgm", pgm),
        ("a.sfrm", bruker),
    ],
)
def test_half_a_file_is_refused_in_one_sentence(tmp_path, name, write, capsys):
    """I5: half of a six-page TIFF read as one frame, half an EDF as 88% zeros."""
    whole = write(tmp_path / name)
    frames = open_frames(whole, complete=False)
    assert frames["intensity"].values.any() and frames.sizes["frame"] == (6 if name.endswith("tif") else 1)
    raw = whole.read_bytes()
    declared = raw_header(whole).size if raw_header(whole) else len(raw)
    cut = tmp_path / f"cut_{name}"
    for size in (len(raw) // 2, len(raw) * 9 // 10, declared - 1):
        cut.write_bytes(raw[:size])
        refused(f"cut_{name} (is truncated|cannot be read|is damaged)", cut, **KNOWN)
    assert main(["data", "convert", str(cut), str(tmp_path / "out.h5")]) == 2
    assert not (tmp_path / "out.h5").exists() and f"cut_{name}" in capsys.readouterr().err


def test_half_a_file_in_a_series_is_found_at_once(tmp_path):
    for i in range(3):
        edf(tmp_path / f"{i}.edf")
    (tmp_path / "1.edf").write_bytes((tmp_path / "1.edf").read_bytes()[:3000])
    refused("1.edf is truncated", tmp_path)


def test_a_compressed_half_and_a_directory_in_circles(tmp_path):
    import gzip

    raw = edf(tmp_path / "a.edf").read_bytes()
    (tmp_path / "b.edf.gz").write_bytes(gzip.compress(raw[:3000]))
    refused("b.edf.gz", tmp_path / "b.edf.gz", **KNOWN)
    (tmp_path / "c.edf.gz").write_bytes(gzip.compress(raw))
    assert open_frames(tmp_path / "c.edf.gz").attrs["distance"] == 0.3
    circle = bytearray(six_pages(tmp_path / "a.tif").read_bytes())
    first = struct.unpack_from("<I", circle, 4)[0]
    entries = struct.unpack_from("<H", circle, first)[0]
    struct.pack_into("<I", circle, first + 2 + 12 * entries, first)
    (tmp_path / "circle.tif").write_bytes(circle)
    assert len(raw_header(tmp_path / "circle.tif").images) == 1


def test_a_cbf_whose_pixels_begin_nowhere_does_not_hang(tmp_path):
    """fabio reads on for ever where the name of the section or the mark before the pixels is damaged."""
    raw = cbf(tmp_path / "a.cbf").read_bytes()
    for old in (b"CIF-BINARY-FORMAT-SECTION", b"\x0c\x1a\x04\xd5", b"X-Binary-Size:"):
        (tmp_path / "b.cbf").write_bytes(raw.replace(old, b"?" * len(old)))
        refused("b.cbf is a damaged CBF", tmp_path / "b.cbf", **KNOWN)


def test_headers_of_a_series_are_read_without_pixels(tmp_path, monkeypatch):
    """Opening 200 files reads the pixels of the first alone."""
    import fabio

    raw = mccd(tmp_path / "0.mccd").read_bytes()
    for i in range(1, 200):
        (tmp_path / f"{i}.mccd").write_bytes(raw)
    real, seen = fabio.open, []
    monkeypatch.setattr(fabio, "open", lambda name, *a: seen.append(name) or real(name, *a))
    ds = open_frames(tmp_path)
    assert ds.sizes["frame"] == 200 and len(seen) == 1
    assert ds["intensity"][150].values.any() and len(seen) == 2


# ---------------------------------------------------------------- what is assumed


def test_what_is_assumed_is_marked_and_survives(tmp_path, capsys):
    np.save(tmp_path / "a.npy", counts()[None])
    ds = open_frames(tmp_path / "a.npy", **KNOWN)
    assert ds.attrs["assumed"] == "polarization, units" and "ADU (assumed)" in repr(ds.frames)
    about = str(inspect_file(tmp_path / "a.npy"))
    assert "ADU (assumed)" in about and "0.99 (assumed)" in about
    for name in ("b.h5", "b.zarr"):
        back = open_frames(save_frames(ds, tmp_path / name))
        assert back.attrs["assumed"] == "polarization, units"
        assert open_frames(tmp_path / name, units="photon").attrs["assumed"] == "polarization"
    assert "assumed" not in open_frames(tmp_path / "a.npy", units="ADU", polarization=0.9, **KNOWN).attrs
    ds = open_frames(cbf(tmp_path / "a.cbf", Polarization="0.98"), complete=False)
    assert "assumed" not in ds.attrs and ds.attrs["polarization"] == 0.98
    path = nexus(tmp_path / "n.h5", detector_distance=(0.1, ""))
    assert "distance" in open_frames(path).attrs["assumed"]
    assert main(["data", "inspect", str(path), "--no-png"]) == 0
    said = capsys.readouterr().out
    assert "100 (assumed)" in said and "0.99 (assumed)" in said


# ---------------------------------------------------------------- minors


def cxi(path, shape=(3, 40, 60), **fields):
    """CXI with numbers of the detector."""
    with h5py.File(path, "w") as f:
        f["entry_1/data_1/data"] = np.random.default_rng(0).poisson(9, shape).astype("u2")
        f["entry_1/instrument_1/source_1/energy"] = 1.602176634e-15  # 10 keV in J, the unit of CXI
        for name, value in fields.items():
            f[f"entry_1/instrument_1/detector_1/{name}"] = value
    return path


def test_cxi_corner_and_basis_vectors_of_a_straight_plane(tmp_path):
    """A plane whose x and y fall along rows and columns, as CXI's axes look from the sample."""
    p = 75e-6
    there = {"corner_position": [30 * p, 20.5 * p, 0.2], "basis_vectors": [[0, -p, 0], [-p, 0, 0]]}
    ds = open_frames(cxi(tmp_path / "a.cxi", **there))
    assert ds.attrs["beam_center"] == pytest.approx((30, 20.5)) and ds.attrs["distance"] == pytest.approx(0.2)
    assert ds.attrs["pixel_size"] == pytest.approx(p) and ds.attrs["wavelength"] == pytest.approx(1.23984, rel=1e-5)
    ds, said = opened(cxi(tmp_path / "b.cxi", distance=0.25, **there))
    assert ds.attrs["distance"] == pytest.approx(0.2)
    assert "detector_1/distance is 250 mm; using 200 mm of /entry_1/instrument_1/detector_1/corner" in said[0]
    per_frame = {k: np.stack([v] * 3) for k, v in there.items()}
    assert open_frames(cxi(tmp_path / "c.cxi", **per_frame)).attrs["beam_center"] == pytest.approx((30, 20.5))
    per_frame["corner_position"][1, 2] += 0.01
    refused("d.cxi differ in /entry_1/instrument_1/detector_1/corner_position", cxi(tmp_path / "d.cxi", **per_frame))
    alone = cxi(tmp_path / "e.cxi", corner_positions=there["corner_position"], x_pixel_size=p, distance=0.2)
    assert open_frames(alone).attrs["beam_center"] == pytest.approx((30, 20.5))


def test_cxi_planes_that_are_tilted_or_many(tmp_path):
    """q from the corner and the vectors themselves, against the geometry of the frames."""
    p, tilt, wavelength = 75e-6, np.deg2rad(10), 12398.419843320026 / 10000
    fs, ss = np.array([-p * np.cos(tilt), 0, p * np.sin(tilt)]), np.array([0, -p, 0])
    corner = np.array([30 * p, 20 * p, 0.2])

    def q_of(origin, fs, ss):
        y, x = np.mgrid[:40, :60] + 0.5
        at = origin + x[..., None] * fs + y[..., None] * ss
        cosine = at[..., 2] / np.linalg.norm(at, axis=-1)
        return 4 * np.pi * np.sin(np.arccos(cosine) / 2) / wavelength

    ds = open_frames(cxi(tmp_path / "tilted.cxi", corner_position=corner, basis_vectors=[ss, fs]))
    assert ds["intensity"].dims == ("frame", "panel", "ss", "fs")
    assert np.allclose(q_map(PanelGeometry.from_frames(ds))[0], q_of(corner, fs, ss), rtol=1e-9)
    two = np.stack([corner, corner + [0.01, 0, 0]])
    path = cxi(tmp_path / "two.cxi", (3, 2, 40, 60), corner_position=two, basis_vectors=[[ss, fs]] * 2)
    assert np.allclose(q_map(PanelGeometry.from_frames(open_frames(path)))[1], q_of(two[1], fs, ss), rtol=1e-9)
    lost = cxi(tmp_path / "lost.cxi", (3, 4, 40, 60), corner_position=two, basis_vectors=[[ss, fs]] * 2)
    refused("corner_position of .* has 2 entries; expected one for each of the 4 modules", lost)
    refused("expected square pixels", cxi(tmp_path / "f.cxi", corner_position=corner, basis_vectors=[2 * ss, fs]))


def test_a_stack_whose_frames_come_last(tmp_path):
    stack = np.random.default_rng(0).poisson(9, (40, 60, 6)).astype("u2")
    np.save(tmp_path / "a.npy", stack)
    message = refused("a.npy has shape", tmp_path / "a.npy", **KNOWN)
    assert "40 frames of 60 × 6 pixels if the frame comes first; give axes=yxn" in message
    ds = open_frames(tmp_path / "a.npy", axes="yxn", **KNOWN)
    assert is_lazy(ds["intensity"]) and np.array_equal(ds["intensity"], np.moveaxis(stack, -1, 0))
    assert open_frames(tmp_path / "a.npy", axes="nyx", **(KNOWN | {"beam_center": (3, 30)})).sizes["frame"] == 40
    refused("axes='xyn'", tmp_path / "a.npy", axes="xyn", **KNOWN)
    refused("is for .npy files", edf(tmp_path / "a.edf"), axes="yxn")
    assert main(["data", "convert", str(tmp_path / "a.npy"), str(tmp_path / "a.h5"), "axes=yxn", *TOLD]) == 0
    assert open_frames(tmp_path / "a.h5", complete=False).sizes["frame"] == 6
    refused("axes cannot be replaced", tmp_path / "a.h5", axes="yxn")


def test_a_named_detector_of_another_shape_is_refused_tilted_or_not(tmp_path):
    need("pyFAI")
    np.save(tmp_path / "a.npy", counts(60, 100)[None])
    for rot in (0, 0.3):
        (tmp_path / "a.poni").write_text(
            "poni_version: 2.1\nDetector: Pilatus100k\nDetector_config: {}\nDistance: 0.2\nPoni1: 0.003\nPoni2: 0.005\n"
            f"Rot1: {rot}\nRot2: 0\nRot3: 0\nWavelength: 1.1e-10\n"
        )
        refused(r"a.poni is for a detector of shape \(195, 487\)", tmp_path / "a.npy", geometry=tmp_path / "a.poni")


def test_an_impossible_geometry_file_is_refused(tmp_path):
    need("pyFAI")
    np.save(tmp_path / "a.npy", counts(60, 100)[None])
    (tmp_path / "a.poni").write_text("poni_version: 2\nDetector: Detector\nDetector_config: {\"pixel1\": 1e-4, \"pixel2\": 1e-4}\n"
        "Distance: 200\nPoni1: 0.003\nPoni2: 0.005\nRot1: 0\nRot2: 0\nRot3: 0\nWavelength: 1.1e-10\n")  # fmt: skip
    message = refused("a.poni: distance is 200.0 m", tmp_path / "a.npy", geometry=tmp_path / "a.poni")
    assert "if 200 mm is meant" in message


def test_convert_replaces_nothing_unless_told(tmp_path, capsys):
    np.save(tmp_path / "a.npy", counts()[None])
    target = tmp_path / "a.h5"
    words = ["data", "convert", str(tmp_path / "a.npy"), str(target), *TOLD]
    assert main(words) == 0
    before = target.read_bytes()
    np.save(tmp_path / "a.npy", counts(seed=1)[None])
    assert main(words) == 2 and target.read_bytes() == before
    assert "a.h5 exists already; expected a new name, or --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0 and target.read_bytes() != before


def test_a_negative_seed_is_refused(tmp_path, capsys):
    assert main(["data", "simulate", "sim128", "-n", "1", "-o", str(tmp_path / "a.h5"), "--seed", "-1"]) == 2
    assert "seed is -1; expected a whole number, 0 or more" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_agree_of_nothing_said():
    assert agree([("a", 1, {}), ("b", 1, {})]) == ({}, {})
