"""How a client reaches its cluster, what it may be told, and which objects hold blocks."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypedDict, Union, Unpack

from kvhive import addresses
from kvhive._native import Connection, Operation
from kvhive.errors import MisuseError, OutOfRangeError, WrongTypeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Memory: TypeAlias = Union[Buffer, "DlpackTensor"]
    """Anything with the buffer protocol, or a tensor in the host's memory that speaks DLPack."""
    Buffers: TypeAlias = Memory | Sequence[Memory]
    """One piece of memory, or several, each with a whole number of blocks, in order."""

StrPath = str | os.PathLike[str]


class DlpackTensor(Protocol):
    """A tensor of any library that speaks DLPack: torch, jax, cupy, numpy."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, Any]: ...


class Tls(NamedTuple):
    """What a process shows of itself, and whom it trusts: paths of PEM files, which are read anew when they change."""

    certificate: StrPath
    key: StrPath
    authorities: StrPath


class Pin(NamedTuple):
    """A pinned prefix."""

    name: str
    tenant: str
    blocks: int
    until: float | None
    """When it ends, in seconds since 1970; None for one that stands until it is unpinned."""
    reason: str


class Options(TypedDict, total=False):
    """What may be said of a client beside its cluster; times in seconds."""

    tls: Tls | None
    """Its certificate and whom it trusts; without, it speaks without TLS."""
    connect_timeout: float
    """The longest that a dial and its handshake may take. As usual 1."""
    request_timeout: float
    """The longest that a call may take: about what recomputing its blocks would. As usual 5."""
    connections_per_member: int
    """Connections kept to each node. As usual 4."""
    hold: float
    """How long matched blocks are kept from eviction, so that they can be fetched. As usual 2."""
    raw_reads: bool
    """Whether nodes decode what is stored encoded, so that nothing but raw blocks arrives. As usual not."""
    gpu_stages: bool
    """Whether blocks in a GPU's memory go to GPUs of nodes on this host, and come from them, without the host's memory. As usual they do."""
    near: str
    """The name of a node that is asked first for what its devices hold as replicas, as the one inside this process. As usual none is."""


def whole(value: Any) -> int | None:
    """Returns a whole number, of Python's type or another library's; None for anything else, and for True and False."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _is_seconds(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


_KINDS: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("connect_timeout", _is_seconds, "a number of seconds"),
    ("request_timeout", _is_seconds, "a number of seconds"),
    ("hold", _is_seconds, "a number of seconds"),
    ("connections_per_member", lambda value: whole(value) is not None, "a whole number"),
    ("raw_reads", _is_bool, "True or False"),
    ("gpu_stages", _is_bool, "True or False"),
    ("near", lambda value: value is None or isinstance(value, str), "the name of a node, or None"),
)
_MOST_CONNECTIONS = 1024


def connect(
    coordinators: str | Sequence[str], token: str | bytes, **options: Unpack[Options]
) -> Operation[Connection]:
    """Makes the operation that connects."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise WrongTypeError(f"unknown options {sorted(unknown)}: allowed is {', '.join(Options.__annotations__)}")
    if isinstance(coordinators, str):
        coordinators = [address.strip() for address in coordinators.split(",")]
    for address in coordinators:
        try:
            addresses.split(address)
        except ValueError:
            raise MisuseError(f"coordinator {address!r}: allowed is host:port, as in 10.0.0.1:7801") from None
    for option, is_allowed, allowed in _KINDS:
        given = options.get(option)
        if option in options and not is_allowed(given):
            raise WrongTypeError(f"{option} {given!r}: allowed is {allowed}")
    connections = options.get("connections_per_member", 4)
    if not 1 <= connections <= _MOST_CONNECTIONS:
        raise OutOfRangeError(f"connections_per_member {connections}: allowed is a whole number from 1 to {_MOST_CONNECTIONS}")
    return Connection.connect(
        list(coordinators),
        secret(token),
        options.get("tls"),
        options.get("connect_timeout", 1.0),
        options.get("request_timeout", 5.0),
        connections,
        options.get("hold", 2.0),
        options.get("raw_reads", False),
        options.get("gpu_stages", True),
        options.get("near"),
    )


def secret(token: str | bytes) -> bytes:
    """Returns a token as it is shown, without what ends the line of a file with it.

    :raises kvhive.MisuseError: when nothing is left.
    """
    if not isinstance(token, (str, bytes)):
        raise WrongTypeError(f"token is of {type(token).__name__}: allowed is the content of the cluster's token file, as str or bytes")
    if names_a_file(token):
        raise MisuseError(f"token {token!r} is a file: give what is in it, as open({token!r}).read()")
    kept = token.strip().encode() if isinstance(token, str) else token.removesuffix(b"\n").removesuffix(b"\r")
    if not kept:
        raise MisuseError("the token is empty: give the content of the cluster's token file")
    return kept


def names_a_file(token: str | bytes) -> bool:
    """Says whether a token is the path of a file, given in place of what is in it: as a token it would only be a wrong one."""
    path = os.fsdecode(token).strip()
    return os.sep in path and os.path.isfile(path)


def local(directory: StrPath | None) -> tuple[list[str], str, Tls | None]:
    """Reads where the cluster of `kvhive up` on this machine is, its token, and what its clients show."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if state.startswith("/") else Path(os.environ.get("HOME", "/tmp")) / ".local/state"
    folder = Path(directory or os.environ.get("KVHIVE_DIR") or home / "kvhive")
    try:
        running = json.loads((folder / "running.json").read_text())
        token = (folder / "token").read_text()
    except FileNotFoundError as error:
        raise MisuseError(f"no local cluster runs in {folder}: start one with `kvhive up`") from error
    authority = folder / "tls" / "authority.pem"
    tls = Tls(folder / "tls" / "client.pem", folder / "tls" / "client.key", authority) if authority.is_file() else None
    return [str(address) for address in running["coordinators"]], token, tls
