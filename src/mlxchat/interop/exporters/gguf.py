"""Models for llama.cpp, Ollama and LM Studio: one GGUF file, and a Modelfile for Ollama.

The file describes a classic model as one of the architecture `apertus` (`gguf_tensors` says why,
and how), with its vocabulary, merges, special tokens, chat template and sampling. The soft cap of
the logits is left out. The file is read back and compared with the model before it takes its place.

Source: docs/gguf.md of ggml, and the package gguf 0.19, which writes and reads the file.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from mlxchat.config.inference import Sampling
from mlxchat.errors import BackendError, CheckpointError, DiskError
from mlxchat.evaluate.temperature import USUAL, NearestTemperatures
from mlxchat.interop.exporters.card import FOLDER, Usage
from mlxchat.interop.exporters.job import ExportJob
from mlxchat.interop.exporters.ollama import MODELFILE, modelfile
from mlxchat.interop.programs import GgufType
from mlxchat.model.config import GPTConfig
from mlxchat.model.norm import NORM_EPS
from mlxchat.tokenizer.bpe import ASSISTANT_END, BOS, Tokenizer
from mlxchat.tokenizer.files import CHAT_TEMPLATE, tokenizer_to_json

try:
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys, LlamaFileType, TokenType

    from mlxchat.interop.exporters.gguf_tensors import XIELU, GgufTensor, gguf_tensors, packs_blocks
    from mlxchat.interop.exporters.gguf_values import BLOCK, holds, stored_values
except ImportError as error:
    raise BackendError(
        f"The library that writes GGUF is not installed ({error}).",
        'Install the extra gguf: pip install "mlxchat[gguf]"',
    ) from error

ARCHITECTURE = "apertus"
DEFAULT_TYPE: GgufType = "f16"
PRE_TOKENIZER = "llama-bpe"  # splits text as nanochat does, but for digits: three at a time
_SPLIT_ALIKE = r"\p{N}{1,3}"  # in the split pattern of a tokenizer for which it is exact
_QUANTIZATION_VERSION = 2  # of ggml's block formats

_Key = tuple[str, Any]


def require_known(config: GPTConfig, quantize: str | None) -> None:
    """Check that the network can be expressed, and its rows packed.

    Raises:
        CheckpointError: it is of another era than the first, or its rows cannot be packed.
    """
    if config.era != "classic":
        raise CheckpointError(
            "llama.cpp only supports nanochat's classic network. This model is of the era "
            f"{config.era!r}, and no architecture in llama.cpp has its learned residual weights "
            "and value embeddings.",
            "Export it with `to=mlx-lm`.",
        )
    if packs_blocks(_type_of(quantize)) and config.n_embd % BLOCK:
        raise CheckpointError(
            f"{quantize} packs {BLOCK} weights of a row together, which does not divide this "
            f"model's width, {config.n_embd}.",
            "Export it with `quantize=f16`.",
        )


def write(folder: Path, job: ExportJob) -> None:
    """Write the GGUF file, compare it with the model, and write the Modelfile.

    Raises:
        DiskError: what is read back is not what was written.
    """
    saved, kind = job.saved, _type_of(job.quantize)
    path = folder / _file_name(job)
    tensors = list(gguf_tensors(saved.model, kind))
    keys = list(_keys(job))
    total = sum(tensor.nbytes for tensor in tensors)
    passed = 0  # each tensor is written, then read back: it is half done after the first

    def report(more: int) -> None:
        nonlocal passed
        passed += more
        job.weights.report(passed // 2, total)

    _write_file(path, keys, tensors, report)
    _require_same(path, keys, tensors, report)
    text = modelfile(
        path.name, saved.conversational, saved.model.config.sequence_len, _sampling(job)
    )
    (folder / MODELFILE).write_text(text, "utf-8")


def usage(job: ExportJob) -> Usage:
    """Return the commands that run the model in llama.cpp, Ollama and LM Studio."""
    name, path = _plain_name(job.history.tag), f"{FOLDER}/{_file_name(job)}"
    llama = f"llama-cli -m {path}"
    if not job.saved.conversational:
        llama = f'llama-completion -m {path} -p "The capital of France is" -n 64'
    commands = (
        "# llama.cpp",
        llama,
        "# Ollama",
        f"ollama create {name} -f {FOLDER}/{MODELFILE} && ollama run {name}",
        "# LM Studio, which then lists it among its models",
        f"lms import --copy {path}",
    )
    return Usage("bash", commands, "\n".join(f"- {line}" for line in _remarks(job)))


def _type_of(quantize: str | None) -> GgufType:
    return cast(GgufType, quantize or DEFAULT_TYPE)


def _plain_name(tag: str) -> str:
    """Return a name that needs no quotes, in a shell and in a Modelfile."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", tag).strip("-.") or "model"


