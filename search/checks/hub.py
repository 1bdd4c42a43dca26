"""The Hugging Face Hub, tried once: where there is no network, a check says so at once and not after a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NO_WAY = frozenset({"ConnectError", "ConnectTimeout", "ProxyError"})
"""What HTTP libraries call it where no connection comes about: huggingface_hub has changed its library before."""


@contextmanager
def tried_once() -> Iterator[None]:
    """Within the context, the first request to the Hub that finds no connection is the last one: it and all others fail
    at once, as under HF_HUB_OFFLINE. What asked falls back to its cache, or says what is missing.

    The Hub's own library would wait and try again, five times for every data set, and tell each time. Nothing changes
    where the network is there, or where HF_HUB_OFFLINE is set: then nothing is ever asked.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        yield
        return
    client: Any = get_session()
    own = vars(client).get("send")
    send, failed = client.send, list[str]()

    def once(*given: Any, **named: Any) -> Any:
        if not failed:
            try:
                return send(*given, **named)
            except Exception as error:
                if not _NO_WAY & {kind.__name__ for kind in type(error).__mro__}:
                    raise
                failed.append(f"no connection to the Hub: {error}")
        raise OfflineModeIsEnabled(failed[0])  # an error for which the library looks into its cache, and asks no more

    client.send = once
    try:
        yield
    finally:
        if own is None:
            del client.send
        else:
            client.send = own
