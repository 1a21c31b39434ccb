"""Build data set, split, model and federation from a resolved configuration.

Names and ranges are checked on the way. Nothing heavy is loaded before it is asked for.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np

from fedpgp.attacks import make_attack, poisoned
from fedpgp.clip import FrozenCLIP, resolve_device
from fedpgp.clip.disk_cache import CachedCLIP
from fedpgp.config import Config, DatasetSection, MethodSection
from fedpgp.data import Dataset, load_dataset
from fedpgp.data.base import Split, Subset
from fedpgp.data.features import encode_split, encoded_before
from fedpgp.data.joint import Concat, augmented
from fedpgp.data.lookup import PartialFeatures
from fedpgp.data.partitions.base import check_options
from fedpgp.data.store import cache_folder
from fedpgp.errors import FedPGPError, unknown
from fedpgp.federation import Federation, Progress
from fedpgp.inputs import FeatureSource
from fedpgp.methods import Method, method_class
from fedpgp.onboarding.check import check_onboarding
from fedpgp.precision import DTYPES, resolve_dtype
from fedpgp.private_data import images_arrive, split_private_data
from fedpgp.private_data import look_for_images as _look_for_images
from fedpgp.process import set_up_process
from fedpgp.protocols import FederatedSplit, SplitRequest, make_protocol, split_clients
from fedpgp.task import Task
from fedpgp.training import TrainingSettings
from fedpgp.training.private_training import private_training


def check_config(config: Mapping) -> Config:
    """Return the typed configuration. What depends on the data is refused where the data are known.

    Args:
        config: a plain nested mapping, resolved; the keys are conf/'s.

    Raises:
        FedPGPError: a key that is unknown or has no value; a value that cannot work, whatever the
            data, of the protocol's, the method's and the partition's own settings
            too.
    """
    checked = Config.of(config)
    check_onboarding(checked, make_protocol(checked.protocol))
    configured_method(checked.method)
    if checked.partition.scheme != "own":
        check_options(checked.partition.scheme, checked.partition.options)
    make_attack(config)
    return checked


def method_settings(config: Mapping) -> dict:
    """A configuration's settings of the method itself."""
    return MethodSection.of(config["method"]).own


def load_configured(config: Mapping, spec: Mapping | None = None) -> Dataset:
    """The data set of a configuration, or another one (``name`` and its options) from
    where that one comes from."""
    return _load(DatasetSection.of(config["dataset"]), spec)


def _load(chosen: DatasetSection, spec: Mapping | None = None) -> Dataset:
    common = {name: getattr(chosen, name) for name in ("download", "on_bad_image", "evaluate_on")}
    if spec is not None:
        options = {**common, **spec}
        name, root = options.pop("name"), options.pop("root", chosen.root)
        options.pop("views", None)
        return load_dataset(name, root, **options)
    older = {}  # than the option layout
    if chosen.name == "folder" and "layout" not in chosen.options:
        older = {"site_in_split": True}
    return load_dataset(chosen.name, chosen.root, **common, **chosen.options, **older)


def takes_arrivals(config: Mapping) -> bool:
    """Whether the clients' own folders may grow during a run."""
    return images_arrive(Config.of(config))


def look_for_images(config: Mapping, server_round: int | None) -> list[str]:
    """Look at a client's own folder for images that are new; see
    :func:`fedpgp.private_data.look_for_images`."""
    return _look_for_images(Config.of(config), _load, server_round)


def split_configured(config: Mapping) -> FederatedSplit:
    """Who owns what, by a configuration; attackers' data as they train on them."""
    return _split(Config.of(config), config)


def _split(config: Config, given: Mapping) -> FederatedSplit:
    if config.partition.scheme == "own":
        return split_private_data(config, _load)
    load = partial(_load, config.dataset)
    scheme = given["partition"]
    request = SplitRequest(load(), config.clients, config.seed, config.shots, scheme, load)
    return poisoned(given, split_clients(request, config.protocol))


def build_federation(
    config: Mapping,
    federated_split: FederatedSplit | None = None,
    features: FeatureSource | None = None,
) -> Federation:
    """Build the federation of a configuration.

    Args:
        config: a plain nested mapping, resolved; the keys are conf/'s.
        federated_split: another split than the configuration's own.
        features: where image features come from; None: from the images, or the cache.

    Raises:
        FedPGPError: anything in the configuration that cannot work, by name.
    """
    set_up_process()
    chosen = Config.of(config)
    make_method = _method(chosen)
    clip = cache(partial(_clip, chosen))
    if federated_split is None:
        federated_split = _split(chosen, config)
        federated_split.check_rounds(chosen.rounds)
    dataset = federated_split.dataset
    size, views = chosen.runtime.cohort_size, chosen.dataset.views

    def tell(done: int, total: int, what: str) -> None:
        federation.progress(done, total, what)

    encoded = partial(
        _encoded,
        chosen.runtime.cache_dir,
        dataset,
        clip,
        cache(lambda: federated_split.train_indices),
        tell,
    )
    training = TrainingSettings(
        epochs=chosen.local_epochs,
        batch_size=chosen.batch_size,
        lr=chosen.lr,
        rounds=chosen.rounds,
        views=None if views == "live" else views,
        **vars(chosen.training),
    )
    federation = Federation(
        lambda: make_method(clip(), federated_split),
        dataset,
        federated_split,
        features or partial(encoded, "features"),
        training,
        **{what: partial(encoded, what) for what in ("patches", "mirrored", "features_raw")},
        seed=chosen.seed,
        cohort_size=None if size == "auto" else size,
        keep_optimizer=chosen.method.optimizer_state == "keep",
        personal_start=chosen.method.personal_start,
        weighting=chosen.method.weighting,
        slow_clients=chosen.runtime.slow_clients,
        private=private_training(config, federated_split, training),
    )
    return federation


