"""The server and real nodes of a deployment, in one process: which client is on which node, who is
rejected, who comes back."""

import csv
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from safetensors.numpy import load_file

from clients.client_app import client_app
from clients.messages import Job
from clients.node_config import NodeConfig, compatibility
from clients.private_state import owner
from experiments.runner import resume, start
from fedpgp.errors import FedPGPError
from fedpgp.seeding import generator
from strategies import node_registry, queries
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.nodes import Hangs, Nodes
from tests.helpers.small import small_config, small_federation

CLIENTS = 3
SMALL = ("runtime=flower", f"clients={CLIENTS}", "participation=1", "evaluate_every=0")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)


def sites(folder: Path, count: int = CLIENTS) -> list[dict]:
    return [
        {"client-id": client, "state-dir": str(folder / f"client_{client}")}
        for client in range(count)
    ]


def deployed(run_dir: Path, *overrides: str, before=None, configs=None, faults=None) -> Nodes:
    nodes = Nodes(
        client_app(small_federation), configs or sites(run_dir.parent / f"{run_dir.name}_nodes")
    )
    if before is not None:
        nodes.before = before
    start(
        small_config(run_dir, *SMALL, *overrides, faults=faults),
        federation_of=small_federation,
        grid=nodes,
    )
    return nodes


def simulated(run_dir: Path, *overrides: str, faults=None) -> None:
    settings = (*SMALL[1:], *overrides)
    start(small_config(run_dir, *settings, faults=faults), federation_of=small_federation)


def metrics(run_dir: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def same(one: Path, other: Path) -> None:
    (ours, _), (theirs, _) = (
        read_checkpoint(checkpoints(run / "checkpoint")[-1]) for run in (one, other)
    )
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-9, atol=1e-12, err_msg=name)


def training(message: Message, server_round: int) -> bool:
    return (
        message.metadata.message_type == "train"
        and Job.of(message.content).server_round == server_round
    )


def test_the_same_numbers_as_a_simulation(tmp_path):
    deployed(
        tmp_path / "a", configs=list(reversed(sites(tmp_path / "nodes")))
    )  # whichever node comes first
    simulated(tmp_path / "b")
    same(tmp_path / "a", tmp_path / "b")


def test_a_node_that_is_started_again_gets_its_message_again(tmp_path):
    """Nobody is dropped: a second try is a function of the message and the last committed state."""
    done = []

    def before(nodes, node, message):
        if training(message, 2) and node == 1 and not done:
            done.append(node)
            nodes.restart(node)

    deployed(tmp_path / "a", before=before)
    simulated(tmp_path / "b")
    assert done and all(line["dropped"] == [] for line in metrics(tmp_path / "a", "train"))
    same(tmp_path / "a", tmp_path / "b")


def test_a_node_that_goes_and_comes_back(tmp_path):
    """It is dropped where it was away, resumes from its last committed state, and a replay
    gives the same numbers."""

    def before(nodes, node, message):
        if training(message, 2) and node == 1:
            nodes.leave(node)
        if (
            message.metadata.message_type == "evaluate"
            and Job.of(message.content).server_round == 2
        ):
            nodes.since.setdefault(1, 7)  # back, after the round

    deployed(tmp_path / "a", "evaluate_every=1", before=before)
    rounds = metrics(tmp_path / "a", "train")
    assert [[entry["client"] for entry in line["dropped"]] for line in rounds] == [[], [1], []]
    assert "its node is not connected" in rounds[1]["dropped"][0]["reason"]
    simulated(tmp_path / "b", faults={"raise": [1], "round": 2})
    same(tmp_path / "a", tmp_path / "b")
    run, _ = owner(tmp_path / "a" / "private")
    kept = tmp_path / "a_nodes" / "client_1" / run / "client_00001"
    assert sorted(path.name for path in kept.iterdir()) == [
        "round_00001.safetensors",
        "round_00003.safetensors",
    ]
    theirs = load_file(tmp_path / "b" / "private" / "client_00001" / "round_00003.safetensors")
    for name, tensor in load_file(kept / "round_00003.safetensors").items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=1e-9, atol=1e-12)


