"""Flower's SuperLink as a web application: an administrator has to send a token, and
unused interfaces are closed.

Flower reads FLWR_TELEMETRY_ENABLED when it is imported: a command sets it before it imports this
file.
"""

import argparse
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvicorn
from flwr.common.constant import (
    ACCESS_TOKEN_KEY,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.supercore.auth.typing import AccountAuthCredentials, AccountAuthLoginDetails, AccountInfo
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.superlink.auth_plugin import ControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from fedpgp.errors import FedPGPError

Metadata = Sequence[tuple[str, str | bytes]]


class AdminToken(ControlAuthnPlugin):
    """Flower's authentication of administrators by one secret token.

    Args:
        token: what they have to send with every request.
    """

    def __init__(self, token: str):
        self._token = token.encode()

    def validate_tokens_in_metadata(self, metadata: Metadata) -> tuple[bool, AccountInfo | None]:
        """Return whether a request has the token, and Flower's only account."""
        sent = [
            value.encode() if isinstance(value, str) else value
            for key, value in metadata
            if key == ACCESS_TOKEN_KEY
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
    "acquire-task|send-task-heartbeat|pull-task-input|push-task-output|push-object|pull-object|"
    "confirm-message-received|"
    "push-logs|push-messages|pull-messages|get-nodes"
)
_OPEN = re.compile(
    rf"/health|/v1/fleet/[a-z-]+|/v1/runtime/({_TASKS})"
    r"|/v1/control/(?!.*(automation|connector))[a-z-]+"
)


def serve(config: SuperLinkLifespanConfig) -> None:
    """Run a SuperLink to its end."""
    uvicorn.run(
        Narrowed(create_app(config, SuperLinkLifespan)),
        host=config.host,
        port=config.port,
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        log_config=get_uvicorn_log_config(logging.INFO),
    )


def configuration(
    options: argparse.Namespace, token: str, secret: bytes
) -> SuperLinkLifespanConfig:
    """Return Flower's configuration of a SuperLink.

    Args:
        options: of ``experiments.superlink``.
        token: the administrator's.
        secret: with which the process that starts its apps is known.

    Raises:
        FedPGPError: a file of TLS is missing or cannot be read.
    """
    files = {
        "ssl_ca_certfile": options.ssl_ca_certfile,
        "ssl_certfile": options.ssl_certfile,
        "ssl_keyfile": options.ssl_keyfile,
    }
    if options.insecure:
        if options.enable_supernode_auth:
            raise FedPGPError("--enable-supernode-auth needs TLS: leave --insecure out")
        files = dict.fromkeys(files)
    elif not all(files.values()):
        wanted = ", ".join(
            f"--{name.replace('_', '-')}" for name, file in files.items() if not file
        )
        raise FedPGPError(f"TLS needs {wanted} too; for a test on this machine alone: --insecure")
    return SuperLinkLifespanConfig(
        host=options.host,
        port=options.port,
        insecure=options.insecure,
        certificates=None if options.insecure else tuple(map(_content, files.values())),
        **files,
        superexec_auth_secret=secret,
        isolation="process",  # the process that starts its apps is ours
        runtime_dependency_install=False,
        authn_plugin=AdminToken(token),
        enable_supernode_auth=options.enable_supernode_auth,
        database=options.database,
        health_server_address=options.health_server_address,
        simulation=False,
        enable_event_log=False,
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        artifact_provider=None,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,  # of interfaces that are off
        fleet_api_address=None,
        control_address="",
    )


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FedPGPError(f"{path} cannot be read: {error.strerror}") from error
