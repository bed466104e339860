"""The bare PyTorch loop: everything in memory beforehand, no DataLoader, one copy of the model per client."""

from __future__ import annotations

import copy

import networks
import torch
from child import Job, Recorder, StepCounter, arrays, read_job
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def one_round(module: nn.Module, data: list[tuple[Tensor, Tensor]], batch_size: int, lr: float) -> dict[str, Tensor]:
    """Trains the clients one after the other; the mean of their weights, by number of examples."""
    total: dict[str, Tensor] = {}
    everything = sum(len(labels) for _, labels in data)
    for inputs, labels in data:
        local = copy.deepcopy(module)
        local.train()
        optimizer = torch.optim.SGD(local.parameters(), lr=lr)
        for batch in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad()
            cross_entropy(local(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        share = len(labels) / everything
        for name, tensor in local.state_dict().items():
            total[name] = total[name] + tensor * share if name in total else tensor * share
    return total


def main(job: Job) -> None:
    torch.manual_seed(0)
    work, data = job.work, job.data
    inputs, labels = torch.from_numpy(data.read("inputs")), torch.from_numpy(data.read("labels"))
    module = networks.build(work.network, work.shape, work.classes)
    test_inputs, test_labels = map(torch.from_numpy, data.test())
    recorder, counter = Recorder(job), StepCounter()
    for cohort in data.cohorts[: job.rounds]:
        rows = [slice(data.offsets[client], data.offsets[client + 1]) for client in cohort]
        module.load_state_dict(one_round(module, [(inputs[r], labels[r]) for r in rows], work.batch_size, work.lr))
        if job.evaluate:
            with torch.inference_mode():
                cross_entropy(module(test_inputs), test_labels)
        recorder.end_round()
        counter.stop()
    note = f"one process, {torch.get_num_threads()} torch threads"
    recorder.finish(counter.steps, arrays(module.state_dict()), note=note)


if __name__ == "__main__":
    main(read_job())
