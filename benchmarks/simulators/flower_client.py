"""What Flower's virtual nodes run: the same local training as the bare loop, on data read when first needed."""

from __future__ import annotations

import functools
from pathlib import Path

import networks
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from workloads import WORKLOADS, Data, load

app = ClientApp()


@functools.cache
def _prepared(folder: str, name: str) -> tuple[nn.Module, Data]:
    # Once per actor: each has one processor.
    torch.set_num_threads(1)
    work = WORKLOADS[name]
    return networks.build(work.network, work.shape, work.classes), load(work, Path(folder))


@functools.cache
def _examples(folder: str, name: str, client: int) -> tuple[Tensor, Tensor]:
    inputs, labels = _prepared(folder, name)[1].client(client)
    return torch.from_numpy(inputs), torch.from_numpy(labels)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch on the examples of the node's partition."""
    config = message.content["config"]
    folder, name = str(config["folder"]), str(config["workload"])
    client, work = int(context.node_config["partition-id"]), WORKLOADS[name]
    module, _ = _prepared(folder, name)
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    module.train()
    inputs, labels = _examples(folder, name, client)
    optimizer, steps, last = torch.optim.SGD(module.parameters(), lr=work.lr), 0, 0.0
    for batch in torch.randperm(len(labels)).split(work.batch_size):
        optimizer.zero_grad()
        loss = cross_entropy(module(inputs[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        steps, last = steps + 1, loss.detach()
    metrics = {"num-examples": len(labels), "steps": steps, "client": client, "loss": float(last)}
    content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)
