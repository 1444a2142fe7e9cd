import pytest

from qwen_service.api.access import ClientAddress


def scope(peer: str | None, forwarded: str = "", name: bytes = b"x-forwarded-for") -> dict[str, object]:
    headers = [(name, forwarded.encode())] if forwarded else []
    return {"client": (peer, 1) if peer is not None else None, "headers": headers}


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert ClientAddress()(scope("10.0.0.5", "1.2.3.4")) == "10.0.0.5"
    assert ClientAddress()(scope(None)) == "unix"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),  # what the client claims stands left of what was seen
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown, <script>", "10.0.0.1"),
        ("::ffff:10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("9.9.9.9", "1.2.3.4", "9.9.9.9"),
    ],
)
def test_behind_trusted_proxies_the_last_untrusted_hop_is_the_client(peer: str, forwarded: str, client: str) -> None:
    assert ClientAddress(["10.0.0.0/8"])(scope(peer, forwarded)) == client


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", None])
def test_loopback_and_unix_sockets_are_local(peer: str | None) -> None:
    assert ClientAddress().is_local(scope(peer))


@pytest.mark.parametrize("peer", ["10.0.0.1", "0.0.0.0", "2001:db8::1", "localhost"])
def test_everybody_else_is_not_local(peer: str) -> None:
    assert not ClientAddress().is_local(scope(peer))


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded", b"x-real-ip"])
def test_what_a_proxy_on_this_machine_passes_on_is_not_local(name: bytes) -> None:
    assert not ClientAddress().is_local(scope("127.0.0.1", "127.0.0.1", name))


def test_a_trusted_proxy_on_this_machine_can_pass_on_a_local_client() -> None:
    trusting = ClientAddress(["127.0.0.1"])
    assert trusting.is_local(scope("127.0.0.1", "127.0.0.1"))
    assert not trusting.is_local(scope("127.0.0.1", "1.2.3.4"))
    assert not trusting.is_local(scope("127.0.0.1", "127.0.0.1, 1.2.3.4"))
