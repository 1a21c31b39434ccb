"""``privacy.secure_sum`` from end to end: the plain run's numbers, who is lost and who lies in
which step, what goes with it, what a node refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message

from clients.client_app import client_app
from clients.disclosure import Withheld
from clients.kept_sum import FOLDER, KeptInFiles, KeptInMemory, kept_in_memory
from clients.messages import Job
from clients.secure_sum import SumClient
from clients.sum_records import MASK, SHARE, SUM_STEPS, UNMASK, unmask_question
from experiments.runner import resume, start
from experiments.settings import choices
from fedpgp.errors import FedPGPError
from fedpgp.secure_sum import fewest_survivors
from fedpgp.seeding import generator
from fedpgp.updates.client_privacy import LINEAR
from strategies import node_registry
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.nodes import Nodes
from tests.helpers.small import small_config, small_federation

CLIENTS = 6
SUM = ("privacy.secure_sum=true", "participation=1", "evaluate_every=0")
ONE = (*SUM, "rounds=1", "method=promptfl")
PRIVATE = ("privacy=client", "privacy.clip=0.1", "privacy.seeded_noise=true")


def run(folder: Path, *overrides: str, **faults) -> dict:
    config = small_config(folder, *overrides, **faults)
    return start(config, federation_of=small_federation)


def shared(folder: Path) -> dict[str, np.ndarray]:
    tensors, _ = read_checkpoint(checkpoints(folder / "checkpoint")[-1])
    return {name: tensor for name, tensor in tensors.items() if name.startswith("shared/")}


def trained(folder: Path) -> list[dict]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def differ(one: Path, other: Path) -> float:
    """The largest difference of two runs' global tensors."""
    ours, theirs = shared(one), shared(other)
    assert set(ours) == set(theirs) and ours
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def error() -> float:
    """The stated one of a mean by images, 3 to 6 a client, at the defaults: half a step a client,
    over the sum of weights."""
    step = CLIENTS * 2.0 / (2**31 - 10_000)
    images = sum(3 + client % 4 for client in range(CLIENTS))
    return CLIENTS * step / 2 / (images / 1000)


@pytest.fixture
def losing(monkeypatch):
    """Makes clients fail in one step of the sum."""

    def lose(step: str, *clients: int) -> None:
        honest = SumClient.reply

        def reply(part, asked, client, question):
            if asked == step and client in clients:
                raise FedPGPError(f"client {client} fell over")
            return honest(part, asked, client, question)

        monkeypatch.setattr(SumClient, "reply", reply)

    return lose


# The plain run's numbers. -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["promptfl", "fedpgp"])
def test_the_plain_run_s_numbers_within_the_stated_error(method, tmp_path):
    overrides = ("rounds=1", "participation=1", "evaluate_every=0", f"method={method}")
    run(tmp_path / "plain", *overrides)
    run(tmp_path / "sum", *overrides, "privacy.secure_sum=true")
    assert 0 < differ(tmp_path / "sum", tmp_path / "plain") < error()
    (line,) = trained(tmp_path / "sum")
    assert line["clients"] == CLIENTS and line["dropped"] == []


def test_clients_whose_images_are_protected_are_added_up_too(tmp_path):
    overrides = ("rounds=1", "participation=1", "evaluate_every=0", "method=promptfl")
    overrides += ("privacy=image", "privacy.seeded_noise=true")
    run(tmp_path / "plain", *overrides)
    assert run(tmp_path / "sum", *overrides, "privacy.secure_sum=true")["privacy"]["rounds"] == 1
    assert 0 < differ(tmp_path / "sum", tmp_path / "plain") < error()


def test_equal_weights_and_a_server_with_momentum(tmp_path):
    overrides = ("participation=1", "evaluate_every=0", "method=promptfl", "strategy=fedadam")
    overrides += ("method.weighting=equal", "rounds=2")
    run(tmp_path / "plain", *overrides)
    run(tmp_path / "sum", *overrides, "privacy.secure_sum=true")
    assert differ(tmp_path / "sum", tmp_path / "plain") < 1e-4


