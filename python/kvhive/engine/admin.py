"""A cluster's admin API, as an engine asks it."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from typing import Any

from kvhive import MisuseError, RefusedError, UnreachableError
from kvhive.access import Tls


def ask(
    address: str | None, token: bytes, tls: Tls | None, path: str, method: str = "GET", body: dict[str, Any] | None = None
) -> bytes:
    """Asks it, and returns what it answers.

    :raises kvhive.RefusedError: when it says no.
    :raises kvhive.UnreachableError: when it does not answer.
    """
    if address is None:
        raise MisuseError("admin_address is None: the cluster's admin API is unknown; say admin_address in the configuration")
    scheme = "http" if tls is None else "https"
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{scheme}://{address}{path}", content, method=method)
    request.add_header("Content-Type", "application/json")
    request.add_header("Authorization", f"Bearer {token.decode()}")
    # Straight there: the token is for nobody on the way.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if tls is not None:
        context = ssl.create_default_context(cafile=os.fspath(tls.authorities))
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=30) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise RefusedError(f"{method} {path} at {address}: {error.read().decode(errors='replace')}") from error
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{method} {path} at {address}, which is to be the admin API: {error}") from error
