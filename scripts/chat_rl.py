r"""Reinforcement learning: the assistant tries problems, and what was right becomes likelier.

    python -m scripts.chat_rl                                     GSM8K, with the calculator
    python -m scripts.chat_rl --task=MentalArithmetic --minutes=8 --examples_per_step=64 --num_samples=4 \
        --max_tokens=16 --lr_scale=0.3 --device_batch_size=128    sums in the head, after the quickstart, on a CPU

Policy gradient (Williams, 1992) on fresh answers only, so there is no ratio to clip. Of G answers to a problem, answer
i with the reward r_i has the advantage A_i = r_i - mean(r_1 ... r_G), and a step goes down the gradient of

    L = - 1/N * sum over answers i, tokens t that the model chose:  A_i * log p(token t of i | what came before)

with N the number of these tokens in the whole step. It is GRPO (Shao et al., 2024) without its two biases: A_i is not
divided by the standard deviation of the rewards, and a token weighs the same in a short answer as in a long one (Liu et
al., 2025, https://arxiv.org/abs/2503.20783; DAPO, Yu et al., 2025, https://arxiv.org/abs/2503.14476, which is also the
source of leaving out problems whose answers are all right or all wrong: their gradient is 0).
The token that ends an answer is one of the model's choices; the output of a tool is not. Answers are drawn at
temperature 1 without cuts, so p is the very distribution that they came from.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from nanochat import checkpoint_manager
from nanochat.chat_eval import evaluate
from nanochat.common import Dist, compute_dtype, setup
from nanochat.configurator import launch
from nanochat.engine import Completion, Engine, Sampling
from nanochat.optim import linear
from nanochat.stage import TuneConfig, device_rows, finished, resume_point, train, tuning_optimizers
from nanochat.trainer import Batch
from tasks import registry


@dataclass(frozen=True)
class Config(TuneConfig):
    """Reinforcement learning: the assistant tries problems, and what was right becomes likelier."""

    task: str = "GSM8K"
    """what to practise: GSM8K, MentalArithmetic, Arithmetic, Spelling or LetterCount"""
    lr_scale: float = 0.05
    """multiplies all learning rates"""
    examples_per_step: int = 16
    """problems in a step, over all devices"""
    num_samples: int = 16
    """answers to each problem"""
    max_tokens: int = 256
    """tokens of an answer at most"""
    answers_at_once: int = 64
    """answers that a device writes at the same time"""
    eval_items: int = 400
    """problems of the validation split in an evaluation"""


@dataclass(frozen=True)
class Attempt:
    """An answer to a problem, and how much better it is than the problem's other answers."""

    prompt: list[int]
    answer: Completion
    advantage: float


