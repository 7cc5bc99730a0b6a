"""Does somebody call from where a peer is said to be? Addresses are compared as numbers, names are resolved anew."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Elsewhere:
    """It does not, in words; or that cannot be said now, because a name does not resolve."""

    words: str
    sure: bool


def number_of(text: str) -> Address | None:
    """An address, an IPv4 one also where a socket writes it as IPv6 (RFC 4291 2.5.5.2); None: a name."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def resolved(name: str) -> frozenset[Address]:
    """The addresses of a host name; none when it does not resolve now."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(address for *_, place in found if (address := number_of(str(place[0]))) is not None)


def why_elsewhere(
    address: str, hosts: Collection[str], resolve: Callable[[str], frozenset[Address]] = resolved
) -> Elsewhere | None:
    """None: the address is one of these hosts, which are names or addresses."""
    here = number_of(address)
    names = [host for host in hosts if number_of(host) is None]
    if here is not None and here in {number_of(host) for host in hosts if host not in names}:
        return None
    unknown = []
    for name in names:
        found = resolve(name)
        if here is not None and here in found:
            return None
        if not found:
            unknown.append(name)
    words = f"from {address}, not from {' or '.join(hosts)}"
    if unknown:
        words += f"; {' and '.join(unknown)} cannot be resolved now"
    return Elsewhere(words, sure=not unknown)
