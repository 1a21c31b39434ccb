"""A real federation on loopback: SuperLink and SuperNodes as processes, TLS, keys, a real FAB."""

import contextlib
import html
import json
import os
import shlex
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from argparse import Namespace
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from cryptography import x509
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.runtime.runtime_http_client import RuntimeHttpClient
from safetensors.numpy import load_file

from clients.disclosure import FIGURES, NO_FIGURES
from clients.private_state import owner
from experiments.admin_token import log_in, read_token
from experiments.deploy import _names_of, _sites, main
from experiments.runner import start
from experiments.runtimes.certificates import make_certificates, make_node_key
from experiments.runtimes.local_processes import ROOT, LocalProcesses
from experiments.settings import composed
from experiments.superexec import flower
from fedpgp.errors import FedPGPError
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.strategies.test_privacy import CLASSES
from tests.strategies.test_privacy import sites as own_sites
from tests.strategies.test_private_deployment import sites as private_sites

pytestmark = pytest.mark.timeout(900)  # a minute on two idle cores
CLIENTS, ROUNDS = 2, 2
SETTINGS = [
    "dataset.domains=[noto]",
    "partition=dirichlet",
    "partition.beta=0.5",
    f"clients={CLIENTS}",
    f"rounds={ROUNDS}",
    "shots=4",
    "local_epochs=1",
    "evaluate_every=0",
    "dtype=float64",
    "device=cpu",
]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    cache = folder.parent / "features"
    start(
        composed(
            [*SETTINGS, "runtime=inline", f"runtime.cache_dir={cache}", f"run_dir={folder / 'run'}"]
        )
    )
    return folder / "run"


@pytest.fixture(scope="module")
def federation(tmp_path_factory, simulated):
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # other users of the machine come this far
    cache = str(simulated.parent.parent / "features")
    nodes = [{"client-id": client, "cache-dir": cache} for client in range(CLIENTS)]
    with LocalProcesses(folder / "nodes", nodes) as running:
        yield running
        started = [running.superlink, *(node for node in running.supernodes if node.poll() is None)]
        members = [
            member
            for process in started
            for member in psutil.Process(process.pid).children(recursive=True)
        ]
    left = [
        member
        for member in members
        if member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    ]
    shutil.rmtree(folder)
    assert members and not left, "processes were left behind"


class Watch(threading.Thread):
    """What the processes that Flower starts for messages cost: pid -> (start, seconds it
    lived, of them on the CPU)."""

    def __init__(self, node: int):
        super().__init__(daemon=True)
        self.node, self.cost, self.over = psutil.Process(node), {}, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            for process in self.node.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any("flwr-clientapp" in word for word in process.cmdline()):
                        times, start = process.cpu_times(), process.create_time()
                        self.cost[process.pid] = (
                            start,
                            time.time() - start,
                            times.user + times.system,
                        )

    def messages(self) -> list[tuple[float, float]]:
        """(seconds, CPU seconds) of each message, in order (without what was forked for a
        moment)."""
        return [cost[1:] for cost in sorted(self.cost.values()) if cost[1] > 1]


@pytest.fixture(scope="module")
def watch(federation) -> Watch:
    thread = Watch(federation.supernodes[0].pid)
    thread.start()
    yield thread
    thread.over.set()


@pytest.fixture(scope="module")
def deployed(federation, watch) -> Path:
    run_dir = federation.folder.parent / "run"
    said: list[str] = []
    cache = federation.nodes[0]["cache-dir"]
    federation.run(
        [
            *SETTINGS,
            f"runtime.cache_dir={cache}",
            "runtime.round_timeout=300",
            f"run_dir={run_dir}",
        ],
        said.append,
    )
    assert any("personal prompt" in line for line in said), "\n".join(
        [*said, federation.log("superlink")]
    )
    return run_dir


