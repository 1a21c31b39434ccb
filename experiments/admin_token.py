"""The administrator's token of a SuperLink (:mod:`experiments.superlink`): made, read, given
to Flower's commands."""

import secrets
from pathlib import Path

from fedpgp.atomic_files import write_atomically
from fedpgp.errors import FedPGPError

SHORTEST = 32
"""Characters of a token."""


def make_token(path: Path) -> None:
    """Write a new token, readable by its owner alone."""
    write_atomically(path, secrets.token_hex(SHORTEST).encode(), private=True)


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        FedPGPError: it cannot be read, or is too short to be a secret.
    """
    try:
        token = path.read_text().strip()
    except (OSError, ValueError) as error:
        raise FedPGPError(
            f"the token of the administrator cannot be read: {path} ({error})"
        ) from error
    if len(token) < SHORTEST:
        raise FedPGPError(
            f"{path} is no token: it needs {SHORTEST} characters or more (experiments.deploy "
            "keys makes one)"
        )
    return token


def log_in(address: str, token: str, flower_home: Path | None = None) -> None:
    """Have Flower's commands (``flwr run``, ``flwr supernode register`` …) send the token to a
    SuperLink.

    Args:
        address: of the SuperLink, as it stands in Flower's ``config.toml``.
        token: the administrator's.
        flower_home: the folder in which Flower keeps such tokens (``credentials.yaml``); None is
            $FLWR_HOME, else the usual one.
    """
    from flwr.cli import constant
    from flwr.common.constant import AuthnType
    from flwr.supercore.credential_store.file_credential_store import FileCredentialStore
    from flwr.supercore.utils import get_flwr_home

    store = FileCredentialStore((flower_home or get_flwr_home()) / "credentials.yaml")
    store.set(constant.AUTHN_TYPE_STORE_KEY % address, AuthnType.OIDC.encode())
    for key in (constant.ACCESS_TOKEN_STORE_KEY, constant.REFRESH_TOKEN_STORE_KEY):
        store.set(key % address, token.encode())
