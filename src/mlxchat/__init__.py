"""mlxchat: train a GPT on your own machine, and talk to it.

    import mlxchat

    model = mlxchat.load("quickstart-sft")          # the name of a run, or a model's directory
    print(model.generate("The cow", max_tokens=20))
    print(model.chat().say("What does a cow say?"))
    for event in mlxchat.pretrain(dataset="builtin", depth=2, max_seq_len=128,
                                  total_batch_size=2048, num_iterations=50):
        print(event)

The names in ``__all__`` are the public API; docs/api.md describes it. They are imported when they
are first used, so that `import mlxchat` takes milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mlxchat import blas

if TYPE_CHECKING:
    from mlxchat.api import fine_tune, import_model, load, mid_train, pretrain, reinforce
    from mlxchat.config.mid import MidConfig
    from mlxchat.config.pretrain import PretrainConfig
    from mlxchat.config.rl import RlConfig
    from mlxchat.config.sft import SftConfig
    from mlxchat.engine.chat import Chat
    from mlxchat.errors import (
        BackendError,
        CheckpointError,
        ConfigError,
        DataError,
        DeviceError,
        DiskError,
        DivergedError,
        LockedError,
        MemoryLimitError,
        MlxchatError,
        NotFound,
    )
    from mlxchat.evaluate.core import CoreResult
    from mlxchat.model.config import GPTConfig
    from mlxchat.model.gpt import GPT
    from mlxchat.optim.optimizer import MuonAdamW
    from mlxchat.telemetry.events import (
        CoreMeasured,
        Drawing,
        Ended,
        Evaluated,
        Evaluating,
        Event,
        Judged,
        Noted,
        Progressed,
        Replanned,
        Rewarded,
        Sampled,
        Saved,
        Started,
        Stepped,
    )
    from mlxchat.tokenizer.bpe import Tokenizer
    from mlxchat.tokenizer.messages import Conversation, Message
    from mlxchat.trained import Loss, Model

__version__ = "0.2.0"

__all__ = [
    "GPT",
    "BackendError",
    "Chat",
    "CheckpointError",
    "ConfigError",
    "Conversation",
    "CoreMeasured",
    "CoreResult",
    "DataError",
    "DeviceError",
    "DiskError",
    "DivergedError",
    "Drawing",
    "Ended",
    "Evaluated",
    "Evaluating",
    "Event",
    "GPTConfig",
    "Judged",
    "LockedError",
    "Loss",
    "MemoryLimitError",
    "Message",
    "MidConfig",
    "MlxchatError",
    "Model",
    "MuonAdamW",
    "NotFound",
    "Noted",
    "PretrainConfig",
    "Progressed",
    "Replanned",
    "Rewarded",
    "RlConfig",
    "Sampled",
    "Saved",
    "SftConfig",
    "Started",
    "Stepped",
    "Tokenizer",
    "__version__",
    "fine_tune",
    "import_model",
    "load",
    "mid_train",
    "pretrain",
    "reinforce",
]

_MODULES = {  # that define the public names
    "mlxchat.api": "fine_tune import_model load mid_train pretrain reinforce",
    "mlxchat.config.mid": "MidConfig",
    "mlxchat.config.pretrain": "PretrainConfig",
    "mlxchat.config.rl": "RlConfig",
    "mlxchat.config.sft": "SftConfig",
    "mlxchat.engine.chat": "Chat",
    "mlxchat.errors": "BackendError CheckpointError ConfigError DataError DeviceError DiskError "
    "DivergedError LockedError MemoryLimitError MlxchatError NotFound",
    "mlxchat.evaluate.core": "CoreResult",
    "mlxchat.model.config": "GPTConfig",
    "mlxchat.model.gpt": "GPT",
    "mlxchat.optim.optimizer": "MuonAdamW",
    "mlxchat.telemetry.events": "CoreMeasured Drawing Ended Evaluated Evaluating Event Judged "
    "Noted Progressed Replanned Rewarded Sampled Saved Started Stepped",
    "mlxchat.tokenizer.bpe": "Tokenizer",
    "mlxchat.tokenizer.messages": "Conversation Message",
    "mlxchat.trained": "Loss Model",
}

if not TYPE_CHECKING:  # a type checker would take any name for one of the package's

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        for module, names in _MODULES.items():
            if name in names.split():
                value = getattr(import_module(module), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module 'mlxchat' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


blas.prepare()
