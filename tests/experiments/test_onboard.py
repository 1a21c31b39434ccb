"""A site that was not there gets a prompt from a finished federation, and answers with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from experiments import export, onboard, predict
from experiments.client_model import load_client_model
from experiments.newcomer_site import ONBOARDED
from experiments.runner import start
from experiments.settings import composed
from fedpgp.data import load_dataset
from fedpgp.data.images import read_image
from fedpgp.errors import FedPGPError
from fedpgp.protocols.onboarding_options import OnboardingOptions

CLASSES = ("mammal", "insect")
"""Of the classes that the run trained, those that the site has."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two clients."""
    folder = tmp_path_factory.mktemp("onboard") / "run"
    words = ["dataset.domains=[noto]", "partition=dirichlet", "partition.beta=0.5", "clients=2"]
    words += ["runtime=inline", "rounds=1", "shots=4", "local_epochs=1", "lr=0.5", "n_ctx=2"]
    start(composed([*words, "evaluate_every=0", f"run_dir={folder}"]))
    return folder


@pytest.fixture(scope="module")
def site(run, tmp_path_factory):
    """A site's folder: four training and three test images of two trained classes."""
    emoji, folder = load_dataset("emoji", domains="twemoji"), tmp_path_factory.mktemp("site")
    names = load_client_model(run, None).class_names
    assert set(CLASSES) <= set(names)
    for part, many in (("train", 4), ("test", 3)):
        split = getattr(emoji, part)
        for name in CLASSES:
            rows = (split.labels == emoji.class_names.index(name)).nonzero()[0][:many]
            for row in rows:
                path = folder / part / name / f"{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                split.image(int(row)).save(path)
    return folder


def onboarded(run, site, state, *words) -> int:
    return onboard.main(["--run", str(run), "--data", str(site), "--state", str(state), *words])


@pytest.fixture(scope="module")
def tuned(run, site, tmp_path_factory):
    """The state of a site with a prompt of its own, and what the run's folder was before."""
    state = tmp_path_factory.mktemp("state") / "fedpgp"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert onboarded(run, site, state, "--steps", "3") == 0
    return state, before


def test_nothing_of_the_run_changes_and_the_prompt_is_its_owner_s_alone(run, tuned):
    state, before = tuned
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (folder,) = state.iterdir()
    for path in (folder, *folder.glob("client_*"), folder / "features"):
        assert path.stat().st_mode & 0o077 == 0, path
    files = [folder / ONBOARDED, *folder.glob("client_*/*.safetensors")]
    assert len(files) == 2 and all(path.stat().st_mode & 0o077 == 0 for path in files)
    about = json.loads(files[0].read_text())
    assert (about["client"], about["images"], about["steps"]) == (2, 8, 3)


