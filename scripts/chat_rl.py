"""Reinforcement learning: the assistant tries problems, and what was right becomes likelier.

    python -m scripts.chat_rl

Policy gradient on fresh answers only, so there is no ratio to clip and no reference model: the advantage of an answer
is its reward minus the mean of all answers to the same problem (GRPO without the division by the deviation: Liu et al.,
2025), and every token of a step weighs the same (DAPO: Yu et al., 2025).
"""

from dataclasses import dataclass

import numpy as np
import torch

from nanochat import checkpoint_manager
from nanochat.chat_eval import evaluate
from nanochat.common import Dist, setup
from nanochat.configurator import parse
from nanochat.engine import Completion, Engine, Sampling
from nanochat.optim import build_optimizers, linear
from nanochat.stage import RunConfig, finished, resume_point, train
from nanochat.trainer import Batch
from tasks import registry


@dataclass(frozen=True)
class Config(RunConfig):
    """Reinforcement learning: the assistant tries problems, and what was right becomes likelier."""

    task: str = "GSM8K"
    """what to practise: GSM8K, or a task of the quickstart such as Arithmetic or Spelling"""
    lr_scale: float = 0.05
    """multiplies all learning rates"""
    examples_per_step: int = 16
    """problems in a step, over all devices"""
    num_samples: int = 16
    """answers to each problem"""
    max_tokens: int = 256
    """tokens of an answer at most"""
    temperature: float = 1.0
    """of the answers; at 1 and without cuts they come from the very distribution that is trained"""
    eval_items: int = 400
    """problems in an evaluation, none of which is trained on"""


class Rollouts:
    """Batches of answers to the task's problems, sampled from the model as it is now."""

    def __init__(self, cfg: Config, task, engine: Engine, dist: Dist, position: dict | None):
        if cfg.examples_per_step % dist.world_size:
            raise SystemExit(
                f"--examples_per_step={cfg.examples_per_step} must be a multiple of {dist.world_size} ranks."
            )
        self.cfg, self.task, self.engine, self.dist = cfg, task, engine, dist
        self.position = dict(position or {"problems": 0})
        self.progress = None
        self.reward = float("nan")

    def __iter__(self):
        while True:
            share = self.cfg.examples_per_step // self.dist.world_size
            first = self.position["problems"] + self.dist.rank * share
            self.engine.refresh()
            rows, rewards = [], []
            for number in range(first, first + share):
                answers, graded = self._try(number)
                mean = sum(graded) / len(graded)
                rewards += graded
                rows += [(prompt, answer, reward - mean) for (prompt, answer), reward in zip(answers, graded)]
            self.position = {"problems": self.position["problems"] + self.cfg.examples_per_step}
            total = torch.tensor([sum(rewards), len(rewards)], dtype=torch.float32, device=self.dist.device)
            right, count = self.dist.all_reduce(total).tolist()
            self.reward = right / count
            size = self.cfg.device_batch_size
            yield [self._batch(rows[i : i + size]) for i in range(0, len(rows), size)]

    def _try(self, number: int):
        """Answers to one problem, as (prompt, completion), and their rewards. Seeds follow from `number`."""
        epoch, index = divmod(number, len(self.task))
        order = np.random.default_rng((self.cfg.seed, epoch)).permutation(len(self.task))
        conversation = self.task[int(order[index])]
        prompt = self.engine.tokenizer.render_for_completion(conversation).tolist()
        seeds = np.random.SeedSequence((self.cfg.seed, number)).generate_state(self.cfg.num_samples)
        sampling = [
            Sampling(max_tokens=self.cfg.max_tokens, temperature=self.cfg.temperature, seed=int(seed)) for seed in seeds
        ]
        completions = self.engine.generate([prompt] * self.cfg.num_samples, sampling)
        rewards = [float(self.task.grade(conversation, completion)) for completion in completions]
        return [(prompt, completion) for completion in completions], rewards

    def _batch(self, rows: list[tuple[list[int], Completion, float]]) -> Batch:
        """Only tokens that the model chose are targets: not the prompt, not the output of tools."""
        length = max(len(prompt) + len(answer.ids) for prompt, answer, _ in rows)
        tokens = torch.full((len(rows), length), self.engine.tokenizer.bos_id)
        learn = torch.zeros((len(rows), length), dtype=torch.bool)
        weights = torch.zeros((len(rows), length - 1))
        for row, (prompt, answer, advantage) in enumerate(rows):
            end = len(prompt) + len(answer.ids)
            tokens[row, :end] = torch.tensor([*prompt, *answer.ids])
            learn[row, len(prompt) : end] = torch.tensor(answer.mask)
            weights[row] = advantage
        targets = torch.where(learn, tokens, -1)[:, 1:]
        device = self.dist.device
        return Batch(tokens[:, :-1].to(device), targets.to(device), weights.to(device))


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        tag = cfg.model_tag or checkpoint_manager.find("sft").parent.name
        checkpoint = resume_point(cfg, "rl", tag, dist)
        if finished(checkpoint, dist):
            return
        start = checkpoint or checkpoint_manager.load("sft", tag, device=dist.device)
        practice, held_out = registry.practice(cfg.task)
        engine = Engine(start.model, start.tokenizer, max_batch=cfg.num_samples)
        rollouts = Rollouts(cfg, practice, engine, dist, checkpoint.state.data if checkpoint else None)
        one_epoch = -(-len(practice) // cfg.examples_per_step)

        def evaluate_pass(model, last: bool) -> dict[str, float]:
            engine.refresh()
            score = evaluate(
                engine, start.tokenizer, held_out, max_items=cfg.eval_items, max_tokens=cfg.max_tokens, dist=dist
            )
            return {"reward": rollouts.reward, f"accuracy {cfg.task}": score.accuracy}

        train(
            cfg,
            dist,
            stage="rl",
            tag=tag,
            title="RL",
            model=start.model,
            tokenizer=start.tokenizer,
            optimizers=build_optimizers(start.model, dist, cfg.lr_scale),
            batches=rollouts,
            schedule=linear(1.0, 0.0),
            num_steps=cfg.num_steps or (None if cfg.minutes else one_epoch),
            evaluate=evaluate_pass,
            checkpoint=checkpoint,
        )


if __name__ == "__main__":
    main(parse(Config))
