"""The gate for all that a node says: nothing passes that could end a run, fill its disk, or forge
its log.

Size comes first, before anything is copied or decoded; then names, types, lengths, depth and
ranges. Whatever is wrong is :class:`Unusable`, for the clients of that node alone, and says why in
a line. What nobody asked for is left where it
is: it is neither copied nor counted.
"""

import base64
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from clients.messages import BARE, count_bytes, full
from clients.node_config import LONGEST_NAME
from fedpgp.evaluation.figures import MODELS
from fedpgp.plain_text import one_line, printable

UPDATE_METRICS = ("num-examples", "loss", "steps", "epochs")
"""What every client says of its training."""

WANTED = {
    MessageType.TRAIN: ("arrays", "metrics"),
    MessageType.EVALUATE: ("metrics",),
    MessageType.QUERY: ("answer",),
}
"""Records of a reply, by the kind of message."""

MOST = 1e9
"""Largest count, loss, number of steps, of seconds or of megabytes that is believed."""

NAME = 128
"""Longest name of a process, bytes."""

METRICS = 10_000
"""Most metrics in a record."""

ROW_BYTES, SAMPLES_BYTES, ACCOUNT_BYTES, CLIENT_BYTES = 2**22, 2**23, 2**18, 32
"""Longest JSON of a row of the table, of a client's samples, of a node's account (and for
each of its clients)."""

BRACKETS = 4096
"""Most brackets in a JSON text, and so its depth."""

_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
_PNG = b"\x89PNG\r\n\x1a\n"


class Unusable(Exception):
    """Why a reply is left out; a line that is safe to print."""

    def __init__(self, reason: str):
        super().__init__(one_line(reason))


@dataclass(frozen=True)
class Opened:
    """A node's reply, taken apart.

    Attributes:
        contents: client -> its records, those that were asked for.
        rejected: client -> why it has none.
        account: what the node says of its work: ``seconds, process, rss_mb, clients, kept``,
            perhaps ``gpu_mb``, ``failures``.
        up: bytes of the contents.
    """

    contents: dict[int, RecordDict]
    rejected: dict[int, str]
    account: dict
    up: int


def contained(check: Callable[[], object]) -> object:
    """Run a check of what a node says; any exception is that node's.

    Raises:
        Unusable: the check raised it, or anything else.
    """
    try:
        return check()
    except Unusable:
        raise
    except Exception as error:
        raise Unusable(f"its answer cannot be read ({type(error).__name__}: {error})") from error


def open_reply(
    content: RecordDict, asked: Mapping[int, Message], *, failures: bool = True
) -> Opened:
    """Take a packed reply apart (:func:`clients.messages.pack_reply`).

    Args:
        content: the reply.
        asked: client -> the message it answers; a node speaks for these clients and for nobody
            else.
        failures: whether the node may tell of exceptions in the code of a method; a real
            node's say nothing of them.

    Raises:
        Unusable: the node's account, or the whole, cannot be read.
    """
    account = contained(lambda: _account(content, asked, failures))
    errors = content.get("errors")
    if not isinstance(errors, ConfigRecord):
        raise Unusable("its answer cannot be read (it has no errors record)")
    names = {str(client): client for client in asked}
    raw: dict[int, dict] = {}
    for name, record in content.items():
        client, _, rest = name.partition("/")
        if client in names and rest in WANTED.get(asked[names[client]].metadata.message_type, ()):
            raw.setdefault(names[client], {})[rest] = record
    contents: dict[int, RecordDict] = {}
    rejected: dict[int, str] = {}
    for name, client in names.items():
        if client not in raw:
            reason = errors.get(name, "its node did not answer for it")
            rejected[client] = one_line(reason) if isinstance(reason, str) else "unknown"
            continue
        try:
            contents[client] = contained(lambda client=client: _records(raw[client], asked[client]))
        except Unusable as reason:
            rejected[client] = str(reason)
    return Opened(contents, rejected, account, count_bytes(contents.values()))


