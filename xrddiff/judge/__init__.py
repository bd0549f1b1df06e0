"""Weights to samples, numbers and pages."""
