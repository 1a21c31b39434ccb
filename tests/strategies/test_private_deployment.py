"""``privacy=client`` in a deployment: what leaves a node with images of its own does not depend on
them but for the update; what was there stays with its owner."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.client_app import client_app
from clients.disclosure import FIGURES, KEPT, NO_FIGURES, pin
from clients.messages import Job, full
from clients.node_config import ERRORS, IncompatibleNode, NodeConfig
from clients.private_state import PrivateStore, owner
from experiments.runner import resume, start
from fedpgp.data import load_dataset
from fedpgp.errors import FedPGPError
from fedpgp.updates.client_privacy import ClientPrivacy
from strategies import node_registry
from strategies.checkpoint import checkpoints, read_checkpoint
from strategies.server import Server
from tests.helpers.nodes import Nodes
from tests.helpers.small import small_config, small_federation
from tests.strategies.test_privacy import HELD, run_rounds

PRIVATE = ("privacy=client", "privacy.clip=0.1", "privacy.adaptive_clip=true", "rounds=1")
SMALL = ("runtime=flower", "clients=3", "method=promptfl", "privacy=client", "privacy.clip=0.1")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)


def sites(folder: Path, images: int) -> list[dict]:
    """Two clients' nodes with so many images of each of their classes, test images half as many."""
    emoji = load_dataset("emoji")
    for client, domain in enumerate(("noto", "twemoji")):
        for name in HELD[client]:
            wanted = emoji.class_names.index(name)
            rows = [
                i
                for i in range(len(emoji.train))
                if emoji.train.labels[i] == wanted and emoji.train.domains[i] == domain
            ]
            for k, row in enumerate(rows[: images + images // 2]):
                part = "train" if k < images else "test"
                path = folder / f"site_{client}" / part / name / f"{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                emoji.train.image(row).save(path)
    return [
        {
            "client-id": client,
            "state-dir": str(folder / f"state_{client}"),
            "data-dir": str(folder / f"site_{client}"),
            "require-privacy": "client",
        }
        for client in HELD
    ]


@pytest.fixture(scope="module")
def federations(tmp_path_factory):
    """The same federation twice: its clients have four images of each class, and six."""
    made = []
    for images in (4, 6):
        folder = tmp_path_factory.mktemp(f"own_{images}")
        nodes = Nodes(client_app(), sites(folder, images))
        run_rounds(folder, nodes, *PRIVATE)
        made.append((folder, nodes))
    return made


def kept(folder: Path) -> list[dict]:
    """What the nodes kept of their figures."""
    run, _ = owner(folder / "run" / "private")
    files = [folder / f"state_{client}" / run / FIGURES for client in HELD]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def kind(content: RecordDict) -> str:
    names = {name.rpartition("/")[2] for name in content}
    return "train" if "arrays" in names else "evaluate" if "metrics" in names else "query"


def test_every_record_that_leaves_is_an_update_or_the_same_for_all(federations):
    for _, nodes in federations:
        assert {kind(content) for content in nodes.replies} == {"train", "evaluate", "query"}
        for content in nodes.replies:
            assert all(len(record) == 0 for record in content.metric_records.values())
            if kind(content) == "query":  # the handshake
                said = json.loads(content["answer"]["json"])
                assert set(said) == {"client", "name"}
                continue
            account = json.loads(content["node"]["account"])
            client = int(account["process"].removeprefix("client "))
            assert account == {
                "seconds": 0.0, "process": f"client {client}", "rss_mb": 0.0, "clients": 1,
                "kept": [client] if kind(content) == "train" else [],
            }  # fmt: skip
            assert not content["errors"]
            for record in content.array_records.values():
                tensors = full(record)
                assert set(tensors) == {"p_G", "client.unclipped"}
                assert abs(tensors["client.unclipped"].numpy()) == 0.5


def test_answers_are_the_same_bytes_whatever_images_a_client_has(federations):
    """But for the update, whose size is the same."""
    few, many = (nodes for _, nodes in federations)
    assert len(few.replies) == len(many.replies)
    assert [len(part) for part in few.sent] == [len(part) for part in many.sent]
    alike = [
        one == other
        for one, other in zip(few.replies, many.replies, strict=True)
        if kind(one) != "train"
    ]
    assert len(alike) == 6 and all(alike)  # two handshakes, two evaluations of two clients


def test_no_figure_that_a_node_kept_is_in_the_bytes_that_left(federations):
    for folder, nodes in federations:
        sent, found = b"\0".join(nodes.sent), kept(folder)
        assert {row["round"] for row in found} == {0, 1}
        assert {"loss", "personal.local", "zero_shot.local", "num-examples"} <= set().union(*found)
        figures = {v for row in found for n, v in row.items() if n not in ("round", "num-examples")}
        for value in figures - {0.0, 1.0, 2.0}:
            assert struct.pack("<d", value) not in sent and struct.pack("<f", value) not in sent
            assert repr(value).encode() not in sent
        for word in (b"loss", b"num-examples", b"images", b"local", b"epochs"):
            assert word not in sent


def test_the_run_ends_without_figures_and_says_why(federations):
    folder, _ = federations[0]
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["no_figures"] == NO_FIGURES
    assert set(summary["accuracy"].values()) == {None} and summary["images_per_second"] is None
    assert summary["privacy"]["sampling"] == "full" and summary["privacy"]["epsilon"] > 0
    assert summary["privacy"]["delta"] == 1 / 20  # two clients
    lines = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if line["kind"] == "train"] == [None]
    assert [line["clients"] for line in lines if line["kind"] == "train"] == [2]
    table = json.loads((folder / "run" / "partition.json").read_text())["clients"]
    assert {row["train_images"] for row in table} == {row["test_images"] for row in table} == {None}
    assert len((folder / "run" / "clients.csv").read_text().splitlines()) == 1
    page = (folder / "run" / "report.html").read_text()
    assert "the clients keep their figures" in page and "How many images each has" in page
    assert json.loads((folder / "run" / "samples.json").read_text())["samples"] == []


@pytest.mark.parametrize("ask", ["clients", "samples"])
def test_a_node_answers_no_other_question(federations, ask):
    folder, nodes = federations[0]
    run, attempt = owner(folder / "run" / "private")
    (config,) = (folder / "state_0" / run).glob("config_*.json")
    name = config.stem.removeprefix("config_")
    job = Job(run, attempt, name, "", 1, clients=(0,), committed=(1,), ask=ask)
    content = RecordDict({"job": job.record(), "config": ConfigRecord({"per-client": 3})})
    reply = client_app()(
        Message(content, dst_node_id=0, message_type="query"),
        Context(1, 0, {"inline": True, **nodes.configs[0]}, RecordDict(), {}),
    )
    assert dict(reply.content["errors"]) == {"0": KEPT}
    assert set(reply.content) == {"errors", "node"}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_what_is_wrong_with_a_folder_stays_in_the_node_s_log(federations, kind):
    """Also where the data set cannot be read at all, whose text Flower would send."""
    folder, nodes = federations[0]
    run, attempt = owner(folder / "run" / "private")
    (config,) = (folder / "state_0" / run).glob("config_*.json")
    job = Job(run, attempt, config.stem.removeprefix("config_"), "", 1, (0,), (1,))

    def cannot(text: str):
        raise FedPGPError("site_0/train/secret-ward: no such class")

    reply = client_app(cannot)(
        Message(RecordDict({"job": job.record()}), dst_node_id=0, message_type=kind),
        Context(1, 0, {"inline": True, **nodes.configs[0]}, RecordDict(), {}),
    )
    (reason,) = dict(reply.content["errors"]).values()
    assert reason.startswith("something is wrong with its data or its machine")
    assert "secret-ward" not in str(reply.content)
    assert "secret-ward" in (folder / "state_0" / ERRORS).read_text()


def test_a_run_does_not_change_to_no_privacy(tmp_path):
    """A node keeps to what the run came with first, and an owner may ask for privacy."""
    store = PrivateStore(tmp_path, "run", 1)
    pin(store, json.dumps({"seed": 1, "privacy": {"name": "client", "clip": 1.0}}))
    for other in ({"name": "none"}, {"name": "client", "clip": 9.0}, None):
        config = {"seed": 1} | ({"privacy": other} if other else {})
        with pytest.raises(IncompatibleNode, match="privacy before"):
            pin(store, json.dumps(config))
    (tmp_path / "data_choice.json").write_text('{"seed": 1}')  # of an earlier version
    pin(store, json.dumps({"seed": 1, "privacy": {"name": "none"}}))


@pytest.mark.parametrize(
    ("required", "privacy", "fits"),
    [
        ("any", "none", False),
        ("any", "client", True),
        ("client", "client", True),
        ("image", "client", False),
    ],
)
def test_a_node_can_ask_for_privacy(required, privacy, fits, tmp_path):
    node = {"client-id": 0, "state-dir": str(tmp_path), "require-privacy": required}
    text = json.dumps(small_config(tmp_path / "run", *SMALL[:3], f"privacy={privacy}"))
    if fits:
        NodeConfig.of(node).configured(text)
    else:
        with pytest.raises(IncompatibleNode, match=f"require-privacy={required} alone"):
            NodeConfig.of(node).configured(text)
    with pytest.raises(FedPGPError, match="require-privacy in --node-config"):
        NodeConfig.of({**node, "require-privacy": "all"})


def nodes_of(run_dir: Path) -> list[dict]:
    return [
        {"client-id": client, "state-dir": str(run_dir.parent / f"{run_dir.name}_{client}")}
        for client in range(3)
    ]


def run_small(run_dir: Path, *overrides: str, deployed: bool = True, faults=None) -> dict:
    settings = SMALL if deployed else SMALL[1:]
    config = small_config(run_dir, *settings, "evaluate_every=0", *overrides, faults=faults)
    grid = Nodes(client_app(small_federation), nodes_of(run_dir)) if deployed else None
    return start(config, federation_of=small_federation, grid=grid)


def state(run_dir: Path) -> tuple[dict, dict]:
    tensors, info = read_checkpoint(checkpoints(run_dir / "checkpoint")[-1])
    return {n: t for n, t in tensors.items() if n.startswith("shared/")}, info["updates"]["client"]


def test_the_same_numbers_as_a_simulation(tmp_path):
    """Who takes part is drawn alike, failures add zero alike, the clipping norm goes alike."""
    same = ("participation=0.7", "privacy.seeded_noise=true", "privacy.adaptive_clip=true")
    faults = {"inf_update": [1], "round": 2}
    one = run_small(tmp_path / "a", *same, faults=faults)
    other = run_small(tmp_path / "b", *same, deployed=False, faults=faults)
    (ours, kept), (theirs, their_kept) = state(tmp_path / "a"), state(tmp_path / "b")
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-9, atol=1e-12)
    assert kept.pop("clip") == pytest.approx(their_kept.pop("clip")) and kept == their_kept
    assert one["privacy"]["epsilon"] == other["privacy"]["epsilon"]
    assert one["privacy"]["rounds"] == 3 and "no_figures" not in other


