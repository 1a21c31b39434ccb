"""Checks of every reply: none passes that could end a run, fill its disk, or forge its log.

Size comes first, before anything is copied or decoded; then names, types, lengths, depth and
ranges. Whatever is wrong is :class:`InvalidReply`, for the clients of that node alone, and says why
in a line. What nobody asked for is left where it is: it is neither copied nor counted.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

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
from fedpgp.evaluation.figures import MODELS
from fedpgp.plain_text import one_line, printable
from strategies.invalid_reply import MOST, InvalidReply, check_range, checked, shown
from strategies.json_replies import CLIENT_BYTES, read_json

UPDATE_METRICS = ("num-examples", "steps", "epochs")
"""What every client says of its training; the loss too, where it has enough images."""

WANTED = {
    MessageType.TRAIN: ("arrays", "metrics", "answer"),
    MessageType.EVALUATE: ("metrics",),
    MessageType.QUERY: ("answer",),
}
"""Records of a reply, by the kind of message."""

NAME = 128
"""Longest name of a process, bytes."""

METRICS = 10_000
"""Most metrics in a record."""

ACCOUNT_BYTES = 2**18
"""Longest JSON of a node's account, beside :data:`CLIENT_BYTES` for each of its clients."""

EXTRA_BYTES = 2**12
"""Most bytes of the tensors that update steps send beside the shared ones."""

