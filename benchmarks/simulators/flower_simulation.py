"""Flower's simulation engine: one virtual node per client, two Ray actors with one processor and torch thread each.

Flower draws the clients of each round itself. The variables that `run.py` sets keep Ray on 127.0.0.1 and telemetry
off.
"""

from __future__ import annotations

import os
import time

import flower_client
import networks
import torch
from child import Job, Recorder, arrays, read_job
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy


def main(job: Job) -> None:
    work, data, actors = job.work, job.data, os.cpu_count() or 1
    recorder, app = Recorder(job), ServerApp()
    replies: list[list[RecordDict]] = []
    module = networks.build(work.network, work.shape, work.classes)
    test_inputs, test_labels = map(torch.from_numpy, data.test())
    final: dict[str, torch.Tensor] = {}

    def keep(contents: list[RecordDict], _: str) -> MetricRecord:
        replies.append(contents)
        return MetricRecord({"replies": len(contents)})

    def after_round(number: int, aggregated: ArrayRecord) -> None:
        if number == 0:
            return
        clients = [int(content["metrics"]["client"]) for content in replies[-1]]  # pyright: ignore
        if job.evaluate or number == job.rounds:
            final.update(aggregated.to_torch_state_dict())
        if job.evaluate:
            module.load_state_dict(final)
            with torch.inference_mode():
                cross_entropy(module(test_inputs), test_labels)
        recorder.end_round(clients)

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        # FedAvg takes its fraction of the nodes that are there when it begins.
        while len(list(grid.get_node_ids())) < data.clients:
            time.sleep(0.5)
        strategy = FedAvg(
            fraction_train=(work.cohort + 0.5) / data.clients if work.cohort < data.clients else 1.0,
            fraction_evaluate=0.0,
            train_metrics_aggr_fn=keep,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(module.state_dict()),
            num_rounds=job.rounds,
            timeout=3600,
            train_config=ConfigRecord({"folder": job.folder, "workload": job.workload}),
            evaluate_fn=after_round,
        )

    run_simulation(
        server_app=app,
        client_app=flower_client.app,
        num_supernodes=data.clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": actors}},
    )
    if any(len(contents) != work.cohort for contents in replies):
        raise ValueError(f"replies per round: {[len(contents) for contents in replies]}, expected {work.cohort}")
    counted = sum(int(content["metrics"]["steps"]) for content in replies[0])  # pyright: ignore
    recorder.finish(counted, arrays(final), note=f"{data.clients} virtual nodes, {actors} Ray actors of 1 torch thread")


if __name__ == "__main__":
    main(read_job())
