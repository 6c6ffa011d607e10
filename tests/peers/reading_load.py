"""Reads files of a mount in many ways until SIGTERM, and compares every byte.

Usage: reading_load.py MOUNT ORIGINALS NAME..

Prints from time to time how many calls each thread has made at least, and at last the longest time
that one call took, in milliseconds. Ends with status 1 and a message when a call fails, or returns
something else than the originals have.
"""

import mmap
import os
import random
import signal
import sys
import threading
import time

mount, originals, names = sys.argv[1], sys.argv[2], sys.argv[3:]
# An event would not do: its lock may be held when the signal arrives.
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
contents = {name: open(f"{originals}/{name}", "rb").read() for name in names}
calls, longest, failures = {}, [(0.0, "")], []


def timed(what, call, *arguments):
    """Makes a call, and notes how long it took."""
    begin = time.monotonic()
    result = call(*arguments)
    took = time.monotonic() - begin
    thread = threading.get_ident()
    calls[thread] = calls.get(thread, 0) + 1
    longest[0] = max(longest[0], (took, what))
    return result


def check(name, offset, data, what):
    expected = contents[name][offset : offset + len(data)]
    assert data == expected and data, f"{what}: other bytes in {name} at {offset}"


def open_and_read(chance):
    """Opens a file, reads a part of it, and closes it."""
    name = chance.choice(names)
    offset = chance.randrange(len(contents[name]))
    file = timed("open", os.open, f"{mount}/{name}", os.O_RDONLY)
    try:
        check(name, offset, timed("read", os.pread, file, 100_000, offset), "read")
    finally:
        timed("close", os.close, file)


def read_directly(chance, files={}):
    """Reads without the page cache, through a descriptor that stays open."""
    name = chance.choice(names)
    if name not in files:
        files[name] = os.open(f"{mount}/{name}", os.O_RDONLY | os.O_DIRECT)
    offset = chance.randrange(len(contents[name]) // 4096) * 4096
    buffer = mmap.mmap(-1, 65536)
    length = timed("direct read", os.preadv, files[name], [buffer], offset)
    check(name, offset, buffer[:length], "direct read")


def look_up(chance):
    """Looks up a name and lists the directory."""
    name = chance.choice(names)
    size = timed("stat", os.stat, f"{mount}/{name}").st_size
    assert size == len(contents[name]), f"stat: {name} has {size} bytes"
    listed = set(timed("list", os.listdir, mount))
    assert set(names) <= listed, f"list: {listed}"


def work(job, seed):
    chance = random.Random(seed)
    while not stopping and not failures:
        try:
            job(chance)
        except Exception as error:
            failures.append(f"{job.__name__}: {error!r}")


jobs = [open_and_read, open_and_read, read_directly, look_up]
threads = [threading.Thread(target=work, args=(job, seed)) for seed, job in enumerate(jobs)]
for thread in threads:
    thread.start()
while not stopping and not failures:
    time.sleep(0.02)
    counts = list(calls.values())
    print(f"calls={min(counts) if len(counts) == len(jobs) else 0}", flush=True)
for thread in threads:
    thread.join()
took, what = longest[0]
print(f"longest={took * 1000:.0f} ms in {what}, {sum(calls.values())} calls")
sys.exit("\n".join(failures) or 0)
