"""The gate: what a hostile node says costs its own clients at most, and what passes
is what it should be."""

import base64
import json
import math
import time
import tracemalloc
import unicodedata

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.messages import pack_reply
from strategies.json_answers import (
    ROW_BYTES,
    SAMPLES_BYTES,
    json_answer,
    read_handshake,
    read_json,
    read_row,
    read_samples,
)
from strategies.reply_checks import check_figures, check_update, open_reply
from strategies.unusable import MOST, Unusable, contained

SHAPE = (4, 8)
REFERENCE = {"c": np.zeros(SHAPE), "p_G": np.ones(SHAPE)}
FIGURES = ("local", "base", "ece")
IMAGES, EPOCHS = 5, 2
ACCOUNT = {"seconds": 1.5, "process": "here/7", "rss_mb": 80.0, "clients": 1, "kept": [1]}
ROW = {"id": 1, "domain": "noto", "train_images": 5, "test_images": 2, "trains": True}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()
SAMPLE = {
    "client": 1,
    "domain": None,
    "label": "cat",
    "predicted": "dog",
    "correct": False,
    "confidence": 0.5,
}
GOOD_METRICS = {"num-examples": IMAGES, "loss": 1.0, "steps": 2.0, "epochs": 2.0}


@pytest.fixture(autouse=True, scope="module")
def speaker():
    """Flower's messages want to know who makes them."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


def asked(kind: str) -> dict[int, Message]:
    arrays = ArrayRecord({name: Array(tensor) for name, tensor in REFERENCE.items()})
    return {1: Message(RecordDict({"arrays": arrays}), dst_node_id=1, message_type=kind)}


def update(scale: float = 1.0) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor + scale) for name, tensor in REFERENCE.items()})


def answer(value: object) -> RecordDict:
    return RecordDict(
        {"answer": ConfigRecord({"json": value if isinstance(value, str) else json.dumps(value)})}
    )


def usable(kind: str, packed: RecordDict) -> object:
    """What the server takes of client 1's reply."""
    opened = open_reply(packed, asked(kind))
    assert set(opened.contents) | set(opened.rejected) == {1}
    if 1 in opened.rejected:
        raise Unusable(opened.rejected[1])
    content = opened.contents[1]
    if kind == "train":
        contained(lambda: check_update(content, IMAGES, REFERENCE, EPOCHS))
        return opened, content
    if kind == "evaluate":
        contained(lambda: check_figures(content, FIGURES))
        return opened, content
    row = contained(lambda: read_row(json_answer(content, ROW_BYTES), 1))
    return opened, row


def honest(kind: str) -> RecordDict:
    if kind == "train":
        content = RecordDict({"arrays": update(), "metrics": MetricRecord(GOOD_METRICS)})
    elif kind == "evaluate":
        content = RecordDict(
            {
                "metrics": MetricRecord(
                    {"num-examples": 2, "personal.local": 50.0, "personal.ece": 1.0}
                )
            }
        )
    else:
        content = answer(ROW)
    return pack_reply({1: content}, {}, ACCOUNT)


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

