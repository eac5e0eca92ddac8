"""EleutherAI's lm-eval with our models: its own command line, in which --model nanochat is one of ours.

python -m scripts.lm_eval run --model nanochat --model_args source=base --tasks lambada_openai
python -m scripts.lm_eval run --model nanochat --model_args path=FOLDER --tasks gsm8k --apply_chat_template

It needs `pip install lm-eval`. model_args: path, the folder of a checkpoint; or source, model_tag, step; device.
lm-eval knows only models that were registered before its command line is read, so `lm_eval --model nanochat` is not it.
"""

import sys

from nanochat.configurator import launch
from nanochat.harness import Harness


def register() -> None:
    """Make `nanochat` a model of lm-eval. SystemExit if it is not installed."""
    try:
        import lm_eval.models  # noqa: F401, lest it takes its models for registered when it finds ours
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise SystemExit("This needs EleutherAI's harness: pip install lm-eval") from None

    @register_model("nanochat")
    class NanochatLM(Harness, LM):
        pass


def main() -> None:
    if sys.argv[1:] in ([], ["--help"], ["-h"]):
        print(f"{__doc__}\n`--help` after `run` shows lm-eval's own flags.")
        sys.exit()
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    launch(main)
