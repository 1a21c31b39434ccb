"""Low-rank adapters in peft's files: its names, and the features of the exported classifier."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from experiments.client_model import ClientModel
from experiments.export import export
from experiments.peft_files import FILES, write_peft
from experiments.settings import composed
from fedpgp.clip.loading import resolve_name
from tests.helpers.equations import merged_feature
from tests.helpers.small import CLASSES, small_config, small_federation

MODULES = [
    f"{tower}_model.encoder.layers.{i}.{name}"
    for tower in ("text", "vision")
    for i in range(12)
    for name in (
        *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        *("mlp.fc1", "mlp.fc2", "layer_norm1"),
    )
]
"""Of transformers' CLIPModel."""


def exported(to, method: str, *overrides: str, own: bool):
    """A client's model with adapters that are far from zero, in files; and its federation."""
    config = small_config(to, f"method={method}", *overrides)
    fed = small_federation(json.dumps(config))
    rng, params = (
        torch.Generator().manual_seed(0),
        fed.models.global_params(fed.models.initial_shared()),
    )
    if own:
        params |= {n: t.unsqueeze(0) for n, t in fed.models.initial_state(0).items()}
    params = {n: 0.3 * torch.randn(t.shape, generator=rng).double() for n, t in params.items()}
    if method in ("fedex_lora", "fedalt"):
        state = fed.method.init_server_state(1)
        params |= {n: t.unsqueeze(0) for n, t in fed.method.download_for(0, state).items()}
    classify = fed.method.personal_classifier if own else fed.method.global_classifier
    model = ClientModel(
        run="",
        config=config,
        federation=fed,
        classifier=classify(params, fed.base),
        classes=fed.base,
        server_round=1,
        client=0 if own else None,
        has_own_prompt=own,
        params=params,
    )
    return fed, export(model, to)


@pytest.mark.parametrize(
    ("method", "own", "options", "layers"),
    [
        ("fedit", False, ("method.targets=[q,mlp]",), {"q_proj", "fc1", "fc2"}),
        ("ffa_lora", False, ("method.targets=[k,out]",), {"k_proj", "out_proj"}),
        ("fedsa_lora", True, ("method.blocks=last_1",), {"q_proj", "v_proj"}),
        ("fedpgp_lora", True, (), {"q_proj", "v_proj"}),
    ],
)
def test_what_peft_reads_is_what_the_client_answers_with(tmp_path, method, own, options, layers):
    """peft adds ``lora_alpha / r lora_B lora_A`` to the modules that ``target_modules`` matches as
    a whole, and looks for ``base_model.model.MODULE.lora_A.weight``
    (docs/source/developer_guides/checkpoint.md and LoraLayer, huggingface/peft at 5d602fd)."""
    fed, names = exported(tmp_path, method, *options, own=own)
    assert {file.name for file in tmp_path.iterdir()} == set(names) > set(FILES)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["bias"] == "none"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    first = 1 if method == "fedsa_lora" else 0  # of the two blocks
    matched = [m for m in MODULES if re.fullmatch(config["target_modules"], m)]
    blocks = {f"text_model.encoder.layers.{i}." for i in range(first, 2)}
    assert {m.rpartition(".")[2] for m in matched} == layers
    assert len(matched) == len(layers) * len(blocks) and all(
        any(m.startswith(block) for block in blocks) for m in matched
    )
    assert set(tensors) == {
        f"base_model.model.{module}.lora_{part}.weight" for module in matched for part in "AB"
    }
    ours = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out", "fc1": "fc"}
    stacked = {}
    for layer in layers:
        for part in "AB":
            each = [
                tensors[f"base_model.model.{m}.lora_{part}.weight"].double()
                for m in matched
                if m.endswith(layer)
            ]
            stacked[f"{ours.get(layer, 'proj')}.{part}"] = torch.stack(each)
    factor = config["lora_alpha"] / config["r"]
    embeddings = load_file(tmp_path / "classifier.safetensors")["class_embeddings"]
    for c in range(len(CLASSES)):
        found = merged_feature(fed.method.task, c, [(factor, stacked)])
        assert_close(embeddings[c].double(), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["fedex_lora", "fedalt"])
def test_what_is_more_than_an_adapter_is_not_written(tmp_path, capsys, method):
    _, names = exported(tmp_path, method, own=True)
    assert not set(names) & set(FILES)
    assert f"of method={method} no adapter is written for peft" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "same"),
    [
        ("vit_b16", "openai/clip-vit-base-patch16"),
        ("vit_b32", "openai/clip-vit-base-patch32"),
        ("vit_l14", "openai/clip-vit-large-patch14"),
        ("vit_b16_dfn", None),
        ("vit_b16_laion", None),
    ],
)
def test_the_model_has_its_name_in_transformers(tmp_path, model, same):
    section = composed([f"model={model}"])["model"]
    about = resolve_name(section["name"], section["pretrained"])
    write_peft({"q.A": torch.ones(1, 2, 4), "q.B": torch.ones(1, 4, 2)}, 0, about, tmp_path)
    config = json.loads((tmp_path / FILES[0]).read_text())
    assert config["base_model_name_or_path"] == same