def test_the_newcomer_answers_with_a_prompt_of_its_own(run, site, tuned, tmp_path, capsys):
    state, _ = tuned
    image = next(site.rglob("*.png"))
    ours, shared = load_client_model(run, None, state, newcomer=True), load_client_model(run, None)
    assert ours.has_own_prompt and not shared.has_own_prompt
    assert ours.class_names == shared.class_names
    assert (ours.classifier - shared.classifier).abs().max() > 1e-6
    who = ["--run", str(run), "--newcomer", "--state", str(state)]
    assert predict.main([*who, str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"{image}: ")
    assert export.main([*who, "--to", str(tmp_path / "to")]) == 0
    about = json.loads((tmp_path / "to" / "classifier.json").read_text())
    assert about["own_prompt"] and about["classes"] == ours.class_names


def test_the_global_prompt_is_the_same_for_everybody(run, site, tmp_path, capsys):
    assert onboarded(run, site, tmp_path, "--onboard", "global") == 0
    said = capsys.readouterr().out
    assert "revealed nothing" in said and "accuracy on its 6 test images: global prompt" in said
    ours = load_client_model(run, None, tmp_path, newcomer=True)
    assert not ours.has_own_prompt
    torch.testing.assert_close(ours.classifier, load_client_model(run, None).classifier)


def test_a_memory_answers_by_the_images_of_the_site(run, site, tmp_path, capsys):
    """logits + alpha exp(-beta (1 - f F^T)) L, image by image."""
    assert onboarded(run, site, tmp_path, "--onboard", "memory", "--budget", "2") == 0
    ours, shared = (
        load_client_model(run, None, tmp_path, newcomer=True),
        load_client_model(run, None),
    )
    files = sorted((site / "test").rglob("*.png"))
    images = [read_image(path) for path in files]
    found = predict.predict(ours, images)
    clip, memory = shared.federation.method.task.clip, ours.adjust
    assert len(memory.keys) == 4
    for row, image in enumerate(images):
        feature = clip.features_of("features", clip.preprocess(image)[None])[0]
        logits = shared.federation.method.task.logit_scale * shared.classifier[0] @ feature
        for key, value in zip(memory.keys, memory.values, strict=True):
            near = torch.exp(-OnboardingOptions.beta * (1 - feature @ key))
            logits = logits + OnboardingOptions.alpha * near * value
        torch.testing.assert_close(found[row], logits.softmax(-1), rtol=1e-4, atol=1e-5)
    who = ["--run", str(run), "--newcomer", "--state", str(tmp_path)]
    capsys.readouterr()
    assert export.main([*who, "--to", str(tmp_path / "to")]) == 2
    assert "it cannot be exported" in capsys.readouterr().err
    with pytest.raises(FedPGPError, match="--all-classes: this newcomer remembers"):
        load_client_model(run, None, tmp_path, newcomer=True, all_classes=True)


def test_a_prior_answers_by_the_classes_of_the_site(run, site, tmp_path):
    """logits + log pi, pi = (1 - e) / n of the site's classes and e / (C - n) of others."""
    assert onboarded(run, site, tmp_path, "--onboard", "prior") == 0
    ours, shared = (
        load_client_model(run, None, tmp_path, newcomer=True),
        load_client_model(run, None),
    )
    image = read_image(next((site / "test").rglob("*.png")))
    before, found = (predict.predict(model, [image])[0] for model in (shared, ours))
    own = torch.tensor([name in CLASSES for name in ours.class_names])
    others = OnboardingOptions.others
    pi = torch.where(own, (1 - others) / own.sum(), others / (~own).sum())
    torch.testing.assert_close(found, before * pi / (before * pi).sum(), rtol=1e-4, atol=1e-6)


def test_terms_of_trained_clients_need_their_consent(run, site, tmp_path, capsys):
    assert onboarded(run, site, tmp_path / "a", "--onboard", "nearest") == 2
    said = capsys.readouterr().err
    assert "method.share_terms=true is their consent" in said
    agreed = tmp_path / "agreed"
    shutil.copytree(run, agreed)
    config = yaml.safe_load((agreed / "config.yaml").read_text())
    config["method"]["share_terms"] = True
    (agreed / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["--onboard", "nearest", "--budget", "0"]
    assert onboarded(agreed, site, tmp_path / "b", *words) == 0
    assert "revealed" in capsys.readouterr().out
    term = load_client_model(agreed, None, tmp_path / "b", newcomer=True)
    trained = [load_client_model(agreed, client) for client in (0, 1)]
    near = [(term.classifier - other.classifier).abs().max() for other in trained]
    assert min(near) < 1e-4 < max(near), "the nearest client's term"


def test_what_the_site_has_decides_what_it_is_asked_for(run, site, tmp_path, capsys):
    def refused(data: Path, said: str, *words: str) -> None:
        assert (
            onboard.main(
                ["--run", str(run), "--data", str(data), "--state", str(tmp_path / "s"), *words]
            )
            == 2
        )
        assert said in " ".join(capsys.readouterr().err.split())

    refused(tmp_path / "nowhere", "is no folder; it holds the site's own images")
    refused(site, "did you mean nearest", "--onboard=nearst")
    refused(site, "protocol.budget=-1", "--budget=-1")
    strange = tmp_path / "strange"
    shutil.copytree(site / "train", strange)
    shutil.copytree(strange / "insect", strange / "beetles")
    refused(strange, "has classes that the run does not know: beetles. It knows")
    several = tmp_path / "several"
    for name in ("bern", "oslo"):
        shutil.copytree(site, several / name)
    refused(several, "holds several sites (bern, oslo)")
    nothing = tmp_path / "nothing"
    for name in CLASSES:
        (nothing / name).mkdir(parents=True)
    assert onboarded(run, nothing, tmp_path / "state") == 0, (
        "names of classes are enough to begin with"
    )
    assert "0 images of 2 of" in capsys.readouterr().out


def test_who_was_given_nothing_is_told_how(run, tmp_path, capsys):
    words = ["--run", str(run), "--newcomer", "photo.jpg"]
    assert predict.main(words) == 2
    assert "--newcomer has a prompt in its own folder alone" in capsys.readouterr().err
    assert predict.main([*words, "--state", str(tmp_path)]) == 2
    assert "python -m experiments.onboard --run RUN --data DIR" in capsys.readouterr().err
