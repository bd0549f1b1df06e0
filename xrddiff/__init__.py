"""Generative models of X-ray diffraction that beamline scientists can trust.

`import xrddiff as xd` has what a notebook needs: `xd.open_frames`, `xd.load`, `xd.train`, `xd.open_run`, … (see `xrddiff.front_door.door`).
Each is loaded when it is first used; the import itself loads nothing.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # as in `typing`, which need not be loaded for it
if TYPE_CHECKING:
    from .front_door.door import (
        BadInput,
        TrainedRun,
        XrddiffError,
        compare,
        compare_runs,
        configure,
        explore,
        index,
        jobs,
        list_data,
        load,
        load_exported,
        make_frames,
        monitor,
        open_frames,
        open_run,
        runs,
        select_frames,
        show,
        train,
    )

__all__ = [
    "BadInput",
    "TrainedRun",
    "XrddiffError",
    "compare",
    "compare_runs",
    "configure",
    "explore",
    "index",
    "jobs",
    "list_data",
    "load",
    "load_exported",
    "make_frames",
    "monitor",
    "open_frames",
    "open_run",
    "runs",
    "select_frames",
    "show",
    "train",
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .front_door import door

    door.show_frames_in_notebooks()
    globals()[name] = found = getattr(door, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
