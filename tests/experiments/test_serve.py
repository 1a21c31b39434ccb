"""Predictions over HTTP: the command, what it answers, and what it survives."""

import asyncio
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")

from experiments import predict, serve
from experiments.client_model import load_client_model
from experiments.runner import start
from experiments.serving.app import make_app
from experiments.serving.batches import Batches, Busy
from experiments.serving.pictures import Limits
from experiments.settings import composed
from fedpgp.data import load_dataset

ROOT = Path(__file__).parents[2]
LIMITS = Limits(bytes=60_000, pictures=4, pixels=10_000, seconds=0.5)
BOUNDARY = "frontier"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "run"
    words = ["dataset.domains=[noto]", "partition=dirichlet", "clients=2", "shots=1", "rounds=1"]
    words += ["local_epochs=1", "lr=0.5", "evaluate_every=0", "runtime=inline"]
    start(composed([*words, f"run_dir={folder}"]))
    return folder


@pytest.fixture(scope="module")
def model(run):
    return load_client_model(run, 0)


@pytest.fixture(scope="module")
def app(model):
    return make_app(model, LIMITS)


@pytest.fixture(scope="module")
def pictures():
    """Five images, as PNG."""
    test = load_dataset("emoji", domains=["noto"]).test
    return [png(test.image(i)) for i in range(0, 250, 50)]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def with_size(width: int, height: int) -> bytes:
    """A small PNG that says it has so many pixels."""
    data = bytearray(png(Image.new("L", (5, 5))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def form(*files: bytes, name: str = "a.png") -> bytes:
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    parts = [f"--{BOUNDARY}\r\n{head}".encode() + file + b"\r\n" for file in files]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def ask(app, body=b"", headers=None, path="/predict", method="POST", chunk=8192, cut=None):
    """One request, as a server hands it to the application; ``cut``: the bytes after which the
    other side is gone. Returns its status and what it says."""
    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]
    events = [
        {"type": "http.request", "body": part, "more_body": i < len(parts) - 1}
        for i, part in enumerate(parts)
    ]
    if cut is not None:
        events = [*events[:cut], {"type": "http.disconnect"}]
    said: list[dict] = []

    async def receive():
        if events:
            return events.pop(0)
        await asyncio.sleep(3600)

    async def send(event):
        said.append(event)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method}
    scope |= {"scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}
    scope["headers"] = [
        (k.encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()
    ]
    await app(scope, receive, send)
    content = b"".join(event.get("body", b"") for event in said[1:])
    return said[0]["status"], json.loads(content)


def test_the_answer_is_that_of_predict(app, model, pictures):
    expected = predict.predict(
        model, [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures[:3]]
    )

    async def both():
        return await ask(app, pictures[0]), await ask(app, form(*pictures[:3]), FORM)

    (status, one), (_, several) = asyncio.run(both())
    assert status == 200 and one["prompt"] == several["prompt"] == model.digest
    answers = [*one["predictions"], *several["predictions"]]
    for found, probability in zip(answers, expected[[0, 0, 1, 2]], strict=True):
        assert list(found["probabilities"]) == model.class_names
        np.testing.assert_allclose(list(found["probabilities"].values()), probability, atol=2e-6)
        assert found["class"] == model.class_names[probability.argmax()]
        assert found["probability"] == max(found["probabilities"].values())


def test_version_and_health(app, run, model):
    async def both():
        return [await ask(app, path=path, method="GET") for path in ("/version", "/health")]

    (_, version), health = asyncio.run(both())
    assert health == (200, {"status": "ok"})
    assert (version["round"], version["client"], version["own_prompt"]) == (1, 0, True)
    assert version["classes"] == model.class_names and re.fullmatch(
        "[0-9a-f]{64}", version["prompt"]
    )
    others = [load_client_model(run, client) for client in (1, None)]
    assert len({version["prompt"], *(other.digest for other in others)}) == 3
    assert version["prompt"] == load_client_model(run, 0).digest
    assert str(run) not in json.dumps(version)


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"", {}, 422, "there is no picture"),
        (b"words", {}, 422, "picture 1 cannot be read: it has no format"),
        (form(b"words"), FORM, 422, "picture 1 cannot be read"),
        (form(), FORM, 422, "there is no picture"),
        (b"x" * 60_001, {}, 413, "larger than 60000 bytes"),
        (b"x", {"content-length": "9" * 30}, 413, "larger than 60000 bytes"),
        (form(*[b"x"] * 5), FORM, 413, "more than 4 files"),
        (b"words", {"content-type": "multipart/form-data"}, 400, "the form cannot be read"),
        (b"words", FORM, 400, "the form cannot be read"),
    ],
)
def test_what_cannot_be_answered_says_why(app, body, headers, status, said):
    found, answer = asyncio.run(ask(app, body, headers))
    assert found == status and said in answer["error"]


