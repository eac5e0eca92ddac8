"""Requests that no client would send, and those that one might, by schemathesis from the server's own OpenAPI schema.

python -m dev.fuzz_server                    about 200 cases
python -m dev.fuzz_server --examples=2700    over 10,000

In: a server started here with a tiny random model. Out: exit status 1 if any answer is a 5xx or does not come in time.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass

from dev.bench.serve import random_server
from nanochat.configurator import launch


@dataclass(frozen=True)
class Config:
    """Fuzz a server."""

    examples: int = 50
    """of each operation, right ones and wrong ones"""
    seconds: float = 20.0
    """within which every answer must come"""
    seed: int = 0
    """of the cases"""


def fuzz(cfg: Config) -> int:
    """Exit status of schemathesis: 0 if nothing was wrong."""
    with random_server(context=128, max_batch=8) as url:
        command = f"""schemathesis run {url}/openapi.json --mode all --phases fuzzing --checks not_a_server_error
            --max-examples {cfg.examples} --request-timeout {cfg.seconds} --seed {cfg.seed} --no-color"""
        script = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
        with tempfile.TemporaryDirectory() as folder:  # for the notes that it makes
            return subprocess.run([sys.executable, "-c", script, *command.split()[1:]], cwd=folder).returncode


def main(cfg: Config) -> None:
    sys.exit(fuzz(cfg))


if __name__ == "__main__":
    launch(main, Config)
