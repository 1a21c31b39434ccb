"""pFedMoAP: loss and gradients against its equations, written out."""

import torch

from fedpgp.methods import METHODS
from tests.helpers.equations import classes, cross_entropy_of, layer, prompted
from tests.helpers.gradients import check_gradients


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


def test_loss_and_gradients(task, batch):
    check_gradients("pfedmoap", {"experts": 3, "width": 8, "heads": 2}, pfedmoap, task, batch)


def test_pfedmoap_takes_the_nearest_experts_but_itself(task):
    method = METHODS["pfedmoap"](METHODS["pfedmoap"].Settings(experts=4), task)
    places = torch.tensor([0.0, 5.0, 1.0, 3.0, 0.5, 2.0])
    pool = places.view(-1, 1, 1).expand(-1, task.n_ctx, task.clip.width)
    sent = method.download_for(0, {"pool": pool, "known": torch.tensor([1.0, 1, 1, 1, 0, 1])})
    assert sent["experts"][:, 0, 0].tolist() == [1.0, 2.0, 3.0] and sent["real"].tolist() == [
        1,
        1,
        1,
    ]
    few = method.download_for(0, {"pool": pool, "known": torch.tensor([1.0, 1, 0, 0, 0, 0])})
    assert few["experts"][0, 0, 0] == 5.0 and few["real"].tolist() == [1, 0, 0]
