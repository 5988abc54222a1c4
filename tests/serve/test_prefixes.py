"""What is kept of prompts: the longest beginning, within a number of bytes."""

from mlxchat.engine.rows import Past
from mlxchat.runtime import mx
from mlxchat.serve.prefixes import FEWEST_SHARED, MOST_KEPT, Prefixes


def past(length: int) -> Past:
    """4 bytes for each token; the number in it is the length."""
    return [mx.full((1, 1, 1, length, 1), float(length))]


def test_the_longest_beginning_is_found() -> None:
    kept = Prefixes(1000, fewest=1)
    kept.keep([1, 2, 3, 4], past(4))
    kept.keep([1, 2, 9, 9, 9], past(5))
    assert kept.longest([1, 2, 3, 5, 6])[0] == 3
    shared, found = kept.longest([1, 2, 9, 5, 6])
    assert (shared, found[0].shape[3]) == (3, 5)
    assert kept.longest([7, 1, 2]) == (0, [])


def test_the_last_token_of_a_prompt_is_always_read() -> None:
    kept = Prefixes(1000, fewest=1)
    kept.keep([1, 2, 3], past(3))
    assert kept.longest([1, 2, 3])[0] == 2
    assert kept.longest([1, 2, 3, 4])[0] == 3
    assert kept.longest([1]) == (0, [])


def test_an_entry_takes_the_place_of_its_beginnings() -> None:
    kept = Prefixes(1000, fewest=1)
    kept.keep([1, 2], past(2))
    kept.keep([1, 3], past(2))
    kept.keep([1, 2, 3], past(3))
    kept.keep([1, 2], past(2))
    assert (len(kept), kept.size) == (2, 4 * 5)


def test_the_least_recently_used_make_room() -> None:
    kept = Prefixes(4 * 9, fewest=1)
    for first in (1, 2, 3):
        kept.keep([first, 0, 0], past(3))
    kept.longest([1, 0, 5])
    kept.keep([4, 0, 0], past(3))
    assert [kept.longest([first, 0, 0, 0])[0] for first in (1, 2, 3, 4)] == [3, 0, 3, 3]
    assert kept.size == 4 * 9


def test_what_is_too_large_is_not_kept() -> None:
    kept = Prefixes(4 * 3, fewest=1)
    kept.keep([1, 2, 3], past(3))
    kept.keep([5, 6, 7, 8], past(4))
    assert (len(kept), kept.longest([1, 2, 3, 4])[0]) == (1, 3)
    nothing = Prefixes(0, fewest=1)
    nothing.keep([1], past(1))
    assert len(nothing) == 0


def test_what_all_conversations_begin_with_is_no_hit() -> None:
    kept, few = Prefixes(10**6), [*range(FEWEST_SHARED - 1)]
    enough = [*few, 99]
    kept.keep([*few, 100, 101], past(FEWEST_SHARED + 1))
    kept.keep([*enough, 102], past(FEWEST_SHARED + 1))
    kept.keep(few, past(len(few)))
    assert len(kept) == 2
    assert kept.longest([*few, 103, 104]) == (0, [])
    assert kept.longest([*enough, 105])[0] == FEWEST_SHARED


def test_a_prompt_that_hits_nothing_keeps_nothing_from_being_replaced() -> None:
    size = 4 * (FEWEST_SHARED + 1)
    kept, few = Prefixes(2 * size), [0] * (FEWEST_SHARED - 1)
    for number in (1, 2):
        kept.keep([*few, number, number], past(FEWEST_SHARED + 1))
    kept.longest([*few, 3, 3])
    kept.keep([*few, 3, 3], past(FEWEST_SHARED + 1))
    found = [kept.longest([*few, number, number, 0])[0] for number in (1, 2, 3)]
    assert found == [0, FEWEST_SHARED + 1, FEWEST_SHARED + 1]


def test_there_are_so_many_entries_however_small_they_are() -> None:
    kept = Prefixes(10**9, fewest=1)
    for number in range(MOST_KEPT + 5):
        kept.keep([number], past(1))
    assert (len(kept), kept.size) == (MOST_KEPT, 4 * MOST_KEPT)
    assert [kept.longest([number, 0])[0] for number in (4, 5, MOST_KEPT + 4)] == [0, 1, 1]


def test_an_adapter_continues_only_what_it_has_read() -> None:
    kept = Prefixes(1000, fewest=1)
    kept.keep([1, 2, 3], past(3))
    assert kept.longest([1, 2, 3, 4], "cow") == (0, [])
    kept.keep([1, 2], past(2), "cow")
    kept.keep([1, 2, 3, 4], past(4), "cow")
    assert [kept.longest([1, 2, 3, 4, 5], name)[0] for name in (None, "cow")] == [3, 4]
    assert len(kept) == 2
