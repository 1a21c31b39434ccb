"""What a client may answer: a reply that is wrong in any way must not enter an average."""

import json
import math
from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

UPDATE_METRICS = ("num-examples", "loss", "steps", "epochs")
"""What every client says of its training."""


class Unusable(Exception):
    """Why a reply is left out."""


def check_update(content: RecordDict, images: int, reference: Mapping[str, np.ndarray]) -> None:
    """Checks the reply to a training message, and leaves in it what every reply has: Flower's rules refuse all replies
    when one has more than another.

    Args:
        content: the reply; changed in place.
        images: how many training images the client has.
        reference: the global tensors: names, shapes and types of an update's.

    Raises:
        Unusable: a metric is missing or no number, the count is wrong, or the tensors are: others, of another shape or
            type, or not finite.
    """
    _check_metrics(content, *UPDATE_METRICS)
    count = content["metrics"]["num-examples"]
    if count != images:
        raise Unusable(f"says it trained on {count} images, but it has {images}")
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
    # In the order of the global tensors: some rules pair tensors by position.
    content["arrays"] = ArrayRecord({name: arrays[name] for name in reference})
    content["metrics"] = MetricRecord({name: content["metrics"][name] for name in UPDATE_METRICS})
    for name in set(content) - {"arrays", "metrics"}:
        del content[name]


def check_figures(content: RecordDict) -> None:
    """Checks the reply to an evaluation message.

    Raises:
        Unusable: a metric is missing or no number.
    """
    _check_metrics(content, "num-examples")


def check_answer(content: RecordDict) -> None:
    """Checks the reply to a question.

    Raises:
        Unusable: there is no answer in it.
    """
    if "answer" not in content:
        raise Unusable("sent no answer")


def json_of(reply: Message) -> object:
    """The JSON in an answer to a question."""
    return json.loads(reply.content["answer"]["json"])


def _check_metrics(content: RecordDict, *names: str) -> None:
    metrics = content.get("metrics")
    if not isinstance(metrics, MetricRecord) or not set(names) <= set(metrics):
        raise Unusable(f"did not send the metrics {', '.join(names)}")
    for name, value in metrics.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise Unusable(f"metric {name} is {value}")
