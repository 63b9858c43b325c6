"""What `iwopd push` uploads, and where to."""

from dataclasses import dataclass

from iwopd.setting import setting


@dataclass(kw_only=True, slots=True)
class PushConfig:
    """A model folder and a repository on the hub. Only the verb `push` uploads, and only where `repo` is set."""

    repo: str | None = setting(None, "repository on the hub, USER/NAME; made if it does not exist")
    run: str | None = setting(None, "training run whose final/ is uploaded", path=True)
    folder: str | None = setting(None, "a model folder to upload, in place of a run's final/", path=True)
    private: bool = setting(True, "a repository that is made is private; one that exists stays as it is")
    revision: str | None = setting(None, "branch, made if it does not exist; null for the main one")
    message: str = setting("Upload a student of iwopd", "message of the commit")
