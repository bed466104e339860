"""Model: a PyTorch architecture seen as functions over explicit weights."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from fedstart import keys, names
from fedstart.models._normalisation import FrozenBatchNorm
from fedstart.types import Weights

# Module constructors can only draw from torch's default generator, so one thread builds at a time.
_BUILDING = threading.RLock()

_NORMALISATIONS = {
    "batch": nn.modules.batchnorm._BatchNorm,
    "frozen": FrozenBatchNorm,
    "group": nn.GroupNorm,
    "instance": nn.modules.instancenorm._InstanceNorm,
    "layer": (nn.LayerNorm, nn.RMSNorm),
}


class Architecture(Protocol):
    """A frozen settings dataclass that builds one kind of network."""

    @property
    def head(self) -> str:
        """Prefix of the tensors of the last linear layer, for instance `"fc"`."""
        ...

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A fresh module from inputs `(n, *shape)` to logits `(n, classes)`, drawn from torch's default generator.

        Raises ValueError for an input shape that the architecture cannot take.
        """
        ...


def load_architecture(name: str, settings: Mapping[str, Any], where: str = "model") -> Architecture:
    """The architecture called `name` (a file of `fedstart.models`) with these settings.

    `where` opens the error. Raises ValueError in one line for an unknown name or a wrong setting.
    """
    architecture = names.find("model", name, names.discover("fedstart.models"))
    return names.build(architecture, settings, f"{where} {name!r}")


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture for inputs of one shape (without the batch) and a number of classes.

    Weights hold every parameter and persistent buffer under its `state_dict` name; tied parameters appear once.
    Safe to use from several threads: each works on a module of its own. A pickle holds the settings only.
    Raises ValueError if a size of `shape` or `classes` is below 1.
    """

    architecture: Architecture
    shape: tuple[int, ...]
    classes: int

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1 or self.classes < 1:
            raise ValueError(f"a model needs sizes of at least 1, got shape {self.shape} and {self.classes} classes")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.architecture, self.shape, self.classes)

    def module(self) -> nn.Module:
        """A fresh float32 module on the CPU, in training mode; its values are those of an arbitrary fixed seed."""
        return self._build(0)

    def loaded(self, weights: Weights) -> nn.Module:
        """A fresh module with a copy of these weights, in evaluation mode, of the widest of their types."""
        types = [tensor.dtype for tensor in weights.values() if tensor.is_floating_point()]
        module = self.module().to(functools.reduce(torch.promote_types, types) if types else torch.float32)
        # Not strict: a tied parameter stands in the weights once.
        module.load_state_dict(weights, strict=False)
        return module.eval()

    def init(self, seed: int) -> Weights:
        """Initial weights, the same bits for the same seed; torch's default generator is left as it was."""
        return _state(self._build(keys.number(seed, "init")))

    def apply(self, weights: Weights, inputs: Tensor, training: bool = False) -> Tensor:
        """Logits of shape `(n, classes)` for inputs `(n, *shape)`; works under every `torch.func` transform.

        With `training=True`, BatchNorm normalises by the batch and updates its running statistics in place, in the
        tensors given: pass a copy of the weights that may change. BatchNorm then needs more than one value per channel.
        Raises ValueError if a tensor is missing from or unknown in `weights`.
        """
        if weights.keys() != self.shapes.keys():
            self.check(weights)
        skeleton = self._skeleton
        if skeleton.training != training:
            skeleton.train(training)
        return torch.func.functional_call(skeleton, weights, (inputs,))

    def transfer(self, weights: Weights, classes: int, seed: int) -> tuple[Model, Weights]:
        """The model for another task: the body of `weights` (not copied) under a fresh head of `classes` outputs,
        of the weights' type and device.

        The head depends on the architecture, `classes` and `seed` only: every start gets the same bits.
        Raises ValueError if `weights` do not fit this model.
        """
        self.check(weights)
        model = dataclasses.replace(self, classes=classes)
        return model, model.adopt(weights, seed)

    def adopt(self, weights: Weights, seed: int) -> Weights:
        """The body of `weights` (not copied) under a fresh head of this model, of their type and device.

        `weights` may have a head of any size. Raises ValueError if their body does not fit this model.
        """
        head = {name: tensor.to(weights[name]) for name, tensor in self.fresh_head(seed).items() if name in weights}
        moved = {**weights, **head}
        self.check(moved)
        return moved

    def fresh_head(self, seed: int) -> Weights:
        """The head's tensors drawn anew: the same bits for the same architecture, shape, classes and seed."""
        drawn = _state(self._build(keys.number(seed, "head")))
        return {name: drawn[name] for name in self.head}

    def check(self, weights: Weights) -> None:
        """Raises ValueError naming the first tensor that is missing, unexpected or of the wrong shape."""
        missing = [name for name in self.shapes if name not in weights]
        if missing:
            raise ValueError(f"the weights lack tensor {missing[0]!r} of shape {tuple(self.shapes[missing[0]])}")
        extra = [name for name in weights if name not in self.shapes]
        if extra:
            raise names.unknown("tensor", extra[0], self.shapes)
        for name, shape in self.shapes.items():
            if weights[name].shape != shape:
                given = tuple(weights[name].shape)
                raise ValueError(f"tensor {name!r} has shape {given}, but the model needs {tuple(shape)}")

    @functools.cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor of the weights, in the module's order."""
        return {name: tensor.shape for name, tensor in _state(self._skeleton).items()}

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the tensors that training changes by gradients: no buffers, no frozen parameters."""
        return tuple(name for name, parameter in self._skeleton.named_parameters() if parameter.requires_grad)

    @functools.cached_property
    def head(self) -> tuple[str, ...]:
        """Names of the tensors of the head; raises ValueError if the architecture's head names none."""
        prefix = self.architecture.head
        found = tuple(name for name in self.shapes if name.startswith(f"{prefix}."))
        if not found:
            raise names.unknown("head", prefix, {name.rpartition(".")[0] for name in self.shapes} - {""})
        return found

    def describe(self) -> dict[str, Any]:
        """Plain values: name, settings, shape, classes, number of parameters, and the kind of normalisation layers.

        `normalisation` is "none", or "batch", "frozen", "group", "instance", "layer" joined by "+".
        """
        modules = list(self._skeleton.modules())
        kinds = [kind for kind, types in _NORMALISATIONS.items() if any(isinstance(m, types) for m in modules)]
        return {
            "name": type(self.architecture).__module__.rpartition(".")[2],
            "settings": dataclasses.asdict(self.architecture),  # pyright: ignore[reportArgumentType]
            "shape": list(self.shape),
            "classes": self.classes,
            "parameters": sum(parameter.numel() for parameter in self._skeleton.parameters()),
            "normalisation": "+".join(kinds) or "none",
        }

    @functools.cached_property
    def _local(self) -> threading.local:
        return threading.local()

    @property
    def _skeleton(self) -> nn.Module:
        """This thread's module: `functional_call` swaps its tensors, so threads cannot share one."""
        if not hasattr(self._local, "module"):
            self._local.module = self._build(0)
        return self._local.module

    def _build(self, number: int) -> nn.Module:
        # A module made inside a torch.func transform, or in inference mode, would hold tensors of that context.
        with (
            _BUILDING,
            temporarily_clear_interpreter_stack(),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.device("cpu"),
            torch.random.fork_rng(devices=[]),
        ):
            # torch.manual_seed would also reseed the accelerators.
            torch.default_generator.manual_seed(number)
            return self.architecture.build(self.shape, self.classes).float()


def _state(module: nn.Module) -> Weights:
    unique = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    return {name: tensor.detach() for name, tensor in module.state_dict().items() if name in unique}
