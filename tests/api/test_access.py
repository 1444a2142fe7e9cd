import pytest

from qwen_service.api.access import PROXY_HEADERS, ClientAddress
from qwen_service.api.asgi import ADMIN_SOCKET

Headers = list[tuple[bytes, bytes]]


def scope(peer: str | None, *forwarded: str, name: bytes = b"x-forwarded-for", unix: bool = False) -> dict[str, object]:
    headers = [(name, line.encode()) for line in forwarded]
    marked: dict[str, object] = {ADMIN_SOCKET: True} if unix else {}
    return {"client": (peer, 1) if peer is not None else None, "headers": headers} | marked


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert ClientAddress()(scope("10.0.0.5", "1.2.3.4")) == "10.0.0.5"


def test_only_the_mark_of_the_listener_makes_a_client_one_of_the_unix_socket() -> None:
    assert ClientAddress()(scope(None, unix=True)) == "unix"
    assert ClientAddress()(scope(None)) == "unknown"
    assert ClientAddress()(scope("")) == "unknown"


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
        ("10.0.0.1", "127.0.0.1, 1.2.3.4:4711", "1.2.3.4"),
        ("10.0.0.1", "127.0.0.1, [2001:db8::7]:4711", "2001:db8::7"),
        ("10.0.0.1", "127.0.0.1, somebody", "10.0.0.1"),
    ],
)
def test_behind_trusted_proxies_the_last_untrusted_hop_is_the_client(peer: str, forwarded: str, client: str) -> None:
    assert ClientAddress(["10.0.0.0/8"])(scope(peer, forwarded)) == client


def test_all_lines_of_the_header_are_one_list() -> None:
    trusting = ClientAddress(["10.0.0.0/8"])
    assert trusting(scope("10.0.0.1", "127.0.0.1", "1.2.3.4")) == "1.2.3.4"
    assert not trusting.is_local(scope("10.0.0.1", "127.0.0.1", "1.2.3.4"))


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_local(peer: str) -> None:
    assert ClientAddress().is_local(scope(peer))


def test_the_admin_socket_is_local() -> None:
    assert ClientAddress().is_local(scope(None, unix=True))


@pytest.mark.parametrize("peer", ["10.0.0.1", "0.0.0.0", "2001:db8::1", "localhost", "unix", "", None])
@pytest.mark.parametrize("trusted", [[], ["10.0.0.1"]])
def test_everybody_else_is_not_local(peer: str | None, trusted: list[str]) -> None:
    assert not ClientAddress(trusted).is_local(scope(peer))


@pytest.mark.parametrize("name", sorted(PROXY_HEADERS | {b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded"}))
def test_what_any_proxy_on_this_machine_passes_on_is_not_local(name: bytes) -> None:
    assert not ClientAddress().is_local(scope("127.0.0.1", "127.0.0.1", name=name))
    assert not ClientAddress().is_local(scope(None, "127.0.0.1", name=name, unix=True))


def test_a_trusted_proxy_on_this_machine_can_pass_on_a_local_client() -> None:
    trusting = ClientAddress(["127.0.0.1"])
    assert trusting.is_local(scope("127.0.0.1", "127.0.0.1"))
    assert not trusting.is_local(scope("127.0.0.1", "1.2.3.4"))
    assert not trusting.is_local(scope("127.0.0.1", "127.0.0.1, 1.2.3.4"))


@pytest.mark.parametrize(
    "forwarded", ["somebody", "127.0.0.1, somebody", "127.0.0.1, _hidden", "127.0.0.1, 1.2.3.4:99"]
)
def test_a_trusted_proxy_that_names_no_readable_address_passes_on_nobody_local(forwarded: str) -> None:
    assert not ClientAddress(["127.0.0.1"]).is_local(scope("127.0.0.1", forwarded))


def test_a_trusted_proxy_that_does_not_say_whom_it_saw_passes_on_nobody_local() -> None:
    assert not ClientAddress(["127.0.0.1"]).is_local(scope("127.0.0.1", "1.1 proxy", name=b"via"))
