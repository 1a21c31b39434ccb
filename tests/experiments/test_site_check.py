"""experiments.deploy check: what a node would be refused for is said before the first round."""

import datetime
import email.utils
import http.server
import ssl
import threading
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from experiments import site_check
from experiments.deploy import main
from experiments.runtimes.certificates import make_certificates, make_node_key
from experiments.settings import composed
from experiments.site_check import OK, WARNING, WRONG
from experiments.supernode import main as supernode
from strategies.checkpoint import save_checkpoint

CLASSES = ("dataset.class_names=[cat,dog]", "protocol=personal")


def site(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 2) -> Path:
    for part in ("train", "test"):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(each):
                Image.new("RGB", (32, 32), (i * 40, 80, 120)).save(
                    folder / part / name / f"{i}.png"
                )
    return folder


def check(capsys, *words: object) -> tuple[int, dict[str, list[str]]]:
    """Exit status, and what was found by level."""
    code = main(["check", *map(str, words)])
    lines = capsys.readouterr().out.splitlines()
    return code, {
        level: [line for line in lines if line.startswith(level)] for level in (OK, WARNING, WRONG)
    }


def test_a_site_that_is_right(tmp_path, capsys):
    make_node_key(tmp_path / "key")
    words = [
        "--data",
        site(tmp_path / "site"),
        "--state",
        tmp_path / "state",
        "--key",
        tmp_path / "key",
        "--client",
        3,
    ]
    code, found = check(capsys, *words, *CLASSES)
    assert code == 0 and not found[WRONG] and not found[WARNING], found
    said = "\n".join(found[OK])
    for part in (
        "4 to train on, 4 to test on, of 2 of 2",
        "registered with --name client-3",
        "weights: sha256",
        "GB free",
    ):
        assert part in said
    assert not list((tmp_path / "state").iterdir()), "nothing is kept of a check"


def test_a_folder_that_is_not_there_is_named_by_its_option(tmp_path, capsys):
    code, found = check(capsys, "--data", tmp_path / "nothing", *CLASSES)
    assert code == 2 and len(found[WRONG]) == 1
    assert "nothing is no folder; --data names" in found[WRONG][0]


def test_broken_images_are_all_named_at_once_or_left_out(tmp_path, capsys):
    data = site(tmp_path / "site", each=3)
    for name in ("train/cat/0.png", "test/dog/1.png"):
        (data / name).write_bytes(b"no image")
    (data / "train" / "dog" / "9.jpg").symlink_to("nowhere")
    code, found = check(capsys, "--data", data, *CLASSES)
    (broken,) = found[WRONG]
    assert code == 2 and "3 cannot be read" in broken and "on-bad-image=skip" in broken
    assert all(name in broken for name in ("train/cat/0.png", "test/dog/1.png", "train/dog/9.jpg"))
    code, found = check(capsys, "--data", data, "--on-bad-image", "skip", *CLASSES)
    assert code == 0 and any("3 cannot be read (left out)" in line for line in found[WARNING])
    assert any("5 to train on, 5 to test on" in line for line in found[OK])


@pytest.mark.parametrize(
    ("folders", "words", "said"),
    [
        (("cat", "fox"), (), "has folders that dataset.class_names lacks: fox"),
        ((), (), "no images"),
        (("cat",), ("model.pretrained=/nowhere.pt",), "weights: "),
        (("cat",), ("protocol=multidomain",), "protocol"),
    ],
)
def test_what_a_node_would_refuse_is_said_in_its_words(tmp_path, capsys, folders, words, said):
    data = site(tmp_path / "site", folders)
    data.mkdir(exist_ok=True)
    code, found = check(capsys, "--data", data, *CLASSES, *words)
    assert code == 2 and any(said in line for line in found[WRONG]), found


def test_too_few_images(tmp_path, capsys):
    """Of classes that this run does not train; then of one that it does."""
    data = site(tmp_path / "site", ("dog",))
    code, found = check(
        capsys, "--data", data, "dataset.class_names=[cat,dog]", "protocol=base2novel"
    )
    assert (
        code == 2
        and "0 to train on, 0 to test on" in found[WRONG][0]
        and "too few" in found[WRONG][0]
    )
    code, found = check(capsys, "--data", data, *CLASSES)
    assert code == 0 and any("none to train on of 1: cat" in line for line in found[WARNING])


