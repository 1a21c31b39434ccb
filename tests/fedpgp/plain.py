"""Every method's local objective, written out: one client, full token sequences, loops
over classes and images.

Each function takes (task, settings, batch, client k, that client's tensors, the shared ones as
sent) and gives the loss, or (loss, gradients) where a method changes gradients.
"""

import math

import torch
import torch.nn.functional as F

from fedpgp.seeding import generator
from fedpgp.text.templates import SIXTY

PLAIN: list[tuple] = []
"""(method, its settings, function)."""


def plain(name, **options):
    def register(function):
        PLAIN.append((name, options, function))
        return function

    return register


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


@plain("promptfl")
@plain("promptfl_ft")
def promptfl(task, s, batch, k, p, global_params):
    return cosine_cross_entropy(task, batch, k, prompted(task, p["p_G"]))


@plain("coop")
def coop(task, s, batch, k, p, global_params):
    return cosine_cross_entropy(task, batch, k, prompted(task, p["p"]))


@plain("fedprox", mu=0.7)
def fedprox(task, s, batch, k, p, global_params):
    pull = sum(
        (a - b) ** 2
        for a, b in zip(p["p_G"].flatten(), global_params["p_G"].flatten(), strict=True)
    )
    return promptfl(task, s, batch, k, p, global_params) + s.mu / 2 * pull


@plain("fedper")
def fedper(task, s, batch, k, p, global_params):
    return cosine_cross_entropy(task, batch, k, prompted(task, torch.cat([p["p_G"], p["p"]])))


@plain("ditto", pull=0.3)
def ditto(task, s, batch, k, p, global_params):
    pull = sum(
        (a - b) ** 2 for a, b in zip(p["p"].flatten(), global_params["p_G"].flatten(), strict=True)
    )
    both = [cosine_cross_entropy(task, batch, k, prompted(task, p[name])) for name in ("p_G", "p")]
    return both[0] + both[1] + s.pull / 2 * pull


@plain("scaffold")
def scaffold(task, s, batch, k, p, global_params):
    loss = promptfl(task, s, batch, k, p, global_params)
    (grad,) = torch.autograd.grad(loss, p["p_G"])
    return loss, {"p_G": grad - p["c_i"] + p["c"]}


@plain("kgcoop", weight=3.0)
def kgcoop(task, s, batch, k, p, global_params):
    text = prompted(task, p["p_G"])
    agreement = sum(t @ photo(task, c) for c, t in enumerate(text)) / len(text)
    return cosine_cross_entropy(task, batch, k, text) + s.weight * (1 - agreement)


@plain("promptfolio", theta=0.3)
def promptfolio(task, s, batch, k, p, global_params):
    pairs = zip(prompted(task, p["p_G"]), prompted(task, p["p"]), strict=True)
    return cosine_cross_entropy(task, batch, k, [(1 - s.theta) * a + s.theta * b for a, b in pairs])


@plain("prograd", strength=0.8, temperature=1.5)
def prograd(task, s, batch, k, p, global_params):
    loss = promptfl(task, s, batch, k, p, global_params)
    known = 0.0
    for b, _, w in real(batch, k):
        image = batch.images.features[k, b]
        y = (
            torch.stack([task.logit_scale * (image @ t) for t in prompted(task, p["p_G"])])
            / s.temperature
        )
        y_C = (
            torch.stack([task.logit_scale * (image @ photo(task, c)) for c in classes(task)])
            / s.temperature
        )
        for c in classes(task):
            target = y_C[c].exp() / y_C.exp().sum()
            known = known - w * s.temperature**2 * target * torch.log(y[c].exp() / y.exp().sum())
    (a,) = torch.autograd.grad(loss, p["p_G"], retain_graph=True)
    (b,) = torch.autograd.grad(known, p["p_G"])
    unit = b / b.norm()
    along = (a * unit).sum()
    return loss, {"p_G": a if along >= 0 else a - s.strength * along * unit}


def fedpgp_of(task, s, batch, k, p_G, own):
    total = 0.0
    for c in classes(task):
        z_G, z_i = feature(task, c, p_G), feature(task, c, own)
        pull, push = (z_G @ photo(task, c) / s.tau).exp(), (z_G @ z_i / s.tau).exp()
        pull, push = {"both": (pull, push), "positive": (pull, 1), "negative": (1, push)}[
            s.contrast
        ]
        total = total - torch.log(pull / (pull + push)) / len(classes(task))
    return cosine_cross_entropy(task, batch, k, prompted(task, own)) + s.mu * total


