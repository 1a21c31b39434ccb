"""The sections of a configuration: each setting's type and valid values, once.

Its default and its sentence stand in ``conf/``, where ``--help`` reads them. What one choice of a
group has for itself is declared by its own code: a method's ``Settings``, a protocol's fields, the
keyword parameters of a partition, a data set or a strategy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from fedpgp.config.rules import (
    choice,
    client_numbers,
    entries,
    flag,
    group,
    number,
    numbers,
    text,
    whole,
)
from fedpgp.config.section import Section, own_options, section
from fedpgp.errors import FedPGPError


@dataclass(frozen=True, kw_only=True)
class TrainingSection(Section):
    """``training``: the optimizer, its schedule and the order of the images."""

    prefix: ClassVar[str] = "training"

    optimizer: str = choice("sgd", "adam", "adamw", missing="sgd")
    momentum: float = number(least=0, below=1, missing=0.9)
    betas: Sequence[float] = numbers((0.9, 0.999), above=0, below=1)
    eps: float = number(above=0, missing=1e-8)
    weight_decay: float = number(least=0, missing=5e-4)
    schedule: str = choice("constant", "cosine", "step", missing="constant")
    warmup_rounds: int = whole(least=0, missing=0)
    step_rounds: int = whole(least=1, missing=10)
    gamma: float = number(above=0, missing=0.1)
    shuffle: bool = flag(missing=True)
    drop_last: bool = flag(missing=False)


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """``model``: the frozen CLIP. ``memory``: the folder of a node's cached parts of it."""

    prefix: ClassVar[str] = "model"

    name: str = text()
    pretrained: str | None = text(null=True, missing=None)
    memory: str | None = text(null=True, missing=None, of_a_node=True)


@dataclass(frozen=True, kw_only=True)
class DatasetSection(Section):
    """``dataset``: what all data sets have, and the chosen one's own options."""

    prefix: ClassVar[str] = "dataset"

    name: str = text()
    root: str | None = text(null=True, missing=None)
    download: bool = flag(missing=False)
    on_bad_image: str = choice("error", "skip", missing="error")
    views: int | str = whole(least=1, word="live", missing=1)
    evaluate_on: str = choice("test", "validation", missing="test")
    options: Mapping = own_options()


@dataclass(frozen=True, kw_only=True)
class PartitionSection(Section):
    """``partition``: what all schemes have, and the chosen one's own options. With ``scheme=own``:
    ``client``, the number of a node's client; ``image_list``, the file that lists its images
    (:mod:`fedpgp.data.arrivals`); ``image_round``, the round whose images are read, None: all."""

    prefix: ClassVar[str] = "partition"

    scheme: str = text()
    min_size: int = whole(least=1, missing=1)
    min_test_size: int = whole(least=1, missing=1)
    pooled: bool = flag(missing=False)
    images_arrive: bool = flag(missing=False)
    client: int | None = whole(least=0, missing=None, of_a_node=True)
    image_list: str | None = text(null=True, missing=None, of_a_node=True)
    image_round: int | None = whole(least=0, missing=None, of_a_node=True)
    options: Mapping = own_options()


@dataclass(frozen=True, kw_only=True)
class MethodSection(Section):
    """``method``: what the federation reads, and the method's own settings: ``options`` of one by
    its name, ``settings`` of one by its import path (``component``)."""

    prefix: ClassVar[str] = "method"

    name: str = text()
    component: str | None = text(null=True, missing=None)
    settings: Mapping | None = group(missing=None)
    optimizer_state: str = choice("reset", "keep", missing="reset")
    personal_start: str = choice("shared", "per_client", missing="shared")
    weighting: str | None = choice("images", "equal", missing=None)
    share_terms: bool = flag(missing=False)
    options: Mapping = own_options()

    @property
    def own(self) -> dict:
        """The settings of the method itself."""
        return dict(self.settings or {}) if self.component else dict(self.options)


@dataclass(frozen=True, kw_only=True)
class StrategySection(Section):
    """``strategy``: what the server sees to whatever the strategy, and the strategy's own
    options."""

    prefix: ClassVar[str] = "strategy"

    name: str = text()
    wrap: Sequence | None = entries(missing=())
    max_update_norm: float | None = number(least=1, null="for no bound", missing=None)
    max_weight: float | None = number(least=1, null="for no bound", missing=None)
    options: Mapping = own_options()


@dataclass(frozen=True, kw_only=True)
class PrivacySection(Section):
    """``privacy``: whether the server sees sums alone, whatever the choice; the update step that
    guarantees something, and its own settings."""

    prefix: ClassVar[str] = "privacy"

    name: str = text(missing="none")
    secure_sum: bool = flag(missing=False)
    secure_sum_threshold: float = number(least=0.5, below=1, missing=0.667)
    secure_sum_range: float = number(above=0, below=inf, missing=2.0)
    secure_sum_images: int = whole(least=1, most=1_000_000, missing=1000)
    options: Mapping = own_options()

    @property
    def protects(self) -> bool:
        """Whether it protects updates, in whatever way."""
        return self.name != "none" or self.secure_sum


