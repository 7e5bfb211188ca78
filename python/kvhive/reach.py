"""What the adapters of all engines are told in the same words: where their cluster is, whose blocks they share, how long they wait."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kvhive.access import Tls, local
from kvhive.errors import MisuseError

__all__ = ["KEYS", "Reach", "is_whole", "names", "reach", "refuse_unknown"]

KEYS = frozenset({"coordinators", "token", "token_file", "tls", "directory"})
"""What says where a cluster is."""


class Reach(NamedTuple):
    """Where a cluster is, and how it is spoken to."""

    coordinators: tuple[str, ...]
    token: str
    tls: Tls | None


def reach(where: str, given: dict[str, Any]) -> Reach:
    """Takes out of what an operator wrote where the cluster is; that of `kvhive up` on this machine, if nothing is said."""
    coordinators, token, tls = given.pop("coordinators", None), given.pop("token", None), given.pop("tls", None)
    token_file, directory = given.pop("token_file", None), given.pop("directory", None)
    if coordinators is None:
        if token is not None or token_file is not None or tls is not None:
            raise MisuseError(f"{where} token, token_file, tls: they go with coordinators")
        addresses, token, files = local(directory)
    else:
        if directory is not None:
            raise MisuseError(f"{where} directory: it says where coordinators are, as coordinators does")
        addresses = coordinators.split(",") if isinstance(coordinators, str) else list(coordinators)
        if (token is None) == (token_file is None):
            raise MisuseError(f"{where} token, token_file: one of them goes with coordinators")
        token = Path(token_file).read_text() if token is None else str(token)
        files = None if tls is None else Tls(**tls)
    return Reach(tuple(address.strip() for address in addresses), token.strip(), files)


def refuse_unknown(where: str, given: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuses what nobody reads."""
    if unknown := sorted(given.keys() - known):
        raise MisuseError(f"{where} {', '.join(unknown)}: allowed is {', '.join(sorted(known))}")


def is_whole(where: str, name: str, value: Any, least: int, most: int) -> None:
    """Refuses what is no whole number in these bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise MisuseError(f"{where} {name}={value!r}: allowed is {least} to {most}")


def names(where: str, name: str, value: Any, *, optional: bool = False) -> None:
    """Refuses what is no name."""
    if not (isinstance(value, str) and value) and not (optional and value is None):
        raise MisuseError(f"{where} {name}={value!r}: allowed is a name")