def test_a_deployment_killed_in_an_evaluation_spends_a_round_once(tmp_path, monkeypatch):
    settings = ("participation=0.7", "privacy.seeded_noise=true", "privacy.adaptive_clip=true")
    whole = run_small(tmp_path / "whole", *settings)
    evaluate = Server._evaluate

    def killed(server, server_round):
        if server_round == 3:
            raise KeyboardInterrupt
        evaluate(server, server_round)

    monkeypatch.setattr(Server, "_evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path / "killed", *settings)
    monkeypatch.undo()
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)
    grid = Nodes(client_app(small_federation), nodes_of(tmp_path / "killed"))
    again = resume(tmp_path / "killed", federation_of=small_federation, grid=grid)
    assert again["privacy"] == whole["privacy"] and again["no_figures"] == NO_FIGURES
    (ours, kept), (theirs, their_kept) = state(tmp_path / "killed"), state(tmp_path / "whole")
    assert kept == their_kept and all((ours[n] == t).all() for n, t in theirs.items())


@pytest.mark.parametrize("deployed", [True, False])
@pytest.mark.parametrize("nobody", ["drawn", "answers"])
def test_a_round_of_nobody_is_noise_and_counts(nobody, deployed, tmp_path, monkeypatch):
    """Where nobody is drawn, and where all that are drawn fail."""
    sums = []
    released = ClientPrivacy.released
    monkeypatch.setattr(
        ClientPrivacy,
        "released",
        lambda step, total, context: (
            sums.append(sum(float(t.abs().sum()) for t in total.values())),
            released(step, total, context),
        )[1],
    )
    rate = "participation=0.000001" if nobody == "drawn" else "participation=1"
    faults = None if nobody == "drawn" else {"inf_update": [0, 1, 2]}
    run = run_small(tmp_path / "run", rate, "rounds=2", deployed=deployed, faults=faults)
    assert run["status"] == "finished" and run["privacy"]["rounds"] == 2 and sums == [0.0, 0.0]
    lines = (json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    dropped = [len(line["dropped"]) for line in lines if line["kind"] == "train"]
    assert dropped == ([0, 0] if nobody == "drawn" else [3, 3])
    assert run["privacy"]["sampling"] == ("poisson" if nobody == "drawn" else "full")


def test_code_that_fails_for_everybody_still_stops_the_run(tmp_path):
    with pytest.raises(FedPGPError, match="round 1: 0 of 3 clients gave a usable reply. Client 0"):
        run_small(tmp_path / "run", "participation=1", deployed=False, faults={"raise": [0, 1, 2]})


def test_the_best_round_cannot_be_chosen_by_figures_that_stay(tmp_path):
    with pytest.raises(FedPGPError, match="selection=validation in a deployment"):
        run_small(tmp_path / "run", "protocol.selection=validation")
