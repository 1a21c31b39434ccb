"""A secure sum whose server is killed, asks again, or says less noise than the configuration; keys
of rounds before a resume."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients.disclosure import Withheld
from clients.kept_sum import KeptInFiles
from clients.secure_sum import SumClient
from clients.sum_records import MASK, SHARE, mask_question, read_keys, share_question
from experiments.runner import resume
from fedpgp.errors import FedPGPError
from fedpgp.secure_sum import Inbox, Participant
from fedpgp.updates.base import RoundStart
from fedpgp.updates.client_privacy import ClientPrivacy, ClientPrivacySettings
from strategies.aggregator import Aggregator
from tests.helpers.small import small_config, small_federation
from tests.strategies import test_secure_sum
from tests.strategies.test_secure_sum import CLIENTS, ONE, SUM, Lying, deployed, replay, run

quick = test_secure_sum.quick
NOISED = ("privacy=client", "privacy.clip=0.1")


@pytest.fixture
def sums(monkeypatch):
    """The sums that servers get; the first one is lost with its server."""
    found = []
    aggregate = Aggregator.aggregate

    def killed(self, strategy, state, server_round, answered):
        found.append(answered.summed.tensors["p_G"])
        if len(found) == 1:
            raise KeyboardInterrupt
        return aggregate(self, strategy, state, server_round, answered)

    monkeypatch.setattr(Aggregator, "aggregate", killed)
    return found


def killed_and_resumed(run_dir: Path, sums: list, **lying) -> Lying:
    """A deployed round with noise whose server is killed with the sum, and asks again."""
    with pytest.raises(KeyboardInterrupt):
        deployed(run_dir, *ONE, *NOISED)
    assert len(sums) == 1
    nodes = Lying(run_dir.parent / f"{run_dir.name}_nodes", **lying)
    resume(run_dir, federation_of=small_federation, grid=nodes)
    return nodes


def test_a_round_that_is_asked_for_again_gives_the_same_sum(tmp_path, quick, sums):
    """With the same noise, which is drawn anew for no sum."""
    killed_and_resumed(tmp_path / "run", sums)
    assert len(sums) == 2 and np.array_equal(*sums)


def test_who_has_given_shares_gives_none_for_a_sum_of_others(tmp_path, quick, sums):
    """Their difference would be the update of the client that is missing. With all it goes on."""

    def without(step, client, server_round, reply):
        return None if (step, client) == (MASK, 4) else reply

    with pytest.raises(FedPGPError, match=r"0 of 5 .*has given its shares of this sum"):
        killed_and_resumed(tmp_path / "run", sums, lie=without)
    assert len(sums) == 1
    nodes = Lying(tmp_path / "run_nodes")
    resume(tmp_path / "run", federation_of=small_federation, grid=nodes)
    assert len(sums) == 2 and np.array_equal(*sums)


def test_who_was_not_in_a_sum_s_first_try_does_not_come_to_the_next(tmp_path, quick):
    """The two would differ by a client. Without it the sum is made again."""

    def first(step, client, server_round, reply):
        lost = (step == "train" and client == 5) or (step == MASK and client < 3)
        return None if lost else reply

    def without(step, client, server_round, reply):
        return None if (step, client) == ("train", 5) else reply

    with pytest.raises(FedPGPError, match="its sum is not unmasked"):
        deployed(tmp_path / "run", *ONE, *NOISED, lie=first)
    again = {"federation_of": small_federation}
    with pytest.raises(FedPGPError, match=r"client 5 was not in the first try .* leave it away"):
        resume(tmp_path / "run", grid=Lying(tmp_path / "run_nodes"), **again)
    nodes = Lying(tmp_path / "run_nodes", lie=without)
    assert resume(tmp_path / "run", grid=nodes, **again)["status"] == "finished"


def test_a_sum_s_next_try_has_no_other_clients(tmp_path):
    """Nor more, of which a node is told its neighbours alone."""
    overrides = (*NOISED, "clients=40")
    config = small_config(tmp_path, "runtime=flower", *ONE, *overrides)
    join = joined(tmp_path, *overrides)
    part = SumClient(KeptInFiles(tmp_path, flush=True), config, 1, deployed=True)

    def ask(peers, clients: int):
        """The first two steps of a sum; returns what the peers know."""
        mine, others = read_keys(join(1, clients=40)), {peer: Participant(peer) for peer in peers}
        keys = {peer: other.keys() for peer, other in others.items()}
        part.reply(SHARE, 0, share_question(keys, clients))
        return others, {**keys, 0: mine}

    others, keys = ask((1, 2, 3), 4)
    inbox = {}
    for peer, other in others.items():
        given = other.shares({p: k for p, k in keys.items() if p != peer}, 4, 0.667, 1)
        inbox[peer] = Inbox(given.sealed[0], given.of_seed[0], given.of_key[0])
    part.reply(MASK, 0, mask_question(inbox))
    for peers, clients, who in (((1, 2, 4), 4, "client 4"), ((1, 2, 3), 40, "a client")):
        with pytest.raises(Withheld, match=f"{who} was not in the first try"):
            ask(peers, clients)
    ask((1, 2), 3)


def joined(folder: Path, *overrides: str):
    """Asks client 0 to take part in a sum: called with a round, a number that is added to the
    global tensors, and facts beside those of a sum of all."""
    config = small_config(folder, "runtime=flower", *ONE, *overrides)
    federation = small_federation(json.dumps(config))
    shared = federation.models.initial_shared()

    def join(server_round: int, more: float = 0.0, **facts: float):
        part = SumClient(KeptInFiles(folder, flush=True), config, server_round, deployed=True)
        about = {"clients": CLIENTS, "largest": 0.1, "noise": 0.1, "clip": 0.1} | facts
        about = {f"secure_sum.{name}": value for name, value in about.items()}
        sent = {name: array + more for name, array in shared.items()}
        return part.joining(federation, about)(0, sent, sent, 3)

    return join


def test_noise_is_for_one_sum_of_a_round(tmp_path):
    join = joined(tmp_path, *NOISED, "rounds=3")
    first = join(2)
    assert join(2)["mask"] != first["mask"]  # asked again: the same sum, under other keys
    for server_round, more in ((2, 0.5), (1, 0.0)):
        with pytest.raises(Withheld, match="was for another sum, or for a round since"):
            join(server_round, more)
    join(3, 0.5)


def test_without_noise_a_run_may_go_back_a_round(tmp_path):
    join = joined(tmp_path, "rounds=3")
    for server_round, more in ((2, 0.0), (2, 0.5), (1, 0.0)):
        join(server_round, more, noise=0.0)
    with pytest.raises(Withheld, match="noise on the sum, and there is none"):
        join(3)  # by which a sum of one client would do


@pytest.mark.parametrize(
    ("server_round", "facts", "why"),
    [
        (1, {"noise": 0.099}, "noise of 0.99 times the clip .* asks for 1"),
        (1, {"clip": 0.2, "noise": 0.2}, "a clip of 0.2"),
        (4, {}, "round 4 of 3"),
        (1, {"clients": CLIENTS + 1}, "says that 7 clients take part"),
    ],
)
def test_a_sum_that_protects_less_is_refused(server_round, facts, why, tmp_path):
    with pytest.raises(Withheld, match=why):
        joined(tmp_path, *NOISED, "rounds=3")(server_round, **facts)


def placed(**settings) -> tuple[ClientPrivacy, dict, RoundStart]:
    """The step, what the server says, and the round as a client knows it."""
    step = ClientPrivacy(ClientPrivacySettings(clip=0.3, **settings))
    start = RoundStart(
        server_round=1, num_rounds=20, num_clients=50, participation=0.4, num_trainers=50,
        state={}, seed=0,
    )  # fmt: skip
    step.prepare(start)
    return step, step.sum_limits(start.state), replace(start, state={})


@pytest.mark.parametrize("settings", [{"epsilon": 8.0}, {"epsilon": 3.0, "adaptive_clip": True}])
def test_a_client_calibrates_the_noise_of_an_epsilon_by_itself(settings):
    step, limits, start = placed(**settings)
    step.check_sum(limits, start)
    step.check_sum(limits | {"noise": 2 * limits["noise"]}, start)
    with pytest.raises(FedPGPError, match="this run's privacy asks for"):
        step.check_sum(limits | {"noise": 0.999 * limits["noise"]}, start)
    with pytest.raises(FedPGPError, match="this run's privacy asks for"):  # noise for fewer rounds
        step.check_sum(limits, replace(start, num_rounds=21))
    if "count_unit" in limits:  # less noise on the count of unclipped updates
        with pytest.raises(FedPGPError, match="this run's privacy asks for"):
            step.check_sum(limits | {"count_unit": 1.01 * limits["count_unit"]}, start)


def test_a_sum_s_noise_follows_from_an_epsilon(tmp_path):
    summary = run(tmp_path / "run", *ONE, *NOISED, "privacy.epsilon=8")
    assert math.isclose(summary["privacy"]["epsilon"], 8, rel_tol=1e-3)


def test_keys_of_before_a_resume_are_not_forgotten(tmp_path, quick):
    kept: dict = {}

    def again(step, client, server_round, reply):
        return replay(step, client, server_round, reply, kept)

    deployed(tmp_path / "run", *SUM, "rounds=1", "method=promptfl", lie=again)
    nodes = Lying(tmp_path / "run_nodes", lie=again)
    with pytest.raises(FedPGPError, match="client 1 sent a key that client 1 sent in round 1"):
        resume(tmp_path / "run", {"rounds": 2}, federation_of=small_federation, grid=nodes)
