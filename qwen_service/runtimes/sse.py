"""Server-sent events out of bytes, however the network cut them. No IO."""


class SseReader:
    def __init__(self) -> None:
        self._rest = b""  # of a line that has not ended
        self._data: list[bytes] = []  # lines of the event that has not ended

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that these bytes complete. Comments, names and ids are dropped."""
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
