"""What a node replies in JSON: whatever it is, it is read or refused, and nothing else happens."""

import base64
import json

import pytest
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.invalid_reply import MOST, InvalidReply, checked
from strategies.json_replies import (
    SAMPLES_BYTES,
    json_reply,
    read_handshake,
    read_json,
    read_samples,
)
from tests.helpers.replies import PNG, SAMPLE, answer, junk, record_of, row_texts


@given(st.one_of(row_texts, junk))
@settings(max_examples=300, deadline=None, database=None)
def test_malformed_greetings_are_refused(text):
    try:
        said = read_handshake(RecordDict({"answer": record_of(text)}))
    except InvalidReply:
        return
    assert 0 <= said["client"] <= MOST and len(said.get("rejection", "").encode()) <= 1000


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
    with pytest.raises(InvalidReply):
        read_json(text, 10**6)


@pytest.mark.parametrize(
    "client", ["Infinity", "1e400", '"0"', "true", "null", "-1", "1.0", "1e12", "[" * 9000]
)
def test_a_greeting_from_a_client_that_is_none(client):
    with pytest.raises(InvalidReply):
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
    with pytest.raises(InvalidReply):
        checked(lambda: read_samples(json_reply(answer(text), SAMPLES_BYTES), 1))


def test_samples_speak_for_their_client():
    (row,) = read_samples([{**SAMPLE, "client": 0, "label": "c\x1b[2Jat\n", "png": PNG}], 1)
    assert row == {**SAMPLE, "client": 1, "png": PNG}


def test_a_huge_answer_is_refused_before_it_is_decoded():
    """What is said is its size, not that it is no JSON."""
    with pytest.raises(InvalidReply, match="bytes where"):
        json_reply(answer("[" + "1," * 20_000_000), SAMPLES_BYTES)
