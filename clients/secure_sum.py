"""A client's part in the secure sum of a round: what it keeps between the steps, each of which is a
message of its own, and what it answers.

It keeps its update, its keys and what it has answered in a file of its own, which its owner alone
can read. The same question again gets the same answer (it was lost on the way); another one gets
none: so nobody gets two sums of one round, nor both shares of one client.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from clients.disclosure import Withheld
from clients.private_state import PrivateStore
from clients.sum_records import (
    MASK,
    SHARE,
    UNMASK,
    accusation,
    keys_reply,
    masked_reply,
    read_mask_question,
    read_share_question,
    read_unmask_question,
    shares_reply,
    unmask_reply,
)
from fedpgp.arrays import Arrays
from fedpgp.atomic_files import write_atomically
from fedpgp.config import PrivacySection
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.prefixes import strip_prefix
from fedpgp.secure_sum import (
    Layout,
    Participant,
    Quantiser,
    Refused,
    Shares,
    SumFailed,
    fewest_survivors,
)
from fedpgp.secure_sum.masks import Agreements
from fedpgp.updates.configured import configured_steps
from fedpgp.updates.pipeline import SECURE_SUM, UpdatePipeline
from fedpgp.updates.sum_check import LEAST_CLIENTS

FOLDER = "secure_sum"
"""Below the private states."""


class SumClient:
    """The clients of one message, in the secure sum of a round.

    Args:
        store: where they keep what they need.
        config: of the run.
        server_round: the round.
        flush: whether what is kept survives a power cut; a simulation does without.
    """

    def __init__(self, store: PrivateStore, config: Mapping, server_round: int, *, flush: bool):
        self._store, self._config, self._round = store, config, server_round
        self._settings, self._flush = PrivacySection.of(config["privacy"]), flush
        self._agreements = Agreements()

    def joining(
        self, federation, facts: Mapping[str, object]
    ) -> Callable[[int, Arrays, Arrays, int], ConfigRecord]:
        """Return what keeps a client's update and gives its keys, the first step: called with the
        client, its tensors as it would send them, those it was sent and its number of images.

        Args:
            federation: this process's :class:`fedpgp.federation.Federation`.
            facts: the message's configuration record
                (:meth:`fedpgp.updates.pipeline.UpdatePipeline.sum_facts`).
        """
        pipeline = UpdatePipeline(self._config, federation.method, federation.num_clients)
        equal = federation.server.equal_weights or pipeline.equal_weights
        about = strip_prefix(f"{SECURE_SUM}.", facts)
        quantiser = Quantiser.of(about)

        def join(client: int, sent: Arrays, global_params: Arrays, images: int) -> ConfigRecord:
            update = pipeline.in_sum(sent, global_params, about)
            shapes = pipeline.sum_shapes(global_params)
            layout = Layout(shapes, None if equal else self._settings.secure_sum_images)
            vector = layout.encoded(update, images, quantiser)
            kept = Kept(self._round, Participant(client), quantiser, vector)
            self._save(kept)
            return keys_reply(kept.participant.keys())

        return join

    def reply(self, step: str, client: int, question: Mapping) -> RecordDict:
        """Return a client's reply to one of :data:`clients.sum_records.SUM_STEPS`.

        Raises:
            Withheld: the client does not answer.
        """
        kept = self._load(client)
        work = {SHARE: self._shares, MASK: self._masked, UNMASK: self._unmask}[step]
        digest = hashlib.sha256(repr(sorted(question.items())).encode()).hexdigest()
        again = kept.asked.get(step) == digest
        try:
            if step in kept.asked and not again:
                raise Refused("it was asked something else in this step before")
            said = work(kept, question, again)
        except SumFailed as lie:
            return RecordDict({"answer": accusation(lie.liars)})
        except (Refused, ValueError, KeyError, TypeError) as reason:
            raise Withheld(f"secure sum: {reason}") from reason
        if not again:
            kept.asked[step] = digest
            self._save(kept)
        return RecordDict({"answer": said})

    def _shares(self, kept: "Kept", question: Mapping, again: bool) -> ConfigRecord:
        peers, clients = read_share_question(question)
        if not again:
            if clients > (room := kept.quantiser.clients):
                raise Refused(f"{clients} clients take part, and there is room for {room}")
            least = 1 if kept.quantiser.noise > 0 else LEAST_CLIENTS
            about = (peers, clients, self._settings.secure_sum_threshold, least)
            kept.shares = kept.participant.shares(*about, self._agreements)
        if kept.shares is None:
            raise Refused("it was asked for its vector since")
        return shares_reply(kept.shares)

    def _masked(self, kept: "Kept", question: Mapping, again: bool) -> ConfigRecord:
        if again and UNMASK in kept.asked:
            raise Refused("it was asked for shares since")
        if not again:
            threshold, participant = self._settings.secure_sum_threshold, kept.participant
            vector = kept.vector + self._noise(kept)
            about = (read_mask_question(question), threshold, self._agreements)
            kept.vector, kept.shares = participant.masked(vector, *about), None
        return masked_reply(kept.vector)  # under its masks

    def _noise(self, kept: "Kept") -> np.ndarray | np.uint32:
        """The client's part of the noise on the sum."""
        quantiser, participant = kept.quantiser, kept.participant
        if quantiser.noise == 0:
            return np.uint32(0)
        step = next(step for step in configured_steps(self._config) if step.combines)
        about = (self._config["seed"], participant.client, self._round)
        fewest = fewest_survivors(participant.clients, self._settings.secure_sum_threshold)
        return quantiser.noise_of_one(step.noise_in_sum(len(kept.vector), *about), fewest)

    def _unmask(self, kept: "Kept", question: Mapping, again: bool) -> ConfigRecord:
        about = (*read_unmask_question(question), self._settings.secure_sum_threshold)
        given = kept.participant.unmask(*about)
        if not again:
            kept.participant.spend()
            kept.vector = np.zeros(0, np.uint32)
        return unmask_reply(given)

    def _save(self, kept: "Kept") -> None:
        path = self._store.folder / FOLDER / f"client_{kept.participant.client:05d}.bin"
        write_atomically(path, *kept.parts(), flush=self._flush, private=True)

    def _load(self, client: int) -> "Kept":
        path = self._store.folder / FOLDER / f"client_{client:05d}.bin"
        try:
            kept = Kept.of(path.read_bytes())
        except FileNotFoundError:
            raise Withheld(f"client {client} takes part in no secure sum") from None
        except (OSError, *MALFORMED) as error:
            raise FedPGPError(f"{path} cannot be read ({error})") from error
        if kept.server_round != self._round:
            raise Withheld(
                f"client {client} takes part in the secure sum of round {kept.server_round}, not "
                f"{self._round}"
            )
        return kept


