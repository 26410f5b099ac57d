"""Which prefixes are shared: they are what the samples have in common, and going without them takes more tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest

from curate.models.prefixes import LEAST, Prefix, shared_prefixes


def found(samples: list[list[int]], least_saved: int = 1) -> list[Prefix]:
    return shared_prefixes({i: np.array(ids, np.int32) for i, ids in enumerate(samples)}, least_saved)


def computed(samples: list[list[int]], prefixes: list[Prefix]) -> int:
    """Tokens that go through a model."""
    shared = {i for prefix in prefixes for i in prefix.samples()}
    total, todo = sum(len(ids) for i, ids in enumerate(samples) if i not in shared), list(prefixes)
    while todo:
        prefix = todo.pop()
        total += prefix.stop - prefix.start + sum(len(samples[i]) - prefix.stop for i in prefix.rests)
        todo += prefix.longer
    return total


def check(samples: list[list[int]], prefixes: list[Prefix]) -> None:
    """Every sample is behind one prefix at most, which it begins with, and has a token of its own."""
    places = [i for prefix in prefixes for i in prefix.samples()]
    assert len(places) == len(set(places))
    todo = [(prefix, 0) for prefix in prefixes]
    while todo:
        prefix, start = todo.pop()
        assert prefix.start == start and prefix.stop - start >= LEAST
        assert len(prefix.rests) + len(prefix.longer) > 1
        tokens = samples[prefix.sample][: prefix.stop]
        assert all(samples[i][: prefix.stop] == tokens and len(samples[i]) > prefix.stop for i in prefix.samples())
        todo += [(longer, prefix.stop) for longer in prefix.longer]


def tokens(chance: random.Random, n: int) -> list[int]:
    return [chance.randrange(1000) for _ in range(n)]


def test_random_trees_of_samples() -> None:
    chance = random.Random(0)
    for _ in range(60):
        stems: list[list[int]] = [[]]
        for _ in range(chance.randint(1, 8)):
            stems.append(chance.choice(stems) + tokens(chance, chance.choice([1, 5, 15, 16, 40, 100])))
        samples = [chance.choice(stems) + tokens(chance, chance.randint(1, 30)) for _ in range(chance.randint(1, 30))]
        samples += chance.choices(samples, k=3) + [samples[0][:-1] or [1]]
        chance.shuffle(samples)
        prefixes = found(samples)
        check(samples, prefixes)
        assert computed(samples, prefixes) <= sum(map(len, samples))
        assert bool(prefixes) == (computed(samples, prefixes) < sum(map(len, samples)))


def test_questions_with_options_behind_the_same_examples() -> None:
    chance = random.Random(1)
    examples = tokens(chance, 300)
    asked = [examples + tokens(chance, 50) for _ in range(20)]
    samples = [question + tokens(chance, chance.randint(1, 5)) for question in asked for _ in range(4)]
    (root,) = found(samples)
    assert (root.start, root.stop, root.rests) == (0, 300, [])
    assert sorted((p.start, p.stop, len(p.rests)) for p in root.longer) == [(300, 350, 4)] * 20
    check(samples, [root])


def test_identical_samples_keep_their_last_token() -> None:
    (prefix,) = found([list(range(50))] * 3)
    assert (prefix.start, prefix.stop, sorted(prefix.rests)) == (0, 49, [0, 1, 2])


def test_options_that_begin_alike_are_behind_one_prefix() -> None:
    """A tree of single tokens below a prefix gives no prefixes of its own, nor keeps that one from being used."""
    stem = list(range(200))
    samples = [[*stem, *(bit + 1 for bit in map(int, f"{i:04b}")), i] for i in range(16)]
    (prefix,) = found(samples)
    assert (prefix.start, prefix.stop, len(prefix.rests)) == (0, 200, 16)


@pytest.mark.parametrize(
    ("common", "own", "count", "used"),
    [(25, 200, 100, False), (15, 1, 100, False), (16, 1, 100, True), (90, 150, 2, False), (110, 150, 2, True)],
)
def test_a_prefix_is_used_where_it_is_a_good_part_of_the_samples(common: int, own: int, count: int, used: bool) -> None:
    chance = random.Random(2)
    stem = tokens(chance, common)
    assert bool(found([stem + tokens(chance, own) for _ in range(count)])) == used


def test_nothing_is_shared_for_a_few_tokens() -> None:
    samples = [[*range(40), 100 + i] for i in range(3)]
    assert found(samples, 80) and not found(samples, 81)
    assert not found([]) and not found([[1]]) and not found([list(range(100))])


def test_ever_longer_beginnings_of_one_text() -> None:
    """Deep trees: every sample is the beginning of the next, as the turns of a conversation are."""
    text = tokens(random.Random(3), 20_000)
    for step in (1, 7, 40):
        samples = [text[: step * i + 1] for i in range(500)]
        prefixes = found(samples)
        check(samples, prefixes)
        assert computed(samples, prefixes) < 0.2 * sum(map(len, samples))
        depth, level = 0, prefixes
        while level:
            depth, level = depth + 1, [longer for prefix in level for longer in prefix.longer]
        assert depth < 40  # each is a level of the recursion of a pass
