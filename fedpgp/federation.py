"""The facade between the science and whatever moves messages: a data set dealt to clients, a frozen model and a method.

Server and clients build the same federation from the same configuration. Nothing heavy happens before it is needed: a
server that only averages never opens an image. No Flower here: prompts come and go as numpy arrays and plain
dictionaries.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Protocol

import numpy as np
import psutil
import torch
from torch import Tensor

from fedpgp.clip import load_clip, resolve_device
from fedpgp.data import Dataset, load_dataset
from fedpgp.data.features import encode_split
from fedpgp.data.lookup import Pictures, Rows
from fedpgp.errors import FedPGPError, unknown
from fedpgp.evaluation import accuracy, calibration_error
from fedpgp.methods import METHODS, Features, Images, Method, Params, Round, cosine_logits
from fedpgp.optimizers import fresh_state, make_optimizer
from fedpgp.protocols import ClientShare, Deal, deal
from fedpgp.seeding import generator
from fedpgp.task import Candidates, Task
from fedpgp.training import TrainingSettings, gather, train_cohort

State = dict[str, Tensor]
LoadState = Callable[[int], State | None]
Arrays = Mapping[str, np.ndarray]
OPTIMIZER = "optimizer/"  # prefix of the optimizer's tensors in a client's private state

MEMORY_SHARE = 0.1
"""Part of a machine's memory that one cohort's activations may take (several workers share it)."""

SCORED_AT_ONCE = 512
"""Test images that are scored in one tensor operation."""


class FeatureSource(Protocol):
    """Where features come from: unit norm, one row an image of the train or the test split."""

    def __call__(self, split: str) -> np.ndarray: ...


@dataclass
class TrainResult:
    """One client's round. ``update`` is None and ``error`` says why when the client must be left out of the average."""

    client: int
    update: dict[str, np.ndarray] | None
    state: State
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass
class EvalResult:
    """One client's figures in percent, flat: ``"<model>.<figure>"``; what the protocol lacks is absent."""

    client: int
    num_examples: int
    metrics: dict[str, float]


