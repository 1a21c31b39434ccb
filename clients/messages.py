"""The wire format between server and nodes: many logical clients in one Flower message.

A Flower strategy writes one message for each logical client, with its own records ("arrays",
"config", …). Those for clients on the same node travel together in one ``RecordDict``:

* a record that is equal for all of them stands there once, under its own name;
* one that differs (:data:`CLIENT_ONLY`: what a method's server sends to one client alone) stands
  there for each client as ``"<client>/<name>"``;
* tensors travel as their bytes alone, without the header that Flower's own
  serialization puts before each;
* ``"job"`` says which clients, which round, what each has committed, and which configuration (its
  text is not sent again with every message:
  :meth:`clients.private_state.PrivateStore.configuration`).

A reply is packed alike, plus ``"errors"`` (client -> reason) and ``"node"`` (seconds, memory, who
did it, for which clients it keeps a private state); :mod:`strategies.reply_checks` takes it apart.
Private tensors have no place in either.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedpgp.evaluation.figures import UNCOUNTED

Record = ArrayRecord | ConfigRecord | MetricRecord

CLIENT_ONLY = "own"
"""The record of tensors that are sent to one client alone. (Names count as bytes: with another one
a run would report more than before.)"""

BARE = "bytes"
"""How Flower's ``Array`` calls tensors that travel as bytes, row by row, little-endian."""


@dataclass(frozen=True)
class Job:
    """What a node is told beside the strategy's records.

    Attributes:
        run: the run's id.
        attempt: the number of this attempt at the run (see :mod:`clients.private_state`).
        config: name of the configuration, which the node has been given.
        private: folder of the private states and the configuration; empty where the node has its
            own.
        server_round: the round, from 1; 0 before training.
        clients: logical clients of this message, ascending.
        committed: for each of them the round its update last entered the average, 0 for never.
        deadline: seconds after which the server no longer waits; 0 for never.
        threads: torch threads a worker may use; 0 leaves them alone.
        ask: what a query or an evaluation wants beside the usual ("clients",
            "samples", "zero_shot").
        debug: an exception ends the message (``runtime.debug``): clients are not tried one by one.
    """

    run: str
    attempt: int
    config: str
    private: str
    server_round: int
    clients: tuple[int, ...] = ()
    committed: tuple[int, ...] = ()
    deadline: float = 0.0
    threads: int = 0
    ask: str = ""
    debug: bool = False

    def record(self) -> ConfigRecord:
        """As a Flower record."""
        return ConfigRecord(
            {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        )

    @staticmethod
    def of(content: RecordDict) -> "Job":
        """Return the job in a packed message."""
        fields = dict(content["job"])
        return Job(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def pack(job: Job, contents: Mapping[int, RecordDict]) -> RecordDict:
    """Return the strategy's records for each client (client -> content) as one content."""
    packed = RecordDict({"job": job.record()})
    clients = sorted(contents)
    for name in contents[clients[0]]:
        records = [contents[client].get(name) for client in clients]
        if all(record is records[0] or record == records[0] for record in records):
            packed[name] = _lean(records[0])
        else:
            for client, record in zip(clients, records, strict=True):
                if record is not None:
                    packed[f"{client}/{name}"] = _lean(record)
    return packed


def unpack(content: RecordDict, clients: Sequence[int]) -> dict[int, dict[str, Record]]:
    """Return the inverse of :func:`pack`: client -> its records by name."""
    common = {
        name: full(record) for name, record in content.items() if "/" not in name and name != "job"
    }
    records: dict[int, dict[str, Record]] = {client: dict(common) for client in clients}
    for name, record in content.items():
        client, slash, rest = name.partition("/")
        if slash and client.isdigit() and int(client) in records:
            records[int(client)][rest] = full(record)
    return records


def pack_reply(
    contents: Mapping[int, RecordDict], errors: Mapping[int, str], node: Mapping[str, object]
) -> RecordDict:
    """Return a node's replies (client -> content), its clients' failures (client -> reason) and its
    own account."""
    packed = RecordDict(
        {"errors": ConfigRecord({str(c): reason or "unknown" for c, reason in errors.items()})}
    )
    packed["node"] = ConfigRecord({"account": json.dumps(node)})
    for client, content in contents.items():
        for name, record in content.items():
            packed[f"{client}/{name}"] = _lean(record)
    return packed


def count_bytes(contents: Iterable[RecordDict]) -> int:
    """Return the bytes of the records in these contents: tensors, numbers, texts and their
    names, without :data:`fedpgp.evaluation.figures.UNCOUNTED`."""
    return sum(
        len(name) + _record_bytes(record)
        for content in contents
        for name, record in content.items()
    )


def _lean(record: Record) -> Record:
    """Tensors as bare bytes."""
    if not isinstance(record, ArrayRecord):
        return record
    return ArrayRecord(
        {name: Array(a.dtype, a.shape, BARE, a.numpy().tobytes()) for name, a in record.items()}
    )


def full(record: Record) -> Record:
    """Return a record as it was before it was packed: tensors with Flower's header."""
    if not isinstance(record, ArrayRecord):
        return record
    return ArrayRecord(
        {
            name: Array(np.frombuffer(a.data, a.dtype).reshape(tuple(a.shape)).copy())
            for name, a in record.items()
        }
    )


def _record_bytes(record: Record) -> int:
    if isinstance(record, ArrayRecord):
        return sum(len(name) + _array_bytes(array) for name, array in record.items())
    if isinstance(record, MetricRecord):
        counted = {n: v for n, v in record.items() if n.partition(".")[2] not in UNCOUNTED}
        return MetricRecord(counted).count_bytes()
    total = 0
    for key, value in record.items():  # Flower's own count refuses empty texts and lists
        values = value if isinstance(value, list) else [value]
        # The entries of a list are of one type.
        texts = bool(values) and isinstance(values[0], (str, bytes))
        total += len(key) + (sum(map(len, values)) if texts else 8 * len(values))
    return total


def _array_bytes(array: Array) -> int:
    """Return the bytes of a tensor, without a header and never more than there are."""
    if array.stype == BARE:
        return len(array.data)
    return min(len(array.data), math.prod(array.shape) * np.dtype(array.dtype).itemsize)
