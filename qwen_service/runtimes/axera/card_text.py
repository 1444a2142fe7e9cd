"""The tokenizer and chat template of a card's model, read once for all cards: they take 45 MB and half a second."""

import asyncio

from qwen_service.errors import InstallError, StartFailed
from qwen_service.models.installed import InstalledModel, pointer_advice
from qwen_service.runtime import LoadProgress
from qwen_service.text.template import ChatTemplate
from qwen_service.text.tokenizer import LocalTokenizer


class CardText:
    def __init__(self, model: InstalledModel) -> None:
        self._model = model
        self._reading = asyncio.Lock()
        self._text: tuple[LocalTokenizer, ChatTemplate] | None = None

    async def read(self, progress: LoadProgress) -> tuple[LocalTokenizer, ChatTemplate]:
        """Read them. Raises StartFailed; the next call reads the files again."""
        async with self._reading:
            if self._text is None:
                progress("reading the tokenizer")
                self._text = await asyncio.to_thread(self._read)
            return self._text

    def _read(self) -> tuple[LocalTokenizer, ChatTemplate]:
        if pointers := self._model.lfs_pointers():
            raise StartFailed(pointer_advice(pointers), permanent=True)
        assert self._model.tokenizer_file is not None, "a card's manifest names its tokenizer"
        try:
            tokenizer = LocalTokenizer(self._model.tokenizer_file.parent)
            return tokenizer, ChatTemplate(tokenizer.chat_template, tokenizer.special_ids)
        except InstallError as error:
            raise StartFailed(error.message, permanent=True) from error
