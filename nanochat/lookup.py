"""Prompt lookup: a guess of what an answer says next, from what was said before (Saxena, 2023).

In: a prompt, the tokens of its answer so far, how many of the last guess were right. Out: a few tokens, or none.
"""

CONTEXT = 3  # tokens that must have come before in the same order
LONGEST_PAUSE = 64  # tokens


class Lookup:
    def __init__(self, prompt: list[int]):
        self.tokens, self.prompt_length = list(prompt), len(prompt)
        self.follows: dict[tuple[int, ...], int] = {}  # where the last thing that followed these tokens stands
        self.indexed = CONTEXT
        self.pause, self.resume = 0, 0

    def guess(self, answer: list[int], most: int) -> list[int]:
        """Up to `most` tokens that may come behind `answer`. After wrong guesses it is silent, each time for longer."""
        if len(answer) < self.resume:
            return []
        self.tokens += answer[len(self.tokens) - self.prompt_length :]
        for end in range(self.indexed, len(self.tokens)):
            self.follows[tuple(self.tokens[end - CONTEXT : end])] = end
        self.indexed = max(CONTEXT, len(self.tokens))
        place = self.follows.get(tuple(self.tokens[-CONTEXT:]))
        return [] if place is None else self.tokens[place : place + most]

    def learn(self, answer: list[int], right: int) -> None:
        """How many tokens of a guess were right; the answer is now this long."""
        self.pause = 0 if right else min(LONGEST_PAUSE, 2 * self.pause + 1)
        self.resume = len(answer) + self.pause