def test_a_picture_that_is_too_large_is_not_decoded(app, pictures):
    for body, said in (
        (form(pictures[0], with_size(60_000, 60_000)), "picture 2 cannot be read: Image size"),
        (form(with_size(101, 100)), "picture 1 cannot be read: it has 101x100 pixels, more than"),
        (png(Image.new("L", (5_000, 1))), "more than 100 times as long"),
        (form(pictures[0], pictures[1][:-60]), "picture 2 cannot be read: "),
    ):
        status, answer = asyncio.run(ask(app, body, FORM if body.startswith(b"--") else {}))
        assert status == 422 and said in answer["error"] and " at 0x" not in answer["error"]


def test_a_body_that_does_not_come_is_not_waited_for(app):
    async def slow():
        return await ask(app, b"x" * 20_000, chunk=10_000, cut=1), await hangs()

    async def hangs():
        never = asyncio.Event()

        async def receive():
            await never.wait()

        said = []

        async def send(event):
            said.append(event)

        scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict"}
        scope |= {"headers": [], "query_string": b"", "http_version": "1.1", "scheme": "http"}
        await app(scope, receive, send)
        return said[0]["status"]

    (gone, _), late = asyncio.run(slow())
    assert gone == 400 and late == 408


def malformed(pictures: list[bytes], rng: np.random.Generator):
    """A request that is wrong in one of many ways: body, headers, and where it is cut."""
    picture = pictures[rng.integers(len(pictures))]
    noise = rng.bytes(int(rng.integers(1, 2000)))
    kind = rng.integers(9)
    if kind == 0:
        return noise, {}, None
    if kind == 1:
        return picture[: rng.integers(1, len(picture) - 40)], {}, None
    if kind == 2:  # bytes of a picture changed
        changed = bytearray(picture)
        for place in rng.integers(0, len(changed), 20):
            changed[place] = rng.integers(256)
        return bytes(changed), {}, None
    if kind == 3:
        whole = form(picture, picture)
        return whole[: rng.integers(len(whole))], FORM, None
    if kind == 4:
        changed = bytearray(form(picture))
        for place in rng.integers(0, 120, 6):
            changed[place] = rng.integers(256)
        return bytes(changed), FORM, None
    if kind == 5:
        kinds = ["multipart/form-data; boundary=", "multipart/form-data; boundary=\xff", "\0"]
        kinds += [f"{FORM['content-type']}; charset=none", "multipart/mixed", "application/json"]
        return noise, {"content-type": kinds[rng.integers(len(kinds))]}, None
    if kind == 6:
        return form(noise, name="../../../etc/passwd\0"), FORM, None
    if kind == 7:
        return picture, {"content-length": str(rng.integers(-5, 10**9))}, 0
    return form(*[noise] * int(rng.integers(1, 12))), FORM, None


def test_a_thousand_malformed_requests(app, run, pictures):
    """None is an error of the server, none opens a file, and none is told a path."""
    rng, opened, watching = np.random.default_rng(0), [], [False]
    sys.addaudithook(lambda event, args: event == "open" and watching[0] and opened.append(args[0]))
    requests = [malformed(pictures, rng) for _ in range(1000)]

    async def all_of_them():
        before = await ask(app, pictures[0])
        watching[0] = True
        answers = []
        for first in range(0, 1000, 20):
            some = [
                ask(app, body, headers, cut=cut) for body, headers, cut in requests[first:][:20]
            ]
            answers += await asyncio.gather(*some)
        watching[0] = False
        return before, answers, await ask(app, pictures[0])

    before, answers, after = asyncio.run(all_of_them())
    assert before == after and before[0] == 200
    statuses = {status for status, _ in answers}
    assert statuses <= {200, 400, 413, 422} and {400, 413, 422} <= statuses
    refused = [answer["error"] for status, answer in answers if status != 200]
    assert len(refused) > 800  # a few changed bytes may leave a picture that can be read
    for said in refused:
        assert "\n" not in said and not re.search(r" at 0x|/tmp|/home|/root|passwd", said), said
        assert str(run) not in said
    assert not opened


