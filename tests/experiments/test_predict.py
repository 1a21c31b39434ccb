"""A client's own classifier after a run: predict, and export for plain open_clip."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from experiments import export, predict
from experiments.personal import load_personal
from experiments.runner import start
from experiments.settings import composed
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation

SETTINGS = ["dataset.domains=[noto]", "partition=dirichlet", "partition.beta=0.5", "clients=2", "participation=0.5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One round in which one of two clients trained."""
    run_dir = tmp_path_factory.mktemp("personal") / "run"
    small = [
        "runtime=inline",
        "rounds=1",
        "shots=4",
        "local_epochs=2",
        "lr=0.5",
        "evaluate_every=0",
        f"run_dir={run_dir}",
    ]
    start(composed([*SETTINGS, *small]))
    return run_dir


@pytest.fixture(scope="module")
def clients(run):
    """(the one that trained, the one that never did)."""
    trained = [client for client in range(2) if (run / "private" / f"client_{client:05d}").exists()]
    assert len(trained) == 1
    return trained[0], 1 - trained[0]


@pytest.fixture(scope="module")
def pictures(run, clients, tmp_path_factory):
    """Files of the trained client's test share, and their columns among the trained classes."""
    federation = load_personal(run, clients[0]).federation
    share = federation.deal.shares[clients[0]]
    folder = tmp_path_factory.mktemp("pictures")
    for row in share.test:
        federation.dataset.test.image(int(row)).save(folder / f"{row:05d}.png")
    return sorted(folder.iterdir()), federation.labels("test", federation.deal.base_classes)[share.test]


def test_predictions_are_those_of_the_evaluation(run, clients, pictures):
    files, truth = pictures
    personal = load_personal(run, clients[0])
    answers = predict.predict(personal, [Image.open(file).convert("RGB") for file in files])
    with open(run / "clients.csv") as file:
        local = [
            float(row["local"])
            for row in csv.DictReader(file)
            if row["id"] == str(clients[0]) and row["model"] == "personal"
        ]
    assert personal.own and 100 * (answers.argmax(-1) == truth).double().mean().item() == pytest.approx(local[0])


def test_the_command_names_the_class(run, clients, pictures, capsys):
    files, _ = pictures
    assert predict.main(["--run", str(run), "--client", str(clients[0]), *map(str, files[:2])]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and out[0].startswith(f"{files[0]}: ") and "%" in out[0]


def test_a_new_client_starts_from_the_global_prompt(run, clients, pictures, capsys):
    files, _ = pictures
    ours, new = load_personal(run, clients[0]), [load_personal(run, client) for client in (clients[1], 99)]
    assert ours.own and not any(other.own for other in new)
    torch.testing.assert_close(new[0].features, new[1].features)
    assert (ours.features - new[0].features).abs().max() > 1e-6
    assert predict.main(["--run", str(run), "--client", "99", str(files[0])]) == 0
    assert "client 99 has no prompt of its own" in capsys.readouterr().err


def test_any_open_clip_user_can_use_an_export(run, clients, pictures, tmp_path):
    files, _ = pictures
    assert export.main(["--run", str(run), "--client", str(clients[0]), "--to", str(tmp_path)]) == 0
    about, embeddings = (
        json.loads((tmp_path / "classifier.json").read_text()),
        load_file(tmp_path / "classifier.safetensors"),
    )
    import fedpgp._torchvision  # noqa: F401, I001  (open_clip needs it beside a CPU torch)
    import open_clip

    # What README shows.
    model, _, preprocess = open_clip.create_model_and_transforms(about["model"], pretrained=about["pretrained"])
    image = preprocess(Image.open(files[0]).convert("RGB")).unsqueeze(0)
    feature = F.normalize(model.eval().encode_image(image), dim=-1)
    probability = (feature @ embeddings["class_embeddings"].T / about["temperature"]).softmax(-1)
    name = about["classes"][probability.argmax()]
    expected = predict.predict(load_personal(run, clients[0]), [Image.open(files[0]).convert("RGB")])
    np.testing.assert_allclose(probability.detach(), expected, atol=1e-5)
    assert name == load_personal(run, clients[0]).classes.names[expected.argmax()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--client", "0"], "is no run's folder"),
        (["--client", "-1"], "clients are numbered from 0"),
    ],
)
def test_bad_input(run, tmp_path, arguments, said, capsys):
    folder = run if arguments[1] == "-1" else tmp_path
    assert export.main(["--run", str(folder), *arguments, "--to", str(tmp_path / "to")]) == 2
    assert said in capsys.readouterr().err


def test_a_lost_private_state_is_named(run, clients, tmp_path):
    with pytest.raises(FedPGPError, match=f"private state of client {clients[0]} after round 1 is not there"):
        load_personal(run, clients[0], tmp_path)


def deployed(method: str) -> Federation:
    """What the machine of a run knows when the pictures are the clients' own: none of them."""
    words = ["runtime=flower", "partition=own", "dataset=folder", "dataset.root=null", "protocol=personal"]
    return Federation.from_config(
        composed([*words, "dataset.class_names=[cat,dog,fox,owl]", "clients=2", f"method={method}"])
    )


@pytest.mark.parametrize("method", ["fedpgp", "scaffold", "ditto"])
def test_a_client_is_answered_for_without_its_pictures(method):
    federation = deployed(method)
    classes = federation.candidates(federation.deal.base_classes)
    (features,) = federation.personal_features(federation.initial_shared(), [0], federation.initial_state, [classes])
    assert features.shape[:2] == (1, 4)


@pytest.mark.parametrize("method", ["fedtpg", "pfedprompt"])
def test_a_method_that_needs_the_pictures_says_so(method):
    federation = deployed(method)
    classes = federation.candidates(federation.deal.base_classes)
    with pytest.raises(FedPGPError, match=f"method {method} needs the client's own training images"):
        federation.personal_features(federation.initial_shared(), [0], federation.initial_state, [classes])
