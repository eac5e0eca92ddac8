"""The README's promise as a test: real text in, a model you can talk to out, each stage a real process.

The same commands as quickstart.sh and speedrun.sh, with a model so small that it says nothing sensible.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

TRAIN = ["--model_tag=tiny", "--device=cpu", "--device_batch_size=4", "--total_batch_size=1024"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base folder in which the text is prepared and the tokenizer trained."""
    folder = tmp_path_factory.mktemp("tiny")
    text = folder / "own.jsonl"
    subjects = ("moon", "river", "stone", "forest", "engine", "letter", "winter", "planet")
    with text.open("w") as file:
        for number in range(400):
            a, b = subjects[number % 8], subjects[number // 8 % 8]
            file.write(
                json.dumps({"text": f"Story {number}. The {a} is near the {b}. What is a {a}? It is no {b}.\n" * 3})
            )
            file.write("\n")
    run(folder, "nanochat.dataset", "--from", str(text), "--name", "own")
    run(folder, "scripts.tok_train", "--data=own", "--vocab_size=512")
    return folder


def run(folder, module, *arguments, ranks=1, code=0):
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    environment = os.environ | {"NANOCHAT_BASE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    command = [*launcher, module, *(["--"] if ranks > 1 else []), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == code, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def read(folder, section):
    return json.loads((folder / "report" / f"{section}.json").read_text())


def test_from_text_to_chat_and_report(home):
    run(
        home,
        "scripts.base_train",
        *TRAIN,
        "--data=own",
        "--depth=1",
        "--max_seq_len=128",
        "--num_iterations=12",
        "--eval_tokens=2048",
        ranks=2,
    )
    section = read(home, "base_train")
    assert section["metrics"]["steps"] == 12 and section["metrics"]["tokens"] == 12 * 1024
    losses = section["curves"][0]["y"]
    assert losses[-1] < losses[0] - 0.5
    run(home, "scripts.base_loss", "--model_tag=tiny", "--device=cpu", "--eval_tokens=4096")
    assert 0 < read(home, "base_loss")["metrics"]["val_bpb"] < 8
    # Two processes each, and a longer context than the base model's.
    for script in ("mid_train", "chat_sft"):
        run(
            home,
            f"scripts.{script}",
            *TRAIN,
            "--mixture=quickstart",
            "--num_iterations=4",
            "--max_seq_len=256",
            ranks=2,
        )
    evaluation = ("-i", "sft", "-g", "tiny", "-a", "Arithmetic", "Topic", "--max_items=4", "--device=cpu")
    run(home, "scripts.chat_eval", *evaluation)
    alone = read(home, "chat_eval_sft")["scores"]
    run(home, "scripts.chat_eval", *evaluation, ranks=2)
    assert read(home, "chat_eval_sft")["scores"] == alone and {score["total"] for score in alone} == {4}
    rl = ("--task=Arithmetic", "--examples_per_step=2", "--num_samples=3", "--max_tokens=12", "--eval_items=2")
    run(home, "scripts.chat_rl", "--model_tag=tiny", "--device=cpu", "--num_iterations=2", *rl, ranks=2)
    metrics = read(home, "chat_rl")["metrics"]
    assert {"reward", "length", "entropy", "KL to the start", "accuracy Arithmetic (validation)"} <= set(metrics)
    answer = run(home, "scripts.chat_cli", "-g", "tiny", "--max_tokens=8", "--seed=1", "-p", "Hello")
    assert answer.strip() and "<|" not in answer
    run(home, "nanochat.report", "generate")
    report = (home / "report" / "report.html").read_text()
    assert "BASE" in report and "SFT" in report and "Arithmetic" in report
    before = shutil.copytree(home / "report", home / "before")
    run(home, "scripts.chat_eval", *evaluation, "--temperature=0.5", "--seed=3", ranks=2)
    told = run(home, "nanochat.report", "compare", str(before))
    assert (
        "temperature (Chat evaluation: sft)" in told and re.search(r"Arithmetic +4 ", told) and "unpaired" not in told
    )


def test_mistakes_get_a_sentence_and_lose_nothing(tmp_path, home):
    for module, arguments, words in (
        ("scripts.base_train", ["--depth=1", "--data=nothing", "--device=cpu"], "tok_train"),
        ("scripts.chat_cli", ["-p", "Hello"], "quickstart"),
        ("scripts.chat_web", [], "quickstart"),
    ):
        output = run(tmp_path, module, *arguments, code=1)
        assert words in output and "Traceback" not in output
    output = run(home, "scripts.base_train", "--dept=3", code=2)
    assert "--depth" in output
