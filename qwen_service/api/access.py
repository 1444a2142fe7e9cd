"""Finds out who sends a request: the peer; or, behind trusted proxies, the client that the nearest of them saw."""

import ipaddress
from collections.abc import Iterable

from qwen_service.api.asgi import ADMIN_SOCKET, Scope, joined

UNIX = "unix"  # a client on our unix socket
UNKNOWN = "unknown"  # a TCP client that has reset its connection has no address

# Headers that a proxy adds. X-Forwarded-* is matched by its prefix.
PROXY_HEADERS = frozenset(
    {
        b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"x-original-forwarded-for",
        b"cf-connecting-ip", b"cf-connecting-ipv6", b"cf-ray", b"cdn-loop", b"true-client-ip", b"fastly-client-ip",
        b"fly-client-ip", b"x-envoy-external-address", b"x-appengine-user-ip", b"x-azure-clientip", b"x-originating-ip",
        b"x-remote-ip", b"x-remote-addr", b"proxy-client-ip", b"wl-proxy-client-ip", b"x-proxyuser-ip", b"x-arr-log-id",
        b"x-amzn-trace-id", b"x-cloud-trace-context", b"x-original-host", b"x-varnish",
    }
)  # fmt: skip

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class ClientAddress:
    """Finds a request's client. `trusted_proxies` are addresses or networks; only their X-Forwarded-For counts."""

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        self._trusted = [ipaddress.ip_network(proxy, strict=False) for proxy in trusted_proxies]

    def __call__(self, scope: Scope) -> str:
        peer = peer_of(scope)
        return (self._forwarded(scope) if self.trusts(peer) else None) or peer

    def is_local(self, scope: Scope) -> bool:
        """Whether the client is on this machine. A client without an address, or behind an unknown proxy, is not."""
        peer = peer_of(scope)
        if not shows_a_proxy(scope):
            return peer == UNIX or is_loopback(peer)
        return self.trusts(peer) and is_loopback(self._forwarded(scope) or UNKNOWN)

    def _forwarded(self, scope: Scope) -> str | None:
        """The right-most address in X-Forwarded-For that is no trusted proxy; None if there is none, or it cannot be parsed.

        The client itself may have written everything left of it. All lines of the header form one list (RFC 9110, 5.3).
        """
        hops = [hop.strip() for hop in joined(scope, b"x-forwarded-for").decode("latin-1").split(",") if hop.strip()]
        if not hops:
            return None
        seen = next((hop for hop in reversed(hops) if not self.trusts(_without_port(hop))), hops[0])
        address = _without_port(seen)
        return address if as_address(address) else None

    def trusts(self, host: str) -> bool:
        """Whether `host` is one of the trusted proxies."""
        address = as_address(host) if self._trusted else None
        return address is not None and any(address in network for network in self._trusted)


def shows_a_proxy(scope: Scope) -> bool:
    return any(name in PROXY_HEADERS or name.startswith(b"x-forwarded") for name, _ in scope["headers"])


def peer_of(scope: Scope) -> str:
    """The address at the other end of the connection, UNIX or UNKNOWN."""
    if scope.get(ADMIN_SOCKET):
        return UNIX
    client = scope.get("client")
    return str(client[0]) if client and as_address(str(client[0])) else UNKNOWN


def is_loopback(host: str) -> bool:
    address = as_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _without_port(hop: str) -> str:
    """Strip the port: some proxies write 192.0.2.1:4711 or [2001:db8::1]:4711."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    host, colon, port = hop.partition(":")
    return host if colon and port.isdigit() and host.count(".") == 3 else hop


def as_address(host: str) -> IPAddress | None:
    """Parse an IP address; None when it is none. An IPv4 address that is written as IPv6 becomes the IPv4 address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