def metrics(run_dir: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_deployment_gives_the_simulation_s_numbers(simulated, deployed, federation):
    (ours, _), (theirs, _) = (
        read_checkpoint(checkpoints(run / "checkpoint")[-1]) for run in (deployed, simulated)
    )
    assert set(ours) == set(theirs) and {"shared/p_G"} <= set(ours)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-9, atol=1e-12, err_msg=name)
    run, _ = owner(deployed / "private")
    for client in range(CLIENTS):
        state = Path(f"client_{client:05d}") / f"round_{ROUNDS:05d}.safetensors"
        own = load_file(federation.folder / f"client_{client}" / "state" / run / state)
        for name, tensor in load_file(simulated / "private" / state).items():
            np.testing.assert_allclose(own[name], tensor, rtol=1e-9, atol=1e-12, err_msg=name)
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (deployed, simulated))
    assert ours["status"] == "finished"
    for model, figures in theirs["accuracy"].items():
        for name in ("local", "base", "novel", "hm3", "hm2"):
            assert ours["accuracy"][model][name] == figures[name], (model, name)
        assert ours["accuracy"][model]["ece"] == pytest.approx(figures["ece"], rel=1e-9)
    assert (deployed / "clients.csv").read_text() == (simulated / "clients.csv").read_text()
    assert not list((deployed / "private").glob("client_*")), "the server has no private state"
    names = {path.name for path in simulated.iterdir()} - {".lock"}
    assert names <= {path.name for path in deployed.iterdir()}


@pytest.mark.slow
def test_a_training_message_costs_a_small_process(deployed, watch):
    """At most 4 s from the start of its process on an idle machine; a busy one makes
    CPU seconds longer, too."""
    handshake, _, first, second, *_ = messages = watch.messages()
    print(
        "seconds and CPU seconds of each message:",
        [(round(lived, 1), round(cpu, 1)) for lived, cpu in messages],
    )
    assert len(messages) == ROUNDS + 4 and second[1] < 5 and second[1] < handshake[1]


def test_bytes_of_a_round_are_two_prompts_a_client(deployed):
    """p_G down and p_G up for each client, and at most 5 % beside (for the paper's 16 x
    512 context in float32)."""
    prompt = 4 * 192 * 8
    for line in metrics(deployed, "train"):
        beside = line["bytes_up"] + line["bytes_down"] - line["clients"] * 2 * prompt
        assert 0 < beside / (line["clients"] * 2) < 0.05 * 16 * 512 * 4


def test_a_node_with_an_unknown_key_is_refused(federation, deployed):
    """The SuperLink says so, and the node ends."""
    federation.kill_node(1)
    before = _lengths(federation)
    make_node_key(federation.folder / "stranger")
    node = federation.start_node(1, federation.folder / "stranger")
    node.wait(120)
    refused, ended = _said_since(federation, before)
    assert (
        "No SuperNode found with the given public key" in refused
        and "Activated node_id" not in refused
    )
    assert "Failed to activate SuperNode" in ended


def test_a_plain_text_node_is_refused(federation, deployed):
    """It fails to connect to a SuperLink that answers those who speak TLS, and tries again. (So
    does, a few times at most, the process that starts its apps, until the node is up.)"""
    before = _lengths(federation)
    node = federation.start_node(1, None, "--insecure")
    end = time.monotonic() + 120
    while _said_since(federation, before)[1].count("Connection attempt failed, retrying") < 6:
        assert node.poll() is None and time.monotonic() < end, federation.log("client_1")
        time.sleep(0.2)
    federation.kill_node(1)
    trusted = ssl.create_default_context(cafile=federation.folder / "ca.crt")
    host, port = federation.address.split(":")
    with (
        socket.create_connection((host, int(port)), 60) as plain,
        trusted.wrap_socket(plain, server_hostname=host),
    ):
        pass
    connected, _ = _said_since(federation, before)
    assert "Activated node_id" not in connected