def test_clients_add_the_noise_of_privacy_client_in_parts(tmp_path, losing):
    """Recomputed: each adds its part of the seed's noise, so large that as few as have to stay add
    up to the accounted; one is lost, and its part with it."""
    overrides = (*ONE, *PRIVATE)
    run(tmp_path / "plain", *overrides, "privacy.secure_sum=false", "privacy.noise=0")
    losing(UNMASK, 4)  # its vector is in the sum
    summary = run(tmp_path / "sum", *overrides, "privacy.noise=1.5")
    part = 1.5 * 0.1 / np.sqrt(fewest_survivors(CLIENTS, 0.667))
    (plain,), (noised,) = shared(tmp_path / "plain").values(), shared(tmp_path / "sum").values()
    normal = sum(
        generator(0, "privacy noise", 1, client).normal(size=plain.size)
        for client in range(CLIENTS)
    )
    expected = plain + (part * normal / CLIENTS).reshape(plain.shape)
    step = (CLIENTS * 0.1 + 24 * 0.15) / (2**31 - 10_000)
    assert np.abs(noised - expected).max() < 2 * step
    assert summary["privacy"]["noise_multiplier"] == 1.5 and summary["privacy"]["rounds"] == 1


def test_the_count_of_adaptive_clipping_is_part_of_the_sum(tmp_path):
    """With next to no noise the clipping norm moves as it does where the server sees each bit."""
    overrides = (*SUM, *PRIVATE, "rounds=3", "method=promptfl", "privacy.adaptive_clip=true")
    overrides += ("privacy.noise=0.001", "privacy.count_noise=0.01")
    run(tmp_path / "plain", *overrides, "privacy.secure_sum=false")
    run(tmp_path / "sum", *overrides)
    plain, summed = (
        [line["updates"]["client"]["clip"] for line in trained(tmp_path / name)]
        for name in ("plain", "sum")
    )
    assert len(set(plain)) == 3 and summed == pytest.approx(plain, rel=1e-3)


def test_rounds_of_privacy_client_with_few_clients_or_none(tmp_path):
    overrides = (*SUM, *PRIVATE, "method=promptfl", "rounds=8", "participation=0.2")
    assert run(tmp_path / "run", *overrides)["privacy"]["rounds"] == 8
    assert {0, 1} <= {line["clients"] for line in trained(tmp_path / "run")}


# Who is lost. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["train", *SUM_STEPS])
def test_a_client_may_go_in_any_step(step, tmp_path, losing):
    losing(step, 2)
    faults = {"raise": [2]}
    run(tmp_path / "sum", *ONE, faults=faults if step == "train" else None)
    overrides = [each for each in ONE if "secure_sum" not in each]
    run(tmp_path / "plain", *overrides, faults=None if step == UNMASK else faults)
    assert differ(tmp_path / "sum", tmp_path / "plain") < 2 * error()
    (line,) = trained(tmp_path / "sum")
    assert [entry["client"] for entry in line["dropped"]] == ([] if step == UNMASK else [2])


@pytest.mark.parametrize("step", SUM_STEPS)
def test_below_the_threshold_the_round_does_not_count_and_the_run_goes_on(
    step, tmp_path, losing, monkeypatch
):
    overrides = (*SUM, "rounds=2", "method=promptfl")
    run(tmp_path / "whole", *overrides)
    run(tmp_path / "run", *overrides, "rounds=1")
    losing(step, 1, 4)
    with pytest.raises(FedPGPError, match=r"round 2: .* 5 are needed.*secure_sum_threshold"):
        resume(tmp_path / "run", {"rounds": 2}, federation_of=small_federation)
    monkeypatch.undo()
    assert len(trained(tmp_path / "run")) == 1
    resume(tmp_path / "run", {"rounds": 2}, federation_of=small_federation)
    assert differ(tmp_path / "run", tmp_path / "whole") < 1e-4


