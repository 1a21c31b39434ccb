"""Parts of the methods' equations written out: one client, full token sequences, loops over
classes and images.

A method's own equations stand in its test (``tests/fedpgp/methods``), as a function of (task,
settings, batch, client k, that client's tensors, the shared ones as sent) that gives the loss, or
(loss, gradients) where the method changes gradients.
"""

import torch
import torch.nn.functional as F


def feature(task, c, context, unit=True):
    """Text feature of "[SOS] context name . [EOT]" through the model's own 77-token
    forward; c: label or a name."""
    name = task.class_names[c] if isinstance(c, int) else c
    model, n = task.clip.text_model, len(context)
    tokens = task.clip.tokenizer([" ".join(["X"] * n + [name]) + "."])
    x = model.token_embedding(tokens)
    x = torch.cat([x[:, :1], context[None], x[:, 1 + n :]], dim=1) + model.positional_embedding
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    x = x[0, tokens[0].argmax()] @ model.text_projection
    return F.normalize(x, dim=0) if unit else x


def through(blocks, x, prompts, where, mask=None, adapter=None):
    """Tokens (t, width) through blocks; in block i < depth the tokens at ``where`` are
    replaced by prompts[i]."""
    for i, block in enumerate(blocks):
        if 0 < i < len(prompts):
            x = torch.cat([x[: where.start], prompts[i], x[where.stop :]])
        before = x
        x = block(x[None], attn_mask=mask)[0]
        if adapter is not None:
            x = x + torch.stack([adapter(i, block, token) for token in before])
    return x


def deep_feature(task, c, prompts, adapter=None):
    """:func:`feature` with prompts (J, n, d) of the first J blocks."""
    model, n = task.clip.text_model, prompts.shape[1]
    tokens = task.clip.tokenizer([" ".join(["X"] * n + [task.class_names[c]]) + "."])[0]
    x = model.token_embedding(tokens)
    x = torch.cat([x[:1], prompts[0], x[1 + n :]]) + model.positional_embedding
    x = through(model.transformer.resblocks, x, prompts, slice(1, 1 + n), model.attn_mask, adapter)
    return F.normalize(model.ln_final(x)[tokens.argmax()] @ model.text_projection, dim=0)


def pictured(task, pixels, prompts, adapter=None):
    """Image feature with prompts (J, n, W) behind the patches of the first J blocks."""
    tower = task.clip.model.visual
    x = tower.conv1(pixels[None])[0].flatten(1).T
    x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
    places = slice(len(x), len(x) + prompts.shape[1])
    x = tower.ln_pre(torch.cat([x, *prompts[:1]]))
    x = through(tower.transformer.resblocks, x, prompts, places, None, adapter)
    return F.normalize(tower.ln_post(x[0]) @ tower.proj, dim=0)


def sentence(task, text):
    return task.clip.encode_texts([text])[0]


def photo(task, c):
    return sentence(task, f"a photo of a {task.class_names[c]}.")


def classes(task):
    return range(5)


def real(batch, k):
    """The client's images: (position, label, weight), padding left out."""
    return [
        (b, int(batch.labels[k, b]), batch.weights[k, b]) for b in range(5) if batch.weights[k, b]
    ]


def cross_entropy_of(batch, k, logits):
    """``logits(b)`` -> list of a logit a class."""
    total = 0.0
    for b, y, w in real(batch, k):
        z = torch.stack(list(logits(b)))
        total = total - w * torch.log(z.exp()[y] / z.exp().sum())
    return total


def cosine_cross_entropy(task, batch, k, text):
    """``text``: a feature a class."""
    image = batch.images.features[k]
    return cross_entropy_of(batch, k, lambda b: [task.logit_scale * (image[b] @ t) for t in text])


def prompted(task, context):
    return [feature(task, c, context) for c in classes(task)]


def promptfl(task, s, batch, k, p, global_params):
    return cosine_cross_entropy(task, batch, k, prompted(task, p["p_G"]))


def transported(task, k, batch, texts, s, unbalanced, more=None):
    """``texts``: for each prompt, a feature a class. Sinkhorn written out in ordinary
    numbers, a problem at a time;
    ``more``: logits of an image to add."""

    def logits(b):
        for c in classes(task):
            sim = torch.stack(
                [
                    torch.stack([patch @ text[c] for text in texts])
                    for patch in batch.images.patches[k, b]
                ]
            )
            rows, columns = sim.shape
            kernel = torch.exp(-(1 - sim.detach()) / s.epsilon)
            a, mass = 1 / rows, (s.mass if unbalanced else 1) / columns
            v = torch.ones(columns, dtype=sim.dtype)
            for _ in range(s.iterations):
                u = a / (kernel @ v)
                if unbalanced:
                    u = u.clamp(max=1)
                before, v = v, mass / (kernel.T @ u)
                if (v.log() - before.log()).abs().mean() < s.threshold:
                    break
            logit = task.logit_scale * (u[:, None] * kernel * v[None] * sim).sum()
            yield logit if more is None else logit + more(b)[c]

    return cross_entropy_of(batch, k, logits)


