"""What `quantize` and `fuse` print of the loss before and after."""

import pytest

from mlxchat.cli.validation import say_losses


@pytest.mark.parametrize(
    ("after", "change"), [(2.0, "+0.00%"), (1.99999, "+0.00%"), (2.1, "+5.00%"), (1.9, "-5.00%")]
)
def test_no_change_has_no_minus(
    capsys: pytest.CaptureFixture[str], after: float, change: str
) -> None:
    facts = {"bits_per_byte_before": 2.0, "bits_per_byte_after": after, "validation_tokens": 7}
    say_losses(facts)
    assert f"({change}), on 7 validation tokens" in capsys.readouterr().out
