"""Augmentations of images: random, but the same from the same generator on every device.

Keskar et al. 2017 name the kinds (translations, rotations, shearing, flipping); their amounts are not known to us.
These are ours: a translation by H/8 is the customary crop of 32 pixels out of 32 + 2·4 with CIFAR, the others are of
like size. What is moved in from outside an image is 0. A flip turns digits and letters into other signs.

>>> inputs = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(3, 4)  # three images of 2×2
>>> augmented(("flip",), inputs, torch.Generator().manual_seed(1))
tensor([[1., 2., 3., 4.],
        [2., 1., 4., 3.],
        [2., 1., 4., 3.]])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from sharpness.errors import ShapeError

SHIFT = 1 / 8  # of the side
ANGLE = math.radians(15)
SHEAR = 0.1  # pixels along the rows per pixel across them


def augmented(names: Sequence[str], inputs: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """The inputs after the augmentations ``names``, each image by random numbers of its own.

    Args:
        names: of ``AUGMENTATIONS``, in order; each acts on the result of the one before.
        inputs: images as ``as_images`` takes them; the result has the same shape.
        draw: a CPU generator; every number comes from it, whatever the device of ``inputs``.
    """
    images = as_images(inputs)
    for name in names:
        images = AUGMENTATIONS[name](images, draw)
    return images.reshape(inputs.shape)


def as_images(inputs: torch.Tensor) -> torch.Tensor:
    """Inputs as (N, C, H, W): images as they are, rows of d = s² numbers as images of one channel and side s.

    Raises:
        ShapeError: neither, or not floating point.
    """
    images = inputs
    if inputs.ndim == 2:
        side = math.isqrt(inputs.shape[1])
        images = inputs.reshape(-1, 1, side, side) if side**2 == inputs.shape[1] else inputs
    if images.ndim != 4 or not images.is_floating_point():
        raise ShapeError(
            "expected images to augment: floating point of shape (N, C, H, W), or (N, d) with d a square number; got "
            f"{inputs.dtype} of shape {tuple(inputs.shape)}. Reshape the inputs, or leave augment empty."
        )
    return images


def flip(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Left and right exchanged with probability 1/2."""
    chosen = torch.rand(len(images), generator=draw) < 0.5
    return torch.where(chosen.to(images.device).reshape(-1, 1, 1, 1), images.flip(-1), images)


def translate(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Moved by whole pixels, equally likely from -⌊side/8⌋ to ⌊side/8⌋ (at least 1), down and to the right."""
    most = [max(1, int(side * SHIFT)) for side in images.shape[2:]]
    down, right = (torch.randint(-m, m + 1, (len(images),), generator=draw) for m in most)
    return shifted(images, down, right)


def rotate(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Turned about the centre by an angle uniform in ±15°, bilinear."""
    angle = _uniform(ANGLE, len(images), draw)
    cos, sin = angle.cos(), angle.sin()
    return warped(images, torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2))


def shear(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Rows moved along themselves by s times their distance from the middle, s uniform in ±0.1, bilinear."""
    slant = _uniform(SHEAR, len(images), draw)
    one, zero = torch.ones_like(slant), torch.zeros_like(slant)
    return warped(images, torch.stack([one, slant, zero, one], 1).reshape(-1, 2, 2))


AUGMENTATIONS: Mapping[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "flip": flip,
    "translate": translate,
    "rotate": rotate,
    "shear": shear,
}


def shifted(images: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Each image moved by whole pixels, (N,) down and (N,) to the right, 0 where nothing comes from."""
    (count, channels, height, width), device = images.shape, images.device
    rows = (torch.arange(height) - down[:, None]).to(device)  # (N, H): the row from which each row comes
    columns = (torch.arange(width) - right[:, None]).to(device)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    taken = images[
        torch.arange(count, device=device).reshape(-1, 1, 1, 1),
        torch.arange(channels, device=device).reshape(1, -1, 1, 1),
        rows.clamp(0, height - 1)[:, None, :, None],
        columns.clamp(0, width - 1)[:, None, None, :],
    ]
    return torch.where(inside[:, None], taken, 0)


def warped(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Each image sampled (bilinear, 0 outside) at M r for every pixel r = (right, down) from the centre, in pixels.

    Args:
        images: (N, C, H, W).
        matrices: M, (N, 2, 2).
    """
    height, width = images.shape[2:]
    # affine_grid counts in half sides, so that a pixel to the right is another length than a pixel down
    unit = torch.tensor([width, height], dtype=matrices.dtype)
    linear = matrices * unit[None, None, :] / unit[None, :, None]
    theta = F.pad(linear, (0, 1)).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _uniform(largest: float, count: int, draw: torch.Generator) -> torch.Tensor:
    return largest * (2 * torch.rand(count, generator=draw, dtype=torch.float64) - 1)
