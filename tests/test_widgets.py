"""The frame explorer and its relatives in a real JupyterLab: moved by mouse and by keyboard, and what the page then shows."""

from __future__ import annotations

import re

import h5py
import numpy as np
import pytest
from axe import faults
from conftest import need
from lab import notebooks_of

import xrddiff as xd
from xrddiff.app.widgets.mask_edits import code_of
from xrddiff.core.errors import BadInput
from xrddiff.data.formats.mask_files import load_mask
from xrddiff.data.formats.store import save_frames
from xrddiff.data.frames.frames import make_frames
from xrddiff.data.frames.geometry import PanelGeometry, d_map, q_map, two_theta

CELLS = (
    """\
import xrddiff as xd
from xrddiff.app.widgets.canvas import CanvasImage, FrameView, picture_of

frames = xd.load("sim128", limit=6).load()
a, b = (picture_of(frames, k, f"frame {k}") for k in range(2))
difference = CanvasImage("difference", a.intensity - b.intensity.astype(float), signed=5.0, geometry=a.geometry)
FrameView([a, b, difference], height=300)""",
    "w = xd.explore('own.h5', distance=0.1, pixel_size=75e-6, beam_center=(60, 70), wavelength=1.3)\nw",
    """\
from xrddiff.data.frames.noise import draw_counts

made = draw_counts(frames, seed=1)
made["intensity"][:, 20:30, 60:90] = 3
c = xd.compare(frames, made, names=("measured", "made"), height=330)
c""",
    """FrameView([picture_of(xd.open_frames("panels.h5"), 0, "two panels")], height=300)""",
    "xd.explore('large.h5', height=300)",
    "p = xd.explore('powder.h5', distance=0.06, pixel_size=2e-4, beam_center=(150, 170), wavelength=0.7)\np",
    """\
from xrddiff.physics.indexing.known_lattices import known_lattices

xd.explore(frames, indexing=known_lattices(frames), height=330)""",
    "xd.explore('stopped.h5', automask=[], distance=0.1, pixel_size=1e-4, beam_center=(210, 190), wavelength=1.0, height=330)",
    """\
import time
from pathlib import Path
from xrddiff.data.frames.automask import masking_of

gap = xd.open_frames("gap.h5", distance=0.1, pixel_size=1e-4, beam_center=(450, 400), wavelength=1.0)
masking = masking_of(gap)
make = masking._work_out

def patient():
    while not Path("go").exists():
        time.sleep(0.02)
    return make()

masking._work_out = patient
xd.explore(gap, height=330)""",
)


def stack():
    """A frame of two panels, which stand apart and are turned and tilted against one another; every pixel has its own value."""
    pixel, (c, s) = 1e-4, (np.cos(0.3), np.sin(0.3))
    panels = {
        "origin": [[-6e-3, -3e-3, 0.09], [1e-3, -2e-3, 0.1]],
        "fs": [[pixel, 0, 0], [pixel * c, pixel * s, 0]],
        "ss": [[0, pixel, 0], [-pixel * s, pixel * c, 1e-5]],
    }
    values = np.arange(2 * 40 * 50, dtype=np.uint16).reshape(1, 2, 40, 50)
    return make_frames(values, panels=panels, wavelength=1.3)


def own_file(path) -> np.ndarray:
    """A file such as a user has: counts of 30 frames in HDF5, with no metadata, one row of pixels dead, and a hot pixel."""
    y, x = np.mgrid[:140, :120]
    spots = np.random.default_rng(1)
    counts = spots.poisson(4 + 20 * np.exp(-np.hypot(y - 70, x - 60) / 20), (30, 140, 120)).astype(np.uint16)
    for frame in counts:
        for _ in range(25):
            cy, cx = spots.uniform(5, 115, 2)
            frame += spots.poisson(200 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 2)).astype(np.uint16)
    counts[:, 100] = 0
    counts[:, 12, 30] = 60000
    with h5py.File(path, "w") as file:
        file["data"] = counts
    return counts


def large_file(path) -> np.ndarray:
    """Three frames that are too large for the screen, with a bright pixel in each, and a dead row."""
    counts = np.random.default_rng(2).poisson(3, (3, 800, 900)).astype(np.uint16)
    counts[:, 201, 301] = 700, 800, 900
    counts[:, 100] = 65535
    with h5py.File(path, "w") as file:
        file["data"] = counts
    return counts


def gap_file(path) -> np.ndarray:
    """Two frames that are too large for the screen, with a gap that only the frames together show."""
    counts = np.random.default_rng(5).poisson(6, (2, 800, 900)).astype(np.uint16)
    counts[:, :, 300:330] = 0
    with h5py.File(path, "w") as file:
        file["data"] = counts
    return counts


def powder_file(path) -> tuple[float, float]:
    """Rings of LaB6 about a centre, which is returned, with a gap."""
    x0, y0 = 141.3, 176.6
    y, x = np.mgrid[:340, :300] + 0.5
    mean = 4 + 3 * np.exp(-np.hypot(x - x0, y - y0) / 90)
    for n in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 16):
        ring = 0.06 * np.tan(2 * np.arcsin(0.35 * np.sqrt(n) / 4.156826)) / 2e-4
        mean += 12 * np.exp(-((np.hypot(x - x0, y - y0) - ring) ** 2) / 4)
    counts = np.random.default_rng(3).poisson(mean, (2, 340, 300)).astype(np.uint16)
    counts[:, :, 195:205] = 0
    with h5py.File(path, "w") as file:
        file["data"] = counts
    return x0, y0


