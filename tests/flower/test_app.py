"""The app's settings, a node's own data, resuming, and weights that go to and come from other Flower programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402
from small import config_of, grid_of, study  # noqa: E402

from fedstart import names, tree  # noqa: E402
from fedstart.engines.exchanges import leaving  # noqa: E402
from fedstart.engines.grid import InProcessGrid  # noqa: E402
from fedstart.flower import main, serve, site  # noqa: E402
from fedstart.flower.export import Choice, export  # noqa: E402
from fedstart.flower.settings import AppSettings, flat, run_config  # noqa: E402
from fedstart.runs import RunDirectory  # noqa: E402
from fedstart.starts import Start  # noqa: E402


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """The run config of a small pre-training app by CoPreFL."""
    return config_of(export(study(), tmp_path / "app", Choice(start="coprefl")))


def context_of(config: dict[str, Any], **node_config: Any) -> Context:
    return Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config=config)


def serve_main(config: dict[str, Any], grid: InProcessGrid | None = None) -> Path:
    main(grid or grid_of(config), context_of(config))
    return Path(config["run.out"])


def test_settings_survive_flower_s_flat_types(config: dict[str, Any]) -> None:
    settings = AppSettings.read(config)
    assert settings.plan.clip is None and settings.plan.cohort == 3
    assert settings.recipe.model.shape == (1, 8, 8) and settings.recipe.federation.classes == (0, 1, 2, 3, 4, 5)
    assert all(isinstance(value, bool | int | float | str) for value in config.values())
    names = {"data": {"class_names": ["it's", 'a "b"', "ü"], "mean": (0.1, 1e-9)}}
    again = AppSettings.read({**config, **flat(run_config(names))}).recipe.data
    assert again.class_names == ("it's", 'a "b"', "ü") and again.mean == (0.1, 1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plan.lr": -1.0}, "run config [plan]: lr: Input should be greater than 0 (given: -1.0)"),
        ({"plan.rate": 1.0}, "run config [plan]: unknown setting 'rate'"),
        ({"plans.lr": 1.0}, "run config: unknown table 'plans.lr'; did you mean 'plan'?"),
        ({"lr": 1.0}, "run config: unknown setting 'lr'"),
        ({"run.method": "fedavq"}, "unknown method 'fedavq'; did you mean 'fedavg'?"),
        ({"run.out": "here"}, "run config [run]: out: String should match pattern '^/' (given: 'here')"),
        ({"model.shape": "[1, 8"}, "run config model.shape: not a TOML list"),
        ({"model.shape": "none"}, 'shape must be a list such as "[1, 8, 8]"'),
        ({"model.classes": 5}, "model.classes is 5, but federation.classes names 6"),
        ({"model.hiden": 3}, "unknown setting 'hiden'; did you mean 'hidden'?"),
        ({"settings.balance": 2.0}, "run config [settings]: balance: Input should be less than or equal to 1"),
        ({"partition.name": "dirichle"}, "unknown partition 'dirichle'; did you mean 'dirichlet'?"),
        ({"patience.nodes": 0}, "run config [patience]: Patience(nodes=0"),
        ({"patience.share": 1.5}, "is impossible (allowed: nodes from 1, seconds from 0, share 0 to 1)"),
        ({"federation.classes": "[1]"}, "run config [federation]: classes"),
        ({"run.begin": "/nowhere/weights.safetensors"}, "/nowhere/weights.safetensors: no such file"),
    ],
)
def test_wrong_settings_are_one_line(config: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        AppSettings.read({**config, **change}).weights()
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [None, -1, "0", True, 4])
def test_a_node_needs_an_identity_of_its_own(config: dict[str, Any], given: Any) -> None:
    with pytest.raises(ValueError, match=r"partition-id is .*allowed: "):
        site(context_of(config, **({} if given is None else {"partition-id": given})))


def test_a_run_that_was_interrupted_goes_on_with_the_same_bits(config: dict[str, Any], tmp_path: Path) -> None:
    whole = Start.load(serve_main(config) / "start")
    config = {**config, "run.out": str(tmp_path / "second"), "patience.share": 1.0}
    app, asked = ClientApp(), []
    serve(app)

    def dying(message: Message, context: Context) -> Message | None:
        asked.append(message.metadata.message_type)
        if asked.count("train.adapt") == 8:
            raise RuntimeError("this node has lost its disk")
        return app(message, context)

    grid = grid_of(config, client=dying)
    with pytest.raises(ValueError, match="round 3: .*lost its disk") as caught:
        serve_main(config, grid)
    directory = RunDirectory(tmp_path / "second")
    assert "\n" not in str(caught.value) and directory.status == "failed" and len(directory.rounds()) == 2
    last = directory.load_checkpoint()
    assert last is not None and last.number == 2
    asked.clear()
    made = Start.load(serve_main({**config, "patience.share": 0.5}, grid) / "start")
    assert tree.fingerprint(made.weights) == tree.fingerprint(whole.weights)
    assert asked.count("train.adapt") == 3 and directory.status == "done"
    asked.clear()
    serve_main(config, grid)
    assert not asked


def test_other_settings_do_not_go_on_in_the_same_directory(config: dict[str, Any]) -> None:
    serve_main(config)
    with pytest.raises(ValueError, match="holds another run: settings.plan.lr"):
        serve_main({**config, "plan.lr": 0.01})


def write_images(folder: Path, labels: list[str], seed: int) -> Path:
    from PIL import Image

    draws = np.random.default_rng(seed)
    for place, label in enumerate(labels):
        (folder / label).mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels, mode=None).save(folder / label / f"{place}.png")
    return folder


def test_nodes_with_data_of_their_own_number_classes_alike(config: dict[str, Any], tmp_path: Path) -> None:
    config = {**config, "data.own": True, "federation.test_fraction": 0.25}
    config |= {"federation.fingerprint": "unknown to the server", "run.method": "fedavg", "plan.cohort": "none"}
    config = {key: value for key, value in config.items() if not key.startswith("settings.")}
    folders = [write_images(tmp_path / "a", 8 * ["1", "3"], 1), write_images(tmp_path / "b", 6 * ["5", "1", "0"], 2)]
    config["patience.nodes"] = 2
    grid = grid_of(config, 2)
    for node, folder in zip(grid.nodes.values(), folders, strict=True):
        node["data.source"] = f"path:{folder}"
    first, second = (site(context_of(config, **node)).federation for node in grid.nodes.values())
    assert set(first.examples.labels) == {1, 3} and set(second.examples.labels) == {0, 1, 5}
    assert first.examples.mean == second.examples.mean != ()
    assert first.clients == 1 and second.clients == 2 and second.eligible.tolist() == [1]
    assert first.parts["train"].sizes.tolist() == [12] and second.parts["test"].sizes.tolist() == [0, 5]
    assert not set(second.positions("train", 1)) & set(second.positions("test", 1))
    out = serve_main(config, grid)
    assert RunDirectory(out).rounds()[-1]["clients"] == [0, 1]
    card = Start.load(out / "start").card
    assert len(card.data_fingerprint) == 64 and card.class_names == ("0", "1", "2", "3", "4", "5")


def blocks(section: str) -> list[str]:
    """The Python blocks of a section of docs/flower.md."""
    text = (Path(__file__).parents[2] / "docs" / "flower.md").read_text("utf-8")
    return re.findall(r"```python\n(.*?)```", text.split(f"## {section}\n")[1].split("\n## ")[0], re.S)


def test_a_start_begins_anyone_s_own_flower_strategy_and_comes_back(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Start.load(serve_main({**config, "run.out": str(tmp_path / "run")}) / "start")
    start.save(tmp_path / "start")
    model, theirs = start.model(), ClientApp()

    @theirs.train()
    def train(message: Message, context: Context) -> Message:
        module = model.module()
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1 + int(context.node_config["partition-id"]))
        record = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(record), reply_to=message)

    monkeypatch.chdir(tmp_path)
    (code,) = blocks("Your own Flower strategy")
    exec(code, {"grid": InProcessGrid(theirs, {5: {"partition-id": 0}, 9: {"partition-id": 1}})})
    back = Start.load(tmp_path / "mine")
    assert back.card.method == "flwr FedAvg" and back.model() == model
    for name, tensor in start.weights.items():
        assert torch.allclose(back.weights[name], tensor + 3.0, atol=1e-5)


def test_flower_s_differential_privacy_stands_around_means_only(config: dict[str, Any], tmp_path: Path) -> None:
    (code,) = blocks("What leaves a node")
    server = ServerApp()
    exec(code, {"app": server, "main": main})
    with pytest.raises(ValueError, match=r"CoPreFL.judge gives the server each client's own loss and gradient"):
        server(grid_of(config), context_of(config))
    fedavg = config_of(export(study(), tmp_path / "fedavg", Choice(start="fedavg")))
    server(grid_of(fedavg), context_of(fedavg))
    private = Start.load(tmp_path / "fedavg" / "run" / "start").weights
    assert "DifferentialPrivacyServerSideFixedClipping(noise_multiplier=0.1" in (
        tmp_path / "fedavg" / "run" / "run.json"
    ).read_text("utf-8")
    plain = Start.load(serve_main({**fedavg, "run.out": str(tmp_path / "plain")}) / "start").weights
    assert any(not torch.equal(private[name], plain[name]) for name in plain)


def test_the_documentation_says_what_leaves_a_node_as_the_methods_do() -> None:
    text = (Path(__file__).parents[2] / "docs" / "flower.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d) `(\w+)` \| (.+) \|$", text, re.M)
    methods = names.discover("fedstart.algorithms")
    told = {(method, int(place), name, returns) for method, place, name, returns in rows}
    true = {
        (method, place, exchange.name, exchange.returns)
        for method in methods
        for place, exchange in enumerate(leaving(methods[method]), 1)
    }
    assert told == true
