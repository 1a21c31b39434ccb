"""A SuperLink that asks administrators for a token (docs/deployment.md).

python -m experiments.superlink --admin-token FILE [options of flower-superlink]

Flower's own (1.41) has one port for nodes and administrators, and asks nodes alone for a key: whoever reaches it may
register keys and start runs, that is, run code there and on every node. Its account authentication is no part of the
open package. So this is Flower's SuperLink with an authentication plugin of ours: who has the token's file is the
administrator. Interfaces that no app of this project uses are closed: a task's token, which Flower puts on a command
line that every user of the machine can read, would be enough to start other apps by them. What it writes is its
owner's alone.
"""

import argparse
import hmac
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when flwr is imported

import uvicorn
from flwr.common.constant import ACCESS_TOKEN_KEY, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.supercore.address import resolve_bind_address
from flwr.supercore.auth.typing import AccountAuthCredentials, AccountAuthLoginDetails, AccountInfo
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.superlink.auth_plugin import ControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.main import create_app

from clients.expiry import VARIABLE, expiring
from experiments.admin_token import read_token
from experiments.superexec import start_superexec
from fedpgp.errors import FedPGPError
from fedpgp.plain_text import indented

Metadata = Sequence[tuple[str, str | bytes]]


class AdminToken(ControlAuthnPlugin):
    """Flower's authentication of administrators by one secret token.

    Args:
        token: what they have to send with every request.
    """

    def __init__(self, token: str):
        self._token = token.encode()

    def validate_tokens_in_metadata(self, metadata: Metadata) -> tuple[bool, AccountInfo | None]:
        """Whether a request has the token, and Flower's only account."""
        sent = [
            value.encode() if isinstance(value, str) else value for key, value in metadata if key == ACCESS_TOKEN_KEY
        ]
        if len(sent) != 1 or not hmac.compare_digest(sent[0], self._token):
            return False, None
        return True, AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)

    # The token is handed over in a file: there is nobody to log in to.

    def get_login_details(self) -> AccountAuthLoginDetails | None:
        return None

    def get_auth_tokens(self, device_code: str) -> AccountAuthCredentials | None:
        return None

    def refresh_tokens(self, metadata: Metadata) -> tuple[Metadata | None, AccountInfo | None]:
        return None, None


class Narrowed:
    """A SuperLink's web application without the interfaces that no app of this project uses.

    Args:
        app: the whole.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http" and not _OPEN.fullmatch(scope["path"]):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)


_TASKS = (
    "acquire-task|send-task-heartbeat|pull-task-input|push-task-output|push-object|pull-object|confirm-message-received|"
    "push-logs|push-messages|pull-messages|get-nodes"
)
_OPEN = re.compile(rf"/health|/v1/fleet/[a-z-]+|/v1/runtime/({_TASKS})|/v1/control/(?!.*(automation|connector))[a-z-]+")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the SuperLink to its end; returns its exit status: 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m experiments.superlink", description=__doc__.splitlines()[0])
    parser.add_argument("--admin-token", type=Path, required=True, help="file with the administrator's token")
    options, flowers = parser.parse_known_args(arguments)
    try:
        plugin = AdminToken(read_token(options.admin_token))
    except FedPGPError as error:
        print(f"error: {indented(error)}", file=sys.stderr)
        return 2
    os.umask(0o077)  # the database and the logs are nobody else's
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--host", default="127.0.0.1")
    own.add_argument("--port", default="8000")
    own.add_argument("--ssl-ca-certfile")
    own.add_argument("--ssl-certfile")
    known, _ = own.parse_known_args(flowers)
    certificates = [os.path.abspath(path) for path in (known.ssl_certfile, known.ssl_ca_certfile) if path]
    os.environ[VARIABLE] = os.pathsep.join(certificates)  # for its ServerApps
    threading.Thread(target=_watch_certificates, daemon=True).start()
    address = f"[{known.host}]:{known.port}" if ":" in known.host else f"{known.host}:{known.port}"
    flowers += start_superexec(resolve_bind_address(address), known.ssl_ca_certfile)
    sys.argv = ["flower-superlink", *flowers]  # which only its own command reads
    config = replace(_parse_superlink_lifespan_config(), authn_plugin=plugin)
    uvicorn.run(
        Narrowed(create_app(config, SuperLinkLifespan)),
        host=config.host,
        port=config.port,
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        log_config=get_uvicorn_log_config(logging.INFO),
    )
    return 0


def _watch_certificates() -> None:
    while True:
        for text in expiring():
            print(f"warning: {text}", file=sys.stderr, flush=True)
        time.sleep(24 * 3600)


if __name__ == "__main__":
    sys.exit(main())