def stopped_file(path) -> np.ndarray:
    """Two frames with the shadow of a beamstop and its holder, bool (y, x), which is returned."""
    y, x = np.mgrid[:400, :420] + 0.5
    r = np.hypot(x - 210, y - 190)
    shadow = (r < 22) | ((np.abs(x - 210) < 7) & (y > 190))
    mean = np.where(shadow, 0.1, 1.0) * (20 * np.exp(-r / 150) + 5)
    with h5py.File(path, "w") as file:
        file["data"] = np.random.default_rng(4).poisson(mean, (2, 400, 420)).astype(np.uint16)
    return shadow


@pytest.fixture(scope="module")
def notebooks(jupyter):
    """One browser for all tests here."""
    with notebooks_of(jupyter) as found:
        yield found


@pytest.fixture(scope="module")
def page(notebooks):
    own_file(notebooks.folder / "own.h5")
    save_frames(stack(), notebooks.folder / "panels.h5")
    large_file(notebooks.folder / "large.h5")
    powder_file(notebooks.folder / "powder.h5")
    stopped_file(notebooks.folder / "stopped.h5")
    gap_file(notebooks.folder / "gap.h5")
    page = notebooks.open(CELLS)
    until(page, lambda: page.locator(".xrddiff[data-zoom]").count() == len(CELLS))
    return page


def number(root, name: str) -> float:
    return float(root.get_attribute(f"data-{name}"))


def limits(root) -> list[float]:
    return [float(v) for v in root.get_attribute("data-limits").split()]


def until(page, condition, seconds: float = 30) -> None:
    """Wait for `condition()`."""
    for _ in range(int(20 * seconds)):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it never came to that")


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()


@pytest.mark.slow
def test_pictures_are_moved_by_mouse_and_by_keyboard(page, notebooks):
    root = page.locator(".xrddiff").nth(0)
    panes = root.locator("canvas.xrddiff-over")
    whole = number(root, "zoom")
    # the wheel zooms once a picture has been clicked, and dragging moves all of them
    panes.first.click(position={"x": 100, "y": 100})
    page.mouse.wheel(0, -400)
    until(page, lambda: number(root, "zoom") > 1.2 * whole)
    centre, box = root.get_attribute("data-centre"), panes.nth(1).bounding_box()
    drag(page, (box["x"] + 150, box["y"] + 150), (box["x"] + 90, box["y"] + 110))
    until(page, lambda: root.get_attribute("data-centre") != centre)
    assert "x " in root.locator(".xrddiff-readout").inner_text()
    # keys: the whole picture, a cross, zoom
    panes.first.focus()
    page.keyboard.press("0")
    until(page, lambda: number(root, "zoom") == whole)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    said = root.locator(".xrddiff-readout").inner_text()
    assert all(name in said for name in ("x ", "y ", "q ", "d ", "2θ ", "frame 0", "frame 1", "difference"))
    page.keyboard.press("+")
    until(page, lambda: number(root, "zoom") > 1.4 * whole)
    assert page.locator(".jp-Notebook .jp-Cell").count() == len(CELLS)  # no key was a command to JupyterLab
    # contrast by its handles
    high = limits(root)[1]
    handle = root.get_by_role("slider", name="contrast, high")
    handle.focus()
    page.keyboard.press("ArrowLeft")
    until(page, lambda: limits(root)[1] < high)
    box, at = root.locator(".xrddiff-histogram").bounding_box(), handle.bounding_box()
    drag(page, (at["x"] + at["width"] / 2, at["y"] + 10), (box["x"] + 0.4 * box["width"], box["y"] + 10))
    until(page, lambda: limits(root)[1] < 0.7 * high)
    root.get_by_label("scale").select_option("linear")
    root.get_by_role("button", name="contrast: automatic").click()
    until(page, lambda: limits(root)[1] > 0.7 * high)
    assert notebooks.strangers() == [] and faults(page, ".xrddiff") == []


