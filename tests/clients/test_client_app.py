"""A node's own affairs: its folders, and what it tells of its errors."""

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from clients import node_config
from clients.client_app import client_app
from clients.messages import Job, pack
from clients.node_config import NodeConfig
from clients.private_state import PrivateStore
from clients.request import ClientRequest
from experiments.runtimes.inline import NODE, InlineGrid
from fedpgp.errors import FedPGPError


def node(tmp_path, node_config, private="chosen"):
    folder = str(tmp_path / private) if private else ""
    job = Job("0123456789abcdef", 1, "{}", folder, 1, clients=(0,), committed=(0,))
    content = pack(job, {0: RecordDict({"config": ConfigRecord()})})
    return ClientRequest(
        SimpleNamespace(content=content),
        SimpleNamespace(node_config=node_config),
        lambda config: None,
    )


@pytest.mark.parametrize("node_config", [{}, {"client-id": 0, "state-dir": "/srv/state"}])
def test_a_real_node_refuses_the_servers_folder(tmp_path, node_config):
    with pytest.raises(FedPGPError, match="simulation only"):
        node(tmp_path, node_config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "node_config", [{"inline": True}, {"partition-id": 0, "num-partitions": 2}]
)
def test_a_simulations_node_takes_it(tmp_path, node_config):
    assert node(tmp_path, node_config).store.folder == tmp_path / "chosen"


def test_a_broken_image_is_named_to_nobody_else(tmp_path, capfd):
    """The reason that leaves a client with its own images names no file, folder or class."""
    error = FedPGPError("image /srv/images/train/cat/Jane_Doe.jpg cannot be read")
    plain = {"client-id": 0, "state-dir": str(tmp_path)}
    told = []
    for given in (plain, {**plain, "data-dir": str(tmp_path)}):
        job = Job("0123456789abcdef", 1, "{}", "", 1, clients=(0,), committed=(0,))
        content = pack(job, {0: RecordDict({"config": ConfigRecord()})})
        one = ClientRequest(
            SimpleNamespace(content=content),
            SimpleNamespace(node_config=given),
            lambda config: None,
        )

        def broken(federation, shared, clients, client_only):
            raise error

        one._collect(broken, None, {}, [0], {})
        told.append(one.errors[0])
    assert "Jane_Doe" in told[0]  # an image of a public data set
    assert (
        "Jane" not in told[1]
        and "cat" not in told[1]
        and "errors.log in its state-dir says what" in told[1]
    )
    assert "Jane_Doe" in capfd.readouterr().err
    kept = tmp_path / "errors.log"
    assert "Jane_Doe" in kept.read_text() and kept.stat().st_mode & 0o077 == 0


def test_where_nothing_can_be_written_the_node_s_log_has_the_error(tmp_path, capfd):
    (tmp_path / "file").touch()
    site = {"client-id": 0, "state-dir": str(tmp_path / "file"), "data-dir": str(tmp_path)}
    assert "the log of its node says what" in node(tmp_path, site, private="").reason(
        FedPGPError("cat/1.png is broken")
    )
    assert "cat/1.png" in capfd.readouterr().err


def test_a_node_s_errors_do_not_fill_its_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(node_config, "ERRORS_BYTES", 1000)
    own = NodeConfig.of({"client-id": 0, "state-dir": str(tmp_path)})
    for number in range(100):
        assert own.keep_error(f"error {number} \ud800")
    kept = (tmp_path / "errors.log").read_text()
    assert (
        "error 99" in kept
        and len(kept) < 1100
        and (tmp_path / "errors.log.1").stat().st_size < 1100
    )


def test_an_exception_nobody_foresaw_is_kept_with_its_traceback(tmp_path):
    site = {"client-id": 0, "state-dir": str(tmp_path), "data-dir": str(tmp_path)}
    one = node(tmp_path, site, private="")
    try:
        {}["cat"]
    except KeyError as error:
        one.reason(error)
    assert "Traceback" in (tmp_path / "errors.log").read_text()


def test_images_that_cannot_be_encoded_are_not_tried_again_for_each_client(tmp_path):
    """All clients of a simulation have one data set: 2,000 of them would read it 2,000
    times to the same image."""

    class Broken:
        """A federation, and its inputs."""

        tries = 0
        inputs = property(lambda self: self)

        def encode(self):
            self.tries += 1
            raise FedPGPError("image 3.png cannot be read")

    federation = Broken()
    store = PrivateStore(tmp_path, "0123456789abcdef", 1)
    store.claim()
    job = Job(
        store.run,
        1,
        store.give_configuration("{}"),
        str(tmp_path),
        0,
        (0, 1, 2),
        (0, 0, 0),
        ask="clients",
    )
    content = pack(job, {client: RecordDict({"config": ConfigRecord()}) for client in job.clients})
    grid = InlineGrid(client_app(lambda text: federation))
    (reply,) = grid.send_and_receive(
        [Message(content, dst_node_id=NODE, message_type=MessageType.QUERY)]
    )
    assert dict(reply.content["errors"]) == dict.fromkeys("012", "image 3.png cannot be read")
    assert federation.tries == 1
