"""Settings of the server. Pure: quick to import."""

import ipaddress
import os
import re

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mlxchat.config.inference import READ_FIRST, SystemMessage
from mlxchat.config.pretrain import LARGEST_CONTEXT
from mlxchat.config.units import spell_size, to_bytes
from mlxchat.errors import ConfigError

API_KEY = "MLXCHAT_API_KEY"  # in the environment, which other users of the machine cannot list
ANY_ORIGIN = "*"
COMPLETION_TOKENS = 16  # of a completion, where neither the request nor the settings say

_NAME = re.compile(r"[a-z0-9_.-]+|\[[0-9a-f:.]+\]")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*A-Z]+")
_KEY = re.compile(r"[!-~]{8,500}")


class ServeConfig(BaseModel):
    """Settings of the server: its address, its clients, and the work it does at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="Server")

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; 0.0.0.0 means all interfaces. Any address that "
        "other machines can reach needs `api_key` or `insecure`.",
        json_schema_extra={"metavar": "ADDRESS"},
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    api_key: str | None = Field(
        None,
        repr=False,
        validate_default=True,
        description="Key that clients must send. Other users can see it in the process list, "
        f"so prefer setting ${API_KEY}.",
        json_schema_extra={"metavar": "KEY"},
    )
    insecure: bool = Field(
        False,
        description="Allow other machines to connect without a key. Anyone who can reach the "
        "address can use the model.",
    )
    allow_host: list[str] | None = Field(
        None,
        description="Additional host name under which clients reach the server, such as "
        "host.docker.internal from a container, or a proxy's name. Repeat for several.",
        json_schema_extra={"metavar": "NAME"},
    )
    cors_origin: list[str] | None = Field(
        None,
        description="Origin of web pages that may use the server, such as "
        f"http://localhost:3000, or {ANY_ORIGIN} for all. Repeat for several. Default: only the "
        "server's own page.",
        json_schema_extra={"metavar": "ORIGIN"},
    )
    slots: int = Field(16, ge=1, le=256, description="Answers to generate in parallel.")
    queue: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Requests that may wait for a slot. Beyond that, the "
        "server replies with status 429.",
    )
    cache: str = Field(
        "1GB",
        description="Memory for the prompt cache, which saves reading the same prompt twice.",
        json_schema_extra={"metavar": "SIZE"},
    )
    max_tokens: int = Field(
        512,
        ge=1,
        le=LARGEST_CONTEXT,
        description="Maximum length of an answer in tokens, if the request sets none. If you "
        f"leave this out, /v1/completions uses {COMPLETION_TOKENS}, as OpenAI does.",
    )
    system: SystemMessage = Field(
        None,
        description=f"System message for conversations that have none. {READ_FIRST}",
        json_schema_extra={"metavar": "TEXT"},
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**64,
        description="Random seed for requests that set none. Default: random.",
    )
    timeout: float = Field(
        600, gt=0, le=86_400, description="Seconds after which an unfinished answer is cut off."
    )

    @property
    def cache_bytes(self) -> int:
        """The memory for prompts that were read, in bytes."""
        return to_bytes(self.cache)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @field_validator("api_key", mode="before")
    @classmethod
    def _from_environment(cls, key: object) -> object:
        return key if key is not None else os.environ.get(API_KEY) or None

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, key: str | None) -> str | None:
        if key is not None and not _KEY.fullmatch(key):
            raise ConfigError(
                "The `api_key` is not valid.",
                "Use 8 to 500 letters, digits and ASCII punctuation marks, without spaces.",
            )
        return key

    @field_validator("allow_host")
    @classmethod
    def _are_names(cls, names: list[str] | None) -> list[str] | None:
        for name in names or ():
            if not _NAME.fullmatch(name.lower()):
                raise ConfigError(
                    f"`allow_host={name}` is not a host name.",
                    "Write it like host.docker.internal, without http:// and port.",
                )
        return names and [name.lower() for name in names]

    @field_validator("cors_origin")
    @classmethod
    def _are_origins(cls, origins: list[str] | None) -> list[str] | None:
        for origin in origins or ():
            if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"`cors_origin={origin}` is not an origin.",
                    "Write it like http://localhost:3000, in lower case and without a path.",
                )
        return origins

    @field_validator("cache")
    @classmethod
    def _canonical_size(cls, size: str) -> str:
        return spell_size(size)

    @model_validator(mode="after")
    def _safe(self) -> "ServeConfig":
        if not (self.loopback or self.api_key or self.insecure):
            raise ConfigError(
                f"`host={self.host}` can be reached from other machines, and there is no key.",
                f"Set ${API_KEY} to a key that clients must send, or give `insecure`.",
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, reachable from nowhere else.

    >>> is_loopback("localhost"), is_loopback("[::1]"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
