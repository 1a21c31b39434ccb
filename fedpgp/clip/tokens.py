"""What a tokenizer makes of texts, read off its answers: the tokens of a text, and the places
of a context in a prompt.

The tokenizers of open_clip clean texts in different ways (case, punctuation, white space), and
differ in what stands before a sentence, behind it, and in the padding. Only their calls know all of
it, so nothing else of them is used.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from fedpgp.errors import FedPGPError

WORDS = (("X", "Y"), ("a", "b"), ("the", "and"))
"""Pairs of words that hold the places of context vectors: the first pair whose words are
one token each is taken."""


class TokenReader:
    """Reads the answers of a tokenizer.

    Args:
        tokenizer: texts and ``context_length`` -> token ids (n, context_length), as open_clip's.

    Attributes:
        start: number of tokens that stand before the first word.
        padding: id that fills up a sequence.

    Raises:
        FedPGPError: every word gives the same tokens.
    """

    def __init__(self, tokenizer: Callable[..., Tensor]):
        self._tokenizer = tokenizer
        length = 16
        pairs = (zip(*self.ids(pair, length), strict=True) for pair in WORDS)
        starts = [next((i for i, (a, b) in enumerate(pair) if a != b), None) for pair in pairs]
        known = [start for start in starts if start is not None]
        if not known:
            raise FedPGPError(
                "the model's tokenizer gives the same tokens for every word; are its files "
                "complete?"
            )
        self.start = known[0]
        (short,), (long,) = self.ids([""], length), self.ids([""], length + 1)
        self.padding = next((b for a, b in zip(short, long, strict=False) if a != b), long[-1])

    def ids(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Token ids of texts, cut or filled up to a length."""
        return self._tokenizer(list(texts), context_length=length).tolist()

    def special(self, length: int) -> list[int]:
        """Tokens of the empty text without its padding, at most ``length``."""
        (ids,) = self.ids([""], length)
        while len(ids) > 2 and ids[-1] == self.padding:
            ids.pop()
        return ids

    def words(self, text: str) -> list[int]:
        """Token ids of a text at the beginning of a sentence, without start, end and padding.

        Raises:
            FedPGPError: the tokenizer does not put them between a start and an end.
        """
        length = _room(text)
        empty, full = self.ids(["", text], length)
        for n in range(length - self.start):
            if self._without_padding(empty[self.start :], full[self.start + n :]):
                return full[self.start : self.start + n]
        raise FedPGPError(f"the model's tokenizer gives no tokens of its own for {text!r}")

    def is_plain(self) -> bool:
        """Whether a sentence is ``[start] words [end]``, with tokens that do not depend on the
        words before, as CLIP's own tokenizer has it."""
        alone = [*self.words("X"), *self.words("cat."), *self.words("tree")]
        (full,) = self.ids(["X cat. tree"], 16)
        first, *last = self.special(16)
        return (
            self.start == 1 and len(last) == 1 and full[: len(alone) + 2] == [first, *alone, *last]
        )

    def prompts(
        self, names: Sequence[str], n_ctx: int, position: str, length: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts with room for a context: "X X X X name.".

        Args:
            names: of classes.
            n_ctx: number of context vectors.
            position: of the name: ``end``, ``middle`` (half of the context before it,
                rounded down) or ``front``.
            length: tokens that the model reads.

        Returns:
            the token ids of each prompt, (classes, length), and the n_ctx places of its context in
            them.

        Raises:
            FedPGPError: a name that does not fit, or that the tokenizer joins with the words beside
                it.
        """
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        bad = names[0]
        for pair in WORDS:
            texts = [[_prompt(name, word, before, n_ctx) for name in names] for word in pair]
            room = max(length, *map(_room, texts[0] + texts[1]))
            long, other = (self.ids(each, room) for each in texts)
            places = [
                [i for i, (a, b) in enumerate(zip(*both, strict=True)) if a != b]
                for both in zip(long, other, strict=True)
            ]
            wrong = [
                i for i, found in enumerate(places) if not self._in_order(found, before, n_ctx)
            ]
            if wrong:
                bad = names[wrong[0]]
                continue
            tokens = self.ids(texts[0], length)
            for name, whole, cut in zip(names, long, tokens, strict=True):
                if not self._without_padding(whole, cut):
                    raise FedPGPError(
                        f"class name {name!r} has {len(self.words(name))} tokens; beside {n_ctx} "
                        f"context tokens it does not fit into the model's {length}: shorten the "
                        "name or n_ctx"
                    )
            return tokens, places
        raise FedPGPError(
            f"class name {bad!r} cannot be placed at the {position} of a prompt by this model's "
            "tokenizer"
        )

    def _in_order(self, places: list[int], before: int, n_ctx: int) -> bool:
        """Whether so many places stand without a gap at the start, and the others behind the
        name."""
        front, behind = places[:before], places[before:]
        return (
            len(places) == n_ctx
            and front == list(range(self.start, self.start + before))
            and (not behind or behind == list(range(behind[0], behind[0] + len(behind))))
        )

    def _without_padding(self, long: list[int], short: list[int]) -> bool:
        """Whether a sequence is another one with less padding."""
        less = len(long) - len(short)
        at = next(
            (i for i, (a, b) in enumerate(zip(long, short, strict=False)) if a != b), len(short)
        )
        return long[at : at + less] == [self.padding] * less and long[at + less :] == short[at:]


def _prompt(name: str, word: str, before: int, n_ctx: int) -> str:
    return " ".join([word] * before + [name] + [word] * (n_ctx - before)) + "."


def _room(text: str) -> int:
    """More tokens than a text can have, with what stands around it."""
    return 4 * len(text.encode()) + 16
