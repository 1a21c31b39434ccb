"""What a method learns for: a model, the classes, how prompts start, in which precision."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from fedpgp.clip import FrozenCLIP
from fedpgp.errors import FedPGPError
from fedpgp.prompts import context_length, fixed_words
from fedpgp.text import AdaptedTextEncoder, PromptedTextEncoder
from fedpgp.text.templates import PLAIN


class ClassSet:
    """Classes to choose among, in order, and their frozen text features, each computed once.

    Attributes:
        ids: the classes' labels in the data set; column c of every feature and logit is class
            ``ids[c]``.
        names: their names.
    """

    def __init__(self, task: "Task", ids: tuple[int, ...]):
        self.task, self.ids = task, ids
        self.names = [task.class_names[i] for i in ids]
        self._encoders: dict[tuple[int, str], PromptedTextEncoder] = {}
        self._adapted: dict[tuple[str, int], AdaptedTextEncoder] = {}
        self._text_features: dict[str | tuple[str, ...], Tensor] = {}
        self._refuse_same_tokens()

    def _refuse_same_tokens(self) -> None:
        """Refuses names without a token, and names of one data set that are different texts and
        the same tokens. (Published lists have a name twice, as ImageNet has "missile"; that is
        their own.)

        Raises:
            FedPGPError: naming one, or two.
        """
        seen: dict[tuple[str, tuple[int, ...]], str] = {}
        for i, name in zip(self.ids, self.names, strict=True):
            tokens = tuple(self.task.clip.token_ids(f"{name.replace('_', ' ')}."))
            if not tokens:
                raise FedPGPError(
                    f"class {name!r} has no token of this model, whose tokenizer leaves out all of "
                    "it: rename it"
                )
            key = self.task.sources[i] if self.task.sources else "", tokens
            if seen.setdefault(key, name) != name:
                raise FedPGPError(
                    f"classes {seen[key]!r} and {name!r} are the same tokens to this model, "
                    "which cannot tell them apart: rename one"
                )

    def encoder(self, n_ctx: int, words: str | None = None) -> PromptedTextEncoder:
        """The prompted text encoder of these classes for contexts of ``n_ctx`` tokens.

        ``words`` stand between the context and every class name; None: the task's
        (:func:`fixed_words`)."""
        words = self.task.fixed_words if words is None else words
        key = n_ctx, words
        if key not in self._encoders:
            names = [f"{words} {name}" if words else name for name in self.names]
            self._encoders[key] = PromptedTextEncoder(
                self.task.clip, names, n_ctx, dtype=self.task.dtype, compute=self.task.compute
            )
        self._encoders[key].checkpointing = self.task.checkpointing
        return self._encoders[key]

    def adapted_encoder(self, phrase: str, first: int) -> AdaptedTextEncoder:
        """The text encoder of these classes behind a fixed phrase, with low-rank adapters in the
        blocks from ``first`` on."""
        task, key = self.task, (phrase, first)
        if key not in self._adapted:
            self._adapted[key] = AdaptedTextEncoder(
                task.clip, self.names, phrase, first, dtype=task.dtype, compute=task.compute
            )
        self._adapted[key].checkpointing = task.checkpointing
        return self._adapted[key]

    @property
    def sentences(self) -> list[str]:
        """The hand-written template of each class, filled in ("a photo of a cat.")."""
        templates = (self.task.templates[i] for i in self.ids)
        return [
            template.format(name.replace("_", " "))
            for template, name in zip(templates, self.names, strict=True)
        ]

    @cached_property
    def template_features(self) -> Tensor:
        """z_C of the hand-written template ("a photo of a {}."), unit norm, (C, e)."""
        return self.task.clip.encode_texts(self.sentences).to(self.task.dtype)

    @property
    def zero_shot(self) -> Tensor:
        """Features that zero-shot CLIP answers by, unit norm, (C, e)."""
        return self.features_of(PLAIN) if self.task.plain_zero_shot else self.template_features

    def features_of(self, template: str) -> Tensor:
        """Frozen features of a template with one ``{}`` ("{}" is the bare name), unit norm, (C,
        e)."""
        if template not in self._text_features:
            texts = [template.format(name.replace("_", " ")) for name in self.names]
            self._text_features[template] = self.task.clip.encode_texts(texts).to(self.task.dtype)
        return self._text_features[template]

    def ensemble(self, templates: tuple[str, ...]) -> Tensor:
        """Frozen features of several templates, averaged and then brought to unit norm, (C, e)."""
        if templates not in self._text_features:
            names = [name.replace("_", " ") for name in self.names]
            found = self.task.clip.encode_ensemble(templates, names)
            self._text_features[templates] = found.to(self.task.dtype)
        return self._text_features[templates]

    @cached_property
    @torch.no_grad()
    def placeholder_features(self) -> Tensor:
        """z_C of "X X … X {class}." with as many placeholder words as the context is long (the
        public code's guidance)."""
        words = self.task.clip.embed_phrase(" ".join("X" * self.task.n_ctx))
        return self.encoder(self.task.n_ctx)(words.to(self.task.dtype))


class Task:
    """Everything about the world that a method may use.

    Args:
        clip: the frozen model.
        class_names: of the whole data set, in label order.
        template: the hand-written template of the data set, with one ``{}``; or one for each class.
        sources: the data set that each class is of, where several are joined.
        n_ctx: number of context vectors; None takes it from the phrase in ``context_init``.
        context_init: ``"normal"`` or a phrase, of which ``n_ctx`` tokens are learned and the rest
            is fixed.
        plain_zero_shot: zero-shot CLIP's template is "a photo of a {}.", and not the data set's.
        dtype: of prompts, optimizer state, losses and features.
        compute: of the text tower's matrix products; None is ``dtype``.
        phases: the most phases that a client's images go through; 1 where they stay the same.

    Attributes:
        checkpointing: text encoders keep only each block's input for the backward pass
            (less memory, more time).
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        *,
        template: str | Sequence[str] = PLAIN,
        sources: Sequence[str] = (),
        plain_zero_shot: bool = False,
        n_ctx: int | None = 16,
        context_init: str = "normal",
        dtype: torch.dtype = torch.float32,
        compute: torch.dtype | None = None,
        phases: int = 1,
    ):
        self.phases = phases
        self.clip, self.class_names = clip, list(class_names)
        self.templates = (
            [template] * len(self.class_names) if isinstance(template, str) else list(template)
        )
        self.sources, self.plain_zero_shot = list(sources), plain_zero_shot
        self.n_ctx = context_length(clip, n_ctx, context_init)
        self.fixed_words = fixed_words(clip, self.n_ctx, context_init)
        self.context_init, self.dtype, self.compute = context_init, dtype, compute
        self.checkpointing = False
        self.logit_scale = clip.logit_scale
        self._class_sets: dict[tuple[int, ...], ClassSet] = {}

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def class_set(self, ids: Sequence[int]) -> ClassSet:
        """The set of these classes; the same object for the same labels, so that nothing
        frozen is computed twice."""
        key = tuple(int(i) for i in ids)
        if key not in self._class_sets:
            self._class_sets[key] = ClassSet(self, key)
        return self._class_sets[key]