def test_names_of_clients_stand_where_a_person_reads(tmp_path, capsys):
    """In the table, the CSV, the report and warnings; one client has none."""
    configs = sites(tmp_path / "nodes")
    configs[0]["client-name"], configs[1]["client-name"] = "St. Mary's", "=clinic b"

    def before(nodes, node, message):
        if training(message, 2) and node == 1:
            nodes.leave(node)

    deployed(tmp_path / "a", configs=configs, before=before)
    table = json.loads((tmp_path / "a" / "partition.json").read_text())["clients"]
    assert [row.get("name") for row in table] == ["St. Mary's", "=clinic b", None]
    rows = list(csv.DictReader((tmp_path / "a" / "clients.csv").open()))
    assert {row["id"]: row["name"] for row in rows if row["id"] != "1"} == {
        "0": "St. Mary's",
        "2": "",
    }
    assert (
        list(rows[0])[:5] == ["id", "domain", "train_images", "test_images", "model"]
        and list(rows[0])[-1] == "name"
    )
    assert (
        "client 1 (=clinic b) is left out of round 2: its node is not connected"
        in capsys.readouterr().out
    )
    page = (tmp_path / "a" / "report.html").read_text()
    assert "St. Mary&#39;s" in page and "client 1 (=clinic b)" in page and "client 2" in page
    simulated(tmp_path / "b")
    assert "name" not in (tmp_path / "b" / "clients.csv").read_text()


def test_the_server_goes_on_after_a_stop(tmp_path):
    """Stopped in round 3 and resumed with one node away: the same as a run that lost it there."""
    marker = tmp_path / "mended"
    nodes = sites(tmp_path / "nodes")
    faults = {"raise": [0, 1, 2], "round": 3, "until": str(marker)}
    with pytest.raises(FedPGPError, match="round 3: 0 of 3 clients"):
        deployed(tmp_path / "a", configs=nodes, faults=faults)
    marker.touch()
    resume(
        tmp_path / "a",
        federation_of=small_federation,
        grid=Nodes(client_app(small_federation), nodes),
    )
    simulated(tmp_path / "b")
    same(tmp_path / "a", tmp_path / "b")


def handshake(message: Message) -> bool:
    return Job.of(message.content).ask == "handshake"


def test_a_node_that_does_not_answer_its_greeting_is_waited_for_once(tmp_path, monkeypatch):
    """It is left out of every round after that, at once, and takes part again when it has
    answered."""
    monkeypatch.setattr(queries, "RETURN_PATIENCE", 0.1)
    waits = []
    give_up = node_registry.NodeRegistry.stop_waiting
    monkeypatch.setattr(
        node_registry.NodeRegistry,
        "stop_waiting",
        lambda self: (waits.append(self.waiting), give_up(self)),
    )
    seen = set()

    def before(nodes, node, message):
        if handshake(message) and node == 1 and nodes.since[1] > 1 and 3 not in seen:
            raise Hangs
        if message.metadata.message_type == "train" and node == 2:
            seen.add(Job.of(message.content).server_round)
            if seen == {1}:
                nodes.restart(1)

    deployed(tmp_path / "a", "rounds=4", before=before)
    dropped = [
        [*map(tuple, map(dict.values, line["dropped"]))]
        for line in metrics(tmp_path / "a", "train")
    ]
    left_out = [(1, "its node does not answer")]
    assert dropped == [[], left_out, left_out, []] and waits == [1]


def test_a_node_whose_disk_comes_late_takes_part(tmp_path, monkeypatch):
    monkeypatch.setattr(node_registry, "RETRY_AFTER", 0.0)
    disk, handshakes = tmp_path / "disk", []
    disk.touch()  # nothing can be written below it
    configs = sites(tmp_path / "nodes")
    configs[1]["state-dir"] = str(disk / "client_1")

    def before(nodes, node, message):
        if handshake(message) and node == 1:
            handshakes.append(node)
            if len(handshakes) == 3:
                disk.unlink()

    deployed(tmp_path / "a", configs=configs, before=before)
    simulated(tmp_path / "b")
    assert len(handshakes) == 3
    same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("stranger", [{"client-id": 1}, {"client-id": 9}, {}])
