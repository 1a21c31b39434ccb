"""A client's own classifier after a run: predict, and export for plain open_clip."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from clients.client_app import client_app
from experiments import evaluate, export, predict
from experiments.client_model import load_client_model
from experiments.run_folder import RunFolder
from experiments.runner import start
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.clip.torchvision_fix import import_open_clip
from fedpgp.errors import FedPGPError
from fedpgp.federation import Federation
from strategies.checkpoint import checkpoints
from tests.docs.pages import block
from tests.experiments.test_rubbish import FORGERIES, forge
from tests.helpers.nodes import Nodes

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "dataset.domains=[noto]",
    "partition=dirichlet",
    "partition.beta=0.5",
    "clients=2",
    "participation=0.5",
]


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
def images(run, clients, tmp_path_factory):
    """Files of the trained client's test client_split, and their columns among the trained
    classes."""
    federation = build_federation(RunFolder.open(run)[1])
    client_split = federation.federated_split.clients[clients[0]]
    folder = tmp_path_factory.mktemp("images")
    for row in client_split.test:
        federation.dataset.test.image(int(row)).save(folder / f"{row:05d}.png")
    return sorted(folder.iterdir()), federation.inputs.labels(
        "test", federation.federated_split.base_classes
    )[client_split.test]


def test_predictions_are_those_of_the_evaluation(run, clients, images):
    files, truth = images
    model = load_client_model(run, clients[0])
    answers = predict.predict(model, [Image.open(file).convert("RGB") for file in files])
    with open(run / "clients.csv") as file:
        local = [
            float(row["local"])
            for row in csv.DictReader(file)
            if row["id"] == str(clients[0]) and row["model"] == "personal"
        ]
    assert model.has_own_prompt and 100 * (
        answers.argmax(-1) == truth
    ).double().mean().item() == pytest.approx(local[0])


def test_the_command_names_the_class(run, clients, images, capsys):
    files, _ = images
    assert predict.main(["--run", str(run), "--client", str(clients[0]), *map(str, files[:2])]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and out[0].startswith(f"{files[0]}: ") and "%" in out[0]


def test_a_folder_is_answered_as_json_and_as_csv(run, clients, images, tmp_path, capsys):
    """Every class's probability, hidden and other files left out, a broken image by its reason."""
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    (tmp_path / "in" / ".hidden").mkdir()
    for name in ("=b.png", "deeper/a.png", ".c.png", ".hidden/d.png"):
        shutil.copy(images[0][0], tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("words")
    (tmp_path / "in" / "z.png").write_bytes(b"words")
    command = ["--run", str(run), "--client", str(clients[0])]
    folder, to = str(tmp_path / "in"), tmp_path / "out.json"
    assert predict.main([*command, "--json", str(to), folder]) == 2
    said = capsys.readouterr()
    assert not said.out and f"wrote {to}" in said.err and "z.png cannot be read" in said.err
    told, model = json.loads(to.read_text()), load_client_model(run, clients[0])
    assert told["prompt"] == model.digest and told["classes"] == model.class_names
    first, second, third = told["predictions"]
    shown = [row["image"].removeprefix(folder) for row in (first, second, third)]
    assert shown == ["/=b.png", "/z.png", "/deeper/a.png"] and "error" in second
    expected = predict.predict(model, [Image.open(images[0][0]).convert("RGB")])[0]
    np.testing.assert_allclose(list(first["probabilities"].values()), expected, atol=2e-6)
    assert first["probabilities"] == third["probabilities"]
    assert predict.main([*command, "--csv", "-", folder]) == 2
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["image"] for row in rows] == [row["image"] for row in told["predictions"]]
    assert float(rows[0][first["class"]]) == first["probability"] == float(rows[0]["probability"])
    assert rows[1]["error"] and not rows[1]["class"]
    (tmp_path / "empty").mkdir()
    for words, why in (
        ([str(tmp_path / "empty")], "has no image"),
        (["--json", str(tmp_path), folder], "it is a folder"),
    ):
        assert predict.main([*command, *words]) == 2
        assert why in capsys.readouterr().err