def test_the_folders_of_a_deployment_are_their_owner_s_alone(federation, deployed):
    """Certificates, keys, logs, states and features; and the run's, with the clients'
    images in its report."""
    for path in (federation.folder, deployed):
        assert path.stat().st_mode & 0o077 == 0
    inside = [*federation.folder.rglob("*"), *deployed.rglob("*")]
    secret = [path for path in inside if path.suffix not in (".crt", ".pub", ".pem")]
    open_ones = [path for path in secret if not path.is_symlink() and path.stat().st_mode & 0o077]
    assert len(secret) > 50 and not open_ones, open_ones
    if os.getuid() == 0:
        look = (
            f"ls {federation.folder.parent} && ! ls {federation.folder} && ! cat "
            f"{federation.folder / 'ca.crt'}"
        )
        seen = subprocess.run(
            ["su", "nobody", "-s", "/bin/sh", "-c", look], capture_output=True, text=True
        )
        assert seen.returncode == 0 and federation.folder.name in seen.stdout, seen


def test_nobody_starts_an_app_without_the_token(federation, deployed, tmp_path):
    """Even one who has the authority's certificate: the network knows no users. Nor takes a
    task, here or at a node."""
    connection = (federation.folder / "flwr" / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(connection)
    before, environment = (
        len(federation.log("superlink")),
        {**os.environ, "FLWR_HOME": str(tmp_path)},
    )

    def flwr(*words: str) -> str:
        command = [flower("flwr"), *words]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        ).stderr

    assert "authenticat" in flwr("run", str(ROOT), "lo").lower()
    said = federation.log("superlink")[before:]
    assert '"POST /v1/control/start-run HTTP/1.1" 401' in said and "Created run" not in said
    authority = (federation.folder / "ca.crt").read_bytes()
    for address in (federation.address, federation.runtime_address(0)):
        client = RuntimeHttpClient.from_server_address(address, False, authority, interceptors=[])
        with pytest.raises(httpx.HTTPStatusError, match="40[13]"):
            client.AcquireTask(
                AcquireTaskRequest(supported_task_types=["flwr-serverapp", "flwr-clientapp"])
            )
    host = f"https://{federation.address}/v1/runtime"
    for closed in ("start-automation", "create-task"):
        assert (
            httpx.post(f"{host}/{closed}", verify=str(federation.folder / "ca.crt")).status_code
            == 404
        )
    log_in(federation.address, read_token(federation.folder / "admin.token"), tmp_path)
    assert flwr("list", "lo") == ""


def _lengths(federation: LocalProcesses) -> list[int]:
    return [len(federation.log(name)) for name in ("superlink", "client_1")]


def _said_since(federation: LocalProcesses, lengths: list[int]) -> list[str]:
    """What the SuperLink and the node of client 1 have said since."""
    return [
        federation.log(name)[n:] for name, n in zip(("superlink", "client_1"), lengths, strict=True)
    ]


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_nothing_behind(tmp_path):
    """The command of a person, stopped in the middle and resumed: the simulation's numbers."""
    run_dir = tmp_path / "run (1)"  # a name that Hydra would not read without quotes
    settings = [*SETTINGS, "clients=2", "rounds=2", f"runtime.cache_dir={tmp_path / 'features'}"]
    start(composed([*settings, "runtime=inline", f"run_dir={tmp_path / 'simulated'}"]))
    command = [sys.executable, "-u", "-m", "experiments.deploy", "local", "--clients", "2"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    first = [*command, *settings, "runtime.round_timeout=500", f"run_dir='{run_dir}'"]
    process = subprocess.Popen(first, cwd=ROOT, start_new_session=True, **streams)
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("round 1/"):
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130, "".join(said)
    (line,) = (line for line in said if line.startswith("interrupted; resume with: "))
    words = shlex.split(line.partition(": ")[2])
    assert words == ["python", *command[2:], f"resume='{run_dir}'"]
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "interrupted"
    mine = [
        p
        for p in psutil.process_iter(["cmdline"])
        if any(str(tmp_path) in w for w in p.info["cmdline"] or ())
    ]
    assert not mine
    again = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, **streams)
    assert again.returncode == 0, again.stdout
    assert f"run folder: {run_dir}" in again.stdout
    words = tomllib.loads((run_dir.with_name(f"{run_dir.name}_nodes") / "run.toml").read_text())[
        "overrides"
    ]
    assert (
        "runtime=flower" in words and "round_timeout" not in words
    )  # the run keeps the one it was started with
    typed = shlex.join(first[first.index("local") + 1 : -1])
    assert f"experiments.deploy local {typed}</pre>" in html.unescape(
        (run_dir / "report.html").read_text()
    )
    runs = (run_dir, tmp_path / "simulated")
    (ours, _), (theirs, _) = (read_checkpoint(checkpoints(run / "checkpoint")[-1]) for run in runs)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["local"], "say how many clients"),
        (["local", "--clients", "0"], "say how many clients"),
        (["local", "--data", "/nowhere"], "there is no folder in it"),
        (["local", "--clients", "2", "methd=coop"], "methd"),
        (
            ["local", "--clients", "2", "partition=domain_dirichlet"],
            "needs at least one client a domain",
        ),
        (["local", "--clients", "2", "dataset=folder", "dataset.root=/nowhere"], "/nowhere"),
        (["local", "--clients", "2", "runtime=inline"], "runtime=inline is for experiments.run"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments, said, capsys):
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert said in told.err and "starting a SuperLink" not in told.out


