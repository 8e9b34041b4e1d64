"""Which hosts and addresses are of the public internet, and which of them an operator has allowed.

`ipaddress.is_global` is not enough: up to Python 3.12 it lets through 192.0.0.0/24, multicast and the IPv6 forms of
private IPv4 addresses (NAT64, 6to4), so the ranges are written down here (IANA special-purpose registries).
"""

from __future__ import annotations

import ipaddress
import re

from rayml.errors import UsageError

# Names that only mean something inside a network (RFC 6761, 6762, 8375; Kubernetes' cluster domain).
_INTERNAL_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home.arpa", "svc", "cluster.local", "test")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo, ORCHID, benchmarks and other protocol assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4, which carries an IPv4 address
        "3fff::/20",
    )
)
# IPv6 is handed out from here alone; mapped IPv4, NAT64, unique local, link-local and multicast lie outside.
_IPV6_PUBLIC = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """Whether an IP address, in any spelling that `ipaddress` takes, is one of the public internet."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and (parsed.scope_id is not None or parsed not in _IPV6_PUBLIC):
        return False
    return not any(parsed in network for network in _NOT_PUBLIC)


def is_public_name(host: str) -> bool:
    """Whether a host, in lower case, could be one of the public internet: a name with a dot or a canonical address.

    Spellings by which resolvers turn numbers into addresses (`127.1`, `0x7f.1`, `2130706433`) are no names: a last
    label that is a number makes the whole an address (WHATWG URL, "ends in a number"), which has one spelling here.
    """
    if ":" in host:
        return is_public(host)
    labels = host.split(".")
    if labels[-1][:1].isdigit():
        return is_public(host)
    if len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        return False
    return not any(host == name or host.endswith(f".{name}") for name in _INTERNAL_NAMES)


def check_host_pattern(pattern: str) -> str:
    """An allowed host as it is compared: in lower case.

    Raises:
        UsageError: it is neither a public host nor `*` or `*.` and one.
    """
    lowered = pattern.strip().lower()
    if lowered != "*" and not is_public_name(lowered.removeprefix("*.")):
        raise UsageError(
            f"allow-url-host must be a public host, *.HOST or *. Received: {pattern[:80]!r}",
            "give a name such as images.example.com, without http:// and path",
        )
    return lowered


def matches(host: str, pattern: str) -> bool:
    """Whether a host in lower case is one that a checked pattern allows."""
    return pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))
