"""Whether the hub can be reached, found out once: its own client asks many times over before it gives up."""

import time

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

_CONNECT = 5.0  # seconds for a connection; the answer itself may take as long as HF_HUB_ETAG_TIMEOUT says
_PATIENCE = 2.0  # seconds in which a refusal at once may be a passing trouble


def hub_trouble(name: str) -> str | None:
    """Say why the hub cannot be asked for a model; None if it answers, whatever it says.

    The request goes the way of all others: HF_ENDPOINT, proxies and certificates are those of huggingface_hub.

    Args:
        name: A hub id.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to ask the hub"
    url = f"{constants.ENDPOINT}/{name}/resolve/main/config.json"
    limit, began = constants.HF_HUB_ETAG_TIMEOUT, time.monotonic()
    while True:
        try:
            get_session().head(url, timeout=(min(_CONNECT, limit), limit, limit, limit))
            return None
        except Exception as error:  # httpx's or httpx2's, by the release of huggingface_hub
            if type(error).__name__ == "ReadTimeout":
                return None  # it is there but slow, and its client repeats what took too long
            if time.monotonic() - began >= _PATIENCE:
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                return f"{constants.ENDPOINT} cannot be reached ({reason})"
        time.sleep(_PATIENCE / 2)


def cached_snapshot(name: str, revision: str | None) -> str | None:
    """The folder of the hub's cache that holds a model, without asking the hub; None if there is none.

    Args:
        name: A hub id.
        revision: Branch, tag or commit; the default branch if None.
    """
    try:
        return snapshot_download(name, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, ValueError, OSError):  # a name that is no hub id is refused elsewhere
        return None
