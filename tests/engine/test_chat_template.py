"""Prompts equal transformers' apply_chat_template; templates run in a sandbox and fail politely."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import train_tokenizer
from transformers import PreTrainedTokenizerFast

from hal.engine.chat_template import ChatTemplate, load_chat_template
from hal.errors import RequestError, TokenizerError

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

# Written in the manner of published templates: the constructs matter, not the wording.
CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {{- message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
HEADERS = """\
{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

{{ ns.system }}<|eot_id|>
{% for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}
    {%- generation %}{{ message.content }}{% endgeneration %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
INSTRUCT = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}
{% endfor %}
"""
TOOLS = """\
{%- if tools %}
<tools>
    {%- for tool in tools %}
{{ tool | tojson }}
{{ tool.function.parameters | tojson(indent=2) }}
    {%- endfor %}
</tools>
{%- endif %}
{%- for message in messages %}
{{ message.role }}: {% if message.content is string %}{{ message.content }}
    {%- elif message.content is defined %}{{ message.content | tojson }}{% endif %}
    {%- for call in message.tool_calls or [] %}
<call>{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</call>
    {%- endfor %}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
"""
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "instruct": INSTRUCT, "tools": TOOLS}

SHORT: list[dict[str, Any]] = [{"role": "user", "content": "Hi <b> & 'ü' 🙂 "}]
LONG: list[dict[str, Any]] = [
    {"role": "user", "content": "  first\n"},
    {"role": "assistant", "content": "second"},
    {"role": "user", "content": "{{ 7 * 7 }}"},
]
WITH_CALL: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln <x>"}}}],
    },
]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def _ours(template: str) -> ChatTemplate:
    return ChatTemplate({"default": template}, SPECIAL_TOKENS, "test")


def _theirs(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(), **SPECIAL_TOKENS)
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, **options
    )
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_equals_transformers(
    name: str, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    template = TEMPLATES[name]

    ours = _ours(template).render(messages, add_generation_prompt=add_generation_prompt)

    assert ours == _theirs(template, messages, add_generation_prompt=add_generation_prompt)
    assert messages[-1]["content"].strip() in ours


@pytest.mark.parametrize("messages", [SHORT, WITH_CALL], ids=["plain", "call"])
def test_tools_and_variables_equal_transformers(messages: list[dict[str, Any]]) -> None:
    ours = _ours(TOOLS).render(messages, tools=[TOOL], variables={"enable_thinking": False})

    assert ours == _theirs(TOOLS, messages, tools=[TOOL], enable_thinking=False)
    assert "<think></think>" in ours
    assert '"name": "weather"' in ours


def test_the_date_comes_from_the_clock() -> None:
    template = ChatTemplate(
        {"default": "{{ strftime_now('%d %b %Y') }}"},
        {},
        "test",
        clock=lambda: datetime(2026, 11, 23),
    )

    assert template.render([]) == "23 Nov 2026"


def _folder(folder: Path, chat_template: object = None, file: str | None = None) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))
    if file is not None:
        (folder / "chat_template.jinja").write_text(file)
    return folder


def test_the_operators_file_wins_over_the_folders(tmp_path: Path) -> None:
    override = tmp_path / "mine.jinja"
    override.write_text("mine")
    folder = _folder(tmp_path, "config", file="file")

    assert load_chat_template(folder, {}, override).render([]) == "mine"
    assert load_chat_template(folder, {}).render([]) == "file"


def test_tokenizer_config_has_one_template_or_a_named_list(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with tools"},
    ]

    assert load_chat_template(_folder(tmp_path, "one"), {}).render([], tools=[TOOL]) == "one"
    template = load_chat_template(_folder(tmp_path, named), {})
    assert template.render([]) == "plain"
    assert template.render([], tools=[TOOL]) == "with tools"


@pytest.mark.parametrize(
    "chat_template", [None, [], [{"name": "tool_use", "template": "x"}]], ids=repr
)
def test_no_template_names_the_flag(tmp_path: Path, chat_template: object) -> None:
    template = load_chat_template(_folder(tmp_path, chat_template), {})

    with pytest.raises(TokenizerError, match="--chat-template FILE"):
        template.render(SHORT)


def test_a_folder_without_any_tokenizer_file_has_no_template(tmp_path: Path) -> None:
    assert not load_chat_template(tmp_path, {}).has_template


@pytest.mark.parametrize("chat_template", [3, ["x"]])
def test_a_template_entry_of_another_kind(tmp_path: Path, chat_template: object) -> None:
    with pytest.raises(TokenizerError, match="neither text nor a named list"):
        load_chat_template(_folder(tmp_path, chat_template), {})


def test_bad_syntax_names_file_and_line(tmp_path: Path) -> None:
    folder = _folder(tmp_path, file="fine\n{% if %}\n")

    with pytest.raises(TokenizerError, match=r"chat_template\.jinja: .* at line 2"):
        load_chat_template(folder, {})


def test_a_missing_operator_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"cannot read the chat template .*absent\.jinja"):
        load_chat_template(tmp_path, {}, tmp_path / "absent.jinja")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (INSTRUCT, "roles must alternate"),
        ("{{ messages[9].content.x.y }}", "has no element 9"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{{ namespace(__class__=1) }}", "starts with _"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "starts with _"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ],
)
def test_a_template_that_fails_is_the_requests_fault(template: str, message: str) -> None:
    messages = [{"role": "assistant", "content": "x"}]

    with pytest.raises(RequestError, match=message) as caught:
        _ours(template).render(messages)
    assert caught.value.param == "messages"


def test_output_is_limited_while_it_is_written() -> None:
    endless = (
        "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}"
    )
    template = ChatTemplate({"default": endless}, {}, "test", max_output_chars=1000)

    with pytest.raises(RequestError, match="more than 1000 characters"):
        template.render([])


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_variables_cannot_replace_the_messages(name: str) -> None:
    with pytest.raises(RequestError, match=f"must not set {name}") as caught:
        _ours(CHATML).render(SHORT, variables={name: []})
    assert caught.value.param == "chat_template_kwargs"


def test_objects_with_methods_never_reach_a_template() -> None:
    with pytest.raises(RequestError, match="got a PosixPath"):
        _ours("{{ messages[0].content.unlink() }}").render([{"content": Path("x")}])
