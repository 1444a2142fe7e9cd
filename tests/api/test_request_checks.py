import hashlib
from pathlib import Path

import pytest

from qwen_service.api.keys import ApiKeys, KeyFileError, new_key
from qwen_service.api.middleware import Checks, RequestContext
from qwen_service.api.request_checks import AllowedHosts, HeadLimit, KeyRequired
from qwen_service.cli import main
from qwen_service.request_record import RequestRecord
from tests.asgi_calls import call, echo, error_by_name


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8080",
        "192.168.1.7:8080",
        "pi.local",
        "pi.local.:80",
    ],
)
def test_own_names_and_plain_addresses_are_hosts_of_this_service(host: str) -> None:
    assert AllowedHosts(["Pi.local"]).allows(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:8080", "", ":80", "a:b", "localhost@evil", "1.2.3"]
)
def test_every_other_host_name_is_foreign(host: str) -> None:
    assert not AllowedHosts(["pi.local"]).allows(host)


def test_a_star_allows_every_host_name() -> None:
    assert AllowedHosts(["*"]).allows("evil.example")


async def test_any_foreign_one_of_several_host_headers_is_enough() -> None:
    scope = {"headers": [(b"host", b"localhost"), (b"host", b"evil.example")]}
    objection = AllowedHosts([])(scope)
    assert objection is not None
    assert "evil.example" in objection.message


@pytest.mark.parametrize(("headers", "fits"), [(2, True), (3, False)])
def test_the_number_of_headers_is_bounded(headers: int, fits: bool) -> None:
    scope = {"headers": [(b"a", b"b")] * headers, "raw_path": b"/", "query_string": b""}
    assert (HeadLimit(2, 1000)(scope) is None) is fits


@pytest.mark.parametrize("part", ["raw_path", "query_string", "header"])
def test_the_bytes_of_the_head_are_bounded_wherever_they_are(part: str) -> None:
    scope = {"headers": [(b"a", b"b")], "raw_path": b"/", "query_string": b""}
    assert HeadLimit(2, 100)(scope) is None
    changed = {"headers": [(b"a", b"b" * 101)]} if part == "header" else {part: b"x" * 101}
    assert HeadLimit(2, 100)({**scope, **changed}) is not None


async def test_a_key_opens_and_its_name_is_on_the_record(tmp_path: Path) -> None:
    key, line = new_key("laptop")
    (tmp_path / "keys").write_text(f"# ours\n\n{new_key('phone')[1]}\n{line}  # kitchen\n")
    records: list[RequestRecord] = []
    checks = Checks(echo, [KeyRequired(ApiKeys.from_file(tmp_path / "keys"))], error_by_name)
    app = RequestContext(checks, records.append, lambda _: "10.0.0.1", error_by_name)
    assert (await call(app, headers={"Authorization": f"Bearer {key}"})).status == 200
    assert (await call(app, headers={"Authorization": f"bearer  {key}"})).status == 200
    assert [record.client for record in records] == ["laptop", "laptop"]


@pytest.mark.parametrize("value", ["", "Bearer ", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x"])
async def test_anything_but_a_known_key_stays_outside(value: str) -> None:
    key, line = new_key("laptop")
    app = Checks(echo, [KeyRequired(ApiKeys(dict([line.split()[::-1]])))], error_by_name)
    assert (await call(app, headers={"Authorization": value.format(key=key)})).body == b"Unauthorized"


async def test_health_needs_no_key() -> None:
    app = Checks(echo, [KeyRequired(ApiKeys({"0" * 64: "a"}))], error_by_name)
    assert (await call(app, "/health/ready")).status == 200
    assert (await call(app, "/health/../v1/models")).body == b"Unauthorized"


def test_a_key_line_holds_the_hash_and_never_the_key() -> None:
    key, line = new_key("laptop")
    assert key not in line
    assert line == f"laptop {hashlib.sha256(key.encode()).hexdigest()}"
    assert new_key("laptop")[0] != key


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", "no API key"), ("# none\n", "no API key"), ("laptop secret\n", "line 1"), ("a b c\n", "line 1")],
)
def test_a_key_file_that_cannot_be_used_is_named_with_its_line(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(KeyFileError) as caught:
        ApiKeys.from_file(path)
    assert str(path) in caught.value.message
    assert expected in caught.value.message


def test_a_missing_key_file_is_an_error_not_an_open_door(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        ApiKeys.from_file(tmp_path / "none")


def test_a_key_made_on_the_command_line_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "laptop", "--file", str(tmp_path / "keys")]) == 0
    assert main(["key", "phone", "--file", str(tmp_path / "keys")]) == 0
    keys = capsys.readouterr().out.split()
    known = ApiKeys.from_file(tmp_path / "keys")
    assert [known.name_of(key.encode()) for key in keys] == ["laptop", "phone"]
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600


def test_a_key_cannot_have_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "my laptop"]) == 1
    assert "cannot be the name" in capsys.readouterr().err
