"""Midtraining: the base model learns the form of conversations, tools and multiple choice.

python -m scripts.mid_train
"""

from dataclasses import dataclass
from typing import Literal

from nanochat.common import setup
from nanochat.configurator import launch
from nanochat.optim import linear
from nanochat.stage import ChatConfig, train_chat
from tasks import mixtures

MIXTURES = {"standard": mixtures.standard_mid_mixture, "quickstart": mixtures.mid_mixture}


@dataclass(frozen=True)
class Config(ChatConfig):
    """Midtraining: the base model learns the form of conversations, tools and multiple choice."""

    mixture: Literal["standard", "quickstart"] = "standard"
    """standard (published data sets) or quickstart (made from the embedded corpus, needs no download)"""


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        train_chat(
            cfg,
            dist,
            stage="mid",
            source="base",
            title="Midtraining",
            schedule=linear(1.0, 0.2),
            train_on=MIXTURES[cfg.mixture](),
            validate_on=mixtures.validation(),
        )


if __name__ == "__main__":
    launch(main, Config)
