"""A worker process of a simulation on Ray: it holds the ClientApp and runs the messages it is
given.

Ray imports this module in each worker, so it imports nothing but Flower's message types.
"""

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity


class RayWorker:
    """One worker.

    Args:
        make_app: makes the ClientApp; it is called once in the worker's process.
        run_id: of the run.
        nodes: number of nodes of the simulation.
    """

    def __init__(self, make_app: Callable[[], ClientApp], run_id: int, nodes: int):
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, 0
        self._app, self._run_id, self._nodes = make_app(), run_id, nodes

    def ready(self) -> bool:
        """Return True: the process is up and has its app."""
        return True

    def run(self, message: Message, waited: float) -> Message:
        """Run the app on a message, which has waited so many seconds for a worker; an exception of
        the app is raised as it is."""
        node = message.metadata.dst_node_id
        config = {"partition-id": node, "num-partitions": self._nodes, "waited": waited}
        return self._app(message, Context(self._run_id, node, config, RecordDict(), {}))
