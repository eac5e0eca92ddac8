"""One rank of test_trainer.test_ranks_do_not_matter: trains on its part of each batch; the main rank writes."""

import sys
from pathlib import Path

import torch
from test_trainer import Stream, new_model, new_optimizers

from nanochat.checkpoint_manager import tensors_of
from nanochat.common import setup
from nanochat.optim import linear
from nanochat.trainer import State, fit

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
with setup("cpu") as dist:
    model = new_model()
    optimizers = new_optimizers(model, dist)
    losses = []
    mine = (step[dist.rank :: dist.world_size] for step in Stream(8 // dist.world_size))
    hooks = [lambda step: losses.append(step.loss)]
    fit(model, optimizers, mine, linear(1.0, 0.1), State(), num_iterations=steps, hooks=hooks, dist=dist)
    tensors = tensors_of(optimizers)
    if dist.is_main:
        result = {"losses": losses, "model": model.state_dict(), "optimizers": tensors}
        torch.save(result, folder / "result.pt")
