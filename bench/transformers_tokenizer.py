"""A tokenizer server of the kind that comes with the models: transformers behind http.server. For comparison only."""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from transformers import AutoTokenizer  # type: ignore[import-not-found]  # in an environment of its own


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/encode":
            answer = {"token_ids": tokenizer.encode(body["text"])}
        else:
            answer = {"text": tokenizer.decode(body["token_ids"])}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(json.dumps({"tokenizer": server.server_address[1]}), flush=True)
    server.serve_forever()
