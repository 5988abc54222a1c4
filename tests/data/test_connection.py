"""Proxies, the hosts without one, and certificates, as environments of many kinds name them."""

import os
import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest

from mlxchat.data import connection
from mlxchat.data.addresses import bare_address, without_credentials
from mlxchat.data.connection import exemptions, open_client, require_reachable
from mlxchat.errors import MlxchatError


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def environment(unset: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    unset.setattr(connection, "require_reachable", lambda *_: True)
    return unset


class Way(httpx.BaseTransport):
    """Answers with the proxy that the request goes through, or "direct"."""

    def __init__(self, verify: ssl.SSLContext, proxy: httpx.URL | None = None) -> None:
        self._name = "direct" if proxy is None else proxy.host

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=self._name)


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("", False),
        ("::1,[::1],[::1]:80,fe80::/10,[fe80::]/10,[::1", False),
        ("http://[bad, //, :, a:b:c, [], 999.0.0.0/99, %%", False),
        ("::1,127.0.0.0/8", True),
        ("[::1] 127.0.0.1", True),
        ("example.com,*", True),
        ("127.0.0.1:1", False),
        ("https://127.0.0.1", False),
        ("http://127.0.0.1", True),
        ("all://127.0.0.1", True),
    ],
)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_requests_take_the_way_that_the_environment_names(
    no_proxy: str, direct: bool, variable: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setattr(httpx, "HTTPTransport", Way)
    environment.setenv(variable, "me:secret@proxy.example:1")
    environment.setenv("NO_PROXY", no_proxy)
    with open_client(5.0) as client:
        assert client.get("http://127.0.0.1/x").text == ("direct" if direct else "proxy.example")
        secure = client.get("https://10.0.0.1").text
    assert (secure == "proxy.example") == (variable == "ALL_PROXY" and "*" not in no_proxy)


@pytest.mark.parametrize(
    ("no_proxy", "covered", "others"),
    [
        ("::1", ["http://[::1]", "https://[0:0::1]:8"], ["http://[::2]", "http://1.1.1.1"]),
        ("[::1]:80", ["http://[::1]"], ["http://[::1]:81", "https://[::1]"]),
        ("fe80::/10", ["http://[fe80::1]"], ["http://[fd00::1]"]),
        ("[fe80::]/10", ["http://[fe80::1]"], ["http://[fd00::1]"]),
        ("10.0.0.0/8", ["http://10.1.2.3"], ["http://11.1.2.3", "http://10.example"]),
        ("example.com", ["http://example.com", "http://a.EXAMPLE.com."], ["http://anexample.com"]),
        (".example.com", ["http://a.example.com"], ["http://example.com"]),
        ("*.example.com", ["http://a.example.com"], ["http://example.com"]),
        ("b\u00fccher.de", ["http://b\u00fccher.de"], ["http://bucher.de"]),
        ("xn--bcher-kva.de", ["http://b\u00fccher.de"], ["http://bucher.de"]),
        ("example.com:443", ["https://example.com"], ["http://example.com"]),
        ("localhost", ["http://localhost:80"], ["http://127.0.0.1"]),
    ],
)
def test_entries_without_a_proxy(no_proxy: str, covered: list[str], others: list[str]) -> None:
    (entry,) = exemptions(no_proxy)
    assert all(entry.covers(httpx.URL(url)) for url in covered)
    assert not any(entry.covers(httpx.URL(url)) for url in others)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_missing_are_named(
    variable: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(variable, str(tmp_path / "missing"))
    with pytest.raises(MlxchatError, match=f"{variable} is .*missing") as caught:
        open_client(5.0)
    assert f"Set {variable}" in caught.value.remedy


def test_certificates_may_be_in_one_of_several_folders(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("SSL_CERT_DIR", f"{tmp_path / 'missing'}{os.pathsep}{tmp_path}")
    open_client(5.0).close()


def test_a_file_without_certificates_is_named(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.pem").touch()
    environment.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    with pytest.raises(MlxchatError, match=r"empty\.pem, named by SSL_CERT_FILE") as caught:
        open_client(5.0)
    assert isinstance(caught.value.__cause__, ssl.SSLError)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@hub.example/m?token=secret#secret", "https://hub.example/m"),
        ("me:secret@hub.example/m", "hub.example/m"),
        ("//me:secret@hub.example", "//hub.example"),
        ("http://me:a@secret@hub.example/", "http://hub.example/"),
        ("https://me:sec/ret@hub.example", "https://***"),
        ("https://me:sec?ret@hub.example", "https://***"),
        ("me:secret//x@hub.example", "***"),
        ("https:/me:secret@hub.example", "***"),
        ("https://hub.example/?mail=a@b&token=secret", "https://***"),
        ("http://[::1]:8000/m", "http://[::1]:8000/m"),
        ("hub.example\n", "hub.example\n"),
    ],
)
def test_an_address_is_shown_without_credentials(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


def test_a_valid_address_keeps_its_path() -> None:
    assert bare_address("https://a:b@h.example/@own/x?t=a@b") == "https://h.example/@own/x"


ADDRESSES = [f"10.0.0.{number}" for number in range(1, 9)]  # as many as the hub has


@pytest.fixture
def network(unset: pytest.MonkeyPatch) -> dict[str, OSError | None]:
    """What becomes of a connection to each address; one that is not in it gets no answer."""
    outcomes: dict[str, OSError | None] = {}

    def look_up(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (each, port)) for each in ADDRESSES]

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        if address[0] not in outcomes:
            time.sleep(self.gettimeout() or 0)
            raise TimeoutError("timed out")
        if outcome := outcomes[address[0]]:
            raise outcome

    unset.setattr(socket, "getaddrinfo", look_up)
    unset.setattr(socket.socket, "connect", connect)
    return outcomes


def test_a_host_that_drops_packets_at_all_addresses_takes_one_time_limit(
    network: dict[str, OSError | None],
) -> None:
    network[ADDRESSES[0]] = OSError(101, "Network is unreachable")  # as without IPv6
    began = time.monotonic()
    with (
        open_client(0.5) as client,
        pytest.raises(httpx.ConnectTimeout, match=r"hub\.example did not answer for 0\.5 s"),
    ):
        client.get("http://hub.example/x")
    assert time.monotonic() - began < 3.5  # eight limits, one after the other, are 4


def test_a_host_that_answers_at_one_address_is_reachable(
    network: dict[str, OSError | None],
) -> None:
    network[ADDRESSES[-1]] = None
    began = time.monotonic()
    assert require_reachable("hub.example", 443, 5.0)
    assert time.monotonic() - began < 4


def test_a_host_that_refuses_is_left_to_say_so(network: dict[str, OSError | None]) -> None:
    network |= dict.fromkeys(ADDRESSES, ConnectionRefusedError(111, "Connection refused"))
    assert not require_reachable("hub.example", 443, 5.0)


def test_a_name_that_nobody_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(httpx.ConnectError, match="Name or service not known"):
        require_reachable("hub.example", 443, 5.0)


def test_names_that_are_looked_up_for_ever_take_one_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.0))
    with pytest.raises(httpx.ConnectTimeout, match=r"the addresses of hub\.example"):
        require_reachable("hub.example", 443, 0.05)
