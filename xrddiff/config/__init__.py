"""What a run is told: words, presets, overrides; each value in one place."""
