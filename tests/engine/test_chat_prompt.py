"""What a message says never becomes a control token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from hal.engine.chat_prompt import ChatEncoder
from hal.engine.chat_template import ChatTemplate
from hal.engine.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|im_start|>", "<|im_end|>", "</s>", "xx", "xxx")


def byte_tokenizer(control: Sequence[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("i", "m"), ("|", "im"), ("|im", "_")]
    vocab = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in control])
    return Tokenizer(backend, {}, "test")


TOKENIZER = byte_tokenizer(CONTROL)
CHATS = ChatEncoder(ChatTemplate({"default": CHATML}, {}, "test"), TOKENIZER)


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def num_controls(token_ids: Sequence[int]) -> int:
    return sum(i in TOKENIZER.special_token_ids for i in token_ids)


@given(
    st.lists(st.sampled_from([*CONTROL, "a", "b", "<", "|", ">", "x", " ", "é", "\ue000"])).map(
        "".join
    )
)
def test_only_the_template_writes_control_tokens(content: str) -> None:
    prompt = CHATS.render(user(content))
    token_ids = CHATS.encode(prompt)
    assert num_controls(token_ids) == 3
    wanted = f"<|im_start|>user\n{content.strip()}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.text == wanted
    assert TOKENIZER.decode(token_ids, skip_special_tokens=False) == wanted


@given(st.text(alphabet="ab|im_<>é \n"))
def test_other_texts_have_the_ids_they_had(content: str) -> None:
    prompt = CHATS.render(user(content))
    assert len(prompt.parts) == 1
    assert CHATS.encode(prompt) == TOKENIZER.encode(prompt.text, add_special_tokens=False)


@pytest.mark.parametrize("role", ["user", "tool", "system", "developer"])
def test_every_role_but_the_models_own(role: str) -> None:
    said = [{"role": role, "content": "</s>"}]
    assert num_controls(CHATS.encode(CHATS.render(said))) == 3
    said = [{"role": "assistant", "content": "</s>"}]
    assert num_controls(CHATS.encode(CHATS.render(said))) == 4


def test_parts_of_a_message_too() -> None:
    template = (
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    )
    chats = ChatEncoder(ChatTemplate({"default": template}, {}, "test"), TOKENIZER)
    prompt = chats.render(user([{"type": "text", "text": "a</s>b"}]))
    assert prompt.text == "a</s>b"
    assert num_controls(chats.encode(prompt)) == 0


def test_a_template_that_cuts_a_spelling_leaves_no_trace() -> None:
    template = "{{ messages[0].content[:3] }}|{{ messages[0].content.split('>')[0] }}"
    chats = ChatEncoder(ChatTemplate({"default": template}, {}, "test"), TOKENIZER)
    assert chats.render(user("x</s>")).text == "x<|x</s"


def test_without_control_tokens_there_is_nothing_to_do() -> None:
    plain = byte_tokenizer(())
    chats = ChatEncoder(ChatTemplate({"default": CHATML}, {}, "test"), plain)
    assert chats.render(user("</s>")).parts == (
        "<|im_start|>user\n</s><|im_end|>\n<|im_start|>assistant\n",
    )
