"""What a client keeps between the steps of a secure sum."""

from clients.kept_sum import NOTHING, Kept, KeptInMemory
from fedpgp.secure_sum import Participant, Quantiser


def kept(server_round: int, client: int) -> Kept:
    return Kept(server_round, Participant(client), Quantiser(clients=2, largest=1.0), NOTHING)


def test_memory_holds_the_clients_of_one_round():
    """Or a simulation would grow with every client that was ever sampled."""
    sums = KeptInMemory()
    sums.save(kept(1, 0))
    sums.save(kept(1, 1))
    assert [sums.load(client).server_round for client in (0, 1)] == [1, 1]
    sums.save(kept(2, 1))
    assert sums.load(0) is None and sums.load(1).server_round == 2
