"""Crystals to frames, and back: simulation and indexing."""
