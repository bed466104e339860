"""Images of fractals: systems of random contractions, their points, and pictures of the points."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from fedstart import keys
from fedstart.data.drawn import image_examples
from fedstart.data.federation import Examples

MAPS = 4
CANDIDATES = 256
CHAINS = 64
BURN_IN = 20
GRID = 16
COVERED = (0.2, 0.65)
SIDES = (0.45, 0.75)
DARK = (0.0, 0.5)
CONTRAST = (0.25, 0.5)
SHADE = 0.12
FAINT = 0.4
BLUR = (0.2, 1.0)

Floats = NDArray[np.float32]
Systems = tuple[np.ndarray, np.ndarray, np.ndarray]


# A study asks for the same start's federation several times, and drawing takes seconds.
@functools.lru_cache(maxsize=2)
def fractal_examples(
    shape: tuple[int, int, int], classes: int, images: int, objects: int, blur: float, seed: int
) -> Examples:
    """Images of shape (channels, height, width), uint8: `images` in a row for each class, without official splits.

    A class is a set of `objects` systems. They, and the images of a class, are the same for any number of classes.
    """
    channels, height, width = shape
    # Small images need fewer points, but one must see whether a system is worth drawing.
    points = max(2 * height * width, 1024)
    clouds = point_clouds(classes * objects, points, seed).reshape(classes, objects, -1, 2)
    # In memory the channels are last, as images that are read from files have them.
    pixels = np.empty((classes * images, height, width, channels), dtype=np.uint8)
    for label in range(classes):
        rng = keys.generator(seed, "fractals", 1, label)
        drawn = pictures(clouds[label], shape, images, blur, rng)
        pixels[label * images : (label + 1) * images] = np.rint(255 * drawn)
    labels = np.repeat(np.arange(classes), images)
    class_names = [f"fractals {label}" for label in range(classes)]
    return image_examples("fractals", pixels.transpose(0, 3, 1, 2), labels, class_names)


def systems(rng: np.random.Generator, count: int) -> Systems:
    """`count` systems of 2 to 4 contractions `x -> A x + b` of the plane.

    A of shape (count, 4, 2, 2), b of shape (count, 4, 2), and the probability of each map, shape (count, 4), which is 0
    for maps that a system lacks. A is a rotation, singular values from 0.09 to 0.9, and a rotation or reflection.
    """
    first, second = (_rotations(rng.uniform(0, 2 * np.pi, (count, MAPS))) for _ in range(2))
    long = rng.uniform(0.3, 0.9, (count, MAPS))
    lengths = np.stack([long, long * rng.uniform(0.3, 1.0, (count, MAPS))], axis=-1)
    mirror = np.stack([np.ones((count, MAPS)), rng.choice((-1.0, 1.0), (count, MAPS))], axis=-1)
    matrices = (first * lengths[:, :, None, :]) @ (second * mirror[:, :, None, :])
    shifts = rng.uniform(-1, 1, (count, MAPS, 2))
    # By area, so that points lie about as densely in each part of the fractal.
    chances = lengths.prod(axis=-1) * (np.arange(MAPS) < rng.integers(2, MAPS + 1, (count, 1)))
    return matrices, shifts, chances / chances.sum(axis=1, keepdims=True)


def chaos_game(drawn: Systems, points: int, rng: np.random.Generator) -> np.ndarray:
    """At least `points` points of each system's fractal, shape (systems, points, 2).

    64 chains for each system apply maps at random, by their probabilities; their first 20 steps are left out.
    """
    matrices, shifts, chances = drawn
    limits = chances.cumsum(axis=1)[:, None, :-1]
    which = np.arange(len(chances))[:, None]
    # The fixed point of a map belongs to the fractal, and maps never lead out of it.
    fixed = np.linalg.solve(np.eye(2) - matrices[:, 0], shifts[:, 0, :, None])[..., 0]
    at = np.repeat(fixed[:, None], CHAINS, axis=1)
    seen = []
    for step in range(BURN_IN + math.ceil(points / CHAINS)):
        chosen = (rng.random((len(chances), CHAINS, 1)) >= limits).sum(axis=-1)
        at = (matrices[which, chosen] * at[:, :, None, :]).sum(axis=-1) + shifts[which, chosen]
        if step >= BURN_IN:
            seen.append(at)
    return np.concatenate(seen, axis=1)


def point_clouds(count: int, points: int, seed: int) -> Floats:
    """Points of `count` fractals, shape (count, at least `points`, 2), each fractal filling the square [0, 1]^2.

    Random systems are often a blot or a thread: those whose points meet less than 20 % or more than 65 % of 16 x 16
    cells of the square are drawn anew.
    """
    kept: list[Floats] = []
    attempt = 0
    while sum(map(len, kept)) < count:
        rng = keys.generator(seed, "fractals", 0, attempt)
        found = chaos_game(systems(rng, CANDIDATES), points, rng)
        low, high = found.min(axis=1, keepdims=True), found.max(axis=1, keepdims=True)
        clouds = ((found - low) / (high - low)).astype(np.float32)
        cells = np.minimum((clouds * GRID).astype(np.int64), GRID - 1) @ np.array([1, GRID])
        cells += GRID * GRID * np.arange(CANDIDATES)[:, None]
        met = np.bincount(cells.ravel(), minlength=CANDIDATES * GRID * GRID).reshape(CANDIDATES, -1) > 0
        covered = met.mean(axis=1)
        kept.append(clouds[(COVERED[0] <= covered) & (covered <= COVERED[1])])
        attempt += 1
    return np.concatenate(kept)[:count]


def pictures(clouds: Floats, shape: tuple[int, int, int], images: int, blur: float, rng: np.random.Generator) -> Floats:
    """`images` pictures of the same fractals, shape (images, height, width, channels), float32 in 0 .. 1.

    `clouds` has shape (objects, points, 2). Each picture has its own background (one colour, shaded towards the
    corners), and each fractal in it its own lighter colour, fainter where points are few, its flips, size, and place;
    later ones lie over earlier ones. A share `blur` of the pictures is blurred.
    """
    channels, height, width = shape
    counts = _counts(clouds, (height, width), images, rng)
    base = rng.uniform(*DARK, (images, 1, 1, channels))
    corners = (base + rng.uniform(-SHADE, SHADE, (images, 2, 2, channels))).astype(np.float32)
    down, right = (np.linspace(0, 1, size, dtype=np.float32) for size in (height, width))
    columns = corners[:, :, 0, None] * (1 - right[:, None]) + corners[:, :, 1, None] * right[:, None]
    drawn = columns[:, 0, None] * (1 - down[:, None, None]) + columns[:, 1, None] * down[:, None, None]
    # Fractals are lighter than what is behind them. Where they may be darker too, the first passes teach nothing.
    lighter = rng.uniform(*CONTRAST, (images, len(clouds), 1, 1, channels))
    colours = (base[:, None] + lighter).astype(np.float32)
    logarithms = np.log1p(np.arange(counts.max() + 1, dtype=np.float32))
    opacities = 1 - 0.5 ** np.arange(counts.max() + 1, dtype=np.float32)
    for number in range(len(clouds)):
        hits = counts[:, number]
        strength = logarithms[hits] / logarithms[hits.max(axis=(1, 2), keepdims=True)]
        opacity = opacities[hits] * (FAINT + (1 - FAINT) * strength)
        drawn += opacity[..., None] * (colours[:, number] - drawn)
    blurred = rng.random(images) < blur
    # Radii are those of images of 32 pixels; larger images have larger ones.
    radii = rng.uniform(*BLUR, images)[blurred] * max(height, width) / 32
    drawn[blurred] = _gaussian_blur(drawn[blurred], radii)
    return drawn.clip(0, 1)


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Matrices of shape (..., 2, 2)."""
    cosines, sines = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cosines, -sines], axis=-1), np.stack([sines, cosines], axis=-1)], axis=-2)


