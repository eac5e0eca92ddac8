"""The model as a folder for other people's tools: Hugging Face transformers, or plain PyTorch.

python -m scripts.export -i sft --to hf
python -m scripts.export -i sft --to torch --out my-model
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from nanochat import checkpoint_manager
from nanochat.common import STAGES, base_dir
from nanochat.configurator import launch
from nanochat.export import export


@dataclass(frozen=True)
class Config:
    """The model as a folder for other people's tools: Hugging Face transformers, or plain PyTorch."""

    to: Literal["hf", "torch", "gguf"] = "hf"
    """hf: for transformers and what is built on it; torch: one file of plain PyTorch; gguf: says why there is none"""
    source: Annotated[Literal[STAGES], arg(aliases=["-i"])] = "sft"
    """stage of the model"""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """which model; by default the newest"""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """which of its checkpoints; by default the newest"""
    out: Path | None = None
    """the folder to write, which must not exist; by default exports/<tag>-<stage>-<to> under the base directory"""


def main(cfg: Config) -> None:
    loaded = checkpoint_manager.load(cfg.source, cfg.model_tag, cfg.step)
    folder = cfg.out or base_dir() / "exports" / f"{loaded.tag}-{loaded.stage}-{cfg.to}"
    export(loaded, cfg.to, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:,.0f} MB. Its README.md says how to use it.")


if __name__ == "__main__":
    launch(main, Config)
