"""What a run is told: words, presets, overrides; each value in one place."""

_MOVED = """RESUMABLE compose_config load_named_plugins note_unused known_presets preset_differences
reproducing_words inference_config""".split()


def __getattr__(name: str):
    """What was `xrddiff.config` is `xrddiff.config.composition` now; its names are still found here."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import composition

    return getattr(composition, name)
