"""Two processes that know each other as ranks, as torchrun would start them; and a port that is free."""

import os
import socket
import subprocess
import sys


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run_two_ranks(program: str, *arguments) -> list[tuple[int, str, str]]:
    """(exit status, what it printed, its errors) of each rank of a Python program."""
    meet = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, **meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300) for process in ranks]
    return [(process.returncode, out, error) for process, (out, error) in zip(ranks, said)]
