"""Symmetric matrices whose spectrum is known, and what is asked of the pairs found in them."""

from __future__ import annotations

import numpy as np
import torch

from sharpness.operators import SymmetricOperator

OUTLIERS = [10.0, 8.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.5, 2.2, 2.0]


class Diagonal(SymmetricOperator):
    """diag(entries), which counts the products that it is asked for and how many come in each call."""

    def __init__(self, entries):
        self.entries, self.products, self.widths = torch.as_tensor(entries), 0, []

    @property
    def shape(self):
        return (len(self.entries), len(self.entries))

    @property
    def dtype(self):
        return self.entries.dtype

    @property
    def device(self):
        return self.entries.device

    @property
    def conditions(self):
        return {"operator": "diagonal"}

    @property
    def calls(self):
        return len(self.widths)

    def _product(self, vectors):
        self.products += vectors.shape[1]
        self.widths.append(vectors.shape[1])
        return self.entries[:, None] * vectors


class Poisoned(Diagonal):
    """A diagonal whose products are spoilt from the ``first``-th on."""

    def __init__(self, entries, poison, first):
        super().__init__(entries)
        self.poison, self.first = poison, first

    def _product(self, vectors):
        image = super()._product(vectors)
        if self.products >= self.first:
            image[0] = self.poison
        return image


class Noisy(Diagonal):
    """A diagonal whose products carry random errors of ``noise`` times its largest entry, another each time."""

    def __init__(self, entries, noise):
        super().__init__(entries)
        self.noise = noise * float(self.entries.abs().max())

    def _product(self, vectors):
        image = super()._product(vectors)
        error = torch.randn(*image.shape, generator=torch.Generator().manual_seed(self.products), dtype=image.dtype)
        return image + self.noise * error / error.norm(dim=0)


def random_symmetric(n, seed=0, dtype=torch.float64):
    drawn = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((drawn + drawn.T) / 2).to(dtype)


def with_spectrum(values, seed=0):
    """A dense matrix with these eigenvalues in a random orthonormal basis."""
    values = torch.as_tensor(values, dtype=torch.float64)
    drawn = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, _ = torch.linalg.qr(drawn)
    matrix = (q * values) @ q.T
    return (matrix + matrix.T) / 2


def wanted(values, k, which):
    """The values that ``eigenpairs`` promises, in descending order."""
    values = np.sort(np.asarray(values, float))[::-1]
    if which == "largest":
        return values[:k]
    if which == "smallest":
        return values[len(values) - k :]
    if which == "magnitude":
        return np.sort(values[np.argsort(-np.abs(values), kind="stable")[:k]])[::-1]
    return values if 2 * k >= len(values) else np.concatenate([values[:k], values[-k:]])


def disorder(rows):
    return float((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)).abs().max())