@pytest.mark.slow
def test_the_explorer_goes_through_a_file_and_saves_a_mask(page, notebooks):
    root = page.locator(".xrddiff").nth(1)
    picture, readout = root.locator("canvas.xrddiff-over"), root.locator(".xrddiff-readout")
    counts = own_file(notebooks.folder / "again.h5")
    # frames: by arrows and by mouse on the slider, by keys on the picture, by number
    slider = root.get_by_role("slider", name="frame")
    slider.focus()
    page.keyboard.press("ArrowRight")
    until(page, lambda: number(root, "frame") == 1)
    slider.click()
    until(page, lambda: 12 < number(root, "frame") < 18)
    picture.focus()
    at = number(root, "frame")
    page.keyboard.press("PageDown")
    until(page, lambda: number(root, "frame") == at + 1)
    root.get_by_role("spinbutton", name="frame number").fill("7")
    page.keyboard.press("Enter")
    until(page, lambda: number(root, "frame") == 7)
    # what is under the pointer: the value that is in the file, the angle by its definition
    box, zoom = picture.bounding_box(), number(root, "zoom")
    left, top = box["x"] + box["width"] / 2 - 60 * zoom, box["y"] + box["height"] / 2 - 70 * zoom
    page.mouse.move(left + 40.5 * zoom, top + 33.5 * zoom)
    angle = np.degrees(np.arctan2(np.hypot(40.5 - 60, 33.5 - 70) * 75e-6, 0.1))
    q = 4 * np.pi / 1.3 * np.sin(np.radians(angle / 2))
    said = readout.inner_text()
    for part in ("x 40", "y 33", f"2θ {angle:.2f}°", f"q {q:.3f}", f"value {counts[7, 33, 40]}"):
        assert part in said, said
    page.mouse.move(left + 50.5 * zoom, top + 100.5 * zoom)
    until(page, lambda: "masked" in readout.inner_text())
    # peaks
    root.get_by_label("find peaks").check()
    root.locator(".xrddiff-legend", has_text="found").wait_for()
    # a rectangle by mouse, a polygon by keyboard, a threshold, and one of them undone
    root.locator("summary", has_text="Edit the mask").click()
    tool = root.get_by_label("mouse")
    tool.select_option("rectangle")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    left, top = box["x"] + box["width"] / 2 - 60 * zoom, box["y"] + box["height"] / 2 - 70 * zoom
    drag(page, (left + 20 * zoom, top + 40 * zoom), (left + 40 * zoom, top + 60 * zoom))
    undo = root.get_by_role("button", name="undo the last edit of the mask")
    until(page, lambda: undo.inner_text() == "Undo (1)")
    root.locator(".xrddiff-legend", has_text="by hand").wait_for()
    tool.select_option("polygon")
    picture.focus()
    page.keyboard.press("ArrowRight")
    for keys in (
        ["Space"],
        ["Shift+ArrowRight", "Shift+ArrowRight", "Space"],
        ["Shift+ArrowDown", "Shift+ArrowDown", "Space"],
        ["Enter"],
    ):
        for key in keys:
            page.keyboard.press(key)
    until(page, lambda: undo.inner_text() == "Undo (2)")
    root.get_by_label("above").fill("5000")
    root.get_by_role("button", name="mask by value in this frame").click()
    until(page, lambda: undo.inner_text() == "Undo (3)")
    root.get_by_label("values below").fill("1000000")
    root.get_by_role("button", name="mask by value in this frame").click()
    until(page, lambda: undo.inner_text() == "Undo (4)")
    picture.focus()
    page.keyboard.press("u")
    until(page, lambda: undo.inner_text() == "Undo (3)")
    root.get_by_label("save as").fill("by_hand.npy")
    root.get_by_role("button", name="save the mask").click()
    root.get_by_role("status").filter(has_text="saved by_hand.npy").wait_for()
    notebooks.picture("explorer", root)
    good, _ = load_mask(notebooks.folder / "by_hand.npy")
    corner = slice(41, 59), slice(21, 39)  # the mouse is exact to a pixel
    assert not good[corner].any() and not good[12, 30] and 18**2 < (~good[:, :60][35:65]).sum() < 24**2
    assert 190 < (~good).sum() - (~good[corner]).sum() - 120 < 500
    ds = xd.open_frames(notebooks.folder / "own.h5", mask=notebooks.folder / "by_hand.npy", complete=False)
    assert not ds["mask"].isel(frame=3).values[corner].any()
    assert faults(page, ".xrddiff") == []
    # a wrong name is told in the widget, where it can be put right
    field = root.get_by_label("file or name")
    for name, sentence in (("owm.h5", "owm.h5"), ("own.h5", "")):
        field.fill(name)
        page.keyboard.press("Enter")
        alert = root.locator("[role=alert]")
        until(
            page,
            lambda alert=alert, sentence=sentence: (
                sentence in alert.inner_text() and alert.is_visible() == bool(sentence)
            ),
        )
    until(page, lambda: root.locator("canvas.xrddiff-over").count() == 1 and number(root, "frame") == 0)


def corner(picture, size: tuple[int, int], zoom: float) -> tuple[float, float]:
    """Where the corner of a whole picture of (width, height) px is on the screen."""
    box = picture.bounding_box()
    return tuple(
        box[k] + box[side] / 2 - n / 2 * zoom for k, side, n in zip("xy", ("width", "height"), size, strict=True)
    )


def numbers(root) -> dict[str, float]:
    """What the statistics of the box say."""
    found = [item.inner_text().split("\n") for item in root.locator(".xrddiff-numbers > div").all()]
    return {name: float(v.replace("−", "-")) for name, v in found}


def fourth_frame(page, notebooks):
    """(the widget of the own file, its picture, the counts of the file), at frame 4."""
    root = page.locator(".xrddiff").nth(1)
    picture, counts = root.locator("canvas.xrddiff-over"), own_file(notebooks.folder / "again.h5")
    root.get_by_role("spinbutton", name="frame number").fill("4")
    page.keyboard.press("Enter")
    until(page, lambda: number(root, "frame") == 4)
    return root, picture, counts


