"""Text of any origin, made harmless for the terminal or page that shows it."""

_CONTROLLING = {
    code: None
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}


def harmless(text: str) -> str:
    """Return text of any origin without the characters that control a terminal.

    Line feeds and tabs stay. Besides control characters those are left out that make a terminal
    or a browser show text in another order than it is in.

    >>> harmless("a\\x1b[2Jb")
    'a[2Jb'
    """
    return text.translate(_CONTROLLING)