def test_a_stranger_does_not_end_the_wait_for_a_client(tmp_path, stranger):
    """The last client's node comes after a node was refused that is none of those that are
    missing."""
    configs = [*sites(tmp_path), {"state-dir": str(tmp_path / "other"), **stranger}]

    def before(nodes, node, message):
        if node == 3:
            nodes.since[2] = 1

    nodes = Nodes(client_app(small_federation), configs, before)
    del nodes.since[2]
    start(small_config(tmp_path / "a", *SMALL), federation_of=small_federation, grid=nodes)
    assert all(line["dropped"] == [] for line in metrics(tmp_path / "a", "train"))


def test_another_node_in_a_client_s_place_does_not_have_what_it_learned(tmp_path, capsys):
    """It is the client when the first is gone, and is left out of the rounds by name."""
    configs = [*sites(tmp_path), {**sites(tmp_path)[1], "state-dir": str(tmp_path / "other")}]

    def before(nodes, node, message):
        if training(message, 1) and node == 2:
            nodes.leave(1)

    deployed(tmp_path / "a", "runtime.seats=free", before=before, configs=configs)
    assert "client 1 is on node 3 now; before, it was on node 1" in capsys.readouterr().out
    second = metrics(tmp_path / "a", "train")[1]["dropped"]
    assert [entry["client"] for entry in second] == [
        1
    ] and "state of client 1 after round 1 is not there" in str(second)


def test_another_key_does_not_get_a_client_s_seat(tmp_path, capsys, monkeypatch):
    """Not while the client is away, and not when the run is resumed without it."""
    configs = [*sites(tmp_path), {**sites(tmp_path)[1], "state-dir": str(tmp_path / "other")}]

    def before(nodes, node, message):
        if training(message, 1) and node == 2:
            nodes.leave(1)

    deployed(tmp_path / "a", "rounds=2", before=before, configs=configs)
    assert "client 1, which came with another key before" in capsys.readouterr().out
    dropped = metrics(tmp_path / "a", "train")[1]["dropped"]
    assert dropped == [{"client": 1, "reason": "its node is not connected"}]
    monkeypatch.setattr(queries, "RETURN_PATIENCE", 0.3)
    nodes = Nodes(client_app(small_federation), configs)
    del nodes.since[1]
    resume(tmp_path / "a", {"rounds": 3}, federation_of=small_federation, grid=nodes)
    assert metrics(tmp_path / "a", "train")[2]["dropped"] == dropped


def test_a_run_needs_all_its_clients_at_the_start(tmp_path, capsys):
    with pytest.raises(FedPGPError, match="the nodes of clients 1, 2 are not there$"):
        deployed(tmp_path / "a", "runtime.round_timeout=0.5", configs=sites(tmp_path)[:1])
    twice = [*sites(tmp_path)[:2], {**sites(tmp_path)[1], "state-dir": str(tmp_path / "other")}]
    with pytest.raises(
        FedPGPError, match="the nodes of clients 2 are not there; two nodes say they are client 1"
    ):
        deployed(tmp_path / "b", "runtime.round_timeout=0.5", configs=twice)
    assert "two nodes say they are client 1" in capsys.readouterr().out

    def hang(nodes, node, message):
        if node == 2:
            raise Hangs

    with pytest.raises(
        FedPGPError,
        match="1 that are connected did not answer yet: .*encoding .*runtime.round_time",
    ):
        deployed(tmp_path / "c", "runtime.round_timeout=0.5", before=hang)