NUMBERS = (
    "Infinity",
    "-Infinity",
    "NaN",
    "1e400",
    "-1e400",
    "1.7e308",
    "9" * 4300,
    "9" * 3000,
    "-1",
    "1e15",
    "true",
)
TEXTS = (
    '"x"',
    "null",
    "[]",
    "{}",
    '"' + "a" * 5000 + '"',
    '"\\u001b[31m\\ndone in 3s"',
    "[" * 3000 + "]" * 3000,
    "",
)
raw_json = st.one_of(
    st.sampled_from([*NUMBERS, *TEXTS]),
    st.integers().map(str),
    st.floats().map(repr),
    st.text().map(json.dumps),
)
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=50),
    st.binary(max_size=20),
    st.lists(st.floats(), max_size=3),
)
names = st.one_of(
    st.sampled_from(["loss", "steps", "num-examples", "epochs", "personal.local", "x" * 2000]),
    st.text(),
)
numbers = st.one_of(
    st.floats(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([1.7e308, -1e300, math.inf, math.nan, 1e15, 101.0]),
)
metrics = st.dictionaries(
    names, st.one_of(numbers, st.lists(numbers.map(float), max_size=3)), max_size=8
).map(lambda wrong: {**GOOD_METRICS, "personal.local": 50.0, **wrong})
arrays = st.builds(
    lambda dtype, shape, stype, data: Array(dtype, shape, stype, data),
    st.sampled_from(["float64", "float32", "object", "U9", "V9", "", "(1000000,1000000)f8"]),
    st.lists(st.integers(-3, 2**40), max_size=4).map(tuple),
    st.sampled_from(["bytes", "numpy.ndarray", ""]),
    st.binary(max_size=600),
)


def record_of(value: object) -> ConfigRecord | MetricRecord:
    try:
        return ConfigRecord({"json": value})
    except TypeError:  # Flower itself has no such record
        return ConfigRecord()


def account_of(wrong: dict[str, str]) -> str:
    fields = {name: json.dumps(value) for name, value in ACCOUNT.items()} | wrong
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}"


accounts = st.one_of(
    st.dictionaries(
        st.sampled_from([*ACCOUNT, "gpu_mb", "failures", "more"]), raw_json, min_size=1
    ).map(account_of),
    raw_json,
)
row_texts = st.one_of(
    st.dictionaries(st.sampled_from([*ROW, "more"]), raw_json, min_size=1).map(
        lambda wrong: (
            "{"
            + ",".join(
                f'"{n}":{v}'
                for n, v in ({n: json.dumps(v) for n, v in ROW.items()} | wrong).items()
            )
            + "}"
        )
    ),
    raw_json,
)


@st.composite
def malformed(draw, kind: str) -> RecordDict:
    """An honest reply with one to three things wrong."""
    packed = dict(honest(kind))
    body = {"train": "arrays", "evaluate": "metrics", "query": "answer"}[kind]
    for what in draw(
        st.lists(
            st.sampled_from(["account", "errors", "gone", "kind", "body", "body", "extra"]),
            min_size=1,
            max_size=3,
        )
    ):
        if what == "account":
            packed["node"] = ConfigRecord(
                {"account": draw(st.one_of(accounts, accounts, st.integers(0, 5)))}
            )
        elif what == "errors":
            packed["errors"] = draw(
                st.sampled_from(
                    [ArrayRecord(), ConfigRecord({"1": 3}), ConfigRecord({"9" * 5000: "x"})]
                )
            )
        elif what == "gone":
            packed.pop(draw(st.sampled_from(sorted(packed))), None)
        elif what == "kind":
            packed[f"1/{body}"] = draw(
                st.sampled_from(
                    [MetricRecord({"loss": 1.0}), ConfigRecord({"a": "b"}), ArrayRecord()]
                )
            )
        elif what == "extra":
            name = draw(
                st.one_of(
                    st.text(max_size=20),
                    st.sampled_from(["1/", "2/arrays", "1/own", "٣/arrays", f"{'9' * 5000}/x"]),
                )
            )
            packed[name] = draw(
                st.sampled_from(
                    [ArrayRecord({"x": Array(np.ones(3))}), ConfigRecord({"a": "b" * 3000})]
                )
            )
        elif kind == "train" and draw(st.booleans()):
            wrong = (
                dict(packed["1/arrays"]) if isinstance(packed.get("1/arrays"), ArrayRecord) else {}
            )
            wrong[draw(st.sampled_from(["p_G", "c", "more"]))] = draw(arrays)
            packed["1/arrays"] = ArrayRecord(wrong)
        elif kind != "query":
            packed["1/metrics"] = MetricRecord(draw(metrics))
        else:
            packed["1/answer"] = record_of(draw(st.one_of(row_texts, row_texts, junk)))
    return RecordDict(packed)


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
    """2,100 in a run of the suite; any other exception than Unusable, and any value out of range,
    fails."""
    counts = {"passed": 0, "refused": 0}

    @settings(
        max_examples=700, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(malformed(kind))
    def one(packed):
        try:
            opened, taken = usable(kind, packed)
        except Unusable as reason:
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


@given(st.one_of(row_texts, junk))
@settings(max_examples=300, deadline=None, database=None)
def test_malformed_greetings_are_refused(text):
    try:
        said = read_handshake(RecordDict({"answer": record_of(text)}))
    except Unusable:
        return
    assert 0 <= said["client"] <= MOST and len(said.get("rejection", "").encode()) <= 1000


# By name. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Infinity",
        "-Infinity",
        "NaN",
        "1e400",
        '{"a": [1e999]}',
        "9" * 4301,
        "[" * 200_000 + "]" * 200_000,
        "5 5",
        "",
    ],
)
def test_json_that_is_none_or_endless(text):
    with pytest.raises(Unusable):
        read_json(text, 10**6)