def test_a_client_is_asked_by_the_name_of_its_site(run, clients, images, tmp_path, capsys):
    """As nodes call themselves: no other run has names."""
    named = shutil.copytree(run, tmp_path / "run")
    table = json.loads((named / "partition.json").read_text())
    for row in table["clients"]:
        row["name"] = f"site {row['id']}"
    (named / "partition.json").write_text(json.dumps(table))
    answers = []
    for client in (str(clients[0]), f"site {clients[0]}"):
        assert predict.main(["--run", str(named), "--client", client, str(images[0][0])]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_a_new_client_starts_from_the_global_prompt(run, clients, images, capsys):
    files, _ = images
    ours, new = (
        load_client_model(run, clients[0]),
        [load_client_model(run, client) for client in (clients[1], None)],
    )
    assert ours.has_own_prompt and not any(other.has_own_prompt for other in new)
    torch.testing.assert_close(new[0].classifier, new[1].classifier)
    assert (ours.classifier - new[0].classifier).abs().max() > 1e-6
    for who, said in ((["--client", str(clients[1])], True), (["--global"], False)):
        assert predict.main(["--run", str(run), *who, str(files[0])]) == 0
        assert (
            "has no prompt of its own: the global one answers" in capsys.readouterr().err
        ) == said


def test_answers_come_while_later_images_are_not_there_yet(run, clients, images, tmp_path):
    files, _ = images
    model, late = load_client_model(run, clients[0]), tmp_path / "late.png"
    answers = predict.classified(model, [files[0], late, files[1]])
    first, probability = next(answers)
    late.write_bytes(files[2].read_bytes())
    others = [answer for _, answer in answers]
    assert first == files[0]
    expected = predict.predict(model, [Image.open(files[i]).convert("RGB") for i in (0, 2, 1)])
    torch.testing.assert_close(torch.stack([probability, *others]), expected)


def test_no_more_than_a_batch_of_images_is_held(run, clients, images, monkeypatch):
    files, _ = images
    model, asked = load_client_model(run, clients[0]), []
    whole = predict.predict
    monkeypatch.setattr(predict, "images_per_chunk", lambda device: 4)
    monkeypatch.setattr(
        predict, "predict", lambda p, images: whole(p, asked.append(0) or _counted(images, asked))
    )
    many = [*files[:5], files[0], *files[:5]]
    assert [
        path for path, _ in predict.classified(model, many)
    ] == many  # the same image twice is answered twice
    assert asked == [1, 2, 4, 4]


def _counted(images, asked):
    for image in images:
        asked[-1] += 1
        yield image


def test_the_newest_run_below_a_folder_is_taken_and_named(run, clients, images, tmp_path, capsys):
    files, _ = images
    older, newer = (
        tmp_path / "outputs" / "default" / "older",
        tmp_path / "outputs" / "default" / "newer",
    )
    shutil.copytree(run, newer)
    older.mkdir()
    (older / "config.yaml").write_text("broken")
    os.utime(older / "config.yaml", (1, 1))
    command = ["--client", str(clients[0]), str(files[0])]
    for folder in (tmp_path / "outputs", tmp_path / "outputs" / "default"):
        assert predict.main(["--run", str(folder), *command]) == 0
        assert f"the newest run below it, {newer}" in capsys.readouterr().err
    assert evaluate.main(["--run", str(tmp_path / "outputs")]) == 0
    assert (newer / "evaluations" / "own.json").exists()
    (tmp_path / "outputs" / "sweep.json").write_text("{}")
    capsys.readouterr()
    for main in (predict.main, export.main):
        words = ["--client", "0", "--to", str(tmp_path)] if main is export.main else command
        assert main(["--run", str(tmp_path / "outputs"), *words]) == 2
        assert "is a sweep's folder; name one of its runs: newer, older" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_does_not_cost_the_others_their_answers(
    run, clients, images, tmp_path, capsys
):
    files, _ = images
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:60])
    asked = [
        "--run",
        str(run),
        "--client",
        str(clients[0]),
        str(files[0]),
        str(broken),
        str(files[1]),
    ]
    assert predict.main(asked) == 2
    said = capsys.readouterr()
    assert [line.partition(": ")[0] for line in said.out.splitlines()] == [
        str(files[0]),
        str(files[1]),
    ]
    assert f"error: image {broken} cannot be read" in said.err and "on_bad_image" not in said.err
    assert "among the 23 classes that were trained; --all-classes: among all 46" in said.err


def test_a_file_whose_name_is_no_text_is_answered_and_written_out(
    run, clients, images, tmp_path, capsys
):
    strange = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(images[0][0], strange)
    gone = str(tmp_path / os.fsdecode(b"\xff.png"))
    assert predict.main(["--run", str(run), "--client", str(clients[0]), str(strange), gone]) == 2
    said = capsys.readouterr()
    assert (
        said.out.startswith(rf"{tmp_path}/caf\xe9.png: ")
        and rf"error: image {tmp_path}/\xff.png cannot" in said.err
    )
    where = str(tmp_path / os.fsdecode(b"to\xe9"))
    assert export.main(["--run", str(run), "--client", str(clients[0]), "--to", where]) == 0
    assert rf"wrote {tmp_path}/to\xe9/classifier.safetensors" in capsys.readouterr().out


