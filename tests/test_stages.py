"""Midtraining, SFT (low-rank) and RL, killed at any moment, end with the same bytes as the run that was not.

Run as a program, this file is the parent of all the runs: it imports torch once and forks a child for each.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from corpus import require_corpus

from nanochat import checkpoint_manager
from nanochat.gpt import GPT
from nanochat.trainer import State

STEPS = 5


def test_a_killed_stage_resumes_and_ends_as_the_run_that_was_not_killed(base_dir, tiny_model, tiny_tokenizer):
    require_corpus()
    model = GPT(replace(tiny_model.config, sequence_len=192))
    model.load_state_dict(tiny_model.state_dict())
    for tag in ("whole", "killed"):
        checkpoint_manager.save(
            checkpoint_manager.folder_of("base", tag),
            model,
            tiny_tokenizer,
            stage="base",
            state=State(step=1),
            settings={"total_batch_size": 768},
        )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("killed at") == 3, done.stdout
    for stage in ("mid", "sft", "rl"):
        whole, killed = (checkpoint_manager.folder_of(stage, tag) / f"step_{STEPS:06d}" for tag in ("whole", "killed"))
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert (whole / name).read_bytes() == (killed / name).read_bytes(), (stage, name)
        assert read_log(base_dir, stage, "whole") == read_log(base_dir, stage, "killed")
        losses = [row["loss"] for row in read_log(base_dir, stage, "whole")]
        assert len(losses) == STEPS and len(set(losses)) == STEPS
    assert {"reward", "length", "ended"} <= set(read_log(base_dir, "rl", "whole")[0])


def read_log(base_dir: Path, stage: str, tag: str) -> list[dict]:
    rows = map(json.loads, (base_dir / "logs" / f"{stage}-{tag}.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# The parent of the runs


def main() -> None:
    import torch

    from scripts import chat_rl, chat_sft, mid_train
    from tasks import mixtures, registry
    from tasks.mental import MentalArithmetic

    class Odd(MentalArithmetic):
        """Pays for what a model with random weights does half of the time."""

        def grade(self, conversation, completion):
            return len(completion.text) % 2 == 1

    registry.practice = lambda name: (Odd("train"), Odd("validation"))
    mixtures.sft_mixture(10)  # the words and articles are read once, here
    common = {"device": "cpu", "num_iterations": STEPS, "save_every": 1, "eval_every": 0, "keep_last": 99}
    stages = {
        "mid": (mid_train, {"mixture": "quickstart", "device_batch_size": 2}),
        "sft": (chat_sft, {"mixture": "quickstart", "device_batch_size": 4, "lora_rank": 2}),
        "rl": (chat_rl, {"examples_per_step": 2, "num_samples": 4, "max_tokens": 8, "lr_scale": 0.3}),
    }

    def start(stage, tag, resume=False) -> int:
        if child := os.fork():
            return child
        torch.set_num_threads(1)
        script, settings = stages[stage]
        script.main(script.Config(**common, **settings, model_tag=tag, resume=resume))
        os._exit(0)

    for stage in stages:
        assert os.waitpid(start(stage, "whole"), 0)[1] == 0
        folder = checkpoint_manager.folder_of(stage, "killed")
        child = start(stage, "killed")
        while not (folder / "step_000002").exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended before it was killed"
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("killed at", stage, flush=True)
        assert os.waitpid(start(stage, "killed", resume=True), 0)[1] == 0


if __name__ == "__main__":
    main()
