"""A model for tests in which every weight is random: projections that start at zero hide the faults of what lies behind
them, and the gradients of a fresh model are in places nothing but rounding."""

import torch

from nanochat.gpt import GPT, GPTConfig


def random_model(config: GPTConfig, noise: float = 0.1, seed: int = 0) -> GPT:
    """In eval mode. `noise`: standard deviation of what is added to the weights of a fresh model."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config).init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return model.eval()
