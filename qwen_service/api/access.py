"""Who is asking: the peer, or, behind proxies that the configuration trusts, whom the nearest of them saw."""

import ipaddress
from collections.abc import Iterable

from qwen_service.api.asgi import Scope, header

UNIX = "unix"  # a client on a unix socket
FORWARDING_HEADERS = (b"x-forwarded-for", b"forwarded", b"x-real-ip")


class ClientAddress:
    """`trusted_proxies` are addresses or networks; X-Forwarded-For of anybody else is ignored."""

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        self._trusted = [ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies]

    def __call__(self, scope: Scope) -> str:
        peer = _peer(scope)
        if not self._trusts(peer):
            return peer
        forwarded = (header(scope, b"x-forwarded-for") or b"").decode("latin-1")
        hops = [hop.strip() for hop in forwarded.split(",") if _address(hop.strip())]
        return next((hop for hop in reversed(hops) if not self._trusts(hop)), hops[0] if hops else peer)

    def is_local(self, scope: Scope) -> bool:
        """From this machine, and not merely through a proxy on it."""
        through_unknown_proxy = not self._trusts(_peer(scope)) and any(header(scope, h) for h in FORWARDING_HEADERS)
        client = self(scope)
        address = _address(client)
        return not through_unknown_proxy and (client == UNIX or (address is not None and address.is_loopback))

    def _trusts(self, host: str) -> bool:
        address = _address(host) if self._trusted else None
        return address is not None and any(address in network for network in self._trusted)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client and client[0] else UNIX


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
