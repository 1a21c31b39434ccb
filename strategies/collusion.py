"""Attackers that know the honest updates of a round: what they send takes the place of what they
trained, before the server looks at any update."""

from collections.abc import Callable, Mapping

from flwr.app import Array, ArrayRecord, Message

from fedpgp.arrays import Arrays
from fedpgp.attacks import Attackers


def collude(
    attackers: Attackers | None,
    good: Mapping[int, Message],
    global_params: Arrays,
    server_round: int,
    steps: Callable[[int, Arrays], Arrays],
) -> None:
    """Put the attackers' tensors into their replies.

    Only a simulation can do this: it has all updates of a round in one place before they count.

    Args:
        attackers: of the run; None without an attack.
        good: client -> its usable reply; those of attackers are changed in place.
        global_params: what the clients were sent.
        server_round: the round.
        steps: client and update -> what the client's update steps make of it.
    """
    if attackers is None or not attackers.attack.colludes:
        return
    updates = {
        client: {name: array.numpy() for name, array in reply.content["arrays"].items()}
        for client, reply in good.items()
    }
    for client, update in attackers.collude(updates, global_params, server_round).items():
        sent = steps(client, update)
        arrays = ArrayRecord({name: Array(tensor) for name, tensor in sent.items()})
        good[client].content["arrays"] = arrays