_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


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
        InvalidReply: the node's account, or the whole, cannot be read.
    """
    account = checked(lambda: _account(content, asked, failures))
    errors = content.get("errors")
    if not isinstance(errors, ConfigRecord):
        raise InvalidReply("its reply cannot be read (it has no errors record)")
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
            contents[client] = checked(lambda client=client: _records(raw[client], asked[client]))
        except InvalidReply as reason:
            rejected[client] = str(reason)
    return Opened(contents, rejected, account, count_bytes(contents.values()))


def check_update(
    content: RecordDict,
    images: int | None,
    reference: Mapping[str, np.ndarray],
    epochs: float = math.inf,
    step_metrics: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    *,
    told: bool = True,
) -> None:
    """Check the reply to a training message, and leave in it what every reply has: Flower's
    strategies refuse all replies when one has more than another.

    Args:
        content: the reply; changed in place.
        images: how many images the client trains on in this round; None where it alone knows, as
            its folder grows (:attr:`fedpgp.protocols.EvalProtocol.images_arrive`).
        reference: the global tensors: names, shapes and types of an update's.
        epochs: the most it can have trained.
        step_metrics: numbers of update steps -> the least and the greatest of each.
        told: whether clients tell more than their updates; else each counts as one image.

    Raises:
        InvalidReply: a metric is missing, no number or out of range, the count is wrong, or the
            tensors are: others, of another shape or type, or not finite.
    """
    wanted_metrics = (*(UPDATE_METRICS if told else ()), *step_metrics)
    metrics = _metrics(content, *wanted_metrics)
    if told:
        _check_told(metrics, images, epochs)
    for name, limits in step_metrics.items():
        check_range(name, metrics[name], *limits)
    arrays = content.get("arrays")
    if not isinstance(arrays, ArrayRecord) or set(arrays) != set(reference):
        raise InvalidReply(f"sent tensors {sorted(arrays or ())} instead of {sorted(reference)}")
    for name, wanted in reference.items():
        tensor = arrays[name].numpy()
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            got, expected = (f"{t.dtype}{list(t.shape)}" for t in (tensor, wanted))
            raise InvalidReply(f"tensor {name} is {got} instead of {expected}")
        if not np.isfinite(tensor).all():
            raise InvalidReply(f"tensor {name} of its update is NaN or Inf")
    # In the order of the global tensors: some strategies pair tensors by position.
    content["arrays"] = ArrayRecord({name: arrays[name] for name in reference})
    untold = {} if told else {"num-examples": 1, "epochs": 0.0}
    if told:  # a client with few images tells no loss
        untold["loss"] = metrics.get("loss", math.nan)
    content["metrics"] = MetricRecord(untold | {name: metrics[name] for name in wanted_metrics})
    for name in set(content) - {"arrays", "metrics"}:
        del content[name]


def _check_told(metrics: MetricRecord, images: int | None, epochs: float) -> None:
    """Check what a client says of its training beside the update."""
    count = metrics["num-examples"]
    if images is None:
        check_range("num-examples", count, 1, MOST)
        if count != int(count):
            raise InvalidReply(f"says it trained on {shown(count)} images")
    elif count != images:
        raise InvalidReply(f"says it trained on {count} images, but it has {images}")
    if "loss" in metrics:
        check_range("loss", metrics["loss"], -MOST, MOST)
    check_range("steps", metrics["steps"], 0, MOST)
    check_range("epochs", metrics["epochs"], 0, epochs)


def check_figures(content: RecordDict, figures: Collection[str], *, told: bool = True) -> None:
    """Check the reply to an evaluation message, and leave in it the figures that were asked for.

    Args:
        content: the reply; changed in place.
        figures: names of what the client is scored on.
        told: whether clients tell more than their updates; else there is no figure.

    Raises:
        InvalidReply: a metric is missing or no number, or a figure is no percentage.
    """
    if not told:
        content["metrics"] = MetricRecord()
        return
    metrics = _metrics(content, "num-examples")
    known = {f"{model}.{figure}" for model in MODELS for figure in figures}
    kept = {
        "num-examples": metrics["num-examples"],
        **{n: metrics[n] for n in metrics if n in known},
    }
    check_range("num-examples", kept["num-examples"], 0, MOST)
    for name, value in kept.items():
        if name != "num-examples":
            check_range(name, value, 0, 100 + 1e-6)
    content["metrics"] = MetricRecord(kept)


def _account(content: RecordDict, asked: Mapping[int, Message], failures: bool) -> dict:
    """Return what a node says of its work."""
    said = read_json(content["node"]["account"], ACCOUNT_BYTES + CLIENT_BYTES * len(asked))
    found: dict[str, object] = {}
    for name in ("seconds", "rss_mb", "gpu_mb"):
        if name in said or name != "gpu_mb":
            check_range(name, said[name], 0, MOST)
            found[name] = float(said[name])
    check_range("clients", said["clients"], 0, len(asked))
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
    """Return a client's records, tensors unpacked; each is of its kind, and not larger than what
    was sent and what update steps may add."""
    kinds = {"arrays": ArrayRecord, "metrics": MetricRecord, "answer": ConfigRecord}
    found = RecordDict()
    for name, record in records.items():
        if not isinstance(record, kinds[name]):
            raise InvalidReply(f"sent {name} that are none")
        if isinstance(record, MetricRecord) and len(record) > METRICS:
            raise InvalidReply(f"sent {len(record):,} metrics")
        if isinstance(record, ArrayRecord):
            sent = sum(map(_tensor_bytes, message.content.values()))
            size = _tensor_bytes(record)
            if size > sent + EXTRA_BYTES:
                raise InvalidReply(f"sent tensors of {size:,} bytes; it was sent {sent:,}")
            for tensor, array in record.items():
                _check_array(tensor, array)
        found[name] = full(record)
    return found


def _tensor_bytes(record: object) -> int:
    """Return the bytes of a record's tensors."""
    if not isinstance(record, ArrayRecord):
        return 0
    return sum(len(array.data) for array in record.values())


def _check_array(name: str, array: Array) -> None:
    shape = tuple(array.shape)
    if (
        array.stype != BARE
        or array.dtype not in _DTYPES
        or len(shape) > 16
        or min(shape, default=0) < 0
    ):
        raise InvalidReply(f"sent a tensor {shown(name)} that is none")
    if math.prod(shape) * np.dtype(array.dtype).itemsize != len(array.data):
        raise InvalidReply(f"sent a tensor {shown(name)} whose bytes are not those of its shape")


def _metrics(content: RecordDict, *names: str) -> MetricRecord:
    metrics = content.get("metrics")
    if not isinstance(metrics, MetricRecord) or not set(names) <= set(metrics):
        raise InvalidReply(f"did not send the metrics {', '.join(names)}")
    return metrics