def _counts(clouds: Floats, size: tuple[int, int], images: int, rng: np.random.Generator) -> np.ndarray:
    """How many points fall on each pixel, shape (images, objects, height, width)."""
    many = (images, len(clouds), 1)
    sides = rng.uniform(*SIDES, many)
    index = np.arange(images * len(clouds)).reshape(many)
    for axis, pixels in ((1, size[0]), (0, size[1])):
        corner = rng.uniform(0, 1 - sides)
        flipped = rng.random(many) < 0.5
        # As `offset + slope * point`, in pixels: points themselves are worked out once.
        slope = np.where(flipped, -sides, sides) * pixels
        offset = (corner + np.where(flipped, sides, 0)) * pixels
        places = slope.astype(np.float32) * clouds[None, :, :, axis] + offset.astype(np.float32)
        index = index * pixels + places.astype(np.int64).clip(0, pixels - 1)
    return np.bincount(index.ravel(), minlength=images * len(clouds) * size[0] * size[1]).reshape(*many[:2], *size)


def _gaussian_blur(images: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Each image blurred by its own standard deviation in pixels, shape (n,); edges repeat the last pixel."""
    reach = math.ceil(2 * radii.max(initial=0))
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / radii[:, None]) ** 2)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    for axis in (1, 2):
        size = images.shape[axis]
        padding = [(reach, reach) if dim == axis else (0, 0) for dim in range(4)]
        padded = np.pad(images, padding, mode="edge")
        images = np.zeros_like(images)
        for start, weight in enumerate(weights.T):
            images += weight[:, None, None, None] * padded.take(range(start, start + size), axis=axis)
    return images
