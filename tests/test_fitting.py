"""Images brought to another shape, against sums over pixels worked out with numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fedstart.data import fitting
from fedstart.data.federation import Examples
from fedstart.data.fitting import fitted


def images(*shape: int, count: int = 7, seed: int = 0) -> Examples:
    """`count` images of random pixels with labels, names and a column."""
    draws = np.random.default_rng(seed)
    inputs = torch.from_numpy(draws.integers(0, 256, (count, *shape), dtype=np.uint8))
    labels = np.arange(count) % 2
    columns = {"writer": np.arange(count)}
    return Examples(
        "random", inputs, labels, ("a", "b"), f"{shape}-{seed}", (0.1,) * shape[0], (0.2,) * shape[0], columns
    )


def by_hand(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each side resized alone: weights that fall linearly with the distance from the place in the old image, over
    one old pixel where the image grows and as many as become one where it shrinks.
    """

    def matrix(new: int, old: int) -> np.ndarray:
        reach = max(old / new, 1.0)
        centres = (np.arange(new) + 0.5) * old / new
        distance = np.abs(centres[:, None] - (np.arange(old) + 0.5)) / reach
        weights = np.maximum(0, 1 - distance)
        return weights / weights.sum(1, keepdims=True)

    return np.einsum(
        "yh,nchw,xw->ncyx", matrix(height, pixels.shape[2]), pixels.astype(float), matrix(width, pixels.shape[3])
    )


def test_images_of_the_shape_are_left_alone() -> None:
    given = images(3, 5, 6)
    assert fitted(given, (3, 5, 6)) is given
    vectors = dataclasses.replace(given, inputs=torch.zeros(7, 4))
    assert fitted(vectors, (4,)) is vectors


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (5, 3), (16, 16), (13, 21), (8, 4)])
def test_the_size_changes_bilinearly_and_smoothly(size: tuple[int, int]) -> None:
    given = images(3, 8, 8)
    found = fitted(given, (3, *size)).inputs
    assert found.shape == (7, 3, *size) and found.dtype == torch.uint8
    expected = by_hand(given.inputs.numpy(), *size)
    # Half a level of rounding, and what float32 adds to it.
    assert np.abs(found.numpy() - expected).max() < 0.5 + 1e-3


def test_grey_images_get_three_equal_channels() -> None:
    given = images(1, 6, 6)
    found = fitted(given, (3, 6, 6)).inputs
    assert all(found[:, channel].equal(given.inputs[:, 0]) for channel in range(3))


def test_coloured_images_become_as_bright_as_they_look() -> None:
    given = images(3, 6, 6)
    found = fitted(given, (1, 6, 6)).inputs.numpy()
    pixels = given.inputs.numpy().astype(float)
    expected = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]
    assert np.abs(found[:, 0] - expected).max() < 0.5 + 1e-3
    pure = dataclasses.replace(given, inputs=torch.zeros(3, 3, 2, 2, dtype=torch.uint8), labels=np.zeros(3, int))
    for channel in range(3):
        pure.inputs[channel, channel] = 255
    assert fitted(pure, (1, 2, 2)).inputs[:, 0, 0, 0].tolist() == [76, 150, 29]


def test_channels_and_size_change_together() -> None:
    grey, colour = images(1, 6, 6), images(3, 6, 6)
    assert np.abs(fitted(grey, (3, 9, 4)).inputs.numpy() - by_hand(grey.inputs.numpy(), 9, 4)).max() < 0.5 + 1e-3
    bright = np.tensordot(colour.inputs.numpy().astype(float), [0.299, 0.587, 0.114], axes=(1, 0))[:, None]
    assert np.abs(fitted(colour, (1, 4, 9)).inputs.numpy() - by_hand(bright, 4, 9)).max() < 0.5 + 1e-3


def test_black_and_white_stay_what_they_are() -> None:
    for level in (0, 255):
        given = dataclasses.replace(images(3, 7, 7), inputs=torch.full((7, 3, 7, 7), level, dtype=torch.uint8))
        for shape in ((1, 4, 4), (3, 11, 5)):
            assert set(fitted(given, shape).inputs.unique().tolist()) == {level}


@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 5, 4), (3, 8, 8)])
def test_mean_and_deviation_are_those_of_the_result(shape: tuple[int, ...]) -> None:
    found = fitted(images(1, 8, 8), shape)
    values = found.inputs.numpy().astype(np.float64) / 255
    assert found.mean == pytest.approx(values.mean(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert found.std == pytest.approx(values.std(axis=(0, 2, 3)).tolist(), rel=1e-12)


def test_labels_names_and_columns_stay() -> None:
    given = images(3, 8, 8)
    found = fitted(given, (1, 4, 4))
    assert (found.name, found.class_names) == (given.name, given.class_names)
    assert found.labels is given.labels and found.columns == given.columns
    assert found.inputs.is_contiguous(memory_format=torch.channels_last)


def test_how_many_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = images(3, 8, 8)
    whole = fitted(given, (1, 5, 5))
    monkeypatch.setattr(fitting, "CHUNK", 3)
    pieces = fitted(given, (1, 5, 5))
    assert pieces.inputs.equal(whole.inputs) and (pieces.mean, pieces.std) == (whole.mean, whole.std)


def test_the_fingerprint_tells_shapes_and_sources_apart() -> None:
    prints = [
        fitted(images(3, 8, 8, seed=seed), shape).fingerprint
        for seed in (0, 1)
        for shape in ((1, 8, 8), (3, 4, 4), (3, 4, 8))
    ]
    assert len({*prints, images(3, 8, 8).fingerprint}) == 7
    assert fitted(images(3, 8, 8), (1, 8, 8)).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((2, 8, 8), (1, 8, 8)), ((1, 8, 8), (4, 8, 8)), ((1, 8, 8), (64,)), ((64,), (1, 8, 8)), ((3, 8, 8), (2, 4, 4))],
)
def test_what_is_no_image_is_refused_in_one_line(given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    examples = dataclasses.replace(images(1, 8, 8), inputs=torch.zeros(7, *given, dtype=torch.uint8))
    with pytest.raises(
        ValueError, match=r"^random: inputs of shape .* cannot be fitted to .*1 or 3 channels"
    ) as caught:
        fitted(examples, wanted)
    assert str(given) in str(caught.value) and str(wanted) in str(caught.value) and "\n" not in str(caught.value)


def test_a_channel_that_never_varies_can_be_normalised() -> None:
    labels = np.array([0, 1])
    white = Examples("white", torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), labels, ("a", "b"), "print")
    found = fitted(white, (3, 8, 8))
    assert (found.mean, found.std) == ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
