"""MMLU: four-choice questions on 57 subjects, from school to profession.

In: mmlu_<split> (Hendrycks et al., 2020, https://arxiv.org/abs/2009.03300). Out: multiple-choice conversations that
also name their "subject".
"""

from tasks.published import HUB, PublishedTask, ask

ADDRESS = f"{HUB}/cais/mmlu/resolve/main/all"


class MMLU(PublishedTask):
    """Splits: test, validation, dev (five a subject), and auxiliary, the published training questions."""

    name = "MMLU"
    kind = "categorical"
    chance = 0.25
    columns = ("question", "subject", "choices", "answer")
    files = {
        "auxiliary": ("mmlu_auxiliary", f"{ADDRESS}/auxiliary_train-00000-of-00001.parquet"),
        **{
            split: (f"mmlu_{split}", f"{ADDRESS}/{split}-00000-of-00001.parquet")
            for split in ("dev", "validation", "test")
        },
    }

    def conversation(self, row: dict) -> dict:
        return {**ask(row["question"], [str(c) for c in row["choices"]], row["answer"]), "subject": row["subject"]}
