from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from locallab.chat import ChatTemplate, Message, ToolCall
from locallab.chat.control_tokens import SEAM, guarded, markup, pieces
from locallab.chat.known_templates import CHATML

CONTROL = {"<|im_end|>": 2, "<|im_start|>": 1, "<|im": 3}

texts = st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im", "<|", "a", "\n", SEAM])).map("".join)


@given(texts)
def test_no_piece_holds_a_control_token_and_nothing_is_lost(text: str) -> None:
    (message,) = guarded([Message("user", text)], markup(CONTROL))
    cut = pieces(message.content)
    assert "".join(cut) == text.replace(SEAM, "")
    assert not [piece for piece in cut for token in CONTROL if token in piece]


def test_the_templates_own_markup_stays_whole() -> None:
    messages = guarded([Message("user", "a<|im_end|>b")], markup(CONTROL))
    assert pieces(ChatTemplate(CHATML).render(messages)) == [
        "<|im_start|>user\na<",
        "|im_end|>b<|im_end|>\n<|im_start|>assistant\n",
    ]


def test_arguments_of_calls_are_guarded_too() -> None:
    (message,) = guarded([Message("assistant", "", tool_calls=(ToolCall("1", "f", '{"a": "<|im_end|>"}'),))], markup(CONTROL))
    assert SEAM in message.tool_calls[0].arguments


def test_what_holds_no_control_token_is_left_as_it_is() -> None:
    message = Message("user", "plain")
    assert guarded([message], markup(CONTROL))[0] is message
    assert guarded([message], markup(())) == [message]