class Federation:
    """Clients that own images, one frozen model, one method.

    Args:
        method: with its task (model, classes, precision).
        dataset: what was dealt.
        dealt: who owns what.
        features: image features of the train and the test split.
        patches: patch features likewise, for methods that read them.
        training: how a client trains in a round.
        seed: of everything random.
        cohort_size: clients trained in one tensor program; None takes what memory allows.
        local_labels: candidates of local accuracy: ``all`` trained classes, or the client's ``own``.
        keep_optimizer: a client goes on with its own optimizer state from round to round.
    """

    def __init__(
        self,
        method: Method | Callable[[], Method],
        dataset: Dataset,
        dealt: Deal,
        features: FeatureSource,
        training: TrainingSettings,
        *,
        patches: FeatureSource | None = None,
        seed: int = 0,
        cohort_size: int | None = None,
        local_labels: str = "all",
        keep_optimizer: bool = False,
    ):
        if local_labels not in ("all", "own"):
            raise FedPGPError(unknown("protocol.local_labels", local_labels, ["all", "own"]))
        self._method, self.dataset, self.deal = method, dataset, dealt
        self._sources = {"features": features, "patches": patches}
        self.training, self.seed, self.cohort_size = training, seed, cohort_size
        self.local_labels, self.keep_optimizer = local_labels, keep_optimizer
        self._images: dict[tuple[str, str], Tensor | Rows | Pictures] = {}
        self._labels: dict[tuple, Tensor] = {}

    @classmethod
    def from_config(cls, config: Mapping) -> "Federation":
        """Builds a federation from the resolved configuration (a plain nested mapping; the keys are conf/'s).

        Raises:
            FedPGPError: anything in the configuration that cannot work, by name.
        """
        return _Builder(config).federation()

    @cached_property
    def method(self) -> Method:
        return self._method if isinstance(self._method, Method) else self._method()

    @property
    def num_clients(self) -> int:
        return len(self.deal.shares)

    @cached_property
    def base(self) -> Candidates:
        """Candidates of training, local and base accuracy."""
        return self.method.task.candidates(self.deal.base_classes)

    @cached_property
    def novel(self) -> Candidates:
        return self.method.task.candidates(self.deal.novel_classes)

    # The tensors. -----------------------------------------------------------------------------------------------------

    def initial_shared(self) -> dict[str, np.ndarray]:
        """The global tensors before round 1; private ones are tried too, so that impossible settings show here."""
        self.initial_state(0)
        return _arrays(self.method.init_shared(generator(self.seed, "shared")), self.method.task.dtype)

    def initial_state(self, client: int) -> State:
        """A client's private tensors before its first round."""
        return self.method.init_personal(generator(self.seed, "personal", client))

    def images(self, split: str) -> Images:
        """What the method reads of the ``train`` or ``test`` images; patches and pixels are looked up when indexed."""
        return Images(**{what: self._read(split, what) for what in self.method.reads})

    def features(self, split: str) -> Tensor:
        """Unit-norm image features of ``train`` or ``test`` on the task's device, in its precision."""
        return self._read(split, "features")

    def _read(self, split: str, what: str) -> Tensor | Rows | Pictures:
        if (split, what) not in self._images:
            task = self.method.task
            if what == "pixels":
                images = Pictures(getattr(self.dataset, split), task.clip.preprocess, task.device, task.dtype)
            elif what == "patches":
                images = Rows(self._sources[what](split), task.device, task.dtype)
            else:  # a copy: torch must not write into, nor hold open, the memory-mapped cache
                images = torch.from_numpy(np.array(self._sources[what](split))).to(task.device, task.dtype)
            self._images[split, what] = images
        return self._images[split, what]

    def labels(self, split: str, classes: Sequence[int]) -> Tensor:
        """Columns of ``classes`` for every image of a split, -1 for images of other classes."""
        key = (split, tuple(classes))
        if key not in self._labels:
            column = np.full(len(self.dataset.class_names), -1, dtype=np.int64)
            column[list(classes)] = np.arange(len(classes))
            labels = column[getattr(self.dataset, split).labels]
            self._labels[key] = torch.from_numpy(labels).to(self.method.task.device)
        return self._labels[key]

    def _params(
        self, shared: Arrays, clients: Sequence[int], states: Sequence[State], own: Mapping[int, Arrays] | None
    ) -> Params:
        """All tensors of these clients: shared, sent to them alone, their own, and what the method prepares."""
        task, method = self.method.task, self.method

        def tensor(array: np.ndarray | Tensor) -> Tensor:
            return torch.as_tensor(array).to(task.device, task.dtype)

        params = {name: tensor(array).expand(len(clients), *np.shape(array)) for name, array in shared.items()}
        for name in own[clients[0]] if own else ():
            params[name] = torch.stack([tensor(own[client][name]) for client in clients])
        for name in self._personal_names:
            params[name] = torch.stack([tensor(state[name]) for state in states])
        if type(method).prepare is not Method.prepare:
            rows = [self.deal.shares[client].train for client in clients]
            batch = gather(self.images("train"), self.labels("train", self.deal.base_classes), rows)
            with torch.no_grad():
                params |= method.prepare(params, batch, self.base)
        if extra := set(params) - set(shared) - set(self._personal_names) - set(method.carried):
            raise FedPGPError(f"method {method.name}: {sorted(extra)} are not learned, so they belong into `carried`")
        return params

    def personal_features(
        self,
        shared: Arrays,
        clients: Sequence[int],
        load_state: LoadState,
        candidates: Sequence[Candidates],
        own: Mapping[int, Arrays] | None = None,
    ) -> list[Features]:
        """Class features of these clients' own models, (K, ...), for each list of candidates."""
        states = [load_state(client) or self.initial_state(client) for client in clients]
        params = self._params(shared, clients, states, own)
        return [self.method.personal_features(params, classes) for classes in candidates]

    @cached_property
    def _personal_names(self) -> tuple[str, ...]:
        return tuple(self.method.init_personal(generator(self.seed, "personal", 0)))

    def _cohorts(self, clients: Sequence[int], classes: Candidates, gradients: bool) -> Iterator[list[int]]:
        size = self.cohort_size or self._affordable(classes, gradients)
        ordered = sorted(clients, key=lambda c: (-len(self.deal.shares[c].train), c))  # equal lengths finish together
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def _affordable(self, classes: Candidates, gradients: bool) -> int:
        """Clients whose activations fit into memory, at least 1.

        From the memory the machine has, not from what is free just now: float32 results depend on the packing in their
        last digits, and the same run must give the same numbers twice.
        """
        task = self.method.task
        blocks, width = len(task.clip.text_model.transformer.resblocks), task.clip.width
        kept = 12 * blocks if gradients else 24  # widths a token: what autograd keeps of a block, or one block's peak
        client = (
            2 * classes.encoder(task.n_ctx).tokens * width * kept * torch.finfo(task.dtype).bits // 8
        )  # two passes: global and personal
        if task.device.type == "cuda":
            memory = torch.cuda.get_device_properties(task.device).total_memory
        else:
            memory = psutil.virtual_memory().total
        return max(1, int(memory * MEMORY_SHARE / client))

    # Training. --------------------------------------------------------------------------------------------------------

    def train(
        self,
        shared: Arrays,
        clients: Sequence[int],
        round: int,
        load_state: LoadState,
        own: Mapping[int, Arrays] | None = None,
    ) -> Iterator[TrainResult]:
        """Trains clients for one round (from 1) and yields each as soon as its cohort is done.

        Args:
            shared: the global tensors.
            clients: logical ids.
            round: of the run.
            load_state: a client's newest private tensors; None for a client that never trained.
            own: what the server sent to one client alone (:meth:`for_client`).
        """
        task = self.method.task
        images, labels = self.images("train"), self.labels("train", self.deal.base_classes)
        for cohort in self._cohorts(clients, self.base, gradients=True):
            stored = [load_state(client) for client in cohort]
            states = [s if s is not None else self.initial_state(c) for s, c in zip(stored, cohort, strict=True)]
            params = self._params(shared, cohort, states, own)
            result = train_cohort(
                self.method,
                params,
                images,
                labels,
                [self.deal.shares[client].train for client in cohort],
                self.base,
                self.training,
                received={name: params[name] for name in shared},
                seed=self.seed,
                clients=cohort,
                round=round,
                optimizer_state=self._stored_optimizer(params, states) if self.keep_optimizer else None,
            )
            for k, client in enumerate(cohort):
                state = {name: result.params[name][k].cpu() for name in self._personal_names}
                if self.keep_optimizer:
                    state |= {OPTIMIZER + name: tensor[k].cpu() for name, tensor in result.optimizer_state.items()}
                error = result.failure[k]
                update = (
                    None if error else {name: result.params[name][k].cpu().to(task.dtype).numpy() for name in shared}
                )
                metrics = {"loss": float(result.loss[k]), "steps": float(result.steps[k])}
                yield TrainResult(client, update, state, len(self.deal.shares[client].train), metrics, error)

    def _stored_optimizer(self, params: Params, states: Sequence[State]) -> dict[str, Tensor]:
        """The cohort's optimizer state; zeros for a client that has none yet."""
        settings = self.training
        optimizer = make_optimizer(settings.optimizer, settings.momentum, settings.weight_decay)
        state = fresh_state(optimizer, {name: params[name] for name in self.method.learned(params)})
        for k, stored in enumerate(states):
            for name, tensor in state.items():
                if OPTIMIZER + name in stored:
                    tensor[k] = stored[OPTIMIZER + name].to(tensor)
        return state

    # The server's part. -----------------------------------------------------------------------------------------------

    def initial_memory(self) -> dict[str, np.ndarray]:
        """What the server remembers before round 1."""
        return _arrays(self.method.init_memory(self.num_clients), self.method.task.dtype)

    def for_client(self, client: int, memory: Arrays) -> dict[str, np.ndarray]:
        """What the server sends to this client alone."""
        return _arrays(self.method.for_client(client, _tensors(memory)), self.method.task.dtype)

    def after_round(
        self,
        averaged: Arrays,
        *,
        round: int,
        last: int,
        sent: Arrays,
        uploads: Mapping[int, Arrays],
        weights: Mapping[int, float],
        memory: Arrays,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The next shared tensors and the server's memory.

        Args:
            averaged: what the strategy made of the uploads.
            round, last: number of this round and of the run's last.
            sent: the shared tensors of this round.
            uploads, weights: of each client whose update counts.
            memory: of the server, before.
        """
        clients = sorted(uploads)
        share = torch.tensor([weights[client] for client in clients], dtype=torch.float64)
        stacked = {n: torch.stack([torch.from_numpy(np.array(uploads[c][n])) for c in clients]) for n in sent}
        shared, memory = self.method.after_round(
            _tensors(averaged),
            Round(
                number=round,
                last=last,
                clients=clients,
                population=self.num_clients,
                weights=(share / share.sum()).to(self.method.task.dtype),
                sent=_tensors(sent),
                uploads=stacked,
                memory=_tensors(memory),
                seed=self.seed,
            ),
        )
        return _arrays(shared, self.method.task.dtype), _arrays(memory, self.method.task.dtype)

    # Evaluation. ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self,
        shared: Arrays,
        clients: Sequence[int],
        load_state: LoadState,
        own: Mapping[int, Arrays] | None = None,
        *,
        zero_shot: bool = False,
    ) -> Iterator[EvalResult]:
        """Scores the global and every client's personal model (and, when asked, zero-shot CLIP) on that client's test
        images."""
        method, task = self.method, self.method.task
        parts = {"base": self.base, **({"novel": self.novel} if self.deal.novel_classes else {})}
        common: dict[str, Answer] = {}
        if zero_shot:  # CLIP's own answer, whatever the method does with its own models
            images = self.features("test")
            common["zero_shot"] = lambda part, rows: cosine_logits(parts[part].photo, images[rows], task.logit_scale)
        params = {n: torch.as_tensor(a).to(task.device, task.dtype).unsqueeze(0) for n, a in shared.items()}
        features = {part: method.global_features(params, classes) for part, classes in parts.items()}
        if all(part is not None for part in features.values()):
            everything = {part: self._scored(clients, part) for part in parts}
            common["global"] = _looked_up(everything, self._answer(features))
        personal = type(method).personal_features is not Method.personal_features
        for cohort in self._cohorts(clients, self.base, gradients=False):
            if personal:
                of_part = self.personal_features(shared, cohort, load_state, list(parts.values()), own)
            for k, client in enumerate(cohort):
                mine = common.get("global")
                if personal:
                    mine = self._answer({part: _of_client(f, k) for part, f in zip(parts, of_part, strict=True)})
                figures: dict[str, float] = {}
                for model, answer in {**common, "personal": mine}.items():
                    for figure, value in self._score(self.deal.shares[client], answer).items():
                        figures[f"{model}.{figure}"] = value
                yield EvalResult(client, len(self.deal.shares[client].test), figures)

    def _answer(self, features: Mapping[str, Features]) -> "Answer":
        """What one of the method's models (part -> features with a client axis of one) says to test images."""
        images, parts = self.images("test"), {"base": lambda: self.base, "novel": lambda: self.novel}

        def answer(part: str, rows: np.ndarray) -> Tensor:
            index = torch.from_numpy(rows).to(self.method.task.device)
            chunks = index.unsqueeze(0).split(SCORED_AT_ONCE, dim=1)
            classes = parts[part]()
            return torch.cat([self.method.logits(features[part], images[chunk], classes)[0] for chunk in chunks])

        return answer

    def _scored(self, clients: Sequence[int], part: str) -> np.ndarray:
        """Every test image that some of these clients' figures need with the candidates of ``part``, ascending."""
        shares = [self.deal.shares[client] for client in clients]
        lists = [s.novel for s in shares] if part == "novel" else [rows for s in shares for rows in (s.test, s.base)]
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *(rows for rows in lists if rows is not None)]))

    def _score(self, share: ClientShare, answer: "Answer") -> dict[str, float]:
        """local, ece, base, novel of one model on one client's test images; what has no image is absent."""
        figures: dict[str, float] = {}
        labels = self.labels("test", self.deal.base_classes)
        if len(share.test):
            logits = self._local(answer("base", share.test), share)
            figures["local"] = accuracy(logits, labels[share.test])
            figures["ece"] = calibration_error(logits, labels[share.test])
        if share.base is not None and len(share.base):
            figures["base"] = accuracy(answer("base", share.base), labels[share.base])
        if share.novel is not None and len(share.novel):
            novel = self.labels("test", self.deal.novel_classes)
            figures["novel"] = accuracy(answer("novel", share.novel), novel[share.novel])
        return figures

    def _local(self, logits: Tensor, share: ClientShare) -> Tensor:
        """Logits over the candidates of local accuracy; with ``local_labels=own`` others' classes are no answer."""
        if self.local_labels == "own":
            others = np.setdiff1d(np.arange(logits.shape[-1]), share.own_classes)
            logits[..., others] = float("-inf")
        return logits

    @torch.no_grad()
    def samples(
        self,
        shared: Arrays,
        clients: Sequence[int],
        load_state: LoadState,
        per_client: int,
        own: Mapping[int, Arrays] | None = None,
    ) -> list[dict]:
        """A few of each client's own test pictures with its personal model's answers, right and wrong ones in turn.

        Returns:
            dicts of ``client, domain, label, predicted, correct, confidence`` (0..1) and ``png`` (bytes).
        """
        pictures = []
        for client in clients:
            share = self.deal.shares[client]
            if not len(share.test):
                continue
            (features,) = self.personal_features(shared, [client], load_state, [self.base], own)
            logits = self._answer({"base": features})("base", share.test)
            probability = self._local(logits, share).softmax(-1)
            confidence, predicted = (t.cpu().numpy() for t in probability.max(-1))
            truth = self.labels("test", self.deal.base_classes)[share.test].cpu().numpy()
            order = generator(self.seed, "samples", client).permutation(len(share.test))
            right, wrong = ([i for i in order if (predicted[i] == truth[i]) == hit] for hit in (True, False))
            chosen = [i for pair in zip(right, wrong, strict=False) for i in pair]
            chosen += [i for i in order if i not in chosen]
            for i in chosen[:per_client]:
                buffer = io.BytesIO()
                self.dataset.test.image(int(share.test[i])).save(buffer, format="PNG")
                pictures.append(
                    {
                        "client": int(client),
                        "domain": share.domain,
                        "label": self.base.names[truth[i]],
                        "predicted": self.base.names[predicted[i]],
                        "correct": bool(predicted[i] == truth[i]),
                        "confidence": float(confidence[i]),
                        "png": buffer.getvalue(),
                    }
                )
        return pictures

    def client_table(self) -> list[dict]:
        """A row a client: id, domain, numbers of train and test images, and how many of which class."""
        names = self.dataset.class_names

        def counts(labels: np.ndarray) -> dict[str, int]:
            ids, how_many = np.unique(labels, return_counts=True)
            return {names[i]: int(n) for i, n in zip(ids, how_many, strict=True)}

        return [
            {
                "id": client,
                "domain": share.domain,
                "train_images": len(share.train),
                "test_images": len(share.test),
                "train_counts": counts(self.dataset.train.labels[share.train]),
                "test_counts": counts(self.dataset.test.labels[share.test]),
            }
            for client, share in enumerate(self.deal.shares)
        ]


