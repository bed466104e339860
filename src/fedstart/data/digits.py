"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8 x 8 pixels, ten classes."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from fedstart.data.drawn import image_examples
from fedstart.data.federation import Examples


def digits() -> Examples:
    """The digits as uint8 images of shape (1797, 1, 8, 8), brought from 0 .. 16 to 0 .. 255; no official split.

    Source: scikit-learn's copy of the test set of "Optical Recognition of Handwritten Digits", UCI repository
    (Alpaydin and Kaynak 1998).
    """
    flat, targets = load_digits(return_X_y=True)
    images = np.rint(np.asarray(flat) * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = np.asarray(targets).astype(np.int64)
    return image_examples("digits", images, labels, [str(digit) for digit in range(10)])
