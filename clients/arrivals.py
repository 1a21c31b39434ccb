"""A node whose own folder of images grows: which images it has in the round of a message.

A message to train, and the handshake, look at the folder (:mod:`fedpgp.data.arrivals`); any other
has the images that the last round of training had. The list of images stays on the node, which
tells the server their number alone.
"""

import json
import sys

from clients.messages import Job
from clients.node_config import NodeConfig
from clients.private_state import PrivateStore
from fedpgp.process import set_up_process

IMAGES = "images.json"
"""In a run's folder of a node: its images, and since which round it has them."""


def with_images(text: str, kind: str, job: Job, node: NodeConfig, store: PrivateStore) -> str:
    """Return a node's configuration with the images that it has in a message's round.

    Args:
        text: the node's configuration, as JSON.
        kind: of the message, in Flower's words.
        job: of the message.
        node: what its own configuration says.
        store: of the run.

    Raises:
        FedPGPError: an image that the run has trained on was changed or removed.
    """
    set_up_process()
    from fedpgp.build import (  # torch: when there is work, not before
        look_for_images,
        takes_arrivals,
    )

    config = json.loads(text)
    if not takes_arrivals(config):
        return text
    handshake = job.ask == "handshake"
    server_round = None if handshake else job.server_round
    config["partition"]["image_list"] = str(store.folder / IMAGES)
    if handshake or kind == "train":
        for note in look_for_images(config, server_round):
            node.keep_error(f"note: {note}")
            print(f"note: {note}", file=sys.stderr, flush=True)
    config["partition"]["image_round"] = server_round
    return json.dumps(config)
