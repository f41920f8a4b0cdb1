"""Text as sequences of characters, each to be predicted from those before it in its sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sharpness.errors import DataError

PLACE = Path("text") / "tinyshakespeare.txt"  # below the data folder
HELD_OUT = 10  # the last tenth of a text is for testing


def find(place: Path) -> Path:
    """The text that ``place`` names: itself, or what a folder holds, ``text/tinyshakespeare.txt`` or its one text."""
    if not place.is_dir() or (place / PLACE).is_file():
        return place / PLACE if place.is_dir() else place
    texts = sorted(file for file in place.glob("*.txt") if file.is_file())
    if len(texts) != 1:
        held = f"{len(texts)} files that end in .txt" if texts else "no file that ends in .txt"
        raise DataError(f"expected {PLACE} in {place}, or one text there; it holds {held}. Name the file itself.")
    return texts[0]


def read(file: Path) -> str:
    """The characters of a file in UTF-8, line ends as they are, without a byte order mark."""
    if not file.is_file():
        raise DataError(f"expected a text at {file}; there is none. Name the file itself, or the folder that holds it.")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected a text in UTF-8; reading it failed ({error}). Save it as one.") from error


def split(
    text: str, length: int, source: str
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], int]:
    """Train and test set, each as inputs and targets (N, length) int64, and how many different characters there are.

    >>> (inputs, targets), _, characters = split(20 * "abc", 5, "letters")
    >>> inputs[:2].tolist(), targets[:2].tolist(), characters
    ([[0, 1, 2, 0, 1], [2, 0, 1, 2, 0]], [[1, 2, 0, 1, 2], [0, 1, 2, 0, 1]], 3)
    """
    if length < 1:
        raise DataError(f"expected sequences of length >= 1; got {length}")
    least = HELD_OUT * (length + 1)  # one sequence to test on, and the character after it
    if len(text) < least:
        raise DataError(
            f"{source}: expected at least {least:,} characters for sequences of {length}; got {len(text):,}. "
            "Give a longer text, or shorter sequences."
        )
    vocabulary, numbers = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    if len(vocabulary) < 2:
        raise DataError(f"{source}: expected at least 2 different characters; got {text[0]!r} alone.")
    cut = len(numbers) - len(numbers) // HELD_OUT
    train, test = (_windows(part.astype(np.int64), length) for part in (numbers[:cut], numbers[cut:]))
    return train, test, len(vocabulary)


def _windows(characters: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences that do not overlap, and those one character later; what is left over at the end is dropped."""
    count = (len(characters) - 1) // length
    inputs, targets = (characters[start : start + count * length].reshape(count, length) for start in (0, 1))
    return inputs, targets
