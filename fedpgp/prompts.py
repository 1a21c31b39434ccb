"""Contexts and low-rank terms: how they start and how they are put together."""

import numpy as np
import torch
from torch import Tensor

from fedpgp.clip import FrozenCLIP
from fedpgp.errors import FedPGPError

INIT_STD = 0.02
"""Standard deviation of every random start (CoOp and FedPGP)."""


def personal_context(shared: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The personal context ``p_i = p_G + U_i V_i`` (FedPGP, section 3).

    Args:
        shared: p_G, (..., m, d).
        u: (..., m, b).
        v: (..., b, d).

    Returns:
        (..., m, d); leading axes broadcast.
    """
    return shared + u @ v


def normal(shape: tuple[int, ...], rng: np.random.Generator, std: float = INIT_STD) -> Tensor:
    """N(0, std²), float64. Drawn in float64 whatever the run's dtype, so that a run starts
    alike in every precision."""
    return torch.from_numpy(rng.normal(0.0, std, shape))


def context_length(clip: FrozenCLIP, n_ctx: int | None, init: str) -> int:
    """m, the number of context vectors: ``n_ctx`` for a random start, the phrase's
    token count for a phrase.

    Args:
        clip: its tokenizer counts.
        n_ctx: with a phrase None or at most the phrase's own count; with fewer,
            :func:`fixed_words` are what is left.
        init: ``"normal"`` or a phrase.

    Raises:
        FedPGPError: no length, more than the model can read, or a length that no
            beginning of the phrase has.
    """
    most = clip.context_length - 4  # start, a word, full stop, end
    if n_ctx is not None and n_ctx > most:
        raise FedPGPError(
            f"n_ctx={n_ctx}: this model reads {clip.context_length} tokens, so n_ctx is at most "
            f"{most}"
        )
    if init == "normal":
        if n_ctx is None or n_ctx < 1:
            raise FedPGPError(
                f"n_ctx={n_ctx}: a random context needs at least one token, for example n_ctx=16"
            )
        return n_ctx
    tokens = len(clip.embed_phrase(init))
    if n_ctx is None or n_ctx == tokens:
        return tokens
    if n_ctx > tokens:
        raise FedPGPError(
            f"n_ctx={n_ctx}, but context_init={init!r} has {tokens} tokens: set n_ctx=null or "
            f"n_ctx={tokens}, or fewer"
        )
    fixed_words(clip, n_ctx, init)
    return n_ctx


def fixed_words(clip: FrozenCLIP, n_ctx: int, init: str) -> str:
    """The words of the phrase ``init`` behind its first ``n_ctx`` tokens: they are not learned and
    stand before every class name ("of a" of "a photo of a" with two context vectors).

    So MaPLe's public code has it (muzairkhattak/multimodal-prompt-learning, commit
    69bce21ae8ed, trainers/maple.py: the prompt is tokenized with the whole phrase, and its
    first ``n_ctx`` tokens are replaced).

    Raises:
        FedPGPError: ``n_ctx`` tokens end inside a word.
    """
    if init == "normal" or n_ctx == len(clip.embed_phrase(init)):
        return ""
    words = init.split()
    lengths = [len(clip.embed_phrase(" ".join(words[: i + 1]))) for i in range(len(words))]
    if n_ctx not in lengths:
        raise FedPGPError(
            f"n_ctx={n_ctx} ends inside a word of context_init={init!r}; its words end at "
            f"{', '.join(map(str, lengths))} tokens"
        )
    return " ".join(words[lengths.index(n_ctx) + 1 :])


def starting_context(clip: FrozenCLIP, n_ctx: int, init: str, rng: np.random.Generator) -> Tensor:
    """The context every client starts from, (m, d) in float64: N(0, 0.02²) for ``"normal"``, else
    the embeddings of the phrase's first tokens."""
    if init == "normal":
        return normal((n_ctx, clip.width), rng)
    return clip.embed_phrase(init)[:n_ctx].cpu().double()


def low_rank_term(
    m: int, d: int, rank: int, init: str, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A personal term at its start: U (m, b) and V (b, d), float64.

    Args:
        init: ``"normal"``: both N(0, 0.02²), as the public code does; ``"zero"``: U = 0 and V ~
            N(0, 0.02²), so that U V is zero at the start and still learns (both zero never would).

    Raises:
        FedPGPError: a rank outside 1..min(m, d), or an unknown init.
    """
    if not 1 <= rank <= min(m, d):
        raise FedPGPError(
            f"method.rank={rank}: a term of {m} context tokens and width {d} has a rank between "
            f"1 and {min(m, d)}; lower method.rank or raise n_ctx"
        )
    if init not in ("zero", "normal"):
        raise FedPGPError(f"method.personal_init={init!r} is unknown; choose 'zero' or 'normal'")
    u = normal((m, rank), rng)
    return (torch.zeros_like(u) if init == "zero" else u), normal((rank, d), rng)


def starting_contexts(
    count: int, clip: FrozenCLIP, n_ctx: int, init: str, rng: np.random.Generator
) -> Tensor:
    """Several contexts of one model, (M, m, d): drawn one by one, or the phrase's embeddings plus
    N(0, 0.02²), since equal ones would stay equal."""
    if init == "normal":
        return normal((count, n_ctx, clip.width), rng)
    return starting_context(clip, n_ctx, init, rng) + normal((count, n_ctx, clip.width), rng)
