"""Parses server-sent events out of bytes, however the network cut them. IO-free."""


class SseReader:
    def __init__(self) -> None:
        self._rest = b""  # bytes of an unfinished line
        self._data: list[bytes] = []  # data lines of the unfinished event

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of each event that these bytes complete. Comments, names and ids are dropped."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        events = []
        for line in lines:
            text = line.removesuffix(b"\r")
            if text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
            elif not text and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events
