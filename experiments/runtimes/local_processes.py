"""A real federation on this machine: a SuperLink and SuperNodes as processes of their own on
127.0.0.1.

As on separate machines (docs/deployment.md): TLS, a registered key for each node, a token for the
administrator, nothing fetched from the internet. No other user of the machine can read its files,
start an app, or take a node's messages.
"""

import ctypes
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import psutil

from clients.node_config import ERRORS
from experiments.admin_token import log_in, make_token, read_token
from experiments.overrides import toml
from experiments.runtimes.certificates import make_certificates, make_node_key
from experiments.superexec import flower
from fedpgp.atomic_files import owner_only, private_folder, write_atomically
from fedpgp.errors import FedPGPError

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
START_SECONDS = 120
STOP_SECONDS = 20
TOKEN = "admin.token"
LEASE_SECONDS = 150
"""A SuperLink keeps the place of a node that it hears no more of for twice 30 seconds; started
before, the node is sent away, and ends."""


class LocalProcesses:
    """The processes of a federation; a context manager that stops all it started.

    Args:
        folder: certificates, keys, logs and the nodes' own folders (``client_0`` …: their
            state-dir).
        nodes: for each node what its ``--node-config`` says beside ``state-dir``.
        left: clients that have left; their nodes are not started.
    """

    def __init__(
        self, folder: Path, nodes: Sequence[Mapping[str, object]], left: Collection[int] = ()
    ):
        self.folder, self.nodes, self.left = folder.resolve(), list(nodes), left
        self.superlink: subprocess.Popen | None = None
        self.supernodes: list[subprocess.Popen | None] = [None] * len(self.nodes)
        self._port, self._node_ports = free_port(), [free_port() for _ in self.nodes]

    @property
    def address(self) -> str:
        return f"{HOST}:{self._port}"

    def runtime_address(self, node: int) -> str:
        """Return where a node talks to the processes that it starts."""
        return f"{HOST}:{self._node_ports[node]}"

    def __enter__(self) -> "LocalProcesses":
        if not (ROOT / "pyproject.toml").exists():
            raise FedPGPError(
                "a deployment is started from a checkout of the project: Flower sends its code "
                "to the nodes"
            )
        try:
            self._make_keys()
            self._start_superlink()
            self._register()
            for node in range(len(self.nodes)):
                if node not in self.left:
                    self.start_node(node)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(
        self, overrides: Sequence[str], say: Callable[[str], None] = print, command: str = ""
    ) -> None:
        """Run the ServerApp with these overrides to its end, and say what it says.

        Args:
            overrides: as for experiments.run.
            say: called with each line.
            command: what a person typed to have this run, for its report.

        Raises:
            FedPGPError: Flower did not take it.
        """
        words = self.folder / "run.toml"
        text = f"overrides = {toml(shlex.join(overrides))}\ncommand = {toml(command)}\n"
        write_atomically(words, text.encode(), private=True)
        command = [flower("flwr"), "run", str(ROOT), "lo", "--stream", "--run-config", str(words)]
        process = self._popen(command, "flwr-run", stdout=subprocess.PIPE, text=True)
        try:
            for line in process.stdout:
                if not _FLOWERS_OWN.match(line):
                    say(self._with_place(line.rstrip("\n")))
                if _ENDED.search(line):
                    break
            else:
                if process.wait():
                    raise FedPGPError(f"flwr run failed: {' '.join(self.log('flwr-run').split())}")
        finally:
            _end([process], 0)

    def _with_place(self, line: str) -> str:
        """Return a line of the ServerApp's that speaks of a file in a client's state-dir, with the
        file's path."""
        client = re.search(r"client (\d+)", line)
        if client and int(client[1]) < len(self.nodes):
            path = self._state_dir(int(client[1])) / ERRORS
            return line.replace(f"{ERRORS} in its state-dir", str(path))
        return line

    def _state_dir(self, node: int) -> Path:
        return self.folder / f"client_{node}" / "state"

    def interrupt(self) -> None:
        """Ask the ServerApp to stop and save, as Ctrl-C does in a simulation, and wait until it
        has."""
        running = self.server_apps()
        for process in running:
            process.send_signal(signal.SIGTERM)
        psutil.wait_procs(running, timeout=STOP_SECONDS)

    def start_node(self, node: int, key: Path | None = None, *options: str) -> subprocess.Popen:
        """Start (again) the SuperNode of a client.

        Args:
            node: which.
            key: another private key than its own.
            options: in place of TLS and key.
        """
        home = self.folder / f"client_{node}"
        config = {**self.nodes[node], "state-dir": str(self._state_dir(node))}
        secure = [
            "--root-certificates",
            self._file("ca.crt"),
            "--auth-supernode-private-key",
            str(key or home / "key"),
        ]
        command = [
            *(
                sys.executable,
                "-m",
                "experiments.supernode",
                "--superlink",
                self.address,
                *(options or secure),
            ),
            *("--node-config", " ".join(f"{name}={toml(value)}" for name, value in config.items())),
            *("--host", HOST, "--port", str(self._node_ports[node]), *self._own_tls()),
        ]
        threads = max(1, (os.cpu_count() or 1) // len(self.nodes))
        environment = {"FLWR_HOME": str(home / "flwr"), "OMP_NUM_THREADS": str(threads)}
        self.supernodes[node] = self._popen(command, f"client_{node}", environment=environment)
        return self.supernodes[node]

    def kill_node(self, node: int, number: int = signal.SIGKILL) -> None:
        """End a client's SuperNode and what it has started."""
        process = self.supernodes[node]
        os.killpg(process.pid, number)
        process.wait()

    def bring_back(self, node: int) -> None:
        """Start a killed SuperNode again, and again while it is sent away, as its service manager
        would.

        Raises:
            FedPGPError: the SuperLink did not take it.
        """
        name, taken = f"client_{node}", "SuperNode ID:"
        end = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < end:
            before, process = self.log(name).count(taken), self.start_node(node)
            while process.poll() is None:
                if self.log(name).count(taken) > before:
                    return
                time.sleep(0.1)
            time.sleep(1)
        raise FedPGPError(
            f"the SuperLink did not take the node again; its log: {self.folder / 'logs' / name}.log"
        )

    def log(self, name: str) -> str:
        """Return what a process has written: ``superlink``, ``client_0`` …"""
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End every process that was started."""
        _end(
            [process for process in [*self.supernodes, self.superlink] if process is not None],
            STOP_SECONDS,
        )

    # Underneath. ----------------------------------------------------------------------------------

    def _make_keys(self) -> None:
        private_folder(self.folder)
        private_folder(self.folder / "flwr")
        if not (self.folder / "server.key").exists():
            make_certificates(self.folder, ["localhost", HOST])
        for node in range(len(self.nodes)):
            if not (path := self.folder / f"client_{node}" / "key").exists():
                make_node_key(path)
        make_token(self.folder / TOKEN)
        log_in(self.address, read_token(self.folder / TOKEN), self.folder / "flwr")
        connection = f'[superlink]\ndefault = "lo"\n\n[superlink.lo]\naddress = "{self.address}"\n'
        connection += f"root-certificates = {toml(self._file('ca.crt'))}\n"
        write_atomically(self.folder / "flwr" / "config.toml", connection.encode(), private=True)

    def _start_superlink(self) -> None:
        command = [
            *(sys.executable, "-m", "experiments.superlink", "--admin-token", self._file(TOKEN)),
            *(*self._own_tls(), "--enable-supernode-auth"),
            *("--host", HOST, "--port", str(self._port)),
        ]
        self.superlink = self._popen(command, "superlink")
        end = time.monotonic() + START_SECONDS
        while not _answers(self._port):
            if self.superlink.poll() is not None or time.monotonic() > end:
                raise FedPGPError(
                    "the SuperLink did not start; its log: "
                    f"{self.folder / 'logs' / 'superlink.log'}"
                )
            time.sleep(0.1)

    def _register(self) -> None:
        started = []
        for node in range(len(self.nodes)):
            public = str(self.folder / f"client_{node}" / "key.pub")
            command = [flower("flwr"), "supernode", "register", public, "lo", "--format", "json"]
            command += ["--name", f"client-{node}"]
            started.append(self._popen(command, f"register_{node}"))
        for node, process in enumerate(started):
            if process.wait(START_SECONDS) != 0 or '"success": true' not in self.log(
                f"register_{node}"
            ):
                raise FedPGPError(
                    f"the key of client {node} could not be registered: "
                    f"{self.log(f'register_{node}')}"
                )

    def _popen(
        self,
        command: Sequence[str],
        name: str,
        *,
        environment: Mapping[str, str] | None = None,
        **options,
    ) -> subprocess.Popen:
        log = self.folder / "logs" / f"{name}.log"
        private_folder(log.parent)
        surroundings = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "FEDPGP_ASSETS": str(ROOT / "fedpgp" / "assets"),
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        with open(log, "ab", opener=owner_only) as file:
            streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, **options}
            child = {
                "cwd": self.folder,
                "umask": 0o077,
                "start_new_session": True,
                "preexec_fn": end_with_starter,
            }
            return subprocess.Popen(command, env=surroundings, **child, **streams)

    def _own_tls(self) -> list[str]:
        files = {
            "--ssl-ca-certfile": "ca.crt",
            "--ssl-certfile": "server.pem",
            "--ssl-keyfile": "server.key",
        }
        return [word for option, name in files.items() for word in (option, self._file(name))]

    def _file(self, name: str) -> str:
        return str(self.folder / name)

    def server_apps(self) -> list[psutil.Process]:
        """Return the processes of ServerApps that are at work."""
        if self.superlink is None or self.superlink.poll() is not None:
            return []
        found = []
        for process in psutil.Process(self.superlink.pid).children(recursive=True):
            try:
                if any("flwr-serverapp" in word for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found


_FLOWERS_OWN = re.compile(
    r"\s*$|(\x1b\[\d+m)*(INFO|WARNING|DEBUG|ERROR)\s|.*(Successfully|Using SuperLink: )"
)
_ENDED = re.compile(r"^(done in|interrupted after|finished already|error:)")


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


def end_with_starter() -> None:
    """In the child: on Linux it gets SIGTERM when this process ends, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _end(processes: Sequence[subprocess.Popen], patience: float) -> None:
    """End processes and their groups: asked first, then made to."""
    members = []
    for process in processes:
        try:
            members += [
                psutil.Process(process.pid),
                *psutil.Process(process.pid).children(recursive=True),
            ]
            os.killpg(process.pid, signal.SIGTERM)
        except (psutil.Error, ProcessLookupError):
            continue
    _, alive = psutil.wait_procs(members, timeout=patience)
    for process in alive:
        try:
            process.kill()
        except psutil.Error:
            continue
    for process in processes:
        process.wait()
