"""Requests to a scheduler, and what they were answered."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mlxchat.model.gpt import GPT
from mlxchat.serve.requests import Finished, Request, Token
from mlxchat.serve.scheduler import Scheduler, Ticket

WAIT = 60  # seconds, after which a test fails


@dataclass
class Answer:
    """Collects what is delivered, and can act after so many tokens, on the model's thread."""

    tokens: list[Token] = field(default_factory=list)
    end: Finished | Exception | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Condition = field(default_factory=threading.Condition)
    ticket: Ticket | None = None

    def __call__(self, what: Token | Finished | Exception) -> None:
        with self.arrived:
            assert self.end is None, "a delivery after the end"
            if isinstance(what, Token):
                self.tokens.append(what)
            else:
                self.end = what
                self.ended.set()
            self.arrived.notify_all()

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    def wait_for(self, count: int) -> None:
        """Wait until so many tokens have arrived."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.tokens) >= count or self.end, WAIT)

    def finished(self) -> Finished:
        assert self.ended.wait(WAIT)
        if isinstance(self.end, Exception):
            raise self.end
        assert self.end is not None
        return self.end


def ask(scheduler: Scheduler, request: Request) -> Answer:
    answer = Answer()
    answer.ticket = scheduler.submit(request, answer)
    return answer


@contextmanager
def scheduling(model: GPT, **options: Any) -> Iterator[Scheduler]:
    scheduler = Scheduler(model, **options)
    try:
        yield scheduler
    finally:
        scheduler.close(0)
