"""Best-fit packing against the batches that nanochat packed from the same documents."""

import numpy as np
from conftest import golden

from mlxchat.data.packing import BestFit, Buffered

GOLDEN = golden("packing.json")
CAPACITY = GOLDEN["T"] + 1
ROWS = [
    [*inputs, targets[-1]]
    for batch in GOLDEN["batches"]
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True)
]


class Source:
    """Documents in refills of a given size, from any position on."""

    def __init__(self, documents: list[list[int]], position: int = 0) -> None:
        self.documents, self.position = documents, position

    def __call__(self) -> list[list[int]] | None:
        start, self.position = self.position, self.position + GOLDEN["documents_per_refill"]
        return self.documents[start : self.position] or None


def packer(source: Source, held: tuple[Buffered, ...] = ()) -> BestFit:
    return BestFit(CAPACITY, GOLDEN["buffer_size"], source, held)


def test_rows_are_nanochats() -> None:
    packing = packer(Source(GOLDEN["documents"]))
    for row in ROWS:
        assert np.array_equal(packing.row(), row)


def test_resumed_from_any_row() -> None:
    source = Source(GOLDEN["documents"])
    packing = packer(source)
    for i in range(1, len(ROWS)):
        packing.row()
        resumed = packer(Source(GOLDEN["documents"], source.position), packing.snapshot())
        assert np.array_equal(resumed.row(), ROWS[i])


def test_the_end_of_the_documents_fills_what_rows_it_can() -> None:
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
