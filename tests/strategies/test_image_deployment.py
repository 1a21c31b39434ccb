"""``privacy=image`` in a deployment: nodes clip, noise and account by themselves, tell nothing but
their updates, and forget nothing of what they spent."""

import csv
import json
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from clients.client_app import client_app
from clients.disclosure import FIGURES, NO_FIGURES
from clients.messages import Job, pack
from clients.node_config import ERRORS, IncompatibleNode, NodeConfig
from clients.private_accounts import longest_account, spent_in, spent_in_other_runs
from clients.private_state import PrivateStore, owner
from experiments.reporting.formatting import format_privacy
from experiments.runner import resume, start
from fedpgp.errors import FedPGPError
from fedpgp.training.private_training import ACCOUNT
from strategies import node_registry
from strategies.aggregator import Aggregator
from tests.helpers.nodes import Nodes
from tests.helpers.small import small_config, small_federation

CLIENTS = 3
IMAGE = ("clients=3", "participation=1", "evaluate_every=0", "method=fedpgp", "privacy=image")
IMAGE += ("privacy.clip=0.5",)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)


def nodes_in(folder: Path) -> Nodes:
    configs = [
        {"client-id": client, "state-dir": str(folder / f"node_{client}")}
        for client in range(CLIENTS)
    ]
    return Nodes(client_app(small_federation), configs)


def deployed(run_dir: Path, *overrides: str, nodes: Nodes | None = None) -> tuple[dict, Nodes]:
    nodes = nodes or nodes_in(run_dir.parent)
    config = small_config(run_dir, "runtime=flower", *IMAGE, *overrides)
    return start(config, federation_of=small_federation, grid=nodes), nodes


def kept(run_dir: Path, client: int) -> list[dict]:
    """What a node kept of its trainings."""
    run, _ = owner(run_dir / "private")
    lines = (run_dir.parent / f"node_{client}" / run / FIGURES).read_text().splitlines()
    return [row for row in map(json.loads, lines) if "image.epsilon" in row]


def account(run_dir: Path, client: int) -> list:
    run, attempt = owner(run_dir / "private")
    return spent_in(PrivateStore(run_dir.parent / f"node_{client}" / run, run, attempt), client)


def test_nodes_tell_their_updates_and_keep_their_accounts(tmp_path):
    summary, nodes = deployed(tmp_path / "run", "privacy.epsilon=6", "rounds=2")
    assert summary["status"] == "finished" and summary["no_figures"] == NO_FIGURES
    for content in nodes.replies:
        assert all(len(record) == 0 for record in content.metric_records.values())
    assert b"epsilon\x00" not in b"\0".join(nodes.sent) and b"image.steps" not in b"".join(
        nodes.sent
    )
    said = summary["privacy"]
    assert (said["epsilon"], said["at_most"], said["kept_by"]) == (None, 6, "nodes")
    assert said["unit"] == "image" and said["rounds"] == 2 and said["rate"] is None
    assert "none passes epsilon 6" in format_privacy(said)
    assert "epsilon 6 at most" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "privacy.csv").exists()
    for client in range(CLIENTS):  # an account of its own, for its number of images
        first, second = kept(tmp_path / "run", client)
        assert 0 < first["image.epsilon"] < second["image.epsilon"] <= 6
        assert second["image.delta"] == 1 / (10 * (3 + client % 4))


def test_a_node_s_account_is_the_simulation_s(tmp_path):
    overrides = ("privacy.noise=1.3", "rounds=2")
    deployed(tmp_path / "run", *overrides)
    config = small_config(tmp_path / "sim", *IMAGE, *overrides)
    start(config, federation_of=small_federation)
    with open(tmp_path / "sim" / "privacy.csv") as file:
        rows = {int(row["id"]): row for row in csv.DictReader(file)}
    assert set(rows) == set(range(CLIENTS))
    for client, row in rows.items():
        (*_, last) = kept(tmp_path / "run", client)
        assert last["image.epsilon"] == pytest.approx(float(row["epsilon"]), rel=1e-12)
        assert last["image.steps"] == float(row["steps"])


