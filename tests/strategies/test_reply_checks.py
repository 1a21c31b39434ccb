"""Checks of replies: what a hostile node says costs its own clients at most, and what passes is
what it should be."""

import json
import math
import tracemalloc
import unicodedata
from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings

from clients.messages import pack_reply
from strategies.invalid_reply import MOST, InvalidReply, checked
from strategies.json_replies import ROW_BYTES, json_reply, read_row
from strategies.reply_checks import check_figures, check_update, open_reply
from tests.helpers.replies import (
    ACCOUNT,
    EPOCHS,
    FIGURES,
    GOOD_METRICS,
    IMAGES,
    REFERENCE,
    ROW,
    asked,
    honest,
    malformed,
    update,
)


@pytest.fixture(autouse=True, scope="module")
def speaker():
    """Flower's messages want to know who makes them."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


def usable(kind: str, packed: RecordDict) -> object:
    """What the server takes of client 1's reply."""
    opened = open_reply(packed, asked(kind))
    assert set(opened.contents) | set(opened.rejected) == {1}
    if 1 in opened.rejected:
        raise InvalidReply(opened.rejected[1])
    content = opened.contents[1]
    if kind == "train":
        checked(lambda: check_update(content, IMAGES, REFERENCE, EPOCHS))
        return opened, content
    if kind == "evaluate":
        checked(lambda: check_figures(content, FIGURES))
        return opened, content
    row = checked(lambda: read_row(json_reply(content, ROW_BYTES), 1))
    return opened, row


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_an_honest_reply_passes_unchanged(kind):
    opened, taken = usable(kind, honest(kind))
    assert opened.account == ACCOUNT and not opened.rejected
    if kind == "query":
        assert taken == ROW
    elif kind == "train":
        assert dict(taken["metrics"]) == GOOD_METRICS
        assert all(
            (taken["arrays"][name].numpy() == tensor + 1).all()
            for name, tensor in REFERENCE.items()
        )
    else:
        assert dict(taken["metrics"]) == {
            "num-examples": 2,
            "personal.local": 50.0,
            "personal.ece": 1.0,
        }


def test_a_client_s_failure_is_told_in_a_line():
    packed = pack_reply({}, {1: "fell\nover\x1b[2J"}, ACCOUNT)
    assert open_reply(packed, asked("train")).rejected == {1: "fell over"}


# Malformed replies by the thousand. ---------------------------------------------------------------


def check_passed(kind: str, opened, taken) -> None:
    """What passed is finite, within its range, and of a size that somebody asked for."""
    account = opened.account
    assert all(0 <= account[name] <= MOST for name in ("seconds", "rss_mb"))
    assert (
        account["clients"] in (0, 1)
        and set(account["kept"]) <= {1}
        and len(account["process"].encode()) <= 128
    )
    assert all(unicodedata.category(c) != "Cc" for c in account["process"]) and opened.up < 10_000
    json.dumps(account, allow_nan=False)
    if kind == "query":
        assert (
            set(taken) == set(ROW)
            and taken["id"] == 1
            and len((taken["domain"] or "").encode()) <= 1000
        )
        assert all(
            0 <= taken[name] <= MOST and type(taken[name]) is int
            for name in ("train_images", "test_images")
        )
        return
    said = dict(taken["metrics"])
    if kind == "train" and math.isnan(said["loss"]):
        said["loss"] = 0.0  # it tells none
    assert all(type(value) in (int, float) and math.isfinite(value) for value in said.values())
    if kind == "train":
        assert (
            set(said) == set(GOOD_METRICS)
            and said["num-examples"] == IMAGES
            and 0 <= said["epochs"] <= EPOCHS
        )
        assert (
            abs(said["loss"]) <= MOST
            and 0 <= said["steps"] <= MOST
            and set(taken) == {"arrays", "metrics"}
        )
        for name, wanted in REFERENCE.items():
            tensor = taken["arrays"][name].numpy()
            assert (
                tensor.shape == wanted.shape
                and tensor.dtype == wanted.dtype
                and np.isfinite(tensor).all()
            )
    else:
        assert all(
            0 <= value <= 100 + 1e-6 for name, value in said.items() if name != "num-examples"
        )
        assert set(said) <= {"num-examples"} | {
            f"{m}.{f}" for m in ("zero_shot", "global", "personal") for f in FIGURES
        }


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_malformed_replies_cost_their_client_at_most(kind):
    """2,100 in a run of the suite; any other exception than InvalidReply, and any value out of
    range, fails."""
    counts = {"passed": 0, "refused": 0}

    @settings(
        max_examples=700, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(malformed(kind))
    def one(packed):
        try:
            opened, taken = usable(kind, packed)
        except InvalidReply as reason:
            counts["refused"] += 1
            text = str(reason)
            assert (
                text
                and len(text.encode()) <= 1000
                and not any(unicodedata.category(c) == "Cc" for c in text)
            )
            return
        counts["passed"] += 1
        check_passed(kind, opened, taken)

    one()
    assert counts["refused"] > 200 and counts["passed"] > 20


# By name. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1.7e308),
        ("epochs", 3.0),
        ("loss", -1e300),
        ("loss", math.nan),
        ("steps", -1.0),
        ("num-examples", 10**15),
    ],
)
def test_an_update_s_numbers(name, value):
    content = RecordDict(
        {"arrays": update(), "metrics": MetricRecord({**GOOD_METRICS, name: value})}
    )
    with pytest.raises(InvalidReply):
        usable("train", pack_reply({1: content}, {}, ACCOUNT))