Answer = Callable[[str, np.ndarray], Tensor]
"""A model at work: part (``base`` or ``novel``: its candidates), test images (n,) -> logits (n, candidates)."""


def _looked_up(rows: Mapping[str, np.ndarray], answer: Answer) -> Answer:
    """The same model for many clients: each part's images are answered once, the first time one is asked for."""
    answers: dict[str, Tensor] = {}

    def look_up(part: str, wanted: np.ndarray) -> Tensor:
        if part not in answers:
            answers[part] = answer(part, rows[part])
        return answers[part][torch.from_numpy(np.searchsorted(rows[part], wanted)).to(answers[part].device)]

    return look_up


def _tensors(arrays: Arrays) -> Params:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _arrays(tensors: Params, dtype: torch.dtype) -> dict[str, np.ndarray]:
    return {name: tensor.to(dtype).cpu().numpy() for name, tensor in tensors.items()}


def _of_client(features: Features, k: int) -> Features:
    """One client's class features, with a client axis of one."""
    if isinstance(features, Tensor):
        return features[k : k + 1]
    return {name: tensor[k : k + 1] for name, tensor in features.items()}


DTYPES = {"float32": torch.float32, "float64": torch.float64}


class _Builder:
    """Configuration -> federation, checking names and ranges on the way."""

    def __init__(self, config: Mapping):
        self.config = config
        if config["dtype"] not in DTYPES:
            raise FedPGPError(unknown("dtype", config["dtype"], list(DTYPES)))
        if config["dtype"] == "float64" and resolve_device(config["device"]).type == "mps":
            raise FedPGPError("dtype=float64: Apple's devices have no float64; use device=cpu")
        if config["method"]["name"] not in METHODS:
            raise FedPGPError(unknown("method", config["method"]["name"], list(METHODS)))

    def federation(self) -> Federation:
        config = self.config
        if config["dataset"].get("views", 1) != 1:
            raise FedPGPError(
                f"dataset.views={config['dataset']['views']}: augmented views are not there yet; 1 is the centre crop"
            )
        options = {k: v for k, v in config["dataset"].items() if k not in ("name", "root", "views")}
        dataset = load_dataset(config["dataset"]["name"], config["dataset"].get("root"), **options)
        dealt = deal(
            dataset, config["clients"], config["seed"], config["shots"], config["protocol"], config["partition"]
        )
        settings = {k: v for k, v in config["method"].items() if k not in ("name", "optimizer_state")}
        method_class = METHODS[config["method"]["name"]]
        try:
            method_settings = method_class.Settings(**settings)
        except TypeError as error:
            valid = list(method_class.Settings.__dataclass_fields__)
            wrong = [key for key in settings if key not in valid]
            if not wrong:
                raise FedPGPError(f"method={method_class.name}: {error}") from error
            raise FedPGPError(unknown(f"setting of method {method_class.name}", wrong[0], valid)) from None
        clip = cache(
            lambda: load_clip(
                config["model"]["name"], config["model"].get("pretrained"), resolve_device(config["device"])
            )
        )

        def method() -> Method:
            task = Task(
                clip(),
                dataset.class_names,
                template=dataset.template,
                n_ctx=config["n_ctx"],
                context_init=config["context_init"],
                dtype=DTYPES[config["dtype"]],
            )
            return method_class(method_settings, task)

        def encoded(split: str, what: str) -> np.ndarray:
            return encode_split(
                clip(),
                getattr(dataset, split),
                cache_dir=config["runtime"].get("cache_dir"),
                dataset_name=dataset.name,
                split_name=split,
                what=what,
            )

        size = config["runtime"].get("cohort_size", "auto")
        return Federation(
            method,
            dataset,
            dealt,
            partial(encoded, what="features"),
            TrainingSettings(
                epochs=config["local_epochs"],
                batch_size=config["batch_size"],
                lr=config["lr"],
                rounds=config["rounds"],
                **config["training"],
            ),
            patches=partial(encoded, what="patches"),
            seed=config["seed"],
            cohort_size=None if size == "auto" else int(size),
            local_labels=config["protocol"].get("local_labels", "all"),
            keep_optimizer=config["method"].get("optimizer_state", "reset") == "keep",
        )
