"""The interval of a difference between two models: against published examples, and by counting every outcome."""

import itertools
from math import comb, factorial, prod

import pytest

from nanochat.score import Score, correlation, difference, fingerprint, mean_difference


def answers(both, only_before, only_now, neither):
    """Verdicts of two models on the same items, from how often which of them was right."""
    before = [True] * (both + only_before) + [False] * (only_now + neither)
    now = [True] * both + [False] * only_before + [True] * only_now + [False] * neither
    return before, now


def paired(*table):
    before, now = answers(*table)
    count = len(before)
    return difference((sum(before), count), (sum(now), count), correlation(before, now))


@pytest.mark.parametrize(
    "now, before, low, high",
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
    ],
)
def test_independent_items_as_published(now, before, low, high):
    """Newcombe, 1998, Statistics in Medicine 17, 873-890, table II, method 10."""
    assert difference(before, now) == pytest.approx((now[0] / now[1] - before[0] / before[1], low, high), abs=1e-4)


def test_the_same_items_as_published():
    """Cavo et al., 2012, in Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, 2017, chapter 8:
    59 responded both times, 6 only before, 16 only after, 80 never."""
    assert paired(59, 6, 16, 80) == pytest.approx((0.0621, 0.0046, 0.1186), abs=1e-4)


def test_no_outcome_breaks_it_and_models_may_change_places():
    for table in itertools.product(range(4), repeat=4):
        if sum(table):
            both, only_before, only_now, neither = table
            d, low, high = paired(*table)
            assert -1 - 1e-9 <= low <= d <= high <= 1 + 1e-9
            assert paired(both, only_now, only_before, neither) == pytest.approx((-d, -high, -low))


def chances(shares, count):
    """(table, how likely it is) for every table of `count` items."""
    for table in itertools.product(range(count + 1), repeat=3):
        if sum(table) <= count:
            table = (*table, count - sum(table))
            yield table, factorial(count) / prod(map(factorial, table)) * prod(p**k for p, k in zip(shares, table))


@pytest.mark.parametrize("shares", [(0.4, 0.1, 0.1, 0.4), (0.7, 0.05, 0.15, 0.1), (0.3, 0.3, 0.2, 0.2)])
def test_the_true_difference_is_inside_95_times_in_100(shares):
    """All 5,456 tables of 30 paired items, all 441 outcomes of 20 and 20 independent ones: nothing is drawn."""
    truth = shares[2] - shares[1]
    total = inside = 0.0
    for table, chance in chances(shares, 30):
        _, low, high = paired(*table)
        total += chance
        inside += chance * (low <= truth <= high)
    assert total == pytest.approx(1) and 0.94 < inside < 0.985
    p, q = shares[0] + shares[1], shares[0] + shares[2]
    binomial = lambda k, share: comb(20, k) * share**k * (1 - share) ** (20 - k)  # noqa: E731
    inside = 0.0
    for a, b in itertools.product(range(21), repeat=2):
        _, low, high = difference((a, 20), (b, 20))
        inside += binomial(a, p) * binomial(b, q) * (low <= q - p <= high)
    assert 0.94 < inside < 0.985


def test_pairing_sees_more():
    """Two models that mostly agree: as independent ones, nothing could be said."""
    _, low, _ = paired(150, 2, 14, 34)
    _, low_unpaired, _ = difference((152, 200), (164, 200))
    assert low > 0 > low_unpaired


def test_the_mean_of_tasks():
    """Of one task it is that task's; of four like it, half as wide."""
    one = difference((50, 100), (60, 100))
    assert mean_difference([one]) == pytest.approx(one)
    mean, low, high = mean_difference([one] * 4)
    assert (mean - low, high - mean) == pytest.approx(((one[0] - one[1]) / 2, (one[2] - one[0]) / 2))


def test_what_was_asked_leaves_a_mark():
    items = [{"messages": [{"role": "user", "content": f"What is {n}?"}]} for n in range(40)]
    asked = fingerprint(items)
    assert len(asked) == 40 and len(set(asked)) > 8 and asked == fingerprint(dict(item) for item in items)
    assert asked[:7] == fingerprint(items[:7]) and fingerprint(items[1:]) != asked[:39]
    row = Score("Topic", 1, 2, 0.25, verdicts=[False, True], asked=asked[:2]).summary()
    assert row["verdicts"] == "01" and row["asked"] == asked[:2]