class Rollouts:
    """Batches of answers to the task's problems, sampled from the model as it is now."""

    def __init__(self, cfg: Config, task, engine: Engine, dist: Dist, position: dict | None):
        if cfg.examples_per_step % dist.world_size:
            raise SystemExit(
                f"--examples_per_step={cfg.examples_per_step} must be a multiple of {dist.world_size} ranks."
            )
        self.cfg, self.task, self.engine, self.dist = cfg, task, engine, dist
        self.position = dict(position or {"problems": 0})
        self.metrics: dict[str, float] = {}
        self.last: list[Attempt] = []  # of this rank, in the step at hand

    def __iter__(self):
        while True:
            share = self.cfg.examples_per_step // self.dist.world_size
            first = self.position["problems"] + self.dist.rank * share
            self.engine.refresh()
            self.last, rewards = self.attempt(range(first, first + share))
            self.position = {"problems": self.position["problems"] + self.cfg.examples_per_step}
            lengths = [len(attempt.answer.ids) for attempt in self.last]
            ended = [attempt.answer.finish_reason == "stop" for attempt in self.last]
            sums = [sum(rewards), sum(lengths), sum(ended), len(rewards)]
            *totals, count = self.dist.all_reduce(torch.tensor(sums, dtype=torch.float32, device=self.dist.device))
            self.metrics = dict(zip(("reward", "length", "ended"), (float(total / count) for total in totals)))
            useful = [attempt for attempt in self.last if attempt.advantage] or self.last[:1]
            size = self.cfg.device_batch_size
            yield [self.batch(useful[i : i + size]) for i in range(0, len(useful), size)]

    def attempt(self, numbers: range) -> tuple[list[Attempt], list[float]]:
        """All answers to these problems, and their rewards. The seeds follow from the problem's number."""
        conversations = [self.problem(number) for number in numbers]
        prompts = [self.engine.tokenizer.render_for_completion(c).tolist() for c in conversations]
        most, G = self.cfg.max_tokens, self.cfg.num_samples
        seeds = [np.random.SeedSequence((self.cfg.seed, number)).generate_state(G) for number in numbers]
        sampling = [Sampling(max_tokens=most, temperature=1.0, seed=int(seed)) for group in seeds for seed in group]
        answers = self.engine.generate([prompt for prompt in prompts for _ in range(G)], sampling)
        attempts, rewards = [], []
        for i, (conversation, prompt) in enumerate(zip(conversations, prompts)):
            group = answers[i * G : (i + 1) * G]
            graded = [float(self.task.grade(conversation, answer)) for answer in group]
            mean = sum(graded) / G
            attempts += [Attempt(prompt, answer, reward - mean) for answer, reward in zip(group, graded)]
            rewards += graded
        return attempts, rewards

    def problem(self, number: int) -> dict:
        """Every pass over the task has another order."""
        epoch, index = divmod(number, len(self.task))
        order = np.random.default_rng((self.cfg.seed, epoch)).permutation(len(self.task))
        return self.task[int(order[index])]

    def batch(self, attempts: list[Attempt]) -> Batch:
        """Only tokens that the model chose are targets: not the prompt, not the output of tools."""
        length = max(len(a.prompt) + len(a.answer.ids) for a in attempts)
        tokens = torch.full((len(attempts), length), self.engine.tokenizer.bos_id)
        learn = torch.zeros((len(attempts), length), dtype=torch.bool)
        weights = torch.zeros((len(attempts), length - 1))
        for row, a in enumerate(attempts):
            end = len(a.prompt) + len(a.answer.ids)
            tokens[row, :end] = torch.tensor([*a.prompt, *a.answer.ids])
            learn[row, len(a.prompt) : end] = torch.tensor(a.answer.mask)
            weights[row] = a.advantage
        targets = torch.where(learn, tokens, -1)[:, 1:]
        device = self.dist.device
        return Batch(tokens[:, :-1].to(device), targets.to(device), weights.to(device))

    @torch.no_grad()
    def compare(self, model, start) -> dict[str, float]:
        """Means over the tokens of the last step's answers: the model's entropy and its KL divergence from `start`, in
        nats, each summed over the whole vocabulary."""
        sums = torch.zeros(3, device=self.dist.device)
        size = min(8, self.cfg.device_batch_size)  # all logits are here at once, of two models: half a GB for 8 answers
        for i in range(0, len(self.last), size):
            batch = self.batch(self.last[i : i + size])
            chosen = batch.targets >= 0
            logp, before = (m(batch.inputs)[chosen].log_softmax(-1) for m in (model, start))
            p = logp.exp()
            sums += torch.stack([-(p * logp).sum(), (p * (logp - before)).sum(), chosen.sum()])
        entropy, divergence, count = self.dist.all_reduce(sums).tolist()
        return {"entropy": entropy / max(count, 1), "KL to the start": divergence / max(count, 1)}


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        tag = cfg.model_tag or checkpoint_manager.find("sft").parent.name
        checkpoint = resume_point(cfg, "rl", tag, dist)
        if finished(checkpoint, dist):
            return
        practice, held_out = registry.practice(cfg.task)
        dtype = compute_dtype(dist.device)
        start = checkpoint_manager.load("sft", tag, device=dist.device, dtype=dtype)
        now = checkpoint or checkpoint_manager.load("sft", tag, device=dist.device)
        now.model.compute_dtype = dtype  # before the engine takes memory of that type
        total = cfg.examples_per_step * cfg.num_samples // dist.world_size
        engine = Engine(now.model, now.tokenizer, max_batch=max(1, min(cfg.answers_at_once, total)))
        optimizers = tuning_optimizers(cfg, now.model, dist)
        cfg = replace(cfg, device_batch_size=device_rows(cfg, now.model, now.model.config.sequence_len, total, dist))
        rollouts = Rollouts(cfg, practice, engine, dist, checkpoint.state.data if checkpoint else None)
        one_epoch = -(-len(practice) // cfg.examples_per_step)

        def evaluate_pass(model, last: bool) -> dict[str, float]:
            values = rollouts.compare(model, start.model)
            engine.refresh()
            score = evaluate(
                engine, now.tokenizer, held_out, max_items=cfg.eval_items, max_tokens=cfg.max_tokens, dist=dist
            )
            return values | {f"accuracy {cfg.task} (validation)": score.accuracy}

        train(
            cfg,
            dist,
            stage="rl",
            tag=tag,
            title="RL",
            model=now.model,
            tokenizer=now.tokenizer,
            optimizers=optimizers,
            batches=rollouts,
            schedule=linear(1.0, 0.0),
            num_iterations=cfg.num_iterations or (None if cfg.minutes else one_epoch),
            evaluate=evaluate_pass,
            checkpoint=checkpoint,
        )


if __name__ == "__main__":
    launch(main, Config)
