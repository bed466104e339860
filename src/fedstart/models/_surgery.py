"""Normalisation surgery: the weights of a network with BatchNorm, brought to one with other layers in its place."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedstart import names
from fedstart.models._model import Model, load_architecture
from fedstart.models._normalisation import FrozenBatchNorm, convert, norms
from fedstart.models.renormalised import Renormalised
from fedstart.types import Weights

FLAT = 1e-12
"""Variance of a normalised channel below which it is taken for constant; one that varies has about 1."""


def renormalise(
    model: Model,
    weights: Weights,
    to: Literal["group", "layer", "frozen", "folded", "batch"],
    groups: int = 2,
    keep_affine: bool = True,
) -> tuple[Model, Weights]:
    """A network with BatchNorm as one with other layers: the new model, and weights that fit it (copies).

    Every tensor that both have is kept bit for bit, the learned scale and shift of each layer among them; `folded`
    changes the tensors that it folds into. In evaluation `frozen` and `folded` compute what the network did, up to
    rounding; `group` and `layer` do not: see `calibrated`.
    `keep_affine=False` begins with scale 1 and shift 0 in every layer, as converters do that make new layers.

    Raises ValueError in one line where `Renormalised` refuses the model, and for weights that do not fit it.
    """
    model.check(weights)
    given = {**_base(model), "to": to, "groups": groups}
    new = Model(load_architecture("renormalised", given, "renormalise to"), model.shape, model.classes)
    module = model.loaded(weights)
    if not keep_affine:
        with torch.no_grad():
            for norm in norms(module).values():
                if norm.affine:
                    norm.weight.fill_(1)
                    norm.bias.fill_(0)
    convert(module, to, groups, model.shape)
    state = module.state_dict()
    common = {name: weights[name].dtype for name in new.shapes if name in weights}
    dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    moved = {name: state[name].detach().to(common.get(name, dtype), copy=True) for name in new.shapes}
    new.check(moved)
    return new, moved


def calibrated(
    original: Model, original_weights: Weights, model: Model, weights: Weights, batches: Iterable[Tensor]
) -> Weights:
    """`weights` of a renormalised `model` after a calibration pass over unlabelled inputs.

    `original` is the network with BatchNorm that `model` was made from, layers having the same names. `batches` are
    inputs of shape `(n, *shape)` as `Model.apply` takes them. They are kept, and only norm layers' tensors change.

    GroupNorm (`group`, `layer`): layer by layer, in the order of the forward pass, scale and shift of each channel are
    set so that the mean and variance of its outputs over all inputs and places are those of the original's layer in
    evaluation: `scale = s std / std'`, `shift = mean - scale mean'`, where the dashes are of the channel without scale
    and shift, behind the layers set before, and s is the sign of the original's scale. The cost is one pass of the
    original, and of the model a part of one, up to the layer, for each layer. A channel that is constant without
    scale and shift keeps its scale: only its mean can be met.

    `frozen` and `batch`: running statistics become the average over the batches, each weighted by its examples, of the
    mean and unbiased variance of what each layer is given, where every layer normalises by the batch at hand. The
    original is not asked. A batch needs more than one value per channel.

    Raises ValueError in one line without inputs, for inputs of another shape, for weights that do not fit, where there
    is nothing to set (`folded`), and for a layer that is used twice or shares tensors.
    """
    inputs = checked_inputs(original, original_weights, model, weights, batches, "calibration")
    before, after = original.loaded(original_weights), model.loaded(weights)
    teachers = {n: part for n, part in before.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    grouped = [
        n for n, part in after.named_modules() if isinstance(part, nn.GroupNorm) and part.affine and n in teachers
    ]
    running = [n for n, part in after.named_modules() if _keeps_statistics(part)]
    if bool(grouped) == bool(running):
        raise ValueError(
            f"{'both GroupNorm and running statistics' if grouped else 'no layer'} to calibrate "
            "(allowed: models renormalised to group, layer, frozen or batch)"
        )
    with torch.no_grad():
        changed = _estimate(after, running, inputs) if running else _align(before, after, grouped, inputs)
    unknown = [name for name in changed if name not in weights and not name.endswith("num_batches_tracked")]
    if unknown:
        raise ValueError(f"tensor {unknown[0]!r} is shared with another layer, so it cannot be set for both")
    return {name: changed.get(name, tensor).to(tensor.dtype, copy=True) for name, tensor in weights.items()}


def checked_inputs(
    original: Model, original_weights: Weights, model: Model, weights: Weights, batches: Iterable[Tensor], what: str
) -> list[Tensor]:
    """The batches that hold inputs, for what is done with both networks; `what` opens the error.

    Raises ValueError in one line for weights that do not fit, without inputs, and for inputs of another shape.
    """
    original.check(original_weights)
    model.check(weights)
    inputs = [batch for batch in batches if len(batch)]
    if not inputs:
        raise ValueError(f"{what} needs at least one input")
    shapes = {original.shape, *(tuple(batch.shape[1:]) for batch in inputs)} - {model.shape}
    if shapes:
        raise ValueError(f"the original and all inputs must have the model's shape {model.shape}, got {shapes.pop()}")
    return inputs


class _Moments:
    """Mean and variance of each channel over all that was added, in float64; both of shape (channels,)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0)
        self._squares = torch.zeros(0)

    def add(self, maps: Tensor) -> None:
        """Adds outputs of shape `(n, channels, ...)`."""
        rows = maps.double().transpose(0, 1).flatten(1)
        count, mean = rows.shape[1], rows.mean(1)
        squares = (rows - mean[:, None]).square().sum(1)
        if self.count:
            moved, total = mean - self.mean, self.count + count
            squares = self._squares + squares + moved.square() * (self.count * count / total)
            mean = self.mean + moved * (count / total)
        self.count, self.mean, self._squares = self.count + count, mean, squares

    @property
    def variance(self) -> Tensor:
        """The population variance."""
        return self._squares / self.count