def test_a_server_that_was_killed_makes_nobody_spend_twice(tmp_path, monkeypatch):
    aggregate, tries = Aggregator.aggregate, []

    def killed(self, strategy, state, server_round, answered):
        tries.append(server_round)
        if tries == [1, 2]:
            raise KeyboardInterrupt
        return aggregate(self, strategy, state, server_round, answered)

    monkeypatch.setattr(Aggregator, "aggregate", killed)
    with pytest.raises(KeyboardInterrupt):
        deployed(tmp_path / "run", "rounds=2")
    before = account(tmp_path / "run", 0)
    resume(tmp_path / "run", federation_of=small_federation, grid=nodes_in(tmp_path))
    assert tries == [1, 2, 2] and account(tmp_path / "run", 0) == before


def test_a_server_that_asks_for_more_is_answered_up_to_the_bound(tmp_path):
    """From other tensors the same round is another one; the account grows until it is spent."""
    _, nodes = deployed(tmp_path / "run", "privacy.epsilon=6", "rounds=2")
    run, attempt = owner(tmp_path / "run" / "private")
    (config,) = (tmp_path / "node_0" / run).glob("config_*.json")
    job = Job(run, attempt, config.stem.removeprefix("config_"), "", 1, (0,), (0,))
    shared = small_federation(config.read_text()).models.initial_shared()
    before = account(tmp_path / "run", 0)
    for attempt in range(3):
        tensors = {name: Array(array + attempt + 1) for name, array in shared.items()}
        content = pack(job, {0: RecordDict({"arrays": ArrayRecord(tensors)})})
        reply = client_app(small_federation)(
            Message(content, dst_node_id=0, message_type="train"),
            Context(1, 0, {"inline": True, **nodes.configs[0]}, RecordDict(), {}),
        )
        assert "it trains no more" in reply.content["errors"]["0"]
    assert account(tmp_path / "run", 0) == before


def test_an_owner_s_bound_is_of_all_runs_together(tmp_path):
    """A server that starts another run begins no new account."""
    overrides = ("privacy.noise=3", "rounds=2")
    summary, _ = deployed(tmp_path / "one", *overrides, nodes=nodes_in(tmp_path))
    nodes = nodes_in(tmp_path)
    for client, node in enumerate(nodes.configs):  # enough for three rounds, not for four
        node["max-epsilon"] = 1.35 * kept(tmp_path / "one", client)[-1]["image.epsilon"]
    summary, _ = deployed(tmp_path / "two", *overrides, nodes=nodes)
    assert "each of the 3 clients says that it trains no more" in summary["stopped"]
    assert summary["status"] == "finished" and summary["privacy"]["rounds"] == 1
    run, _ = owner(tmp_path / "two" / "private")
    other, _ = owner(tmp_path / "one" / "private")
    assert spent_in_other_runs(tmp_path / "node_0", run) == account(tmp_path / "one", 0)
    assert spent_in_other_runs(tmp_path / "node_0", other) == account(tmp_path / "two", 0)


def bounded(folder: Path, *bounds: float | None) -> Nodes:
    """Nodes in a folder, of which those with a bound have it as max-epsilon."""
    configs = [
        {"client-id": client, "state-dir": str(folder / f"node_{client}")}
        | ({} if bound is None else {"max-epsilon": bound})
        for client, bound in enumerate(bounds)
    ]
    return Nodes(client_app(small_federation), configs)


NOTHING = 1e-3
"""Of epsilon, which the first round would pass."""


def test_a_client_that_trains_no_more_ends_its_own_training_alone(tmp_path):
    """Of two clients one is drawn a round; who says that it trains no more is drawn no more."""
    half = ("clients=2", "participation=0.5", "privacy.noise=3", "rounds=4")
    summary, nodes = deployed(tmp_path / "run", *half, nodes=bounded(tmp_path, NOTHING, None))
    assert summary["status"] == "finished" and "stopped" not in summary
    said = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [line["clients"] for line in said if line["kind"] == "train"] == [1] * 4
    assert len(kept(tmp_path / "run", 1)) == 4 and account(tmp_path / "run", 0) == []
    asked = [content for content in nodes.replies if "0" in content.get("errors", {})]
    assert len(asked) == 1 and summary["privacy"]["rounds"] == 4


@pytest.mark.parametrize(
    ("bounds", "overrides", "said"),
    [
        (
            [NOTHING] * 2,
            ("participation=0.5",),
            "each of the 2 clients says that it trains no more",
        ),
        ([NOTHING, None, None], ("privacy.secure_sum=true",), "1 of the 3 clients train no more"),
    ],
)
def test_a_run_ends_when_too_few_are_left(bounds, overrides, said, tmp_path):
    overrides = (f"clients={len(bounds)}", "privacy.noise=3", "rounds=2", *overrides)
    summary, _ = deployed(tmp_path / "run", *overrides, nodes=bounded(tmp_path, *bounds))
    assert summary["status"] == "finished" and said in summary["stopped"]


