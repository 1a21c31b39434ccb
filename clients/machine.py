"""The process and the machine that a client works on: its name and the memory it takes."""

import resource
import socket
import sys


def peak_rss_mb() -> float:
    """Return the most memory this process ever held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def machine_name() -> str:
    """This machine's name, and in a Ray cluster the node's."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return socket.gethostname()
    return f"{socket.gethostname()} {ray.get_runtime_context().get_node_id()[:8]}"