def test_a_used_run_dir_and_a_run_that_is_not_there_are_refused_before_anything_starts(
    tmp_path, capsys
):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["local", "--clients", "2", f"run_dir={tmp_path}"]) == 2
    assert f"{tmp_path} exists already" in capsys.readouterr().err
    assert main(["local", "--clients", "2", f"resume={tmp_path / 'nowhere'}"]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_keys_for_separate_machines(tmp_path, capsys):
    to = tmp_path / "secrets"
    assert main(["keys", "--host", "fed.example.org", "--clients", "2", "--to", str(to)]) == 0
    clients = {f"client_{i}.key{end}" for i in range(2) for end in ("", ".pub")}
    assert {path.name for path in to.iterdir()} == {
        "ca.crt",
        "server.pem",
        "server.key",
        "admin.token",
        *clients,
    }
    assert all(
        path.stat().st_mode & 0o077 == 0 for path in (to, *to.glob("*.key"), to / "admin.token")
    )
    assert main(["keys", "--host", "fed.example.org", "--clients", "2", "--to", str(to)]) == 2
    assert "has certificates already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("", "it is empty"),
        ("https://fed.example.org", "it has a scheme"),
        ("fed.example.org:8443", "it has a port"),
        ("müller.example.org", "not ASCII; write xn--mller-kva.example.org"),
        ("a" * 70, "too long: at most 253 characters, and 63 between two dots"),
        (".".join(["abcd"] * 60), "too long"),
        ("fed example.org", "letters, digits and hyphens"),
        ("fed..org", "letters, digits and hyphens"),
        ("-fed.org", "letters, digits and hyphens"),
        ("1.2.3.4:80", "it has a port"),
        ("0.0.0.0", "a server listens on it, and nobody reaches it by it"),
        ("[::]", "a server listens on it"),
        ("224.0.0.1", "it is of many machines"),
        ("fe80::1%eth0", "what follows % is of one machine"),
    ],
)
def test_a_host_that_is_none_is_refused_in_words(tmp_path, host, said, capsys):
    """Before anything is written."""
    assert (
        main(
            [
                "keys",
                "--host=fed.example.org",
                f"--host={host}",
                "--clients",
                "1",
                "--to",
                str(tmp_path / "s"),
            ]
        )
        == 2
    )
    told = capsys.readouterr().err
    assert said in told and "--host" in told and "Traceback" not in told
    assert not (tmp_path / "s" / "server.key").exists()


def test_keys_for_no_clients_are_refused(tmp_path, capsys):
    assert (
        main(["keys", "--host", "fed.example.org", "--clients", "0", "--to", str(tmp_path / "s")])
        == 2
    )
    assert "--clients 0 cannot work" in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_a_certificate_is_for_its_hosts_however_long_and_for_the_server_s_own_processes(tmp_path):
    """A common name has 64 characters at most; alternative names have more."""
    long = ".".join(["department-of-things"] * 5)
    make_certificates(tmp_path, [long, "[2001:db8::1]", "10.0.0.1"])
    server = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [long, "localhost"]
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["2001:db8::1", "10.0.0.1", "127.0.0.1", "::1"]