def test_an_update_that_there_is_no_room_for_is_left_out(tmp_path):
    with pytest.raises(FedPGPError, match="privacy.secure_sum_range"):
        run(tmp_path / "run", *ONE, "privacy.secure_sum_range=1e-6")


# What does not go with it. ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        *(([f"strategy={s}"], f"strategy={s}") for s in choices()["strategy"] if s not in LINEAR),
        *(
            ([f"method={m}"], f"method={m}")
            for m in ("scaffold", "fedamp", "pfedmoap", "pfedhn", "hyperfield", "coop")
        ),
        *(([f"attack={a}"], f"attack={a}") for a in ("alie", "ipm", "min_max")),
        (["privacy=client", "privacy.noise=0"], "privacy.noise=0"),
        (["privacy=client", "privacy.epsilon=inf"], "privacy.epsilon=inf"),
        (["participation=0.3"], "2 clients a round"),
        (["privacy.secure_sum_images=1000000", "clients=5000"], "privacy.secure_sum_images="),
        (
            [
                "strategy.wrap=[{name: server_side_fixed_clipping, noise_multiplier: 1, "
                "clipping_norm: 1}]"
            ],
            "strategy.wrap",
        ),
    ],
)
def test_what_has_to_see_single_updates_is_refused(overrides, why, tmp_path):
    with pytest.raises(FedPGPError, match=rf"secure_sum=true does not go with {why}"):
        run(tmp_path / "run", *ONE, *overrides)


@pytest.mark.parametrize("threshold", ["0.4", "1"])
def test_a_threshold_is_half_or_more(threshold, tmp_path):
    with pytest.raises(FedPGPError, match="privacy.secure_sum_threshold"):
        run(tmp_path / "run", *ONE, f"privacy.secure_sum_threshold={threshold}")


# Nodes. -------------------------------------------------------------------------------------------


class Lying(Nodes):
    """Nodes of a deployment. ``lie``: (step, client, round, reply) -> what is sent instead; None:
    nothing is."""

    def __init__(self, folder: Path, lie=lambda step, client, server_round, reply: reply):
        configs = [
            {"client-id": c, "state-dir": str(folder / f"client_{c}")} for c in range(CLIENTS)
        ]
        super().__init__(client_app(small_federation), configs)
        self.lie = lie

    def pull_messages(self, message_ids):
        asked = {id: self.waiting[id] for id in message_ids if id in self.waiting}
        found = []
        for reply in super().pull_messages(message_ids):
            message = asked[reply.metadata.reply_to_message_id]
            job = Job.of(message.content)
            if job.clients and not reply.has_error():
                step = "train" if message.metadata.message_type == "train" else job.ask
                reply = self.lie(step, job.clients[0], job.server_round, reply) or Message(
                    Error(2, "the node died"), reply_to=message
                )
            found.append(reply)
        return found


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)


def deployed(run_dir: Path, *overrides: str, **lying) -> Lying:
    nodes = Lying(run_dir.parent / f"{run_dir.name}_nodes", **lying)
    config = small_config(run_dir, "runtime=flower", *overrides)
    start(config, federation_of=small_federation, grid=nodes)
    return nodes


def put(reply: Message, client: int, **values) -> Message:
    record = {**reply.content[f"{client}/answer"], **values}
    reply.content.pop(f"{client}/answer")
    reply.content[f"{client}/answer"] = ConfigRecord(record)
    return reply


def test_a_deployment_gives_the_simulation_s_numbers_and_a_lost_reply_is_asked_for_again(
    tmp_path, quick
):
    """The same question gets the same reply, so the sum is the same; no message holds an update."""
    lost = []

    def lose(step, client, server_round, reply):
        if (client, step) in {(1, SHARE), (2, MASK), (3, UNMASK)} - {*lost}:
            lost.append((client, step))
            return None
        return reply

    nodes = deployed(tmp_path / "a", *ONE, lie=lose)
    run(tmp_path / "b", *ONE)
    assert len(lost) == 3 and trained(tmp_path / "a")[0]["dropped"] == []
    assert differ(tmp_path / "a", tmp_path / "b") < 1e-12
    run(tmp_path / "plain", *[each for each in ONE if "secure_sum" not in each])
    assert differ(tmp_path / "a", tmp_path / "plain") < error()
    assert nodes.sent