def check_update(
    content: RecordDict, images: int, reference: Mapping[str, np.ndarray], epochs: float = math.inf
) -> None:
    """Checks the reply to a training message, and leaves in it what every reply has: Flower's
    strategies refuse all replies when one has more than another.

    Args:
        content: the reply; changed in place.
        images: how many training images the client has.
        reference: the global tensors: names, shapes and types of an update's.
        epochs: the most it can have trained.

    Raises:
        Unusable: a metric is missing, no number or out of range, the count is wrong, or the tensors
            are: others, of another shape or type, or not finite.
    """
    metrics = _metrics(content, *UPDATE_METRICS)
    count = metrics["num-examples"]
    if count != images:
        raise Unusable(f"says it trained on {count} images, but it has {images}")
    _check_range("loss", metrics["loss"], -MOST, MOST)
    _check_range("steps", metrics["steps"], 0, MOST)
    _check_range("epochs", metrics["epochs"], 0, epochs)
    arrays = content.get("arrays")
    if not isinstance(arrays, ArrayRecord) or set(arrays) != set(reference):
        raise Unusable(f"sent tensors {sorted(arrays or ())} instead of {sorted(reference)}")
    for name, wanted in reference.items():
        tensor = arrays[name].numpy()
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            got, expected = (f"{t.dtype}{list(t.shape)}" for t in (tensor, wanted))
            raise Unusable(f"tensor {name} is {got} instead of {expected}")
        if not np.isfinite(tensor).all():
            raise Unusable(f"tensor {name} of its update is NaN or Inf")
    # In the order of the global tensors: some strategies pair tensors by position.
    content["arrays"] = ArrayRecord({name: arrays[name] for name in reference})
    content["metrics"] = MetricRecord({name: metrics[name] for name in UPDATE_METRICS})
    for name in set(content) - {"arrays", "metrics"}:
        del content[name]


def check_figures(content: RecordDict, figures: Collection[str]) -> None:
    """Checks the reply to an evaluation message, and leaves in it the figures that were asked for.

    Args:
        content: the reply; changed in place.
        figures: names of what the client is scored on.

    Raises:
        Unusable: a metric is missing or no number, or a figure is no percentage.
    """
    metrics = _metrics(content, "num-examples")
    known = {f"{model}.{figure}" for model in MODELS for figure in figures}
    kept = {
        "num-examples": metrics["num-examples"],
        **{n: metrics[n] for n in metrics if n in known},
    }
    _check_range("num-examples", kept["num-examples"], 0, MOST)
    for name, value in kept.items():
        if name != "num-examples":
            _check_range(name, value, 0, 100 + 1e-6)
    content["metrics"] = MetricRecord(kept)


def read_handshake(content: RecordDict) -> dict:
    """A node's first answer (:meth:`clients.request.ClientRequest.handshake`): ``client`` and its
    ``name``, and ``row``, or ``rejection`` and ``transient``.

    Raises:
        Unusable: it cannot be read.
    """

    def read() -> dict:
        said = json_answer(content, ROW_BYTES)
        if not isinstance(said, dict):
            raise Unusable("sent a first answer that is none")
        client = said.get("client")
        if isinstance(client, bool) or not isinstance(client, int) or not 0 <= client <= MOST:
            raise Unusable(f"says it is client {_shown(client)}")
        name = said.get("name", "")
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            raise Unusable(f"says that client {client} is called {_shown(name)}")
        found = {"client": client, "name": one_line(name), "row": said.get("row")}
        if rejection := said.get("rejection"):
            found |= {
                "rejection": one_line(str(rejection)),
                "transient": bool(said.get("transient")),
            }
        return found

    return contained(read)


def read_row(
    value: object, client: int, table: Sequence[Mapping] | None = None, *, simulated: bool = False
) -> dict:
    """A client's row of the table.

    Args:
        value: what its node says.
        client: whose it is.
        table: the rows of clients whose images the server splits; None where their images are their
            own, and what they say of them is believed.
        simulated: the node is this run's own, and tells how many images of which class the client
            has.

    Raises:
        Unusable: it is none, or not what the server assigned.
    """
    if table is not None and value != table[client]:
        raise Unusable(f"client {client} does not have the images that it was assigned")
    if not isinstance(value, dict):
        raise Unusable(f"the row of client {client} is none")
    for name in ("train_images", "test_images"):
        count = value.get(name)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST:
            raise Unusable(f"client {client} says {name}={_shown(count)}")
    domain, trains = value.get("domain"), value.get("trains")
    if not isinstance(domain, str | None) or not isinstance(trains, bool):
        raise Unusable(f"the row of client {client} is none")
    counts = {"train_images": value["train_images"], "test_images": value["test_images"]}
    row = {
        "id": client,
        "domain": None if domain is None else one_line(domain),
        **counts,
        "trains": trains,
    }
    if table is not None:
        return {**table[client], **row}
    return {**value, **row} if simulated else row


