"""Every registered method as a federation: a run, what leaves a client, that personal tensors
are personal, resume."""

import json

import numpy as np
import pytest
import torch
import yaml
from flwr.app import ArrayRecord

from clients.private_state import PrivateStore
from experiments.runner import resume, start
from experiments.runtimes.inline import InlineGrid
from experiments.settings import CONF, choices, composed
from fedpgp.build import method_settings
from fedpgp.methods import METHODS
from fedpgp.methods.fedpgp_terms import TERMS
from fedpgp.seeding import generator
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.small import small_config, small_federation

MORE = {"hilora": ("local_epochs=2",)}  # its leaf learns in the last round alone: A, from step 2
LEARNING = [(name, *MORE.get(name, ())) for name, method in METHODS.items() if method.learns]
LEARNING += [("fedpgp", f"method.personal={term}") for term in TERMS if term != "low_rank"]


@pytest.fixture
def messages(monkeypatch) -> list[dict]:
    """What the nodes are sent and answer: (kind, record name, tensors)."""
    seen: list[tuple[str, str, dict[str, np.ndarray]]] = []

    def watch(message, way: str) -> None:
        for name, record in message.content.items():
            if isinstance(record, ArrayRecord):
                tensors = {
                    key: np.frombuffer(a.data, a.dtype).reshape(a.shape)
                    for key, a in record.items()
                }
                seen.append((f"{way} {message.metadata.message_type.split('.')[0]}", name, tensors))

    work = InlineGrid._work

    def watched(self, message):
        watch(message, "to")
        reply = work(self, message)
        watch(reply, "from")
        return reply

    monkeypatch.setattr(InlineGrid, "_work", watched)
    return seen


def test_every_method_has_a_configuration():
    assert set(choices()["method"]) == {*METHODS, "component"}


@pytest.mark.parametrize("name", METHODS)
def test_recipe_paper_has_the_published_settings(name):
    """conf/method suits the embedded federation; recipe=paper is what the papers and the dataclass
    say."""
    config = composed([f"method={name}", "recipe=paper"])
    assert METHODS[name].Settings(**method_settings(config)) == METHODS[name].Settings()
    ours = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())
    more = set(config["method"]) - set(ours)
    assert more <= {"optimizer_state"}  # which zero-shot CLIP has no use for


def test_recipe_short_depends_on_the_protocol():
    """compare_all is one command for two protocols; what is said on the command line wins."""
    runs = [
        composed(["experiment=compare_all", f"protocol={name}"])
        for name in ("base2novel", "multidomain")
    ]
    assert [(run["rounds"], run["batch_size"], run["lr"]) for run in runs] == [
        (10, 128, 0.06),
        (5, 128, 0.06),
    ]
    assert composed(["experiment=compare_all", "protocol=multidomain", "rounds=3"])["rounds"] == 3
    alone = composed(["recipe=short", "protocol=multidomain"])
    assert (alone["rounds"], alone["batch_size"]) == (5, 128) and composed(
        ["protocol=multidomain"]
    )["rounds"] == 10


@pytest.mark.parametrize(
    ("name", "more"), [(name, more) for name, *more in LEARNING], ids=map("-".join, LEARNING)
)
def test_a_run(tmp_path, messages, name, more):
    config = small_config(
        tmp_path / "run",
        f"method={name}",
        *more,
        "clients=3",
        "participation=1",
        "rounds=2",
        "lr=0.1",
    )
    assert config["method"]["name"] == name
    summary = start(config, federation_of=small_federation)
    assert summary["status"] == "finished"

    if (
        summary["one_prompt"] or summary["accuracy"]["global"] is None
    ):  # said of the method, not read off the figures
        same = [
            model and model["local"]
            for model in map(summary["accuracy"].get, ("global", "personal"))
        ]
        assert summary["one_prompt"] == (same[0] == same[1])

    # What leaves a client.
    fed = small_federation(json.dumps(config))
    shared = fed.models.initial_shared()
    newest = checkpoints(tmp_path / "run" / "checkpoint")[-1]
    server, info = read_checkpoint(newest)
    states = [private_state(tmp_path / "run", info["run"], client) for client in range(3)]
    personal = {
        n for n, t in fed.method.init_personal(generator(0, "personal", 0)).items() if t.numel() > 1
    }
    private = personal - set(fed.method.sent_copies)
    sent = [tensors for way, _, tensors in messages if way == "from train"]
    assert len(sent) == 6
    for tensors in sent:
        assert {n: (t.shape, t.dtype) for n, t in tensors.items()} == {
            n: (t.shape, t.dtype) for n, t in shared.items()
        }
    everywhere = [array for _, _, tensors in messages for array in tensors.values()] + list(
        server.values()
    )
    for client in range(3):
        for n in private:
            mine = states[client][n].numpy()
            assert not any(a.shape == mine.shape and np.array_equal(a, mine) for a in everywhere), (
                client,
                n,
            )
    sent_back = sum(tensor.nbytes for tensor in shared.values())
    received = sent_back + sum(
        tensor.nbytes for tensor in fed.server.download_for(0, fed.server.initial_state()).values()
    )
    assert summary["bytes_up"] >= 2 * 3 * sent_back and summary["bytes_down"] >= 5 * 3 * received

    # Personal tensors differ, and the client's own model is made of them.
    differing = {n for n in personal if not torch.equal(states[0][n], states[1][n])}
    assert personal - set(fed.method.buffers) <= differing
    assert differing or not personal or fed.method.shares_one_model
    if personal and not fed.method.shares_one_model:
        now = {n.removeprefix("shared/"): t for n, t in server.items() if n.startswith("shared/")}
        server_state = {
            n.removeprefix("memory/"): t for n, t in server.items() if n.startswith("memory/")
        }
        client_only = {0: fed.server.download_for(0, server_state)} if server_state else None
        mine, others = (answers(fed, now, states[k], client_only) for k in (0, 1))
        assert (mine - others).abs().max() > 1e-10

    # A resumed run gives the same numbers: the server state and the private states
    # are all that is needed.
    newest.unlink()
    (tmp_path / "run" / "summary.json").unlink()  # as if killed in the last round
    again = resume(tmp_path / "run", federation_of=small_federation)
    assert again["accuracy"] == summary["accuracy"]
    repeated, _ = read_checkpoint(newest)
    assert {n: t.tobytes() for n, t in repeated.items()} == {
        n: t.tobytes() for n, t in server.items()
    }


