"""Chat templates by name, for files that hold none: the forms in which families of models were trained to converse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from locallab.errors import ConfigError

_ASKED = "{% if add_generation_prompt %}"

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    f"{_ASKED}<|im_start|>assistant\n{{% endif %}}"
)

_NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"

KNOWN: Mapping[str, str] = {
    "chatml": CHATML,
    "llama3": (
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
        "{{ message.content | trim }}<|eot_id|>{% endfor %}"
        f"{_ASKED}<|start_header_id|>assistant<|end_header_id|>\n\n{{% endif %}}"
    ),
    "gemma": (
        f"{{{{ bos_token }}}}{_NO_SYSTEM}{{% for message in messages %}}<start_of_turn>"
        "{{ 'model' if message.role == 'assistant' else 'user' }}\n{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
        f"{_ASKED}<start_of_turn>model\n{{% endif %}}"
    ),
    "mistral": (
        f"{{{{ bos_token }}}}{_NO_SYSTEM}{{% for message in messages %}}{{% if message.role == 'assistant' %}}"
        "{{ ' ' + message.content + eos_token }}{% else %}{{ '[INST] ' + message.content + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
    "phi3": (
        "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
        f"{_ASKED}<|assistant|>\n{{% endif %}}"
    ),
    "zephyr": (
        "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content + eos_token }}\n{% endfor %}"
        f"{_ASKED}<|assistant|>\n{{% endif %}}"
    ),
    "vicuna": (
        "{% for message in messages %}{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
        "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token + '\n' }}"
        "{% else %}{{ 'USER: ' + message.content + '\n' }}{% endif %}{% endfor %}"
        f"{_ASKED}ASSISTANT:{{% endif %}}"
    ),
    "alpaca": (
        "{% for message in messages %}{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
        "{% elif message.role == 'assistant' %}{{ '### Response:\n' + message.content + eos_token + '\n\n' }}"
        "{% else %}{{ '### Instruction:\n' + message.content + '\n\n' }}{% endif %}{% endfor %}"
        f"{_ASKED}### Response:\n{{% endif %}}"
    ),
}


def template_source(chosen: str) -> str:
    """Return the source of a template by its name here, or from the file at this path. Raises ConfigError."""
    if chosen in KNOWN:
        return KNOWN[chosen]
    try:
        return Path(chosen).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        known = f"known: {', '.join(KNOWN)}"
        raise ConfigError(f"chat_template: {chosen!r} is no name ({known}) and no file to read: {reason}") from None
