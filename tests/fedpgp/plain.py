"""Every method's local objective, written out: one client, full token sequences, loops over classes and images.

Each function takes (task, settings, batch, client k, that client's tensors, the shared ones as received) and gives the
loss, or (loss, gradients) where a method changes gradients.
"""

import torch
import torch.nn.functional as F

PLAIN: list[tuple] = []
"""(method, its settings, function)."""


def plain(name, **options):
    def register(function):
        PLAIN.append((name, options, function))
        return function

    return register


def feature(task, c, context):
    """Text feature of "[SOS] context name . [EOT]" through the model's own 77-token forward; c: label or a name."""
    name = task.class_names[c] if isinstance(c, int) else c
    model, n = task.clip.text_model, len(context)
    tokens = task.clip.tokenizer([" ".join(["X"] * n + [name]) + "."])
    x = model.token_embedding(tokens)
    x = torch.cat([x[:, :1], context[None], x[:, 1 + n :]], dim=1) + model.positional_embedding
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    return F.normalize(x[0, tokens[0].argmax()] @ model.text_projection, dim=0)


def sentence(task, text):
    return task.clip.encode_texts([text])[0]


def photo(task, c):
    return sentence(task, f"a photo of a {task.class_names[c]}.")


def classes(task):
    return range(5)


def real(batch, k):
    """The client's images: (position, label, weight), padding left out."""
    return [(b, int(batch.labels[k, b]), batch.weights[k, b]) for b in range(5) if batch.weights[k, b]]


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


@plain("promptfl")
@plain("promptfl_ft")
def promptfl(task, s, batch, k, p, received):
    return cosine_cross_entropy(task, batch, k, prompted(task, p["p_G"]))


@plain("coop")
def coop(task, s, batch, k, p, received):
    return cosine_cross_entropy(task, batch, k, prompted(task, p["p"]))


@plain("fedprox", mu=0.7)
def fedprox(task, s, batch, k, p, received):
    pull = sum((a - b) ** 2 for a, b in zip(p["p_G"].flatten(), received["p_G"].flatten(), strict=True))
    return promptfl(task, s, batch, k, p, received) + s.mu / 2 * pull


@plain("fedper")
def fedper(task, s, batch, k, p, received):
    return cosine_cross_entropy(task, batch, k, prompted(task, torch.cat([p["p_G"], p["p"]])))


@plain("ditto", pull=0.3)
def ditto(task, s, batch, k, p, received):
    pull = sum((a - b) ** 2 for a, b in zip(p["p"].flatten(), received["p_G"].flatten(), strict=True))
    both = [cosine_cross_entropy(task, batch, k, prompted(task, p[name])) for name in ("p_G", "p")]
    return both[0] + both[1] + s.pull / 2 * pull


@plain("scaffold")
def scaffold(task, s, batch, k, p, received):
    loss = promptfl(task, s, batch, k, p, received)
    (grad,) = torch.autograd.grad(loss, p["p_G"])
    return loss, {"p_G": grad - p["c_i"] + p["c"]}


@plain("kgcoop", weight=3.0)
def kgcoop(task, s, batch, k, p, received):
    text = prompted(task, p["p_G"])
    agreement = sum(t @ photo(task, c) for c, t in enumerate(text)) / len(text)
    return cosine_cross_entropy(task, batch, k, text) + s.weight * (1 - agreement)


@plain("promptfolio", theta=0.3)
def promptfolio(task, s, batch, k, p, received):
    pairs = zip(prompted(task, p["p_G"]), prompted(task, p["p"]), strict=True)
    return cosine_cross_entropy(task, batch, k, [(1 - s.theta) * a + s.theta * b for a, b in pairs])


@plain("prograd", strength=0.8, temperature=1.5)
def prograd(task, s, batch, k, p, received):
    loss = promptfl(task, s, batch, k, p, received)
    known = 0.0
    for b, _, w in real(batch, k):
        image = batch.images.features[k, b]
        y = torch.stack([task.logit_scale * (image @ t) for t in prompted(task, p["p_G"])]) / s.temperature
        y_C = torch.stack([task.logit_scale * (image @ photo(task, c)) for c in classes(task)]) / s.temperature
        for c in classes(task):
            target = y_C[c].exp() / y_C.exp().sum()
            known = known - w * s.temperature**2 * target * torch.log(y[c].exp() / y.exp().sum())
    (a,) = torch.autograd.grad(loss, p["p_G"], retain_graph=True)
    (b,) = torch.autograd.grad(known, p["p_G"])
    unit = b / b.norm()
    along = (a * unit).sum()
    return loss, {"p_G": a if along >= 0 else a - s.strength * along * unit}


@plain("fedpgp", rank=2, mu=0.6, tau=0.4, personal_init="normal")
def fedpgp(task, s, batch, k, p, received):
    own = p["p_G"] + p["U"] @ p["V"]
    total = 0.0
    for c in classes(task):
        z_G, z_i = feature(task, c, p["p_G"]), feature(task, c, own)
        pull, push = z_G @ photo(task, c) / s.tau, z_G @ z_i / s.tau
        total = total - torch.log(pull.exp() / (pull.exp() + push.exp())) / len(classes(task))
    return cosine_cross_entropy(task, batch, k, prompted(task, own)) + s.mu * total
