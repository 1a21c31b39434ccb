"""What is said of a method on pages and in tables, such as docs/methods.md."""

from dataclasses import dataclass

FAMILIES = {
    "prompts": "CLIP, and one prompt",
    "federated": "Federated learning, with prompts",
    "federated_prompts": "Federated prompt learning",
    "prompt_learning": "Prompt learning of one owner, averaged",
    "lora": "Low-rank adapters",
    "lifelong": "Lifelong federations",
}
"""Family -> its heading, in the order of the tables."""

LEARNED = ("text prompts", "image prompts", "adapters", "LoRA", "heads")
"""What a method may learn, in the order of the results site's filter."""


@dataclass(frozen=True)
class About:
    """What is said of a method.

    Attributes:
        title: its name as its paper writes it.
        paper: authors, where and when.
        family: one of :data:`FAMILIES`.
        learns: some of :data:`LEARNED`.
        shared, personal: its tensors, in words.
        sent: a Python expression: floating-point numbers that a client sends in a round. It may
            name m (``n_ctx``), d (width of the text tower), W (of the image tower), e (length of a
            feature), C (classes of the data set), L (blocks with low-rank adapters), T (tasks; 1
            where images stay the same), ``max``, ``len`` and the method's settings.
        passes: contexts of a client through the text tower in a step, in words.
        official: how it stands against the official code: ``exact (run)`` or ``exact (read)``,
            perhaps with options; ``declared difference: …``; each with repository and commit; or
            ``no code exists``.
        model: that its command in the docs takes, where the default one will not do.
        order: its place in tables, and its colour and line on pages; None: after the others.
    """

    title: str
    paper: str
    family: str
    learns: tuple[str, ...] = ("text prompts",)
    shared: str = "nothing"
    personal: str = "nothing"
    sent: str = "0"
    passes: str = "1"
    official: str = "no code exists"
    model: str = ""
    order: int | None = None

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is none of {', '.join(FAMILIES)}")
        if other := set(self.learns) - set(LEARNED):
            raise ValueError(f"{', '.join(sorted(other))} is none of {', '.join(LEARNED)}")
