"""``wandb``: Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path

from experiments.callbacks.loggers.base import Logger, numbers, over_clients, register
from fedpgp.errors import FedPGPError


@register("wandb")
class WandbLogger(Logger):
    """Weights & Biases; ``WANDB_MODE=offline`` needs no network. A resumed run keeps the same
    id."""

    def __init__(self, folder: Path, config: Mapping, run: str):
        try:
            import wandb
        except ImportError:
            raise FedPGPError(
                "logger=wandb needs the package wandb: pip install 'fedpgp[wandb]'"
            ) from None
        self.folder = folder
        settings = wandb.Settings(silent=not config["verbose"])
        project = config["logger"].get("project", "fedpgp")
        try:
            self.run = wandb.init(
                project=project,
                dir=str(folder),
                config=dict(config),
                id=run,
                name=folder.name,
                resume="allow",
                settings=settings,
            )
        except wandb.Error as error:
            raise FedPGPError(
                f"logger=wandb: {error}; WANDB_MODE=offline needs no network and no account"
            ) from error

    def log(self, record: Mapping) -> None:
        self.run.log(numbers(record), step=record["round"])

    def close(self, summary: Mapping | None) -> None:
        import wandb

        if summary:
            self.run.summary.update(numbers({"kind": "summary", **summary}))
            page = self.folder / "report.html"
            figures = {
                name: wandb.Histogram(values) for name, values in over_clients(self.folder).items()
            }
            self.run.log(
                {**figures, **({"report": wandb.Html(str(page))} if page.exists() else {})}
            )
        self.run.finish()
