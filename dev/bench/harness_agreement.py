"""EleutherAI's lm-eval with our model beside lm-eval with the same model exported for transformers.

In: a checkpoint. Out: the largest differences of both log likelihoods, over requests made of held-out text, and how
many greedy verdicts and answers are the same. Needs `pip install lm-eval transformers accelerate` (600 MB with what
they pull in, so it is no part of the tests).

    python -m dev.bench.harness_agreement --source base --items 100
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from nanochat import checkpoint_manager, dataset
from nanochat.configurator import launch
from nanochat.export import export
from scripts.lm_eval import register


@dataclass(frozen=True)
class Config:
    """lm-eval with our model beside lm-eval with the same model exported for transformers."""

    source: Literal["base", "mid", "sft", "rl"] = "base"
    """stage of the model"""
    model_tag: str | None = None
    """which model; by default the newest"""
    data: str = "wiki"
    """dataset whose held-out documents the requests are made of"""
    items: int = 100
    """requests of each kind"""


def requests(documents: list[str]) -> dict[str, list[SimpleNamespace]]:
    """Continuations of many lengths, some behind a blank, two to a context; whole documents; beginnings to go on."""
    pairs = []
    for number, text in enumerate(documents):
        cut = 20 + 37 * number % 200
        pairs += [(text[:cut], text[cut : cut + 30] or "."), (text[:cut], " and")]
    options = {"until": ["\n"], "max_gen_toks": 24, "do_sample": False}
    arguments = {
        "loglikelihood": pairs,
        "loglikelihood_rolling": [(text,) for text in documents],
        "generate_until": [(text[:60].strip(), options) for text in documents],
    }
    return {kind: [SimpleNamespace(args=args) for args in values] for kind, values in arguments.items()}


def main(cfg: Config) -> None:
    register()
    from lm_eval.api.registry import get_model

    loaded = checkpoint_manager.load(cfg.source, cfg.model_tag)
    documents = [text for text, _ in zip(dataset.documents(cfg.data, "val"), range(cfg.items))]
    with tempfile.TemporaryDirectory() as folder:
        exported = export(loaded, "hf", Path(folder) / "hf")
        ours = get_model("nanochat")(path=loaded.path, device="cpu")
        theirs = get_model("hf")(
            pretrained=str(exported),
            trust_remote_code=True,
            add_bos_token=True,
            dtype="float32",
            device="cpu",
            batch_size=8,
        )
        for kind, asked in requests(documents).items():
            theirs.add_bos_token = kind != "loglikelihood_rolling"  # there it comes by itself
            a, b = (getattr(model, kind)(asked) for model in (ours, theirs))
            if kind == "generate_until":
                print(f"{kind}: {sum(x == y for x, y in zip(a, b)):,} of {len(a):,} answers are the same")
            elif kind == "loglikelihood":
                far = max(abs(x[0] - y[0]) for x, y in zip(a, b))
                same = sum(x[1] == y[1] for x, y in zip(a, b))
                print(f"{kind}: {len(a):,} within {far:.1e} nats, {same:,} greedy verdicts are the same")
            else:
                far = max(abs(x - y) for x, y in zip(a, b))
                print(f"{kind}: {len(a):,} within {far:.1e} nats, of {-sum(a) / len(a):,.0f} in the mean")


if __name__ == "__main__":
    launch(main, Config)
