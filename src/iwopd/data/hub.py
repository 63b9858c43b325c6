"""Is a model or dataset on the hub, and may it be read? Asked once and quickly, so that a wrong name, missing rights
or a machine without network is one line, not after minutes of retries. A token is never shown."""

import logging
import os
from typing import Literal

from huggingface_hub import constants, errors
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from iwopd.errors import ModelError, first_line
from iwopd.machine import runtime

TIMEOUT = 10.0  # seconds


def check_on_hub(
    key: str, name: str, kind: Literal["models", "datasets"] = "models", revision: str | None = None
) -> None:
    """Raise ModelError unless the hub lets `name` be read, or what an earlier download left may serve.

    Without a network, everything after this works offline, from the hub's cache.

    Args:
        key: the setting that names it, for messages.
        revision: branch, tag or commit that must be there.
    """
    why = "offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else None
    if why is None:
        refusal, why = _ask(name, kind, revision)
        if refusal:
            raise ModelError(f"{key}={name}: {refusal}")
    if why is None:
        return
    cache = os.path.join(constants.HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}")
    if not os.path.isdir(cache):
        raise ModelError(
            f"{key}={name}: no folder or file of that name here, and {why}; give a local path, or download it where "
            "there is a network"
        )
    logging.getLogger(__name__).warning("%s: %s; using what was downloaded before", name, why)
    runtime.go_offline()


def _ask(name: str, kind: str, revision: str | None) -> tuple[str | None, str | None]:
    """Why the hub refuses, and why it cannot be asked; None where it does not, and where it can."""
    repository = f"{constants.ENDPOINT}/api/{kind}/{name}"
    addresses = [f"{repository}/auth-check", *([f"{repository}/revision/{revision}"] if revision else [])]
    try:
        for address in addresses:
            hf_raise_for_status(get_session().get(address, headers=build_hf_headers(), timeout=TIMEOUT))
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'datasets' else ''}{name}"
        return f"is gated: accept its terms on {page}, then {LOG_IN}", None
    except errors.RevisionNotFoundError:
        return f"is on the hub, but has no revision {revision}; name a branch, tag or commit of it", None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        token_refused = "Invalid credentials" in error.response.headers.get("X-Error-Message", "")
        if status == 404 or (status == 401 and not token_refused):  # whoever is not logged in gets 401 for what is not
            return (
                "no folder or file of that name here, and none on the hub that may be read; check the name, or if it "
                f"is private, {LOG_IN}",
                None,
            )
        if status in (401, 403):
            return f"the hub refuses the token it is given (status {status}); {LOG_IN}", None
        return None, f"the hub answers with status {status}"
    except Exception as error:  # every network library under it has its own
        return None, f"the hub cannot be reached ({first_line(error)})"
    return None, None


LOG_IN = "log in with `hf auth login` or set HF_TOKEN, as an account that may read it"
