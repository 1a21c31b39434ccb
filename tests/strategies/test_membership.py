"""A client joins a running federation of real nodes, and another leaves it for good."""

import csv
import json
import shutil
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from clients.client_app import client_app
from clients.messages import Job
from clients.private_state import owner
from experiments.membership import check_members, check_new
from experiments.run import changes_on_resume
from experiments.run_folder import RunFolder
from experiments.runner import resume, start
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.errors import FedPGPError
from fedpgp.server_update import ServerUpdate
from strategies import node_registry, queries
from strategies.checkpoint import checkpoints, read_checkpoint
from strategies.membership import admitted
from tests.helpers.nodes import Nodes
from tests.helpers.small import small_config, small_federation
from tests.strategies.test_privacy import CLASSES, sites

WORDS = ["runtime=flower", "partition=own", "dataset=folder", "protocol=personal"]
WORDS += ["runtime.min_report=1", "local_epochs=1", "batch_size=4", "n_ctx=2"]
WORDS += [f"dataset.class_names=[{','.join(CLASSES)}]"]


APP = client_app(cache(lambda text: build_federation(json.loads(text))))
"""Its nodes read their folders, which stay as they are, once."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The folders of three clients, of which the last has the images of the first."""
    folder = tmp_path_factory.mktemp("images")
    sites(folder)
    shutil.copytree(folder / "site_0", folder / "site_2")
    return folder


def three_sites(folder, images) -> list[dict]:
    """The nodes of three clients, with their states in a folder."""
    return [
        {
            "client-id": client,
            "state-dir": str(folder / f"state_{client}"),
            "data-dir": str(images / f"site_{client}"),
            "min-report": 1,
        }
        for client in range(3)
    ]


def begin(folder, configs, *words, before=None) -> Nodes:
    config = composed([*WORDS, f"clients={len(configs)}", *words, f"run_dir={folder / 'run'}"])
    nodes = Nodes(APP, configs, before=before or (lambda *_: None))
    start(config, grid=nodes)
    return nodes


def again(folder, configs, **changes) -> Nodes:
    nodes = Nodes(APP, configs)
    for node, config in enumerate(configs):
        nodes.names[node] = f"client-{config['client-id']}"
    resume(folder / "run", changes, grid=nodes)
    return nodes


def lines(folder, kind):
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


def private(folder, client) -> dict[str, dict]:
    """File -> tensors of a client's private states."""
    run, _ = owner(folder / "run" / "private")
    kept = folder / f"state_{client}" / run / f"client_{client:05d}"
    return {path.name: load_file(path) for path in sorted(kept.glob("round_*.safetensors"))}


@pytest.fixture(scope="module")
def story(tmp_path_factory, images):
    """A run of two clients; a third one joins after round 1, the second one leaves after round 2.

    Returns:
        the folder, and what was to be seen after each part.
    """
    folder, seen = tmp_path_factory.mktemp("members"), []
    interval, node_registry.INTERVAL = node_registry.INTERVAL, 0.0
    configs = three_sites(folder, images)

    def look(nodes):
        tensors, info = read_checkpoint(checkpoints(folder / "run" / "checkpoint")[-1])
        seen.append(
            SimpleNamespace(
                nodes=nodes,
                tensors=tensors,
                seats=info["seats"],
                private={c: private(folder, c) for c in (0, 1, 2)},
                config=yaml.safe_load((folder / "run" / "config.yaml").read_text()),
                clients=list(csv.DictReader((folder / "run" / "clients.csv").open())),
            )
        )

    with redirect_stdout(StringIO()) as said:
        look(begin(folder, configs[:2], "rounds=1"))
        look(again(folder, configs, rounds=2, clients=3))
        look(again(folder, configs, rounds=3, left=[1]))
    seen[-1].said = said.getvalue()
    node_registry.INTERVAL = interval
    return folder, seen


def test_the_others_lose_nothing_when_a_client_joins(story, images, tmp_path, monkeypatch):
    """The same numbers as a run of three in which the third one was away for a round, to the last
    bit: it starts as any client that never trained."""
    folder, (before, after, _) = story
    for client in (0, 1):
        kept = {**after.private[client], **before.private[client]}
        assert sorted(kept) == [f"round_{r:05d}.safetensors" for r in (1, 2)]
    assert after.tensors["committed"].tolist() == [2, 2, 2]
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)

    def away(nodes, node, message):
        job = Job.of(message.content)
        if message.metadata.message_type == "train" and node == 2 and job.server_round == 1:
            raise RuntimeError("not here yet")

    begin(tmp_path, three_sites(tmp_path, images), "rounds=2", "evaluate_every=0", before=away)
    tensors, _ = read_checkpoint(checkpoints(tmp_path / "run" / "checkpoint")[-1])
    assert set(tensors) == set(after.tensors)
    for name in ("shared/p_G", "committed"):
        np.testing.assert_array_equal(tensors[name], after.tensors[name], err_msg=name)
    for client in (0, 1, 2):
        for name, tensor in private(tmp_path, client)["round_00002.safetensors"].items():
            ours = after.private[client]["round_00002.safetensors"][name]
            np.testing.assert_array_equal(ours, tensor, err_msg=f"{client} {name}")


