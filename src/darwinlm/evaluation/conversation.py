"""Conversations with a model, with its chat template, end tokens, and streamed text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from transformers import TextStreamer

from darwinlm.formats.opened import Opened
from darwinlm.runtime.errors import DataError, ModelError, RecipeError, first_line
from darwinlm.steps.own_text.script import end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GenerationArguments: TypeAlias = dict[str, int | float | list[int] | None]
"""Keyword arguments of transformers' `generate`."""


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of answers. Raises RecipeError if one is out of range.

    A temperature of 0 is greedy, None uses the model's generation config. A repetition penalty above 1 makes tokens
    less likely that are in the conversation; 1 changes nothing. The system prompt is for models with a chat template.
    """

    max_tokens: int = 256
    temperature: float | None = None
    seed: int = 0
    system: str | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RecipeError(f"--max-tokens {self.max_tokens}: must be 1 or more")
        if self.temperature is not None and not 0 <= self.temperature < 100:
            raise RecipeError(f"--temperature {self.temperature:g}: must be from 0 to below 100")
        if not 0 < self.repetition_penalty < 100:
            raise RecipeError(f"--repetition-penalty {self.repetition_penalty:g}: must be above 0 and below 100")


class Conversation:
    """A conversation with a model. Without a chat template, the model continues the user's text."""

    def __init__(self, opened: Opened, settings: AnswerSettings) -> None:
        self.opened, self.model = opened, opened.model
        self.tokenizer = opened.tokenizer
        self.settings = settings
        self.has_template = bool(getattr(self.tokenizer, "chat_template", None))
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Clear the history."""
        system = self.settings.system
        self.messages = [{"role": "system", "content": system}] if system and self.has_template else []

    @torch.no_grad()
    def answer(self, text: str, on_text: Callable[[str], None] = lambda piece: None) -> str:
        """Answer, and add question and answer to the history. If the context is full, the oldest turns are dropped.

        `on_text` gets each piece of the answer, a word or more. Raises DataError if the text alone doesn't fit into the
        model's context, ModelError if the chat template can't be applied.
        """
        ids = self._prompt(text)
        streamer = _Pieces(self.tokenizer, on_text)
        torch.manual_seed(self.settings.seed)
        ids = ids.to(self.model.device)
        try:
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), streamer=streamer, **self._sampling())
        except KeyboardInterrupt:
            self._remember(text, streamer.text)
            raise
        answer = str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        self._remember(text, answer)
        return answer

    def _remember(self, text: str, answer: str) -> None:
        if self.has_template:
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def _prompt(self, text: str) -> torch.Tensor:
        """Token ids [1, t] of the prompt, with room for an answer."""
        room = self._context() - self.settings.max_tokens
        if not self.has_template:
            ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
            return self._fitting(ids, room)
        while True:
            messages = [*self.messages, {"role": "user", "content": text}]
            try:
                encoded = self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
                )
            except Exception as error:
                raise ModelError(f"the model's chat template refuses this conversation: {first_line(error)}") from error
            ids = encoded["input_ids"]
            n_system = 1 if self.messages and self.messages[0]["role"] == "system" else 0
            if ids.shape[1] <= room or len(self.messages) == n_system:
                return self._fitting(ids, room)
            del self.messages[n_system : n_system + 2]

    def _fitting(self, ids: torch.Tensor, room: int) -> torch.Tensor:
        if ids.shape[1] == 0:
            raise DataError("there is no text to continue: write something")
        if ids.shape[1] > room:
            raise DataError(
                f"the conversation has {ids.shape[1]:,} tokens and the answer may have {self.settings.max_tokens:,}, "
                f"but the model takes {self._context():,}: shorten the message, type /reset, or lower --max-tokens"
            )
        self.opened.check_tokens(ids)
        return ids

    def _context(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    def _sampling(self) -> GenerationArguments:
        temperature = self.settings.temperature
        sampling: GenerationArguments = {
            "max_new_tokens": self.settings.max_tokens,
            "repetition_penalty": self.settings.repetition_penalty,
            "eos_token_id": list(end_tokens(self.model, self.tokenizer)) or None,
            "pad_token_id": self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0,
        }
        if temperature == 0:
            return sampling | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature is None:
            return sampling
        return sampling | {"do_sample": True, "temperature": temperature}


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Streams text as soon as later tokens can't change it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by `generate`."""
        del stream_end
        if text:
            self.text += text
            self.on_text(text)
