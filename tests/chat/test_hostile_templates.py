"""Chat templates that do not end, or make more than there is room for: each stops at a limit, soon and without much memory."""

from __future__ import annotations

import time

import pytest

from locallab.chat import ChatTemplate, Message
from locallab.chat.budget import Limits, allotted
from locallab.chat.known_templates import CHATML
from locallab.errors import InvalidField, ModelError, TemplateExceeded

TALK = [Message("user", "hi")]

NEST = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
DOUBLED = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = BODY %}{% endfor %}"
TREE = "{% set ns = namespace(x=['ab'], y=['ab']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
TREE += "{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
BIG = "{% set big = 'ab' * 4000000 %}"

ENDLESS = {
    "nested loops": NEST + "{% endfor %}" * 3,
    "nested loops that write": NEST + "{{ i }}" + "{% endfor %}" * 3,
    "loops of filters": NEST + "{% set x = range(99999) | map('string') | join %}" + "{% endfor %}" * 3,
    "a loop with a condition": "{% for i in range(99999) if range(99999) | list | length == 1 %}{% endfor %}",
    "macros that call themselves twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}"
    ),
    "a loop that calls itself": (
        "{% set ns = namespace(n=99) %}{% for i in range(2) recursive %}{% if loop.depth < 60 %}{{ loop(range(2)) }}{% endif %}"
        "{% endfor %}"
    ),
    "blocks in blocks": "".join(
        f"{{% block b{i} %}}{{% for i in range(9) %}}{{{{ self.b{i + 1}() }}}}{{% endfor %}}{{% endblock %}}" for i in range(8)
    )
    + "{% block b8 %}{% endblock %}",
    "a text multiplied": "{{ 'a' * 10**10 }}",
    "a list multiplied": "{% set x = [1] * 10**9 %}",
    "a constant list multiplied": "{{ ([1, 2] * 10**9) | length }}",
    "a text doubled by +": DOUBLED.replace("BODY", "ns.x + ns.x"),
    "a text doubled by ~": DOUBLED.replace("BODY", "ns.x ~ ns.x"),
    "a text doubled by join": DOUBLED.replace("BODY", "[ns.x, ns.x] | join"),
    "a text doubled by its method join": DOUBLED.replace("BODY", "'-'.join([ns.x, ns.x])"),
    "a text doubled by format": DOUBLED.replace("BODY", "'%s%s' | format(ns.x, ns.x)"),
    "a text doubled by its method format": DOUBLED.replace("BODY", "'{}{}'.format(ns.x, ns.x)"),
    "a text doubled by %": DOUBLED.replace("BODY", "'%s%s' % (ns.x, ns.x)"),
    "a text doubled by replace": DOUBLED.replace("BODY", "ns.x | replace('a', 'aa')"),
    "a text squared by replace": DOUBLED.replace("BODY", "ns.x | replace('a', ns.x)"),
    "a text squared by its method replace": DOUBLED.replace("BODY", "ns.x.replace('a', ns.x)"),
    "a text doubled by a block": DOUBLED.replace(
        "{% set ns.x = BODY %}", "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}"
    ),
    "a text doubled by a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + DOUBLED.replace("BODY", "f(ns.x)"),
    "a text doubled by JSON": DOUBLED.replace("BODY", "[ns.x, ns.x] | tojson"),
    "a list doubled": DOUBLED.replace("'ab'", "[1]").replace("BODY", "ns.x + ns.x"),
    "copies of a slice": (
        BIG + "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x, big[1:]] %}{% endfor %}"
    ),
    "lists in lists": "{% set ns = namespace(x=[]) %}" + NEST + "{% set ns.x = [ns.x, [i], [j], [k]] %}" + "{% endfor %}" * 3,
    "a tree written": TREE + "{{ ns.x }}",
    "a tree written by a filter": TREE + "{% set s = ns.x | string %}",
    "a tree joined": TREE + "{% set s = ns.x | join %}",
    "a tree as JSON": TREE + "{% set s = ns.x | tojson %}",
    "a tree formatted": TREE + "{% set s = '%s' | format(ns.x) %}",
    "trees compared": TREE + "{% if ns.x == ns.y %}{% endif %}",
    "trees sought": TREE + "{% if ns.x in [ns.y] %}{% endif %}",
    "trees tested": TREE + "{% if ns.x is eq(ns.y) %}{% endif %}",
    "trees counted": TREE + "{% set s = [ns.y].count(ns.x) %}",
    "trees sorted": TREE + "{% set s = [ns.y, ns.x] | sort %}",
    "a tree of a namespace": "{% set ns = namespace(x=1) %}" + TREE.replace("ns", "n") + "{% set ns.x = n.x %}{{ ns }}",
    "tuples hashed": TREE.replace("[", "(").replace("]", ",)") + "{{ {ns.x: 1} | length }}",
    "tuples looked up": TREE.replace("[", "(").replace("]", ",)") + "{{ {}[ns.x] }}",
    "a wide text": "{{ 'a'.ljust(10**10) }}",
    "a wide number": "{{ '1'.zfill(10**10) }}",
    "a text of a split": BIG + "{% set x = big.split('b') %}",
    "letters of a text": BIG + "{% set x = big | list %}",
    "an indented text": "{% set x = ('\\n' * 100000) | indent('a' * 100000) %}",
    "JSON with wide separators": "{% set x = range(9999) | list | tojson(separators=('a' * 99999, ':')) %}",
    "letters of a text sorted": BIG + "{% set x = big | sort %}",
    "letters of a text told apart": BIG + "{% set x = big | unique | list %}",
    "all messages for each message": "{% for i in range(99999) %}" + BIG + "{% set x = big | upper %}{% endfor %}",
}  # fmt: skip
"""Each reaches a limit."""