class _Reached(Exception):
    """Leaves a forward pass at the layer that is looked at."""


def _align(before: nn.Module, after: nn.Module, layers: Sequence[str], inputs: Sequence[Tensor]) -> Weights:
    """New scale and shift of the GroupNorm layers; sets them in `after` too."""
    order, asked = (_uses(module, layers, inputs[0][:2]) for module in (after, before))
    for name in layers:
        if max(order.count(name), asked.count(name)) > 1:
            raise ValueError(f"layer {name!r} is used twice in a pass, so it cannot be calibrated (allowed: once)")
    order = [name for name in order if name in asked]
    targets = _outputs(before, order, inputs)
    changed: Weights = {}
    for name in order:
        layer, teacher = cast(nn.GroupNorm, after.get_submodule(name)), before.get_submodule(name)
        plain, target = _plain(after, layer, inputs), targets[name]
        sign = torch.sign(teacher.weight.double()) if isinstance(teacher.weight, Tensor) else 1.0
        ratio = torch.sqrt(target.variance / plain.variance.clamp(min=FLAT))
        scale = torch.where(plain.variance > FLAT, sign * ratio, layer.weight.double())
        shift = target.mean - scale * plain.mean
        layer.weight.copy_(scale)
        layer.bias.copy_(shift)
        changed |= {f"{name}.weight": layer.weight.clone(), f"{name}.bias": layer.bias.clone()}
    return changed


def _uses(module: nn.Module, layers: Sequence[str], inputs: Tensor) -> list[str]:
    """The layers in the order in which a pass uses them, each as often as it is used."""
    used: list[str] = []
    with contextlib.ExitStack() as hooks:
        for name in layers:
            note = functools.partial(lambda called, *_: used.append(called), name)
            hooks.enter_context(module.get_submodule(name).register_forward_hook(note))
        _run(module, inputs)
    return used


def _outputs(module: nn.Module, layers: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, _Moments]:
    """What the layers put out over all inputs."""
    found = {name: _Moments() for name in layers}
    with contextlib.ExitStack() as hooks:
        for name, moments in found.items():
            note = functools.partial(lambda seen, _part, _given, output: seen.add(output), moments)
            hooks.enter_context(module.get_submodule(name).register_forward_hook(note))
        for batch in inputs:
            _run(module, batch)
    return found


def _plain(module: nn.Module, layer: nn.GroupNorm, inputs: Sequence[Tensor]) -> _Moments:
    """What the layer would put out over all inputs with scale 1 and shift 0."""
    moments = _Moments()

    def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        moments.add(functional.group_norm(given[0], layer.num_groups, eps=layer.eps))
        raise _Reached

    with layer.register_forward_pre_hook(look):
        for batch in inputs:
            with contextlib.suppress(_Reached):
                _run(module, batch)
    return moments


def _estimate(module: nn.Module, layers: Sequence[str], inputs: Sequence[Tensor]) -> Weights:
    """Running statistics over all inputs of the layers with these names."""
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in layers}

    def normalise(total: list[Any], part: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> Tensor:
        part = cast(FrozenBatchNorm, part)
        output = functional.batch_norm(given[0], None, None, part.weight, part.bias, training=True, eps=part.eps)
        rows, examples = given[0].double().transpose(0, 1).flatten(1), len(given[0])
        total[0] += examples
        total[1] = total[1] + examples * rows.mean(1)
        total[2] = total[2] + examples * rows.var(1)
        return output

    with contextlib.ExitStack() as hooks:
        for name, total in sums.items():
            hook = functools.partial(normalise, total)
            hooks.enter_context(module.get_submodule(name).register_forward_hook(hook))
        for batch in inputs:
            _run(module, batch)
    changed: Weights = {}
    for name, (examples, mean, variance) in sums.items():
        if examples:
            changed |= {f"{name}.running_mean": mean / examples, f"{name}.running_var": variance / examples}
            changed[f"{name}.num_batches_tracked"] = torch.tensor(len(inputs))
    return changed


def _run(module: nn.Module, inputs: Tensor) -> None:
    dtype = next(parameter.dtype for parameter in module.parameters())
    module(inputs.to(dtype))


def _keeps_statistics(part: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm)
    return isinstance(part, kinds) and part.running_mean is not None


def _base(model: Model) -> dict[str, Any]:
    """Name and settings of the architecture with BatchNorm."""
    architecture = model.architecture
    if isinstance(architecture, Renormalised):
        if architecture.to != "batch":
            raise ValueError(
                f"the model is renormalised to {architecture.to!r} already (allowed: its original, or batch)"
            )
        return {"base": architecture.base, "settings": architecture.settings}
    described = model.describe()
    if names.discover("fedstart.models").get(described["name"]) is not type(architecture):
        raise ValueError(
            f"{type(architecture).__name__} is no architecture of fedstart.models, so the result could not be saved "
            "(allowed: these, and your own module by the architecture 'custom')"
        )
    return {"base": described["name"], "settings": described["settings"]}
