"""Sums of clients' vectors of which the server learns the sum alone: Bonawitz et al., CCS 2017
(doi 10.1145/3133956.3133982); among many clients with the neighbours of Bell et al., CCS 2020 (doi
10.1145/3372297.3417885).

Nothing here knows of messages or files: :class:`Participant` is what one client does,
:class:`Tally` what the server does. Four steps, each a question to the clients that answered the
one before:

1. *keys*: every client makes two X25519 key pairs and sends the public ones;
2. *shares*: it splits its mask's private key and a seed of its own by Shamir's scheme among its
   peers, encrypted for each of them;
3. *masked*: it sends its vector plus the mask of its seed, plus a mask for each peer, which that
   peer subtracts;
4. *unmask*: it gives its shares of the seeds of those whose vector came, and of the keys of those
   whose vector did not; never both of one client.

What it protects from: a server that follows the protocol and looks at all it receives, also
together with fewer than the threshold of a client's peers. A server that sends keys of its own in
the place of others' is not found: nobody vouches for keys here (docs/privacy.md).
"""

from fedpgp.secure_sum.graph import Graph, degree, fewest_survivors
from fedpgp.secure_sum.layout import Layout
from fedpgp.secure_sum.participant import Participant, Refused
from fedpgp.secure_sum.quantise import Quantiser
from fedpgp.secure_sum.steps import Inbox, Keys, Shares, SumFailed, Unmasking
from fedpgp.secure_sum.tally import Tally

__all__ = [
    "Graph",
    "Inbox",
    "Keys",
    "Layout",
    "Participant",
    "Quantiser",
    "Refused",
    "Shares",
    "SumFailed",
    "Tally",
    "Unmasking",
    "degree",
    "fewest_survivors",
]
