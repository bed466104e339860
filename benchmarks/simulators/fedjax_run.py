"""FedJAX: its federated averaging with the default (jit) backend. The last batch of a client is filled up."""

from __future__ import annotations

import jax_shim  # noqa: F401  # isort: skip
from collections.abc import Callable

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from child import Job, Recorder, read_job
from fedjax.algorithms import fed_avg
from workloads import Workload

Params = dict[str, jax.Array]


def _pool(maps: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _convolution(params: Params, name: str, maps: jax.Array, padding: str) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(maps, params[f"{name}.weight"], (1, 1), padding, dimension_numbers=layout)
    return jax.nn.relu(out + params[f"{name}.bias"])


def _linear(params: Params, name: str, features: jax.Array) -> jax.Array:
    return features @ params[f"{name}.weight"] + params[f"{name}.bias"]


def network(work: Workload) -> Callable[[Params, jax.Array], jax.Array]:
    """The network of the workload as a function of its parameters; images have their channels last."""

    def simple_cnn(params: Params, maps: jax.Array) -> jax.Array:
        maps = _pool(_convolution(params, "conv2", _convolution(params, "conv1", maps, "VALID"), "VALID"))
        hidden = jax.nn.relu(_linear(params, "hidden", maps.reshape(len(maps), -1)))
        return _linear(params, "fc", hidden)

    def cnn(params: Params, maps: jax.Array) -> jax.Array:
        maps = _pool(_convolution(params, "conv1", maps, "SAME"))
        maps = _pool(_convolution(params, "conv2", maps, "SAME"))
        hidden = jax.nn.relu(_linear(params, "hidden", maps.reshape(len(maps), -1)))
        return _linear(params, "fc", hidden)

    def mlp(params: Params, features: jax.Array) -> jax.Array:
        return _linear(params, "fc", jax.nn.relu(_linear(params, "hidden1", features)))

    return {"simple_cnn": simple_cnn, "cnn": cnn, "mlp": mlp}[work.network]


def convert(initial: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch's tensors in the order that the functions above take them in."""
    converted = dict(initial)
    for name, value in initial.items():
        if value.ndim == 4:
            converted[name] = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            converted[name] = value.T
    if "conv2.weight" in initial:
        channels = len(initial["conv2.weight"])
        hidden = initial["hidden.weight"]
        side = int(np.sqrt(hidden.shape[1] // channels))
        maps = hidden.reshape(len(hidden), channels, side, side).transpose(2, 3, 1, 0)
        converted["hidden.weight"] = maps.reshape(-1, len(hidden))
    return {name: np.ascontiguousarray(value) for name, value in converted.items()}


def main(job: Job) -> None:
    work, data, counted = job.work, job.data, 0
    apply, initial = network(work), convert(data.initial)

    def channels_last(inputs: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(inputs, 1, -1)) if inputs.ndim == 4 else inputs

    def count(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        nonlocal counted
        counted += 1
        return batch

    examples = {k: {"x": channels_last(inputs), "y": labels} for k, (inputs, labels) in enumerate(data.by_client())}
    federated = fedjax.InMemoryFederatedData(examples).preprocess_batch(count)

    def loss(params: Params, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        chosen = jax.nn.log_softmax(apply(params, batch["x"]))[jnp.arange(len(batch["y"])), batch["y"]]
        return -chosen.mean()

    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(work.lr),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=work.batch_size),
    )
    evaluate = jax.jit(apply)
    test = channels_last(data.test()[0])
    state = algorithm.init({name: jnp.asarray(value) for name, value in initial.items()})
    # FedJAX has also looked at every client once.
    recorder, first, looked = Recorder(job), 0, counted
    for number, cohort in enumerate(data.cohorts[: job.rounds].tolist()):
        keys = jax.random.split(jax.random.PRNGKey(number), len(cohort))
        clients = [(k, dataset, key) for (k, dataset), key in zip(federated.get_clients(cohort), keys, strict=True)]
        state, _ = algorithm.apply(state, clients)
        if job.evaluate:
            jax.block_until_ready(evaluate(state.params, test))
        jax.block_until_ready(state.params)
        recorder.end_round()
        first = first or counted - looked
    final = {name: np.asarray(value) for name, value in state.params.items()}
    recorder.finish(first, final, initial, note="one process, XLA's threads; last batches filled up")


if __name__ == "__main__":
    main(read_job())