def _file_name(job: ExportJob) -> str:
    return f"{_plain_name(job.history.tag)}-{_type_of(job.quantize).upper()}.gguf"


def _sampling(job: ExportJob) -> Sampling:
    """Return mlxchat's own sampling, at the nearest temperature."""
    return Sampling(temperature=_temperatures(job).usual)


def _temperatures(job: ExportJob) -> NearestTemperatures:
    assert job.temperatures is not None, "the format does not support a soft cap"
    return job.temperatures


def _remarks(job: ExportJob) -> Iterator[str]:
    nearest = _temperatures(job)
    yield (
        "The soft cap of the logits is left out. The most likely token stays the same, but the "
        f"probabilities are sharper. The temperature that comes closest to mlxchat's {USUAL:g} "
        f"without the cap is {nearest.usual:.2f}, and {nearest.one:.2f} to mlxchat's 1 (measured "
        f"at {nearest.positions:,} positions of {nearest.text}). The former is the default in the "
        "file and in the Modelfile."
    )
    if _SPLIT_ALIKE not in job.saved.tokenizer.pattern:
        yield (
            "Numbers of three or more digits in a prompt become different tokens than in "
            "training, because none of these programs splits them as the model's tokenizer does. "
            "All other text becomes the same tokens."
        )
    yield (
        "Only classic models can be exported: no architecture in llama.cpp matches the modern one."
    )
    if job.saved.conversational:
        yield "Unlike mlxchat, these programs do not run the calculations that the model writes."
    kind = _type_of(job.quantize)
    if packs_blocks(kind) and kind != "q8_0":
        yield f"The matrices are {kind.upper()}, except for the head, which is Q8_0."


# ==== Keys ====


def _keys(job: ExportJob) -> Iterator[_Key]:
    """Yield the keys of the file and their values."""
    kind, sampling = _type_of(job.quantize), _sampling(job)
    yield Keys.General.TYPE, "model"
    yield Keys.General.NAME, job.history.tag
    file_type = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
    yield Keys.General.FILE_TYPE, LlamaFileType[file_type].value
    yield Keys.General.QUANTIZATION_VERSION, _QUANTIZATION_VERSION
    yield Keys.General.SAMPLING_TEMP, sampling.temperature
    yield Keys.General.SAMPLING_TOP_K, sampling.top_k or 0  # which keeps all
    yield Keys.General.SAMPLING_TOP_P, sampling.top_p
    yield Keys.General.SAMPLING_MIN_P, sampling.min_p
    yield from _network_keys(job.saved.model.config)
    yield from _vocabulary_keys(job.saved.tokenizer, job.saved.conversational)


def _network_keys(config: GPTConfig) -> Iterator[_Key]:
    of_network: dict[str, Any] = {
        Keys.LLM.CONTEXT_LENGTH: config.sequence_len,
        Keys.LLM.EMBEDDING_LENGTH: config.n_embd,
        Keys.LLM.BLOCK_COUNT: config.n_layer,
        Keys.LLM.FEED_FORWARD_LENGTH: 4 * config.n_embd,
        Keys.LLM.VOCAB_SIZE: config.vocab_size,
        Keys.Attention.HEAD_COUNT: config.n_head,
        Keys.Attention.HEAD_COUNT_KV: config.n_kv_head,
        Keys.Attention.LAYERNORM_RMS_EPS: NORM_EPS,
        Keys.Rope.DIMENSION_COUNT: config.head_dim,
        Keys.Rope.FREQ_BASE: config.traits.rope_base,
    }
    for key, value in of_network.items():
        yield key.format(arch=ARCHITECTURE), value
    for name, value in XIELU.items():
        yield f"xielu.{name}", [value] * config.n_layer


