"""Weights from a file, such as a torchvision checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart import names, tree
from fedstart.starts._files import read_weights
from fedstart.starts._naming import ours
from fedstart.starts._start import without_training
from fedstart.types import STRICT, Cohort, Info, Plan, State, Weights

if TYPE_CHECKING:
    from fedstart.data.federation import Federation
    from fedstart.models import Model

RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@settings_dataclass(frozen=True, config=STRICT)
class Checkpoint:
    """Weights from a .safetensors, .pt or .pth file, or from the directory of a Start; zero rounds of training.

    Tensors are matched by name and brought to the model's types (float32). Names may be those of torchvision, timm or
    Hugging Face's ResNet, behind a wrapper such as DataParallel's `module.` (`_naming.py`). The body must be complete
    and of the same shapes. A head that is absent or of another shape is replaced whole by the fresh head of the seed.
    Running statistics of BatchNorm layers where the model has a layer of the same name without them (GroupNorm) are
    dropped: such a network keeps the filters, but computes another function. Any other extra tensor is an error.
    Counts of batches that the file lacks are 0, as in files older than PyTorch 0.4.1.
    """

    path: Annotated[str, Field(min_length=1, description="weights file (.safetensors, .pt, .pth) or Start directory")]

    def begin(self, model: Model, seed: int) -> Weights:
        """The file's weights; `seed` names the fresh head, if one is needed.

        Raises ValueError in one line if the file cannot be read, holds NaN or infinity, or does not fit the model.
        """
        path = Path(self.path).expanduser()
        given = read_weights(path / "weights.safetensors" if path.is_dir() else path)
        try:
            return _fit(given, model, seed)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def prepare(self, federation: Federation, plan: Plan) -> tuple[Federation, Plan]:
        """The federation as it is, and zero rounds."""
        return federation, without_training(plan)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """The state as it is."""
        return state, {}


def _fit(given: Weights, model: Model, seed: int) -> Weights:
    called = ours(given, model.shapes)
    for file, name in called.items():
        if name not in model.shapes and not _is_dropped(name, model):
            origin = "" if name == file else f"; the file calls it {file!r}"
            raise ValueError(f"{names.unknown('tensor', name, model.shapes)}{origin}")
    given = {called[file]: tensor for file, tensor in given.items()}
    template = model.init(seed)
    counts = {name: template[name] for name in model.shapes if name.endswith(".num_batches_tracked")}
    chosen = {name: (counts | given)[name] for name in model.shapes if name in given or name in counts}
    if any(name not in given or given[name].shape != model.shapes[name] for name in model.head):
        chosen |= model.fresh_head(seed)
    model.check(chosen)
    if not tree.is_finite(chosen):
        raise ValueError("the weights hold NaN or infinity")
    return {name: chosen[name].to(template[name].dtype, copy=True) for name in model.shapes}


def _is_dropped(name: str, model: Model) -> bool:
    layer, _, kind = name.rpartition(".")
    return kind in RUNNING_STATISTICS and f"{layer}.weight" in model.shapes