def test_seats_stay_bound_to_keys(story):
    _, (before, after, last) = story
    assert before.seats.items() < after.seats.items() and set(after.seats) == {"0", "1", "2"}
    assert last.seats == after.seats


def test_the_folder_says_who_took_part_until_when(story):
    folder, (before, after, last) = story
    assert "members" not in before.config and before.config["clients"] == 2
    assert after.config["clients"] == 3
    assert after.config["members"] == [{"until_round": 1, "clients": 2, "left": []}]
    assert last.config["left"] == [1]
    assert last.config["members"][1:] == [{"until_round": 2, "clients": 3, "left": []}]
    assert [line["clients"] for line in lines(folder, "train")] == [2, 3, 2]
    assert [line["clients"] for line in lines(folder, "eval")] == [2, 2, 3, 2]
    assert {row["id"] for row in before.clients} == {"0", "1"}
    assert {row["id"] for row in after.clients} == {"0", "1", "2"}
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["clients"] == 3
    assert RunFolder.open(folder / "run")[1]["left"] == [1]


def test_a_client_that_has_left_is_neither_asked_nor_counted(story):
    folder, (_, after, last) = story
    assert lines(folder, "train")[-1]["dropped"] == []
    assert {row["id"] for row in last.clients} == {"0", "2"}
    assert last.tensors["committed"].tolist() == [3, 2, 3]
    assert set(last.private[1]) == set(after.private[1]), "its terms are where they were"
    refused = "the client has left this run for good"
    assert any(refused in said for said in last.said.splitlines())


def test_a_newcomer_that_is_not_there_yet_is_not_waited_for(images, tmp_path, monkeypatch, capsys):
    """It takes part once its node comes."""
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)
    monkeypatch.setattr(queries, "RETURN_PATIENCE", 0.3)
    configs = three_sites(tmp_path, images)
    begin(tmp_path, configs[:2], "rounds=1", "evaluate_every=0")

    def before(nodes, node, message):
        if message.metadata.message_type == "train" and Job.of(message.content).server_round == 2:
            nodes.since.setdefault(2, 1)

    nodes = Nodes(APP, configs, before=before)
    nodes.leave(2)
    resume(tmp_path / "run", {"rounds": 3, "clients": 3}, grid=nodes)
    assert "client 2 is not there yet; it takes part once its node comes" in capsys.readouterr().out
    assert [line["clients"] for line in lines(tmp_path, "train")] == [2, 2, 3]


# What may change, and what is refused. ------------------------------------------------------------


def test_the_command_line_of_a_resume_may_raise_the_clients(story):
    folder = story[0] / "run"

    def changes(*words):
        words = ["runtime=flower", *words]
        return changes_on_resume(composed(words), words, folder)

    assert changes("clients=4")["clients"] == 4
    assert changes("left=[1,0]")["left"] == [1, 0]
    with pytest.raises(FedPGPError, match="client 1 has left this run for good.*clients=4"):
        changes("left=[]")
    with pytest.raises(FedPGPError, match="clients=2: this run has 3, and each keeps its number"):
        changes("clients=2")


OWN = {"clients": 3, "partition": {"scheme": "own"}, "method": {"name": "promptfl"}}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"partition": {"scheme": "natural"}}, {"clients": 4}, "partition=natural splits the"),
        ({"privacy": {"name": "client"}}, {"clients": 4}, "noise of privacy=client"),
        ({"privacy": {"name": "client"}}, {"left": [0]}, "noise of privacy=client"),
        ({}, {"left": [3]}, "there is no client 3 of 3"),
        ({}, {"left": [0, 1, 2]}, "nobody would be left to train"),
        ({}, {"left": [0, 0]}, "left=.* cannot work; it is a list of clients' numbers, each once"),
        ({}, {"left": "all"}, "left=all cannot work"),
        ({}, {"clients": 0}, "clients=0"),
    ],
)
def test_what_would_take_something_from_the_others_is_refused(before, now, said):
    before = {**OWN, **before}
    with pytest.raises(FedPGPError, match=said):
        check_members(before, {**before, **now})


