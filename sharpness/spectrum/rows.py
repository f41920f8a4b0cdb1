"""Vectors as the rows of a matrix that lies on the device, or in host memory and passes through the device in tiles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

PLACES = ("device", "host")
TILE_BYTES = 2**28  # of device memory that a tile from the host takes: enough for the full speed of the bus
CHUNK_COLUMNS = 2**16  # columns of a matrix on the device that are copied at a time, so that it is never copied whole


class Rows:
    """``count`` vectors of length n as the rows of a matrix R, with the products that a Krylov method needs.

    With ``place="device"`` R is one tensor there. With ``"host"`` it lies in host memory (pinned where the device is a
    GPU), cut into tiles of all its rows and as many columns as make ``TILE_BYTES``, each contiguous: operations bring
    the rows that they need to the device tile by tile, and the device holds one tile at a time. Results of the two
    agree to the rounding of sums over columns, which are taken tile by tile.

    >>> rows = Rows(3, 2, dtype=torch.float32, device=torch.device("cpu"))
    >>> rows.write(0, torch.tensor([[1.0, 0.0]]))
    >>> rest, coefficients = rows.orthogonalise(torch.tensor([[3.0, 4.0]]), 1)
    >>> rest.tolist(), coefficients.tolist()
    ([[0.0, 4.0]], [[3.0]])
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

    def orthogonalise(self, block: torch.Tensor, last: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """``block``, of shape (b, n), minus its part in rows ``first`` to ``last - 1``, and the coefficients of it.

        Two blocked Gram–Schmidt passes: the second removes what rounding leaves after the first, always. R is gone
        through three times, for what the first pass leaves of a tile goes into the second at once.
        """
        block = block.clone(memory_format=torch.contiguous_format)
        slices = block.split(self._width, dim=1)
        once, twice = torch.zeros(2, last - first, len(block), dtype=self.dtype, device=self.device)
        for index, part in self._parts(first, last):
            once += part @ slices[index].T
        for index, part in self._parts(first, last):
            slices[index].addmm_(once.T, part, alpha=-1)
            twice += part @ slices[index].T
        for index, part in self._parts(first, last):
            slices[index].addmm_(twice.T, part, alpha=-1)
        return block, once + twice

    def combine(self, coefficients: np.ndarray, into: Rows) -> None:
        """Cᵀ R from C of shape (j, m) and the first j rows, in place of the first m rows of ``into`` (or of R)."""
        weights = torch.as_tensor(coefficients, dtype=self.dtype, device=self.device).T
        for columns in self.chunks():
            into.paste(columns, weights @ self.cut(columns, len(coefficients)))

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
