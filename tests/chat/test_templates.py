from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from locallab.chat import ChatTemplate, Message, ToolCall
from locallab.chat.known_templates import CHATML, KNOWN, template_source
from locallab.errors import ConfigError, InvalidField, ModelError, NoChatTemplate

TALK = [Message("system", "be kind"), Message("user", "hi"), Message("assistant", "hello"), Message("user", "bye")]

STRICT = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == "system" %}{{ raise_exception("System role not supported") }}{% endif %}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate") }}
    {%- endif %}
    {{- "[" + message.role + "]" + message.content | trim }}
{%- endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""

ALTERNATING = """{%- set rest = messages[1:] if messages[0].role == "system" else messages %}
{%- if messages[0].role == "system" %}<{{ messages[0].content }}>{% endif %}
{%- for message in rest %}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("must alternate") }}{% endif %}
    {{- message.role[0] + ":" + message.content + ";" }}
{%- endfor %}"""

FIRST_SYSTEM_ONLY = """{%- if messages[0].role == "system" %}<{{ messages[0].content }}>{% endif %}
{%- for message in messages if message.role != "system" %}{{ message.role[0] + ":" + message.content + ";" }}{% endfor %}"""


def test_chatml_without_a_template() -> None:
    text = ChatTemplate(CHATML).render(TALK[:2])
    assert text == "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(CHATML).render(TALK[:2], add_generation_prompt=False).endswith("hi<|im_end|>\n")


def test_refused_system_role_goes_to_the_user() -> None:
    text = ChatTemplate(STRICT, bos="<bos>").render(TALK)
    assert text == "<bos>[user]be kind\n\nhi[assistant]hello[user]bye[assistant]"


def test_refused_neighbours_are_joined_and_the_system_message_stays() -> None:
    talk = [Message("system", "s"), Message("user", "a"), Message("user", "b"), Message("system", "c")]
    assert ChatTemplate(ALTERNATING).render(talk) == "<s>u:a\n\nb\n\nc;"


STRICT_IDS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('ids') }}{% endif %}"
    "[{{ c.function.name }} {{ c.id }}]{% endfor %}{{ m.role[0] + ':' + m.content }}"
    "{% if m.tool_call_id %}[{{ m.tool_call_id }}]{% endif %};{% endfor %}"
)
CALLED = Message("assistant", "", tool_calls=(ToolCall("call_of_another_server", "f", "{}"),))


def test_ids_that_a_template_refuses_become_short() -> None:
    talk = [Message("user", "a"), CALLED, Message("tool", "42", tool_call_id="call_of_another_server")]
    assert ChatTemplate(STRICT_IDS).render(talk) == "u:a;[f call00000]a:;t:42[call00000];"


def test_refused_neighbours_keep_their_calls_and_thoughts() -> None:
    source = (
        "{% for m in messages %}{% if not loop.first and messages[loop.index0 - 1].role == m.role %}"
        "{{ raise_exception('alternate') }}{% endif %}({{ m.reasoning_content }}){{ m.role[0] + ':' + m.content }}"
        "{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %};{% endfor %}"
    )
    talk = [
        Message("user", "a"),
        Message("user", "b"),
        Message("assistant", "c", reasoning="hm"),
        CALLED,
        Message("tool", "42"),
    ]
    assert ChatTemplate(source).render(talk) == "()u:a\n\nb;(hm)a:c[f];()t:42;"


def test_a_template_that_answers_the_user_only() -> None:
    source = "{% if messages[-1].role != 'user' %}{{ raise_exception('user last') }}{% endif %}" + ALTERNATING
    assert ChatTemplate(source).render([Message("user", "a"), Message("assistant", "b")]) == "u:a;a:b;u:;"


def test_system_message_that_a_template_leaves_out() -> None:
    talk = [
        Message("system", "s1"),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("system", "s2"),
        Message("user", "c"),
    ]
    assert ChatTemplate(FIRST_SYSTEM_ONLY).render(talk) == "<s1>u:a;a:b;u:s2\n\nc;"


def test_tool_result_that_a_template_leaves_out() -> None:
    source = "{% for m in messages if m.role != 'to' ~ 'ol' %}{{ m.role[0] + ':' + m.content + ';' }}{% endfor %}"
    talk = [Message("user", "a"), Message("assistant", "b"), Message("tool", "42")]
    assert ChatTemplate(source).render(talk) == "u:a;a:b;u:42;"


def test_a_template_that_changes_the_system_message_and_insists_on_one() -> None:
    source = (
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}{{ raise_exception('no') if messages[0].role == 'user' }}"
    )
    assert ChatTemplate(source).render([Message("system", "s"), Message("user", "u")]) == "SU"


def test_refusal_of_every_shape_names_the_first_reason() -> None:
    with pytest.raises(InvalidField, match="messages: the model's chat template refuses them: no talking") as caught:
        ChatTemplate("{{ raise_exception('no talking') }}").render(TALK)
    assert caught.value.field == "messages"


