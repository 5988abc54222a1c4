"""Counts in words: a number with what is counted, in the singular where it is one."""

SINGULAR = {"batches": "batch", "micro-batches": "micro-batch", "matrices": "matrix"}
"""Nouns whose singular is not the plural without its s; also with words before them."""


def counted(count: float, unit: str) -> str:
    """Return a count with its unit: ``1 step``, ``2,000 steps``.

    Args:
        count: of what there is; it is rounded to a whole number.
        unit: what is counted, in the plural. It may go on with ``of``.

    >>> counted(1, "rows of 128")
    '1 row of 128'
    >>> counted(2000, "training shards")
    '2,000 training shards'
    """
    shown = f"{count:,.0f}"
    if shown != "1":
        return f"{shown} {unit}"
    nouns, of, rest = unit.partition(" of ")
    *before, noun = nouns.split(" ")
    return " ".join((shown, *before, SINGULAR.get(noun, noun.removesuffix("s")))) + of + rest
