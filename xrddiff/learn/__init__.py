"""Frames to batches to weights: losses, models, diffusion, training."""