@plain("fedpgp", rank=2, mu=0.6, tau=0.4, personal_init="normal")
@plain("fedpgp", rank=2, mu=0.6, contrast="positive", personal_init="normal")
@plain("fedpgp", rank=2, mu=0.6, contrast="negative", personal_init="normal")
def fedpgp(task, s, batch, k, p, global_params):
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + p["U"] @ p["V"])


@plain("fedpgp", rank=3, images_a_rank=2, personal_init="normal")
def fedpgp_ranks(task, s, batch, k, p, global_params):
    rank = 3 if len(real(batch, k)) == 5 else 2  # ceil(5/2), ceil(3/2)
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + p["U"][:, :rank] @ p["V"][:rank])


@plain("fedpgp", personal="none")
def fedpgp_none(task, s, batch, k, p, global_params):
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"])


@plain("fedpgp", personal="full")
def fedpgp_full(task, s, batch, k, p, global_params):
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + p["D"])


@plain("fedpgp", rank=2, personal="lora_pro", personal_init="normal")
def fedpgp_lora_pro(task, s, batch, k, p, global_params):
    """The step moves U V as the projected gradient says; of all such steps it is the
    nearest to the plain one."""
    loss = fedpgp(task, s, batch, k, p, global_params)
    names = ("p_G", "U", "V")
    plain_ = dict(zip(names, torch.autograd.grad(loss, [p[n] for n in names]), strict=True))
    u, v, b = p["U"].detach(), p["V"].detach(), 2
    a, c = torch.linalg.inv(u.T @ u), torch.linalg.inv(v @ v.T)
    fixed_v, fixed_u = a @ plain_["V"], (plain_["U"] - u @ a @ u.T @ plain_["U"]) @ c
    # |h - g|^2 is quadratic in X: its minimum by least squares over the b*b unit matrices.
    units = torch.eye(b * b, dtype=u.dtype).view(-1, b, b)
    columns = torch.stack([torch.cat([(-u @ x).flatten(), (x @ v).flatten()]) for x in units], 1)
    target = torch.cat([(plain_["U"] - fixed_u).flatten(), (plain_["V"] - fixed_v).flatten()])
    x = torch.linalg.lstsq(columns, target[:, None]).solution.view(b, b)
    return loss, {"p_G": plain_["p_G"], "U": fixed_u - u @ x, "V": fixed_v + x @ v}


@plain("fedpgp", rank=2, personal="lora_sb")
def fedpgp_lora_sb(task, s, batch, k, p, global_params):
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + p["U"] @ p["R"] @ p["V"])


@plain("fedpgp", rank=2, personal="experts", experts=3, personal_init="normal")
def fedpgp_experts(task, s, batch, k, p, global_params):
    own = p["p_G"]
    for e in range(3):
        share = p["gate"][e].exp() / p["gate"].exp().sum()
        own = own + share * p["experts.U"][e] @ p["experts.V"][e]
    return fedpgp_of(task, s, batch, k, p["p_G"], own)


@plain("fedpgp", rank=2, personal="masked", personal_init="normal")
def fedpgp_masked(task, s, batch, k, p, global_params):
    term = p["U"] @ p["V"]
    rows = [p["p_G"][i] + term[i] / (1 + torch.exp(-p["s"][i])) for i in range(len(term))]
    return fedpgp_of(task, s, batch, k, p["p_G"], torch.stack(rows))


@plain("fedpgp", personal="rank_one", personal_init="normal")
def fedpgp_rank_one(task, s, batch, k, p, global_params):
    values, vectors = torch.linalg.eigh(p["p_G"].detach().T @ p["p_G"].detach())
    v = vectors[:, -1] * vectors[:, -1][vectors[:, -1].abs().argmax()].sign()
    return fedpgp_of(task, s, batch, k, p["p_G"], p["p_G"] + torch.outer(p["U"][:, 0], v))


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


@plain("fedotp")
@plain("fedotp", mass=0.5, epsilon=0.02, iterations=7)
@plain("fedotp", transport="balanced", threshold=1e-6)
def fedotp(task, s, batch, k, p, global_params):
    texts = [prompted(task, p["p_G"]), prompted(task, p["p"])]
    return transported(task, k, batch, texts, s, s.transport == "unbalanced")


@plain("plot", prompts=3)
def plot(task, s, batch, k, p, global_params):
    return transported(task, k, batch, [prompted(task, context) for context in p["p_G"]], s, False)


