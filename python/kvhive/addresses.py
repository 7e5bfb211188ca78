"""Addresses, as one host sees them and as others do."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

_NO_HOST = frozenset("/@?# \t\r\n")
"""What a name or an address of a host has not: with it, it is a URL."""

__all__ = ["split", "unreachable"]


def split(address: str) -> tuple[str, int]:
    """Returns host and port of ``host:port``, brackets of an IPv6 address taken off.

    :raises ValueError: when it is none.
    """
    host, colon, port = address.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not host or _NO_HOST.intersection(host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is no host:port")
    return host, int(port)


def unreachable(coordinators: Sequence[str], listen: str, advertise: str) -> tuple[str, str] | None:
    """Says why others of a cluster cannot reach a node: ``listen`` or ``advertise``, and what is allowed instead. None where they can.

    What is no address is for others to refuse.
    """
    try:
        bound, port = split(listen)
        named = split(advertise)[0] if advertise else bound
        hosts = {address: split(address)[0] for address in coordinators}
    except ValueError:
        return None
    if _is_every(named):
        field = "advertise" if advertise else "listen"
        return field, "others cannot dial every address; one of this host goes into advertise, as in 10.0.0.5:7810"
    if advertise and port == 0:
        return "listen", "a port of its own is needed where advertise names one, as in 0.0.0.0:7810"
    far = next((address for address, host in hosts.items() if not _is_loopback(host)), None)
    if far is None:
        return None
    if _is_loopback(named):
        field = "advertise" if advertise else "listen"
        return field, f"{far} is another host, which would dial itself; an address of this host is allowed, as in 10.0.0.5:7810"
    if _is_loopback(bound):
        return "listen", f"nobody else reaches it by {advertise}; that host's address or 0.0.0.0 is allowed"
    return None


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_every(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
