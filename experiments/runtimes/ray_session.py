"""A Ray that is started here is this run's alone: it asks everybody for a secret token,
listens on 127.0.0.1 where Ray allows that, keeps its files in a folder that nobody else may
enter, and leaves nothing behind.

By itself Ray (2.55) takes anybody's code on all network interfaces:
https://docs.ray.io/en/latest/ray-security/token-auth.html.
"""

import contextlib
import functools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedpgp.errors import FedPGPError
from fedpgp.locks import file_lock

PREFIX = "fedpgp-ray-"
"""Beginning of the folders' names, in the folder for temporary files."""

LONGEST_ROOT = 20
"""Characters of that folder's path: the paths of Ray's sockets below it may have
107, on some systems 103."""


@dataclass
class Session:
    """The files of a Ray that starts here.

    Attributes:
        folder: nobody else may enter it.
        keep: leave the folder where it is at the end: Ray did not start, and its logs say why.
    """

    folder: Path
    keep: bool = False

    @property
    def temp_dir(self) -> str:
        """For ``ray.init(_temp_dir=…)``. Ray opens it to everybody, and so it lies one level
        deeper."""
        return str(self.folder / "ray")


_LOCK = ".lock"
_NAMES = ("ray", "gcs_server")  # of Ray's processes: raylet, ray::IDLE …
_sessions: list[Session] = []  # of this process
_asks_for_token = False  # whether this process imported Ray with a token


@contextmanager
def private_session() -> Iterator[Session]:
    """Set up the environment of a Ray that starts here, and make a folder for its files.

    At the end the environment is as before and the folder is gone. A folder that was left over, by
    a process that was killed, is removed by the next start on this machine.

    Raises:
        FedPGPError: Ray was imported before and asks for no token.
    """
    _import_ray()
    for folder in _leftovers():
        remove_session(folder)
    session = Session(Path(tempfile.mkdtemp(prefix=PREFIX, dir=_root())))  # 0700
    lock = session.folder / f"{_LOCK}.new"
    with file_lock(lock), environment(_private_settings()):
        os.replace(lock, session.folder / _LOCK)  # whoever finds it finds it locked
        _sessions.append(session)
        try:
            yield session
        finally:
            _sessions.remove(session)
    if not session.keep:
        remove_session(session.folder)


def end_sessions() -> None:
    """End the Rays that this process has started and remove their folders, at once: for a process
    that does not leave by the usual way."""
    for session in _sessions:
        remove_session(session.folder)


def remove_session(folder: Path) -> None:
    """Remove a session's folder, and end what is still at work in it: Ray's agents outlive a
    driver that was killed by a minute."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith(_NAMES) and any(
                folder in Path(f.path).parents for f in process.open_files()
            ):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables inside the block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@functools.cache
def _token() -> str:
    """Return one for all sessions of this process: Ray keeps the first that it sees."""
    return secrets.token_hex(32)


def _private_settings() -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or _token(),
        # As on macOS and Windows: one machine, whose parts talk over 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def _import_ray() -> None:
    """Import Ray, which reads now whether it asks for a token.

    Raises:
        FedPGPError: a person's program has imported it before, when nothing asked for one.
    """
    global _asks_for_token
    if "ray" in sys.modules and not _asks_for_token and os.environ.get("RAY_AUTH_MODE") != "token":
        raise FedPGPError(
            "this program imported Ray before the run could have it ask for a token; set "
            "RAY_AUTH_MODE=token before `import ray`, or start the run by itself: "
            "python -m experiments.run"
        )
    with environment(_private_settings()):
        import ray  # noqa: F401
    _asks_for_token = True


def _root() -> str:
    root = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return root if len(root) <= LONGEST_ROOT else "/tmp"


def _leftovers() -> Iterator[Path]:
    """This person's sessions whose process is gone."""
    for folder in Path(_root()).glob(f"{PREFIX}*"):
        lock = folder / _LOCK
        with contextlib.suppress(OSError, FedPGPError):
            if folder.stat().st_uid != os.getuid() or not lock.is_file():
                continue
            with file_lock(lock, wait=0):
                pass
            yield folder