def read_samples(value: object, client: int) -> list[dict]:
    """Images with a client's answers (:meth:`fedpgp.federation.Federation.samples`), the images in
    base64.

    Raises:
        Unusable: they are none.
    """
    if not isinstance(value, list):
        raise Unusable("sent no samples")
    rows = []
    for row in value:
        png = base64.b64decode(row["png"], validate=True)
        texts = {name: row[name] for name in ("label", "predicted")}
        domain = row["domain"]
        if not png.startswith(_PNG) or not all(isinstance(text, str) for text in texts.values()):
            raise Unusable("sent samples that are none")
        if not isinstance(domain, str | None) or not isinstance(row["correct"], bool):
            raise Unusable("sent samples that are none")
        _check_range("confidence", row["confidence"], 0, 1 + 1e-6)
        about = {"client": client, "domain": None if domain is None else one_line(domain)}
        said = {
            "correct": row["correct"],
            "confidence": float(row["confidence"]),
            "png": row["png"],
        }
        rows.append({**about, **{name: one_line(text) for name, text in texts.items()}, **said})
    return rows


def json_answer(content: RecordDict, most: int) -> object:
    """The JSON in an answer to a question.

    Args:
        content: the answer.
        most: bytes it may have.

    Raises:
        Unusable: there is none, it is too long or too deep, or has numbers that are none.
    """
    record = content.get("answer")
    if not isinstance(record, ConfigRecord) or "json" not in record:
        raise Unusable("sent no answer")
    return read_json(record["json"], most)


def read_json(text: object, most: int) -> object:
    """JSON that somebody else wrote.

    Raises:
        Unusable: it is too long, too deep, or no JSON; it has an infinite number.
    """
    if not isinstance(text, str):
        raise Unusable("sent no text where JSON belongs")
    if len(text) > most:
        raise Unusable(f"sent {len(text):,} bytes where {most:,} are the most")
    if text.count("[") + text.count("{") > max(BRACKETS, most // CLIENT_BYTES):
        raise Unusable("sent JSON that is too deep")

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise Unusable(f"sent a number that is {_shown(digits)}")
        return value

    return contained(lambda: json.loads(text, parse_float=number, parse_constant=number))


def _account(content: RecordDict, asked: Mapping[int, Message], failures: bool) -> dict:
    """What a node says of its work."""
    said = read_json(content["node"]["account"], ACCOUNT_BYTES + CLIENT_BYTES * len(asked))
    found: dict[str, object] = {}
    for name in ("seconds", "rss_mb", "gpu_mb"):
        if name in said or name != "gpu_mb":
            _check_range(name, said[name], 0, MOST)
            found[name] = float(said[name])
    _check_range("clients", said["clients"], 0, len(asked))
    kept = {int(client) for client in said["kept"]}
    found |= {"clients": int(said["clients"]), "kept": sorted(kept & set(asked))}
    found["process"] = one_line(str(said["process"]), NAME)
    if failures and said.get("failures"):
        found["failures"] = [
            {
                "clients": int(failure["clients"]),
                "reason": one_line(failure["reason"]),
                "traceback": printable(failure["traceback"]),
            }
            for failure in said["failures"]
        ]
    return found


def _records(records: Mapping[str, object], message: Message) -> RecordDict:
    """A client's records, tensors unpacked; each is of its kind, and not larger than what was
    sent."""
    sent = sum(len(a.data) for r in message.content.array_records.values() for a in r.values())
    kinds = {"arrays": ArrayRecord, "metrics": MetricRecord, "answer": ConfigRecord}
    found = RecordDict()
    for name, record in records.items():
        if not isinstance(record, kinds[name]):
            raise Unusable(f"sent {name} that are none")
        if isinstance(record, MetricRecord) and len(record) > METRICS:
            raise Unusable(f"sent {len(record):,} metrics")
        if isinstance(record, ArrayRecord):
            if (size := sum(len(array.data) for array in record.values())) > sent:
                raise Unusable(f"sent tensors of {size:,} bytes; it was sent {sent:,}")
            for tensor, array in record.items():
                _check_array(tensor, array)
        found[name] = full(record)
    return found


def _check_array(name: str, array: Array) -> None:
    shape = tuple(array.shape)
    if (
        array.stype != BARE
        or array.dtype not in _DTYPES
        or len(shape) > 16
        or min(shape, default=0) < 0
    ):
        raise Unusable(f"sent a tensor {_shown(name)} that is none")
    if math.prod(shape) * np.dtype(array.dtype).itemsize != len(array.data):
        raise Unusable(f"sent a tensor {_shown(name)} whose bytes are not those of its shape")


def _metrics(content: RecordDict, *names: str) -> MetricRecord:
    metrics = content.get("metrics")
    if not isinstance(metrics, MetricRecord) or not set(names) <= set(metrics):
        raise Unusable(f"did not send the metrics {', '.join(names)}")
    return metrics


def _check_range(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Unusable(
            f"metric {name} is {_shown(value)}; it is a number from {least:g} to {most:g}"
        )


def _shown(value: object) -> str:
    """A value for a message, however long it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "a number of more than 20 digits"
    return one_line(repr(value[:100] if isinstance(value, str) else value), 100)