@pytest.mark.parametrize("value", [1.7e308, 100.1, -0.1, math.nan])
def test_an_accuracy_is_a_percentage(value):
    content = RecordDict({"metrics": MetricRecord({"num-examples": 2, "personal.local": value})})
    with pytest.raises(
        InvalidReply, match=r"metric personal.local is .*; it is a number from 0 to 100"
    ):
        usable("evaluate", pack_reply({1: content}, {}, ACCOUNT))


@pytest.mark.parametrize(
    "account",
    [
        {"seconds": 1.7e308},
        {"rss_mb": -1},
        {"clients": 10**9},
        {"gpu_mb": "much"},
        {"kept": 5},
        {"kept": ["9" * 5000]},
    ],
)
def test_an_account_s_numbers(account):
    with pytest.raises(InvalidReply):
        usable("train", pack_reply({1: RecordDict()}, {}, {**ACCOUNT, **account}))


def test_long_texts_are_cut():
    packed = pack_reply({}, {1: "no " * 7_000_000}, {**ACCOUNT, "process": "p" * 200_000})
    opened = open_reply(packed, asked("train"))
    assert (
        len(opened.rejected[1].encode()) <= 1000 and len(opened.account["process"].encode()) <= 128
    )
    with pytest.raises(InvalidReply, match="sent 5,000,0.. bytes where"):
        open_reply(pack_reply({}, {}, {**ACCOUNT, "process": "p" * 5_000_000}), asked("train"))
    assert len(read_row({**ROW, "domain": "d" * 5_000_000}, 1)["domain"].encode()) == 1000


@pytest.mark.parametrize("name", ["1/more", "1/own", "more", "2/arrays", "1/arrays"])
def test_what_nobody_asked_for_is_not_copied(name):
    """An extra record is left where it is; tensors larger than what was sent are refused
    before they are unpacked."""
    packed = honest("train")
    packed.pop(name, None)
    packed[name] = ArrayRecord({"x": Array("uint8", (40_000_000,), "bytes", bytes(40_000_000))})
    messages = asked("train")
    tracemalloc.start()
    opened = open_reply(packed, messages)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000 and opened.up < 10_000
    if name == "1/arrays":
        assert opened.rejected == {1: "sent tensors of 40,000,000 bytes; it was sent 768"}
    else:
        check_update(opened.contents[1], IMAGES, REFERENCE, EPOCHS)


def test_a_number_of_a_step_is_bounded_by_what_the_step_declares():
    for said, refused in ((0.5, False), (1.5, True)):
        content = RecordDict(
            {"arrays": update(), "metrics": MetricRecord({**GOOD_METRICS, "coarse.zeros": said})}
        )
        check = partial(check_update, content, IMAGES, REFERENCE, EPOCHS, {"coarse.zeros": (0, 1)})
        if refused:
            with pytest.raises(InvalidReply, match="coarse.zeros is 1.5; .* from 0 to 1"):
                check()
        else:
            check()
            assert content["metrics"]["coarse.zeros"] == said


def test_a_real_site_tells_nothing_of_exceptions():
    failure = {"clients": 1, "reason": "Run\x1b[2JtimeError", "traceback": "line\nline"}
    packed = pack_reply({}, {1: "x"}, {**ACCOUNT, "failures": [failure]})
    assert open_reply(packed, asked("train")).account["failures"] == [
        {**failure, "reason": "RuntimeError"}
    ]
    assert "failures" not in open_reply(packed, asked("train"), failures=False).account
