"""Removes credentials from the addresses of servers. Pure: quick to import."""

import re

_PARTS = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)?([^/?#]*)([^?#]*)(.*)", re.DOTALL)


def bare_address(url: str) -> str:
    """Return a valid URL without user name, password, query and fragment.

    >>> bare_address("https://me:secret@hub.example/mirror?token=secret")
    'https://hub.example/mirror'
    """
    scheme, host, path, _ = _parts(url)
    return scheme + host.rpartition("@")[2] + path


def without_credentials(address: str) -> str:
    """Return an address that may be shown and stored, as `bare_address` does for any text.

    Where it is not clear where the password ends, everything that may be part of it is left out.

    >>> without_credentials("https://me:sec/ret@hub.example")
    'https://***'
    """
    scheme, _, path, rest = _parts(address)
    return f"{scheme}***" if "@" in path + rest else bare_address(address)


def _parts(address: str) -> tuple[str, str, str, str]:
    match = _PARTS.fullmatch(address)
    assert match is not None  # the pattern matches any text
    scheme, host, path, rest = match.groups(default="")
    return scheme, host, path, rest
