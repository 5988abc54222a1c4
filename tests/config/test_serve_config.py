"""The settings of the server: what is safe, and what is no address, key or origin."""

import pytest

from mlxchat.config.serve import API_KEY, ServeConfig, is_loopback
from mlxchat.errors import ConfigError


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"]
)
def test_only_this_machine_reaches_a_loopback_address(host: str) -> None:
    assert is_loopback(host)
    assert ServeConfig(host=host).loopback


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "model.example", "localhost.example"]
)
def test_another_address_needs_a_key_or_the_word(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"(?s)can be reached.*{API_KEY}.*`insecure`"):
        ServeConfig(host=host)
    assert ServeConfig(host=host, insecure=True).api_key is None
    assert ServeConfig(host=host, api_key="correct-horse")
    monkeypatch.setenv(API_KEY, "from-the-environment")
    assert ServeConfig(host=host).api_key == "from-the-environment"
    assert ServeConfig(host=host, api_key="correct-horse").api_key == "correct-horse"


def test_the_key_is_not_shown() -> None:
    assert "correct-horse" not in repr(ServeConfig(api_key="correct-horse"))


@pytest.mark.parametrize("key", ["", "short", "with blanks in it", "späß-und-mehr", "line\nbreak"])
def test_a_key_that_cannot_be_sent_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="`api_key` is not valid") as raised:
        ServeConfig(api_key=key)
    assert not key or key not in str(raised.value)


@pytest.mark.parametrize(
    "origin", ["localhost", "http://a.example/", "http://A.example", "null", ""]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="is not an origin"):
        ServeConfig(cors_origin=["http://localhost:3000", origin])


@pytest.mark.parametrize("name", ["http://a.example", "a.example:8000", "a b", "", "*", "fe80::1"])
def test_what_is_no_name_of_a_host_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a host name"):
        ServeConfig(allow_host=["a.example", name])


def test_names_of_hosts_are_in_lower_case() -> None:
    assert ServeConfig(allow_host=["A.example", "[FE80::1]"]).allow_host == [
        "a.example",
        "[fe80::1]",
    ]
    assert ServeConfig().allow_host is None


def test_a_blank_system_message_is_none() -> None:
    assert ServeConfig(system="Be brief.").system == "Be brief."
    assert ServeConfig(system="  ").system is None


def test_the_cache_is_a_size() -> None:
    assert ServeConfig(cache="1.5 gib").cache_bytes == 1.5 * 2**30
    with pytest.raises(ConfigError):
        ServeConfig(cache="much")
