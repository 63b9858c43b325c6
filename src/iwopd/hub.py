"""Is a model or dataset on the hub? Asked once and quickly, so that a wrong name or a machine without network is told
in one line instead of after minutes of retries."""

import logging
import os
from typing import Literal

from iwopd.errors import ModelError

TIMEOUT = 10.0  # seconds


def check_on_hub(key: str, name: str, kind: Literal["models", "datasets"] = "models") -> None:
    """Raise ModelError unless the hub gives `name`, or what an earlier download left may serve.

    Without a network, everything after this works offline, from the hub's cache.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    if constants.HF_HUB_OFFLINE:
        status, why = None, "offline mode is on (HF_HUB_OFFLINE)"
    else:
        address = f"{constants.ENDPOINT}/api/{kind}/{name}"
        try:
            status, why = get_session().head(address, headers=build_hf_headers(), timeout=TIMEOUT).status_code, ""
        except Exception as error:  # every network library under it has its own
            status, why = None, f"the hub cannot be reached ({str(error).splitlines()[0] if str(error) else error!r})"
    said = f"{key}={name}: no folder or file of that name here, and"
    if status in (401, 403):
        raise ModelError(
            f"{said} the hub says it is gated, private or absent; log in with `hf auth login`, or check the name"
        )
    if status == 404:
        raise ModelError(f"{said} the hub has none; check the name")
    if status is not None:
        return
    cache = os.path.join(constants.HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}")
    if not os.path.isdir(cache):
        raise ModelError(f"{said} {why}; give a local path, or download it where there is a network")
    logging.getLogger(__name__).warning("%s: %s; using what was downloaded before", name, why)
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True
