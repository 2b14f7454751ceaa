"""Fields that generating routes of other servers have, and these do not."""

from __future__ import annotations

from locallab.server.fields.table import EMPTY, Others, left_out, refused, unused

VLLM: Others = {
    "use_beam_search": refused("sample, or take the best of several answers with best_of of /v1/completions"),
    "length_penalty": unused("only beam search has a use for it"),
    "skip_special_tokens": refused("control tokens have no text; return_token_ids returns all tokens", off=(True,)),
    "spaces_between_special_tokens": unused("control tokens have no text"),
    "logits_processors": refused("use logit_bias, bad_words, allowed_token_ids or a grammar"),
    "logprob_token_ids": refused("ask for the likeliest tokens with top_logprobs"),
    "repetition_detection": refused("avoid repetition with dry_multiplier, or end the answer with stop or max_tokens"),
    "watermarking": refused("there are no watermarks"),
    "return_tokens_as_token_ids": refused("return_token_ids returns the ids"),
    "thinking_token_budget": refused("only chats have reasoning"),
    "cache_salt": refused("OpenAI's chats and completions have it"),
    "kv_transfer_params": refused("one server computes prompts and answers"),
    "ec_transfer_params": refused("one server computes prompts and answers"),
    "vllm_xargs": refused("there are no extensions"),
    "priority": left_out("requests take turns", off=(0, *EMPTY)),
    "request_id": unused("the header X-Request-ID sets the id"),
    "session_id": unused("prompts find their prefixes without it"),
    "stream_interval": unused("streams send what each step brings"),
    "routed_experts_prompt_start": unused("experts are not returned"),
    "return_token_offsets": unused("only for routes that render"),
    "return_mm_kwargs": unused("only for routes that render"),
}

LLAMA_CPP: Others = {
    "n_indent": left_out("indentation is left to the model", off=(0, *EMPTY)),
    "n_keep": unused("a full context ends the answer, nothing is dropped"),
    "n_discard": unused("a full context ends the answer, nothing is dropped"),
    "n_cache_reuse": unused("prompts share whatever prefixes they have in common"),
    "cache_prompt": unused("the cache changes no answer"),
    "id_slot": unused("requests share one context, without slots"),
    "sse_ping_interval": unused("streams that are silent send an event every 15 s"),
    "timings_per_token": unused("only the end of an answer has timings"),
    "t_max_prompt_ms": unused("prompts are computed as a whole"),
    "backend_sampling": unused("an answer is the same wherever it is sampled"),
    "verbose": unused("settings are not returned with the answer"),
    "penalize_nl": refused("use dry_sequence_breakers, or a logit_bias of the newline's token"),
    "tfs_z": refused("use min_p or typical_p", off=(1, *EMPTY)),
}

TRANSFORMERS: Others = {
    "num_beams": refused("sample, or take the best of several answers with best_of of /v1/completions", off=(1, *EMPTY)),
    "early_stopping": unused("only beam search has a use for it"),
    "no_repeat_ngram_size": refused("use dry_multiplier", off=(0, *EMPTY)),
}

SAMPLING: Others = {**VLLM, **LLAMA_CPP, **TRANSFORMERS}