def test_any_open_clip_user_can_use_an_export(run, clients, images, tmp_path):
    files, _ = images
    assert export.main(["--run", str(run), "--client", str(clients[0]), "--to", str(tmp_path)]) == 0
    about, embeddings = (
        json.loads((tmp_path / "classifier.json").read_text()),
        load_file(tmp_path / "classifier.safetensors"),
    )
    open_clip = import_open_clip()

    assert about["pictures"] == {"orientation": "exif", "background": "white", "grey_range": None}
    # What docs/deployment.md shows.
    model, _, preprocess = open_clip.create_model_and_transforms(
        about["model"], pretrained=about["pretrained"]
    )
    image = preprocess(Image.open(files[0]).convert("RGB")).unsqueeze(0)
    feature = F.normalize(model.eval().encode_image(image), dim=-1)
    probability = (feature @ embeddings["class_embeddings"].T / about["temperature"]).softmax(-1)
    name = about["classes"][probability.argmax()]
    expected = predict.predict(
        load_client_model(run, clients[0]), [Image.open(files[0]).convert("RGB")]
    )
    np.testing.assert_allclose(probability.detach(), expected, atol=1e-5)
    assert name == load_client_model(run, clients[0]).classes.names[expected.argmax()]


def test_an_export_says_which_model_open_clip_alone_does_not_load(run, clients, tmp_path, capsys):
    model = load_client_model(run, clients[0])
    export.export(model, tmp_path)
    assert "open_clip alone" not in capsys.readouterr().err
    model.config["model"] = {"name": "tiny_vit", "pretrained": None}
    export.export(model, tmp_path)
    assert "note: open_clip alone does not load model tiny_vit" in capsys.readouterr().err


