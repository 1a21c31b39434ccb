"""Secure sums from end to end: who is lost when, who lies how, what the server sees."""

from dataclasses import replace

import numpy as np
import pytest

from fedpgp.secure_sum import Participant, Refused, SumFailed, Tally, Unmasking, degree
from fedpgp.secure_sum.masks import Agreements, expanded, key_pair
from fedpgp.secure_sum.participant import MASK, add_mask
from tests.fedpgp.secure_sum.sums import STEPS, THRESHOLD, Sum, plain, vectors

SIX = vectors(6)
MANY = vectors(60, size=5)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_sum_of_all_is_the_plain_one(count):
    given = vectors(count)
    assert (Sum(given).run(least=1) == plain(given, given)).all()


@pytest.mark.parametrize("step", STEPS)
def test_a_client_may_go_in_any_step(step):
    """One that goes before its vector came is not in the sum; one that goes after it is."""
    left = Sum(SIX, {step: {2}}).run()
    assert (left == plain(SIX, set(SIX) - ({2} if step != "unmask" else set()))).all()


def test_clients_may_go_in_all_steps_of_one_sum_as_long_as_enough_are_left():
    many = vectors(12)
    lost = {"keys": {0}, "shares": {3}, "masked": {5}, "unmask": {7}}
    assert (Sum(many, lost).run() == plain(many, set(many) - {0, 3, 5})).all()


@pytest.mark.parametrize("step", STEPS[1:])
def test_below_the_threshold_there_is_no_sum(step):
    """Five of six are needed at two thirds: without two of them nothing is unmasked."""
    with pytest.raises((SumFailed, Refused), match="needed"):
        Sum(SIX, {step: {1, 4}}).run()


def test_among_many_clients_each_has_some_neighbours_and_the_sum_is_the_plain_one():
    assert degree(60, THRESHOLD) == 32
    lost = {"shares": {3}, "masked": {5, 40}, "unmask": {7, 11}}
    assert (Sum(MANY, lost).run() == plain(MANY, set(MANY) - {3, 5, 40})).all()


# What the server sees. ----------------------------------------------------------------------------


def bins(samples: np.ndarray) -> float:
    """Chi-square of the upper four bits of uint32 against uniform ones, 15 degrees of freedom; 80
    is exceeded once in 10**10."""
    counts = np.bincount(samples >> np.uint32(28), minlength=16)
    expected = len(samples) / 16
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.fixture(scope="module")
def runs() -> list[Sum]:
    """The same vectors, zeros, in many sums; client 0 is lost with its vector on its way."""
    found = []
    for _ in range(150):
        found.append(Sum({client: np.zeros(16, np.uint32) for client in range(4)}, {"masked": {0}}))
        found[-1].run()
    return found


def test_what_a_client_sends_is_uniform(runs):
    assert bins(np.zeros(2400, np.uint32)) > 1000  # without a mask
    for client in range(4):
        assert bins(np.concatenate([run.sent[client] for run in runs])) < 80
        assert bins(np.array([run.sent[client][0] for run in runs])) < 80


def test_a_survivor_s_vector_is_uniform_to_who_knows_the_seed_of_its_mask(runs):
    left = [run.sent[1] - expanded(run.clients[1].seed, 16) for run in runs]
    assert bins(np.concatenate(left)) < 80


def test_a_lost_client_s_vector_is_uniform_to_who_knows_all_its_masks_with_others(runs):
    left = []
    for run in runs:
        sent = run.sent[0].copy()
        for peer, key in run.clients[0].peers.items():
            add_mask(sent, agreed(run.clients[0], key), peer, 0)
        left.append(sent)
    assert bins(np.concatenate(left)) < 80
    assert (left[0] == expanded(runs[0].clients[0].seed, 16)).all()  # the seed's mask alone is left


def agreed(client: Participant, key: bytes) -> bytes:
    return Agreements().of(key_pair(client.mask_private), key, MASK)


# Who lies. ----------------------------------------------------------------------------------------


def lying(liar: int, lie):
    return lambda client, said: lie(said) if client == liar else said


def failure(**lies) -> SumFailed:
    with pytest.raises(SumFailed) as caught:
        Sum(SIX, lies=lies, lost={"masked": {5}}).run()
    return caught.value


def test_a_wrong_share_in_the_last_step_is_its_sender_s():
    seed = lambda said: Unmasking({**said.seeds, 1: bytes(33)}, said.keys)  # noqa: E731
    key = lambda said: Unmasking(said.seeds, {**said.keys, 5: bytes(33)})  # noqa: E731
    for lie, owner in ((seed, 1), (key, 5)):
        found = failure(unmask=lying(2, lie))
        assert found.liars == (2,) and f"client 2 gave a share of client {owner}" in str(found)


def test_shares_that_cannot_be_opened_are_named_by_who_got_them():
    spoil = lambda said: replace(said, sealed={**said.sealed, 4: bytes(82)})  # noqa: E731
    found = failure(shares=lying(1, spoil))
    assert found.liars == (1,) and "client 4 says that the shares of client 1" in str(found)


