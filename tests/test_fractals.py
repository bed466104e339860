"""Fractals: systems and their points, the pictures of them, and the start that learns to tell them apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fedstart import keys, names, tree
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.local import LocalEngine
from fedstart.models import Model
from fedstart.models.plain_cnn import PlainCNN
from fedstart.starts import _fractals
from fedstart.starts.fractals import Fractals
from fedstart.training import train
from fedstart.types import Plan

PLAN = Plan(rounds=2, cohort=3, local_epochs=1, server_steps=2, seed=5)
CORNER = np.stack(np.meshgrid(np.linspace(0, 1, 90), np.linspace(0, 1, 90)), axis=-1).reshape(-1, 2)
CORNER = CORNER[(CORNER[:, 0] < 0.15) | (CORNER[:, 1] < 0.15)].astype(np.float32)


def images(*shape: int) -> Federation:
    """Two clients whose two images are black."""
    examples = Examples("black", torch.zeros(2, *shape, dtype=torch.uint8), np.arange(2), ("a", "b"), "black")
    return Federation("black", examples, {"train": Positions(np.arange(3), np.arange(2))}, (0, 1))


def prepared(start: Fractals, *shape: int, seed: int = 5) -> Federation:
    return start.prepare(images(*shape), dataclasses.replace(PLAN, seed=seed))[0]


def picture(clouds: np.ndarray, count: int = 64, blur: float = 0.0, seed: int = 1) -> np.ndarray:
    """Pictures of 32 x 32 pixels, in three colours."""
    return _fractals.pictures(clouds, (3, 32, 32), count, blur, keys.generator(seed, "test-fractals"))


def shown(clouds: np.ndarray, count: int = 64) -> np.ndarray:
    """Which pixels differ clearly from the background, shape (count, 32, 32)."""
    return np.abs(picture(clouds, count) - picture(dots(len(clouds)), count)).max(axis=-1) > 0.1


def dots(objects: int) -> np.ndarray:
    """Objects of a single point: pictures that show little but the background."""
    return np.full((objects, 1, 2), 0.5, np.float32)


# --- systems and points ----------------------------------------------------------------------------------------------


def test_maps_are_contractions() -> None:
    matrices, shifts, chances = _fractals.systems(keys.generator(0, "test-fractals"), 500)
    lengths = np.linalg.svd(matrices, compute_uv=False)
    assert 0.08 < lengths.min() < 0.12 and 0.88 < lengths.max() <= 0.9 + 1e-12
    assert np.abs(shifts).max() <= 1
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    assert set((chances > 0).sum(axis=1)) == {2, 3, 4}
    areas = np.where(chances > 0, lengths.prod(axis=-1), 0)
    np.testing.assert_allclose(chances, areas / areas.sum(axis=1, keepdims=True))
    mirrored = np.linalg.det(matrices) < 0
    assert 0.4 < mirrored.mean() < 0.6


def test_points_are_spread_as_the_maps_say() -> None:
    """Mean m and second moment S are those of a point after one more map, drawn by its probability p:
    m = sum p (A m + b) and S = sum p (A S A' + A m b' + b m' A' + b b').
    """
    drawn = _fractals.systems(keys.generator(1, "test-fractals"), 12)
    points = _fractals.chaos_game(drawn, 200_000, keys.generator(2, "test-fractals"))
    assert points.shape == (12, 200_000, 2)
    for matrices, shifts, chances, cloud in zip(*drawn, points, strict=True):
        mean = np.linalg.solve(np.eye(2) - np.einsum("k,kij->ij", chances, matrices), chances @ shifts)
        crossed = np.einsum("k,kij,j,kl->il", chances, matrices, mean, shifts)
        constant = crossed + crossed.T + np.einsum("k,ki,kj->ij", chances, shifts, shifts)
        doubled = sum(chance * np.kron(matrix, matrix) for chance, matrix in zip(chances, matrices, strict=True))
        second = np.linalg.solve(np.eye(4) - doubled, constant.ravel()).reshape(2, 2)
        spread = np.sqrt(np.trace(second - np.outer(mean, mean)))
        assert np.abs(cloud.mean(axis=0) - mean).max() < 0.03 * spread
        assert np.abs(np.cov(cloud.T) - (second - np.outer(mean, mean))).max() < 0.05 * spread**2


def test_every_point_is_bounded_and_every_fractal_fills_its_square() -> None:
    clouds = _fractals.point_clouds(300, 2048, seed=0)
    assert clouds.shape == (300, 2048, 2) and clouds.dtype == np.float32
    assert (clouds.min(axis=1) == 0).all() and (clouds.max(axis=1) == 1).all()
    for cloud in clouds:
        met = len(np.unique((cloud * 16).astype(int).clip(0, 15) @ [1, 16])) / 256
        assert 0.2 <= met <= 0.65


def test_more_fractals_keep_the_first_ones() -> None:
    few, many = (_fractals.point_clouds(count, 1024, seed=3) for count in (5, 200))
    assert np.array_equal(few, many[:5])
    assert len(np.unique(many.reshape(200, -1), axis=0)) == 200


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_fractal_has_the_size_that_chen_et_al_give() -> None:
    sides = []
    for mask in shown(CORNER[None]):
        for axis in (0, 1):
            found = np.flatnonzero(mask.any(axis=axis))
            sides.append(found[-1] - found[0] + 1)
    assert 0.45 * 32 <= min(sides) < 0.5 * 32 and 0.7 * 32 < max(sides) <= 0.75 * 32 + 1


def test_flips_and_places_are_drawn() -> None:
    corners, places = set(), set()
    for mask in shown(CORNER[None]):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        corners.add((bool(mask[rows[-1]].sum() > len(columns) / 2), bool(mask[:, columns[-1]].sum() > len(rows) / 2)))
        places.add((rows[0], columns[0]))
    assert len(corners) == 4 and len(places) > 30
    for axis in (0, 1):
        starts = {place[axis] for place in places}
        assert min(starts) == 0 and 13 <= max(starts) <= 0.55 * 32


def test_pictures_are_not_empty_and_show_every_fractal() -> None:
    clouds = _fractals.point_clouds(20, 2048, seed=0).reshape(10, 2, -1, 2)
    for both in clouds:
        share = shown(both).mean(axis=(1, 2))
        assert 0.04 < share.min() <= share.max() < 0.8
        assert share.mean() > shown(both[:1]).mean() + 0.02


def test_colours_and_backgrounds_differ_from_picture_to_picture() -> None:
    drawn, background = picture(CORNER[None]), picture(dots(1))
    assert drawn.min() >= 0 and drawn.max() <= 1
    corners = background[:, 0, 0]
    assert np.ptp(corners, axis=0).min() > 0.45 and len(np.unique(corners, axis=0)) == len(corners)
    assert len(np.unique(drawn.max(axis=(1, 2)), axis=0)) == len(drawn)
    change = (drawn - background)[shown(CORNER[None])]
    # The brightest half has half the density of the densest pixel or more.
    assert np.quantile(change, 0.5) > 0.15 and change.max() < 0.7


def test_fractals_are_lighter_than_what_is_behind_them() -> None:
    clouds = _fractals.point_clouds(4, 2048, seed=0)
    change = picture(clouds[:1]) - picture(dots(1))
    dot = (change < 0).any(axis=-1).sum(axis=(1, 2))
    assert dot.max() <= 1 and change[shown(clouds[:1])].mean(axis=0).min() > 0.15


def test_blur_is_for_a_share_of_the_pictures() -> None:
    clouds = _fractals.point_clouds(2, 2048, seed=0)
    sharp, some, all_blurred = (picture(clouds, 200, blur) for blur in (0.0, 0.5, 1.0))
    changed = (some != sharp).any(axis=(1, 2, 3))
    assert 0.4 < changed.mean() < 0.6
    assert np.array_equal(some[~changed], sharp[~changed])
    assert np.abs(np.diff(all_blurred, axis=1)).mean() < 0.8 * np.abs(np.diff(sharp, axis=1)).mean()


def test_blur_is_gaussian() -> None:
    images = np.zeros((2, 21, 21, 1), np.float32)
    images[:, 10, 10] = 1
    radii = np.array([0.8, 1.5])
    blurred = _fractals._gaussian_blur(images, radii)[..., 0]
    np.testing.assert_allclose(blurred.sum(axis=(1, 2)), 1, rtol=1e-5)
    steps = np.arange(-10, 11)
    for image, radius in zip(blurred, radii, strict=True):
        for axis in (0, 1):
            # The kernel ends at twice the largest radius, which takes a little of its own width away.
            assert (image.sum(axis=axis) @ steps**2) ** 0.5 == pytest.approx(radius, rel=0.12)
        # e^(-1/2) of the middle is left where the distance is the radius.
        assert image[10, 11] / image[10, 10] == pytest.approx(np.exp(-0.5 / radius**2), rel=1e-5)
    flat = np.full((2, 5, 6, 3), 0.3, np.float32)
    np.testing.assert_allclose(_fractals._gaussian_blur(flat, radii), flat, rtol=1e-6)


# --- the start -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 20, 33), (2, 4, 4)])
def test_images_have_the_shape_of_the_federation_s(shape: tuple[int, int, int]) -> None:
    federation, plan = Fractals(classes=3, images=4).prepare(images(*shape), PLAN)
    examples = federation.examples
    assert plan == dataclasses.replace(PLAN, cohort=None, server_steps=0)
    assert (federation.name, federation.clients, federation.classes) == ("fractals", 1, (0, 1, 2))
    assert federation.positions("train", 0).tolist() == list(range(12))
    assert examples.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert examples.inputs.shape == (12, *shape) and examples.inputs.dtype == torch.uint8
    assert examples.class_names == ("fractals 0", "fractals 1", "fractals 2")
    scaled = federation.batch(np.arange(12))[0]
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(shape[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(shape[0]), atol=1e-4, rtol=0)


def test_drawing_depends_on_settings_and_seed_only() -> None:
    start = Fractals(classes=3, images=4)
    first = prepared(start, 3, 20, 20)
    _fractals.fractal_examples.cache_clear()
    again = prepared(start, 3, 20, 20)
    assert torch.equal(first.examples.inputs, again.examples.inputs) and first.fingerprint == again.fingerprint
    others = [
        prepared(start, 3, 20, 20, seed=6),
        prepared(dataclasses.replace(start, objects=1), 3, 20, 20),
        prepared(dataclasses.replace(start, blur=1.0), 3, 20, 20),
        prepared(dataclasses.replace(start, images=5), 3, 20, 20),
    ]
    assert len({federation.fingerprint for federation in (first, *others)}) == 5
    backgrounds = [federation.examples.inputs[:, :, 0, 0] for federation in (first, others[0])]
    assert not (backgrounds[0] == backgrounds[1]).all(1).any()


def test_more_classes_keep_the_first_ones() -> None:
    few, many = (prepared(Fractals(classes=classes, images=3), 1, 16, 16) for classes in (2, 7))
    assert torch.equal(few.examples.inputs, many.examples.inputs[:6])


def test_a_small_network_learns_which_fractals_an_image_shows() -> None:
    """On other images of the same sets, so that remembering images does not help."""
    start = Fractals(classes=4, images=150)
    training = Plan(rounds=20, local_epochs=1, batch_size=20, lr=0.02, momentum=0.9, seed=5)
    federation, plan = start.prepare(images(1, 20, 20), training)
    fresh = prepared(dataclasses.replace(start, images=50), 1, 20, 20)
    model = Model(PlainCNN(channels=(16, 32, 64)), (1, 20, 20), 4)
    weights = start.begin(model, 4)
    assert tree.fingerprint(weights) == tree.fingerprint(model.init(4))

    def accuracy(data: Federation) -> float:
        inputs, labels = data.batch(data.positions("train", 0))
        return float((model.apply(weights, inputs).argmax(1) == labels).double().mean())

    before = accuracy(federation)
    with LocalEngine(threads=1) as engine:
        for finished in train(start, model, federation, plan, weights, engine):
            weights = finished.state.weights
    assert before < 0.4 and accuracy(federation) > 0.8 and accuracy(fresh) > 0.7


def test_a_round_is_plain_local_training() -> None:
    """One round with whole batches is one step of gradient descent on all images."""
    start = Fractals(classes=2, images=3)
    federation, plan = start.prepare(images(1, 8, 8), Plan(rounds=1, local_epochs=1, batch_size=100, lr=0.1))
    model = Model(PlainCNN(channels=(2, 2, 2)), (1, 8, 8), 2)
    weights = model.init(0)
    inputs, labels = federation.batch(federation.positions("train", 0))
    slope = torch.func.grad(lambda w: torch.nn.functional.cross_entropy(model.apply(w, inputs), labels))(weights)
    with LocalEngine(threads=1) as engine:
        (finished,) = train(start, model, federation, plan, weights, engine)
    for name, tensor in finished.state.weights.items():
        torch.testing.assert_close(tensor, weights[name] - 0.1 * slope[name])


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (28, 28), (3, 4, 4, 4)])
def test_inputs_that_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        prepared(Fractals(classes=2, images=1), *shape)
    expected = f"fractals: inputs of black have shape {shape} (allowed: images, (channels, height, width))"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 1}, "start 'fractals': classes: Input should be greater than or equal to 2"),
        ({"images": 0}, "start 'fractals': images: "),
        ({"objects": 0}, "start 'fractals': objects: "),
        ({"blur": 1.5}, "start 'fractals': blur: "),
        ({"image": 5}, "start 'fractals': unknown setting 'image'; did you mean 'images'?"),
    ],
)
def test_wrong_settings(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        names.build(Fractals, wrong, "start 'fractals'")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
