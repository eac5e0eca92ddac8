"""What a run would take on GPUs that are not here: memory, tokens, time, disk, dollars.

python -m scripts.forecast --gpus=8xH100 --depth=26
python -m scripts.forecast --gpus=8xH100 --dollars=100       the largest even depth that the whole pipeline can afford
"""

import shlex
from dataclasses import dataclass

from nanochat.configurator import launch
from nanochat.forecast import Gpus, advice, deepest, forecast, shell_variables, show


@dataclass(frozen=True)
class Config:
    """What a run would take on GPUs that are not here. Say --depth or --dollars."""

    gpus: str
    """how many of which: 8xH100, 2xA100, 4090"""
    depth: int | None = None
    """layers of the model"""
    dollars: float | None = None
    """choose the depth by what all stages together may cost"""
    price: float | None = None
    """dollars an hour for each GPU; by default what renting it costs"""
    mfu: float | None = None
    """the part of their published FLOP/s that training reaches, if you know it"""
    ratio: float = 12.0
    """tokens for each weight that multiplies (base_train's --target_param_data_ratio)"""
    device_batch_size: int | None = None
    """rows at once on a GPU; by default as many as fit"""
    shell: bool = False
    """print shell variables, as speedrun.sh reads them"""


def main(cfg: Config) -> None:
    for name, low, high in (("price", 0, 1000), ("mfu", 0.01, 1), ("ratio", 0.01, 10_000), ("depth", 1, 200)):
        if (value := getattr(cfg, name)) is not None and not low <= value <= high:
            raise SystemExit(f"--{name}={value:g} makes no sense: say a number from {low:g} to {high:,g}.")
    if (cfg.depth is None) == (cfg.dollars is None):
        raise SystemExit("Say either --depth or --dollars.")
    gpus, options = Gpus.parse(cfg.gpus, cfg.price), {"ratio": cfg.ratio, "share": cfg.mfu}
    if cfg.dollars is not None:
        run = deepest(gpus, cfg.dollars, **options)
    else:
        run = forecast(gpus, cfg.depth, device_batch_size=cfg.device_batch_size, **options)
    what_to_do = advice(run, **options)
    if not cfg.shell:
        show(run)
        print(what_to_do, end="\n" if what_to_do else "")
    elif run.fits:
        print("\n".join(f"{name}={shlex.quote(value)}" for name, value in shell_variables(run).items()))
    else:
        raise SystemExit(f"--depth={cfg.depth} does not fit. {what_to_do}")


if __name__ == "__main__":
    launch(main, Config)
