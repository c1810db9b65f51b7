"""Serves this folder to this machine's browsers: `python serve.py`, or `python serve.py PORT`."""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HEADERS = {
    # A page that is kept apart from others may share memory between threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    # Neither the page nor its worker may ask anything of another server.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src data:",
}


class Handler(SimpleHTTPRequestHandler):
    """Files with the headers above."""

    def end_headers(self) -> None:
        """Add ours to what stands there."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()


def main() -> None:
    for ending in (".js", ".mjs"):  # some Windows machines call them plain text
        Handler.extensions_map[ending] = "text/javascript"
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    handler = partial(Handler, directory=str(Path(__file__).resolve().parent))
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