@pytest.mark.slow
def test_a_line_and_a_box_are_measured(page, notebooks):
    root, picture, counts = fourth_frame(page, notebooks)
    picture.focus()
    for key in ("0", "b"):
        page.keyboard.press(key)
    tool = root.get_by_label("mouse")
    assert tool.input_value() == "box"
    # a box by mouse: what NumPy says of the same pixels, without the dead row
    picture.scroll_into_view_if_needed()
    zoom = number(root, "zoom")
    left, top = corner(picture, (120, 140), zoom)
    drag(page, (left + 41 * zoom, top + 61 * zoom), (left + 80 * zoom, top + 121 * zoom))
    root.locator(".xrddiff-numbers").wait_for()
    found = numbers(root)
    inside = np.delete(counts[4, 61:121, 41:80], 39, axis=0)
    assert abs(found["n"] - inside.size) < 110 and found["masked"] in (38, 39, 40)  # the mouse is exact to a pixel
    assert found["max"] == inside.max() and np.isclose(found["mean"], inside.mean(), rtol=0.03)
    # a line by keyboard, from the middle of a pixel to that of another
    tool.select_option("line")
    picture.focus()
    page.mouse.move(left + 40.5 * zoom, top + 33.5 * zoom)
    page.keyboard.press("Space")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Space")
    curve = root.locator("[data-plot=line]")
    curve.wait_for()
    assert curve.get_attribute("data-n") == "41" and f"up to {counts[4, 33, 40:81].max()};" in str(
        curve.locator("canvas").get_attribute("aria-label")
    )
    # both stay where they are in the next frame
    page.keyboard.press("PageDown")
    until(page, lambda: numbers(root)["sum"] != found["sum"])
    assert f"up to {counts[5, 33, 40:81].max()};" in str(curve.locator("canvas").get_attribute("aria-label"))
    notebooks.picture("measured", root)
    assert faults(page, ".xrddiff") == []
    root.get_by_role("button", name="remove the line and the box").click()
    until(page, lambda: not curve.count() and not root.locator(".xrddiff-numbers").is_visible())
    picture.focus()
    page.keyboard.press("p")
    assert tool.input_value() == "look"


@pytest.mark.slow
def test_colours_limits_a_pixel_and_the_radial_curve(page, notebooks):
    root, picture, counts = fourth_frame(page, notebooks)
    # limits by hand, each on its own; automatic by key
    root.get_by_label("brightest value").fill("25")
    page.keyboard.press("Enter")
    until(page, lambda: limits(root)[1] == 25)
    least = limits(root)[0]
    root.get_by_label("darkest value").fill("5")
    page.keyboard.press("Enter")
    until(page, lambda: limits(root) == [5, 25])
    # colours: what is drawn is grey, its brightest white
    pixels = """root => [...root.querySelector("canvas.xrddiff-base").getContext("2d").getImageData(150, 100, 200, 200).data]"""
    root.get_by_label("colours").select_option("gray")
    root.get_by_label("mask", exact=True).uncheck()

    def drawn():
        return np.array(root.evaluate(pixels)).reshape(-1, 4)[:, :3]

    until(page, lambda: (drawn() == drawn()[:, :1]).all())
    assert drawn().max() == 255 and drawn().min() == 0
    root.get_by_label("colours").select_option("inferno")
    picture.focus()
    page.keyboard.press("a")
    until(page, lambda: limits(root)[0] == least and limits(root)[1] not in (25, least))
    # a pixel by its number
    page.keyboard.press("g")
    page.keyboard.type("33")
    page.keyboard.press("Tab")
    page.keyboard.type("47")
    page.keyboard.press("Enter")
    readout = root.locator(".xrddiff-readout")
    until(page, lambda: f"value {counts[4, 47, 33]}" in readout.inner_text().replace("\n", " "))
    assert "x 33" in readout.inner_text().replace("\n", " ") and number(root, "zoom") >= 10
    picture.focus()
    page.keyboard.press("0")
    # the radial curve: what NumPy says of rings about the centre, without the dead row and the hot pixel
    root.get_by_role("checkbox", name="radial curve").focus()
    page.keyboard.press("Space")
    curve = root.locator("[data-plot=radial]")
    curve.wait_for()
    y, x = np.mgrid[:140, :120]
    ring, good = np.hypot(x + 0.5 - 60, y + 0.5 - 70).astype(int), np.ones((140, 120), bool)
    good[100] = good[12, 30] = False
    mean = np.bincount(ring[good], counts[4][good]) / np.bincount(ring[good])
    said = str(curve.locator("canvas").get_attribute("aria-label"))
    assert f"{len(mean)} values" in said and "q, 1/Å" in said
    assert np.isclose(float(re.search("up to ([0-9.]+)", said)[1]), mean.max(), rtol=0.05)
    notebooks.picture("radial", root)
    assert faults(page, ".xrddiff") == []
    root.get_by_role("checkbox", name="radial curve").uncheck()
    until(page, lambda: not curve.count())


