"""Supervised fine-tuning: the midtrained model becomes an assistant.

python -m scripts.chat_sft
"""

from dataclasses import dataclass
from typing import Literal

from nanochat.common import setup
from nanochat.configurator import launch
from nanochat.optim import linear
from nanochat.stage import ChatConfig, train_chat
from tasks import mixtures

MIXTURES = {"standard": mixtures.standard_sft_mixture, "quickstart": mixtures.sft_mixture}


@dataclass(frozen=True)
class Config(ChatConfig):
    """Supervised fine-tuning: the midtrained model becomes an assistant."""

    mixture: Literal["standard", "quickstart"] = "standard"
    """standard (published data sets) or quickstart (made from the embedded corpus, needs no download)"""


def main(cfg: Config) -> None:
    with setup(cfg.device) as dist:
        train_chat(
            cfg,
            dist,
            stage="sft",
            source="mid",
            title="Finetuning",
            schedule=linear(0.2, 0.0),
            train_on=MIXTURES[cfg.mixture](),
            validate_on=mixtures.validation(),
        )


if __name__ == "__main__":
    launch(main, Config)
