"""A step of K clients in one tensor program against one client alone, per client."""

import argparse
import statistics
from collections.abc import Iterator

from experiments.bench.measure import in_turn, peak_memory
from experiments.bench.step import STEP, setting, speed


def rows(arguments: argparse.Namespace) -> Iterator[dict]:
    """For each number of classes."""
    clients = arguments.clients or 10
    for count in arguments.classes:
        method, params, batch, classes = setting(count, clients, arguments)
        one = {name: tensor[:1] for name, tensor in params.items()}
        one_batch = batch[:1]

        def together(method=method, params=params, batch=batch, classes=classes):
            return method.gradients(params, batch, classes, STEP)

        def alone(method=method, one=one, one_batch=one_batch, classes=classes):
            return method.gradients(one, one_batch, classes, STEP)

        many, single = in_turn(together, alone, arguments.repeats)
        each = statistics.median(many) / clients
        yield {
            "bench": "cohort",
            "classes": count,
            "clients": clients,
            "ms_per_client": 1e3 * each,
            "alone_ms": 1e3 * statistics.median(single),
            "share_of_alone": each / statistics.median(single),
            **speed(classes, clients, statistics.median(many)),
            "peak_mb": peak_memory(together),
        }
