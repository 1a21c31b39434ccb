"""A client's part in the secure sum of a round: what it keeps between the steps, each of which is a
message of its own, and what it answers.

It keeps its update, its keys and what it has answered (:mod:`clients.kept_sum`). The same question
again gets the same answer (it was lost on the way); another one gets none: so nobody gets both
shares of one client.

A server that lost a sum (too few stayed to its end, or it was killed) has to ask for the round once
more, or no run could go on. Then a deployed client adds the same integers, noise included, under
other masks, so that two sums of the same clients are the same sum. The difference of two sums of
others would be single updates: so one that has given its shares of a sum, by which it may be
unmasked already, gives them again for a sum of the very same survivors alone. With noise it takes
part in no sum of a round from other tensors, nor in one of an earlier round, nor in one with
clients that were not in the first that its vector was in.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from clients.disclosure import Withheld
from clients.kept_sum import NOTHING, Kept, KeptSums
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
from fedpgp.config import PrivacySection
from fedpgp.errors import FedPGPError
from fedpgp.prefixes import strip_prefix
from fedpgp.secure_sum import (
    Layout,
    Participant,
    Quantiser,
    Refused,
    SumFailed,
    fewest_survivors,
)
from fedpgp.secure_sum.masks import Agreements
from fedpgp.updates.configured import configured_steps
from fedpgp.updates.pipeline import SECURE_SUM, UpdatePipeline
from fedpgp.updates.sum_check import LEAST_CLIENTS

INSTEAD = "the run cannot go on from here: start another from its prompts (init_from=RUN)"
ONCE = f"it has given its shares of this sum, and gives no others: {INSTEAD}"


class SumClient:
    """The clients of one message, in the secure sum of a round.

    Args:
        sums: where they keep what they need.
        config: of the run.
        server_round: the round.
        deployed: whether they are real: then no sum of a round is given beside another. A
            simulation protects nobody from its owner.
    """

    def __init__(self, sums: KeptSums, config: Mapping, server_round: int, *, deployed: bool):
        self._sums, self._config, self._round = sums, config, server_round
        self._settings, self._deployed = PrivacySection.of(config["privacy"]), deployed
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
        clients = federation.num_clients, federation.federated_split.trainers
        pipeline = UpdatePipeline(self._config, federation.method, *clients)
        equal = federation.server.equal_weights or pipeline.equal_weights
        about = strip_prefix(f"{SECURE_SUM}.", facts)
        quantiser = Quantiser.of(about)

        def join(client: int, sent: Arrays, global_params: Arrays, images: int) -> ConfigRecord:
            try:
                pipeline.check_sum(about, self._round)
            except FedPGPError as weaker:  # it is of the configuration, and says nothing of images
                raise Withheld(str(weaker)) from weaker
            if quantiser.clients > federation.num_clients:
                raise Withheld(f"the server says that {quantiser.clients} clients take part")
            known, made_of = None, self._made_of(global_params, about)
            if self._deployed and (known := self._sums.load(client)) is not None:
                self._refuse_other_sums(known, made_of, noised=quantiser.noise > 0)
            if known is not None and known.made_of == made_of:
                vector, noise, given = known.vector, known.noise, known.given
            else:
                update = pipeline.in_sum(sent, global_params, about)
                shapes = pipeline.sum_shapes(global_params)
                layout = Layout(shapes, None if equal else self._settings.secure_sum_images)
                vector, noise = layout.encoded(update, images, quantiser), 0.0
                given = known.given if known is not None else {}
            kept = Kept(self._round, Participant(client), quantiser, vector, made_of, noise)
            kept.given = given
            if known is not None and known.made_of == made_of:
                kept.company = known.company
            self._sums.save(kept)
            return keys_reply(kept.participant.keys())

        return join

    def _made_of(self, global_params: Arrays, facts: Mapping[str, float]) -> str:
        """Digest of what a client's vector of the round is made of, but for its own images."""
        found = hashlib.sha256(repr((self._round, sorted(facts.items()))).encode())
        for name in sorted(global_params):
            found.update(name.encode() + np.ascontiguousarray(global_params[name]).tobytes())
        return found.hexdigest()

    def _refuse_other_sums(self, known: Kept, made_of: str, *, noised: bool) -> None:
        """Refuse a sum beside one that a real client took part in.

        Raises:
            Withheld: saying why.
        """
        if known.made_of == made_of:
            if made_of in known.given and not known.given[made_of]:
                raise Withheld(ONCE)
        elif made_of in known.given:
            raise Withheld(ONCE)
        elif noised and self._round <= known.server_round:
            raise Withheld(
                f"its noise of round {self._round} was for another sum, or for a round since; "
                f"{INSTEAD}"
            )

    def reply(self, step: str, client: int, question: Mapping) -> RecordDict:
        """Return a client's reply to one of :data:`clients.sum_records.SUM_STEPS`.

        Raises:
            Withheld: the client does not answer.
        """
        kept = self._load(client)
        work = {SHARE: self._shares, MASK: self._masked, UNMASK: self._unmask}[step]
        digest = _digest(question)
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
            self._sums.save(kept)
        return RecordDict({"answer": said})

    def _shares(self, kept: Kept, question: Mapping, again: bool) -> ConfigRecord:
        peers, clients = read_share_question(question)
        if not again:
            if clients > (room := kept.quantiser.clients):
                raise Refused(f"{clients} clients take part, and there is room for {room}")
            self._refuse_strangers(kept, peers, clients)
            least = 1 if kept.quantiser.noise > 0 else LEAST_CLIENTS
            about = (peers, clients, self._settings.secure_sum_threshold, least)
            given = kept.participant.shares(*about, self._agreements)
            kept.shares = dict(shares_reply(given))
        if not kept.shares:
            raise Refused("it was asked for its vector since")
        return ConfigRecord(kept.shares)

    def _refuse_strangers(self, kept: Kept, peers: Collection[int], clients: int) -> None:
        """Refuse a sum with clients that were not in the first that this vector was in.

        Raises:
            Refused: naming one.
        """
        if kept.company is None:
            return
        strangers = set(peers) - set(kept.company)
        if strangers or clients > len(kept.company) + 1:
            who = f"client {min(strangers)}" if strangers else "a client"
            raise Refused(
                f"{who} was not in the first try of this round's sum, and cannot come to it: leave "
                "it away until the round is done"
            )

    def _masked(self, kept: Kept, question: Mapping, again: bool) -> ConfigRecord:
        if again and UNMASK in kept.asked:
            raise Refused("it was asked for shares since")
        if not again:
            threshold, participant = self._settings.secure_sum_threshold, kept.participant
            inbox = read_mask_question(question)
            self._add_noise(kept)
            masked = participant.masked(kept.vector, inbox, threshold, self._agreements)
            kept.masked, kept.shares = masked.astype("<u4", copy=False).tobytes(), {}
            if not self._deployed:
                kept.vector = NOTHING
            noised = self._deployed and kept.noise > 0
            if noised and kept.company is None and _knows_all(participant):
                kept.company = sorted(participant.peers)
        return masked_reply(kept.masked)

    def _add_noise(self, kept: Kept) -> None:
        """Add the client's part of the noise on the sum to its vector. A vector that has noise of
        an earlier try gets what it lacks: with fewer clients each adds more."""
        quantiser, participant = kept.quantiser, kept.participant
        if quantiser.noise == 0:
            return
        fewest = fewest_survivors(participant.clients, self._settings.secure_sum_threshold)
        wanted = quantiser.deviation_of_one(fewest)
        if wanted <= kept.noise:
            return
        step = next(step for step in configured_steps(self._config) if step.combines)
        about = (self._config["seed"], participant.client, self._round)
        normal = step.noise_in_sum(len(kept.vector), *about)
        lacking = math.sqrt(wanted**2 - kept.noise**2)
        kept.vector = kept.vector + quantiser.noise_of_one(normal, lacking)
        kept.noise = wanted

    def _unmask(self, kept: Kept, question: Mapping, again: bool) -> ConfigRecord:
        survivors, lost = read_unmask_question(question)
        before, participant = kept.given.get(kept.made_of), kept.participant
        knows_all = _knows_all(participant)
        other = before is not None and not (knows_all and sorted(survivors) == before)
        if self._deployed and not again and other:
            raise Refused(ONCE)
        given = participant.unmask(survivors, lost, self._settings.secure_sum_threshold)
        if not again:
            participant.spend()
            kept.masked = b""
            if self._deployed:
                kept.given[kept.made_of] = sorted(survivors) if knows_all else []
        return unmask_reply(given)

    def _load(self, client: int) -> Kept:
        kept = self._sums.load(client)
        if kept is None:
            raise Withheld(f"client {client} takes part in no secure sum")
        if kept.server_round != self._round:
            raise Withheld(
                f"client {client} takes part in the secure sum of round {kept.server_round}, not "
                f"{self._round}"
            )
        return kept


def _digest(question: Mapping) -> str:
    """SHA-256 of what a client is asked in a step."""
    found = hashlib.sha256()
    for name, value in sorted(question.items()):
        data = value if isinstance(value, bytes) else repr(value).encode()
        found.update(f"{name} {type(value).__name__} {len(data)} ".encode())
        found.update(data)
    return found.hexdigest()


def _knows_all(participant: Participant) -> bool:
    """Whether all clients of a sum are a client's peers."""
    return len(participant.peers) + 1 == participant.clients
