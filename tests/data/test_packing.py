"""Packing equals nanochat's, resumes, pads and masks."""

import numpy as np
from support.cases import golden

from mlxchat.data.packing import BestFit, Buffered, EndToEnd, mask, unmask

GOLDEN = golden("packing.json")
CAPACITY = GOLDEN["T"] + 1
ROWS = [
    [*inputs, targets[-1]]
    for batch in GOLDEN["batches"]
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True)
]


class Source:
    """A source of documents that returns a few at a time, from any position on."""

    def __init__(self, documents: list[list[int]], position: int = 0) -> None:
        self.documents, self.position = documents, position

    def __call__(self) -> list[list[int]] | None:
        start, self.position = self.position, self.position + GOLDEN["documents_per_refill"]
        return self.documents[start : self.position] or None


def packer(source: Source, held: tuple[Buffered, ...] = ()) -> BestFit:
    return BestFit(CAPACITY, GOLDEN["buffer_size"], source, held)


def test_rows_equal_nanochats() -> None:
    packing = packer(Source(GOLDEN["documents"]))
    for row in ROWS:
        assert np.array_equal(packing.row(), row)


def test_packing_resumes_from_any_row() -> None:
    source = Source(GOLDEN["documents"])
    packing = packer(source)
    for i in range(1, len(ROWS)):
        packing.row()
        resumed = packer(Source(GOLDEN["documents"], source.position), packing.snapshot())
        assert np.array_equal(resumed.row(), ROWS[i])


def test_at_the_end_of_the_documents_only_whole_rows_are_packed() -> None:
    documents = [[0] * 10, [1] * 40, [2] * 30]
    packing = packer(Source(documents))
    rows = []
    while (row := packing.row()) is not None:
        rows.append(row.tolist())
    assert rows == [[2] * 30 + [0] * 3, [1] * 33]


def test_empty_documents_do_not_stall() -> None:
    packing = packer(Source([[], [7] * 33]))
    assert packing.row().tolist() == [7] * 33
    assert packing.row() is None


def test_nothing_is_dropped_of_whole_documents() -> None:
    random = np.random.default_rng(5)
    documents = [[i] * int(n) for i, n in enumerate(random.integers(0, 200, 300))]
    packing = BestFit(CAPACITY, 20, Source(documents), whole=True)
    counts = np.zeros(len(documents), int)
    while (row := packing.row()) is not None:
        np.add.at(counts, row, 1)
    left = sum(document.length for document in packing.snapshot())
    assert counts.sum() + left + CAPACITY > sum(map(len, documents))
    assert (counts <= [len(ids) for ids in documents]).all()


def test_the_pieces_of_a_document_are_in_rows_apart() -> None:
    documents = [[1] * 99, [2] * 66, [3] * 33]
    packing = BestFit(CAPACITY, 3, lambda: documents.copy(), whole=True)
    firsts = [int(packing.row()[0]) for _ in range(6)]
    assert firsts == [1, 2, 3, 1, 2, 1]


def test_packing_of_whole_documents_resumes() -> None:
    random = np.random.default_rng(4)
    documents = [[i] * int(n) for i, n in enumerate(random.integers(0, 200, 300))]
    source = Source(documents)
    packing = BestFit(CAPACITY, 20, source, whole=True)
    for _ in range(200):
        position, held = source.position, packing.snapshot()
        resumed = BestFit(CAPACITY, 20, Source(documents, position), held, whole=True).row()
        assert np.array_equal(packing.row(), resumed)


def test_padded_rows_cut_only_documents_longer_than_a_row() -> None:
    documents = [[1] * 10, [2] * 40, [3] * 30, [4] * 2, [5] * 33, [6] * 24, [7]]
    packing = BestFit(CAPACITY, 100, Source(documents), padding=-9)
    rows = []
    while (row := packing.row()) is not None:
        rows.append(row.tolist())
    assert rows == [
        [2] * 33,  # the beginning of a long one
        [5] * 33,
        [3] * 30 + [4] * 2 + [7],
        [6] * 24 + [-9] * 9,
        [1] * 10 + [-9] * 23,
    ]


def test_packing_of_padded_rows_resumes() -> None:
    random = np.random.default_rng(3)
    documents = [[i] * int(n) for i, n in enumerate(random.integers(0, 50, 300))]
    source = Source(documents)
    packing = BestFit(CAPACITY, 20, source, padding=-1)
    while (row := packing.row()) is not None:
        held, position = packing.snapshot(), source.position
        resumed = BestFit(CAPACITY, 20, Source(documents, position), held, padding=-1).row()
        expected = packing.row()
        assert np.array_equal(resumed, expected) if expected is not None else resumed is None
        if expected is None:
            break
        assert len(row) == CAPACITY


def test_masked_tokens_keep_their_ids_and_are_no_targets() -> None:
    packed = np.array([[5, mask(0), mask(7), 0]], np.int32)
    ids, targets = unmask(packed)
    assert ids.tolist() == [[5, 0, 7, 0]]
    assert targets.tolist() == [[5, -1, -1, 0]]
    assert ids.dtype == targets.dtype == np.int32


def all_rows(packing: EndToEnd) -> list[list[int]]:
    rows = []
    while (row := packing.row()) is not None:
        rows.append(row.tolist())
    return rows


def end_to_end(source: Source, held: tuple[Buffered, ...] = ()) -> EndToEnd:
    return EndToEnd(4, source, held, padding=-9)


def test_rows_follow_each_other_through_documents_until_the_last_is_padded() -> None:
    packing = end_to_end(Source([[1, 2], [], [3, 4, 5, 6, 7, 8, 9, 10, 11], [12]]))
    assert all_rows(packing) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    packing = end_to_end(Source([[1, 2, 3, 4, 5]]))
    assert all_rows(packing) == [[1, 2, 3, 4], [5, -9, -9, -9]]


def test_rows_that_follow_each_other_resume_within_a_document() -> None:
    documents = [[i] * length for i, length in enumerate([3, 9, 1, 0, 14, 2, 6])]
    source = Source(documents)
    packing = end_to_end(source)
    while (row := packing.row()) is not None:
        held, position = packing.snapshot(), source.position
        following = packing.row()
        resumed = end_to_end(Source(documents, position), held).row()
        assert (resumed is None) == (following is None)
        if following is not None:
            assert resumed is not None
            assert resumed.tolist() == following.tolist()
        assert len(row) == 4
