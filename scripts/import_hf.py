"""Make a checkpoint of a published nanochat model (transformers' class NanoChatForCausalLM): a folder or a hub name.

python -m scripts.import_hf karpathy/nanochat-d32 --model_tag=published
python -m scripts.chat_cli -g published
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from nanochat import checkpoint_manager, import_hf
from nanochat.common import STAGES
from nanochat.configurator import launch
from nanochat.trainer import State


@dataclass(frozen=True)
class Config:
    """Make a checkpoint of a published nanochat model (transformers' class NanoChatForCausalLM)."""

    path: Positional[str]
    """a folder, or a name on the Hugging Face hub, from which it is then downloaded"""
    source: Annotated[Literal[STAGES], arg(aliases=["-i"])] = "sft"
    """which stage it has gone through"""
    model_tag: Annotated[str, arg(aliases=["-g"])] = "imported"
    """the name that it gets"""


def main(cfg: Config) -> None:
    folder = checkpoint_manager.folder_of(cfg.source, cfg.model_tag)
    if checkpoint_manager.steps(folder):
        raise SystemExit(f"There are checkpoints in {folder} already. Choose another --model_tag.")
    model, tokenizer = import_hf.load(cfg.path)
    settings = asdict(cfg) | {"total_batch_size": 2**19}  # what the published models were trained with
    path = checkpoint_manager.save(folder, model, tokenizer, stage=cfg.source, state=State(), settings=settings)
    print(
        f"{path}: {sum(p.numel() for p in model.parameters()):,} parameters. -i {cfg.source} -g {cfg.model_tag} is it."
    )


if __name__ == "__main__":
    launch(main, Config)