def test_folders_that_are_no_clients_do_not_count(tmp_path):
    for name in ("clinic_b", "clinic_a", ".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").touch()
    found = _sites(Namespace(data=tmp_path, clients=2), {})
    assert [Path(site["data-dir"]).name for site in found] == ["clinic_a", "clinic_b"]


def test_sites_of_a_run_that_is_resumed_keep_their_numbers(tmp_path):
    (tmp_path / "run").mkdir()
    rows = [{"id": 0, "name": "bern"}, {"id": 1, "name": "rome"}, {"id": 2}]
    (tmp_path / "run" / "partition.json").write_text(json.dumps({"clients": rows}))
    known = _names_of(tmp_path / "run")
    assert known == {"bern": 0, "rome": 1} and _names_of(tmp_path / "nowhere") == {}
    for name in ("rome", "bern", "athens", "oslo"):
        (tmp_path / "sites" / name).mkdir(parents=True)
    options = Namespace(data=tmp_path / "sites", clients=None)
    found = [(site["client-id"], site["client-name"]) for site in _sites(options, known)]
    assert found == [(0, "bern"), (1, "rome"), (2, "athens"), (3, "oslo")]
    (tmp_path / "sites" / "rome").rmdir()
    with pytest.raises(FedPGPError, match="the folder of client 1 .rome. is not there"):
        _sites(options, known)


def test_the_names_of_a_resumed_run_are_found_whatever_its_path_holds(tmp_path, capsys):
    """Read with Hydra's quotes the path is none, and each site would get another's number."""
    run_dir = tmp_path / "seed=1, the (second) run"
    (tmp_path / "sites" / "bern").mkdir(parents=True)
    run_dir.mkdir()
    rows = [{"id": 0, "name": "rome"}, {"id": 1, "name": "bern"}]
    (run_dir / "partition.json").write_text(json.dumps({"clients": rows}))
    words = ["local", "--data", str(tmp_path / "sites"), f"resume={run_dir}"]
    assert main(words) == 2
    assert "the folder of client 0 (rome) is not there" in capsys.readouterr().err
    (run_dir / "partition.json").write_text("{")
    assert main(words) == 2
    assert "partition.json cannot be read" in capsys.readouterr().err
    (run_dir / "partition.json").unlink()
    assert _names_of(run_dir) == {}  # nobody has trained
    (run_dir / "checkpoint").mkdir()
    (run_dir / "checkpoint" / "round_00001.safetensors").touch()
    with pytest.raises(FedPGPError, match=r"partition.json cannot be read .*restore it"):
        _names_of(run_dir)


def test_two_folders_with_one_name_are_refused(tmp_path):
    for last in "ab":
        (tmp_path / f"{'long' * 20}{last}").mkdir()
    with pytest.raises(FedPGPError, match="are the same client's name, which has 64 bytes"):
        _sites(Namespace(data=tmp_path, clients=None), {})


@pytest.mark.slow
def test_a_site_joins_and_another_leaves(tmp_path):
    """With a SuperLink and nodes as processes of their own: a new folder is a new client."""
    images, run_dir = tmp_path / "sites", tmp_path / "run"
    for site in own_sites(tmp_path):
        shutil.move(site["data-dir"], images / Path(site["data-dir"]).name)
    words = ["dataset=folder", f"dataset.class_names=[{','.join(CLASSES)}]", "n_ctx=2"]
    words += ["protocol=personal", "local_epochs=1", "rounds=1", "runtime.min_report=1"]
    assert main(["local", "--data", str(images), *words, f"run_dir={run_dir}"]) == 0
    shutil.copytree(images / "site_0", images / "a_later_site")
    again = ["local", "--data", str(images), f"resume={run_dir}"]
    assert main([*again, "rounds=2"]) == 0
    assert main([*again, "rounds=3", "left=[1]"]) == 0
    assert [line["clients"] for line in metrics(run_dir, "train")] == [2, 3, 2]
    table = json.loads((run_dir / "partition.json").read_text())["clients"]
    assert [row["name"] for row in table] == ["site_0", "site_1", "a_later_site"]