@plain("plot", prompts=2, pooled=True)
def plot_pooled(task, s, batch, k, p, global_params):
    """``logits2 + logits`` where the data set is ImageNet: plot-coop/trainers/plot.py,
    CHENGY12/PLOT at 728539f."""
    texts, image = [prompted(task, context) for context in p["p_G"]], batch.images.features[k]

    raw = [[feature(task, c, context, unit=False) for c in classes(task)] for context in p["p_G"]]

    def pooled(b):
        means = [F.normalize(sum(text[c] for text in raw) / len(raw), dim=0) for c in classes(task)]
        return [task.logit_scale * (image[b] @ mean) for mean in means]

    return transported(task, k, batch, texts, s, False, pooled)


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


@plain("fedtpg", heads=2)
@plain("fedtpg", heads=2, loss_classes="own")
def fedtpg(task, s, batch, k, p, global_params):
    own = sorted({y for _, y, _ in real(batch, k)})
    names = [normed(p, "norm_e", sentence(task, task.class_names[c])) for c in own]
    context = []
    for query in p["Q"]:
        x = attended(p, "attention", normed(p, "norm_q", query), names, s.heads)
        context.append(x + gated(p, "ff", x))
    texts, image = prompted(task, torch.stack(context)), batch.images.features[k]
    asked = own if s.loss_classes == "own" else classes(task)
    nothing = torch.tensor(-torch.inf).double()

    def logits(b):
        return [
            task.logit_scale * (image[b] @ t) if c in asked else nothing
            for c, t in enumerate(texts)
        ]

    return cross_entropy_of(batch, k, logits)


def adapted(p, f):
    a = torch.softmax(layer(p, "2", torch.tanh(layer(p, "1", f))), 0)
    return F.normalize(a * f, dim=0)


def picture(task, s, c):
    """``prompt + ' ' + x`` of ImageTextData in
    fedclip/utils/prepare_data_dg_clip.py, without a full stop."""
    return (
        photo(task, c)
        if s.text == "template"
        else sentence(task, f"a picture of a {task.class_names[c]}")
    )


@plain("fedclip")
@plain("fedclip", text="template")
def fedclip(task, s, batch, k, p, global_params):
    """Repository microsoft/PersonalizedFL at 441670e, fedclip/methods/fed_at_clip.py,
    ``train``: ``img_adap`` reads what ``encode_image`` gives, and the product with it is
    brought to unit norm."""
    images = [
        (adapted(p, batch.images.features_raw[k, b]), picture(task, s, y), w)
        for b, y, w in real(batch, k)
    ]
    total = 0.0
    for i, (f, t, w) in enumerate(images):
        rows = torch.stack([task.logit_scale * (f @ other) for _, other, _ in images])
        columns = torch.stack([task.logit_scale * (other @ t) for other, _, _ in images])
        total = total - w / 2 * sum(torch.log(z.exp()[i] / z.exp().sum()) for z in (rows, columns))
    return total


@plain("fedclip", loss="cross_entropy")
def fedclip_cross_entropy(task, s, batch, k, p, global_params):
    def logits(b):
        f = adapted(p, batch.images.features_raw[k, b])
        return [task.logit_scale * (f @ picture(task, s, c)) for c in classes(task)]

    return cross_entropy_of(batch, k, logits)


@plain("dp_fpl", rank=2, clip=0.5, epsilon=40.0, seeded_noise=True)
@plain("dp_fpl", rank=3, clip=1e-3, epsilon=0.0)
def dp_fpl(task, s, batch, k, p, global_params):
    loss = cosine_cross_entropy(task, batch, k, prompted(task, p["p_G"] + p["p_L"]))
    (g,) = torch.autograd.grad(loss, p["p_G"])
    rng = generator(0, "dp_fpl", k, 2, 1)
    std = 0.0
    if s.epsilon:
        std = s.clip / s.batch * (s.steps * math.log(1 / s.delta)) ** 0.5 / s.epsilon

    def orthonormal(columns):  # Gram-Schmidt
        found = []
        for column in columns.T:
            for other in found:
                column = column - (column @ other) * other
            found.append(column / column.norm())
        return torch.stack(found, 1)

    def clip(gradient):
        return gradient * min(1.0, s.clip / gradient.norm()) if s.epsilon else gradient

    m, d = g.shape
    p_L = p["p_L"].detach()
    u = orthonormal(p_L @ torch.from_numpy(rng.normal(size=(d, s.rank))))
    v = orthonormal(p_L.T @ u).T
    # A factor's signs are free, and decide where the noise goes: the ones of torch's QR are taken.
    omega = torch.from_numpy(generator(0, "dp_fpl", k, 2, 1).normal(size=(d, s.rank)))
    signed_u = torch.linalg.qr(p_L @ omega)[0]
    signed_v = torch.linalg.qr(p_L.T @ signed_u)[0].T
    assert torch.allclose(u.abs(), signed_u.abs()) and torch.allclose(v.abs(), signed_v.abs())
    u, v = signed_u, signed_v
    g_u = clip(g @ v.T) + std * torch.from_numpy(rng.normal(size=(m, s.rank)))
    g_v = clip(u.T @ g) + std * torch.from_numpy(rng.normal(size=(s.rank, d)))
    return loss, {"p_G": clip(g), "p_L": g_u @ v + u @ g_v - u @ u.T @ g_u @ v}


