"""The text side of one model: prompts to token ids, in a worker thread when they are long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from hal.engine.chat_prompt import ChatEncoder, ChatPrompt
from hal.engine.chat_template import load_chat_template
from hal.engine.generation_config import GenerationDefaults, read_generation_defaults
from hal.engine.tokenizer import Tokenizer
from hal.errors import ContextLengthError
from hal.server.reasoning import Marks, marks_of
from hal.server.tool_parser import family_of

LONG_TEXT_CHARS = 4096
"""Above this, tokenising takes longer than the hop to a worker thread."""


@dataclass(frozen=True)
class TextModel:
    """Tokenizer, chat template and generation defaults of one model folder."""

    tokenizer: Tokenizer
    chats: ChatEncoder
    defaults: GenerationDefaults
    tool_family: str
    marks: Marks | None

    @classmethod
    def load(
        cls,
        folder: Path,
        chat_template: Path | None,
        tool_parser: str | None = None,
        reasoning_parser: str | None = None,
    ) -> TextModel:
        """Parsers: None for what the template writes.

        Raises ModelError, TokenizerError or ConfigError.
        """
        tokenizer = Tokenizer.load(folder)
        template = load_chat_template(folder, tokenizer.special_tokens, chat_template)
        family = family_of(template.text, tool_parser)
        marks = marks_of(template.text, reasoning_parser)
        chats = ChatEncoder(template, tokenizer)
        return cls(tokenizer, chats, read_generation_defaults(folder, tokenizer), family, marks)

    async def encode(
        self, text: str, max_model_len: int, *, add_special_tokens: bool, param: str
    ) -> list[int]:
        """Token ids; a text that cannot fit whatever its tokens are is refused unread."""
        encode = partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)
        return await self._encode(encode, len(text), max_model_len, param)

    async def encode_chat(self, prompt: ChatPrompt, max_model_len: int) -> list[int]:
        """As encode() does."""
        encode = partial(self.chats.encode, prompt)
        return await self._encode(encode, len(prompt.text), max_model_len, "messages")

    async def _encode(
        self, encode: Callable[[], list[int]], num_chars: int, max_model_len: int, param: str
    ) -> list[int]:
        if num_chars <= LONG_TEXT_CHARS:
            return encode()
        longest = await asyncio.to_thread(lambda: self.longest_token_bytes)
        if num_chars > max_model_len * longest:
            raise ContextLengthError(
                f"the prompt has {num_chars} characters; a context of {max_model_len} tokens holds "
                f"at most {max_model_len * longest} (the longest token has {longest} bytes). "
                "Shorten the prompt",
                param=param,
            )
        return await asyncio.to_thread(encode)

    async def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, object] | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> ChatPrompt:
        """A chat through the model's template."""
        render = partial(
            self.chats.render,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )
        num_chars = sum(len(str(message.get("content", ""))) for message in messages)
        if num_chars <= LONG_TEXT_CHARS and tools is None:
            return render()
        return await asyncio.to_thread(render)

    @cached_property
    def has_special_marks(self) -> bool:
        """Whether special tokens mark the reasoning: texts do not show them by default."""
        return self.marks is not None and self.marks.are_special_in(self.tokenizer)

    @cached_property
    def longest_token_bytes(self) -> int:
        token_bytes = self.tokenizer.token_bytes
        return max(len(token_bytes(i)) for i in range(self.tokenizer.vocab_size))