class Counting(METHODS["promptfl"]):
    """A server that counts how often each client's update came, and tells it; a client that
    says what it was told."""

    name = "counting"
    buffers = ("told", "said")
    equal_weights = needs_each_update = True

    def init_shared(self, rng):
        return {**super().init_shared(rng), "said": torch.zeros(1)}

    def init_server_state(self, clients):
        return {"count": torch.zeros(clients)}

    def download_for(self, client, server_state):
        return {"told": server_state["count"][client : client + 1]}

    def finish_client(self, params, step):
        return {**params, "said": params["told"]}

    def update_server(self, averaged, context):
        assert (context.weights == 1 / len(context.clients)).all()
        assert torch.allclose(averaged["said"], context.updates["said"].mean(0))
        count = context.server_state["count"].clone()
        for client, said in zip(context.clients, context.updates["said"], strict=True):
            assert said == count[client]
            count[client] += 1
        return averaged, {"count": count}


def test_server_state_and_tensors_for_one_client(tmp_path, messages, monkeypatch):
    monkeypatch.setitem(METHODS, "counting", Counting)
    config = small_config(
        tmp_path / "run", "method=promptfl", "participation=0.5", "rounds=3", "evaluate_every=1"
    )
    config["method"] = {"name": "counting"}
    start(config, federation_of=small_federation)
    server, _ = read_checkpoint(checkpoints(tmp_path / "run" / "checkpoint")[-1])
    assert server["memory/count"].sum() == 9 and server["memory/count"].max() > 1
    told = [
        tensors["told"]
        for way, record, tensors in messages
        if way == "to train" and record.endswith("/own")
    ]
    assert len(told) == 9 - 3  # in round 1 all are told the same, which travels once
    told = [
        record for way, record, _ in messages if way == "to evaluate" and record.endswith("own")
    ]
    assert len(told) == 1 + 3 * 6


def private_state(run_dir, run, client) -> dict:
    if not (run_dir / "private" / f"client_{client:05d}").exists():
        return {}
    return PrivateStore(run_dir / "private", run, 99).load(client, 2)


@torch.no_grad()
def answers(fed, shared, state, client_only) -> torch.Tensor:
    """Client 0's logits for some test images, with this private state."""
    (classifier,) = fed.models.personal_classifier(
        shared, [0], lambda client: state, [fed.base], client_only, server_round=1
    )
    return fed.method.logits(classifier, fed.inputs.images("test")[torch.arange(4)[None]], fed.base)


def test_the_comparison_has_every_method():
    compared = set()
    for file in ("compare_all", "compare_all_vit", "compare_lora"):
        compared |= swept_methods(file)
        assert composed([f"experiment={file}"])["evaluate_every"] == 0
    lifelong = {name for name in METHODS if METHODS[name].about.family == "lifelong"}
    assert compared == set(METHODS) - lifelong
    for file in ("lifelong_class", "lifelong_domain"):  # there the images change
        swept = swept_methods(file)
        assert {name for name in lifelong if not METHODS[name].about.model} <= swept <= set(METHODS)


def swept_methods(experiment: str) -> set[str]:
    """The methods of a table."""
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    return set(yaml.safe_load(text)["hydra"]["sweeper"]["params"]["method"].split(","))
