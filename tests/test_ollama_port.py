from qwen_service.cli_serve import listen
from qwen_service.config import Settings


def test_a_second_port_is_listened_on_at_the_same_addresses() -> None:
    sockets = listen(Settings(host=("127.0.0.1",), port=0, ollama_port=0))
    addresses = [listener.getsockname() for listener in sockets]
    for listener in sockets:
        listener.close()
    assert [host for host, _ in addresses] == ["127.0.0.1"] * 2
    assert len({port for _, port in addresses}) == 2
