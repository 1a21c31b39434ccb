"""A node lets nobody choose a folder of its disk, but in a simulation, where the server's folder is everybody's."""

from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, RecordDict

from clients.app import Node
from clients.wire import Job, pack
from fedpgp.errors import FedPGPError


def node(tmp_path, node_config):
    job = Job("run", 1, "{}", str(tmp_path / "chosen"), 1, clients=(0,), committed=(0,))
    content = pack(job, {0: RecordDict({"config": ConfigRecord()})})
    return Node(SimpleNamespace(content=content), SimpleNamespace(node_config=node_config), lambda config: None)


@pytest.mark.parametrize("node_config", [{}, {"client-id": 0, "state-dir": "/srv/state"}])
def test_a_real_node_refuses_the_servers_folder(tmp_path, node_config):
    with pytest.raises(FedPGPError, match="simulation only"):
        node(tmp_path, node_config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("node_config", [{"inline": True}, {"partition-id": 0, "num-partitions": 2}])
def test_a_simulations_node_takes_it(tmp_path, node_config):
    assert node(tmp_path, node_config).store.folder == tmp_path / "chosen"


def test_a_broken_picture_is_named_to_nobody_else(tmp_path, capfd):
    """The reason that leaves a client with its own pictures names no file, folder or class."""
    error = FedPGPError("image /srv/pictures/train/cat/Jane_Doe.jpg cannot be read")
    plain = {"client-id": 0, "state-dir": str(tmp_path)}
    told = []
    for node_config in (plain, {**plain, "data-dir": str(tmp_path)}):
        job = Job("0123456789abcdef", 1, "{}", "", 1, clients=(0,), committed=(0,))
        content = pack(job, {0: RecordDict({"config": ConfigRecord()})})
        one = Node(SimpleNamespace(content=content), SimpleNamespace(node_config=node_config), lambda config: None)

        def broken(federation, shared, clients, own):
            raise error

        one._collect(broken, None, {}, [0], {})
        told.append(one.errors[0])
    assert "Jane_Doe" in told[0]  # a picture of a public data set
    assert "Jane" not in told[1] and "cat" not in told[1] and "log of its node" in told[1]
    assert "Jane_Doe" in capfd.readouterr().err
