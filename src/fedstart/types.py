"""The nouns that every layer shares: Weights, Plan, State, Cost, Round, and what a Client and a Cohort can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.schedules import STRICT as STRICT
from fedstart.schedules import Schedule

# torch takes a second to import, which `fedstart list` and a wrong setting need not wait for. Every algorithm imports
# this file; nothing looks at the type of a tensor here while the program runs.
if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
else:
    Tensor = Any

Weights = dict[str, Tensor]
"""Every parameter and buffer of a model by name: what `torch.func.functional_call` takes."""

Info = dict[str, float]
"""What a step reports about itself: plain numbers by name."""


class Diverged(ValueError):
    """Training met a loss or a weight that is NaN or infinite; the message names the round."""


@settings_dataclass(frozen=True, config=STRICT)
class Plan:
    """How long and how hard to train: the settings that are the same for every method.

    Exactly one of `local_steps` (tau minibatch steps) and `local_epochs` (E passes) is given; with a `schedule`,
    `local_steps` is the first round's tau.
    Local training is SGD: `v = momentum * v + g + weight_decay * w; w -= lr * v`; "nesterov" moves by
    `g + weight_decay * w + momentum * v` instead, "adam" is Adam (Kingma and Ba 2015; beta 0.9 and 0.999, epsilon
    1e-8, weight decay added to g). What an optimiser remembers begins anew each round.

    The server's own examples are those withheld from the clients; `server_steps` minibatch steps on them follow every
    round, whatever the method.

    Raises ValueError for a value out of its range, or when both or neither kind of local work is given.
    """

    rounds: Annotated[int, Field(ge=0, description="communication rounds; 0 leaves the weights as they are")] = 50
    cohort: Annotated[int | None, Field(ge=1, description="clients per round; none = all")] = None
    local_steps: Annotated[int | None, Field(ge=1, description="tau: minibatch steps per round and client")] = None
    local_epochs: Annotated[int | None, Field(ge=1, description="E: passes over the client's part per round")] = None
    schedule: Annotated[
        Schedule | None,
        Field(description="tau of later rounds: step, cosine, adaptive, plateau; none = constant"),
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="examples per minibatch")] = 32
    lr: Annotated[float, Field(gt=0, description="eta: local learning rate")] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1, description="local SGD momentum, reset each round")] = 0.0
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty added to the gradient")] = 0.0
    clip: Annotated[float | None, Field(gt=0, description="largest gradient norm of a step; none = no limit")] = None
    query_fraction: Annotated[
        float, Field(gt=0, lt=1, description="share of `train` that becomes `query`, redrawn each round")
    ] = 0.2
    query_split: Annotated[
        Literal["random", "stratified", "time", "classes"],
        Field(description="which examples become `query`: any, the same share of each class, the last, whole classes"),
    ] = "random"
    optimizer: Annotated[
        Literal["sgd", "nesterov", "adam"], Field(description="local optimiser; momentum is for sgd and nesterov")
    ] = "sgd"
    server_steps: Annotated[
        int, Field(ge=0, description="minibatch steps on the server's examples after each round; 0 = none")
    ] = 0
    server_lr: Annotated[float | None, Field(gt=0, description="rate of the server's steps; none = lr")] = None
    server_share: Annotated[
        float, Field(gt=0, le=1, description="share of the withheld examples that the server uses")
    ] = 1.0
    seed: Annotated[int, Field(ge=0, description="names every random draw of the run")] = 0

    @model_validator(mode="after")
    def _one_kind_of_local_work(self) -> Plan:
        if (self.local_steps is None) == (self.local_epochs is None):
            raise ValueError("give exactly one of local_steps and local_epochs")
        if self.schedule and self.local_steps is None:
            raise ValueError("a schedule changes local_steps; local_epochs has none (give local_steps)")
        if self.momentum and self.optimizer == "adam":
            raise ValueError("momentum is for sgd and nesterov; adam has its own (allowed: momentum = 0)")
        if self.optimizer == "nesterov" and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


@dataclass(frozen=True)
class State:
    """What the server carries from round to round: the weights, and whatever else a method remembers, by name."""

    weights: Weights
    memory: Mapping[str, Weights] = field(default_factory=dict)


Memories = Mapping[int, Mapping[str, Weights]]
"""What clients remember, by identity and name: only clients that were seen have an entry."""


@dataclass(frozen=True)
class Cost:
    """What a round took: examples through the network, exchanges, and bytes on the wire.

    `examples` counts forward passes and `backward` backward passes, clients and server together. A product with the
    Hessian is one forward and three backward passes: the gradient's, and back through both.
    """

    examples: int = 0
    exchanges: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    backward: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.examples + other.examples,
            self.exchanges + other.exchanges,
            self.bytes_down + other.bytes_down,
            self.bytes_up + other.bytes_up,
            self.backward + other.backward,
        )


@dataclass(frozen=True)
class Round:
    """One finished round. `number` starts at 1; `loss` is the cohort's mean training loss (NaN without training).

    `missing` says of each client that was drawn and did not contribute to every exchange why it did not.
    `memories` is what clients remember where the engine keeps it; where their own machines do, as on Flower, only
    which round of each counted last.
    """

    number: int
    state: State
    info: Info
    cost: Cost
    clients: tuple[int, ...]
    loss: float
    missing: Mapping[int, str] = field(default_factory=dict)
    memories: Memories = field(default_factory=dict)


class Judgement(NamedTuple):
    """A client's mean loss over a part, and its gradient with respect to the parameters (no buffers)."""

    loss: float
    gradient: Weights


