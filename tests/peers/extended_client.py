#!/usr/bin/env python3
"""An extended client, written from docs/PROTOCOL.md alone: sections 1, 2, 4, 5 and 7 to 9.

It receives a file, rebuilds lost pages from repair symbols, and reports its needs:

    extended_client.py http://head:8888/image image --interface 192.0.2.7

With --want it demands a few pages, and writes only those:

    extended_client.py http://head:8888/image part --want 17 3

With --zeros it takes the parts of the file that consist of zeros from the zero map ("Pages of
zeros" in section 5). It believes the map as it believes the datagrams.

With --leaves it proves each leaf by the content id before it writes the file ("Manifest" in section
4 and "Leaf lists" in section 5). It prints the content id, and how much came by which way:

    b674dc68833bb7c99fd2cfe326dce14bd6834d720c8f1375218521f458b353a4
    lists: 1 from the cast, 0 over HTTP; wrong leaves: 0

Where no multicast arrives it fetches the file over HTTP, unless it demands pages. Tags (section 6)
need a hash of each datagram, for which Python is too slow; this client ignores them, as a client
does that does not know `KEY=`. It keeps the file in memory and waits for the answer to each
report, because it is meant to be read, not to be fast.
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

import b3

SYMBOL, BEACON, END, LEAVES = 1, 2, 3, 4    # kinds of datagrams on the repair channel
FIXED = 32                       # bytes of a beacon's payload before its windows
PACE = struct.Struct("!QI2H")    # the last 16 of these bytes
K = 128                          # pages in a block, and different repair symbols of a block
REST = 0.5                       # seconds of rest after which all windows count as passed
SILENCE = 5.0                    # seconds without a datagram after which the client joins again
DEAF = 1.0                       # seconds without a datagram after a join until it fetches
LEAF = 16 << 10                  # bytes in a leaf
SEGMENT = 256                    # leaves in a segment
VALUE = 32                       # bytes in the value of a leaf or segment
ZEROS_AGAIN = 0.05               # seconds between two requests for the zero map
PIECE = 256                      # largest number of pages in a request over HTTP


# ---- GF(2^8), section 5 "The code" ------------------------------------------------------------

def gf_multiply(a, b):
    """Returns the product in GF(2^8) with the polynomial 0x11B."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


# TIMES[c] maps every byte to its product with c, as a table for `bytes.translate`.
TIMES = [bytes(gf_multiply(c, b) for b in range(256)) for c in range(256)]
INVERSE = [0] + [TIMES[c].index(1) for c in range(1, 256)]


def scaled(page, factor):
    """Returns the page with every byte multiplied, as an integer: `^` adds two of them."""
    return int.from_bytes(page.translate(TIMES[factor]), "big")


def rebuild(sources, symbols, lost, page_size):
    """Returns the pages at the positions `lost` of a block, by position.

    `sources` maps the other positions to their pages, padded. `symbols` maps numbers of repair
    symbols to their bytes, and has at least as many entries as `lost`.
    """
    # One equation for each symbol. Subtracting the pages of `sources` from the symbol leaves a sum
    # of multiples of the lost pages.
    rows = []
    for number, symbol in itertools.islice(symbols.items(), len(lost)):
        right = int.from_bytes(symbol, "big")
        for position, page in sources.items():
            right ^= scaled(page, INVERSE[(K + number) ^ position])
        left = [INVERSE[(K + number) ^ position] for position in lost]
        rows.append((left, right.to_bytes(page_size, "big")))
    # Gauss-Jordan elimination. Every square part of a Cauchy matrix is regular, so no pivot is 0.
    for at in range(len(lost)):
        left, right = rows[at]
        by = INVERSE[left[at]]
        left, right = [TIMES[by][x] for x in left], right.translate(TIMES[by])
        rows[at] = left, right
        for other in range(len(lost)):
            factor = rows[other][0][at]
            if other != at and factor:
                other_left, other_right = rows[other]
                total = int.from_bytes(other_right, "big") ^ scaled(right, factor)
                other_left = [x ^ TIMES[factor][y] for x, y in zip(other_left, left)]
                rows[other] = other_left, total.to_bytes(page_size, "big")
    return {position: right for position, (_, right) in zip(lost, rows)}