@plain("fedpha", ratio=0.5, alpha=0.7)
@plain("fedpha", ratio=0.34, through_svd=True)
def fedpha(task, s, batch, k, p, global_params):
    p_G = p["p_G"] if s.through_svd else p["p_G"].detach()
    values, vectors = torch.linalg.eigh(
        p_G @ p_G.T
    )  # ascending; right singular vectors are p_G^T u / sigma
    kept = len(values) - int(len(values) * (1 - s.ratio))
    weak = torch.stack([p_G.T @ vectors[:, i] / values[i].sqrt() for i in range(kept)], 1)
    z_L, z_G = prompted(task, p["p_L"]), prompted(task, p["p_G"])
    z_P = prompted(task, p["p_L"] @ weak @ weak.T)
    loss = cosine_cross_entropy(task, batch, k, z_L) + cosine_cross_entropy(task, batch, k, z_G)
    for own, shared, weakened in zip(z_L, z_G, z_P, strict=True):
        push = torch.relu(s.alpha - (own - shared).norm())
        loss = loss + (((own - weakened) ** 2).mean() + push) / len(z_L)
    return loss


@plain("proda", prompts=3, a_step=3, ratio=0.4)
@plain("proda", prompts=4, a_step=2)
@plain("proda", prompts=2, a_step=1)
def proda(task, s, batch, k, p, global_params):
    drawn = generator(0, "proda", k, 2, 1).permutation(s.prompts)[: s.a_step]
    contexts = [p["p_G"][int(i)] for i in drawn]
    z = [prompted(task, context) for context in contexts]
    n = len(z)
    mean = [sum(text[c] for text in z) / n for c in classes(task)]

    def covariance(c, other):
        return sum((text[c] - mean[c]) * (text[other] - mean[other]) for text in z) / (n + 1)

    total = 0.0
    for b, y, w in real(batch, k):
        x, scale, logits = batch.images.features[k, b], task.logit_scale, []
        for c in classes(task):
            spread = covariance(y, y) + covariance(c, c) - 2 * covariance(y, c)
            logits.append(scale * (x @ mean[c]) + scale**2 / 2 * (x**2 * spread).sum())
        total = total - w * torch.log_softmax(torch.stack(logits), 0)[y]
    free = [feature(task, "", context) for context in contexts]
    pairs = [abs(free[i] @ free[j]) for i in range(n) for j in range(n) if i != j]
    return total + (s.ratio * sum(pairs) / len(pairs) if pairs else 0.0)


@plain("cocoop")
def cocoop(task, s, batch, k, p, global_params):
    def logits(b):
        x = batch.images.features[k, b]
        shift = layer(p, "2", torch.relu(layer(p, "1", x)))
        return [task.logit_scale * (x @ t) for t in prompted(task, p["p_G"] + shift)]

    return cross_entropy_of(batch, k, logits)


@plain("pfedprompt")
def pfedprompt(task, s, batch, k, p, global_params):
    assert torch.equal(p["keys"], batch.images.features[k])
    return promptfl(task, s, batch, k, p, global_params)


@plain("fedamp", sigma=2.0, alpha=0.4)
def fedamp(task, s, batch, k, p, global_params):
    pull = sum((a - b) ** 2 for a, b in zip(p["p"].flatten(), p["u"].flatten(), strict=True))
    return cosine_cross_entropy(task, batch, k, prompted(task, p["p"])) + s.pull / 2 * pull