class Counts(NamedTuple):
    """Per-client evaluation, each of shape (clients,): correct and total examples, and the sum of the losses."""

    correct: np.ndarray
    total: np.ndarray
    loss: np.ndarray


Slope = Callable[..., Weights]
"""`slope(weights, batch=0)`: gradient of a minibatch's mean loss. Batch 0 is the step's own; others are drawn apart."""

Direction = Callable[[Slope, Weights], Weights]
"""What takes the gradient's place in a local step: made of the step's minibatch gradients, at `weights` or nearby."""


class Client(Protocol):
    """The only door from an algorithm to one client's data and model. Knows nothing of the other clients."""

    @property
    def lr(self) -> float:
        """eta: learning rate of the local steps."""
        ...

    def size(self, part: str = "train") -> int:
        """Number of examples in the part."""
        ...

    def descend(
        self,
        weights: Weights,
        part: str = "train",
        *,
        linear: Weights | None = None,
        proximal: float = 0.0,
        direction: Direction | None = None,
    ) -> Weights:
        """The plan's local training from `weights`: minimises `loss + <linear, w> + proximal/2 ||w - weights||^2`.

        `direction` makes each step's gradient of the loss, where the method has its own way.
        """
        ...

    def pullback(self, weights: Weights, cotangent: Weights, part: str = "train") -> Weights:
        """The derivative of `<cotangent, descend(weights, part)>` by `weights`: exact, through every local step."""
        ...

    def loss(self, weights: Weights, part: str = "train") -> float:
        """Mean loss over the part at `weights`."""
        ...

    def gradient(self, weights: Weights, part: str = "train") -> Judgement:
        """Mean loss over the whole part at `weights`, and its gradient."""
        ...

    def total_rate(self, part: str = "train") -> float:
        """Sum of the learning rates of all local steps on the part: K times eta."""
        ...

    def recall(self, name: str) -> Weights | None:
        """What this client remembered under the name in the last earlier round it took part in; None at first."""
        ...

    def remember(self, name: str, weights: Weights) -> None:
        """Keeps weights for this client's later rounds. They never leave the client's machine."""
        ...


class Cohort(Protocol):
    """The clients of one round, wherever they run."""

    @property
    def clients(self) -> Sequence[int]:
        """Identities, ascending: the order in which results are listed and summed.

        A client that fails in an exchange is not among them in the next.
        """
        ...

    @property
    def population(self) -> int:
        """Number of clients that could have been drawn."""
        ...

    def map(self, method: Callable[..., Any], *broadcast: Any) -> list[Any]:
        """`method(client, *broadcast)` for every client, in the order of `clients`. One exchange."""
        ...

    def mean(self, method: Callable[..., Weights], *broadcast: Any, weight: str | None = "train") -> Weights:
        """Streaming mean of `method(client, *broadcast)`, weighted by the size of the part `weight`.

        `weight=None` is the plain mean. Never holds every client's weights at once. One exchange.
        """
        ...

    def server(self, method: Callable[..., Any], *broadcast: Any, pieces: int = 1) -> list[Any]:
        """`method(client, *broadcast)` where `client` is a random equal piece of the server's own examples, for each.

        The pieces are drawn anew each round; `train`, `support` and `query` all name the whole piece. No exchange.
        Raises ValueError where the server has no examples, or fewer than pieces.
        """
        ...


class Algorithm(Protocol):
    """A frozen dataclass whose fields are its settings. Pure: no data, device, path, seed or global in sight."""

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        """One round on the server. Other public methods take a `client` first and run on clients."""
        ...
