"""Small data sets drawn from random numbers, for trying things out where nothing else is at hand.

They are for trying, not for conclusions: too small, and too regular to stand for real images or tables. All come from
the package's named random streams at seed 0. Values are rounded to steps, which hide that processors compute the last
bits of logarithms and cosines differently; so the bytes are the same on every machine.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from sharpness.random import generator, normal

IMAGES = {10: (256, 64), 100: (512, 128)}  # classes: images to train on and to test on
COARSE = 6  # the patterns are interpolated from so many random pixels a side
OWN = 2.5  # how much stronger the pattern of an image is than that of its class: many images are then ambiguous

ROWS = (3000, 600)
CLASSES, FEATURES = 300, 60
SPREAD = 1.6  # standard deviation around the centre of a class; the centres' own is 1
STEPS = 256  # of 1 in a table

SENTENCES = 180
WORDS = ("the a every no", "old small quiet green", "cat bird river child town", "sees likes follows hears")


def images(classes: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train and test set of 10 or 100 classes: images (N, 3, 32, 32), uint8, and labels (N,) 0, 1, 2, … in turn.

    An image is grey plus the smooth random pattern of its class, a stronger one of its own, and noise.

    >>> (train, labels), (test, _) = images(10)
    >>> train.shape, test.shape, labels[:12]
    ((256, 3, 32, 32), (64, 3, 32, 32), array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]))
    """
    train, test = IMAGES[classes]
    labels = torch.arange(train + test) % classes
    name = f"generated-images-{classes}"
    patterns = _smooth(classes, name, "classes")[labels] + OWN * _smooth(train + test, name, "images")
    noise = normal(train + test, 3, 32, 32, key=(name, "noise"), seed=0, dtype=torch.float64)
    pixels = (127.5 + 20 * patterns + 10 * noise).round().clamp(0, 255).to(torch.uint8)
    return _parts(pixels, labels, train)


def table() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train and test set: inputs (N, 60), float32, and targets (N,), which go 0, 1, …, 299 in turn.

    A row is the random centre of its class plus noise.

    >>> (train, labels), (test, _) = table()
    >>> train.shape, test.shape, int(labels.max())
    ((3000, 60), (600, 60), 299)
    """
    labels = torch.arange(sum(ROWS)) % CLASSES
    centres, noise = (
        normal(count, FEATURES, key=("generated-table", part), seed=0, dtype=torch.float64)
        for part, count in (("centres", CLASSES), ("noise", len(labels)))
    )
    rows = ((centres[labels] + SPREAD * noise) * STEPS).round() / STEPS
    return _parts(rows.float(), labels, ROWS[0])


def sentences() -> str:
    """Sentences of seven words, one in a line, each word drawn from the few that fit its place.

    >>> sentences().splitlines()[0]
    'Every green cat likes the green cat.'
    """
    who, does = WORDS[:3], WORDS[3:]
    places = [words.split() for words in (*who, *does, *who)]
    columns = [
        torch.randint(len(words), (SENTENCES,), generator=generator("generated-text", place, seed=0)).tolist()
        for place, words in enumerate(places)
    ]
    chosen = ([words[i] for words, i in zip(places, row, strict=True)] for row in zip(*columns, strict=True))
    return "".join(" ".join(row).capitalize() + ".\n" for row in chosen)


def _smooth(count: int, *key: str) -> torch.Tensor:
    """Random patterns (count, 3, 32, 32) without fine detail, of standard deviation below 1."""
    coarse = normal(count, 3, COARSE, COARSE, key=key, seed=0, dtype=torch.float64)
    return F.interpolate(coarse, size=(32, 32), mode="bicubic")


def _parts(inputs: torch.Tensor, labels: torch.Tensor, train: int) -> tuple:
    values, targets = inputs.numpy(), labels.numpy()
    return (values[:train], targets[:train]), (values[train:], targets[train:])
