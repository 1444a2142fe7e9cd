import socket

from qwen_service.commands.serve import listen
from qwen_service.settings import Settings


def test_a_second_port_is_listened_on_at_the_same_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sockets = listen(Settings(host=("127.0.0.1",), port=0, ollama_port=port))
    addresses = [listener.getsockname() for listener in sockets]
    for listener in sockets:
        listener.close()
    assert addresses[1] == ("127.0.0.1", port)
    assert len(addresses) == 2
