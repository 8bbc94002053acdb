"""Which request has which row: nobody is forgotten or served twice, and a batch is as narrow as its rule says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bark_jax.rows import NARROWER, Rows, together


@given(st.integers(1, 17), st.lists(st.integers(1, 9), max_size=40), st.booleans())
def test_every_request_has_one_row_until_it_is_complete(count: int, lengths: list[int], narrows: bool) -> None:
    batch, left = Rows(range(len(lengths)), count, narrows=narrows), list(lengths)
    begun: list[int] = []
    while any(left):
        before, waited = list(batch.owners), len(begun) < len(lengths)
        kept, given_rows = batch.narrow(), batch.admit()
        if kept is not None:
            assert narrows and not given_rows and len(kept) == len(batch) == len(set(kept))
            assert batch.owners == [before[row] for row in kept]
        begun += [batch.owners[row] for row in given_rows]  # type: ignore[misc]
        owners = list(batch.owned.values())
        assert len(set(owners)) == len(owners)
        assert sorted(owners) == [i for i in begun if left[i]], "a request lost its row, or keeps it too long"
        waiting = len(lengths) - len(begun)
        assert not waiting or len(owners) == count, "a row is free while somebody waits"
        if narrows and not waited:
            assert len(batch) < NARROWER or len(owners) > len(batch) // NARROWER, "wider than it need be"
        for owner in owners:
            left[owner] -= 1
            if not left[owner]:
                batch.release(owner)
    assert begun == list(range(len(lengths)))
    assert narrows or len(batch) == count


def test_a_batch_narrows_when_a_fourth_of_it_is_left() -> None:
    batch = Rows(range(16), 16, narrows=True)
    batch.admit()
    sizes = []
    for request in range(15):
        batch.release(request)
        batch.narrow()
        sizes.append(len(batch))
    assert sizes == [16] * 11 + [4] * 3 + [1]
    assert batch.owners == [15]


def test_a_batch_of_no_power_of_four_keeps_a_row() -> None:
    for count, last in ((1, 1), (2, 2), (3, 3), (6, 1), (8, 2)):
        batch = Rows(range(count), count, narrows=True)
        batch.admit()
        for request in range(count - 1):
            batch.release(request)
        batch.narrow()
        assert len(batch) == last and batch.owned


def test_passes_take_one_row_on_cpus_and_several_elsewhere() -> None:
    assert together(16, "cpu") == together(1, "gpu") == 1
    assert together(64, "gpu") == together(8, "tpu") == 8


@pytest.mark.parametrize("n", [0, 1, 3, 4, 7])
def test_passes_are_filled_up(n: int) -> None:
    batch = Rows([10 + i for i in range(8)], 8, narrows=False)
    batch.admit()
    made = list(batch.passes(list(range(n)), 3))
    assert [int(row) for part in made for row in part.rows[part.chosen]] == list(range(n))
    for part in made:
        assert len(part.owners) == len(part.requests) == len(part.rows) == len(part.chosen) == 3
        for owner, request, row, chosen in zip(*part, strict=True):
            assert owner == (10 + row if chosen else None) and request == (10 + row if chosen else part.requests[0])
    assert all(part.chosen.all() for part in made[:-1]) and all(part.chosen.any() for part in made)