@pytest.mark.parametrize(
    "client", ["Infinity", "1e400", '"0"', "true", "null", "-1", "1.0", "1e12", "[" * 9000]
)
def test_a_greeting_from_a_client_that_is_none(client):
    with pytest.raises(Unusable):
        read_handshake(answer(f'{{"client": {client}, "row": null}}'))


@pytest.mark.parametrize(
    "samples",
    [
        5,
        None,
        {},
        "no JSON",
        [5],
        [{**SAMPLE, "png": "!"}],
        [{**SAMPLE, "png": base64.b64encode(b"<svg>").decode()}],
    ]
    + [
        [{**SAMPLE, "png": PNG, name: value}]
        for name, value in (("correct", 1), ("confidence", 7), ("label", 5))
    ],
)
def test_samples_that_are_none(samples):
    text = samples if samples == "no JSON" else json.dumps(samples)
    with pytest.raises(Unusable):
        contained(lambda: read_samples(json_answer(answer(text), SAMPLES_BYTES), 1))


def test_samples_speak_for_their_client():
    (row,) = read_samples([{**SAMPLE, "client": 0, "label": "c\x1b[2Jat\n", "png": PNG}], 1)
    assert row == {**SAMPLE, "client": 1, "png": PNG}


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
    with pytest.raises(Unusable):
        usable("train", pack_reply({1: content}, {}, ACCOUNT))


@pytest.mark.parametrize("value", [1.7e308, 100.1, -0.1, math.nan])
def test_an_accuracy_is_a_percentage(value):
    content = RecordDict({"metrics": MetricRecord({"num-examples": 2, "personal.local": value})})
    with pytest.raises(
        Unusable, match=r"metric personal.local is .*; it is a number from 0 to 100"
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
    with pytest.raises(Unusable):
        usable("train", pack_reply({1: RecordDict()}, {}, {**ACCOUNT, **account}))


def test_long_texts_are_cut():
    packed = pack_reply({}, {1: "no " * 7_000_000}, {**ACCOUNT, "process": "p" * 200_000})
    opened = open_reply(packed, asked("train"))
    assert (
        len(opened.rejected[1].encode()) <= 1000 and len(opened.account["process"].encode()) <= 128
    )
    with pytest.raises(Unusable, match="sent 5,000,0.. bytes where"):
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


def test_a_huge_answer_is_refused_before_it_is_decoded():
    began = time.perf_counter()
    with pytest.raises(Unusable, match="bytes where"):
        json_answer(answer("[" + "1," * 20_000_000 + "1]"), SAMPLES_BYTES)
    assert time.perf_counter() - began < 1


def test_a_real_site_tells_nothing_of_exceptions():
    failure = {"clients": 1, "reason": "Run\x1b[2JtimeError", "traceback": "line\nline"}
    packed = pack_reply({}, {1: "x"}, {**ACCOUNT, "failures": [failure]})
    assert open_reply(packed, asked("train")).account["failures"] == [
        {**failure, "reason": "RuntimeError"}
    ]
    assert "failures" not in open_reply(packed, asked("train"), failures=False).account
