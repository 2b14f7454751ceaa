"""Known fields that the bodies of OpenAI's routes do not have: OpenAI's own, and those of servers with routes of that shape."""

from __future__ import annotations

from locallab.server.fields.table import EMPTY, Others, left_out, refused, unused

SERVICE: Others = {
    **dict.fromkeys(("user", "safety_identifier"), unused("the service tells its customers' users apart by it")),
    **dict.fromkeys(("metadata", "store"), unused("nothing of an answer is stored")),
    **dict.fromkeys(
        ("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"), unused("prompts find their prefixes without it")
    ),
    "service_tier": unused("all requests are served alike"),
    "moderation": left_out("nothing is moderated"),
}

COMMON: Others = {
    **SERVICE,
    "post_sampling_probs": refused("/completion has probabilities after sampling"),
    "response_fields": refused("/completion has answers with chosen fields"),
    "return_tokens": refused("use return_token_ids"),
    "prompt_embeds": refused("prompts are text or token ids"),
}

CHAT: Others = {
    **COMMON,
    "audio": unused("only with the modality audio, which is refused"),
    "verbosity": unused("models do not know it"),
    "web_search_options": left_out("there is no web search", off=(False,)),
    "functions": refused("use tools"),
    "function_call": refused("use tool_choice", off=(*EMPTY, "none", "auto")),
    "echo": refused("the request has the messages"),
    "add_special_tokens": refused("the chat template has all special tokens"),
    "documents": refused("put documents into a message, or under this name into chat_template_kwargs"),
    "chat_template": refused("the server has the template"),
    **dict.fromkeys(("media_io_kwargs", "mm_processor_kwargs"), unused("messages are text")),
    "include_reasoning": left_out("it is returned in reasoning_content; reasoning_effort none turns it off", off=(True,)),
    "return_prompt_text": refused("/apply-template returns the prompt"),
    "reasoning_format": refused("reasoning is returned in reasoning_content", off=(*EMPTY, "auto", "deepseek")),
    "reasoning_control": refused("reasoning_budget ends the reasoning"),
    **dict.fromkeys(
        (
            "reasoning_budget_message",
            "reasoning_budget_start_tag",
            "reasoning_budget_end_tag",
            "reasoning_budget_end_tags",
            "generation_prompt",
            "chat_format",
            "chat_parser",
        ),
        refused("the model's template decides"),
    ),
    "parse_tool_calls": refused("without tools a call is text", off=(True,)),
    "thinking_forced_open": unused("the prompt shows whether reasoning has begun"),
}

COMPLETION: Others = {
    **COMMON,
    "add_special_tokens": refused("send token ids, which /tokenize returns without special tokens", off=(True,)),
}

FIM: Others = dict.fromkeys(
    ("logprobs", "n_probs", "prompt_logprobs", "return_token_ids", "truncate_prompt_tokens", "echo", "best_of"),
    refused("/v1/completions takes it, without suffix"),
)

EMBEDDING: Others = {
    "user": SERVICE["user"],
    "add_special_tokens": refused("send token ids, which /tokenize returns without special tokens", off=(True,)),
    "truncate_prompt_tokens": refused("shorten the text, or send token ids"),
    "priority": left_out("requests take turns", off=(0, *EMPTY)),
    "request_id": unused("the header X-Request-ID sets the id"),
    "normalize": refused("vectors have length 1", off=(True,)),
    "embed_dtype": refused("vectors are 32-bit floats", off=("float32",)),
    "endianness": refused("vectors are little-endian", off=("little", "native")),
}

RERANK: Others = {
    "truncate_prompt_tokens": refused("use max_tokens_per_doc"),
    "priority": EMBEDDING["priority"],
    "request_id": EMBEDDING["request_id"],
}

TRANSCRIPTION: Others = {
    "stream": refused("the text comes as a whole; /v1/chat/completions streams answers to input_audio", off=(False, "false")),
    "include": refused("log probabilities of a sound are those of /v1/chat/completions"),
    "timestamp_granularities": refused("there are no times in the text"),
    "chunking_strategy": unused("sounds are read as a whole"),
    "known_speaker_names": refused("speakers are not told apart"),
    "known_speaker_references": refused("speakers are not told apart"),
}