def test_what_goes_well_is_not_refused():
    check_members(OWN, {**OWN, "clients": 5, "left": [2]})
    split = {**OWN, "partition": {"scheme": "natural"}}
    check_members(split, {**split, "left": [2]})
    check_new({"left": []})
    with pytest.raises(FedPGPError, match="a new run begins without them"):
        check_new({"left": [1]})


def test_a_client_leaves_a_simulation(tmp_path):
    """Its weight and its figures are out, and the draws of the others are made without it."""
    words = ("clients=3", "participation=1")
    small = {"federation_of": small_federation}
    start(small_config(tmp_path / "run", *words, "rounds=1"), **small)
    resume(tmp_path / "run", {"rounds": 2, "left": [1]}, **small)
    assert [line["clients"] for line in lines(tmp_path, "train")] == [3, 2]
    final = lines(tmp_path, "eval")[-1]
    assert (final["clients"], final["all_clients"]) == (2, 2) and "drawn_clients" not in final
    start(
        small_config(tmp_path / "b", *words, "rounds=2", faults={"raise": [1], "round": 2}), **small
    )
    ours, theirs = (
        read_checkpoint(checkpoints(tmp_path / name / "checkpoint")[-1])[0] for name in ("run", "b")
    )
    np.testing.assert_allclose(ours["shared/p_G"], theirs["shared/p_G"], rtol=1e-9)
    with pytest.raises(FedPGPError, match="runtime.min_clients=3 is more than the 2 clients"):
        config = small_config(tmp_path / "x", "runtime.min_clients=3")
        resume(tmp_path / "run", {"rounds": 3, "runtime": config["runtime"]}, **small)


@pytest.mark.parametrize("method", ["fedamp", "pfedmoap"])
def test_nothing_of_a_client_that_has_left_is_sent_to_others(method, tmp_path):
    """Both methods' servers send clients each other's prompts."""
    words, small = (
        ("clients=3", "participation=1", f"method={method}", "evaluate_every=0"),
        {"federation_of": small_federation},
    )

    def memory() -> dict[str, np.ndarray]:
        tensors, _ = read_checkpoint(checkpoints(tmp_path / "run" / "checkpoint")[-1])
        return {name: t for name, t in tensors.items() if name.startswith("memory/")}

    start(small_config(tmp_path / "run", *words, "rounds=1"), **small)
    before = memory()
    assert before["memory/known"].tolist() == [1, 1, 1] and all(t[1].any() for t in before.values())
    resume(tmp_path / "run", {"rounds": 2, "left": [1]}, **small)
    assert memory()["memory/known"].tolist() == [1, 0, 1]
    assert not any(tensor[1].any() for tensor in memory().values())
    assert all(tensor[2].any() for tensor in memory().values())


def test_rows_of_clients_are_those_that_grow_with_their_number():
    """Not those that have as many by chance."""
    method = SimpleNamespace(
        init_server_state=lambda n: (
            {"v": torch.zeros(n, 3), "square": torch.zeros(4, 4)}
            | {"known": torch.zeros(n), "count": torch.zeros(())}
        )
    )
    split = SimpleNamespace(clients=range(4))
    server = ServerUpdate(method, split, training=None, seed=0, weighting=None)
    assert server.client_rows() == ["v", "known"]


def test_a_checkpoint_gets_room_for_newcomers():
    memory = {"pool": np.arange(6.0).reshape(2, 3), "momentum": np.ones((4, 4))}
    tensors = {
        "shared/p_G": np.ones(2),
        "committed": np.array([3, 2]),
        "zero_shot_asked": np.array([0, 0]),
        "zero_shot/zero_shot.local": np.array([50.0, 60.0]),
        **{f"memory/{name}": tensor for name, tensor in memory.items()},
    }

    def federation(fresh, clients=4):
        return SimpleNamespace(
            num_clients=clients, server=SimpleNamespace(initial_state=lambda: fresh)
        )

    fresh = {"pool": np.full((4, 3), -1.0), "momentum": np.zeros((4, 4))}
    found = admitted(tensors, federation(fresh))
    assert found["committed"].tolist() == [3, 2, 0, 0]
    assert found["zero_shot_asked"].tolist() == [0, 0, -1, -1]
    np.testing.assert_array_equal(found["zero_shot/zero_shot.local"], [50, 60, np.nan, np.nan])
    np.testing.assert_array_equal(found["memory/pool"], [[0, 1, 2], [3, 4, 5], [-1] * 3, [-1] * 3])
    np.testing.assert_array_equal(found["memory/momentum"], memory["momentum"])
    assert found["shared/p_G"] is tensors["shared/p_G"]
    assert admitted(tensors, federation(fresh, clients=2)) == tensors
    with pytest.raises(FedPGPError, match="keeps a tensor of all clients together"):
        admitted(tensors, federation({**fresh, "pool": np.zeros((4, 4))}))
