"""A network of hosts for tests: one TUN device in each network namespace, and every packet passes here.

Usage: testbed.py NAMESPACE=PREFIX... ; each namespace gets a device `t0` that owns the route
to everything. A packet goes to the namespace whose prefix (10.99.1. for example) its destination
starts with; others are dropped. Lines on stdin, `DELAY_MS LOSS`, set what happens to all packets
from then on. The random numbers are seeded: two runs lose alike.
"""

import fcntl
import heapq
import os
import random
import selectors
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
BATCH = 256


def device(namespace):
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open("/run/netns/" + namespace, os.O_RDONLY)
    setns(there)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", b"t0", IFF_TUN | IFF_NO_PI))
    setns(home)
    os.close(home)
    os.close(there)
    return fd


def setns(fd):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def main():
    prefixes = []
    selector = selectors.DefaultSelector()
    for argument in sys.argv[1:]:
        namespace, prefix = argument.split("=")
        fd = device(namespace)
        prefixes.append((bytes(int(part) for part in prefix.strip(".").split(".")), fd))
        selector.register(fd, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    os.set_blocking(sys.stdin.fileno(), False)
    dice = random.Random(1)
    delay, loss, queue, count = 0.0, 0.0, [], 0
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        wait = max(0.0, queue[0][0] - now) if queue else None
        for key, _ in selector.select(wait):
            if key.fileobj is sys.stdin:
                line = sys.stdin.readline()
                if not line:
                    return
                words = line.split()
                delay, loss = float(words[0]) / 1000, float(words[1])
                print("set", flush=True)
                continue
            for _ in range(BATCH):
                try:
                    packet = os.read(key.fileobj, 65536)
                except BlockingIOError:
                    break
                if packet[0] >> 4 != 4 or dice.random() < loss:
                    continue
                to = packet[16:20]
                fd = next((fd for prefix, fd in prefixes if to.startswith(prefix)), None)
                if fd is None:
                    continue
                count += 1
                heapq.heappush(queue, (time.monotonic() + delay, count, fd, packet))
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, fd, packet = heapq.heappop(queue)
            try:
                os.write(fd, packet)
            except OSError:
                pass


main()
