"""Runs a service as systemd does that has Restart=on-failure and FileDescriptorStoreMax=.

Usage: service_manager.py SOCKET COMMAND..

Keeps the descriptors that the service sends to SOCKET by sd_notify(3), and passes them to the next
process as in sd_listen_fds(3) when the service was killed. Exits with the status of a service that
ends by itself.
"""

import array
import os
import selectors
import signal
import socket
import sys

LISTEN_FDS_START = 3

path, command = sys.argv[1], sys.argv[2:]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(path)
store = []


def start():
    """Starts the service with the stored descriptors. Returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    environment = dict(os.environ, NOTIFY_SOCKET=path)
    if store:
        # Out of the way first: a target may be the number of another source.
        copies = [(os.dup2(fd, 100 + index), name) for index, (name, fd) in enumerate(store)]
        for index, (copy, _) in enumerate(copies):
            os.dup2(copy, LISTEN_FDS_START + index, inheritable=True)
        environment["LISTEN_PID"] = str(os.getpid())
        environment["LISTEN_FDS"] = str(len(copies))
        environment["LISTEN_FDNAMES"] = ":".join(name for _, name in copies)
        os.closerange(100, 100 + len(copies))
    os.execve(command[0], command, environment)


def receive():
    """Handles one message of the service."""
    space = socket.CMSG_SPACE(8 * array.array("i").itemsize)
    text, control, _, _ = notify.recvmsg(4096, space, socket.MSG_CMSG_CLOEXEC)
    state = dict(line.split("=", 1) for line in text.decode().splitlines())
    descriptors = array.array("i")
    for _, _, data in control:
        descriptors.frombytes(data)
    name = state.get("FDNAME", "stored")
    if "FDSTORE" in state:
        if name not in [stored for stored, _ in store]:
            store.extend((name, fd) for fd in descriptors)
    if "FDSTOREREMOVE" in state:
        for entry in [entry for entry in store if entry[0] == name]:
            os.close(entry[1])
            store.remove(entry)
    print("service:", text.decode().replace("\n", " "), flush=True)


# A signal wakes the selector.
wakeup_read, wakeup_write = os.pipe()
os.set_blocking(wakeup_write, False)
signal.set_wakeup_fd(wakeup_write)
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: os.kill(service, signal.SIGTERM))

selector = selectors.DefaultSelector()
selector.register(notify, selectors.EVENT_READ)
selector.register(wakeup_read, selectors.EVENT_READ)
service = start()
while True:
    for key, _ in selector.select():
        if key.fileobj is notify:
            receive()
            continue
        os.read(wakeup_read, 64)
        pid, status = os.waitpid(service, os.WNOHANG)
        if not pid:
            continue
        if not os.WIFSIGNALED(status):
            notify.close()
            os.unlink(path)
            sys.exit(os.waitstatus_to_exitcode(status))
        service = start()