@dataclass(frozen=True, kw_only=True)
class AttackSection(Section):
    """``attack``: what some clients of a simulation do to the others, and its own settings."""

    prefix: ClassVar[str] = "attack"

    name: str = text(missing="none")
    options: Mapping = own_options()


@dataclass(frozen=True, kw_only=True)
class RuntimeSection(Section):
    """``runtime``: where server and clients run. Each runtime has some of these."""

    prefix: ClassVar[str] = "runtime"

    name: str = choice("ray", "inline", "flower", missing="inline")
    workers: int | None = whole(
        least=1, null="for as many as the machine has room for", missing=None
    )
    address: str | None = text(null=True, missing=None)
    gpus_per_worker: float = number(above=0, missing=1.0)
    cohort_size: int | str = whole(least=1, word="auto", missing="auto")
    cache_dir: str | None = text(null=True, missing=None)
    round_timeout: float | None = number(
        above=0, of="seconds", null="to wait for ever", missing=None
    )
    min_clients: int = whole(least=1, missing=1)
    dropout: float = number(least=0, below=1, missing=0.0)
    slow_clients: float = number(least=0, most=1, missing=0.0)
    seats: str = choice("key", "free", missing="key")
    min_report: int = whole(least=1, missing=1)
    max_step: float = number(above=0, missing=inf)
    debug: bool = flag(missing=False)
    live: bool = flag(missing=False)
    metrics_port: int | None = whole(least=1, most=65535, null="for none", missing=None)
    metrics_host: str = text(missing="127.0.0.1")


@dataclass(frozen=True, kw_only=True)
class LoggerSection(Section):
    """``logger``: where a run's figures go besides its folder."""

    prefix: ClassVar[str] = "logger"

    name: str = text()
    project: str = text(missing="fedpgp")


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """A whole configuration. A client gets it without what is the server's business alone.

    Example:
        >>> config = Config.of(composed(["method=promptfl", "rounds=3"]))
        >>> config.rounds, config.training.momentum
        (3, 0.9)

    Raises:
        FedPGPError: a value that is not valid, or not beside another.
    """

    experiment_name: str = text(missing="default")
    seed: int = whole(least=0, most=2**128)

    clients: int = whole(least=1)
    left: Sequence[int] = client_numbers(missing=())
    rounds: int = whole(least=0)
    participation: float = number(above=0, most=1, missing=1.0)
    first_round: str = choice("sampled", "all", missing="sampled")
    shots: int | None = whole(least=1, null="for all images")

    local_epochs: int = whole(least=1)
    batch_size: int = whole(least=1)
    lr: float = number(above=0)
    training: TrainingSection = section(TrainingSection)

    n_ctx: int | None = whole(least=1, null="for those of context_init")
    context_init: str = text()

    evaluate_every: int = whole(least=0, missing=1)
    evaluate_clients: float | None = number(above=0, null="for all, or 1,000 of more", missing=None)

    run_dir: str | None = text(null=True, missing=None)
    resume: str | None = text(null=True, missing=None)
    init_from: str | None = text(null=True, missing=None)
    device: str = choice(
        "auto",
        "cpu",
        "cuda",
        "mps",
        advice="CUDA_VISIBLE_DEVICES says which GPUs a process may use",
    )
    dtype: str = choice("float32", "float64", "bfloat16", "auto")
    verbose: bool = flag(missing=False)

    model: ModelSection = section(ModelSection)
    dataset: DatasetSection = section(DatasetSection)
    partition: PartitionSection = section(PartitionSection)
    protocol: Mapping = group()
    method: MethodSection = section(MethodSection)
    strategy: StrategySection = section(StrategySection, missing=StrategySection(name="fedavg"))
    privacy: PrivacySection = section(PrivacySection, missing=PrivacySection())
    attack: AttackSection = section(AttackSection, missing=AttackSection())
    updates: Sequence = entries(missing=())
    runtime: RuntimeSection = section(RuntimeSection, missing=RuntimeSection(name="inline"))
    logger: LoggerSection = section(LoggerSection, missing=LoggerSection(name="none"))

    def __post_init__(self):
        super().__post_init__()
        if self.runtime.slow_clients and self.local_epochs < 2:
            raise FedPGPError(
                "runtime.slow_clients needs local_epochs=2 or more: a slow client does not finish "
                "its epochs"
            )
        if self.evaluate_clients == 1 and isinstance(self.evaluate_clients, float):
            raise FedPGPError(
                f"evaluate_clients={self.evaluate_clients} cannot work; write 1 for one client, "
                "leave it out for all"
            )
        if (self.evaluate_clients or 0) > 1 and self.evaluate_clients != int(self.evaluate_clients):
            raise FedPGPError(
                f"evaluate_clients={self.evaluate_clients} cannot work; it is a whole number of "
                "clients, or a share of them below 1"
            )
        if self.n_ctx is None and self.context_init == "normal":
            raise FedPGPError(
                "n_ctx=null takes the number of context vectors from a phrase; give context_init "
                "one, or n_ctx a number"
            )