SLOW = {
    "words counted in one block": "{% set x = 'ab ' * 1300000 %}" + "{{ x | wordcount and '' }}" * 999,
    "a text searched in one block": "{% set x = 'a' * 4000000 %}" + "{{ ('aaaaab' in x) and '' }}" * 999,
    "a text stripped in one block": "{% set x = ' ' * 4000000 %}" + "{{ x.strip() }}" * 2999,
    "a case tested in one block": "{% set x = 'a' * 4000000 %}" + "{{ (x is lower) and '' }}" * 1999,
    "a range searched in one block": "{% set x = range(99999) %}" + "{{ (0.5 in x) and '' }}" * 2500,
}
"""Each does without a loop what takes a while, very often."""

REFUSED = {
    "a power": "{{ (10**10) ** (10**10) }}",
    "squares": "{% set ns = namespace(x=99) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "digits": "{% set x = ('f' * 9000000) | int(base=16) %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a block that calls itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a number in a wide format": "{{ '{:>9999999999}'.format(1) }}",
    "a width from elsewhere": "{{ '{:>{}}'.format(1, 9999999999) }}",
    "a wide %": "{{ '%9999999999d' % 1 }}",
    "a width of % from elsewhere": "{{ '%*d' % (9999999999, 1) }}",
    "a wide %, as a filter": "{{ '%9999999999d' | format(1) }}",
    "a centered text": "{{ 'a' | center(10**10) }}",
    "many batches": "{{ [1] | batch(10**10, 'x') | list }}",
    "many slices": "{{ [1] | slice(10**10) | list }}",
    "many digits": "{{ 1.5 | round(10**10, 'ceil') }}",
    "bytes": "{{ 1.to_bytes(10**10, 'big') }}",
    "bytes of a number": "{% set x = 1 %}{{ x.to_bytes(10**10, 'big') }}",
    "tabs": "{{ '\\t'.expandtabs(10**10) }}",
    "a translation": "{{ 'a'.translate({97: 'aaaa'}) }}",
    "a table": "{{ {}.fromkeys(range(9), 1) }}",
    "lists added up": "{{ [[1], [2]] | sum(start=[]) }}",
    "a long date": "{% set x = strftime_now('%c' * 100000) %}",
    "a wide range": "{% for i in range(10**9) %}{% endfor %}",
    "filler text": "{{ lipsum(n=10**9) }}",
    "a long message": "{{ raise_exception('a' * 1000000) }}",
}
"""Each is refused by what it tries to do."""


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_limit_is_reached(source: str) -> None:
    template, began = ChatTemplate(source), time.process_time()
    with pytest.raises(
        TemplateExceeded, match=r"the model's chat template uses more than [\d,]+ (loop steps|s|characters);"
    ) as caught:
        template.render(TALK)
    assert caught.value.field == "messages" and time.process_time() - began < 10


@pytest.mark.parametrize("source", SLOW.values(), ids=SLOW)
def test_time_passes_in_blocks_without_loops(source: str) -> None:
    template, began = ChatTemplate(source), time.process_time()
    with allotted(Limits(seconds=0.1)), pytest.raises(TemplateExceeded, match=r"0\.1 s"):
        template.render(TALK)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_bounded_is_refused(source: str) -> None:
    began = time.process_time()
    with pytest.raises((InvalidField, ModelError)) as caught:
        ChatTemplate(source).render(TALK)
    assert len(str(caught.value)) < 700 and time.process_time() - began < 5


TOO_DEEP = {
    "a long source": "a" * 300_000,
    "parentheses": "{{ " + "(" * 9_000 + "1" + ")" * 9_000 + " }}",
    "lists": "{{ " + "[" * 9_000 + "]" * 9_000 + " }}",
    "negations": "{% if " + "not " * 400 + "1 %}{% endif %}",
    "sums": "{{ " + "+".join(["a"] * 9_000) + " }}",
    "attributes": "{{ a" + ".b" * 9_000 + " }}",
    "filters": "{{ a" + "|e" * 9_000 + " }}",
    "loops": "{% for i in [] %}" * 900 + "{% endfor %}" * 900,
    "conditions": "{% if 1 %}" * 900 + "{% endif %}" * 900,
    "alternatives": "{% if 1 %}" + "{% elif 1 %}" * 9_000 + "{% endif %}",
}
"""Sources that do not compile."""


@pytest.mark.parametrize("source", TOO_DEEP.values(), ids=TOO_DEEP)
def test_a_source_that_is_nested_too_deeply_is_refused_by_name(source: str) -> None:
    with pytest.raises(ModelError, match="the model's chat template cannot be used: it "):
        ChatTemplate(source)


CONSTANTS = ["{{ 'a' * 999999999 }}", "{{ ['a'] * 999999999 }}", "{{ 9**9**9 }}", "{{ 'a' | center(9999999999) }}"]


@pytest.mark.parametrize("source", CONSTANTS)
def test_constants_are_not_made_while_compiling(source: str) -> None:
    ChatTemplate(source)


ONLY_LATER = "{% if messages | length > 20 %}" + ENDLESS["nested loops"] + "{% endif %}{{ messages[0].content }}"


def test_the_budget_grows_with_the_conversation() -> None:
    text = "{% for m in messages %}{% for c in range(900) %}{% endfor %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(text).render(TALK * 200) == "hi" * 200
    assert ChatTemplate("{{ messages[0].content * 4 }}").render([Message("user", "a" * 10_000_000)]) == "a" * 40_000_000
    with pytest.raises(TemplateExceeded):
        ChatTemplate("{% for m in messages %}{% for c in messages %}{% endfor %}{% endfor %}").render(TALK * 5000)


def test_an_endless_template_is_found_out_at_load_and_never_runs_again() -> None:
    template = ChatTemplate(ENDLESS["nested loops"])
    error = template.examine()
    assert isinstance(error, TemplateExceeded) and error.limit.endswith("loop steps")
    began = time.process_time()
    for _ in range(100):
        with pytest.raises(TemplateExceeded):
            template.render(TALK)
    assert time.process_time() - began < 0.1
    assert ChatTemplate(CHATML, named={"tool_use": ENDLESS["nested loops"]}).examine() is not None
    assert ChatTemplate(ONLY_LATER).examine() is None


def test_renderings_share_a_budget_that_is_in_force() -> None:
    template = ChatTemplate("{% for i in range(900) %}{% endfor %}{{ messages[0].content }}")
    template.examine()
    with allotted(Limits(steps=2_000)) as budget:
        assert template.render(TALK) == "hi" and not budget.spent
        with pytest.raises(TemplateExceeded, match="2,000 loop steps"):
            for _ in range(3):
                template.render(TALK)
        assert budget.spent
