"""Pre-training on images of fractals, which needs no data at all."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.types import STRICT, Client, Cohort, Info, Plan, State, Weights

if TYPE_CHECKING:
    from fedstart.data.federation import Federation
    from fedstart.models import Model


@settings_dataclass(frozen=True, config=STRICT)
class Fractals:
    """The plan's local training on drawn images: which set of fractals does an image show?

    A fractal is what a system of random affine contractions of the plane leaves in place. Chen et al. 2023 train pair
    similarity (SimSiam, 100,000 systems): a sample is two images that share the same fractals. Clients here know
    cross-entropy only, so the objective is ours: each of `classes` sets of systems is a class, and the softmax over
    the sets tells images that share their fractals from images that do not. Two fractals per image, flips, sizes of
    0.45 to 0.75 of the side, places, random colours and Gaussian blur are theirs. How systems and backgrounds are
    drawn, that fractals are lighter than the background, and all other numbers are ours, chosen so that a small
    network learns something in a minute on two cores.

    Images have the shape of the federation's own, which are not used; fractals are hard to tell apart below some 16
    pixels. A round is the plan's local work: with `local_epochs=1`, one pass over all images. The model that learns
    has `classes` outputs, and its head is of no use afterwards.
    """

    classes: Annotated[int, Field(ge=2, description="sets of fractals to tell apart")] = 100
    images: Annotated[int, Field(ge=1, description="images of each set")] = 100
    objects: Annotated[int, Field(ge=1, description="fractals of a set, all of them in each of its images")] = 2
    blur: Annotated[float, Field(ge=0, le=1, description="share of the images that are blurred")] = 0.5

    def begin(self, model: Model, seed: int) -> Weights:
        """Initial weights of `seed`; `model` has as many outputs as the prepared federation has classes."""
        return model.init(seed)

    def prepare(self, federation: Federation, plan: Plan) -> tuple[Federation, Plan]:
        """A federation of one client that trains on all drawn images; no cohort is drawn and no server takes part.

        Of the federation only the shape of an input is used, of the plan only the seed.
        Raises ValueError if inputs are not images of shape (channels, height, width).
        """
        # numpy and torch take a second to import, which a list of the starts need not wait for.
        import numpy as np

        from fedstart.data.federation import Federation, Positions
        from fedstart.starts._fractals import fractal_examples

        shape = federation.examples.shape
        if len(shape) != 3:
            raise ValueError(
                f"fractals: inputs of {federation.name} have shape {shape} (allowed: images, (channels, height, width))"
            )
        examples = fractal_examples(shape, self.classes, self.images, self.objects, self.blur, plan.seed)
        everything = Positions(np.array([0, len(examples)]), np.arange(len(examples)))
        drawn = Federation("fractals", examples, {"train": everything}, tuple(range(self.classes)))
        return drawn, dataclasses.replace(plan, cohort=None, server_steps=0)

    def learn(self, client: Client, weights: Weights) -> Weights:
        """On the one client: the plan's local training."""
        return client.descend(weights)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """The trained weights; what the state remembers stays."""
        # Weight 1 rather than the number of examples: multiplying and dividing by it would round.
        return dataclasses.replace(state, weights=cohort.mean(self.learn, state.weights, weight=None)), {}
