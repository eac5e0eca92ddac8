"""Many answers at once while as many others are hung up on, over real sockets.

python -m dev.storm                                          a server of its own, with a random model
python -m dev.storm --url=http://127.0.0.1:8000 --count=50   one that is there already

Out: how many answers differ from those to the same requests alone (exit status 1 if any does), and how many seconds
after the last of the others hung up their places were free.
"""

import asyncio
import json
import random
import socket
import struct
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from dev.bench.serve import random_server
from nanochat.configurator import launch

NO_LINGER = struct.pack("ii", 1, 0)  # closing sends a reset: what a crash or a cable that was pulled looks like


@dataclass(frozen=True)
class Config:
    """Many answers at once while as many others are hung up on."""

    url: str = ""
    """of a server that takes so many requests; by default one is started"""
    count: int = 200
    """answers that are read to their ends, and as many that are not"""
    seed: int = 0
    """of the requests and of the moments"""


def requests(count: int, seed: int) -> list[dict]:
    """Bodies of different lengths, greedy and drawn."""
    choose = random.Random(seed)
    words = "why is the sky so blue and what makes the sea salt".split()
    bodies = []
    for number in range(count):
        text = " ".join(choose.choices(words, k=choose.randint(1, 20)))
        temperature = choose.choice([0, 1])
        more = {"max_tokens": choose.randint(8, 40), "temperature": temperature, "seed": number, "stream": True}
        bodies.append({"messages": [{"role": "user", "content": text}], **more})
    return bodies


async def post(url: str, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + data)
    return reader, writer


async def read(url: str, body: dict) -> str:
    """The whole answer. RuntimeError if it is none."""
    reader, writer = await post(url, body)
    answer = (await reader.read()).decode()
    writer.close()
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    if "data: [DONE]" not in answer or not all("choices" in event for event in events):
        raise RuntimeError(f"no whole answer: {answer[:500]}")
    return "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])


async def hang_up(url: str, body: dict, seconds: float) -> None:
    _, writer = await post(url, body)
    await asyncio.sleep(seconds)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    writer.transport.abort()


async def held(url: str) -> int:
    """Answers that the server works on or keeps waiting."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    found = dict(line.split() for line in text.splitlines() if line.startswith("nanochat_") and line.count(" ") == 1)
    return int(float(found["nanochat_running"]) + float(found["nanochat_waiting"]))


async def storm(url: str, count: int, seed: int) -> tuple[int, float]:
    """Answers that differ from those alone; seconds until the places of those who hung up were free."""
    bodies = requests(count, seed)
    alone = [await read(url, body) for body in bodies]
    choose, long = random.Random(seed), {"max_tokens": 100_000, "temperature": 1}
    readers = [asyncio.ensure_future(read(url, body)) for body in bodies]
    leavers = [hang_up(url, {**body, **long}, choose.uniform(0, 2)) for body in bodies]
    await asyncio.gather(*leavers)
    left = time.monotonic()
    while await held(url) > sum(not reader.done() for reader in readers):
        await asyncio.sleep(0.01)
    freed = time.monotonic() - left
    together = await asyncio.gather(*readers)
    done = time.monotonic()  # the sum above may have hidden one behind a reader that had just finished; not this one
    while await held(url):
        await asyncio.sleep(0.01)
    return sum(a != b for a, b in zip(alone, together)), max(freed, time.monotonic() - done)


def main(cfg: Config) -> None:
    if cfg.url:
        sys.exit(report(cfg, cfg.url))
    with random_server(context=1024, max_batch=16) as url:
        status = report(cfg, url)
    sys.exit(status)


def report(cfg: Config, url: str) -> int:
    different, freed = asyncio.run(storm(url, cfg.count, cfg.seed))
    print(f"{cfg.count} answers beside {cfg.count} that were hung up on: {different} differ from those alone.")
    print(f"{freed:.2f} s after the last had hung up, all places were free.")
    return int(different > 0)


if __name__ == "__main__":
    launch(main, Config)
