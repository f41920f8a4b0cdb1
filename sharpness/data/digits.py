"""The handwritten digits inside the package (``digits.npz``).

They are the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (https://doi.org/10.24432/C50P49), licensed CC BY 4.0, taken from scikit-learn. Changed is only the
container: the counts 0..16 of each 8×8 image are stored as bytes, in the order of the source.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np

TRAIN = 1437  # images in the training set; the other 360, a fifth, are the test set


def read() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Train and test set, each as images (N, 64) with values 0..16 and labels (N,), all uint8.

    >>> (images, labels), _ = read()
    >>> images.shape, images.max(), labels[:3]
    ((1437, 64), np.uint8(16), array([0, 1, 2], dtype=uint8))
    """
    with (files("sharpness.data") / "digits.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        images, labels = stored["images"].reshape(-1, 64), stored["labels"]
    return (images[:TRAIN], labels[:TRAIN]), (images[TRAIN:], labels[TRAIN:])
