"""A curious server's attack: global prompts that answer one class for every image read a client's
labels.

Accuracy times count is the number of that class. The prompts are trained on other, public images,
as a server could, and sent in ordinary evaluation messages.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.client_app import client_app
from clients.messages import Job, pack
from clients.node_config import NodeConfig
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.data import load_dataset
from fedpgp.federation import Federation
from strategies.reply_checks import open_reply

CLASSES = ["mammal", "insect", "plant"]
HELD = {"mammal": 33, "insect": 9, "plant": 22}
"""The client's test images, 64 in all: what the server may not know."""
RUN = "0123456789abcdef"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict:
    """``--node-config`` of a client with its own images."""
    folder, emoji = tmp_path_factory.mktemp("site"), load_dataset("emoji")
    for part, counts in (("train", dict.fromkeys(CLASSES, 4)), ("test", HELD)):
        for name, count in counts.items():
            split, wanted = emoji.train, emoji.class_names.index(name)
            rows = [i for i in range(len(split)) if split.labels[i] == wanted]
            for row in rows[:count] if part == "test" else rows[-count:]:
                path = folder / part / name / f"{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                split.image(row).save(path)
    return {"client-id": 0, "data-dir": str(folder)}


def configuration() -> str:
    words = [
        "runtime=flower",
        "partition=own",
        "dataset=folder",
        f"dataset.class_names=[{','.join(CLASSES)}]",
    ]
    words += [
        "clients=1",
        "rounds=8",
        "method=promptfl",
        "protocol=personal",
        "local_epochs=1",
        "batch_size=4",
    ]
    return json.dumps({**composed(words), "run_dir": None})


class Node:
    """The client's ClientApp, which is asked as a server would."""

    def __init__(self, site: dict, folder: Path):
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.config = {**site, "state-dir": str(folder)}
        store = NodeConfig.of(self.config).store_folder(RUN)
        store.mkdir(parents=True)
        from clients.private_state import PrivateStore

        self.name = PrivateStore(store, RUN, 1).give_configuration(configuration())
        self.app = client_app()

    def ask(self, kind: str, shared: dict[str, np.ndarray], server_round: int, ask: str = ""):
        """Its answer: records, or why there are none."""
        arrays = ArrayRecord({name: Array(tensor) for name, tensor in shared.items()})
        content = RecordDict(
            {"arrays": arrays, "config": ConfigRecord({"server-round": server_round})}
        )
        job = Job(RUN, 1, self.name, "", server_round, clients=(0,), committed=(0,), ask=ask)
        asked = Message(content, dst_node_id=1, message_type=kind)
        message = Message(pack(job, {0: content}), dst_node_id=1, message_type=kind)
        context = Context(1, 1, {"inline": True, **self.config}, RecordDict(), {})
        opened = open_reply(self.app(message, context).content, {0: asked})
        return opened.contents.get(0) or opened.rejected[0]


@pytest.fixture(scope="module")
def crafted(site, tmp_path_factory) -> tuple[dict, list[dict], Federation]:
    """(the honest start, for each class tensors that answer it whatever they are shown, the
    client's federation)."""
    own = NodeConfig.of({**site, "state-dir": str(tmp_path_factory.mktemp("state"))})
    federation = build_federation(json.loads(own.configured(configuration())))
    start, task, classes = (
        federation.models.initial_shared(),
        federation.method.task,
        federation.base,
    )
    emoji = load_dataset("emoji")
    public = [emoji.test.image(i) for i in range(0, len(emoji.test), len(emoji.test) // 128)]
    features = task.clip.encode_images(
        torch.stack([task.clip.preprocess(image) for image in public])
    )
    features = torch.nn.functional.normalize(features.float(), dim=-1)
    found = []
    for label in range(len(CLASSES)):
        prompt = torch.tensor(start["p_G"], requires_grad=True)
        optimizer = torch.optim.Adam([prompt], lr=0.05)
        for _ in range(100):
            logits = task.logit_scale * features @ classes.encoder(task.n_ctx)(prompt).T
            loss = torch.nn.functional.cross_entropy(logits, torch.full((len(features),), label))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss.item() < 0.002:
                break
        found.append({"p_G": prompt.detach().numpy()})
    return start, found, federation


def read(metrics: dict) -> int:
    return round(metrics["global.local"] / 100 * sum(HELD.values()))


def test_without_a_bound_the_attack_reads_every_label(crafted):
    """What the protection is against: the counts to an image or two, more of which more
    public images would mend."""
    _, prompts, federation = crafted
    results = [
        next(iter(federation.evaluate(prompt, [0], lambda client: None))).metrics
        for prompt in prompts
    ]
    counts = [read(metrics) for metrics in results]
    assert all(abs(count - HELD[name]) <= 3 for count, name in zip(counts, CLASSES, strict=True))
    assert any(count % 8 for count in counts)
    assert Counter(federation.dataset.test.labels.tolist()) == Counter(
        {i: HELD[n] for i, n in enumerate(CLASSES)}
    )


def test_the_node_tells_no_counts(site, crafted, tmp_path):
    """Two prompts a round, each figure in steps of 8 of the 64 images."""
    start, prompts, _ = crafted
    node = Node(site, tmp_path)
    node.ask("evaluate", start, 0)
    answers = [node.ask("evaluate", prompt, 1) for prompt in prompts]
    assert answers[2] == "2 models of round 1 were scored already; this node scores no more"
    answers[2] = node.ask("evaluate", prompts[2], 2)
    counts = [read(dict(answer["metrics"])) for answer in answers]
    assert all(count % 8 == 0 for count in counts) and counts != [HELD[name] for name in CLASSES]
    again = node.ask("evaluate", prompts[0], 1)
    assert dict(again["metrics"]) == dict(answers[0]["metrics"])


def test_a_client_with_few_images_tells_none(site, crafted, tmp_path):
    start, _, _ = crafted
    node = Node({**site, "min-report": 65}, tmp_path)
    assert dict(node.ask("evaluate", start, 0)["metrics"]) == {"num-examples": 64}


def test_a_prompt_that_is_far_is_answered_with_nothing(site, crafted, tmp_path):
    """Neither with figures nor with an update, once the node knows its own updates; a crafted
    prompt need not be far, so this one is ten times as far. An ordinary next round passes."""
    start, prompts, _ = crafted
    node = Node(site, tmp_path)
    reply = node.ask("train", start, 1)
    update = reply["arrays"]["p_G"].numpy()
    loss = reply["metrics"]["loss"]
    assert loss == float(f"{loss:.1e}")
    far = {"p_G": start["p_G"] + 1000 * (prompts[0]["p_G"] - start["p_G"])}
    for kind, server_round in (("evaluate", 1), ("train", 2)):
        assert "this node answers to" in node.ask(kind, far, server_round)
    assert not isinstance(node.ask("evaluate", {"p_G": update}, 1), str)
