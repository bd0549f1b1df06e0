"""Notebooks as runs, jobs, sweeps and streams."""
