#!/usr/bin/env python3
"""A client of the whole protocol, written from docs/PROTOCOL.md alone: sections 1, 2, 4, 5 and 7 to 9.

It receives a file, rebuilds what got lost from repair symbols, and reports what it needs:

    extended_client.py http://head:8888/image image --interface 192.0.2.7

or asks for a few pages and writes those alone:

    extended_client.py http://head:8888/image part --want 17 3

Tags (section 6) need BLAKE3, which Python's standard library does not have: they are ignored, as
`KEY=` is by a client that does not know it. Where no multicast comes it fetches the file over HTTP,
unless it asks for a few pages. It holds the file in memory and reports synchronously: to be read, not to be fast.
"""
import argparse
import hashlib
import itertools
import json
import math
import random
import select
import socket
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

SYMBOL, BEACON, END = 1, 2, 3    # kinds of datagrams on the repair channel
FIXED = 32                       # bytes of a beacon's payload before its windows
PACE = struct.Struct("!QI2H")    # the last 16 of them
K = 128                          # pages in a block; as many repair symbols can be made of it
REST = 0.5                       # seconds of rest after which a stream has nothing more to bring
SILENCE = 5.0                    # seconds after which a client that hears nothing joins again
DEAF = 1.0                       # seconds after a join within which a datagram must come
PIECE = 256                      # pages of a request over HTTP, at most


# ---- GF(2^8), section 5 "The code" ------------------------------------------------------------