def test_a_key_for_a_client_that_comes_later(tmp_path, capsys):
    to = tmp_path / "later"
    assert main(["keys", "--add", "3", "--to", str(to)]) == 0
    assert {path.name for path in to.iterdir()} == {"client_3.key", "client_3.key.pub"}
    assert (to / "client_3.key").stat().st_mode & 0o077 == 0
    assert "--name client-3" in capsys.readouterr().out
    for words, said in (
        (["--add", "3"], "client_3.key is there already"),
        (["--add", "-1"], "--add CLIENT is a client's number"),
        (["--add", "4", "--clients", "2"], "it goes with --to alone"),
        (["--host", "fed.example.org"], "say --host NAME and --clients N, or --add CLIENT"),
    ):
        assert main(["keys", *words, "--to", str(to)]) == 2
        assert said in capsys.readouterr().err


def test_experiments_run_does_not_start_a_deployment(tmp_path):
    with pytest.raises(
        FedPGPError, match="runtime=flower is started by: python -m experiments.deploy"
    ):
        start(composed(["runtime=flower", f"run_dir={tmp_path / 'run'}"]))
    with pytest.raises(FedPGPError, match="partition=own is for a deployment"):
        start(
            composed(
                ["runtime=inline", "partition=own", "dataset=folder", f"run_dir={tmp_path / 'run'}"]
            )
        )


RECORDER = '''
"""Keeps a copy of all that the ClientApps of this machine answer."""
import importlib.abc, importlib.machinery, os, sys

class Recorder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "clients.request":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            message = module.Message

            def recorded(content, **reply_to):
                from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
                with open(os.path.join(os.environ["RECORD"], str(os.getpid())), "ab") as file:
                    for part in get_all_nested_objects(content).values():
                        file.write(part.deflate())
                return message(content, **reply_to)

            module.Message = recorded

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Recorder())
'''


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["client", "image"])
def test_with_privacy_nothing_but_updates_leaves(privacy, tmp_path):
    """The command of a person, over TLS: what the nodes sent has neither a figure that they kept
    nor its name."""
    private_sites(tmp_path / "data", 4)
    for folder in ("record", "hook"):
        (tmp_path / folder).mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(RECORDER)
    command = [sys.executable, "-m", "experiments.deploy", "local"]
    command += ["--data", str(tmp_path / "data"), "partition=own", "dataset=folder", "rounds=2"]
    command += [f"dataset.class_names=[{','.join(CLASSES)}]", "n_ctx=4", "local_epochs=1"]
    command += [f"privacy={privacy}", "privacy.clip=0.1", f"run_dir={tmp_path / 'run'}"]
    path = os.pathsep.join([str(tmp_path / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])])
    around = {**os.environ, "PYTHONPATH": path, "RECORD": str(tmp_path / "record")}
    run = subprocess.run(command, cwd=ROOT, env=around, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert NO_FIGURES in " ".join(run.stdout.split())
    sent = b"\0".join(file.read_bytes() for file in (tmp_path / "record").iterdir())
    assert b"p_G" in sent and len(list((tmp_path / "record").iterdir())) >= 8
    files = [*(tmp_path / "run_nodes").rglob(FIGURES)]
    kept = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(files) == 2 and {row["round"] for row in kept} == {0, 1, 2}
    assert {"loss", "personal.local"} <= set().union(*kept)
    figures = {v for row in kept for name, v in row.items() if isinstance(v, float) and v > 0}
    for value in figures:
        assert struct.pack("<d", value) not in sent and repr(value).encode() not in sent
    assert not [
        word for word in (b"loss", b"local", b"num-examples", b"images", b"epsilon") if word in sent
    ]