def test_error_inside_a_template() -> None:
    with pytest.raises(InvalidField, match="refuses them"):
        ChatTemplate("{{ messages[0].content + 1 }}").render(TALK)


def test_source_that_is_no_template() -> None:
    with pytest.raises(ModelError, match="the model's chat template cannot be used: line 2"):
        ChatTemplate("a\n{% for %}")


def test_sandbox() -> None:
    with pytest.raises(InvalidField):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}").render(TALK)
    with pytest.raises(InvalidField):
        ChatTemplate("{{ messages.append(1) }}").render(TALK)


def test_tojson_is_plain_json() -> None:
    source = "{{ x | tojson }} {{ x | tojson(indent=1, sort_keys=true) }} {{ messages[0].content }}"
    text = ChatTemplate(source).render([Message("user", "<b>&'")], {"x": {"b": "<ö>", "a": 1}})
    assert text == '{"b": "<ö>", "a": 1} {\n "a": 1,\n "b": "<ö>"\n} <b>&\''


def test_functions_and_tags_that_templates_rely_on() -> None:
    source = (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.role }}{% endgeneration %}{% endfor %} {{ strftime_now('%Y') }}"
        "{% if tools is none %} no tools{% endif %} {{ eos_token }}"
    )
    talk = [Message("user", "a"), Message("user", "b")]
    assert ChatTemplate(source, eos="</s>").render(talk) == f"user {datetime.datetime.now():%Y} no tools </s>"


def test_blocks_are_trimmed() -> None:
    assert ChatTemplate("    {% if true %}\na\n    {% endif %}\n").render(TALK[1:2]) == "a\n"


def test_tool_calls_for_a_template_that_knows_them() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
    )
    talk = [
        Message("user", "u"),
        Message("assistant", "", tool_calls=(ToolCall("c", "f", '{"x": 1}'), ToolCall("d", "g", "{x"))),
    ]
    assert ChatTemplate(source).render(talk) == 'u{"name": "f", "arguments": {"x": 1}}{"name": "g", "arguments": "{x"}'


def test_tool_calls_for_a_template_that_does_not() -> None:
    talk = [
        Message("user", "u"),
        Message("assistant", "look:", tool_calls=(ToolCall("c", "f", '{"x": 1}'),)),
        Message("tool", "1"),
    ]
    text = ChatTemplate(CHATML).render(talk)
    call = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    assert f"<|im_start|>assistant\nlook:\n{call}<|im_end|>\n<|im_start|>tool\n1<|im_end|>" in text


def test_a_template_that_goes_through_tools_without_a_look_gets_an_empty_list() -> None:
    assert ChatTemplate("{% for t in tools %}{{ t }}{% endfor %}{{ messages[0].content }}").render(TALK[1:2]) == "hi"


def test_lists_made_by_filters_can_be_written_as_json() -> None:
    source = "{{ tools | map(attribute='function') | tojson }}{{ messages[0].content }}"
    assert ChatTemplate(source).render(TALK[1:2], {"tools": [{"function": {"name": "f"}}]}) == '[{"name": "f"}]hi'


@pytest.mark.parametrize(
    ("source", "renders"),
    [
        ("{{ tools | tojson }}{{ messages[0].content }}", True),
        ("{% for t in tools %}{{ t.function.name }}{% endfor %}{{ messages[0].content }}", True),
        ("{{ messages[0].content }}{% if messages[0].tool_calls %}x{% endif %}", False),
        ("{{ raise_exception('no') }}", False),
    ],
    ids=["json", "names", "calls only", "refuses"],
)
def test_templates_that_list_tools_are_recognized(source: str, renders: bool) -> None:
    assert ChatTemplate(source).renders_tools is renders


API_CALLS = """{%- for m in messages %}
    {%- if m.content is none %}{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}{% endif %}
    {%- if m.content is not none %}{{ m.content }}{% endif %}
{%- endfor %}"""


def test_calls_for_a_template_that_knows_them_as_the_api_has_them() -> None:
    """It requires arguments as JSON text, and null for empty content."""
    talk = [Message("user", "u"), Message("assistant", "", tool_calls=(ToolCall("c", "f", '{"x": 1}'),)), Message("tool", "1")]
    assert ChatTemplate(API_CALLS).render(talk) == 'uf{"x": 1}1'


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_what_the_assistant_thought_goes_to_the_template(name: str) -> None:
    source = "{% for m in messages %}{% if m." + name + " %}<{{ m." + name + " }}>{% endif %}{{ m.content }}{% endfor %}"
    talk = [Message("user", "u"), Message("assistant", "a", reasoning="hm"), Message("user", "v")]
    assert ChatTemplate(source).render(talk) == "u<hm>av"


