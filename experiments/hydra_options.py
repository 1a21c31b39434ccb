"""Which words of a command line are Hydra's options and which are settings.

The options: https://hydra.cc/docs/advanced/hydra-command-line-flags/.
"""

import argparse
from collections.abc import Sequence

SWITCHES = (
    ("--help", "-h"),
    ("--hydra-help",),
    ("--version",),
    ("--resolve",),
    ("--run", "-r"),
    ("--multirun", "-m"),
    ("--shell-completion", "-sc"),
)
WITH_A_VALUE = (
    ("--cfg", "-c"),
    ("--package", "-p"),
    ("--config-path", "-cp"),
    ("--config-name", "-cn"),
    ("--config-dir", "-cd"),
    ("--experimental-rerun",),
)


def split_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read a command line as Hydra does, which acts on it later.

    Args:
        arguments: without the command.

    Returns:
        ``help``, ``multirun`` … and ``overrides``: the first row of settings; and the words that
        are in neither, such as settings behind an option.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    for names in SWITCHES:
        parser.add_argument(*names, action="store_true")
    for names in WITH_A_VALUE:
        parser.add_argument(*names)
    parser.add_argument("--info", "-i", nargs="?", const="all")
    return parser.parse_known_args(arguments)