def _method(config: Config) -> Callable[[FrozenCLIP, FederatedSplit], Method]:
    """What makes the method, once there is a model; its name and settings are checked now."""
    if config.dtype == "float64" and resolve_device(config.device).type == "mps":
        raise FedPGPError("dtype=float64: Apple's devices have no float64; use device=cpu")
    chosen, settings = configured_method(config.method)
    plain = make_protocol(config.protocol).template == "plain"
    dtype, compute = DTYPES[resolve_dtype(config.dtype, config.device, config.model.name)]

    def make(clip: FrozenCLIP, federated_split: FederatedSplit) -> Method:
        dataset = federated_split.dataset
        task = Task(
            clip,
            dataset.class_names,
            template=dataset.templates,
            sources=dataset.sources,
            plain_zero_shot=plain,
            n_ctx=config.n_ctx,
            context_init=config.context_init,
            dtype=dtype,
            compute=compute,
            phases=federated_split.phases,
        )
        return chosen(settings, task)

    return make


def configured_method(method: MethodSection) -> tuple[type[Method], object]:
    """Return a method's class and settings.

    Raises:
        FedPGPError: no such method or setting; a value that cannot work.
    """
    chosen = method_class(method.name, method.component)
    try:
        return chosen, chosen.Settings(**method.own)
    except TypeError as error:
        valid = list(chosen.Settings.__dataclass_fields__)
        wrong = [key for key in method.own if key not in valid]
        if not wrong:
            raise FedPGPError(f"method={chosen.name}: {error}") from error
        raise FedPGPError(unknown(f"setting of method {chosen.name}", wrong[0], valid)) from None


def _clip(config: Config) -> FrozenCLIP:
    """Return the model behind its cache: it is loaded when something is not cached yet."""
    name, pretrained, device = config.model.name, config.model.pretrained, config.device

    def load() -> FrozenCLIP:
        from fedpgp.clip.loading import load_clip  # seconds, with open_clip and torchvision

        return load_clip(name, pretrained, resolve_device(device))

    cache_dir = config.model.memory
    if cache_dir is None:
        if pretrained == "random" or name.startswith(
            "hf-hub:"
        ):  # a hub's name may stand for something else later
            return load()
        cache_dir = cache_folder(config.runtime.cache_dir) / "models"
    return CachedCLIP.of(load, name, pretrained, Path(cache_dir), device)


def _encoded(
    cache_dir: str | None,
    dataset: Dataset,
    clip: Callable[[], FrozenCLIP],
    train_indices: Callable[[], np.ndarray],
    tell: Progress,
    what: str,
    split: str,
    view: int | None = None,
) -> np.ndarray | PartialFeatures:
    """What ``FrozenCLIP.features_of`` makes of a split, or of an augmented view of it,
    from the cache if there."""
    whole, name = getattr(dataset, split), split
    if not len(whole):  # a client may have none of its own
        return np.empty((0, clip().embed), dtype=np.float32)
    if view is not None:
        whole, name = augmented(whole, view, clip().image_size), f"{split}-view{view}"
    parts = whole.parts if isinstance(whole, Concat) else [whole]
    options = {"cache_dir": cache_dir, "dataset_name": dataset.name, "what": what}
    kind = "images" if what == "features" else f"images ({what})"
    in_words = f"encoding {split} {kind}" + ("" if view is None else f", view {view + 1}")
    encode = partial(
        encode_split, clip(), progress=lambda done, total: tell(done, total, in_words), **options
    )

    def features(part: Split) -> np.ndarray:
        """Features of a part; of training images that are tested on (a held-out domain's) from
        what training reads."""
        of_train = isinstance(part, Subset) and part.split is dataset.train and split != "train"
        if of_train and not isinstance(part.split, Concat):
            most = 2 * len(train_indices()) >= len(part.split)
            read = encode if most else partial(encoded_before, clip(), **options)
            if (trained := read(part.split, split_name="train")) is not None:
                return trained[part.rows]
        return encode(part, split_name=name)

    rows = train_indices() if split == "train" else np.arange(len(whole))
    if 2 * len(rows) < len(whole):  # of many images few are used (shots): only those are encoded
        found = [encoded_before(clip(), part, split_name=name, **options) for part in parts]
        if any(features is None for features in found):
            some = encode(Subset(whole, rows), split_name=f"{name}-some")
            return PartialFeatures(some, rows, len(whole))
    else:
        found = [features(part) for part in parts]
    return found[0] if len(found) == 1 else np.concatenate(found)