@dataclass
class Kept:
    """What a client keeps between the steps of a sum.

    Attributes:
        server_round: of the sum.
        participant: its keys and shares.
        quantiser: of the sum.
        vector: its update as integers; after the third step under masks, after the fourth none.
        asked: step -> digest of what it was asked.
        shares: its reply in the second step, until the third.
    """

    server_round: int
    participant: Participant
    quantiser: Quantiser
    vector: np.ndarray
    asked: dict[str, str] = field(default_factory=dict)
    shares: Shares | None = None

    def parts(self) -> tuple[bytes, ...]:
        """Return it as the parts of a file: the length of the first, JSON, the vector."""
        about = {
            "server_round": self.server_round,
            "participant": self.participant.saved(),
            "quantiser": asdict(self.quantiser),
            "asked": self.asked,
        }
        if self.shares is not None:
            digests = {h: [one.hex(), two.hex()] for h, (one, two) in self.shares.digests.items()}
            sealed = {peer: data.hex() for peer, data in self.shares.sealed.items()}
            seed = self.shares.seed.hex()
            about["shares"] = {"sealed": sealed, "digests": digests, "seed": seed}
        header = json.dumps(about).encode()
        return len(header).to_bytes(8), header, self.vector.astype("<u4").tobytes()

    @classmethod
    def of(cls, data: bytes) -> "Kept":
        """From the joined :meth:`parts`."""
        end = 8 + int.from_bytes(data[:8])
        about = json.loads(data[8:end])
        shares = about.get("shares")
        if shares is not None:
            sealed = {int(peer): bytes.fromhex(text) for peer, text in shares["sealed"].items()}
            digests = {
                int(holder): (bytes.fromhex(one), bytes.fromhex(two))
                for holder, (one, two) in shares["digests"].items()
            }
            shares = Shares(sealed, digests, bytes.fromhex(shares["seed"]))
        return cls(
            about["server_round"],
            Participant.restored(about["participant"]),
            Quantiser(**about["quantiser"]),
            np.frombuffer(data[end:], "<u4").astype(np.uint32),
            about["asked"],
            shares,
        )