@pytest.mark.slow
def test_the_centre_is_dragged_onto_rings_and_fitted(page, notebooks):
    root = page.locator(".xrddiff").nth(5)
    picture, true = root.locator("canvas.xrddiff-over"), powder_file(notebooks.folder / "again.h5")

    def centre():
        return [float(v) for v in root.get_attribute("data-beam").split()]

    def fitted():
        return np.hypot(centre()[0] - true[0], centre()[1] - true[1]) < 0.3

    until(page, lambda: centre() == [150, 170])
    root.locator("summary", has_text="beam centre").click()
    root.get_by_label("rings of").select_option("LaB6")
    # by mouse: dragged to a few pixels from the truth, then fitted
    root.get_by_label("mouse").select_option("centre")
    picture.scroll_into_view_if_needed()
    zoom = number(root, "zoom")
    left, top = corner(picture, (300, 340), zoom)
    start = left + 60 * zoom, top + 80 * zoom
    drag(page, start, (start[0] - 5 * zoom, start[1] + 4 * zoom))
    until(page, lambda: np.hypot(centre()[0] - 145, centre()[1] - 174) < 1.1)
    assert not fitted()
    button = root.get_by_role("button", name="fit the centre to the rings")
    button.click()
    root.get_by_role("status").filter(has_text="beam_center=").wait_for()
    until(page, fitted)
    notebooks.picture("centre", root)
    assert faults(page, ".xrddiff") == []
    # angles under the pointer are from the new centre
    picture.scroll_into_view_if_needed()
    left, top = corner(picture, (300, 340), zoom)
    page.mouse.move(left + 40.5 * zoom, top + 80.5 * zoom)
    until(page, lambda: "2θ" in root.locator(".xrddiff-readout").inner_text())
    said = " ".join(root.locator(".xrddiff-readout").inner_text().split())
    x, y = (int(re.search(f"{name} ([0-9]+)", said)[1]) for name in "xy")
    angle = np.degrees(np.arctan2(np.hypot(x + 0.5 - true[0], y + 0.5 - true[1]) * 2e-4, 0.06))
    assert abs(float(re.search("2θ ([0-9.]+)°", said)[1]) - angle) < 0.1
    # by keyboard: reset, the cross, Space, and the button
    root.get_by_role("button", name="the centre as the frames have it").focus()
    page.keyboard.press("Enter")
    until(page, lambda: centre() == [150, 170])
    picture.scroll_into_view_if_needed()
    left, top = corner(picture, (300, 340), zoom)
    page.mouse.move(left + 137.5 * zoom, top + 180.5 * zoom)
    picture.focus()
    page.keyboard.press("c")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    until(page, lambda: np.hypot(centre()[0] - 138.5, centre()[1] - 180.5) < 1.6)
    button.focus()
    page.keyboard.press("Enter")
    until(page, fitted)
    # far away there is a sentence
    root.get_by_label("centre x").fill("80")
    page.keyboard.press("Enter")
    until(page, lambda: centre()[0] == 80)
    button.click()
    until(page, lambda: "drag the centre nearer" in root.locator("[role=alert]").inner_text())


@pytest.mark.slow
def test_the_spots_of_an_indexed_frame_are_marked(page, notebooks):
    root = page.locator(".xrddiff").nth(6)
    box = root.get_by_role("checkbox", name=re.compile("^predicted"))
    box.wait_for()
    yellow = """root => { const c = root.querySelector("canvas.xrddiff-over"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
      let n = 0; for (let k = 0; k < d.length; k += 4) n += d[k] > 220 && d[k + 1] > 210 && d[k + 2] < 110 && d[k + 3] > 200; return n; }"""
    until(page, lambda: root.evaluate(yellow) > 500)
    first = box.evaluate("e => e.parentElement.innerText")
    notebooks.picture("predicted", root)
    root.locator("canvas.xrddiff-over").focus()
    page.keyboard.press("PageDown")
    until(page, lambda: number(root, "frame") == 1 and box.evaluate("e => e.parentElement.innerText") != first)
    box.focus()
    page.keyboard.press("Space")
    until(page, lambda: root.evaluate(yellow) == 0)
    assert faults(page, ".xrddiff") == []


@pytest.mark.slow
def test_a_beamstop_is_masked_in_one_click(page, notebooks):
    root = page.locator(".xrddiff").nth(7)
    shadow = stopped_file(notebooks.folder / "again.h5")
    root.locator("summary", has_text="Edit the mask").click()
    button = root.get_by_role("button", name="mask the shadow of the beamstop")
    button.click()
    undo = root.get_by_role("button", name="undo the last edit of the mask")
    until(page, lambda: undo.inner_text() == "Undo (1)")
    root.locator(".xrddiff-legend", has_text="by hand").wait_for()
    notebooks.picture("beamstop", root)
    undo.click()
    until(page, lambda: undo.inner_text() == "Undo")
    button.focus()
    page.keyboard.press("Enter")
    until(page, lambda: undo.inner_text() == "Undo (1)")
    root.get_by_label("save as").fill("stop.npy")
    root.get_by_role("button", name="save the mask").click()
    root.get_by_role("status").filter(has_text="saved stop.npy").wait_for()
    good, _ = load_mask(notebooks.folder / "stop.npy")
    assert (~good)[shadow].mean() > 0.95 and (~good)[~shadow].mean() < 1e-2