def test_shares_that_are_not_those_the_server_was_told_of_are_named():
    for name in ("of_seed", "of_key"):

        def other(said, name=name):
            return replace(said, **{name: {**getattr(said, name), 4: bytes(32)}})

        assert failure(shares=lying(1, other)).liars == (1,)


def test_the_same_key_twice_is_named():
    first = {}

    def replay(client, said):
        return first.setdefault("keys", said) if client in (1, 3) else said

    found = failure(keys=replay)
    assert found.liars == (1, 3) and "client 1 and 3" in str(found)


def test_keys_that_are_none_are_named():
    short = lambda said: replace(said, mask=b"short")  # noqa: E731
    assert failure(keys=lying(3, short)).liars == (3,)
    low_order = lambda said: replace(said, share=bytes(32))  # noqa: E731
    assert failure(keys=lying(3, low_order)).liars == (3,)


def test_a_client_that_shares_another_seed_than_it_uses_is_named(monkeypatch):
    """All its shares are those it told of; what they give back is not."""
    import fedpgp.secure_sum.participant as module

    honest = module.split

    def split(secret, holders, needed):
        return honest(bytes(32) if secret == liar.seed else secret, holders, needed)

    run = Sum(SIX)
    liar = run.clients[2]
    monkeypatch.setattr(module, "split", split)
    with pytest.raises(SumFailed, match="client 2 shared a seed that is none") as caught:
        run.run()
    assert caught.value.liars == (2,)


def test_a_client_that_shares_another_key_than_it_uses_is_named(monkeypatch):
    import fedpgp.secure_sum.participant as module

    honest = module.split

    def split(secret, holders, needed):
        return honest(bytes(32) if secret == liar.mask_private else secret, holders, needed)

    run = Sum(SIX, {"masked": {2}})
    liar = run.clients[2]
    monkeypatch.setattr(module, "split", split)
    with pytest.raises(SumFailed, match="client 2 shared a key that is not its own"):
        run.run()


# What a client refuses. ---------------------------------------------------------------------------


@pytest.fixture
def masked() -> tuple[Participant, list[int]]:
    """Client 0 of six, after the third step, and its holders."""
    run = Sum(SIX)
    run.run()
    client = run.clients[0]
    client.unmasked = None
    return client, sorted(client.held_seeds)


def test_a_client_never_gives_both_shares_of_one_client(masked):
    client, holders = masked
    with pytest.raises(Refused, match="both shares of client 3"):
        client.unmask(holders, [3], THRESHOLD)
    client.unmask(holders, [], THRESHOLD)
    without = [holder for holder in holders if holder != 3]
    with pytest.raises(Refused, match="other shares of this sum"):
        client.unmask(without, [3], THRESHOLD)
    assert client.unmask(holders, [], THRESHOLD).seeds  # the same question again
    client.spend()
    client = Participant.restored(client.saved())
    assert len(client.unmask(holders, [], THRESHOLD).seeds) == 6
    assert not client.seed and not client.mask_private and not client.held_keys


@pytest.mark.parametrize(
    ("survivors", "lost"),
    [([0, 1, 2], [3, 4, 5]), ([1, 2, 3, 4, 5], [0]), ([0, 1, 2, 3, 4], []), ([0, 9], [])],
)
def test_a_client_does_not_help_with_a_sum_of_few_nor_of_others(masked, survivors, lost):
    with pytest.raises(Refused):
        masked[0].unmask(survivors, lost, THRESHOLD)


def test_a_client_masks_one_vector_once():
    run = Sum(SIX)
    run.run()
    with pytest.raises(Refused, match="before"):
        run.clients[0].masked(SIX[0], {}, THRESHOLD)
    with pytest.raises(Refused, match="before"):
        run.clients[0].shares({}, 6, THRESHOLD, 3)


def test_a_client_takes_part_in_no_small_sum_and_with_all_its_peers_alone():
    client = Participant(0)
    others = {number: Participant(number).keys() for number in range(1, 6)}
    with pytest.raises(Refused, match="a sum of 2 clients"):
        client.shares({1: others[1]}, 2, THRESHOLD, 3)
    with pytest.raises(Refused, match="given 4 peers; 5 belong to a sum of 6"):
        client.shares({n: others[n] for n in range(1, 5)}, 6, THRESHOLD, 3)
    with pytest.raises(SumFailed, match="the same key"):
        client.shares({**others, 5: client.keys()}, 6, THRESHOLD, 3)


def test_answers_that_are_for_others_are_the_client_s_own_fault():
    """They are dropped, as answers that do not come."""
    clients = {number: Participant(number) for number in range(3)}
    tally = Tally({n: client.keys() for n, client in clients.items()}, THRESHOLD, 4)
    shares = {n: c.shares(tally.peers(n), 3, THRESHOLD, 3) for n, c in clients.items()}
    with pytest.raises(ValueError, match="not for its peers"):
        tally.take_shares(0, replace(shares[0], sealed={}))
    for number, said in shares.items():
        tally.take_shares(number, said)
    with pytest.raises(ValueError, match="float64"):
        tally.take_masked(0, np.zeros(4))
    with pytest.raises(ValueError, match="than it was asked for"):
        tally.take_unmasking(0, Unmasking({}, {}))