def replay(step, client, server_round, reply, kept={}):  # noqa: B006
    """Client 1 sends its keys of the first round in every one."""
    if step == "train" and client == 1:
        first = kept.setdefault("keys", dict(reply.content["1/answer"]))
        return put(reply, 1, **first)
    return reply


def wrong_share(step, client, server_round, reply):
    if step == UNMASK and client == 1:
        seeds = reply.content["1/answer"]["seeds"]
        return put(reply, 1, seeds=bytes(33) + seeds[33:])
    return reply


def unreadable_share(step, client, server_round, reply):
    if step == SHARE and client == 1:
        sealed = reply.content["1/answer"]["sealed"]
        return put(reply, 1, sealed=bytes(82) + sealed[82:])
    return reply


@pytest.mark.parametrize(
    ("lie", "done", "said"),
    [
        (replay, 1, "round 2: client 1 sent a key that client 1 sent in round 1"),
        (wrong_share, 0, "round 1: client 1 gave a share of client 0 that is wrong"),
        (unreadable_share, 0, "round 1: client 0 says that client 1 sent it shares that are none"),
    ],
)
def test_a_lying_client_is_named_and_its_round_does_not_count(lie, done, said, tmp_path, quick):
    with pytest.raises(FedPGPError, match=f"{said}.*; its sum is not unmasked"):
        deployed(tmp_path / "run", *SUM, "rounds=2", "method=promptfl", lie=lie)
    _, info = read_checkpoint(checkpoints(tmp_path / "run" / "checkpoint")[-1])
    assert info["round"] == done


def test_an_answer_that_is_none_is_left_out_by_name(tmp_path, quick):
    def nonsense(step, client, server_round, reply):
        return put(reply, 1, masked=b"short") if step == MASK and client == 1 else reply

    deployed(tmp_path / "run", *ONE, lie=nonsense)
    (entry,) = trained(tmp_path / "run")[0]["dropped"]
    assert entry["client"] == 1 and "masked is not of" in entry["reason"]


@pytest.mark.parametrize("where", ["memory", "files"])
def test_a_client_gives_no_other_shares_than_those_of_its_first_sum(where, tmp_path):
    """It is asked, after a round, for both shares of client 3, and for a sum without it."""
    run(tmp_path / "run", *ONE)
    config = small_config(tmp_path / "run", *ONE)
    folder = tmp_path / "run" / "private"
    record = json.loads((folder / "attempt.json").read_text())
    sums = kept_in_memory(folder, record["run"], record["attempt"])
    assert not (folder / FOLDER).exists() and not len(sums.load(0).vector)
    if where == "files":
        kept, sums = sums.load(0), KeptInFiles(folder, flush=False)
        sums.save(kept)
        (file,) = (folder / FOLDER).iterdir()
        assert file.stat().st_mode & 0o077 == 0 and file.stat().st_size < 4000  # no vector any more
    part = SumClient(sums, config, 1, deployed=False)
    everybody = list(range(CLIENTS))
    assert part.reply(UNMASK, 0, dict(unmask_question(everybody, [])))["answer"]["seeds"]
    for survivors, lost in ((everybody, [3]), ([c for c in everybody if c != 3], [3])):
        with pytest.raises(Withheld, match="secure sum"):
            part.reply(UNMASK, 0, dict(unmask_question(survivors, lost)))
    with pytest.raises(Withheld, match="asked something else"):
        part.reply(MASK, 0, {})
    other = SumClient(sums, config, 2, deployed=False)
    with pytest.raises(Withheld, match="round 1, not 2"):
        other.reply(UNMASK, 0, {})
    with pytest.raises(Withheld, match="takes part in no secure sum"):
        SumClient(KeptInMemory(), config, 1, deployed=False).reply(UNMASK, 0, {})
