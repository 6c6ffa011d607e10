#!/usr/bin/env python3
"""A plain server: it implements sections 1 and 2 of docs/PROTOCOL.md, and nothing else.

It answers /join and /leave, and 404 to other requests. With --layout reference it sends the
datagrams of section 3. If the size of the file is a multiple of the page size, it then announces a
phantom page, as the reference implementation does.
"""
import argparse
import http.server
import os
import secrets
import socket
import struct
import threading
import time
import urllib.parse

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--dir", required=True, help="directory to serve")
options.add_argument("--interface", default="0.0.0.0", help="address of the sending interface")
options.add_argument("--port", type=int, default=8888, help="TCP port of /join and /leave")
options.add_argument("--data-port", type=int, default=9000)
options.add_argument("--page-size", type=int, default=1456, help="bytes")
options.add_argument("--rate", type=float, default=100, help="Mbit/s per cast")
options.add_argument("--layout", choices=["base", "reference"], default="base")
options = options.parse_args()

lock = threading.Lock()
casts = {}  # path -> the running Cast of this file
groups = iter(f"239.255.{high}.{low}" for high in range(1, 255) for low in range(1, 255))


class Cast(threading.Thread):
    """Sends one file in passes until its last member has left."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.group, self.members = path, next(groups), set()
        self.size = os.path.getsize(path)
        if options.layout == "base":
            self.pages = -(-self.size // options.page_size)
        else:
            self.pages = self.size // options.page_size + 1

    def run(self):
        out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF,
                       socket.inet_aton(options.interface))
        start, sent_bytes = time.monotonic(), 0
        while self.members:
            with open(self.path, "rb") as file:
                for number, page in enumerate(iter(lambda: file.read(options.page_size), b""), 1):
                    out.sendto(self.header(number, page) + page, (self.group, options.data_port))
                    sent_bytes += 16 + len(page)
                    early = sent_bytes * 8 / (options.rate * 1e6) - (time.monotonic() - start)
                    if early > 0.001:
                        time.sleep(early)
                    if not self.members:
                        return

    def header(self, number, page):
        if options.layout == "base":
            return struct.pack("!4I", len(page), number, 0, 0)
        return struct.pack("!4I", number, self.pages, sum(page) % 256, len(page))


class Control(http.server.BaseHTTPRequestHandler):
    """Handles the two requests."""

    def do_GET(self):
        verb, _, name = self.path.split("?")[0].lstrip("/").partition("/")
        path = os.path.join(options.dir, urllib.parse.unquote(name))
        if verb == "join" and ".." not in path and os.path.isfile(path):
            self.answer(200, self.join(path))
        elif verb == "leave" and self.headers["X-TOKEN"] is None:
            self.answer(400)
        elif verb == "leave":
            self.leave(path, self.headers["X-TOKEN"])
            self.answer(204)
        else:
            self.answer(404)

    def join(self, path):
        token = secrets.token_hex(16)
        with lock:
            cast = casts.get(path) or Cast(path)
            cast.members.add(token)
            if path not in casts and cast.size > 0:
                casts[path] = cast
                cast.start()
        return (f"CONNECT={cast.group}:{options.data_port}\nTOKEN={token}\n"
                f"PAGES={cast.pages}\nPAGESIZE={options.page_size}\n\n")

    def leave(self, path, token):
        with lock:
            if path in casts:
                casts[path].members.discard(token)
                if not casts[path].members:
                    del casts[path]

    def answer(self, status, text=""):
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


server = http.server.ThreadingHTTPServer(("", options.port), Control)
print("listening", flush=True)
server.serve_forever()
