"""The process that starts Flower's apps for a SuperLink or SuperNode, tied to it by a secret.

Where Flower starts it by itself, it asks it for nothing: any local process may take a
task and act as the app.
"""

import os
import secrets
import subprocess
import sys
from pathlib import Path


def make_secret() -> bytes:
    """Return a secret that nobody can guess."""
    return secrets.token_hex(32).encode()


def start_superexec(address: str, root_certificates: str | None, secret: bytes) -> None:
    """Start ``flower-superexec``, which ends with this process.

    Args:
        address: of the Runtime API that this process is going to serve.
        root_certificates: file of the authority that signed that API's certificate;
            None where it has no TLS.
        secret: by which this process's SuperLink or SuperNode knows it.
    """
    theirs = readable_once(secret)
    command = [
        *(flower("flower-superexec"), "--runtime-api-address", address),
        *(["--root-certificates", root_certificates] if root_certificates else ["--insecure"]),
        *("--superexec-auth-secret-file", theirs, "--parent-pid", str(os.getpid())),
    ]
    descriptor = int(theirs.rpartition("/")[2])
    subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[descriptor])
    os.close(descriptor)


def flower(name: str) -> str:
    """Flower's command beside this interpreter."""
    return str(Path(sys.executable).parent / name)


def readable_once(data: bytes) -> str:
    """Return the path of a file descriptor that gives ``data`` to one reader: the secret is in
    no file."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    os.set_inheritable(reader, True)
    return f"/dev/fd/{reader}"
