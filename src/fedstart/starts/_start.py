"""Start: weights to begin from, and the card that says where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedstart import __version__, models, names, tree
from fedstart.files import read_json, remove_temporary_files, write_json
from fedstart.starts._files import read_weights, write_weights
from fedstart.types import Algorithm, Cost, Plan, Weights

if TYPE_CHECKING:
    from fedstart.data.federation import Federation
    from fedstart.models import Model


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


class Beginning(Algorithm, Protocol):
    """A way to begin that is not a federated method: it also chooses the first weights, and adjusts data and plan."""

    def begin(self, model: Model, seed: int) -> Weights:
        """The weights before the first round; the model has as many outputs as the prepared federation classes."""
        ...

    def prepare(self, federation: Federation, plan: Plan) -> tuple[Federation, Plan]:
        """The federation and plan to train with, which may be another federation of inputs of the same shape."""
        ...


class Card(BaseModel):
    """Where weights come from. No times: the same seed gives the same card.

    `shape` is that of one input; images are `(x / 255 - mean) / std` per channel. `class_names` are those of the
    data the weights were trained on, in the order of the model's outputs. `scores` are finite numbers by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    architecture: str
    architecture_settings: dict[str, Any]
    shape: tuple[int, ...]
    classes: Annotated[int, Field(ge=1)]
    class_names: tuple[str, ...]
    normalisation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str
    settings: dict[str, Any]
    plan: Plan
    seed: Annotated[int, Field(ge=0)]
    data: str
    data_fingerprint: str
    cost: Cost
    scores: dict[str, float] = Field(default_factory=dict)
    fedstart_version: str = __version__
    torch_version: str = Field(default_factory=_torch_version)

    @classmethod
    def of(
        cls,
        model: Model,
        federation: Federation,
        plan: Plan,
        *,
        method: str,
        settings: Mapping[str, Any],
        seed: int,
        cost: Cost,
        scores: Mapping[str, float] | None = None,
    ) -> Card:
        """The card of a run of `method` with `settings` on `federation`; `seed` is that of the first weights."""
        network, examples = model.describe(), federation.examples
        return cls(
            architecture=network["name"],
            architecture_settings=network["settings"],
            shape=model.shape,
            classes=model.classes,
            class_names=tuple(examples.class_names[label] for label in federation.classes),
            normalisation=network["normalisation"],
            mean=examples.mean,
            std=examples.std,
            method=method,
            settings=dict(settings),
            plan=plan,
            seed=seed,
            data=federation.name,
            data_fingerprint=federation.fingerprint,
            cost=cost,
            scores=dict(scores or {}),
        )


@dataclass(frozen=True, eq=False)
class Start:
    """Weights and their card, kept together on disk as `weights.safetensors` and `card.json`."""

    weights: Weights
    card: Card

    def model(self) -> Model:
        """The model that the weights fit.

        Raises ValueError if the card's architecture is unknown, or the weights do not fit it.
        """
        card = self.card
        architecture = models.load_architecture(card.architecture, card.architecture_settings, "card.json model")
        model = models.Model(architecture, card.shape, card.classes)
        model.check(self.weights)
        return model

    def save(self, directory: Path | str) -> None:
        """Writes both files into `directory`, each whole; equal starts give equal bytes.

        The card also gets the weights' SHA-256, so files of two starts cannot be mixed up.
        Raises OSError in one line if the directory cannot be written.
        """
        directory = Path(directory)
        content = {**self.card.model_dump(mode="json"), "weights_sha256": tree.fingerprint(self.weights)}
        directory.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(directory)
        write_weights(directory / "weights.safetensors", self.weights)
        write_json(directory / "card.json", content)

    @classmethod
    def load(cls, path: Path | str) -> Start:
        """Reads a directory, or the .safetensors file in it with the `card.json` beside it.

        Raises ValueError in one line if a file is missing or damaged, or the card belongs to other weights.
        """
        path = Path(path).expanduser()
        file = path if path.suffix == ".safetensors" else path / "weights.safetensors"
        weights = read_weights(file)
        card, sha256 = _read_card(file.with_name("card.json"))
        if sha256 != tree.fingerprint(weights):
            raise ValueError(f"{file}: these are not the weights that {file.with_name('card.json')} describes")
        return cls(weights, card)


def _read_card(path: Path) -> tuple[Card, str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file (weights without a card are read by the checkpoint start)")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("weights_sha256"), str):
        raise ValueError(f"{path}: not the card of a start (weights_sha256 is missing)")
    sha256 = content.pop("weights_sha256")
    try:
        return Card.model_validate(content), sha256
    except ValidationError as error:
        raise ValueError(f"{path}: {names.first_problem(error)}") from None


def without_training(plan: Plan) -> Plan:
    """The plan with zero rounds, for starts that are finished when they begin."""
    return dataclasses.replace(plan, rounds=0)