def test_the_snippet_of_the_docs_names_the_class(run, clients, images, tmp_path, capsys):
    """As printed, in a process of its own, with whatever builds of torch and
    torchvision are there."""
    files, _ = images
    command = ["--run", str(run), "--client", str(clients[0])]
    assert export.main([*command, "--to", str(tmp_path / "classifier")]) == 0
    Image.open(files[0]).convert("RGB").save(tmp_path / "photo.png")
    code = block("deployment.md", "python").replace("photo.jpg", "photo.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    capsys.readouterr()
    assert predict.main([*command, str(tmp_path / "photo.png")]) == 0
    best = capsys.readouterr().out.partition("photo.png: ")[2]
    assert done.stdout.strip() and best.startswith(f"{done.stdout.strip()} ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--client", "0"], "is no run's folder"),
        (
            ["--client", "-1"],
            "client -1 is none of the run's 2, 0 to 1; --global asks for the global prompt",
        ),
        (
            ["--client", "99"],
            "client 99 is none of the run's 2, 0 to 1; --global asks for the global prompt",
        ),
    ],
)
def test_bad_input(run, images, tmp_path, arguments, said, capsys):
    folder = tmp_path if arguments[1] == "0" else run
    assert export.main(["--run", str(folder), *arguments, "--to", str(tmp_path / "to")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "to").exists()
    assert predict.main(["--run", str(folder), *arguments, str(images[0][0])]) == 2
    assert said in capsys.readouterr().err


def test_whose_prompt_has_to_be_said(run, tmp_path):
    for words in ([], ["--client", "0", "--global"]):
        with pytest.raises(SystemExit):
            export.main(["--run", str(run), *words, "--to", str(tmp_path)])


def test_the_global_prompt_is_exported(run, tmp_path):
    assert export.main(["--run", str(run), "--global", "--to", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "classifier.json").read_text())
    assert about["client"] is None and not about["own_prompt"]


def test_a_model_that_is_partly_on_the_server_is_exported(tmp_path, capsys):
    """FedEx-LoRA's residual is no shared tensor, and no client's own."""
    small = ["runtime=inline", "rounds=1", "shots=2", "evaluate_every=0", "model=tiny"]
    start(composed([*SETTINGS, *small, "method=fedex_lora", f"run_dir={tmp_path / 'run'}"]))
    words = ["--run", str(tmp_path / "run"), "--to", str(tmp_path / "to")]
    for client in ("0", "1"):  # one of them took no part
        assert export.main([*words, "--client", client]) == 0
    assert export.main([*words, "--global"]) == 2
    assert "there is no global prompt: method=fedex_lora" in capsys.readouterr().err


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_tensors_are_named(run, tmp_path, what, capsys):
    forged = shutil.copytree(run, tmp_path / "run")
    forge(checkpoints(forged / "checkpoint")[-1], what)
    words = ["--run", str(forged)]
    assert export.main([*words, "--client", "0", "--to", str(tmp_path / "to")]) == 2
    assert evaluate.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    said = f"error: the checkpoint in {forged / 'checkpoint'} has"
    assert [line.startswith(said) for line in lines if "note" not in line] == [True, True]


def test_a_lost_private_state_is_named(run, clients, tmp_path):
    with pytest.raises(
        FedPGPError, match=f"private state of client {clients[0]} after round 1 is not there"
    ):
        load_client_model(run, clients[0], tmp_path)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A deployment: (the run's folder, the state-dir of client 0)."""
    folder = tmp_path_factory.mktemp("elsewhere")
    small = [
        "runtime=flower",
        "rounds=1",
        "shots=4",
        "local_epochs=1",
        "evaluate_every=0",
        f"run_dir={folder / 'run'}",
    ]
    configs = [
        {"client-id": client, "state-dir": str(folder / f"state_{client}")} for client in range(2)
    ]
    start(composed([*SETTINGS, "participation=1", *small]), grid=Nodes(client_app(), configs))
    return folder / "run", folder / "state_0"


def test_a_deployed_client_is_answered_for_where_it_lives(elsewhere, tmp_path, capsys):
    run, state = elsewhere
    command = ["--run", str(run), "--client", "0", "--to", str(tmp_path)]
    assert export.main(command) == 2
    said = capsys.readouterr().err
    assert "is on its own machine alone" in said and "--state STATE_DIR" in said
    assert export.main([*command, "--state", str(state)]) == 0
    assert json.loads((tmp_path / "classifier.json").read_text())["own_prompt"]


def test_a_deployment_is_not_scored_where_its_prompts_are_not(elsewhere, capsys):
    run, _ = elsewhere
    assert evaluate.main(["--run", str(run)]) == 2
    said = capsys.readouterr().err
    assert (
        "learned for themselves is on its clients' own machines" in said
        and "experiments.predict" in said
    )


@pytest.fixture(scope="module")
def own_weights(tmp_path_factory):
    """A run of a model whose weights are a file: (the run's folder, the file, other weights)."""
    open_clip = import_open_clip()

    folder = tmp_path_factory.mktemp("weights")
    size = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    }
    size["text_cfg"] = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
    }
    (folder / "SmallForTests.json").write_text(json.dumps(size))
    open_clip.add_model_config(folder / "SmallForTests.json")
    files = [folder / "one.pt", folder / "other.pt"]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        torch.save(open_clip.create_model("SmallForTests").state_dict(), file)
    small = ["runtime=inline", "rounds=1", "shots=1", "local_epochs=1", "evaluate_every=0"]
    model = [
        "model.name=SmallForTests",
        f"model.pretrained={files[0]}",
        f"runtime.cache_dir={folder / 'cache'}",
    ]
    start(composed([*SETTINGS, *small, *model, "participation=1", f"run_dir={folder / 'run'}"]))
    return folder / "run", *files


def test_weights_that_are_elsewhere_on_this_machine(own_weights, tmp_path, capsys):
    run, file, other = own_weights
    command = ["--run", str(run), "--client", "0", "--to", str(tmp_path)]
    assert export.main(command) == 0
    expected = load_file(tmp_path / "classifier.safetensors")["class_embeddings"]
    here = file.rename(tmp_path / "moved.pt")
    assert export.main(command) == 2
    assert (
        f"the run's weights, {file}, are not on this machine; name the file: --weights FILE"
        in capsys.readouterr().err
    )
    assert export.main([*command, "--weights", str(here)]) == 0
    torch.testing.assert_close(
        load_file(tmp_path / "classifier.safetensors")["class_embeddings"], expected
    )
    assert json.loads((tmp_path / "classifier.json").read_text())["pretrained"] == str(here)
    assert export.main([*command, "--weights", str(other)]) == 2
    assert f"--weights {other}: the run was trained with other weights" in capsys.readouterr().err


