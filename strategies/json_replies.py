"""What a node replies in JSON: its size and depth are checked before it is decoded, then every
value that is used."""

import base64
import json
import math
from collections.abc import Mapping, Sequence

from flwr.app import ConfigRecord, RecordDict

from clients.node_config import LONGEST_NAME
from fedpgp.plain_text import one_line
from strategies.invalid_reply import MOST, InvalidReply, check_range, checked, shown

ROW_BYTES, SAMPLES_BYTES, CLIENT_BYTES = 2**22, 2**23, 32
"""Most bytes of JSON for a row of the table, for a client's samples, and for each client in a
node's account."""

BRACKETS = 4096
"""Most brackets in a JSON text, and so its depth."""

_PNG = b"\x89PNG\r\n\x1a\n"


def read_handshake(content: RecordDict) -> dict:
    """Return a node's first reply (:meth:`clients.request.ClientRequest.handshake`): ``client``
    and its ``name``, and ``row``, or ``rejection`` and ``transient``.

    Raises:
        InvalidReply: it cannot be read.
    """

    def read() -> dict:
        said = json_reply(content, ROW_BYTES)
        if not isinstance(said, dict):
            raise InvalidReply("sent a first reply that is none")
        client = said.get("client")
        if isinstance(client, bool) or not isinstance(client, int) or not 0 <= client <= MOST:
            raise InvalidReply(f"says it is client {shown(client)}")
        name = said.get("name", "")
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            raise InvalidReply(f"says that client {client} is called {shown(name)}")
        found = {"client": client, "name": one_line(name), "row": said.get("row")}
        if rejection := said.get("rejection"):
            found |= {
                "rejection": one_line(str(rejection)),
                "transient": bool(said.get("transient")),
            }
        return found

    return checked(read)


def read_row(value: object, client: int, table: Sequence[Mapping] | None = None) -> dict:
    """Return a client's row of the table.

    Args:
        value: what its node says.
        client: whose it is.
        table: the rows of clients whose images the server splits; None where their images are their
            own, and what they say of them is believed.

    Raises:
        InvalidReply: it is none, or not what the server assigned.
    """
    if table is not None and value != table[client]:
        raise InvalidReply(f"client {client} does not have the images that it was assigned")
    if not isinstance(value, dict):
        raise InvalidReply(f"the row of client {client} is none")
    for name in ("train_images", "test_images"):
        count = value.get(name)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST:
            raise InvalidReply(f"client {client} says {name}={shown(count)}")
    domain, trains = value.get("domain"), value.get("trains")
    if not isinstance(domain, str | None) or not isinstance(trains, bool):
        raise InvalidReply(f"the row of client {client} is none")
    counts = {"train_images": value["train_images"], "test_images": value["test_images"]}
    row = {
        "id": client,
        "domain": None if domain is None else one_line(domain),
        **counts,
        "trains": trains,
    }
    if table is not None:
        return {**table[client], **row}
    return row


def unknown_row(client: int) -> dict:
    """Return the row of a client whose node tells nothing of its images: it trains, on nobody
    knows how many."""
    return {
        "id": client,
        "domain": None,
        "train_images": None,
        "test_images": None,
        "trains": True,
    }


def read_samples(value: object, client: int) -> list[dict]:
    """Return images with a client's predictions (:func:`fedpgp.evaluation.samples.samples`), the
    images in base64.

    Raises:
        InvalidReply: they are none.
    """
    if not isinstance(value, list):
        raise InvalidReply("sent no samples")
    rows = []
    for row in value:
        png = base64.b64decode(row["png"], validate=True)
        texts = {name: row[name] for name in ("label", "predicted")}
        domain = row["domain"]
        if not png.startswith(_PNG) or not all(isinstance(text, str) for text in texts.values()):
            raise InvalidReply("sent samples that are none")
        if not isinstance(domain, str | None) or not isinstance(row["correct"], bool):
            raise InvalidReply("sent samples that are none")
        check_range("confidence", row["confidence"], 0, 1 + 1e-6)
        about = {"client": client, "domain": None if domain is None else one_line(domain)}
        said = {
            "correct": row["correct"],
            "confidence": float(row["confidence"]),
            "png": row["png"],
        }
        rows.append({**about, **{name: one_line(text) for name, text in texts.items()}, **said})
    return rows


def json_reply(content: RecordDict, most: int) -> object:
    """Return the JSON in a reply to a question.

    Args:
        content: the reply.
        most: bytes it may have.

    Raises:
        InvalidReply: there is none, it is too long or too deep, or has numbers that are none.
    """
    record = content.get("answer")
    if not isinstance(record, ConfigRecord) or "json" not in record:
        raise InvalidReply("sent no reply")
    return read_json(record["json"], most)


def read_json(text: object, most: int) -> object:
    """JSON that somebody else wrote.

    Raises:
        InvalidReply: it is too long, too deep, or no JSON; it has an infinite number.
    """
    if not isinstance(text, str):
        raise InvalidReply("sent no text where JSON belongs")
    if len(text) > most:
        raise InvalidReply(f"sent {len(text):,} bytes where {most:,} are the most")
    if text.count("[") + text.count("{") > max(BRACKETS, most // CLIENT_BYTES):
        raise InvalidReply("sent JSON that is too deep")

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise InvalidReply(f"sent a number that is {shown(digits)}")
        return value

    return checked(lambda: json.loads(text, parse_float=number, parse_constant=number))
