"""Questions with one right answer: how many a model answers exactly so."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlxchat.ckpt.layout import SavedModel
from mlxchat.data.conversations import Conversation, Message
from mlxchat.data.corpus import Question
from mlxchat.data.tokenizer import ASSISTANT_END
from mlxchat.engine.generate import continue_greedily

MAX_TOKENS = 64  # of an answer
BATCH = 16  # questions


@dataclass(frozen=True)
class Answered:
    """A question, what the model answered at temperature 0, and whether that is the answer."""

    question: Question
    answer: str

    @property
    def correct(self) -> bool:
        """Whether it is the expected answer, word for word."""
        return self.answer == self.question.answer


def ask(saved: SavedModel, questions: Sequence[Question]) -> Iterator[Answered]:
    """Ask each question in a conversation of its own, `BATCH` of them at a time."""
    tokenizer = saved.tokenizer
    stop = frozenset({tokenizer.bos, tokenizer.special(ASSISTANT_END)})
    for start in range(0, len(questions), BATCH):
        asked = questions[start : start + BATCH]
        prompts = [
            tokenizer.render_for_completion(Conversation((Message("user", question.prompt),)))
            for question in asked
        ]
        answers = continue_greedily(saved.model, prompts, stop, MAX_TOKENS)
        for question, tokens in zip(asked, answers, strict=True):
            yield Answered(question, tokenizer.decode(tokens).strip())
