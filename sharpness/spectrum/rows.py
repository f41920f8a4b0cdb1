"""Vectors as the rows of a matrix that lies on the device, or in host memory and passes through the device in tiles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

PLACES = ("device", "host")
TILE_BYTES = 2**28  # of device memory that a tile from the host takes: enough for the full speed of the bus
PASSES = 3  # of Gram–Schmidt at most: what three leave is no more than rounding
CHUNK_COLUMNS = 2**16  # columns of a matrix on the device that are copied at a time, so that it is never copied whole


class Rows:
    """``count`` vectors of length n as the rows of a matrix R, with the products that a Krylov method needs.

    With ``place="device"`` R is one tensor there. With ``"host"`` it lies in host memory (pinned where the device is a
    GPU), cut into tiles of all its rows and as many columns as make ``TILE_BYTES``, each contiguous: operations bring
    the rows that they need to the device tile by tile, and the device holds one tile at a time. Results of the two
    agree to the rounding of sums over columns, which are taken tile by tile.

    >>> rows = Rows(3, 2, dtype=torch.float32, device=torch.device("cpu"))
    >>> rows.write(0, torch.tensor([[1.0, 0.0]]))
    >>> block = torch.tensor([[3.0, 4.0]])
    >>> rows.orthogonalise(block, 1).tolist(), block.tolist()
    ([[3.0]], [[0.0, 4.0]])
    """

    def __init__(
        self,
        count: int,
        n: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        place: str = "device",
        width: int | None = None,
    ) -> None:
        self.count, self.n, self.dtype, self.device, self.place = count, n, dtype, device, place
        host = place == "host"
        self._width = width or (max(1, TILE_BYTES // (count * dtype.itemsize)) if host else n)
        options = {"device": "cpu", "pin_memory": device.type == "cuda"} if host else {"device": device}
        self._tiles = [
            torch.empty(count, min(self._width, n - first), dtype=dtype, **options)
            for first in range(0, n, self._width)
        ]

    def like(self, count: int) -> Rows:
        """As many new rows, in the same place and tiles."""
        return Rows(count, self.n, dtype=self.dtype, device=self.device, place=self.place, width=self._width)

    def read(self, first: int, last: int) -> torch.Tensor:
        """Rows ``first`` to ``last - 1`` on the device: shape (last - first, n). They may be R's own memory."""
        parts = [part for _, part in self._parts(first, last)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def write(self, first: int, block: torch.Tensor) -> None:
        """Put ``block``, of shape (b, n), in place of the rows from ``first`` on."""
        for tile, part in zip(self._tiles, block.split(self._width, dim=1), strict=True):
            tile[first : first + len(block)].copy_(part)

    def take(self, indices: np.ndarray) -> torch.Tensor:
        """The rows of these ascending indices on the device. They may be R's own memory."""
        if not len(indices):
            return self.read(0, 0)
        runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
        parts = [self.read(run[0], run[-1] + 1) for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def subtract(self, coefficients: torch.Tensor, block: torch.Tensor, first: int = 0) -> None:
        """Take Cᵀ R off ``block``, of shape (b, n); C, of shape (j, b), belongs to the rows from ``first`` on."""
        weights, slices = coefficients.T.to(self.dtype).to(self.device), block.split(self._width, dim=1)
        for index, part in self._parts(first, first + len(coefficients)):
            slices[index].addmm_(weights, part, alpha=-1)

    def orthogonalise(self, block: torch.Tensor, last: int, first: int = 0) -> torch.Tensor:
        """Take off ``block``, of shape (b, n), its part in rows ``first`` to ``last - 1``; returns its coefficients.

        Blocked Gram–Schmidt passes, each twice through R, until one leaves at least half of every row: what rounding
        then leaves in the rest is as small as that of the last pass (Daniel et al. 1976). One is enough for a row that
        is nearly orthogonal, and two for nearly all others.
        """
        total = torch.zeros(last - first, len(block), dtype=self.dtype, device=self.device)
        if first == last:
            return total
        slices, left = block.split(self._width, dim=1), norms(block)
        for _ in range(PASSES):
            found = torch.zeros_like(total)
            for index, part in self._parts(first, last):
                found += part @ slices[index].T
            self.subtract(found, block, first)
            total += found
            before, left = left, norms(block)
            if bool((left >= before / 2).all()):
                break
        return total

    def combine(self, coefficients: np.ndarray, into: Rows) -> None:
        """Cᵀ R from C of shape (j, m) and the first j rows, in place of the first m rows of ``into`` (or of R)."""
        weights = torch.as_tensor(coefficients, dtype=self.dtype, device=self.device).T
        buffer = torch.empty(0)
        for columns in self.chunks():
            part = self.cut(columns, len(coefficients))
            if buffer.shape[1:] != part.shape[1:]:
                buffer = part.new_empty(len(weights), part.shape[1])
            into.paste(columns, torch.mm(weights, part, out=buffer))

    def chunks(self) -> Iterator[slice]:
        """All columns, as many at a time as may be copied on the device."""
        step = min(self._width, CHUNK_COLUMNS) if self.place == "device" else self._width
        return (slice(first, min(first + step, self.n)) for first in range(0, self.n, step))

    def cut(self, columns: slice, last: int | None = None) -> torch.Tensor:
        """A chunk of the first ``last`` rows (default: all) on the device; it may be R's own memory."""
        return self._window(columns)[:last].to(self.device, non_blocking=True)

    def paste(self, columns: slice, block: torch.Tensor) -> None:
        """Put ``block`` in place of a chunk of the first rows."""
        self._window(columns)[: len(block)].copy_(block)

    def columns(self) -> torch.Tensor:
        """All of R as columns, of shape (n, count), in the place where R lies."""
        return (self._tiles[0] if len(self._tiles) == 1 else torch.cat(self._tiles, dim=1)).T

    def _window(self, columns: slice) -> torch.Tensor:
        index, offset = divmod(columns.start, self._width)
        return self._tiles[index][:, offset : offset + columns.stop - columns.start]

    def _parts(self, first: int, last: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Tile by tile on the device: its number and these rows of it."""
        for index, tile in enumerate(self._tiles):
            yield index, tile[first:last].to(self.device, non_blocking=True)


def norms(block: torch.Tensor) -> torch.Tensor:
    """The norm of each row, of shape (b,), with sums in float64: in float32 those of 10⁷ squares are 10⁻⁴ too small."""
    step = block.shape[1] if block.is_cuda else CHUNK_COLUMNS  # of which PyTorch makes a copy in float64
    parts = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in block.split(step, dim=1)]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)
