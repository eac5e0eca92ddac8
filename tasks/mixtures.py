"""What the chat stages train on and what they are measured by: each mixture is one list.

In: how many items. Out: a TaskMixture for training, or the tasks of an evaluation. The tasks of the big run that need
published files are imported when they are asked for.
"""

from tasks.arithmetic import Arithmetic
from tasks.common import Task, TaskMixture
from tasks.identity import Identity
from tasks.mental import MentalArithmetic
from tasks.spelling import LetterCount, Spelling
from tasks.wiki import Topic, WhatIs

EXCHANGES = 3  # at most, in one conversation of the quickstart


def mid_mixture(size: int = 60_000, seed: int = 1) -> TaskMixture:
    """Midtraining of the quickstart: the forms of a chat, and most practice where most has to be learned."""
    shares = [
        (Arithmetic("train"), 0.11),
        (MentalArithmetic("train"), 0.03),
        (Spelling("train"), 0.30),
        (LetterCount("train"), 0.11),
        (Topic("train"), 0.12),
        (WhatIs("train"), 0.19),
        (Identity("train"), 0.14),
    ]
    return TaskMixture([(task, round(share * size)) for task, share in shares], seed, EXCHANGES)


def sft_mixture(size: int = 24_000, seed: int = 2) -> TaskMixture:
    """Finetuning of the quickstart: the same tasks in other items, more evenly."""
    shares = [
        (Arithmetic("train"), 0.08),
        (MentalArithmetic("train"), 0.03),
        (Spelling("train"), 0.27),
        (LetterCount("train"), 0.11),
        (Topic("train"), 0.13),
        (WhatIs("train"), 0.19),
        (Identity("train"), 0.19),
    ]
    return TaskMixture([(task, round(share * size)) for task, share in shares], seed, EXCHANGES)


def built_in_tasks() -> list[Task]:
    """What the report of the quickstart measures. Nothing of it is in the mixtures."""
    return [
        Arithmetic("test"),
        MentalArithmetic("test"),
        LetterCount("test"),
        Spelling("test"),
        Topic("test"),
        Identity("test"),
        WhatIs("test"),
    ]


def validation(size: int = 16) -> dict[str, list[dict]]:
    """Name of a task -> a few of its held-out conversations, whose loss is watched during training. They are those of
    its validation split, if it has one."""
    tasks = [type(task)("validation") if "validation" in task.splits else task for task in built_in_tasks()]
    return {task.name: [task[index] for index in range(min(size, len(task)))] for task in tasks}


def standard_mid_mixture(seed: int = 1) -> TaskMixture:
    """Midtraining of the big run: general chat, multiple choice, sums with the tool, and who it is."""
    from tasks.gsm8k import GSM8K
    from tasks.mmlu import MMLU
    from tasks.smoltalk import SmolTalk

    amounts = [
        (SmolTalk("train"), 1.0),  # 460,000 conversations
        (MMLU("auxiliary"), 1.0),  # 100,000 questions
        (GSM8K("train"), 2.0),  # 7,500 problems
        (Topic("train"), 20_000),
        (Arithmetic("train"), 20_000),
        (Spelling("train"), 100_000),
        (LetterCount("train"), 50_000),
        (WhatIs("train"), 2.0),
        (Identity("train"), 4_000),
    ]
    return TaskMixture(amounts, seed)


def standard_sft_mixture(seed: int = 2) -> TaskMixture:
    """Finetuning of the big run: a smaller, more careful choice."""
    from tasks.arc import ARC
    from tasks.gsm8k import GSM8K
    from tasks.smoltalk import SmolTalk

    amounts = [
        (SmolTalk("train"), 10_000),
        (ARC("Easy", "train"), 1.0),
        (ARC("Challenge", "train"), 1.0),
        (GSM8K("train"), 1.0),
        (Arithmetic("train"), 500),
        (Spelling("train"), 500),
        (LetterCount("train"), 500),
        (Identity("train"), 1_000),
    ]
    return TaskMixture(amounts, seed)