def test_a_run_s_classes_and_weights_hold(tmp_path, capsys):
    run, data = tmp_path / "run", site(tmp_path / "site")
    run.mkdir()
    config = composed(["runtime=flower", "partition=own", "dataset=folder", "clients=2", *CLASSES])
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    code, found = check(capsys, "--data", data, "--run", run, "--client", 1)
    assert code == 0, found
    info = {"run": "0" * 32, "model_sha256": "00" * 32, "config": config}
    tensors = {"shared/p_G": np.zeros(1), "committed": np.zeros(2, dtype=np.int64)}
    save_checkpoint(run / "checkpoint", 1, tensors, info)
    code, found = check(capsys, "--data", data, "--run", run, "--client", 1)
    assert code == 2 and "here, sha256 0000000000000000 in the run" in found[WRONG][0]
    code, found = check(capsys, "--data", data, "--run", run, "--client", 2)
    assert code == 2 and "client-id=2, but the federation has 2 clients" in found[WRONG][0]
    assert main(["check", "--data", str(data), "--run", str(run), "lr=1"]) == 2
    assert "--run has the run's own settings; leave out lr=1" in capsys.readouterr().err


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def test_a_state_dir_that_cannot_be_written_and_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (finding,) = site_check._state_dir(tmp_path / "file" / "state")
    assert finding.level == WRONG and "Not a directory" in finding.text
    images = Namespace(train=[0], test=[0])
    clip = Namespace(method=Namespace(task=Namespace(clip=Namespace(embed=512))))
    federation = Namespace(dataset=images, method=clip.method)
    assert levels(site_check._space(tmp_path, federation)) == [OK]
    monkeypatch.setattr(site_check, "SPARE_BYTES", 2**62)
    assert levels(site_check._space(tmp_path, federation)) == [WRONG]


def test_a_key_that_others_read_and_one_that_is_none(tmp_path):
    make_node_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    assert "chmod 600" in site_check._key(tmp_path / "key", 0).text
    (tmp_path / "other").write_text("-----BEGIN PRIVATE KEY-----")
    assert "OpenSSH" in site_check._key(tmp_path / "other", 0).text
    assert site_check._key(tmp_path / "nowhere", 0).level == WRONG


@pytest.mark.parametrize(("seconds", "level"), [(0, OK), (60, WRONG), (-60, OK), (-400, WRONG)])
def test_clocks_that_flower_would_refuse(seconds, level):
    """A node ahead of its server signs in the future; one behind has its signatures expire."""
    theirs = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    (finding,) = site_check._clock({"date": email.utils.format_datetime(theirs, usegmt=True)})
    assert finding.level == level, finding


def test_a_server_is_reached_and_trusted(tmp_path):
    """Over TLS, with its own authority's certificate and with another's."""
    make_certificates(tmp_path / "one", ["localhost"])
    make_certificates(tmp_path / "two", ["localhost"])
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "one" / "server.pem", tmp_path / "one" / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *args: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    try:
        assert levels(site_check._server(address, tmp_path / "one" / "ca.crt")) == [OK, OK, OK]
        *_, refused = site_check._server(address, tmp_path / "two" / "ca.crt")
        assert refused.level == WRONG and "certificate verify failed" in refused.text
    finally:
        server.shutdown()
        server.server_close()
    assert levels(site_check._server(address, tmp_path / "one" / "ca.crt")) == [OK, WRONG]
    assert levels(site_check._server("fed.example.org", tmp_path / "one" / "ca.crt"))[-1] == WRONG
    assert levels(site_check._server(address, None)) == [WRONG]


def test_deploy_local_looks_at_every_site_before_it_starts(tmp_path, capsys):
    site(tmp_path / "sites" / "clinic_a")
    site(tmp_path / "sites" / "clinic_b", ("cat", "cta"))
    words = ["dataset=folder", *CLASSES, f"run_dir={tmp_path / 'run'}"]
    assert main(["local", "--data", str(tmp_path / "sites"), *words]) == 2
    told = capsys.readouterr()
    assert (
        "clinic_b (client 1): " in told.err
        and "cta" in told.err
        and "starting a SuperLink" not in told.out
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no client-id"),
        ("client-id=0 statedir='/x'", "state-dir"),
        ("client-id=0 state-dir=/srv/state", "text stands in quotes"),
        ("client-id=zero state-dir='/x'", "text stands in quotes"),
        ("/nowhere/node.toml", "/nowhere/node.toml"),
    ],
)
def test_a_node_s_configuration_that_cannot_work_is_a_line(text, said, capsys):
    assert supernode(["--node-config", text]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and said in told and told.count("\n") == 1
