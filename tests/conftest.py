"""What every test shares. Nothing here touches the network or the user's ~/.cache/nanochat.

Fixtures, for any test file:

    base_dir          a fresh, empty NANOCHAT_BASE_DIR for this test (it is set for every test, whether it asks or not)
    tiny_tokenizer    a Tokenizer of about 400 tokens, trained once a session; do not change it
    tiny_config       the GPTConfig of tiny_model: 2 layers, 4 heads, 2 key-value heads, 32 channels, T = 64
    tiny_model        models.random_model(tiny_config), made once a session; do not change it: copy.deepcopy(tiny_model)

A test that the machine cannot run is skipped with a reason that says how to get what is missing. With
NANOCHAT_TEST_NO_SKIP=1, as in CI, a skip is a failure, unless its reason names one of the words in NOT_INSTALLABLE.
"""

import os
import tempfile
from pathlib import Path

_base_dir = tempfile.TemporaryDirectory(prefix="nanochat-test-")  # goes with this process
os.environ["NANOCHAT_BASE_DIR"] = _base_dir.name  # before anything can read it
os.environ["HF_HOME"] = os.environ["NANOCHAT_BASE_DIR"]  # where transformers puts a copy of a model's own code
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

# What no package brings: the graphics card, the kernel and the system that the tests run on.
NOT_INSTALLABLE = ("CUDA", "GPU", "kernel", "Landlock", "seccomp", "macOS", "arm64")

torch.set_num_threads(1)  # the tensors of tests are so small that threads only wait for each other


@pytest.fixture(autouse=True)
def base_dir(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "nanochat"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(path))
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from nanochat.tokenizer import Tokenizer

    lines = (Path(__file__).parent.parent / "dev" / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()
    return Tokenizer.train([*lines, "The sky is blue. The grass is green. ¿Qué? 你好 🙂 Ünïcödé"] * 4, vocab_size=400)


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer):
    from nanochat.gpt import GPTConfig

    return GPTConfig(tiny_tokenizer.vocab_size, sequence_len=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    from models import random_model

    return random_model(tiny_config)


def _must_not_skip(report) -> bool:
    if not os.environ.get("NANOCHAT_TEST_NO_SKIP") or not report.skipped or hasattr(report, "wasxfail"):
        return False
    return not any(word in str(report.longrepr) for word in NOT_INSTALLABLE)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    _fail_if_skipped(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    _fail_if_skipped(outcome.get_result())


def _fail_if_skipped(report) -> None:
    if _must_not_skip(report):
        report.outcome = "failed"
        report.longrepr = f"Skipped, and NANOCHAT_TEST_NO_SKIP is set: {report.longrepr}"