def test_requests_that_wait_are_answered_together():
    passes = []

    async def several(executor):
        def answer(pixels):
            passes.append(len(pixels))
            if passes[-1] == 3:
                raise RuntimeError("of the model")
            return pixels.flatten(1).sum(1)

        batches = Batches(answer, executor, most=4, room=6)
        one = torch.ones(3, 1, 1)
        first = asyncio.create_task(batches.ask([one]))
        await asyncio.sleep(0)  # at work on it
        others = [asyncio.create_task(batches.ask([k * one] * 2)) for k in (1, 2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await batches.ask([one])
        given = [await first, *[await other for other in others]]
        with pytest.raises(RuntimeError, match="of the model"):
            await batches.ask([one] * 3)
        return given, await batches.ask([one])

    with ThreadPoolExecutor(1) as executor:
        given, after = asyncio.run(several(executor))
    assert passes == [1, 4, 2, 3, 1]
    assert [answer.tolist() for answer in given] == [[3], [3, 3], [6, 6], [9, 9]]
    assert after.tolist() == [3]


def check_served(address: str, model, pictures: list[bytes]) -> None:
    """What a client of the server sees."""

    def get(path, data=None):
        with urllib.request.urlopen(f"{address}{path}", data, timeout=60) as reply:
            assert "server" not in reply.headers
            return json.loads(reply.read())

    assert get("/health") == {"status": "ok"}
    assert get("/version")["prompt"] == model.digest
    answer = get("/predict", pictures[0])["predictions"][0]
    (expected,) = predict.predict(model, [Image.open(io.BytesIO(pictures[0])).convert("RGB")])
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)
    with pytest.raises(urllib.error.HTTPError, match="422"):
        get("/predict", b"words")


def test_the_command_serves_a_run(run, model, pictures, monkeypatch):
    servers = []

    class Server(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(uvicorn, "Server", Server)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--run", str(run), "--client", "0", "--port", str(port)]
    thread = threading.Thread(target=serve.main, args=(words,), daemon=True)
    thread.start()
    while not (servers and servers[0].started) and thread.is_alive():
        time.sleep(0.02)
    try:
        check_served(f"http://127.0.0.1:{port}", model, pictures)
    finally:
        servers[0].should_exit = True
        thread.join(60)
    assert not thread.is_alive()


@pytest.mark.slow
def test_ctrl_c_ends_the_command(run, model, pictures):
    """In a process of its own, on a port that the system chooses."""
    command = [sys.executable, "-m", "experiments.serve", "--run", str(run), "--client", "0"]
    server = subprocess.Popen(
        [*command, "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.search(r"http://[\d.:]+", server.stdout.readline())[0]
        check_served(address, model, pictures)
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=60)
        assert server.returncode == 0, said
        assert "Traceback" not in said[1]
    finally:
        server.kill()


def test_bad_options_are_said(run, monkeypatch, capsys):
    for words, said in (
        (["--max-mb", "0"], "--max-mb=0.0"),
        (["--max-pictures", "0"], "--max-pictures=0"),
    ):
        assert serve.main(["--run", str(run), "--global", *words]) == 2
        assert said in capsys.readouterr().err
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "uvicorn", None)
        assert serve.main(["--run", str(run), "--global"]) == 2
        assert "pip install 'fedpgp[serve]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(capsys):
    with serve._listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Exception, match=f"--port {port} cannot be listened on"):
            serve._listening("127.0.0.1", port)
    with pytest.raises(Exception, match="--port 70000 cannot be listened on"):
        serve._listening("127.0.0.1", 70_000)
