"""Generative models of X-ray diffraction that beamline scientists can trust.

`import xrddiff as xd` has what a notebook needs: `xd.open_frames`, `xd.load`, `xd.train`, `xd.open_run`, … (see `xrddiff.app.front_door.door`).
Each is loaded when it is first used; the import itself loads nothing.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # as in `typing`, which need not be loaded for it
if TYPE_CHECKING:
    from .app.front_door.door import (
        BadInput,
        TrainedRun,
        XrddiffError,
        cancel,
        check,
        compare,
        compare_runs,
        configure,
        convert,
        crystal_posterior,
        evaluate,
        explore,
        fetch,
        index,
        inspect,
        jobs,
        list_data,
        load,
        load_exported,
        logs,
        make_frames,
        mask,
        merge,
        monitor,
        names,
        open_answers,
        open_frames,
        open_run,
        open_sweep,
        presets,
        pretrained,
        profiles,
        recover,
        replay,
        resume,
        runs,
        select_frames,
        settings,
        settings_diff,
        show,
        simulate,
        status,
        stream,
        submit,
        sweep,
        train,
        train_peaks,
        twin,
    )

__all__ = [
    "BadInput",
    "TrainedRun",
    "XrddiffError",
    "cancel",
    "check",
    "compare",
    "compare_runs",
    "configure",
    "convert",
    "crystal_posterior",
    "evaluate",
    "explore",
    "fetch",
    "index",
    "inspect",
    "jobs",
    "list_data",
    "load",
    "load_exported",
    "logs",
    "make_frames",
    "mask",
    "merge",
    "monitor",
    "names",
    "open_answers",
    "open_frames",
    "open_run",
    "open_sweep",
    "presets",
    "pretrained",
    "profiles",
    "recover",
    "replay",
    "resume",
    "runs",
    "select_frames",
    "settings",
    "settings_diff",
    "show",
    "simulate",
    "status",
    "stream",
    "submit",
    "sweep",
    "train",
    "train_peaks",
    "twin",
]

# What needs neither pandas nor xarray, which take .3 s to load, is found without the rest of the door.
_WITHOUT_FRAMES = {
    "BadInput": "core.errors",
    "TrainedRun": "app.front_door.trained_run",
    "XrddiffError": "core.errors",
    "open_run": "app.front_door.trained_run",
    "pretrained": "app.front_door.trained_run",
}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from .core.extras import collected_later

    with collected_later():
        if name in _WITHOUT_FRAMES:
            found = getattr(import_module(f".{_WITHOUT_FRAMES[name]}", __name__), name)
        else:
            found = getattr(import_module(".app.front_door.door", __name__), name)
            import_module(".app.front_door.shown_frames", __name__).show_frames_in_notebooks()
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
