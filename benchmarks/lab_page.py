"""The numbers of docs/lab.md that no experiment of the lab writes: test error by two ways, and agreement over d.

    python benchmarks/lab_page.py [--seeds 10] [--draws 20000]

Prints how near the normal approximation of the test error comes to the simulated one, the share of filters that are
still misaligned at the end, and the share that seems to stagnate, in the second round with tau = 4, at starts where all
or half of the filters are aligned. All at h = 0; 20 seeds but for the first table.
"""

from __future__ import annotations

import argparse

import torch

from fedstart.algorithms.fedavg import FedAvg
from fedstart.engines.allocation import one_torch_thread
from fedstart.lab import coefficients, error
from fedstart.lab.exact import follow
from fedstart.lab.experiments import _grid as grid
from fedstart.lab.geometry import Geometry
from fedstart.lab.runs import Training, last
from fedstart.lab.schedules import Adaptive, agreement, stagnating
from fedstart.lab.starts import Pretraining, flipped, random
from fedstart.lab.world import World

CASES = {
    "working recipe": (World(), None, 100, 1000),
    "after one round": (World(), None, 100, 100),
    "tau = 1": (World(), None, 1, 1000),
    "pre-trained at cosine 0.9": (World(), 0.9, 100, 1000),
    "m = 5": (World(m=5), None, 100, 1000),
    "m = 100, tau = 1": (World(m=100), None, 1, 1000),
    "d = 1,000": (World(d=1000), None, 100, 1000),
}
"""World, cosine of pre-training, tau, local steps."""
SEEDS = 20


def runs(world: World, cosine: float | None, seeds: int) -> Geometry:
    """One run for each seed, clients of one class each."""
    cosines = () if cosine is None else (cosine,)
    return grid.geometry(world, range(seeds), grid.starts(world, range(seeds), cosines, Pretraining())[cosine], 0.0)


def errors(seeds: int, draws: int) -> None:
    """The first table."""
    print("| | simulated | normal | largest miss of a seed |\n|---|---|---|---|")
    for name, (world, cosine, tau, steps) in CASES.items():
        held = runs(world, cosine, seeds)
        learnt = last(held, Training(FedAvg(), 0.1, steps), tau)
        seen = error.simulated(held, learnt, world.sigma_p, draws)
        guess = error.gaussian(held, learnt, world.sigma_p)
        print(f"| {name} | {seen.mean():.4f} | {guess.mean():.4f} | {(seen - guess).abs().max():.4f} |")


def turned() -> None:
    """What is misaligned after 1,000 local steps."""
    held = runs(World(), None, SEEDS)
    for tau in (100, 200):
        found = coefficients.read(held, last(held, Training(FedAvg(), 0.1, 1000), tau))
        print(f"tau = {tau}: {100 * found.misaligned.double().mean():.1f} % of the filters are misaligned at the end")


def stuck() -> None:
    """The second table."""
    print("| d | length of the signal | start | seem to stagnate | runs in which tau shrinks |\n|---|---|---|---|---|")
    for d in (200, 1000, 2000):
        for mu in (2.0, 4.0):
            world = World(d=d, mu=mu)
            scratch = [random(world, seed) for seed in range(SEEDS)]
            for name, starts in {"random": scratch, "all aligned": [flipped(w, world, True) for w in scratch]}.items():
                held = grid.geometry(world, range(SEEDS), starts, 0.0)
                *_, moment = follow(held, FedAvg(), 0.1, 4, 2)
                share = stagnating(agreement(held, moment.moved))
                shrinks = (share > Adaptive().limit).double().mean()
                print(f"| {d:,} | {mu:g} | {name} | {share.mean():.3f} | {100 * shrinks:.0f} % |")


def main() -> None:
    """Prints all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=20_000)
    options = parser.parse_args()
    with torch.inference_mode(), one_torch_thread():
        errors(options.seeds, options.draws)
        turned()
        stuck()


if __name__ == "__main__":
    main()
