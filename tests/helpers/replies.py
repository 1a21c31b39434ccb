"""Honest replies of a client, and malformed ones by the thousand."""

import base64
import json
import math

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import strategies as st

from clients.messages import pack_reply

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


def asked(kind: str) -> dict[int, Message]:
    arrays = ArrayRecord({name: Array(tensor) for name, tensor in REFERENCE.items()})
    return {1: Message(RecordDict({"arrays": arrays}), dst_node_id=1, message_type=kind)}


def update(scale: float = 1.0) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor + scale) for name, tensor in REFERENCE.items()})


def answer(value: object) -> RecordDict:
    return RecordDict(
        {"answer": ConfigRecord({"json": value if isinstance(value, str) else json.dumps(value)})}
    )


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
