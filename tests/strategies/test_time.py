"""What a client trains on changes with the round: a made-up protocol, registered from here, from
its split to the run's folder; and evaluations that ask some of the clients."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clients.client_app import client_app
from clients.messages import Job
from experiments.runner import resume, start
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.data import arrivals
from fedpgp.data_record import data_record, recorded_split
from fedpgp.errors import FedPGPError
from fedpgp.protocols import PROTOCOLS, Phase, SplitRequest, split_clients
from fedpgp.protocols.base import all_classes, register
from fedpgp.protocols.personal import Personal
from fedpgp.protocols.splits import ClientSplit, EvalSet, FederatedSplit
from fedpgp.seeding import generator
from strategies import node_registry
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.experiments.test_resume import results
from tests.helpers.nodes import Nodes
from tests.helpers.small import small_config, small_federation
from tests.strategies.test_privacy import CLASSES, sites

ROOT = Path(__file__).resolve().parents[2]
ARRIVE = {1: (0, 1), 3: (0, 1, 2, 3), 5: (0, 1, 2, 3, 4, 5)}
"""Round -> labels whose images are there."""


@dataclass(frozen=True)
class Arriving(Personal):
    """Two classes arrive in round 1, two in 3, two in 5; the last client has nothing before 3; the
    test images of the last two classes count from round 3 on, as ``novel``."""

    def split_clients(self, request: SplitRequest):
        whole = super().split_clients(request)
        labels, test = whole.dataset.train.labels, whole.dataset.test.labels
        novel = EvalSet(np.flatnonzero(test > 3), all_classes(whole.dataset), since=3)
        clients = []
        for client, owned in enumerate(whole.clients):
            phases = [
                Phase(since, owned.train[np.isin(labels[owned.train], there)], there)
                for since, there in ARRIVE.items()
            ]
            first = phases[0].train
            if client == len(whole.clients) - 1:
                first = np.empty(0, dtype=np.int64)
            eval_sets = {**owned.eval_sets, "novel": novel}
            clients.append(
                replace(
                    owned,
                    train=first,
                    classes=ARRIVE[1],
                    phases=tuple(phases[1:]),
                    eval_sets=eval_sets,
                )
            )
        return replace(whole, clients=clients)


@dataclass(frozen=True)
class GrowingFolder(Personal):
    """``personal``, and a client's own folder may grow."""

    images_arrive = True


@pytest.fixture(autouse=True, scope="module")
def registered():
    """The protocols are known while these tests run."""
    register("arriving")(Arriving)
    register("growing_folder")(GrowingFolder)
    yield
    del PROTOCOLS["arriving"], PROTOCOLS["growing_folder"]


def federation(text: str, seen: dict | None = None, kill: int = 0):
    """The small federation, split by the configuration's protocol.

    Args:
        text: the configuration.
        seen: (round, client) -> rows and class lists that it trained on; filled as it trains.
        kill: a round in which the process is killed.
    """
    config, made = json.loads(text), small_federation(text)
    scheme = {"scheme": "iid", "min_size": 1}
    request = SplitRequest(made.dataset, config["clients"], config["seed"], None, scheme)
    made.federated_split = split_clients(request, config["protocol"])
    plain = made.method

    class Watching(type(plain)):
        def gradients(self, params, batch, classes, step):
            if step.server_round == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            features = made.inputs.features("train")
            for k, client in enumerate(step.clients if seen is not None else ()):
                for image, weight in zip(batch.images.features[k], batch.weights[k], strict=True):
                    if weight > 0:
                        (row,) = (features == image).all(-1).nonzero()[:, 0].tolist()
                        seen[step.server_round, client].append((row, classes.ids))
            return super().gradients(params, batch, classes, step)

    made.method = Watching(plain.settings, plain.task)  # before any part is made of it
    return made


def config_of(run_dir, *overrides, protocol="arriving"):
    config = small_config(run_dir, "rounds=6", "participation=1", "method=fedpgp", *overrides)
    return {**config, "protocol": {**config["protocol"], "name": protocol}}


