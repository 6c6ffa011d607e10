#!/usr/bin/env python3
"""A plain client: it implements sections 1 and 2 of docs/PROTOCOL.md, and nothing else.

With --layout reference it reads the datagrams of section 3 instead. If the size of the file is a
multiple of the page size, it then waits for ever, for the phantom page.
"""
import argparse
import socket
import struct
import urllib.parse
import urllib.request

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("url", help="http://head:8888/path")
options.add_argument("output", help="file to write")
options.add_argument("--interface", default="0.0.0.0", help="address of the receiving interface")
options.add_argument("--layout", choices=["base", "reference"], default="base")
options = options.parse_args()

url = urllib.parse.urlsplit(options.url)


def join():
    """Joins, and subscribes to the group. Returns the lines of the answer and the socket."""
    with urllib.request.urlopen(f"http://{url.netloc}/join{url.path}") as answer:
        lines = dict(line.split("=", 1) for line in answer.read().decode().splitlines() if line)
    group, port = lines["CONNECT"].split(":")
    # A socket bound to the address of its group receives no other group on the same port.
    data = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    data.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    data.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    data.bind((group, int(port)))
    membership = socket.inet_aton(group) + socket.inet_aton(options.interface)
    data.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    # After that long without a page, the server takes this client for gone.
    data.settimeout(5)
    return lines, data


lines, data = join()
pages, page_size = int(lines["PAGES"]), int(lines["PAGESIZE"])

# Write every page to its place. Pages may arrive in any order, and more than once.
missing = set(range(1, pages + 1))
with open(options.output, "wb") as file:
    while missing:
        try:
            datagram = data.recv(65535)
        except TimeoutError:
            data.close()
            lines, data = join()
            continue
        if len(datagram) <= 16:
            continue
        words = struct.unpack("!4I", datagram[:16])
        size, page = words[:2] if options.layout == "base" else (words[3], words[0])
        if page in missing and 0 < size <= min(page_size, len(datagram) - 16):
            file.seek((page - 1) * page_size)
            file.write(datagram[16:16 + size])
            missing.remove(page)

# Leave: this client has every page.
leave = urllib.request.Request(f"http://{url.netloc}/leave{url.path}",
                               headers={"X-TOKEN": lines["TOKEN"]})
urllib.request.urlopen(leave).close()
