"""A real federation on this machine, and what separate machines need to trust each
other (docs/deployment.md).

python -m experiments.deploy local --clients 5 [--data FOLDER] [overrides]
python -m experiments.deploy keys --host NAME --clients 5 --to FOLDER
python -m experiments.deploy keys --add 5 --to FOLDER
python -m experiments.deploy login --address NAME:PORT --token FILE
python -m experiments.deploy check --data FOLDER --run RUN [--state FOLDER]
    [--superlink NAME:PORT …]
"""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from clients.node_config import LONGEST_NAME
from experiments import site_check
from experiments.admin_token import log_in, make_token, read_token
from experiments.command import BAD_INPUT, command
from experiments.finished_run import finished_already, say_finished
from experiments.help import unknown_words
from experiments.latest_link import link_latest
from experiments.override_checks import check_overrides
from experiments.overrides import (
    LOCAL,
    given_path,
    override_of,
    readable,
    resume_command,
    user_path,
)
from experiments.run import changes_on_resume
from experiments.run_checks import check_run, check_stored
from experiments.run_folder import RunFolder, default_folder
from experiments.runtimes.certificates import make_certificates, make_node_key
from experiments.runtimes.local_processes import LocalProcesses
from experiments.settings import composed
from fedpgp.atomic_files import private_folder
from fedpgp.build import build_federation
from fedpgp.data.files import subfolders
from fedpgp.errors import MALFORMED, FedPGPError
from fedpgp.plain_text import one_line, printable, written_out
from strategies.checkpoint import checkpoints


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 for bad input or a run that failed, 130 and
    143 for Ctrl-C and SIGTERM.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.deploy", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    local = commands.add_parser(
        "local", help="a SuperLink and SuperNodes on loopback, as processes of their own"
    )
    local.add_argument("--clients", type=int, help="number of clients (and SuperNodes)")
    local.add_argument(
        "--data", type=user_path, help="folder with a folder of images for each client"
    )
    local.add_argument(
        "overrides", nargs="*", help="as for experiments.run: method=promptfl rounds=3 …"
    )
    keys = commands.add_parser("keys", help="certificates and keys for separate machines")
    keys.add_argument(
        "--host",
        action="append",
        help="name or address of the server; may be repeated",
    )
    keys.add_argument("--clients", type=int, help="number of clients")
    keys.add_argument(
        "--add", type=int, metavar="CLIENT", help="a key for this client alone, from 0"
    )
    keys.add_argument("--to", type=user_path, required=True, help="folder to write")
    login = commands.add_parser(
        "login", help="has Flower's commands on this machine send the administrator's token"
    )
    login.add_argument(
        "--address",
        required=True,
        help="the SuperLink's, as in Flower's config.toml: fed.example.org:8443",
    )
    login.add_argument(
        "--token", type=user_path, required=True, help="admin.token of `deploy keys`"
    )
    checked = commands.add_parser(
        "check", help="says before the first round what a node would be refused for"
    )
    site_check.add_options(checked)
    words = list(sys.argv[1:] if arguments is None else arguments)
    options, late = parser.parse_known_args(words)
    if any(word.startswith("-") for word in late) or (
        late and options.command not in ("local", "check")
    ):
        parser.error(unknown_words(late, words))
    if options.command == "check":
        options.overrides += late  # those after an option
    if options.command == "local":
        options.typed = f"{LOCAL} {shlex.join(words[1:])}"
        # Those after an option too; the processes that get them work in another folder.
        options.overrides = readable([*options.overrides, *late], absolute=True)
    chosen = {"keys": _keys, "local": _local, "login": _login, "check": site_check.main}[
        options.command
    ]
    return chosen(options)


class _Asked(BaseException):
    """Ctrl-C or SIGTERM."""

    def __init__(self, number: int):
        super().__init__(number)
        self.code = 128 + number


