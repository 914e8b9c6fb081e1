"""Bytes of a run, confirmed by the kernel's own counters: two ranks in two network namespaces joined by one cable.

Run ``python benchmarks/wire_bytes.py`` as root on Linux (it uses ``ip netns``). A virtual Ethernet pair joins the two
namespaces; each rank runs attention by ring, and the interface's counter of sent bytes, read before and after, is
compared with the formula. What the counter holds besides the payload is known:

- every frame has 14 bytes of Ethernet, 20 of IPv4 and 32 of TCP (20, and 12 of timestamps): 66 bytes for each of the
  frames that the interface counted, acknowledgements included (a frame that the kernel hands to a virtual interface
  in one piece, to be cut up later, is counted once, with one header);
- gloo puts a header before each message.

So payload = bytes - 66 frames, and what is left over the formula is gloo's headers and what the ranks say to start and
end together. It does not grow with the length: the difference of two lengths must be that of the formula, exactly but
for the number of gloo's headers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from validate.job import Job
from validate.launch import Rank

SPACES = ("costmodel-a", "costmodel-b")
LINKS = ("cm-a", "cm-b")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
LENGTHS = (1024, 4096, 16384)
HEADERS = 66  # Ethernet 14, IPv4 20, TCP 20 and timestamps 12


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)


def join() -> None:
    """Two namespaces and the cable between them."""
    for space in SPACES:
        ip("netns", "add", space)
    ip("link", "add", LINKS[0], "netns", SPACES[0], "type", "veth", "peer", "name", LINKS[1], "netns", SPACES[1])
    for space, link, address in zip(SPACES, LINKS, ADDRESSES, strict=True):
        inside = ("-n", space)
        ip(*inside, "addr", "add", f"{address}/24", "dev", link)
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "link", "set", link, "up")


def part() -> None:
    for space in SPACES:
        ip("netns", "del", space, check=False)


def counted(link: str) -> tuple[int, int]:
    """Bytes and frames that an interface sent, by the kernel's counters."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (fields,) = [line.partition(":")[2].split() for line in lines if line.strip().startswith(f"{link}:")]
    return int(fields[8]), int(fields[9])


def job(length: int) -> Job:
    return Job("attention", "ring", "fused", {"context": 2}, length, sizes={"heads": 2, "head_dim": 64})


def rank(index: int, store: str) -> None:
    """Run each length, and print what the interface sent."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = LINKS[index]
    dist.init_process_group("gloo", f"file://{store}", rank=index, world_size=2, timeout=timedelta(seconds=60))
    for length in LENGTHS:
        asked = job(length)
        layer = asked.on(Rank(index, 2, 60.0))
        layer.load(asked.weights(layer.whole_shapes, "fp32"))
        x = asked.tokens(layer, 0, "fp32")
        with torch.no_grad():
            layer(x)  # connections are made, shapes compared
            dist.barrier()
            time.sleep(0.5)
            before, sent = counted(LINKS[index]), dict(layer.ops.transport.sent)
            run = layer.block(length)
            run(layer.ops, x, layer.tables(length), (), dict(layer.weights.items()))
            time.sleep(0.5)  # the last acknowledgements
            after = counted(LINKS[index])
        own = layer.ops.transport.sent["context"] - sent["context"]
        formula = asked.expected.sent(index)["context"]
        assert own == formula, (own, formula)
        size, frames = (b - a for a, b in zip(before, after, strict=True))
        payload = size - HEADERS * frames
        sys.stdout.write(
            f"rank {index}, {length:6d} tokens: formula and transport {formula.bytes:9d} bytes in {formula.messages} "
            f"messages; interface {size:9d} bytes in {frames:5d} frames, payload {payload:9d}: "
            f"{payload - formula.bytes:+d}\n"
        )
        sys.stdout.flush()
        dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    part()
    try:
        join()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__]
            store = str(Path(folder) / "store")
            both = [
                subprocess.Popen(["ip", "netns", "exec", space, *command, str(index), store])
                for index, space in enumerate(SPACES)
            ]
            for process in both:
                process.wait(120)
    finally:
        part()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        rank(int(sys.argv[1]), sys.argv[2])
    else:
        main()