@pytest.mark.slow
def test_two_sets_are_compared(page, notebooks):
    root = page.locator(".xrddiff").nth(2)
    note = root.locator(".xrddiff-note").first
    until(page, lambda: "peaks matched within 2 px" in note.inner_text())
    said = note.inner_text()
    root.get_by_role("button", name="next frame").click()
    until(
        page, lambda: number(root, "frame") == 1 and "peaks matched" in note.inner_text() and note.inner_text() != said
    )
    notebooks.picture("compare", root)
    root.locator("canvas.xrddiff-over").nth(2).focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowUp")
    until(page, lambda: number(root, "frame") == 2)
    assert "residual" in root.locator(".xrddiff-readout").inner_text()
    box = root.get_by_role("checkbox", name="missed")
    box.focus()
    page.keyboard.press("Space")
    assert not box.is_checked() and faults(page, ".xrddiff") == []


@pytest.mark.slow
def test_what_is_under_the_pointer_belongs_to_a_panel(page):
    root, frames = page.locator(".xrddiff").nth(3), stack()
    geometry = PanelGeometry.from_frames(frames)
    image = geometry.assemble(frames["intensity"].values[0])[0]
    picture, readout = root.locator("canvas.xrddiff-over"), root.locator(".xrddiff-readout")
    picture.scroll_into_view_if_needed()
    box, zoom = picture.bounding_box(), number(root, "zoom")
    left = box["x"] + box["width"] / 2 - image.shape[1] / 2 * zoom
    top = box["y"] + box["height"] / 2 - image.shape[0] / 2 * zoom
    q, d, angle = q_map(geometry), d_map(geometry), np.degrees(two_theta(geometry))
    for panel, ss, fs in ((0, 7, 31), (1, 22, 40)):
        at = int(geometry.placement.index[panel, ss, fs])
        y, x = divmod(at, image.shape[1])
        page.mouse.move(left + (x + 0.5) * zoom, top + (y + 0.5) * zoom)
        until(page, lambda x=x, y=y: f"x {x}" in readout.inner_text() and f"y {y}" in readout.inner_text())
        said = readout.inner_text()
        own = panel, ss, fs
        for part in (
            f"panel {panel} (fs {fs}, ss {ss})",
            f"q {q[own]:.3f}",
            f"2θ {angle[own]:.2f}°",
            f"value {image[y, x]}",
        ):
            assert part in said, said
        assert float(re.search(r"d ([\d.]+) Å", said)[1]) == pytest.approx(d[own], rel=1e-3)
    gaps = np.setdiff1d(np.arange(image.size), geometry.placement.index)
    y, x = divmod(int(gaps[len(gaps) // 2]), image.shape[1])
    page.mouse.move(left + (x + 0.5) * zoom, top + (y + 0.5) * zoom)
    until(page, lambda: "between the panels" in readout.inner_text())
    assert "panel " not in readout.inner_text().replace("the panels", "")


INK = """(root) => {
  const plot = root.querySelector(".xrddiff-histogram canvas"), { data } = plot.getContext("2d").getImageData(0, 0, plot.width, plot.height);
  let sum = 0, n = 0;
  for (let k = 0; k < data.length; k += 4) if (data[k + 3] > 100) { sum += data[k]; n += 1; }
  return sum / n;
}"""


@pytest.mark.slow
def test_what_is_drawn_follows_the_theme(page):
    root = page.locator(".xrddiff").first
    change = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
    light = root.evaluate(INK)
    try:
        page.evaluate(change, "JupyterLab Dark")
        until(page, lambda: root.evaluate(INK) > light + 80)
    finally:
        page.evaluate(change, "JupyterLab Light")
    until(page, lambda: abs(root.evaluate(INK) - light) < 5)


DRAWN = (
    """(root) => { window.drawn = []; root.addEventListener("xrddiff-drawn", (e) => window.drawn.push(e.detail)); }"""
)


@pytest.mark.slow
def test_a_large_frame_is_a_preview_until_the_slider_rests(page):
    root = page.locator(".xrddiff").nth(4)
    root.scroll_into_view_if_needed()
    until(page, lambda: root.get_attribute("data-whole") == "true")
    root.evaluate(DRAWN)
    picture, readout = root.locator("canvas.xrddiff-over"), root.locator(".xrddiff-readout")
    root.get_by_role("slider", name="frame").focus()
    page.keyboard.press("ArrowRight")

    def drawn(frame):
        return [d["whole"] for d in page.evaluate("() => window.drawn") if d["frame"] == frame]

    until(page, lambda: True in drawn(1))
    assert drawn(1)[0] is False
    picture.scroll_into_view_if_needed()
    box, zoom = picture.bounding_box(), number(root, "zoom")
    left, top = (box[k] + box[size] / 2 - n / 2 * zoom for k, size, n in (("x", "width", 900), ("y", "height", 800)))
    page.mouse.move(left + 301.5 * zoom, top + 201.5 * zoom)
    until(page, lambda: "x 30" in readout.inner_text())
    picture.focus()
    page.keyboard.press("0")
    # the row that holds no counts is masked, and the bright pixel is seen in the preview as in the whole
    page.mouse.move(left + 450 * zoom, top + 100.5 * zoom)
    until(page, lambda: "masked" in readout.inner_text())
    # whoever looks closely does not wait
    page.keyboard.press("PageDown")
    for _ in range(3):
        page.keyboard.press("+")
    until(page, lambda: True in drawn(2))


@pytest.mark.slow
def test_a_frame_is_on_the_screen_before_its_mask_is_made(page, notebooks):
    root = page.locator(".xrddiff").nth(8)
    root.scroll_into_view_if_needed()
    until(page, lambda: root.get_attribute("data-whole") == "true")
    picture, readout = root.locator("canvas.xrddiff-over"), root.locator(".xrddiff-readout")
    box, zoom = picture.bounding_box(), number(root, "zoom")
    left, top = (box[k] + box[size] / 2 - n / 2 * zoom for k, size, n in (("x", "width", 900), ("y", "height", 800)))
    page.mouse.move(left + 315 * zoom, top + 200 * zoom)
    until(page, lambda: "value 0" in readout.inner_text())
    (notebooks.folder / "go").touch()
    until(page, lambda: "masked" in readout.inner_text())


@pytest.mark.slow
def test_in_notebook_7(notebooks):
    """Served by the same server. It comes last: the notebook of the tests above is closed."""
    need("notebook")
    page = notebooks.open_in_notebook(["import xrddiff as xd", "xd.explore('sim128', height=300)"])
    root = page.locator(".xrddiff[data-zoom]")
    root.wait_for()
    root.get_by_role("slider", name="frame").focus()
    page.keyboard.press("ArrowRight")
    until(page, lambda: number(root, "frame") == 1)
    assert notebooks.strangers() == []


def test_a_file_that_goes_away_is_a_sentence(tmp_path):
    from fabio.tifimage import TifImage

    rng = np.random.default_rng(0)
    for k in range(4):
        TifImage(data=rng.poisson(9, (32, 32)).astype(np.uint16)).write(str(tmp_path / f"run_{k}.tif"))
    w = xd.explore(tmp_path, frame=1)
    assert (w.n_frames, w.sentence) == (4, "") and "wavelength (Å)" in w.note and "run_1.tif" in w.pictures[0].title
    w._complete_mask()  # which looks at every frame
    (tmp_path / "run_2.tif").unlink()
    w.frame = 2
    assert "run_2.tif" in w.sentence and w._shown == 1
    w.frame = 3
    assert w.sentence == "" and w._shown == 3


def test_the_mask_follows_the_picture(tmp_path):
    """In a kernel the picture is shown with what its own values and the file say. The mask comes later, the limits stay."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    gap_file(tmp_path / "gap.h5")
    words = {"distance": 0.1, "pixel_size": 1e-4, "beam_center": (450, 400), "wavelength": 1.0}
    apart = ThreadPoolExecutor(1).submit  # the browser of the tests above runs a loop in this thread
    at_once = apart(xd.explore, tmp_path / "gap.h5", **words).result()
    assert (at_once.pictures[0].codes[:, 300:330] > 0).all()

    async def watch():
        w = xd.explore(tmp_path / "gap.h5", **words)
        first, limits, number = w.pictures[0].codes, w._auto, w._number
        while w.pictures[0].codes is first:
            await asyncio.sleep(0.01)
        assert not first.any() and np.array_equal(w.pictures[0].codes, at_once.pictures[0].codes)
        assert (w._auto, w._number, w.sentence) == (limits, number, "")  # the values are not sent again
        w.frame = 1
        assert (w.pictures[0].codes[:, 300:330] > 0).all() and w._number == number + 1
        again = xd.explore(tmp_path / "gap.h5", **words)
        again.guarded(again.mask_beamstop)()
        assert (again.pictures[0].codes[:, 300:330] > 0).all()  # what needs the mask waits for it

    apart(asyncio.run, watch()).result()


@pytest.fixture
def masks_wait(tmp_path, monkeypatch):
    """Masks are made as soon as `let` lets them: (two folders of frames, the numbers of those whose mask was begun, the sets that get none, tells a story of an explorer in a loop)."""
    import asyncio
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from fabio.tifimage import TifImage

    from xrddiff.app.widgets import explorer

    monkeypatch.setenv("XRDDIFF_CACHE", str(tmp_path / "cache"))
    rng, let, plain = np.random.default_rng(0), threading.Event(), explorer.frame_codes
    begun, fail = [], []
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        for k in range(4):
            TifImage(data=rng.poisson(9, (48, 48)).astype(np.uint16)).write(str(folder / f"r_{k}.tif"))

    def codes(ds, i, image, quick=False):
        if threading.current_thread().name.startswith("xrddiff"):
            begun.append(i)
            assert let.wait(60)
            if any(ds is one for one in fail):
                raise BadInput("no mask can be made")
        return plain(ds, i, image, quick)

    monkeypatch.setattr(explorer, "frame_codes", codes)

    async def ended():
        """All that was begun, and what it says to the loop."""
        let.set()
        for thread in [t for t in threading.enumerate() if t.name.startswith("xrddiff")]:
            await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)

    def story(tell):
        let.clear()
        begun.clear()
        words = {"distance": 0.1, "pixel_size": 1e-4, "beam_center": (24, 24), "wavelength": 1.0}

        async def told():
            await tell(xd.explore(folders[0], **words), ended)

        with ThreadPoolExecutor(1) as apart:
            apart.submit(asyncio.run, told()).result()

    yield folders, begun, fail, story
    let.set()


def test_a_mask_that_comes_late_changes_nothing_of_what_is_shown_then(masks_wait):
    """Neither the mask of the former source, nor that it could not be made; a sentence about what the user did meanwhile stays."""
    (a, b), _, fail, story = masks_wait

    async def another_source(w, ended):
        fail.append(w.frames)
        w.source = str(b)
        await ended()
        assert w.sentence == "" and w._read[3] and w.frames["intensity"].values[0].tolist() == w._read[1].tolist()

    async def no_source(w, ended):
        w.source = str(a / "nothing.h5")
        await ended()
        assert "nothing.h5 does not exist" in w.sentence and not w.pictures and not w.marks

    async def not_saved(w, ended):
        w.mask_file = str(a / "r_0.tif")
        w.guarded(w.save_mask)()
        await ended()
        assert "exists already" in w.sentence and w._read[3]

    async def closed(w, ended):
        w.close()
        await ended()
        assert not w._read[3] and w.sentence == ""

    for tell in (another_source, no_source, not_saved, closed):
        story(tell)


def test_a_mask_is_asked_for_once_and_comes_whatever_happens_meanwhile(masks_wait, monkeypatch):
    from xrddiff.app.widgets import explorer

    (a, b), begun, _, story = masks_wait

    async def busy(w, ended):
        w.find_peaks = True
        w.edits = [{"shape": "rectangle", "x": [1, 2], "y": [1, 2]}]
        w.find_peaks, w.edits = False, []
        await ended()
        assert begun == [0] and w._read[3]

    async def a_frame_that_cannot_be_read(w, ended):
        (a / "r_2.tif").rename(a / "away")
        w.frame = 2
        (a / "away").rename(a / "r_2.tif")
        await ended()
        assert "r_2.tif" in w.sentence and w._shown == 0 and w._read[3]

    async def interrupted(w, ended):
        def stop(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(explorer, "frame_codes", stop)
            with pytest.raises(KeyboardInterrupt):
                w.mask_beamstop()
        await ended()
        assert w._read[3]

    async def a_source_whose_first_frame_cannot_be_read(w, ended):
        def broken(*_):
            raise BadInput("it cannot be read")

        w.find_peaks = True
        with monkeypatch.context() as patch:
            patch.setattr(explorer, "frame_image", broken)
            w.source = str(b)
        await ended()
        assert "it cannot be read" in w.sentence and (w.n_frames, w._shown, w.pictures, w.marks) == (4, -1, [], [])
        w.frame = 1
        assert w._shown == 1 and "r_1.tif" in w.pictures[0].title and w.sentence == ""

    for tell in (busy, a_frame_that_cannot_be_read, interrupted, a_source_whose_first_frame_cannot_be_read):
        story(tell)


def test_the_still_picture_of_a_large_frame_keeps_spots_and_mask():
    """It is made from the preview: a single bright pixel is in it, a masked area is grey, and rings stand where they stood."""
    from xrddiff.app.widgets.canvas import CanvasImage, _shown_pixels

    image = np.random.default_rng(0).poisson(2, (1500, 1600)).astype(np.uint16)
    image[701, 803] = 500
    codes = np.zeros(image.shape, np.uint8)
    codes[:, 400:480] = 1
    shown, k = _shown_pixels(CanvasImage("large", image, codes=codes), 1.0)
    assert k == 4 and shown.shape == (375, 400) and shown[701 // 4, 803 // 4] == 500
    assert np.isnan(shown[:, 100:120]).all() and np.isfinite(shown[:, 120:]).all() and abs(np.nanmean(shown) - 2) < 0.2
    small, k = _shown_pixels(CanvasImage("small", image[:300, :500], codes=codes[:300, :500]), 1.0)
    assert k == 1 and np.array_equal(np.isnan(small), codes[:300, :500] > 0)


def test_words_fill_in_what_a_file_does_not_say(tmp_path):
    own_file(tmp_path / "own.h5")
    w = xd.explore(tmp_path / "own.h5", automask=[])
    assert w._pictures[0]["beam"] is None and "there are no angles and rings" in w.note
    w = xd.explore(tmp_path / "own.h5", distance=0.1, pixel_size=75e-6, beam_center=(60, 70), automask=[])
    assert w._pictures[0]["rings"] == [] and "no q, d and rings" in w.note and w._pictures[0]["beam"]["distance"] == 0.1
    w = xd.explore(tmp_path / "own.h5", distance=0.1, pixel_size=75e-6, beam_center=(60, 70), wavelength=1.3)
    assert len(w._pictures[0]["rings"]) >= 2 and w.note == ""
    w._complete_mask()
    codes = w.pictures[0].codes  # of 32 frames the rules see that a row is dead and a pixel hot
    assert (codes[100, 5:-5] > 0).all() and codes[12, 30] > 0 and (codes == code_of("by hand")).sum() == 0
    assert xd.explore(tmp_path / "own.h5", wavelenght=1.3).sentence.endswith("did you mean 'wavelength'?")