@plain("pfedmoap", experts=3, width=8, heads=2)
def pfedmoap(task, s, batch, k, p, global_params):
    own = prompted(task, p["p_G"])
    experts = [prompted(task, context) for context in p["experts"]]
    assert len(experts) == 2

    def pool(x):
        return torch.stack([x[i] for i in range(0, len(x), len(x) // s.width)])

    def logits(b):
        x = batch.images.features[k, b]
        q = layer(p, "gate.q", pool(x))
        for c in classes(task):
            tokens = [pool(own[c]), *(pool(expert[c]) for expert in experts)]
            heads = []
            for h in range(s.heads):
                part = slice(h * s.width // s.heads, (h + 1) * s.width // s.heads)
                scores = torch.stack([10 * (q[part] @ layer(p, "gate.k", t)[part]) for t in tokens])
                values = torch.stack([layer(p, "gate.v", t)[part] for t in tokens])
                heads.append(torch.softmax(scores, 0) @ values)
            mixed = layer(p, "gate.o", torch.cat(heads))
            yield s.text * task.logit_scale * (x @ own[c]) + task.logit_scale * (pool(x) @ mixed)

    return cross_entropy_of(batch, k, logits)


def both_towers(task, batch, k, texts, prompts):
    def logits(b):
        x = pictured(task, batch.images.pixels[k, b], prompts)
        return [task.logit_scale * (x @ t) for t in texts]

    return cross_entropy_of(batch, k, logits)


@plain("vpt", tokens=3, depth=1)
@plain("vpt", tokens=2, depth=2)
def vpt(task, s, batch, k, p, global_params):
    return both_towers(task, batch, k, [photo(task, c) for c in classes(task)], p["v"])


@plain("maple", depth=1)
@plain("maple", depth=2)
def maple(task, s, batch, k, p, global_params):
    v = torch.stack(
        [torch.stack([p["W"][i] @ t + p["b"][i] for t in p["t"][i]]) for i in range(s.depth)]
    )
    return both_towers(task, batch, k, [deep_feature(task, c, p["t"]) for c in classes(task)], v)


@plain("promptsrc", depth=2, text_weight=3.0, image_weight=2.0)
def promptsrc(task, s, batch, k, p, global_params):
    """Repository muzairkhattak/PromptSRC at bb95c77, trainers/promptsrc.py: ``fixed_embeddings`` is
    the mean over templates of what ``encode_text`` gives, and brought to unit norm behind it
    (CustomCLIP.forward)."""
    texts = [deep_feature(task, c, p["t"]) for c in classes(task)]
    fixed = []
    for c in classes(task):
        tokens = task.clip.tokenizer(
            [template.replace("{}", task.class_names[c]) for template in SIXTY]
        )
        fixed.append(F.normalize(task.clip.model.encode_text(tokens).mean(0), dim=0).detach())
    loss = both_towers(task, batch, k, texts, p["v"])
    for t, z in zip(texts, fixed, strict=True):
        loss = loss + s.text_weight * (t - z).abs().mean() / len(texts)
    for b, _, w in real(batch, k):
        x, known = pictured(task, batch.images.pixels[k, b], p["v"]), batch.images.features[k, b]
        loss = loss + w * s.image_weight * (x - known).abs().mean()
        q = torch.softmax(torch.stack([task.logit_scale * (x @ t) for t in texts]), 0)
        q_C = torch.softmax(torch.stack([task.logit_scale * (known @ z) for z in fixed]), 0)
        loss = loss + w * sum(q_C[c] * torch.log(q_C[c] / q[c]) for c in classes(task)) / len(texts)
    return loss


@plain("pfedmma", size=6, first=1, last=2, alpha=0.1)
@plain("pfedmma", size=6, first=2, last=2, alpha=0.01)
def pfedmma(task, s, batch, k, p, global_params):
    def adapter(tower):
        def output(i, block, token):
            if not s.first <= i + 1 <= s.last:
                return torch.zeros_like(token)
            at, x = i + 1 - s.first, block.ln_1(token)
            x = torch.relu(p[f"{tower}.down.weight"][at] @ x + p[f"{tower}.down.bias"][at])
            x = torch.relu(p["middle.weight"][at] @ x + p["middle.bias"][at])
            return s.alpha * (p[f"{tower}.up.weight"][at] @ x + p[f"{tower}.up.bias"][at])

        return output

    phrase = task.clip.embed_phrase("a photo of a")[None].double()
    texts = [deep_feature(task, c, phrase, adapter("text")) for c in classes(task)]
    nothing = torch.zeros(1, 0, 64, dtype=torch.float64)

    def logits(b):
        x = pictured(task, batch.images.pixels[k, b], nothing, adapter("image"))
        return [task.logit_scale * (x @ t) for t in texts]

    loss = cross_entropy_of(batch, k, logits)
    trainable = {n: t for n, t in p.items() if t.requires_grad}
    grads = torch.autograd.grad(loss, list(trainable.values()))
    return loss, {n: g / s.alpha for n, g in zip(trainable, grads, strict=True)}


@plain("fedmgp", groups=3, weight=0.7)
@plain("fedmgp", groups=3, weight=0.7, penalty="l1")
@plain("fedmgp", groups=1, sent=1)
def fedmgp(task, s, batch, k, p, global_params):
    texts = [prompted(task, t) for t in p["T"]]
    images = [
        {b: pictured(task, batch.images.pixels[k, b], v[None]) for b, _, _ in real(batch, k)}
        for v in p["V"]
    ]
    total = 0.0
    for text, image in zip(texts, images, strict=True):

        def logits(b, text=text, image=image):
            return [task.logit_scale * (image[b] @ t) for t in text]

        total = total + cross_entropy_of(batch, k, logits) / s.groups
    pairs = [(g, h) for g in range(s.groups) for h in range(g)]
    for g, h in pairs:
        if s.penalty == "l1":
            text = sum((texts[g][c] - texts[h][c]).abs().mean() for c in classes(task)) / len(
                texts[g]
            )
            image = sum(
                w * (images[g][b] - images[h][b]).abs().mean() for b, _, w in real(batch, k)
            )
            total = total + s.weight * (text + image) / 2 / len(pairs)
            continue
        text = sum(texts[g][c] @ texts[h][c] for c in classes(task)) / len(texts[g])
        image = sum(w * (images[g][b] @ images[h][b]) for b, _, w in real(batch, k))
        total = total + s.weight * (text + image) / 2 / len(pairs)
    return total


@plain("fedmvp", heads=2, rank=3)
@plain("fedmvp", heads=2, rank=3, loss_classes="own")
def fedmvp(task, s, batch, k, p, global_params):
    """Repository mainaksingha01/FedMVP at 246800e. model/FedMVP.py: ``apply_lora`` (x + x A B)
    stands around the arguments of ``crossattn`` in ImageEncoder.forward, so before the layer norms
    of PreNorm, which leaves the values alone; ``flip_transform`` gets a whole batch.
    """
    own = sorted({y for _, y, _ in real(batch, k)})
    many = ("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.")
    many = (*many, "a {} in a video game.", "art of the {}.", "a photo of the small {}.")
    described = [
        [sentence(task, words.format(task.class_names[c])) for words in many] for c in classes(task)
    ]
    projected = [layer(p, "project", d) for c in own for d in described[c]]
    tower = task.clip.model.visual
    use_lora = bool(p["switched"])

    def apply_lora(part, x):
        return x + x @ p[f"lora.{part}.A"] @ p[f"lora.{part}.B"] if use_lora else x

    keys = [normed(p, "norm_k", apply_lora("k", a)) for a in projected]
    values = [apply_lora("v", a) for a in projected]

    def seen(pixels):
        x = tower.conv1(pixels[None])[0].flatten(1).T
        x = torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding
        mixed = []
        for patch in x[1:]:
            out = attended(
                p, "attention", normed(p, "norm_q", apply_lora("q", patch)), keys, s.heads, values
            )
            mixed.append(out + gated(p, "ff", out))
        # 4 patches are pooled to 4 tokens: each is its own.
        return pictured(task, pixels, torch.stack(mixed)[None])

    images = {b: seen(batch.images.pixels[k, b]) for b, _, _ in real(batch, k)}
    asked = own if s.loss_classes == "own" else classes(task)

    def logits(b):
        for c in classes(task):
            mean = sum(task.logit_scale * (images[b] @ d) for d in described[c]) / len(many)
            yield mean if c in asked else torch.tensor(-torch.inf).double()

    loss = cross_entropy_of(batch, k, logits)
    flipped = generator(0, "fedmvp", k, 2, 1).random() < 0.5
    for b, _, w in real(batch, k):
        known = (batch.images.mirrored if flipped else batch.images.features)[k, b]
        loss = loss + w * s.weight * (1 - images[b] @ known)
    return loss
