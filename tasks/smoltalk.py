"""SmolTalk: general conversations of several turns, for training.

In: smoltalk_train and smoltalk_test, the set made for small models (Allal et al., 2025, https://arxiv.org/abs/2502.02737).
Out: conversations; there is nothing to grade.
"""

from tasks.published import HUB, PublishedTask

ADDRESS = f"{HUB}/HuggingFaceTB/smol-smoltalk/resolve/main/data"
TRAIN_PARTS = tuple(f"train-{part:05d}-of-00004.parquet" for part in range(4))


class SmolTalk(PublishedTask):
    name = "SmolTalk"
    files = {
        "train": ("smoltalk_train", f"{ADDRESS}/{TRAIN_PARTS[0]}"),
        "test": ("smoltalk_test", f"{ADDRESS}/test-00000-of-00001.parquet"),
    }
    columns = ("messages",)

    def conversation(self, row: dict) -> dict:
        return {"messages": [{"role": m["role"], "content": m["content"]} for m in row["messages"]]}