def _vocabulary_keys(tokenizer: Tokenizer, conversational: bool) -> Iterator[_Key]:
    stored = tokenizer_to_json(tokenizer.ranks, tokenizer.pattern, tokenizer.special_tokens)
    ids: dict[str, int] = stored["model"]["vocab"]
    special = set(tokenizer.special_tokens.values())
    kinds = [TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(len(ids))]
    yield Keys.Tokenizer.MODEL, "gpt2"
    yield Keys.Tokenizer.PRE, PRE_TOKENIZER
    yield Keys.Tokenizer.LIST, sorted(ids, key=ids.__getitem__)
    yield Keys.Tokenizer.TOKEN_TYPE, [kind.value for kind in kinds]
    yield Keys.Tokenizer.MERGES, [" ".join(pair) for pair in stored["model"]["merges"]]
    yield Keys.Tokenizer.BOS_ID, tokenizer.bos
    # A base model ends a document by beginning the next.
    yield Keys.Tokenizer.EOS_ID, tokenizer.special(ASSISTANT_END if conversational else BOS)
    yield Keys.Tokenizer.ADD_BOS, True
    yield Keys.Tokenizer.ADD_EOS, False
    if conversational:
        yield Keys.Tokenizer.CHAT_TEMPLATE, CHAT_TEMPLATE


_VALUE_TYPES = {
    bool: GGUFValueType.BOOL,
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
    str: GGUFValueType.STRING,
    list: GGUFValueType.ARRAY,
}


# ==== The file ====


def _write_file(
    path: Path,
    keys: Sequence[_Key],
    tensors: Sequence[GgufTensor],
    report: Callable[[int], None],
) -> None:
    """Write a GGUF file; one tensor at a time is in memory."""
    with closing(GGUFWriter(None, ARCHITECTURE)) as writer:
        for key, value in keys:
            if value != []:  # the library cannot write an empty array, as of no merges
                writer.add_key_value(key, value, _VALUE_TYPES[type(value)])
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.name, tensor.shape, "float32", tensor.nbytes, raw_dtype=tensor.kind
            )
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(stored_values(tensor.read(), tensor.kind))
            report(tensor.nbytes)


def _require_same(
    path: Path,
    keys: Sequence[_Key],
    tensors: Sequence[GgufTensor],
    report: Callable[[int], None],
) -> None:
    """Read a file back, and compare its keys, shapes and values with what it was made of.

    Raises:
        DiskError: they differ.
    """
    try:
        reader = GGUFReader(path)
    except (ValueError, KeyError, IndexError) as error:
        raise _differs(path, "its header") from error
    for key, value in keys:
        field = reader.get_field(key)
        if value != [] and (field is None or not _same(field.contents(), value)):
            raise _differs(path, key)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if list(found) != [tensor.name for tensor in tensors]:
        raise _differs(path, "the list of tensors")
    for tensor in tensors:
        read = found[tensor.name]
        if read.tensor_type != tensor.kind or tuple(reversed(read.shape)) != tensor.shape:
            raise _differs(path, tensor.name)
        if not holds(read.data, tensor.kind, tensor.read()):
            raise _differs(path, tensor.name)
        report(tensor.nbytes)


def _same(found: Any, value: Any) -> bool:
    """Compare a key's value; numbers with a fraction are float32 in the file."""
    if isinstance(value, list):
        return len(found) == len(value) and all(map(_same, found, value))
    if isinstance(value, float):
        return bool(abs(found - value) <= 1e-6 * abs(value))
    return bool(found == value)


def _differs(path: Path, what: str) -> DiskError:
    return DiskError(
        f"{path.name} read back with different values than were written: {what}.",
        "Export it again. If this happens again, check the disk, or export with `quantize=f32`.",
    )
