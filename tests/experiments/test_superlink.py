"""Who may do what at a SuperLink that asks for a token. (A real one:
tests/experiments/test_deploy.py.)"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time

import httpx
import pytest
from flwr.cli import constant
from flwr.common.constant import ACCESS_TOKEN_KEY
from flwr.supercore.credential_store.file_credential_store import FileCredentialStore
from flwr.superlink.routers.control import router as control
from flwr.superlink.routers.fleet.router import router as fleet

from clients.expiry import VARIABLE
from experiments.admin_token import log_in, make_token, read_token
from experiments.deploy import main as deploy
from experiments.runtimes.local_processes import ROOT, free_port
from experiments.superlink import _parser, main
from experiments.superlink_app import AdminToken, Narrowed, configuration
from fedpgp.errors import FedPGPError


@pytest.mark.parametrize(
    ("sent", "right"),
    [
        ([], False),
        ([(ACCESS_TOKEN_KEY, "other")], False),
        ([("authorization", "secret")], False),
        ([(ACCESS_TOKEN_KEY, "secret"), (ACCESS_TOKEN_KEY, "secret")], False),
        ([(ACCESS_TOKEN_KEY, "sécret")], False),
        ([(ACCESS_TOKEN_KEY, "secret")], True),
        ([(ACCESS_TOKEN_KEY, b"secret")], True),
    ],
)
def test_the_token_decides(sent, right):
    valid, account = AdminToken("secret").validate_tokens_in_metadata(sent)
    assert valid is right and (account is not None) is right


def test_there_is_no_other_way_in():
    plugin = AdminToken("secret")
    assert plugin.get_login_details() is None and plugin.get_auth_tokens("") is None
    assert plugin.refresh_tokens([("flwr-oidc-refresh-token", "secret")]) == (None, None)


def answered(path: str, kind: str = "http") -> str:
    """What the narrowed application gives for a path: "whole" where the whole one is asked."""
    said: list[dict] = []

    async def whole(scope, receive, send):
        said.append({"status": "whole"})

    async def send(message):
        said.append(message)

    asyncio.run(Narrowed(whole)({"type": kind, "path": path}, None, send))
    return said[0]["status"]


def test_interfaces_that_no_app_of_this_project_uses_are_closed():
    used = {
        "start-run",
        "stop-run",
        "list-runs",
        "stream-logs",
        "register-node",
        "list-nodes",
        "unregister-node",
    }
    paths = {route.path for router in (control, fleet) for route in router.routes}
    assert {f"/v1/control/{name}" for name in used} < paths
    assert all(answered(f"/v1/control/{name}") == "whole" for name in used)
    assert all(answered(path) == "whole" for path in paths if path.startswith("/v1/fleet/"))
    for name in (
        "acquire-task",
        "pull-task-input",
        "push-messages",
        "pull-messages",
        "get-nodes",
        "push-logs",
    ):
        assert answered(f"/v1/runtime/{name}") == "whole"
    for path in (
        *(
            "/v1/runtime/start-automation",
            "/v1/runtime/create-task",
            "/v1/control/start-automation",
        ),
        *(
            "/v1/runtime//start-automation",
            "/v1/runtime/acquire-task/",
            "/docs",
            "/openapi.json",
            "/v1/responses",
        ),
        "/v1/control/list-connectors",
    ):
        assert answered(path) == 404, path
    assert answered("", "lifespan") == "whole"


def test_a_token_is_its_owner_s_alone_and_reaches_flower_s_commands(tmp_path):
    make_token(tmp_path / "secrets" / "admin.token")
    token = read_token(tmp_path / "secrets" / "admin.token")
    assert len(token) == 64 and (tmp_path / "secrets" / "admin.token").stat().st_mode & 0o077 == 0
    log_in("fed.example.org:8443", token, tmp_path / "flwr")
    credentials = tmp_path / "flwr" / "credentials.yaml"
    assert credentials.stat().st_mode & 0o077 == 0
    kept = FileCredentialStore(credentials)
    assert kept.get(constant.ACCESS_TOKEN_STORE_KEY % "fed.example.org:8443") == token.encode()
    assert kept.get(constant.AUTHN_TYPE_STORE_KEY % "fed.example.org:8443") == b"oidc"


def test_what_is_no_token_is_refused(tmp_path, capsys):
    (tmp_path / "short").write_text("password")
    with pytest.raises(FedPGPError, match="short is no token: it needs 32 characters"):
        read_token(tmp_path / "short")
    assert main(["--admin-token", str(tmp_path / "nowhere")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "TLS needs --ssl-ca-certfile, --ssl-certfile, --ssl-keyfile too"),
        (["--ssl-certfile", "a", "--ssl-ca-certfile", "b"], "TLS needs --ssl-keyfile too"),
        (["--insecure", "--enable-supernode-auth"], "--enable-supernode-auth needs TLS"),
        (
            ["--ssl-certfile", "a", "--ssl-ca-certfile", "nowhere", "--ssl-keyfile", "c"],
            "nowhere cannot be read: No such file",
        ),
    ],
)
def test_what_cannot_work_is_one_line(options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "")
    make_token(tmp_path / "admin.token")
    assert main(["--admin-token", str(tmp_path / "admin.token"), *options]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_flower_is_told_everything_it_asks(tmp_path):
    """Another version may build its SuperLink in another way."""
    for name in ("ca", "certificate", "key"):
        (tmp_path / name).write_text(name)
    tls = ["--ssl-ca-certfile", "ca", "--ssl-certfile", "certificate", "--ssl-keyfile", "key"]
    words = [word if word.startswith("--") else str(tmp_path / word) for word in tls]
    words += ["--enable-supernode-auth", "--database", "file", "--port", "8443"]
    config = configuration(_parser().parse_args(["--admin-token", "t", *words]), "secret", b"x")
    assert config.certificates == (b"ca", b"certificate", b"key")
    assert config.ssl_keyfile == str(tmp_path / "key") and config.port == 8443
    assert config.enable_supernode_auth and not config.insecure and config.database == "file"
    assert config.superexec_auth_secret == b"x" and config.isolation == "process"
    assert config.authn_plugin.validate_tokens_in_metadata([(ACCESS_TOKEN_KEY, "secret")])[0]


@pytest.mark.slow
def test_a_server_on_all_addresses_is_reached_over_its_loopback(tmp_path):
    """With the certificates that ``deploy keys`` makes for another host; and its database
    is its owner's alone."""
    assert (
        deploy(["keys", "--host", "fed.example.org", "--clients", "1", "--to", str(tmp_path)]) == 0
    )
    port = str(free_port())
    tls = {
        "--ssl-ca-certfile": "ca.crt",
        "--ssl-certfile": "server.pem",
        "--ssl-keyfile": "server.key",
    }
    command = [
        *(
            sys.executable,
            "-m",
            "experiments.superlink",
            "--admin-token",
            "admin.token",
            "--host",
            "0.0.0.0",
        ),
        *(
            "--port",
            port,
            "--database",
            "superlink.db",
            *(word for pair in tls.items() for word in pair),
        ),
    ]
    log = tmp_path / "log"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    }
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file)
    try:
        end, health = time.monotonic() + 60, f"https://127.0.0.1:{port}/health"
        while True:
            with contextlib.suppress(httpx.ConnectError):
                assert httpx.get(health, verify=str(tmp_path / "ca.crt")).status_code == 200
                break
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        assert (tmp_path / "superlink.db").stat().st_mode & 0o077 == 0
    finally:
        process.terminate()
        process.wait(20)