def test_a_run_does_not_wait_for_a_client_whose_node_cannot_take_part(tmp_path):
    """It would for ever: its node has images of its own, and the federation splits some."""
    configs = sites(tmp_path)
    configs[2]["data-dir"] = str(tmp_path)
    with pytest.raises(
        FedPGPError, match="clients 2 are not there; the node of client 2 cannot .* its own images"
    ):
        deployed(tmp_path / "a", "runtime.round_timeout=null", configs=configs)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("fedpgp version", "0.0.9"),
        ("class list", "5 classes, sha256 00"),
        ("model weights", "sha256 00"),
        ("split of the data set", "sha256 00"),
    ],
)
def test_a_node_that_differs_is_refused_by_name(tmp_path, name, other):
    text = json.dumps({**small_config(tmp_path / "run", *SMALL), "run_dir": None})
    expected = compatibility(small_federation(text))
    content = RecordDict(
        {
            "job": Job(
                "0123456789abcdef",
                1,
                sha256(text.encode()).hexdigest()[:16],
                "",
                0,
                ask="handshake",
            ).record(),
            "configuration": ConfigRecord({"json": text}),
            "compatibility": ConfigRecord({**expected, name: other}),
        }
    )
    (config, *_) = sites(tmp_path)
    Nodes(client_app(small_federation), [config])  # Flower's identity of this process
    message = Message(content, dst_node_id=1, message_type="query")
    reply = client_app(small_federation)(
        message, Context(1, 1, {"inline": True, **config}, RecordDict(), {})
    )
    answer = json.loads(reply.content["answer"]["json"])
    assert answer["rejection"] == f"{name}: {expected[name]} here, {other} on the server"
    assert not {"row", "transient"} & set(answer)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"state-dir": "/x"}, "has no client-id"),
        ({"client-id": 1}, "has no state-dir"),
        ({"client-id": "1", "state-dir": "/x"}, "client-id='1' .* whole number"),
        ({"client-id": 1, "statedir": "/x"}, "state-dir"),
        (
            {"client-id": 1, "state-dir": "/x", "client-name": "a" * 65},
            "client-name='a.* at most 64 characters",
        ),
        ({"client-id": 1, "state-dir": "/x", "client-name": "a\nround 1"}, "client-name="),
        (
            {"client-id": 1, "state-dir": "/x", "on-bad-image": "ignore"},
            "on-bad-image .*'ignore'.* error, skip",
        ),
    ],
)
def test_a_node_s_own_configuration_is_checked(config, said):
    with pytest.raises(FedPGPError, match=said):
        NodeConfig.of(config)


def test_features_of_a_node_s_own_images_are_nobody_else_s(tmp_path):
    config = small_config(tmp_path / "run", *SMALL)
    config["partition"]["scheme"] = "own"
    node_config = NodeConfig.of(
        {"client-id": 0, "state-dir": str(tmp_path / "state"), "data-dir": str(tmp_path)}
    )
    configured = json.loads(node_config.configured(json.dumps(config)))
    assert configured["dataset"].get("on_bad_image") == config["dataset"].get("on_bad_image")
    skipping = NodeConfig.of(
        {"client-id": 0, "state-dir": "/x", "data-dir": str(tmp_path), "on-bad-image": "skip"}
    )
    skipping = replace(skipping, state_dir=tmp_path / "state")
    assert json.loads(skipping.configured(json.dumps(config)))["dataset"]["on_bad_image"] == "skip"
    assert configured["runtime"]["cache_dir"] == str(tmp_path / "state" / "features")
    assert all(
        (tmp_path / name).stat().st_mode & 0o077 == 0 for name in ("state", "state/features")
    )


def test_the_server_cannot_choose_a_folder_on_a_node(tmp_path):
    node_config = NodeConfig.of({"client-id": 0, "state-dir": str(tmp_path)})
    with pytest.raises(FedPGPError, match="not one of this project's"):
        node_config.store_folder("../../etc")


def test_clients_are_drawn_as_in_a_simulation(tmp_path):
    deployed(tmp_path / "a", "participation=0.67")
    committed = read_checkpoint(checkpoints(tmp_path / "a" / "checkpoint")[-1])[0]["committed"]
    expected = np.zeros(CLIENTS, dtype=int)
    for server_round in (1, 2, 3):
        expected[
            generator(0, "participants", server_round).choice(range(CLIENTS), size=2, replace=False)
        ] = server_round
    assert committed.tolist() == expected.tolist()
