"""Predictions for GPUs, against runs that others published and runs of our own."""

import re

import pytest
import torch

from nanochat import forecast
from nanochat.dial import SHARE_ON_CPU, usual_share, usual_window
from nanochat.forecast import Gpus
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import horizon
from scripts.forecast import Config, main

# Karpathy's nanochat in bf16: depth, vocabulary, GPUs, tokens a second as published, how far off the prediction is. The
# first two are fitted (dial.SHARE_BY_WIDTH).
PUBLISHED_SPEEDS = [
    (12, 32768, "1xH100", 535_000, -0.01),  # its LOG, January 2026: 41% MFU
    (24, 32768, "8xH100", 800_000, 0.00),  # LEADERBOARD, run 1
    (26, 32768, "8xH100", 630_000, +0.01),  # its LOG, February 2026
    (20, 65536, "8xA100", 530_000, -0.30),  # its pull request 147: A100s reach more of their smaller peak
]
# Which rows at once its users report to fit, and not to fit, on a GPU.
PUBLISHED_MEMORY = [(20, 32, "8xH100", True), (24, 16, "8xH100", True), (26, 16, "8xH100", True)]
PUBLISHED_MEMORY += [
    (26, 32, "8xH100", False),
    (28, 16, "8xH100", False),
    (32, 8, "8xH100", True),
    (20, 4, "4090", True),
]


@pytest.mark.parametrize(("depth", "vocab_size", "gpus", "speed", "error"), PUBLISHED_SPEEDS)
def test_speed_is_near_what_was_published(depth, vocab_size, gpus, speed, error):
    run = forecast.forecast(Gpus.parse(gpus), depth, vocab_size=vocab_size)
    assert run.tokens_a_second / speed - 1 == pytest.approx(error, abs=0.01)


def test_the_run_that_reached_gpt2_is_predicted():
    """LEADERBOARD, run 1: depth 24, ratio 12, 16,704 steps of 2^19 tokens, 4.33e19 FLOPs, 10,949 s, CORE 0.2585."""
    run = forecast.forecast(Gpus.parse("8xH100"), 24, total_batch_size=2**19, device_batch_size=16)
    assert run.steps == pytest.approx(16_704, rel=0.001)
    # Its count has what the causal mask leaves out, and its windows were longer: ours is 6.1% less.
    assert run.tokens * run.model.flops_per_token() == pytest.approx(4.33e19, rel=0.07)
    assert run.seconds == pytest.approx(10_949, rel=0.01)
    assert run.micro_batches == 2 and run.fits
    assert forecast.deepest(Gpus.parse("8xH100"), 100).model.config.n_layer == 24  # which is why speedrun.sh takes it


@pytest.mark.parametrize(("depth", "rows", "gpus", "fits"), PUBLISHED_MEMORY)
def test_memory_is_near_what_was_published(depth, rows, gpus, fits):
    assert forecast.forecast(Gpus.parse(gpus), depth, device_batch_size=rows).fits == fits


@pytest.mark.parametrize(
    ("depth", "dtype", "peak", "speed"),  # dev/LOG.md: 2 cores of an AMD EPYC, 2,048 and 4,096 tokens a step
    [(2, "float32", 190e9, 16_117), (4, "float32", 190e9, 3_992), (2, "bfloat16", 446e9, 19_240)],
)
def test_speed_on_a_cpu_is_near_what_we_measured(depth, dtype, peak, speed):
    model = GPT(GPTConfig.from_depth(depth, 4096, 256))
    share = usual_share(model.config.n_embd, SHARE_ON_CPU[getattr(torch, dtype)])
    assert share * peak / model.flops_per_token() == pytest.approx(speed, rel=0.02)


def test_the_rules_are_those_of_training():
    run = forecast.forecast(Gpus.parse("2xA100"), 6, ratio=20)
    model = GPT(GPTConfig.from_depth(6, 32768, 2048, usual_window(2048, "cuda")))
    assert model.config.window == 512 and usual_window(2048, "cpu") == usual_window(1023, "cuda") == 0
    assert (run.tokens, run.batch_tokens) == horizon(model, 20)
    assert run.micro_batches * run.device_rows * 2048 * 2 == run.batch_tokens
    assert run.model.flops_per_token() == model.flops_per_token()


def test_names_of_gpus():
    for text, name, count in (("8xH100", "H100", 8), ("4090", "RTX 4090", 1), ("2 x rtx 3090", "RTX 3090", 2),
                              ("1xa100-40gb", "A100 40GB", 1), ("L4", "L4", 1)):  # fmt: skip
        gpus = Gpus.parse(text)
        assert (gpus.name, gpus.count) == (name, count) and gpus.flops > 1e13
    assert Gpus.parse("H100", price=2.0).price == 2.0
    for text in ("", "8", "0xH100", "8xH1000", "-1xH100", "x", "8xH100x8", "many"):
        with pytest.raises(SystemExit, match="8xH100. Known: .*RTX 4090"):
            Gpus.parse(text)


def test_the_table(capsys):
    def said(**settings):
        main(Config(**settings))
        return " ".join(capsys.readouterr().out.split())

    words = ("--depth=26 on 8 x H100", "11,021,082,384", "8 GPUs x 4 x 16 rows", "of 80 GiB", "139 GB", "$3.00 an hour")
    assert all(each in said(depth=26, gpus="8xH100") for each in words)
    assert "60% of 165" in (table := said(depth=20, gpus="4090", price=0.5, mfu=0.6)) and "$0.50" in table
    table = said(depth=20, gpus="4090", device_batch_size=16)
    assert "does not fit" in table and "--device_batch_size=4 fits; gradients are accumulated" in table
    assert re.search(r"Not even one row fits. The largest depth that does is 2\d\.", said(depth=48, gpus="4090"))
    assert re.search(r"That is \d+ days: take a smaller --depth", said(depth=32, gpus="A100"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "either --depth or --dollars"),
        ({"depth": 4, "dollars": 5.0}, "either --depth or --dollars"),
        ({"depth": 0}, "--depth=0 makes no sense"),
        ({"depth": 4, "mfu": 40.0}, "--mfu=40 makes no sense: say a number from 0.01 to 1"),
        ({"depth": 4, "price": -1.0}, "--price=-1 makes no sense"),
        ({"dollars": 0.1}, "do not pay for the smallest run"),
        ({"dollars": 10.0, "gpus": "4080"}, "say it with --price"),
        ({"depth": 48, "shell": True, "gpus": "4090"}, "Not even one row fits"),
    ],
)
def test_nonsense_gets_a_sentence(settings, words):
    with pytest.raises(SystemExit, match=words):
        main(Config(**{"gpus": "8xH100"} | settings))


def test_what_the_speedrun_reads(capsys):
    main(Config(dollars=100.0, gpus="8xH100", shell=True))
    said = capsys.readouterr().out
    assert "DEPTH=24\nSHARDS=175\nROWS=16\n" in said and re.search(r"TIME_PRETRAINING=\d:\d\d:\d\d\n", said)
