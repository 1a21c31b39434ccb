import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from clients.messages import Job, count_bytes, pack, unpack

JOB = Job("run", 1, "{}", "/private", 2, clients=(1, 4), committed=(0, 1))


def content(value: float, scale: float = 1.0) -> RecordDict:
    arrays = ArrayRecord({"p": Array(np.full((2, 3), value))})
    return RecordDict(
        {"arrays": arrays, "config": ConfigRecord({"server-round": 2, "scale": scale})}
    )


def test_equal_records_travel_once():
    packed = pack(JOB, {1: content(1.0), 4: content(1.0)})
    assert sorted(packed) == ["arrays", "config", "job"]
    assert unpack(packed, (1, 4)) == {1: dict(content(1.0)), 4: dict(content(1.0))}


def test_records_that_differ_travel_for_each_client():
    packed = pack(JOB, {1: content(1.0), 4: content(2.0)})
    assert sorted(packed) == ["1/arrays", "4/arrays", "config", "job"]
    records = unpack(packed, (1, 4))
    assert (
        records[1]["arrays"]["p"].numpy()[0, 0] == 1.0
        and records[4]["arrays"]["p"].numpy()[0, 0] == 2.0
    )


def test_the_job_comes_back():
    assert Job.of(pack(JOB, {1: content(1.0), 4: content(1.0)})) == JOB


def test_bytes_are_those_of_the_records():
    base = content(1.0)
    assert (
        count_bytes([base])
        == sum(len(name) for name in base) + len("p") + 6 * 8 + len("server-roundscale") + 16
    )
    assert count_bytes([base, base]) == 2 * count_bytes([base])


def test_bytes_of_figures_beside_accuracies_are_not_counted():
    """Published bytes are of runs that are older than these figures."""
    old = {"num-examples": 3, "personal.local": 50.0, "personal.ece": 4.0}
    new = {"personal.f1_macro": 1.0, "zero_shot.auroc": 2.0, "global.fpr95_energy": 3.0}
    counts = [
        count_bytes([RecordDict({"metrics": MetricRecord(each)})]) for each in (old, old | new)
    ]
    assert counts[0] == counts[1] == len("metrics") + MetricRecord(old).count_bytes()