def gf_multiply(a, b):
    """The product in GF(2^8) with the polynomial 0x11B."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


# TIMES[c] maps every byte to its product with c: the form that `bytes.translate` takes.
TIMES = [bytes(gf_multiply(c, b) for b in range(256)) for c in range(256)]
INVERSE = [0] + [TIMES[c].index(1) for c in range(1, 256)]


def scaled(page, factor):
    """A page, every byte multiplied, as a number: numbers can be added with `^`."""
    return int.from_bytes(page.translate(TIMES[factor]), "big")


def rebuild(sources, symbols, lost, page_size):
    """The pages at the positions `lost` of a block.

    `sources` maps each other position that has a page to it, padded; `symbols` maps numbers of repair
    symbols, as many as `lost` at least, to their bytes.
    """
    # One equation for each symbol: what it says of the lost pages, when those here are taken away.
    rows = []
    for number, symbol in itertools.islice(symbols.items(), len(lost)):
        right = int.from_bytes(symbol, "big")
        for position, page in sources.items():
            right ^= scaled(page, INVERSE[(K + number) ^ position])
        left = [INVERSE[(K + number) ^ position] for position in lost]
        rows.append((left, right.to_bytes(page_size, "big")))
    # Gauss and Jordan. Every square part of a Cauchy matrix is regular: the pivot is never 0.
    for at in range(len(lost)):
        left, right = rows[at]
        by = INVERSE[left[at]]
        left, right = [TIMES[by][x] for x in left], right.translate(TIMES[by])
        rows[at] = left, right
        for other in range(len(lost)):
            factor = rows[other][0][at]
            if other != at and factor:
                theirs, rest = rows[other]
                rest = int.from_bytes(rest, "big") ^ scaled(right, factor)
                theirs = [x ^ TIMES[factor][y] for x, y in zip(theirs, left)]
                rows[other] = theirs, rest.to_bytes(page_size, "big")
    return {position: right for position, (_, right) in zip(lost, rows)}


# ---- Control, sections 1 and 4 ----------------------------------------------------------------

class Control:
    """The endpoints of one file."""

    def __init__(self, url):
        self.url = urllib.parse.urlsplit(url)
        self.token = None

    def request(self, endpoint, body=None, **headers):
        """Body of the answer, or None when the server does not know this member or is away."""
        headers = {f"X-{name}".replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            headers["X-TOKEN"] = self.token
        request = urllib.request.Request(f"http://{self.url.netloc}/{endpoint}{self.url.path}",
                                         data=body and json.dumps(body).encode(), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if endpoint == "join" and error.code != 503:
                sys.exit(f"join: {error.code} {error.read().decode().strip()}")
        except OSError:
            pass
        return None

    def fetch(self, first, last, etag):
        """Bytes `first` to `last` of this version of the file, or as many as came. Section 9."""
        headers = {"Range": f"bytes={first}-{last}", "If-Range": f'"{etag}"'}
        request = urllib.request.Request(f"http://{self.url.netloc}/file{self.url.path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                if answer.status == 206:
                    return answer.read()
                sys.exit("the file changed")
        except OSError:
            return b""

    def join(self, on_demand):
        """The lines of the answer. Asks until there is one."""
        fill = {"BOOTCAST_FILL": "demand"} if on_demand else {}
        self.token = None
        for pause in itertools.chain((0.1, 0.2, 0.5), itertools.repeat(1.0)):
            answer = self.request("join", BOOTCAST="1", **fill)
            if answer is not None:
                lines = dict(line.split("=", 1) for line in answer.decode().splitlines() if "=" in line)
                self.token = lines["TOKEN"]
                return lines
            time.sleep(pause)


def subscribe(group, port, options):
    """A socket that hears the group. Bound to it, it hears no other group on the same port."""
    data = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    data.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    data.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.buffer)
    data.bind((group, port))
    membership = socket.inet_aton(group) + socket.inet_aton(options.interface)
    data.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    data.setblocking(False)
    return data


# ---- One membership ---------------------------------------------------------------------------

class Block:
    """What is known of a block that is not whole."""

    def __init__(self):
        self.symbols = {}    # number -> bytes
        self.sent = 0        # how many the server has sent, as far as it was heard
        self.promised = 0    # how many it will have sent at least


class Membership:
    """From a join to the leave, or to the end of the cast. `held` maps pages to bytes, and outlives it."""

    def __init__(self, control, options, version):
        lines = control.join(options.want is not None)
        if version.setdefault("etag", lines.get("ETAG")) != lines.get("ETAG"):
            sys.exit("the file changed")
        self.control, self.held = control, version.setdefault("pages", {})
        self.pages, self.page_size = int(lines["PAGES"]), int(lines["PAGESIZE"])
        self.size = int(lines.get("SIZE", 0))
        group, port = lines["CONNECT"].split(":")
        self.data = subscribe(group, int(port), options)
        self.sockets, self.sender, self.source = [self.data], None, lines.get("SOURCE")
        code, _, interleave = lines.get("FEC", "").partition("/")
        self.repairs = code == "cauchy8-128" and "REPAIR" in lines and "SIZE" in lines
        self.on_demand = options.want is not None
        self.interleave = int(interleave) if self.repairs else 1
        if self.repairs:
            self.sockets.append(subscribe(group, int(lines["REPAIR"]), options))
        self.lease = float(lines.get("LEASE", "inf"))
        self.blocks = {}
        self.beacon = None
        self.closed = set()           # windows
        self.at = None                # where the stream was, by the last beacon or the first page
        self.moved = self.had_moved = False    # pages came since the join; before the last beacon
        self.resting = None           # since when the stream rests
        self.over = False
        now = time.monotonic()
        self.heard = self.told = self.joined = now  # when the server was last heard, when it last heard of us
        self.etag, self.deaf = lines.get("ETAG"), False
        self.report_at = None         # when a report is due that waits for its random time
        self.quiet_until = 0.0        # no report of needs before
        # Any hash that is uniform over tokens will do.
        self.share = int.from_bytes(hashlib.sha256(control.token.encode()).digest()[:2], "big")
        self.received = 0
        self.first, self.newest = None, (0, 0)   # datagrams sent and received: at the first beacon, since

    # Geometry, section 5 "Windows and blocks". Pages count from 1, all else from 0.

    def place(self, page):
        """Block and position of a page."""
        window, x = divmod(page - 1, K * self.interleave)
        blocks = self.blocks_in(window)
        return window * self.interleave + x % blocks, x // blocks

    def blocks_in(self, window):
        """0 for a window that the file does not have."""
        pages = min(self.pages - window * K * self.interleave, K * self.interleave)
        return max(-(-pages // K), 0)

    def pages_of(self, block):
        """The pages of a block, in the order of their positions."""
        window, x = divmod(block, self.interleave)
        begin = window * K * self.interleave
        end = min(begin + K * self.interleave, self.pages)
        return range(begin + x + 1, end + 1, self.blocks_in(window))

    def missing(self, block):
        return [page for page in self.pages_of(block) if page not in self.held]

    def length(self, page):
        """Bytes of a page; of the last one as far as `SIZE` tells."""
        last = self.size - (self.pages - 1) * self.page_size if self.size else self.page_size
        return last if page == self.pages else self.page_size

    def is_done(self):
        return len(self.held) == self.pages

    # What comes.

    def hear(self, wait):
        """Takes what comes within `wait` seconds."""
        for ready in select.select(self.sockets, [], [], max(wait, 0))[0]:
            for _ in range(256):
                try:
                    datagram, sender = ready.recvfrom(65535)
                except BlockingIOError:
                    break
                if len(datagram) < 16 or (self.source and sender[0] != self.source):
                    continue
                taken = self.page if ready is self.data else self.repair
                if self.sender in (None, sender) and taken(datagram):
                    self.sender, self.heard = sender, time.monotonic()

    def page(self, datagram):
        """Section 2. Says whether it was a good one."""
        size, page = struct.unpack("!2I", datagram[:8])
        if not (1 <= page <= self.pages and 0 < size <= len(datagram) - 16):
            return False
        if size != self.length(page) and (self.size or page != self.pages or size > self.page_size):
            return False
        self.received += 1
        self.moved = True
        self.at = page - 1 if self.at is None else self.at
        if page not in self.held:
            self.held[page] = datagram[16:16 + size]
            if self.repairs:
                self.try_rebuild(self.place(page)[0])
        return True

    def repair(self, datagram):
        """Section 5 "Repair channel". Says whether it was a good one."""
        kind, promised, number, block = struct.unpack("!BBHI", datagram[:8])
        payload = datagram[16:]
        if kind == SYMBOL:
            return self.symbol(block, number, promised, payload)
        if kind == BEACON and len(payload) >= FIXED:
            return self.take_beacon(payload)
        self.over |= kind == END
        return kind == END

    def symbol(self, index, number, promised, payload):
        window, x = divmod(index, self.interleave)
        if x >= self.blocks_in(window) or number >= K or len(payload) != self.page_size:
            return False
        self.received += 1
        block = self.blocks.setdefault(index, Block())
        block.symbols[number] = payload
        if block.sent < K:    # then numbers begin again, and beacons tell
            block.sent = max(block.sent, number + 1)
        block.promised = max(block.promised, promised)
        self.try_rebuild(index)
        return True

    def try_rebuild(self, index):
        block, missing = self.blocks.get(index), self.missing(index)
        if not missing or block is None or len(block.symbols) < len(missing):
            return
        sources = {at: self.held[page].ljust(self.page_size, b"\0")
                   for at, page in enumerate(self.pages_of(index)) if page in self.held}
        lost = [self.place(page)[1] for page in missing]
        for at, page in rebuild(sources, block.symbols, lost, self.page_size).items():
            number = self.pages_of(index)[at]
            self.held[number] = page[:self.length(number)]

    def take_beacon(self, payload):
        number, position, members, permit, spread = struct.unpack("!3I2H", payload[:16])
        sent, _rate, panel, interval = PACE.unpack(payload[16:FIXED])
        if self.beacon and number <= self.beacon["number"]:
            return True
        self.beacon = {"number": number, "members": max(members, 1), "permit": permit,
                       "spread": spread / 1000, "panel": panel, "interval": interval / 1000}
        self.first = self.first or (sent, self.received)
        self.newest = sent - self.first[0], self.received - self.first[1]
        rest = payload[FIXED:]
        while len(rest) >= 4:
            window = int.from_bytes(rest[:4], "big")
            counts, rest = rest[4:4 + 2 * self.blocks_in(window)], rest[4 + 2 * self.blocks_in(window):]
            for x, (sent, promised) in enumerate(zip(counts[::2], counts[1::2])):
                block = self.blocks.setdefault(window * self.interleave + x, Block())
                block.sent, block.promised = max(block.sent, sent), max(block.promised, promised)
        self.close_windows(position)
        return True

    def close_windows(self, position):
        """The windows that the stream passed on its way to `position`."""
        size, count = K * self.interleave, -(-self.pages // (K * self.interleave))
        before, self.at = position if self.at is None else self.at, position
        went_by = before == position == 0 and self.had_moved
        self.had_moved = self.moved
        if position >= self.pages:
            self.resting = self.resting or time.monotonic()
            went_by = self.moved or time.monotonic() - self.resting >= REST
        else:
            self.resting = None
            begin = 0 if before >= self.pages else before // size
            passed = range(begin, position // size) if begin * size <= position else \
                [*range(begin, count), *range(position // size)]
            self.closed.update(passed)
        if went_by:
            self.closed.update(range(count))

    # What is told.

    def lacks(self):
        """Needs and bulk, as a report names them: all that exceeds what was promised."""
        needs, bulk = [], []
        for window in sorted(self.closed):
            wanted = []
            for index in range(window * self.interleave,
                               window * self.interleave + self.blocks_in(window)):
                missing, block = len(self.missing(index)), self.blocks.get(index, Block())
                if 4 * missing >= len(self.pages_of(index)):
                    bulk.append([window, 1])
                    break
                need = missing + block.sent - len(block.symbols)
                if missing and need > block.promised:
                    wanted.append([index, min(need, 255)])
            else:
                needs += wanted
        return needs, bulk

    def report(self, needs, bulk):
        now = time.monotonic()
        body = {"needs": needs, "bulk": bulk, "sent": self.newest[0], "received": self.newest[1]}
        self.over |= self.control.request("report", body) is None
        for window, _ in bulk:           # the stream passes them again
            self.closed.discard(window)
            self.moved = self.had_moved = False
            self.resting = None
        self.told, self.report_at = now, None
        self.quiet_until = now + 2 * self.beacon["spread"]
        self.beacon["stale"] = True      # what it said was before this report

    def is_among(self, share):
        return self.share < share or share == 65535

    def report_if_due(self):
        """Sections 5 "When a client reports" and 8. Called often."""
        now, beacon = time.monotonic(), self.beacon
        if beacon is None or beacon.get("stale"):
            return
        needs, bulk = ([], []) if self.on_demand else self.lacks()
        short = needs or bulk
        if short and self.report_at is None and self.is_among(beacon["permit"]):
            if now >= self.quiet_until:
                self.report_at = now + backoff(beacon["spread"], beacon["members"])
        elif short and self.report_at is not None and now >= self.report_at:
            self.report(needs, bulk)
        elif not short:
            self.report_at = None
        every = beacon["interval"] if self.is_among(beacon["panel"]) else 0
        if now - self.told >= min(every or math.inf, self.lease / 2):
            self.report(needs, bulk)

    # Without multicast, section 9.

    def fetch_if_deaf(self):
        """Takes some of what is missing over HTTP, while no datagram comes. Called often."""
        now = time.monotonic()
        if self.deaf and self.heard > self.joined:
            self.deaf = False
            self.closed.update(range(-(-self.pages // (K * self.interleave))))
            self.told = -math.inf    # the next beacon finds that a report is due, and all is asked for
        may_fetch = self.etag and self.size and self.lease < math.inf
        if self.heard > self.joined or now - self.joined < DEAF or not may_fetch:
            return
        if not self.deaf or now - self.told >= self.lease / 2:
            self.over |= self.control.request("report", {"unicast": True}) is None
            self.deaf, self.told = True, now
        first = next(page for page in range(1, self.pages + 1) if page not in self.held)
        piece = range(first, min(first + PIECE, self.pages + 1))
        run = list(itertools.takewhile(lambda page: page not in self.held, piece))
        begin = (first - 1) * self.page_size
        last = begin + sum(map(self.length, run)) - 1
        content = self.control.fetch(begin, last, self.etag)
        for page in run:
            whole, content = content[:self.length(page)], content[self.length(page):]
            if len(whole) == self.length(page):
                self.held[page] = whole

    def close(self):
        self.control.request("leave")
        for each in self.sockets:
            each.close()


def backoff(spread, members):
    """A random time up to `spread`, truncated exponential: few are early, most are late. RFC 5740, 5.3."""
    rate = math.log(members) + 1
    return spread / rate * math.log(random.random() * (math.exp(rate) - 1) + 1)


# ---- The two ways to use it -------------------------------------------------------------------

def receive(control, options):
    """All pages of the file."""
    version = {}
    while True:
        member = Membership(control, options, version)
        while not member.is_done() and not member.over and \
                (member.deaf or time.monotonic() - member.heard < SILENCE):
            member.hear(0.01)
            if member.repairs and not member.deaf:
                member.report_if_due()
            if not member.is_done():
                member.fetch_if_deaf()
        member.close()
        if member.is_done():
            return b"".join(member.held[page] for page in range(1, member.pages + 1))


def want(control, options):
    """Section 7: the pages that were asked for, and no stream."""
    version = {}
    first, count = options.want
    wanted = range(first, first + count)
    while True:
        member = Membership(control, options, version)
        pause = 0.0
        while not member.over:
            missing = [page for page in wanted if page not in member.held]
            if not missing:
                break
            asked = time.monotonic()
            if member.control.request("want", {"now": runs(missing)}) is None:
                break
            member.told = time.monotonic()
            pause = min(2 * pause, 1.0) if pause else 0.005 + member.told - asked
            while time.monotonic() < member.told + pause and any(p not in member.held for p in missing):
                member.hear(member.told + pause - time.monotonic())
        member.close()
        if all(page in member.held for page in wanted):
            return b"".join(member.held[page] for page in wanted)


def runs(pages):
    """Ascending numbers as pairs: first and how many."""
    pairs = []
    for page in pages:
        if pairs and sum(pairs[-1]) == page:
            pairs[-1][1] += 1
        else:
            pairs.append([page, 1])
    return pairs


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("url", help="http://head:8888/path")
    options.add_argument("output", help="file to write")
    options.add_argument("--interface", default="0.0.0.0", help="address of the receiving interface")
    options.add_argument("--buffer", type=int, default=4 << 20, help="bytes that may wait in a socket")
    options.add_argument("--want", nargs=2, type=int, metavar=("FIRST", "COUNT"),
                         help="these pages alone, counted from 1")
    options = options.parse_args()
    content = (receive if options.want is None else want)(Control(options.url), options)
    with open(options.output, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    main()