def layer(p, name, x):
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def normed(p, name, x):
    centred = x - x.mean()
    return (
        centred / (centred.square().mean() + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]
    )


def attended(p, name, query, tokens, heads, values=None):
    q, outputs = layer(p, f"{name}.q", query), []
    keys = [layer(p, f"{name}.k", t) for t in tokens]
    values = [layer(p, f"{name}.v", t) for t in values or tokens]
    size = len(q) // heads
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        scores = torch.stack([q[own] @ key[own] / size**0.5 for key in keys])
        outputs.append(
            sum(
                a * value[own]
                for a, value in zip(scores.exp() / scores.exp().sum(), values, strict=True)
            )
        )
    return layer(p, f"{name}.out", torch.cat(outputs))


def gated(p, name, x):
    hidden = layer(p, f"{name}.in", normed(p, f"{name}.norm", x))
    value, gate = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
    return layer(p, f"{name}.out", value * F.gelu(gate))


def both_towers(task, batch, k, texts, prompts):
    def logits(b):
        x = pictured(task, batch.images.pixels[k, b], prompts)
        return [task.logit_scale * (x @ t) for t in texts]

    return cross_entropy_of(batch, k, logits)


def merged_weights(transformer, adapters):
    """The weights of open_clip's blocks with low-rank adapters merged into them.

    ``adapters``: (factor, tensors ``LAYER.A`` (L, b, in) and ``LAYER.B`` (L, out, b) of the last L
    blocks), one or several, which are added up.
    """
    weights = dict(transformer.named_parameters())
    width = transformer.width
    rows = {"q": slice(0, width), "k": slice(width, 2 * width), "v": slice(2 * width, 3 * width)}
    matrix = {"out": "attn.out_proj", "fc": "mlp.c_fc", "proj": "mlp.c_proj"}
    for factor, tensors in adapters:
        for layer in {name.split(".")[0] for name in tensors}:
            downs, ups = tensors[f"{layer}.A"], tensors[f"{layer}.B"]
            first = len(transformer.resblocks) - len(downs)
            for i, (down, up) in enumerate(zip(downs, ups, strict=True)):
                at = f"resblocks.{first + i}."
                at += "attn.in_proj_weight" if layer in rows else f"{matrix[layer]}.weight"
                whole = torch.zeros_like(weights[at])
                whole[rows.get(layer, slice(None))] = factor * up @ down
                weights[at] = weights[at] + whole
    return weights


def merged_feature(task, c, adapters):
    """Feature of "a photo of a NAME." through open_clip's own blocks with merged weights."""
    model = task.clip.text_model
    weights = merged_weights(model.transformer, adapters)
    tokens = task.clip.tokenizer([f"a photo of a {task.class_names[c]}."])
    x = model.token_embedding(tokens) + model.positional_embedding
    x = torch.func.functional_call(model.transformer, weights, (x,), {"attn_mask": model.attn_mask})
    x = model.ln_final(x)[0, tokens[0].argmax()] @ model.text_projection
    return F.normalize(x, dim=0)


def merged_picture(task, pixels, adapters):
    """Image feature through open_clip's own blocks with merged weights."""
    tower = task.clip.model.visual
    x = tower.conv1(pixels[None])[0].flatten(1).T
    x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
    weights = merged_weights(tower.transformer, adapters)
    x = torch.func.functional_call(tower.transformer, weights, (tower.ln_pre(x)[None],))
    return F.normalize(tower.ln_post(x[0, 0]) @ tower.proj, dim=0)


def adapters_of(p, s, prefix="", rank=None, tower="text"):
    """A method's adapters in a tower, for :func:`merged_weights`."""
    start = f"{prefix}{tower}."
    tensors = {n.removeprefix(start): t for n, t in p.items() if n.startswith(start)}
    return s.alpha / (rank or s.rank), tensors


def adapted_cross_entropy(task, batch, k, texts, images):
    """``texts`` and ``images``: adapters of either tower, perhaps none."""
    z = [merged_feature(task, c, texts) for c in classes(task)]

    def logits(b):
        x = merged_picture(task, batch.images.pixels[k, b], images)
        return [task.logit_scale * (x @ t) for t in z]

    return cross_entropy_of(batch, k, logits)
