"""Ollama's Modelfile for a GGUF file: template, stop strings and sampling. Pure.

Ollama does not run the Jinja template in a local GGUF file; its templates are Go's, and are given
here. It begins every prompt with ``<|bos|>``, because the file says so.

Source: docs/modelfile.md and template/template.go of Ollama.
"""

from mlxchat.config.inference import Sampling
from mlxchat.tokenizer.bpe import ASSISTANT_END, BOS

MODELFILE = "Modelfile"

# A system message is read at the beginning of the user's, as in `tokenizer.files.CHAT_TEMPLATE`.
CHAT_GO_TEMPLATE = r"""{{- $lead := "" }}
{{- range .Messages }}
{{- if eq .Role "system" }}{{ $lead = printf "%s%s\n\n" $lead .Content }}
{{- else if eq .Role "user" }}<|user_start|>{{ $lead }}{{ .Content }}<|user_end|>{{ $lead = "" }}
{{- else if eq .Role "assistant" }}<|assistant_start|>{{ .Content }}<|assistant_end|>
{{- end }}
{{- end }}<|assistant_start|>"""
TEXT_GO_TEMPLATE = "{{ .Prompt }}"


def modelfile(file: str, conversational: bool, context: int, sampling: Sampling) -> str:
    """Return the text of a Modelfile.

    Args:
        file: the name of the GGUF file beside it.
        conversational: whether the model was trained on conversations.
        context: its context length in tokens.
        sampling: how the next token is chosen, unless a request says otherwise.
    """
    parameters = {
        "num_ctx": context,
        "temperature": round(sampling.temperature, 3),
        "top_k": sampling.top_k or 0,  # which keeps all
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
    }
    template = CHAT_GO_TEMPLATE if conversational else TEXT_GO_TEMPLATE
    lines = [f"FROM ./{file}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in (ASSISTANT_END, BOS)]
    return "\n".join(lines) + "\n"
