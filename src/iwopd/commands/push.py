"""`iwopd push`: a run's final model to the Hugging Face hub. Nothing else in the program uploads anything."""

import json
import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token

from iwopd.config import Config, PushConfig
from iwopd.errors import ConfigError, ModelError
from iwopd.preflight.models import check_model_folder
from iwopd.runs.card import MODEL
from iwopd.runs.console import Display
from iwopd.runs.manifest import MANIFEST, verify
from iwopd.runs.public import hub_name

CARD = "README.md"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def run(config: Config) -> None:
    """Upload `push.run`'s final/, or `push.folder`, to `push.repo`, in one commit.

    Raises:
        ConfigError: the repository or the folder is not named, or nobody is logged in.
        ModelError: the folder is no whole model, or the hub does not take it.
    """
    push = config.push
    repo, folder = _repository(push), _folder(push)
    token = get_token()
    if token is None:
        raise ConfigError(f"push.repo={repo}: not logged in to the hub; {LOG_IN}")
    with Display() as display:
        files = _files(folder)
        size = sum(file.stat().st_size for file in files) / 2**20
        display.line(f"uploading {len(files)} files, {size:,.1f} MiB, from {folder} to {repo}")
        try:
            url = _upload(push, repo, folder, files, token)
        except Exception as error:  # the hub's, its network library's and the disk's errors, each of its own type
            # Not chained: a traceback could show the request, and with it the token.
            raise ModelError(f"push.repo={repo}: {_reason(error).replace(token, '…')}") from None
        display.line(f"{repo} is at {url}")


def _repository(push: PushConfig) -> str:
    if push.repo is None:
        raise ConfigError("push.repo=null: nothing is uploaded unless it is said where to; set push.repo=USER/NAME")
    if "/" not in push.repo or not hub_name(push.repo):
        raise ConfigError(f"push.repo={push.repo}: not a repository's name; write push.repo=USER/NAME")
    return push.repo


def _folder(push: PushConfig) -> Path:
    if (push.run is None) == (push.folder is None):
        given = "neither is" if push.run is None else "both are"
        raise ConfigError(f"push.run={push.run} push.folder={push.folder}: {given} set; name one of them")
    if push.folder is not None:
        key, folder = "push.folder", Path(push.folder)
    else:
        key, folder = "push.run", Path(str(push.run)) / "final"
        if folder.parent.is_dir() and not folder.is_dir():
            raise ModelError(f"{key}={push.run}: has no final/ yet; finish the run with run.resume=true")
    check_model_folder(key, folder)
    return folder


def _files(folder: Path) -> list[Path]:
    """Those that the manifest lists, as they were written (the card may have been edited); without a manifest, all but
    hidden ones. A link is never followed: what it points to was not meant to be published.

    Raises:
        ModelError: a file is a link, is missing, or is not what the manifest says.
    """
    found = [entry for entry in sorted(folder.rglob("*")) if entry.is_symlink() or entry.is_file()]
    names = [str(entry.relative_to(folder)) for entry in found if not _hidden(entry.relative_to(folder))]
    if (folder / MANIFEST).exists():
        problem = verify(folder, except_for=(CARD,))
        if problem:
            raise ModelError(f"{folder}: {problem}; nothing was uploaded: restore it, or make final/ again")
        names = list(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    names = [name for name in names if name != MANIFEST]
    files = [folder / name for name in names]
    for name, file in zip(names, files, strict=True):
        if file.resolve() != folder.resolve() / name or Path(name).is_absolute():
            raise ModelError(
                f"{file}: is a link, and what it points to is not uploaded; put a copy in its place, or remove it"
            )
    return files


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _upload(push: PushConfig, repo: str, folder: Path, files: list[Path], token: str) -> str:
    """The address of the repository, with all files in it."""
    api = HfApi(token=token)
    api.whoami()  # a wrong token fails before anything is made
    url = api.create_repo(repo, private=push.private, exist_ok=True)
    if push.revision is not None:
        api.create_branch(repo, branch=push.revision, exist_ok=True)
    operations = [CommitOperationAdd(str(file.relative_to(folder)), _content(file, folder, repo)) for file in files]
    api.create_commit(repo, operations, commit_message=push.message, revision=push.revision)
    return str(url)


def _content(file: Path, folder: Path, repo: str) -> str | bytes:
    """The file itself; of the card, a copy whose examples name the repository."""
    if file != folder / CARD:
        return str(file)
    return file.read_text(encoding="utf-8").replace(f'"{MODEL}"', f'"{repo}"').encode()


def _reason(error: Exception) -> str:
    """What went wrong, and what to do about it; in one line."""
    while getattr(error, "response", None) is None and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the hub's library wraps what a single file met with
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"the hub does not know the token; {LOG_IN}"
    if status == 403:
        return f"the hub does not let you write there; choose a repository of yours, or {LOG_IN}"
    said = re.sub(r"\s+", " ", getattr(error, "server_message", None) or str(error)).strip() or type(error).__name__
    if status is not None:
        return f"the hub answers {status} ({said[:200]}); try again later, or check push.repo and push.revision"
    return f"the upload did not succeed ({said[:200]}); check the network and HF_HUB_OFFLINE, then try again"
