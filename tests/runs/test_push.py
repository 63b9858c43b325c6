"""`iwopd push` against a hub on loopback: what arrives there, and who never sees the token."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support.hub import Hub
from support.running import SMALL, iwopd, process, refused

from iwopd.runs.files import sha256

# Of huggingface_hub's own uploads.
pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")]
TOKEN = "hf_thisIsTheTestsOwnToken"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, smoke_models: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert iwopd("train", *SMALL, "run.steps=1", "eval.every=0", f"run.dir={folder}") == 0
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that huggingface_hub speaks to, with a token it knows."""
    with Hub(TOKEN) as made:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


def assert_token_kept(hub: Hub, *texts: str) -> None:
    """It stands in the header it belongs to, and nowhere else."""
    for asked in hub.requests:
        assert TOKEN not in asked.path
        assert TOKEN.encode() not in asked.body
        assert [name for name, value in asked.headers.items() if TOKEN in value] in (["authorization"], [])
    assert all(TOKEN not in text for text in texts)


def test_all_files_arrive_in_one_commit(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert iwopd("push", f"push.run={run}", "push.repo=me/tiny", "push.message=first") == 0
    said = capsys.readouterr()
    sent = {file.name for file in (run / "final").iterdir()} - {"manifest.json"}
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= sent
    assert hub.files.keys() == sent
    for name in sent - {"README.md"}:
        assert hub.files[name] == (run / "final" / name).read_bytes()
    assert hub.large, "weights go the way of large files"
    assert hub.message == "first"
    assert hub.repositories["me/tiny"]["visibility"] == "private"
    assert "me/tiny is at" in said.out
    assert_token_kept(hub, said.out, said.err)


def test_the_cards_examples_name_the_repository(run: Path, hub: Hub) -> None:
    assert iwopd("push", f"push.folder={run / 'final'}", "push.repo=me/tiny", "push.private=false") == 0
    card = ModelCard(hub.files["README.md"].decode())
    assert 'path = "me/tiny"' in card.text
    assert 'LLM("me/tiny")' in card.text
    assert hub.repositories["me/tiny"]["visibility"] == "public"
    assert 'path = "MODEL"' in (run / "final" / "README.md").read_text(), "the run's own is as it was"


def test_a_repository_that_exists_gets_a_commit_on_a_branch(run: Path, hub: Hub) -> None:
    hub.repositories["me/tiny"] = None
    assert iwopd("push", f"push.run={run}", "push.repo=me/tiny", "push.revision=trial") == 0
    assert "model.safetensors" in hub.files
    paths = [asked.path for asked in hub.requests]
    assert "/api/models/me/tiny/branch/trial" in paths
    assert "/api/models/me/tiny/commit/trial" in paths


def test_as_a_program_with_hf_endpoint(run: Path, hub: Hub) -> None:
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    done = process("push", f"push.run={run}", "push.repo=me/tiny", **settings)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.files
    assert_token_kept(hub, done.stdout, done.stderr)


def test_what_is_not_in_the_manifest_stays_here(run: Path, hub: Hub, tmp_path: Path) -> None:
    folder, secret = tmp_path / "final", tmp_path / "id_ed25519"
    shutil.copytree(run / "final", folder)
    secret.write_text("PRIVATE KEY")
    (folder / "notes.txt").write_text("mine")
    (folder / "key.txt").symlink_to(secret)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nEdited.\n")
    assert iwopd("push", f"push.folder={folder}", "push.repo=me/tiny") == 0
    assert hub.files.keys() == {file.name for file in (run / "final").iterdir()} - {"manifest.json"}
    assert b"Edited." in hub.files["README.md"]


# ---------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("manifest", [True, False])
def test_a_link_is_not_followed(
    manifest: bool, run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, kept = tmp_path / "final", tmp_path / "kept.json"
    shutil.copytree(run / "final", folder)
    (folder / "generation_config.json").rename(kept)
    (folder / "generation_config.json").symlink_to(kept)
    if not manifest:
        (folder / "manifest.json").unlink()
    said = refused(capsys, "push", f"push.folder={folder}", "push.repo=me/tiny")
    assert "generation_config.json: is a link, and what it points to is not uploaded" in said
    assert hub.files == {}


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_manifest_reaches_no_other_folder(
    name: str, run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "final"
    shutil.copytree(run / "final", folder)
    (tmp_path / "secret").write_text("x")
    held = json.loads((folder / "manifest.json").read_text())
    file = folder / name
    held["files"][name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    (folder / "manifest.json").write_text(json.dumps(held))
    assert "is not uploaded" in refused(capsys, "push", f"push.folder={folder}", "push.repo=me/tiny")
    assert hub.files == {}


def test_weights_that_changed_since_are_refused(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "final", tmp_path / "final")
    weights = tmp_path / "final" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = refused(capsys, "push", f"push.folder={tmp_path / 'final'}", "push.repo=me/tiny")
    assert "model.safetensors has other contents than the manifest says; nothing was uploaded" in said
    assert hub.files == {}


def test_nothing_is_uploaded_unless_it_is_said_where_to(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "push.repo=null: nothing is uploaded" in refused(capsys, "push", f"push.run={run}")
    assert "not a repository's name" in refused(capsys, "push", f"push.run={run}", "push.repo=tiny")
    assert "neither is set" in refused(capsys, "push", "push.repo=me/tiny")
    both = (f"push.run={run}", f"push.folder={run}")
    assert "both are set" in refused(capsys, "push", *both, "push.repo=me/tiny")
    assert hub.requests == []


def test_a_folder_that_is_no_whole_model_is_refused(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished, ignore=shutil.ignore_patterns("final"))
    said = refused(capsys, "push", f"push.run={unfinished}", "push.repo=me/tiny")
    assert "has no final/ yet" in said
    broken = tmp_path / "broken"
    shutil.copytree(run / "final", broken)
    (broken / "model.safetensors").unlink()
    assert "no weights" in refused(capsys, "push", f"push.folder={broken}", "push.repo=me/tiny")
    assert "does not exist" in refused(capsys, "push", f"push.run={tmp_path / 'none'}", "push.repo=me/tiny")
    assert hub.requests == []


def test_who_is_not_logged_in_is_reported_how_to(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    said = refused(capsys, "push", f"push.run={run}", "push.repo=me/tiny")
    assert "not logged in to the hub; log in with `hf auth login`, or set HF_TOKEN" in said
    assert hub.requests == []


def test_a_token_the_hub_does_not_know(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.token, wrong = "another", TOKEN
    said = refused(capsys, "push", f"push.run={run}", "push.repo=me/tiny")
    assert "the hub does not know the token" in said
    assert wrong not in said
    assert hub.repositories == {}


def test_a_repository_of_others(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.forbidden = True
    assert "does not let you write there" in refused(capsys, "push", f"push.run={run}", "push.repo=them/tiny")


def test_without_a_network(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    said = refused(capsys, "push", f"push.run={run}", "push.repo=me/tiny")
    assert "the upload did not succeed" in said
    assert "check the network" in said
    assert TOKEN not in said