# ---- Control, sections 1 and 4 ----------------------------------------------------------------

class Control:
    """Sends requests about one file."""

    def __init__(self, url):
        self.url = urllib.parse.urlsplit(url)
        self.token = None

    def request(self, endpoint, body=None, **headers):
        """Returns the body of the answer; None if it is an error, or the server is away."""
        headers = {f"X-{name}".replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            headers["X-TOKEN"] = self.token
        url = f"http://{self.url.netloc}/{endpoint}{self.url.path}"
        request = urllib.request.Request(url, data=body and json.dumps(body).encode(),
                                         headers=headers)
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
        """Returns bytes `first` to `last` of this version of the file, or none. Section 9."""
        headers = {"Range": f"bytes={first}-{last}", "If-Range": f'"{etag}"'}
        request = urllib.request.Request(f"http://{self.url.netloc}/file{self.url.path}",
                                         headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                if answer.status == 206:
                    return answer.read()
                sys.exit("the file changed")
        except OSError:
            return b""

    def manifest(self, etag, query=""):
        """Returns values of the manifest, and the content id. Waits until the server has them."""
        while True:
            request = urllib.request.Request(
                f"http://{self.url.netloc}/manifest{self.url.path}{query}")
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    if answer.headers["ETag"] != f'"{etag}"':
                        sys.exit("the file changed")
                    values = answer.read()
                    return ([values[at:at + VALUE] for at in range(0, len(values), VALUE)],
                            bytes.fromhex(answer.headers["X-BOOTCAST-B3"]))
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    sys.exit(f"manifest: {error.code} {error.read().decode().strip()}")
                time.sleep(min(float(error.headers.get("Retry-After", 1)), 1.0))
            except OSError:
                time.sleep(0.5)

    def zero_map(self, etag):
        """Returns the zero map of this version; none while the server does not know it."""
        request = urllib.request.Request(
            f"http://{self.url.netloc}/manifest{self.url.path}?zeros=1&known=1")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                if answer.headers["ETag"] == f'"{etag}"':
                    return answer.read()
        except OSError:
            pass
        return b""

    def join(self, on_demand, wants_leaves):
        """Sends joins until one is answered. Returns the lines of the answer."""
        extra = {"BOOTCAST_FILL": "demand"} if on_demand else {}
        # Only then the server looks at the zero map.
        extra.update({"BOOTCAST_LEAVES": "1"} if wants_leaves else {})
        self.token = None
        for pause in itertools.chain((0.1, 0.2, 0.5), itertools.repeat(1.0)):
            answer = self.request("join", BOOTCAST="1", **extra)
            if answer is not None:
                text = answer.decode()
                lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
                self.token = lines["TOKEN"]
                return lines
            time.sleep(pause)


def subscribe(group, port, options):
    """Returns a socket bound to the group, so that it receives no other group on this port."""
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
    """Repair symbols of a block."""

    def __init__(self):
        self.symbols = {}    # symbols held: number -> bytes
        self.sent = 0        # known number of symbols that the server has sent
        self.promised = 0    # known number of symbols that it has promised in all


class Membership:
    """One membership, from a join to the leave or to the end of the cast.

    `held` maps page numbers to bytes. It outlives the membership.
    """

    def __init__(self, control, options, version):
        lines = control.join(options.want is not None, options.zeros or options.leaves)
        if version.setdefault("etag", lines.get("ETAG")) != lines.get("ETAG"):
            sys.exit("the file changed")
        self.control, self.held = control, version.setdefault("pages", {})
        # Values of leaves that the cast stated, and its content id: proven later.
        self.values, version["b3"] = version.setdefault("values", {}), lines.get("B3")
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
        self.at = None                # stream position of the last beacon, or of the first page
        self.moved = self.had_moved = False    # whether pages came since the join; the same
                                               # at the last beacon
        self.resting = None           # time at which the stream came to rest
        self.over = False             # whether the membership has ended
        now = time.monotonic()
        self.joined = now
        self.heard = now              # time of the last datagram
        self.told = now               # time of the last request to the server
        self.etag, self.deaf = lines.get("ETAG"), False
        # When to ask for the zero map, and whether it is here.
        self.zeros_at, self.zeros = now if options.zeros and self.repairs else math.inf, False
        self.report_at = None         # time of the next report of needs, drawn at random
        self.quiet_until = 0.0        # time before which no report of needs is sent
        # Any hash that is uniform over tokens will do.
        self.share = int.from_bytes(hashlib.sha256(control.token.encode()).digest()[:2], "big")
        self.received = 0
        # Numbers of datagrams sent and received: at the first beacon, and from then to the newest.
        self.first, self.newest = None, (0, 0)

    # Geometry, section 5 "Windows and blocks". Pages count from 1, windows, blocks and positions
    # from 0.

    def place(self, page):
        """Returns the block of a page and its position there."""
        window, x = divmod(page - 1, K * self.interleave)
        blocks = self.blocks_in(window)
        return window * self.interleave + x % blocks, x // blocks

    def blocks_in(self, window):
        """Returns the number of blocks in a window; 0 if the file has no such window."""
        pages = min(self.pages - window * K * self.interleave, K * self.interleave)
        return max(-(-pages // K), 0)

    def pages_of(self, block):
        """Returns the pages of a block, in the order of their positions."""
        window, x = divmod(block, self.interleave)
        begin = window * K * self.interleave
        end = min(begin + K * self.interleave, self.pages)
        return range(begin + x + 1, end + 1, self.blocks_in(window))

    def missing(self, block):
        return [page for page in self.pages_of(block) if page not in self.held]

    def length(self, page):
        """Returns the bytes in a page. The last page counts as full if `SIZE` is unknown."""
        last = self.size - (self.pages - 1) * self.page_size if self.size else self.page_size
        return last if page == self.pages else self.page_size

    def is_done(self):
        return len(self.held) == self.pages

    # Datagrams.

    def receive(self, wait):
        """Waits up to `wait` seconds for datagrams, and handles those that arrived."""
        for ready in select.select(self.sockets, [], [], max(wait, 0))[0]:
            for _ in range(256):
                try:
                    datagram, sender = ready.recvfrom(65535)
                except BlockingIOError:
                    break
                if len(datagram) < 16 or (self.source and sender[0] != self.source):
                    continue
                handle = self.page if ready is self.data else self.repair
                if self.sender in (None, sender) and handle(datagram):
                    self.sender, self.heard = sender, time.monotonic()

    def page(self, datagram):
        """Handles a page (section 2). Returns whether the datagram was valid."""
        size, page = struct.unpack("!2I", datagram[:8])
        if not (1 <= page <= self.pages and 0 < size <= len(datagram) - 16):
            return False
        may_be_short = not self.size and page == self.pages
        if size != self.length(page) and not (may_be_short and size <= self.page_size):
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
        """Handles a datagram of the repair channel (section 5). Returns whether it was valid."""
        kind, promised, number, block = struct.unpack("!BBHI", datagram[:8])
        payload = datagram[16:]
        if kind == SYMBOL:
            return self.symbol(block, number, promised, payload)
        if kind == BEACON and len(payload) >= FIXED:
            return self.take_beacon(payload)
        if kind == LEAVES:    # the fields are: number of values, first leaf, segment
            return self.take_leaves(promised, number, block, payload)
        self.over |= kind == END
        return kind == END

    def symbol(self, index, number, promised, payload):
        window, x = divmod(index, self.interleave)
        if x >= self.blocks_in(window) or number >= K or len(payload) != self.page_size:
            return False
        self.received += 1
        block = self.blocks.setdefault(index, Block())
        block.symbols[number] = payload
        if block.sent < K:    # beyond, numbers begin again at 0, and only beacons state the count
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
            end = 4 + 2 * self.blocks_in(window)
            counts, rest = rest[4:end], rest[end:]
            for x, (sent, promised) in enumerate(zip(counts[::2], counts[1::2])):
                block = self.blocks.setdefault(window * self.interleave + x, Block())
                block.sent, block.promised = max(block.sent, sent), max(block.promised, promised)
        self.close_windows(position)
        return True

    def take_leaves(self, count, first, segment, payload):
        first += segment * SEGMENT
        end = min(-(-self.size // LEAF), (segment + 1) * SEGMENT)
        if count == 0 or len(payload) != count * VALUE or first + count > end:
            return False
        for leaf in range(first, first + count):
            at = (leaf - first) * VALUE
            self.values[leaf] = payload[at:at + VALUE]
        return True

    def close_windows(self, position):
        """Closes the windows that the stream has passed on its way to `position`."""
        size, count = K * self.interleave, -(-self.pages // (K * self.interleave))
        before, self.at = position if self.at is None else self.at, position
        all_passed = before == position == 0 and self.had_moved
        self.had_moved = self.moved
        if position >= self.pages:
            self.resting = self.resting or time.monotonic()
            all_passed = self.moved or time.monotonic() - self.resting >= REST
        else:
            self.resting = None
            begin = 0 if before >= self.pages else before // size
            passed = range(begin, position // size) if begin * size <= position else \
                [*range(begin, count), *range(position // size)]
            self.closed.update(passed)
        if all_passed:
            self.closed.update(range(count))

    # Reports.

    def lacks(self):
        """Returns `needs` and `bulk` of a report: what this member lacks beyond the promises."""
        needs, bulk = [], []
        for window in sorted(self.closed):
            window_needs = []
            for index in range(window * self.interleave,
                               window * self.interleave + self.blocks_in(window)):
                missing, block = len(self.missing(index)), self.blocks.get(index, Block())
                if 4 * missing >= len(self.pages_of(index)):
                    bulk.append([window, 1])
                    break
                need = missing + block.sent - len(block.symbols)
                if missing and need > block.promised:
                    window_needs.append([index, min(need, 255)])
            else:
                needs += window_needs
        return needs, bulk

    def report(self, needs, bulk):
        now = time.monotonic()
        body = {"needs": needs, "bulk": bulk, "sent": self.newest[0], "received": self.newest[1]}
        body.update({"zeros": True} if self.zeros else {})
        self.over |= self.control.request("report", body) is None
        for window, _ in bulk:           # the stream sends these windows again
            self.closed.discard(window)
            self.moved = self.had_moved = False
            self.resting = None
        self.told, self.report_at = now, None
        self.quiet_until = now + 2 * self.beacon["spread"]
        self.beacon["stale"] = True      # it does not know of this report

    def is_among(self, share):
        return self.share < share or share == 65535

    def report_if_due(self):
        """Sends a report if one is due (sections 5 and 8). Must be called often."""
        now, beacon = time.monotonic(), self.beacon
        if beacon is None or beacon.get("stale"):
            return
        needs, bulk = ([], []) if self.on_demand else self.lacks()
        is_lacking = needs or bulk
        if is_lacking and self.report_at is None and self.is_among(beacon["permit"]):
            if now >= self.quiet_until:
                self.report_at = now + backoff(beacon["spread"], beacon["members"])
        elif is_lacking and self.report_at is not None and now >= self.report_at:
            self.report(needs, bulk)
        elif not is_lacking:
            self.report_at = None
        every = beacon["interval"] if self.is_among(beacon["panel"]) else 0
        if now - self.told >= min(every or math.inf, self.lease / 2):
            self.report(needs, bulk)

    def take_zeros_if_due(self):
        """Takes pages of zeros from the zero map, and tells the server. Must be called often."""
        now = time.monotonic()
        if now < self.zeros_at:
            return
        self.zeros_at = now + ZEROS_AGAIN
        zeros = self.control.zero_map(self.etag)
        if len(zeros) != -(-self.size // (8 * LEAF)):
            return
        self.zeros_at, self.zeros = math.inf, True
        for page in range(1, self.pages + 1):
            begin = (page - 1) * self.page_size
            leaves = range(begin // LEAF, (begin + self.length(page) - 1) // LEAF + 1)
            if all(zeros[leaf // 8] >> leaf % 8 & 1 for leaf in leaves):
                self.held.setdefault(page, bytes(self.length(page)))
        self.over |= self.control.request("report", {"zeros": True}) is None

    # HTTP instead of multicast, section 9.

    def fetch_if_deaf(self):
        """Fetches missing pages over HTTP while no datagram arrives. Must be called often."""
        now = time.monotonic()
        if self.deaf and self.heard > self.joined:
            self.deaf = False
            self.closed.update(range(-(-self.pages // (K * self.interleave))))
            self.told = -math.inf    # a report of everything missing is due at the next beacon
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
    """Draws a time up to `spread` (RFC 5740, 5.3).

    The distribution is truncated exponential: few members draw a short time, most a long one.
    """
    rate = math.log(members) + 1
    return spread / rate * math.log(random.random() * (math.exp(rate) - 1) + 1)


# ---- Proof, section 4 "Manifest" and section 5 "Leaf lists" ------------------------------------

def prove(control, version, content):
    """Returns the content, wrong leaves replaced. Prints the content id and what it took."""
    segments, content_id = control.manifest(version["etag"])
    found = b3.merge(segments, root=True) if segments else b3.value(b"", root=True)
    if found != content_id or version["b3"] not in (None, content_id.hex()):
        sys.exit("the list of segments is not that of the content id")
    count = -(-len(content) // LEAF)
    values, from_cast = [], 0
    for segment, proven in enumerate(segments):
        leaves = range(segment * SEGMENT, min((segment + 1) * SEGMENT, count))
        listed = [version["values"].get(leaf, bytes(VALUE)) for leaf in leaves]
        if b3.merge(listed, root=len(segments) == 1) == proven:
            from_cast += 1
        else:
            listed, _ = control.manifest(version["etag"], f"?segments={segment}-{segment}")
            if len(listed) != len(leaves) or b3.merge(listed, len(segments) == 1) != proven:
                sys.exit("a list of leaves is not that of the content id")
        values += listed
    content, wrong = bytearray(content), 0
    for leaf, proven in enumerate(values):
        begin, end = leaf * LEAF, min((leaf + 1) * LEAF, len(content))
        if b3.value(content[begin:end], begin, count == 1) != proven:
            wrong += 1
            content[begin:end] = control.fetch(begin, end - 1, version["etag"])
            if b3.value(content[begin:end], begin, count == 1) != proven:
                sys.exit("the server sends other bytes than those of the content id")
    print(content_id.hex())
    print(f"lists: {from_cast} from the cast, {len(segments) - from_cast} over HTTP; "
          f"wrong leaves: {wrong}")
    return content


# ---- Main program -----------------------------------------------------------------------------

def receive(control, options):
    """Returns the whole file."""
    version = {}
    while True:
        member = Membership(control, options, version)
        while not member.is_done() and not member.over and \
                (member.deaf or time.monotonic() - member.heard < SILENCE):
            member.receive(0.01)
            if member.repairs and not member.deaf:
                member.take_zeros_if_due()
                member.report_if_due()
            if not member.is_done():
                member.fetch_if_deaf()
        member.close()
        if member.is_done():
            content = b"".join(member.held[page] for page in range(1, member.pages + 1))
            return prove(control, version, content) if options.leaves else content


def want(control, options):
    """Returns the pages that `--want` names, by demand (section 7)."""
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
            until = member.told + pause
            while time.monotonic() < until and any(p not in member.held for p in missing):
                member.receive(until - time.monotonic())
        member.close()
        if all(page in member.held for page in wanted):
            return b"".join(member.held[page] for page in wanted)


def runs(pages):
    """Groups ascending page numbers into pairs of a first page and a number of pages."""
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
    options.add_argument("--interface", default="0.0.0.0",
                         help="address of the receiving interface")
    options.add_argument("--buffer", type=int, default=4 << 20,
                         help="size of the receive buffer of each socket, in bytes")
    options.add_argument("--want", nargs=2, type=int, metavar=("FIRST", "COUNT"),
                         help="demand only these pages, counted from 1")
    options.add_argument("--leaves", action="store_true", help="prove the file by its content id")
    options.add_argument("--zeros", action="store_true", help="take zeros from the zero map")
    options = options.parse_args()
    content = (receive if options.want is None else want)(Control(options.url), options)
    with open(options.output, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    main()
