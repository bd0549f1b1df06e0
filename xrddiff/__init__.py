"""Generative models of X-ray diffraction that beamline scientists can trust.

`import xrddiff as xd` has what a notebook needs: `xd.open_frames`, `xd.load`, `xd.train`, `xd.open_run`, … (see `xrddiff.app.front_door.door`).
Each is loaded when it is first used; the import itself loads nothing.
"""

import sys

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


class _OldPaths:
    """Finds a module where it was before the rooms moved into wings: `xrddiff.frames` is `xrddiff.data.frames`."""

    WINGS = ("core", "config", "data", "physics", "learn", "judge", "run", "app")

    @classmethod
    def find_spec(cls, name: str, path=None, target=None):
        """The spec of an old name, which stands for the module itself; None for any other name."""
        first, _, rest = name.partition(".")
        if first != __name__ or rest.partition(".")[0] in ("", "_modidx", *cls.WINGS):
            return None
        import warnings
        from importlib.machinery import ModuleSpec
        from importlib.util import find_spec

        for wing in cls.WINGS:
            if (real := find_spec(f"{first}.{wing}.{rest.partition('.')[0]}")) is None:
                continue
            if (real := find_spec(new := f"{first}.{wing}.{rest}")) is None:
                return None
            warnings.warn(f"{name} is {new} now", DeprecationWarning, stacklevel=2)
            return ModuleSpec(name, _OldName(real), origin=real.origin, is_package=real.submodule_search_locations is not None)
        return None


class _OldName:
    """Loads the module that an old name stands for."""

    def __init__(self, real):
        self.real = real

    def create_module(self, spec):
        """The module itself, under its own name."""
        from importlib import import_module

        return import_module(self.real.name)

    def exec_module(self, module):
        """Nothing is executed again; the module keeps its own spec."""
        module.__spec__ = self.real

    def get_code(self, name: str):
        """What `python -m OLD.NAME` executes, such as a batch script of before."""
        code = f"import runpy; runpy.run_module({self.real.name!r}, run_name='__main__', alter_sys=True)"
        return compile(code, self.real.origin, "exec")


sys.meta_path.insert(0, _OldPaths)