def test_a_damaged_state_of_another_run_is_named_where_it_counts(tmp_path):
    deployed(tmp_path / "one", "privacy.noise=3", "rounds=1", nodes=nodes_in(tmp_path))
    run, _ = owner(tmp_path / "one" / "private")
    (path,) = (tmp_path / "node_0" / run).glob("client_00000/*.safetensors")
    path.write_bytes(b"damaged")
    summary, _ = deployed(tmp_path / "two", "privacy.noise=3", "rounds=1", nodes=nodes_in(tmp_path))
    assert summary["status"] == "finished"
    said = f"cannot be read: {path}.*of another run, which max-epsilon counts"
    with pytest.raises(FedPGPError, match=f"(?s){said}"):
        spent_in_other_runs(tmp_path / "node_0", "0" * 16)
    nodes = bounded(tmp_path, 50, 50, 50)
    with pytest.raises(FedPGPError, match="Client 0: something is wrong with its data"):
        deployed(
            tmp_path / "three", "privacy.noise=3", "runtime.min_clients=3", "rounds=1", nodes=nodes
        )
    assert "which max-epsilon counts" in (tmp_path / "node_0" / ERRORS).read_text()


@pytest.mark.parametrize(
    ("node", "privacy", "why"),
    [
        ({"require-privacy": "secure_sum"}, {"name": "client"}, "privacy.secure_sum=false"),
        ({"require-privacy": "image+secure_sum"}, {"name": "image"}, "privacy.secure_sum=false"),
        ({"require-privacy": "client+secure_sum"}, {"secure_sum": True}, "privacy=none"),
        ({"require-privacy": "client"}, {"name": "client", "noise": 0}, "no noise"),
        ({"require-privacy": "any"}, {"name": "client", "epsilon": float("inf")}, "no noise"),
        ({"require-privacy": "image"}, {"name": "image", "seeded_noise": True}, "its seed"),
        ({"max-epsilon": 3}, {"name": "client"}, "max-epsilon=3, which only privacy=image"),
        ({"max-epsilon": 3}, {"name": "image", "seeded_noise": True}, "max-epsilon=3, .* its seed"),
        ({"max-epsilon": 3}, {"name": "image", "noise": 0}, "max-epsilon=3, .* no noise"),
        ({"require-privacy": "image+secure_sum"}, {"name": "image", "secure_sum": True}, None),
        ({"require-privacy": "secure_sum"}, {"secure_sum": True}, None),
        ({"max-epsilon": 3.5}, {"name": "image"}, None),
    ],
)
def test_what_an_owner_asks_for(node, privacy, why, tmp_path):
    node = NodeConfig.of({"client-id": 0, "state-dir": str(tmp_path), **node})
    config = small_config(tmp_path / "run", "runtime=flower", "clients=3")
    text = json.dumps({**config, "privacy": {"name": "none", **privacy}})
    if why is None:
        node.configured(text)
    else:
        with pytest.raises(IncompatibleNode, match=why):
            node.configured(text)


@pytest.mark.parametrize(
    "wrong", [{"require-privacy": "image+much"}, {"max-epsilon": 0}, {"max-epsilon": "much"}]
)
def test_an_owner_s_setting_that_cannot_work_is_named(wrong, tmp_path):
    (key,) = wrong
    with pytest.raises(FedPGPError, match=f"{key}"):
        NodeConfig.of({"client-id": 0, "state-dir": str(tmp_path), **wrong})


def test_a_secure_sum_beside_it_shows_no_single_update(tmp_path):
    summary, nodes = deployed(tmp_path / "run", "privacy.secure_sum=true", "rounds=1")
    assert summary["status"] == "finished" and summary["privacy"]["kept_by"] == "nodes"
    assert not any(len(arrays) for said in nodes.replies for arrays in said.array_records.values())


def test_no_round_can_be_chosen_by_figures_that_stay(tmp_path):
    with pytest.raises(FedPGPError, match="selection=validation in a deployment"):
        deployed(tmp_path / "run", "protocol.selection=validation")


def test_an_account_of_another_shape_is_named():
    with pytest.raises(FedPGPError, match=r"account in a private state is \[4\]"):
        longest_account({1: {ACCOUNT: torch.zeros(4)}})
