"""What the adapters of all engines are told in the same words: where their cluster is, whose blocks they share, how long they wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypedDict

from kvhive import addresses
from kvhive.access import Tls, local, names_a_file
from kvhive.errors import MisuseError

__all__ = ["Cluster", "Reach", "Told", "reach"]

KEYS = frozenset({"coordinators", "token", "token_file", "tls", "directory"})
"""What says where a cluster is."""


class Reach(NamedTuple):
    """Where a cluster is, and how it is spoken to."""

    coordinators: tuple[str, ...]
    token: str
    tls: Tls | None


class Cluster(TypedDict):
    """Whose blocks an adapter shares, as the native halves take it."""

    coordinators: tuple[str, ...]
    token: bytes
    tls: Tls | None
    tenant: str


@dataclass(frozen=True)
class Told:
    """What every adapter is told. Each adds its own, with bounds of whole numbers."""

    coordinators: tuple[str, ...]
    """Where the cluster's coordinators are. Without, it is the cluster that `kvhive up` runs on this machine."""
    token: str
    """The cluster's token, or the file that it is in: `token` or `token_file`."""
    tls: Tls | None = None
    """Three files, where the cluster speaks TLS: `{"certificate": …, "key": …, "authorities": …}`."""
    tenant: str = "default"
    """Whose blocks they are. It must exist."""

    WHERE: ClassVar[str]
    """What an operator writes it into."""
    BOUNDS: ClassVar[Mapping[str, tuple[int, int]]]
    """The least and the most of each whole number."""

    @classmethod
    def of(cls, given: Mapping[str, Any], others: frozenset[str] = frozenset()) -> Self:
        """Reads what an operator wrote. Everything wrong is refused, with its name and what is allowed.

        :param others: what is said there too, and is not this adapter's.
        """
        where = cls.WHERE
        known = KEYS | {field.name for field in fields(cls)} | others
        if unknown := sorted(given.keys() - known):
            raise MisuseError(f"{where} {', '.join(unknown)}: allowed is {', '.join(sorted(known))}")
        rest = {name: value for name, value in given.items() if name not in others}
        told = cls(*reach(where, rest), **rest)
        for name, (least, most) in cls.BOUNDS.items():
            value = getattr(told, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise MisuseError(f"{where} {name}={value!r}: allowed is {least} to {most}")
        named(where, "tenant", told.tenant)
        return told

    @property
    def cluster(self) -> Cluster:
        """Whose blocks it shares."""
        return {"coordinators": self.coordinators, "token": self.token.encode(), "tls": self.tls, "tenant": self.tenant}


@dataclass(frozen=True)
class ToldWeights(Told):
    """What an adapter is told whose engine has weights."""

    weights: str | None = None
    """A name for the weights, where the model's own does not say them: two weights of one name would share blocks."""

    @classmethod
    def of(cls, given: Mapping[str, Any], others: frozenset[str] = frozenset()) -> Self:
        told = super().of(given, others)
        if told.weights is not None:
            named(cls.WHERE, "weights", told.weights)
        return told


def reach(where: str, given: dict[str, Any]) -> Reach:
    """Takes out of what an operator wrote where the cluster is; that of `kvhive up` on this machine, if nothing is said."""
    coordinators, token, tls = given.pop("coordinators", None), given.pop("token", None), given.pop("tls", None)
    token_file, directory = given.pop("token_file", None), given.pop("directory", None)
    if coordinators is None:
        if token is not None or token_file is not None or tls is not None:
            raise MisuseError(f"{where} token, token_file, tls: they go with coordinators")
        listed, token, files = local(directory)
    else:
        if directory is not None:
            raise MisuseError(f"{where} directory, coordinators: both say which cluster it is; allowed is one of them")
        listed = [one.strip() for one in (coordinators.split(",") if isinstance(coordinators, str) else coordinators)]
        for one in listed:
            try:
                addresses.split(one)
            except ValueError:
                raise MisuseError(f"{where} coordinators={one!r}: allowed is host:port, as in 10.0.0.1:7801") from None
        if (token is None) == (token_file is None):
            raise MisuseError(f"{where} token, token_file: one of them goes with coordinators")
        if token is not None and names_a_file(str(token)):
            raise MisuseError(f"{where} token={token!r}: it is a file; allowed is token_file={token!r}")
        try:
            token = Path(token_file).read_text() if token is None else str(token)
        except OSError as error:
            raise MisuseError(f"{where} token_file={token_file!r}: it cannot be read: {error.strerror}") from error
        try:
            files = None if tls is None else Tls(**tls)
        except TypeError:
            raise MisuseError(f'{where} tls={tls!r}: allowed is {{"certificate": …, "key": …, "authorities": …}}') from None
    if not token.strip():
        raise MisuseError(f"{where} token: it is empty")
    return Reach(tuple(listed), token.strip(), files)


def named(where: str, name: str, value: Any) -> None:
    """Refuses what is no name."""
    if not (isinstance(value, str) and value):
        raise MisuseError(f"{where} {name}={value!r}: allowed is a name")