def test_a_template_that_refuses_thoughts_is_rendered_without() -> None:
    source = "{% for m in messages %}{% if m.thinking %}{{ raise_exception('no') }}{% endif %}{{ m.role[0] }}{% endfor %}"
    talk = [Message("user", "u"), Message("assistant", "a", reasoning="hm"), Message("user", "v"), Message("user", "w")]
    assert ChatTemplate(source).render(talk) == "uauu"


WORDS = ("system", "user", "assistant")
PARTS = """{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}
{%- if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %};
{% endfor %}"""


def test_content_in_parts_for_a_template_that_goes_through_them() -> None:
    assert ChatTemplate(PARTS).render(TALK) == "system: be kind;\nuser: hi;\nassistant: hello;\nuser: bye;\n"


@pytest.mark.parametrize("parted", WORDS)
def test_content_in_parts_for_those_roles_that_need_them(parted: str) -> None:
    source = "{% for m in messages %}[{{ m.content[0].text if m.role == ROLE else m.content + '' }}]{% endfor %}"
    assert ChatTemplate(source.replace("ROLE", repr(parted))).render(TALK) == "[be kind][hi][hello][bye]"


def test_tool_results_in_parts() -> None:
    source = """{% for m in messages %}{{ m.content[0].text if m.role == 'tool' else m.content }}
    {%- for c in m.tool_calls %}{{ c.function.name }}{% endfor %};{% endfor %}"""
    call = Message("assistant", "", tool_calls=(ToolCall("c", "f", "{}"),))
    talk = [Message("user", "a"), call, Message("tool", "42", "f", (), "c")]
    assert ChatTemplate(source).render(talk) == "a;f;42;"


def test_a_template_that_takes_text_and_parts_gets_text() -> None:
    source = "{% for m in messages %}{{ m.content if m.content is string else 'parts' }};{% endfor %}"
    assert ChatTemplate(source).render(TALK) == "be kind;hi;hello;bye;"


def test_variables_that_templates_expect() -> None:
    today = datetime.datetime.now()
    source = "{{ date_string }}|{{ datetime }}|{{ today }}|{{ enable_thinking }}"
    assert ChatTemplate(source).render(TALK) == f"{today:%d %b %Y}|{today:%b %d %Y}|{today:%Y-%m-%d}|True"
    own = {"date_string": "a", "datetime": "b", "today": "c", "enable_thinking": False}
    assert ChatTemplate(source).render(TALK, own) == "a|b|c|False"


def test_tools_as_a_text_named_functions() -> None:
    template = ChatTemplate("{{ 'Functions: ' + functions }}{{ messages[0].content }}")
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert json.loads(template.render(TALK[1:2], {"tools": tools}).removeprefix("Functions: ").removesuffix("hi")) == tools
    assert template.render(TALK[1:2]) == "Functions: hi" and template.renders_tools


def test_named_templates_of_a_file() -> None:
    template = ChatTemplate("default", named={"tool_use": "tools", "rag": "documents", "other": "{% for %}"})
    wanted = [(False, False), (True, False), (False, True), (True, True)]
    rendered = [template.suited(tools=tools, documents=documents).render(TALK) for tools, documents in wanted]
    assert rendered == ["default", "tools", "documents", "tools"]
    assert ChatTemplate("default").suited(tools=True, documents=True).render(TALK) == "default"
    assert ChatTemplate(None, named={"tool_use": "tools"}).render(TALK) == "tools"


def test_a_named_template_that_is_none_is_named() -> None:
    with pytest.raises(ModelError, match="the model's chat template 'tool_use' cannot be used: line 1"):
        ChatTemplate("default", named={"tool_use": "{% for %}"})


def test_a_model_without_a_template() -> None:
    with pytest.raises(NoChatTemplate, match=r"messages: the model has no chat template.*--chat-template"):
        ChatTemplate(None).render(TALK)
    assert ChatTemplate(None).examine() is None


def test_variables_that_a_request_may_not_set() -> None:
    with pytest.raises(InvalidField, match="chat_template_kwargs: must not hold 'messages'"):
        ChatTemplate(CHATML).render(TALK, {"messages": []})
    assert (
        ChatTemplate("{{ self is defined }}{{ messages[0].content }}").render(TALK, {"self": 1, "context": 2}) == "Truebe kind"
    )


@pytest.mark.parametrize("name", KNOWN)
def test_a_template_by_name(name: str) -> None:
    text = ChatTemplate(template_source(name), "<s>", "</s>").render(TALK)
    places = [text.index(message.content) for message in TALK]
    assert places == sorted(places)


def test_a_template_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("ö{{ messages[0].content }}", encoding="utf-8")
    assert ChatTemplate(template_source(str(tmp_path / "own.jinja"))).render(TALK) == "öbe kind"
    with pytest.raises(ConfigError, match=r"chat_template: 'chatlm' is no name .*chatml.* and no file to read: No such file"):
        template_source("chatlm")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        template_source(str(tmp_path / "binary"))