def _local(options: argparse.Namespace) -> int:
    resumed = given_path(options.overrides, "resume") if options.data else None
    known = {} if resumed is None else _names_of(resumed)
    sites = _sites(options, known)
    # Any number of clients can be split by label; the default partition needs one for each art
    # style.
    partition = "partition=own" if options.data else "partition=dirichlet"
    given = (
        []
        if any(word.startswith(("partition=", "resume=")) for word in options.overrides)
        else [partition]
    )
    overrides = ["runtime=flower", *given, *options.overrides, f"clients={len(sites)}"]
    check_overrides(overrides)
    config = composed(overrides)
    check_run(config, deployed=True)
    if not config["resume"]:
        build_federation(config)  # what cannot work is said before anything is started
    run_dir = Path(
        config["resume"] or config["run_dir"] or default_folder(config["experiment_name"])
    ).resolve()
    where = override_of("resume" if config["resume"] else "run_dir", run_dir)
    kept = [o for o in overrides if not o.startswith(("run_dir=", "resume="))]
    if config["resume"]:
        changes = changes_on_resume(config, kept, run_dir)
        folder, config = RunFolder.open(run_dir)
        left = changes.get("left", config.get("left", ()))
        rounds = changes.get("rounds", config["rounds"])
        if finished_already(folder, rounds):
            print(say_finished(run_dir, rounds, options.typed, config))
            return 0
        check_stored(run_dir, config)
    else:
        left = ()
        RunFolder(run_dir).refuse_if_used()
        for site in sites if options.data else ():
            try:
                site_check.as_node(site, config)
            except FedPGPError as error:
                raise FedPGPError(
                    f"{site['data-dir']} (client {site['client-id']}): {error}"
                ) from error
    for key, chosen in (
        ("cache-dir", config["runtime"]["cache_dir"]),
        ("data-root", config["dataset"].get("root")),
    ):
        if chosen:
            sites = [{**site, key: str(Path(chosen).resolve())} for site in sites]

    if options.data:  # the sites' owner is the one who runs this
        told = {
            key: config["runtime"].get(key.replace("-", "_")) for key in ("min-report", "max-step")
        }
        sites = [
            {**site, **{key: value for key, value in told.items() if value is not None}}
            for site in sites
        ]

    def ask(number: int, frame: object) -> None:
        raise _Asked(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        print(f"starting a SuperLink and {len(sites) - len(left)} SuperNodes", flush=True)
        where_nodes = run_dir.with_name(f"{run_dir.name}_nodes")
        with LocalProcesses(where_nodes, sites, left) as federation:
            try:
                federation.run([*kept, where], lambda line: print(line, flush=True), options.typed)
            except _Asked as asked:
                for number in before:
                    signal.signal(number, signal.SIG_IGN)
                federation.interrupt()
                begun = (run_dir / "config.yaml").exists()
                print(
                    f"interrupted; resume with: {resume_command(options.typed, run_dir)}"
                    if begun
                    else "interrupted"
                )
                return asked.code
    except _Asked as asked:
        return asked.code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not config["run_dir"] and not config["resume"] and run_dir.is_dir():
        link_latest(run_dir)
    if RunFolder(run_dir).summary().get("status") != "finished":
        return BAD_INPUT
    shown = written_out(run_dir)
    print(f"run folder: {shown}\nreport:     {shown}/report.html")
    return 0


def _names_of(run_dir: Path) -> dict[str, int]:
    """Return the clients' names in a run's folder -> their numbers.

    Raises:
        FedPGPError: they cannot be read, and clients have trained: none may be taken for another.
    """
    path = run_dir / "partition.json"
    try:
        rows = json.loads(path.read_text())["clients"]
        return {row["name"]: row["id"] for row in rows if row.get("name")}
    except (OSError, *MALFORMED) as error:
        if isinstance(error, FileNotFoundError) and not checkpoints(run_dir / "checkpoint"):
            return {}
        raise FedPGPError(
            f"{path} cannot be read ({error}): it says which folder is which client, whose private "
            "state no other may have; restore it"
        ) from error


def _sites(options: argparse.Namespace, known: Mapping[str, int]) -> list[dict]:
    """Return what each node is told of itself.

    Args:
        options: of the command line.
        known: name -> client of a run that is resumed, whose sites keep their numbers; a folder
            that is new comes after them.
    """
    if options.data is None:
        if options.clients is None or options.clients < 1:
            raise FedPGPError("say how many clients: --clients 5 (1 or more)")
        return [{"client-id": client} for client in range(options.clients)]
    names = subfolders(options.data) if options.data.is_dir() else []
    said: dict[str, str] = {}
    for name in names:
        if (first := said.setdefault(one_line(name, LONGEST_NAME), name)) != name:
            raise FedPGPError(
                f"--data {options.data}: {printable(first)} and {printable(name)} are the same "
                f"client's name, which has {LONGEST_NAME} bytes at most; rename one"
            )
    numbers = {name: known.get(one_line(name, LONGEST_NAME)) for name in names}
    folders = {numbers[name]: options.data / name for name in names if numbers[name] is not None}
    if gone := [name for name in known if known[name] not in folders]:
        raise FedPGPError(
            f"--data {options.data}: the folder of client {known[gone[0]]} ({gone[0]}) is not "
            "there; restore it, or leave it empty and say left=[…] where the client has left"
        )
    later = [options.data / name for name in names if numbers[name] is None]
    folders |= dict(enumerate(later, len(folders)))
    if not folders:
        raise FedPGPError(
            f"--data {options.data}: there is no folder in it; it holds one for each client"
        )
    if options.clients not in (None, len(folders)):
        raise FedPGPError(
            f"--clients {options.clients}, but --data {options.data} holds {len(folders)} folders"
        )
    return [
        {
            "client-id": client,
            "client-name": one_line(path.name, LONGEST_NAME),
            "data-dir": str(path.resolve()),
        }
        for client, path in sorted(folders.items())
    ]


def _keys(options: argparse.Namespace) -> int:
    if options.add is not None:
        return _one_key(options)
    if options.host is None or options.clients is None:
        raise FedPGPError("say --host NAME and --clients N, or --add CLIENT for one key more")
    if options.clients < 1:
        raise FedPGPError(
            f"--clients {options.clients} cannot work; it is the number of clients, 1 or more"
        )
    if (options.to / "server.key").exists():
        raise FedPGPError(f"{options.to} has certificates already; choose another folder")
    private_folder(options.to)
    make_certificates(options.to, options.host)
    make_token(options.to / "admin.token")
    for client in range(options.clients):
        make_node_key(options.to / f"client_{client}.key")
    to = written_out(options.to)
    print(f"{to}: ca.crt for everybody, server.pem and server.key for the server,")
    print(
        "admin.token for the server and whoever starts runs, client_I.key for the node of client I,"
    )
    print("client_I.key.pub to register it (docs/deployment.md)")
    return 0


def _one_key(options: argparse.Namespace) -> int:
    """A key for a client that comes later, or has lost its own."""
    client, path = options.add, options.to / f"client_{options.add}.key"
    if client < 0 or options.host is not None or options.clients is not None:
        raise FedPGPError("--add CLIENT is a client's number, from 0; it goes with --to alone")
    if path.exists():
        raise FedPGPError(f"{path} is there already; choose another folder for a new key")
    private_folder(options.to)
    make_node_key(path)
    print(f"{path} for the node of client {client}, and {path.name}.pub to register it:")
    print(f"flwr supernode register {path}.pub federation --name client-{client}")
    return 0


def _login(options: argparse.Namespace) -> int:
    log_in(options.address, read_token(options.token))
    print(f"Flower's commands on this machine send the token to {options.address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
