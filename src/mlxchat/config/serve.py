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
        description="Address to listen on. Another one than this machine's own needs `api_key` or "
        "`insecure`; 0.0.0.0 is all.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_key: str | None = Field(
        None,
        repr=False,
        validate_default=True,
        description=f"Key that clients must send. Others can see it in the list of processes: "
        f"better set ${API_KEY}.",
    )
    insecure: bool = Field(
        False,
        description="Listen on another address without a key: whoever reaches it can use the "
        "model.",
    )
    allow_host: list[str] | None = Field(
        None,
        description="Further name by which clients reach the server, as through a proxy or from "
        "a container: host.docker.internal. Repeat for several.",
        json_schema_extra={"metavar": "NAME"},
    )
    cors_origin: list[str] | None = Field(
        None,
        description="Origin of web pages that may use the server, such as http://localhost:3000; "
        f"repeat for several, {ANY_ORIGIN} for all. Default: none but its own.",
        json_schema_extra={"metavar": "ORIGIN"},
    )
    slots: int = Field(16, ge=1, le=256, description="Answers to generate at a time.")
    queue: int = Field(
        64, ge=1, le=10_000, description="Answers that may wait for a slot; then 429 is the reply."
    )
    cache: str = Field(
        "1GB", description="Memory for prompts that were read, so that they are not read again."
    )
    max_tokens: int = Field(
        512,
        ge=1,
        le=LARGEST_CONTEXT,
        description="Maximum length of an answer in tokens, unless the request has one. Of "
        f"completions it is {COMPLETION_TOKENS}, as OpenAI's, if this is not given.",
    )
    system: SystemMessage = Field(
        None,
        description=f"Instructions for conversations that bring none of their own. {READ_FIRST}",
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**64,
        description="Seed of the random draws of requests without one. Default: random.",
    )
    timeout: float = Field(
        600, gt=0, le=86_400, description="Seconds after which an answer is ended."
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
                "The `api_key` cannot be used.", "Give 8 or more letters, digits or signs."
            )
        return key

    @field_validator("allow_host")
    @classmethod
    def _are_names(cls, names: list[str] | None) -> list[str] | None:
        for name in names or ():
            if not _NAME.fullmatch(name.lower()):
                raise ConfigError(
                    f"`allow_host={name}` is no name of a host.",
                    "A name is like host.docker.internal, without http:// and port.",
                )
        return names and [name.lower() for name in names]

    @field_validator("cors_origin")
    @classmethod
    def _are_origins(cls, origins: list[str] | None) -> list[str] | None:
        for origin in origins or ():
            if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"`cors_origin={origin}` is no origin.",
                    "An origin is like http://localhost:3000, in lower case, without a path.",
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
                f"Set ${API_KEY} to a key that clients send, or give `insecure`.",
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