def test_images_that_a_method_needs_and_that_are_elsewhere(tmp_path, capsys):
    there = tmp_path / "there"
    for split in ("train", "test"):
        for shade, name in enumerate(("cat", "dog")):
            (there / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (16, 16), (99 * shade, 9 * i, 9)).save(
                    there / split / name / f"{i}.png"
                )
    words = [
        "dataset=folder",
        f"dataset.root={there}",
        "partition=iid",
        "protocol=personal",
        "clients=2",
    ]
    words += [
        "runtime=inline",
        "rounds=1",
        "local_epochs=1",
        "evaluate_every=0",
        f"runtime.cache_dir={tmp_path}",
    ]
    words += ["method.images_a_rank=1"]  # a rank that hangs on how many images a client has
    start(composed([*words, f"run_dir={tmp_path / 'run'}"]))
    here = there.rename(tmp_path / "here")
    command = [
        "--run",
        str(tmp_path / "run"),
        "--client",
        "0",
        str(here / "test" / "cat" / "0.png"),
    ]
    assert predict.main(command) == 2
    assert str(there) in capsys.readouterr().err
    assert predict.main([*command, "--data-root", str(here)]) == 0
    assert "cat" in capsys.readouterr().out
    (here / "test" / "dog" / "0.png").unlink()
    assert predict.main([*command, "--data-root", str(here)]) == 2
    assert (
        "have changed since it was started: 7 test images where there were 8"
        in capsys.readouterr().err
    )


def test_classes_of_several_data_sets_that_have_one_name(tmp_path, capsys):
    """A variant's class is the original's; one that is asked for in other words is its own."""
    for folder, names in {"trained": "cat dog", "pets": "Dog owl", "sketches": "dog cat"}.items():
        for split in ("train", "test"):
            for shade, name in enumerate(names.split()):
                where = tmp_path / folder / split / name
                where.mkdir(parents=True)
                for i in range(2):
                    Image.new("RGB", (16, 16), (99 * shade, 9 * i, 9)).save(where / f"{i}.png")
    pets, sketches = (f"name:folder,root:'{tmp_path / name}'" for name in ("pets", "sketches"))
    words = [
        *("dataset=folder", f"dataset.root={tmp_path / 'trained'}", "partition=iid", "clients=2"),
        *("protocol=cross_dataset", "method=promptfl", "runtime=inline", "rounds=1"),
        f"protocol.targets=[{{{pets},template:'a photo of a {{}}, a pet.'}},{{{sketches}}}]",
        *("local_epochs=1", "evaluate_every=0", f"runtime.cache_dir={tmp_path}"),
    ]
    start(composed([*words, f"run_dir={tmp_path / 'run'}"]))
    whose = ["--run", str(tmp_path / "run"), "--global"]
    assert predict.main([*whose, str(tmp_path / "pets/test/owl/0.png")]) == 0
    assert "among the 2 classes that were trained; --all-classes: among all 4" in (
        capsys.readouterr().err
    )
    assert export.main([*whose, "--all-classes", "--to", str(tmp_path)]) == 0
    exported = json.loads((tmp_path / "classifier.json").read_text())
    label = f"folder {tmp_path / 'pets'} a photo of a {{}}, a pet."
    assert exported["classes"] == ["cat (folder)", "dog (folder)", f"Dog ({label})", "owl"]
    assert exported["template"] == [*["a photo of a {}."] * 2, *["a photo of a {}, a pet."] * 2]
    assert len(load_file(tmp_path / "classifier.safetensors")["class_embeddings"]) == 4


def deployed(method: str) -> Federation:
    """What the machine of a run knows when the images are the clients' own: none of them."""
    words = [
        "runtime=flower",
        "partition=own",
        "dataset=folder",
        "dataset.root=null",
        "protocol=personal",
    ]
    return build_federation(
        composed([*words, "dataset.class_names=[cat,dog,fox,owl]", "clients=2", f"method={method}"])
    )


@pytest.mark.parametrize("method", ["fedpgp", "scaffold", "ditto", "fedtpg"])
def test_a_client_is_answered_for_without_its_images(method):
    federation = deployed(method)
    classes = federation.class_set(federation.federated_split.base_classes)
    (classifier,) = federation.models.personal_classifier(
        federation.models.initial_shared(),
        [0],
        federation.models.initial_state,
        [classes],
        server_round=1,
    )
    assert classifier.shape[:2] == (1, 4)


@pytest.mark.parametrize("method", ["pfedprompt"])
def test_a_method_that_needs_the_images_says_so(method):
    federation = deployed(method)
    classes = federation.class_set(federation.federated_split.base_classes)
    with pytest.raises(
        FedPGPError, match=f"method {method} needs the client's own training images"
    ):
        federation.models.personal_classifier(
            federation.models.initial_shared(),
            [0],
            federation.models.initial_state,
            [classes],
            server_round=1,
        )
