"""The matrix products that a step of training cannot do without (``bench methods``).

They follow from a method's equations, not from what its code executes: contexts through the text
tower, images through the image tower, forward, and backward as far as something is learned; what
is frozen costs nothing after the first step.
"""

from dataclasses import dataclass

from fedpgp.task import ClassSet
from fedpgp.towers.image import ImageTower


@dataclass(frozen=True)
class Work:
    """Matrix products: GFLOP of all; rows and width of the tower, or layer, that has most."""

    gflop: float
    rows: int
    width: int

    def __add__(self, other: "Work") -> "Work":
        larger = max(self, other, key=lambda work: work.gflop)
        return Work(self.gflop + other.gflop, larger.rows, larger.width)


@dataclass(frozen=True)
class StepSize:
    """The size of one client's step, and what the parts of such a step cost.

    Attributes:
        images: B, in the batch.
        classes: C classes to choose among.
        patches: of an image, for a method that reads patch features.
        tower: the method's image tower, where it works inside it.
    """

    images: int
    classes: ClassSet
    patches: int = 0
    tower: ImageTower | None = None

    def texts(
        self, contexts: int = 1, *, names: int | None = None, backward: int = 1, depth: int = 1
    ) -> Work:
        """Contexts, learned in ``depth`` blocks, through the text tower; so many times backward to
        them.

        Args:
            contexts: of a client.
            names: how many classes they stand before; None: all, 0: a bare full stop.
            backward: passes.
            depth: blocks whose contexts are learned.
        """
        encoder = self.classes.encoder(self.classes.task.n_ctx)
        count, suffix = len(self.classes.names), encoder.tokens - 1 - encoder.n_ctx
        if names == 0:
            count, suffix = 1, 2
        tokens, tower = 1 + encoder.n_ctx + suffix, encoder.tower
        blocks, unread = len(tower.blocks), (depth - 1) * encoder.n_ctx
        one = tower_gflop(tower.width, blocks, tokens, read=count, constant=suffix, unread=unread)
        return Work(contexts * (1 + backward) * one, contexts * tokens, tower.width)

    def through_image_tower(self, prompts: int, *, groups: int = 1, depth: int = 1) -> Work:
        """Every image through the image tower, once with each group of prompts, learned in
        ``depth`` blocks, and backward to these. The images' own tokens are known until the first
        attention."""
        tower, tokens = self.tower, self.tower.tokens

        def once(constant: int) -> float:
            return tower_gflop(
                tower.width,
                tower.depth,
                tokens + prompts,
                read=1,
                constant=constant,
                unread=(depth - 1) * prompts,
            )

        flop = once(0) + (groups - 1) * once(tokens) + groups * once(tokens)
        one = flop + tower.embedding_gflop
        return Work(self.images * one, self.images * (tokens + prompts), tower.width)

    def similarities(self, prompts: int) -> Work:
        """Cosines of every patch and every class under each prompt."""
        embed = self.classes.task.clip.embed
        return self.layer(self.images * self.patches, embed, prompts * len(self.classes.names), 2)

    def layer(self, rows: int, inputs: int, outputs: int, times: int = 3) -> Work:
        """A linear layer: forward, backward to its inputs and to its weights; ``times`` is 2 where
        either is frozen."""
        return Work(2 * times * rows * inputs * outputs / 1e9, rows, inputs)


def tower_gflop(
    width: int, blocks: int, tokens: int, *, read: int, constant: int = 0, unread: int = 0
) -> float:
    """GFLOP of the linear layers of a transformer that cannot be avoided, for one sequence in one
    direction (forward, or backward to the inputs).

    Args:
        width, blocks: of the transformer; its MLP is four times as wide.
        tokens: of the sequence.
        read: tokens that are read behind the last block: it has queries, output and MLP of these
            alone.
        constant: tokens of which the first block knows queries, keys and values, since they
            depend on nothing learned.
        unread: tokens behind some block that the next one replaces (summed over the blocks): they
            are keys and values alone.
    """
    middle = 12 * tokens * (blocks - 1) - 10 * unread
    return 2 * width**2 * (middle + 2 * tokens + 10 * read - 3 * constant) / 1e9