def lines(run_dir, kind):
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, what was seen) of a run that nobody disturbed."""
    run_dir, seen = tmp_path_factory.mktemp("time") / "run", defaultdict(list)
    start(config_of(run_dir), federation_of=partial(federation, seen=seen))
    return run_dir, seen


def test_a_round_trains_on_what_has_arrived_and_on_nothing_else(whole):
    run_dir, seen = whole
    config = config_of(run_dir)
    dataset = small_federation(json.dumps(config)).dataset
    request = SplitRequest(dataset, 6, 0, None, {"scheme": "iid", "min_size": 1})
    owned = split_clients(request, {"name": "personal"}).clients
    images = 0
    for server_round in range(1, 7):
        there = ARRIVE[max(since for since in ARRIVE if since <= server_round)]
        for client, client_split in enumerate(owned):
            rows = [int(i) for i in client_split.train if dataset.train.labels[i] in there]
            if client == 5 and server_round < 3:
                rows = []
            images += len(rows)
            trained = seen.get((server_round, client), [])
            assert sorted(row for row, _ in trained) == sorted(rows), (server_round, client)
            assert {ids for _, ids in trained} <= {there}
    assert {ids for found in seen.values() for _, ids in found} == set(ARRIVE.values())
    # What the replies say, which the server has compared with its own count.
    assert read_checkpoint(checkpoints(run_dir / "checkpoint")[-1])[1]["images"] == images
    assert [line["dropped"] for line in lines(run_dir, "train")] == [[]] * 6
    assert [line["clients"] for line in lines(run_dir, "train")] == [
        len({client for number, client in seen if number == server_round})
        for server_round in range(1, 7)
    ]


def test_an_eval_set_counts_from_its_round_on(whole):
    run_dir, _ = whole
    evals = lines(run_dir, "eval")
    assert [line["round"] for line in evals] == list(range(7))
    for line in evals:
        for model in ("zero_shot", "global", "personal"):
            assert line[model]["local"] is not None
            assert (line[model]["novel"] is not None) == (line["round"] >= 3), line["round"]


def test_the_folder_says_what_arrives_when(whole):
    run_dir, _ = whole
    for row in json.loads((run_dir / "partition.json").read_text())["clients"]:
        counts = {phase["since"]: phase["train_images"] for phase in row["phases"]}
        assert list(counts) == [0, 3, 5] and counts[5] == row["train_images"]
        assert sum(row["train_counts"].values()) == row["train_images"]
        assert (counts[0] == 0) >= (row["id"] == 5)
    record = read_checkpoint(checkpoints(run_dir / "checkpoint")[-1])[1]["data"]
    client = recorded_split(json.loads(json.dumps(record)), "small").clients[5]
    assert [client.classes_at(server_round) for server_round in (0, 2, 3, 4, 5, 9)] == [
        *(2 * [ARRIVE[1]]),
        *(2 * [ARRIVE[3]]),
        *(2 * [ARRIVE[5]]),
    ]


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    """Also when clients are drawn, to train and to be evaluated."""
    more = ["evaluate_clients=2", "participation=0.5"]
    undisturbed = tmp_path / "whole"
    start(config_of(undisturbed, *more), federation_of=federation)
    code = "import sys; from tests.strategies.test_time import main; main(*sys.argv[1:])"
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), *more], cwd=ROOT, capture_output=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert len(lines(tmp_path / "run", "train")) == 3
    resume(tmp_path / "run", federation_of=federation)
    assert results(tmp_path / "run") == results(undisturbed)


def main(run_dir: str, *overrides: str) -> None:
    """A run that is killed in round 4."""
    register("arriving")(Arriving)
    start(config_of(run_dir, *overrides), federation_of=partial(federation, kill=4))


def test_a_round_in_which_nobody_could_train_is_refused_before_it(tmp_path):
    with pytest.raises(FedPGPError, match="min_clients=6 .* 5 clients that take part in round 1"):
        start(config_of(tmp_path / "run", "runtime.min_clients=6"), federation_of=federation)
    with pytest.raises(FedPGPError, match="selection=validation cannot work with .* arriving"):
        start(
            config_of(tmp_path / "run", "protocol.selection=validation"), federation_of=federation
        )


def test_what_would_begin_after_the_last_round_is_said(tmp_path, capsys):
    start(config_of(tmp_path / "run", "rounds=1"), federation_of=federation)
    said = " ".join(capsys.readouterr().out.split())
    assert "from round 3 on clients would have other images, or be tested on more" in said
    assert "this run ends after rounds=1" in said


def test_nothing_changes_by_default():
    rows, eval_set = np.arange(4), EvalSet(np.arange(3), (0, 1))
    client = ClientSplit(rows, (0, 1), {"local": eval_set})
    for server_round in range(100):
        assert client.train_at(server_round) is rows
        assert client.classes_at(server_round) == (0, 1)
        assert client.eval_sets_at(server_round) == {"local": eval_set}
    assert client.train_indices is rows


def test_the_record_tells_another_schedule_from_this_one():
    def record(**changes):
        client = ClientSplit(np.arange(4), (0, 1), {"local": EvalSet(np.arange(3), (0, 1))})
        dataset = small_federation(json.dumps(small_config("nowhere"))).dataset
        return data_record(FederatedSplit(dataset, (0, 1), (), [replace(client, **changes)]))

    late = Phase(3, np.arange(8), (0, 1, 2))
    records = [
        record(),
        record(phases=(late,)),
        record(phases=(replace(late, since=2),)),
        record(eval_sets={"local": EvalSet(np.arange(3), (0, 1), since=3)}),
    ]
    assert len({one["split"] for one in records}) == 4
    assert ["phases" in one for one in records] == [False, True, True, False]
    assert records[1]["classes"] == [[0, 1], [0, 1, 2]] and records[1]["phases"] == [[[3, 1]]]


# A client's own folder grows. ---------------------------------------------------------------------


ARRIVING = ["runtime=flower", "partition=own", "dataset=folder", "protocol=personal", "clients=2"]
ARRIVING += ["runtime.min_report=1", "local_epochs=1", "batch_size=4", "n_ctx=2"]
ARRIVING += [f"dataset.class_names=[{','.join(CLASSES)}]"]


def grown(folder, *words, before=None, protocol="personal", configs=None):
    """A run of real nodes whose folders grow; the grid."""
    config = composed(
        [*ARRIVING, "rounds=2", "evaluate_every=0", *words, f"run_dir={folder / 'run'}"]
    )
    config["protocol"]["name"] = protocol
    # A real node reads its folder in a new process for every message.
    app = client_app(lambda text: build_federation(json.loads(text)))
    nodes = Nodes(app, configs or sites(folder), before=before or (lambda *_: None))
    start(config, grid=nodes)
    return nodes


@pytest.fixture
def soon(monkeypatch):
    """Nobody waits: not for nodes, and not for files that were just written."""
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)
    monkeypatch.setattr(arrivals, "SETTLED", 0.0)


def in_round(server_round, message):
    job, kind = Job.of(message.content), message.metadata.message_type
    return kind == "train" and job.server_round == server_round


@pytest.mark.parametrize(
    ("words", "protocol", "accepted"),
    [
        ([], "personal", False),
        ([], "growing_folder", True),
        (["partition.images_arrive=true"], "personal", True),
    ],
)
def test_a_folder_that_has_grown(tmp_path, soon, words, protocol, accepted):
    """An image comes in round 2, and the node is not started again: the run, or its protocol, says
    whether its update counts, with the images it is made of."""

    def before(nodes, node, message):
        new = tmp_path / "site_1" / "train" / "mammal" / "new.png"
        if in_round(2, message) and node == 1 and not new.exists():
            shutil.copy(next(new.parent.glob("*.png")), new)

    nodes = grown(tmp_path, *words, before=before, protocol=protocol)
    dropped = [line["dropped"] for line in lines(tmp_path / "run", "train")]
    if not accepted:
        assert dropped[0] == [] and [row["client"] for row in dropped[1]] == [1]
        assert "images, but it has" in dropped[1][0]["reason"]
        return
    counts = [c["1/metrics"]["num-examples"] for c in nodes.replies if "1/arrays" in c]
    assert dropped == [[], []] and counts == [counts[0], counts[0] + 1]
    rows = csv.DictReader((tmp_path / "run" / "clients.csv").open())
    assert {int(row["train_images"]) for row in rows if row["id"] == "1"} == {counts[1]}
    # What stays on the node: which images, since when. None of it is sent.
    (kept,) = (tmp_path / "state_1").glob("*/images.json")
    record = json.loads(kept.read_text())
    assert [one["since"] for one in record["arrivals"]] == [0, 2]
    assert b"new.png" not in b"".join(nodes.sent)


def test_a_client_without_images_takes_part_once_some_have_come(tmp_path, soon):
    """Its folder is empty at first; it is not drawn, and not started again."""
    configs = sites(tmp_path)
    full = tmp_path / "site_1"
    full.rename(tmp_path / "later")
    full.mkdir()

    def before(nodes, node, message):
        if in_round(2, message) and not any(full.iterdir()):
            shutil.copytree(tmp_path / "later", full, dirs_exist_ok=True)

    words = ["partition.images_arrive=true", "rounds=3"]
    grown(tmp_path, *words, before=before, configs=configs)
    assert [line["clients"] for line in lines(tmp_path / "run", "train")] == [1, 1, 2]
    table = json.loads((tmp_path / "run" / "partition.json").read_text())["clients"]
    assert table[1]["train_images"] == 0  # as it began


def test_a_node_whose_image_was_removed_is_left_out_until_it_is_back(tmp_path, soon):
    configs, away = sites(tmp_path), tmp_path / "away.png"
    image = sorted((tmp_path / "site_1" / "train" / "mammal").glob("*.png"))[0]

    def before(nodes, node, message):
        if in_round(2, message) and node == 1 and image.exists():
            image.rename(away)
        elif Job.of(message.content).ask == "handshake" and away.exists():
            away.rename(image)

    words = ["partition.images_arrive=true", "rounds=3"]
    grown(tmp_path, *words, before=before, configs=configs)
    dropped = [line["dropped"] for line in lines(tmp_path / "run", "train")]
    assert [[row["client"] for row in one] for one in dropped] == [[], [1], []]
    assert "something is wrong with its data" in dropped[1][0]["reason"]
    assert "removed: train/mammal" in (tmp_path / "state_1" / "errors.log").read_text()


# Evaluations that ask some of the clients. --------------------------------------------------------


def test_some_clients_are_evaluated_and_nothing_else_is_different(tmp_path):
    for name, more in (("all", []), ("two", ["evaluate_clients=2"]), ("many", ["clients=6"])):
        config = config_of(tmp_path / name, "rounds=3", *more, protocol="personal")
        if name == "many":
            config["evaluate_clients"] = 60
        start(config, federation_of=federation)
    tables = {
        name: list(csv.DictReader((tmp_path / name / "clients.csv").open()))
        for name in ("all", "two", "many")
    }
    assert tables["many"] == tables["all"] and len(tables["all"]) == 18
    for line in lines(tmp_path / "two", "eval"):
        assert (line["clients"], line["drawn_clients"], line["all_clients"]) == (2, 2, 6)
        drawn = np.argsort(generator(0, "evaluate").random(6))[:2]
        for model in ("zero_shot", "global", "personal"):
            assert line[model]["local"] is not None
    assert {int(row["id"]) for row in tables["two"]} == set(drawn.tolist())
    assert tables["two"] == [row for row in tables["all"] if int(row["id"]) in drawn]
    assert all("drawn_clients" not in line for line in lines(tmp_path / "all", "eval"))
    assert "standard_error" not in json.loads((tmp_path / "all" / "summary.json").read_text())
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    a, b = (float(row["local"]) for row in tables["two"] if row["model"] == "personal")
    # s = |a - b| / sqrt(2), of n = 2 of N = 6.
    error = abs(a - b) / 2**0.5 / 2**0.5 * (1 - 2 / 6) ** 0.5
    assert summary["standard_error"]["personal"]["local"] == pytest.approx(error)
    assert summary["evaluated_clients"] == 2 and summary["clients"] == 6
    assert (
        "Of 2 of 6 clients: an evaluation asks evaluate_clients=2, drawn from the seed."
        in (tmp_path / "two" / "report.html").read_text()
    )
    shared = [
        read_checkpoint(checkpoints(tmp_path / name / "checkpoint")[-1])[0]["shared/p_G"].tobytes()
        for name in ("all", "two")
    ]
    assert shared[0] == shared[1]


def test_the_last_rounds_are_reported_of_the_clients_that_were_drawn(tmp_path):
    config = config_of(
        tmp_path / "run", "evaluate_clients=2", "protocol.selection=last_five", protocol="personal"
    )
    summary = start(config, federation_of=federation)
    assert summary["selected_rounds"] == [2, 3, 4, 5, 6]
    assert summary["accuracy"]["personal"]["local"] is not None
