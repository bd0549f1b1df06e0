"""A second indexer, by pairs of peaks, which shares nothing with that of the package: two peaks and two reflections of the same lengths and angle fix an orientation, and the best orientation explains most peaks.

It is slow and knows nothing of tilts, shifts or second crystals. Benchmarks compare index rates with it.
"""

from __future__ import annotations

from itertools import combinations

import gemmi
import numpy as np

PEAKS = 8  # that make pairs: at middle lengths, few reflections fit, and a place still fixes a direction
KEPT = 60_000  # orientations tried of each pair
BEST = 12  # orientations of each pair that are refined


def reciprocal(cell, d_min: float) -> np.ndarray:
    """Vectors of all reflections up to 1/d_min, without absences, (N, 3), and the basis: columns a*, b*, c*; 1/Å."""
    basis = np.array(gemmi.UnitCell(*cell).frac.mat.tolist()).T
    top = np.ceil(np.array(cell[:3]) / d_min).astype(int)
    hkl = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in top), indexing="ij"), -1).reshape(-1, 3)
    g = hkl @ basis.T
    length = np.linalg.norm(g, axis=1)
    return g[(length > 0) & (length < 1 / d_min)], basis


def scattering(x: np.ndarray, y: np.ndarray, *, pixel: float, distance: float, wavelength: float) -> np.ndarray:
    """Scattering vectors (N, 3), 1/Å, of places from the beam centre in pixels; pixel and distance in m, wavelength in Å."""
    k = np.stack([x * pixel, y * pixel, np.full(len(x), distance)], 1)
    return (k / np.linalg.norm(k, axis=1, keepdims=True) - [0, 0, 1]) / wavelength


def frames_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Right-handed orthonormal frames (N, 3, 3) whose columns are along a (N, 3), across it towards b, and normal to both."""
    first = a / np.linalg.norm(a, axis=-1, keepdims=True)
    third = np.cross(a, b)
    third = third / np.linalg.norm(third, axis=-1, keepdims=True)
    return np.stack([first, np.cross(third, first), third], -1)


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between vectors, radians."""
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1))


def on_lattice(s: np.ndarray, U: np.ndarray, basis: np.ndarray, near: float) -> np.ndarray:
    """How many peaks s (N, 3) lie within `near` (1/Å) of a reflection, for each orientation U (M, 3, 3)."""
    turned = s @ U  # U⁻¹ s, (M, N, 3)
    miss = turned - np.rint(turned @ np.linalg.inv(basis).T) @ basis.T
    return (np.linalg.norm(miss, axis=-1) < near).sum(1)


def orientations(s: np.ndarray, g: np.ndarray, *, near: float):
    """Orientations (M, 3, 3) that pairs of peaks allow, pair by pair."""
    radius = np.linalg.norm(s, axis=1)
    some = s[np.argsort(np.abs(radius - 0.5 * radius.max()))[:PEAKS]]
    length = np.linalg.norm(g, axis=1)
    alike = [g[np.abs(length - np.linalg.norm(v)) < near] for v in some]
    for i, j in combinations(range(len(some)), 2):
        between = angle(some[i], some[j])
        if not 0.3 < between < np.pi - 0.3:
            continue
        a, b = alike[i], alike[j]
        far = near / np.linalg.norm(some[i]) + near / np.linalg.norm(some[j])
        p, q = np.nonzero(np.abs(angle(a[:, None], b[None]) - between) < far)
        if 0 < len(p) <= KEPT:
            yield frames_of(some[i], some[j]) @ np.swapaxes(frames_of(a[p], b[q]), -1, -2)


def refined(s: np.ndarray, U: np.ndarray, basis: np.ndarray, near: float) -> np.ndarray:
    """U, turned to bring the peaks that it has near reflections closest to them (Kabsch)."""
    inverse = np.linalg.inv(basis).T
    for _ in range(3):
        turned = s @ U
        nearest = np.rint(turned @ inverse) @ basis.T
        own = np.linalg.norm(turned - nearest, axis=1) < near
        if own.sum() < 3:
            break
        left, _, right = np.linalg.svd(s[own].T @ nearest[own])
        U = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
    return U


def most_on_lattice(s: np.ndarray, cell, *, d_min: float, near: float) -> int:
    """Number of peaks s (N, 3) on the best lattice of the cell."""
    g, basis = reciprocal(cell, d_min)
    most = 0
    for U in orientations(s, g, near=near):
        count = on_lattice(s, U, basis, 1.5 * near)
        best = U[np.argsort(-count, kind="stable")[:BEST]]
        found = np.stack([refined(s, one, basis, 1.5 * near) for one in best])
        most = max(most, int(on_lattice(s, found, basis, near).max()))
    return most


def is_indexed(s: np.ndarray, cell, rng, *, d_min: float, near: float, controls: int = 5) -> bool:
    """Does a lattice explain at least six peaks, and three more than it does of any of `controls` copies whose peaks are turned about the beam?"""
    count = most_on_lattice(s, cell, d_min=d_min, near=near)
    if count < 6:
        return False
    for _ in range(controls):
        phi = rng.uniform(0, 2 * np.pi, len(s))
        c, n = np.cos(phi), np.sin(phi)
        turned = np.stack([c * s[:, 0] - n * s[:, 1], n * s[:, 0] + c * s[:, 1], s[:, 2]], 1)
        if most_on_lattice(turned, cell, d_min=d_min, near=near) + 3 > count:
            return False
    return True
