"""Runtime of llama.cpp on the CPU, in its own process: our worker, or the user's `llama-server` in its place.

Several generations run at a time, one per slot. The engine itself reuses the former prompts in its slots.
A LlamaCpp is also the model's Tokenizer, and knows its chat template.
"""

import asyncio
import importlib.metadata
import logging
import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from qwen_service.chat import PromptParts, Sampling
from qwen_service.errors import ProtocolError, QueueFull, RuntimeFailure, ServiceError, Stalled
from qwen_service.runtime import Limits, LoadProgress, Piece, Prefill, Prompt, Runtime
from qwen_service.runtimes.llamacpp import wire
from qwen_service.runtimes.llamacpp.kv_room import KvRoom
from qwen_service.runtimes.llamacpp.process import LlamaProcess, check_gguf, thread_count
from qwen_service.runtimes.llamacpp.slot_files import SAVE_WITHIN, SlotFiles, folder_of, forget_all, identity
from qwen_service.runtimes.llamacpp.tokenizer import LlamaTokenizer
from qwen_service.runtimes.llamacpp.unfinished import Unfinished
from qwen_service.runtimes.local_http import HttpError, LocalHttp
from qwen_service.text.template import SPECIAL_TOKEN_SHAPE

log = logging.getLogger(__name__)

BATCH = 128  # tokens of a prompt computed in one step
FORMER_PROMPTS = 256  # MiB for the prompts of former conversations
MEDIA_MARKER = "<__media__>"  # the marker of builds that do not make it random
MOST_SHAPES = 64  # most texts that look like special tokens; the engine is asked about each
LAST_WORDS = 1.0  # seconds for a process that closed its connections to end
STEP = 0.01  # seconds between two checks of the slots


class LlamaCpp(Runtime):
    """The runtime. `context`: tokens that all slots share; one conversation may use all. `threads` None: cores minus one.

    `keep_on_disk`: bytes in state_dir for the content of the slots between a stop and the next start.
    """

    capabilities = wire.CAPABILITIES

    def __init__(
        self,
        *,
        model_path: Path,
        state_dir: Path,
        slots: int = 4,
        context: int = 4096,
        threads: int | None = None,
        llama_server: Path | None = None,
        log_path: Path | None = None,
        stall_timeout: float = 60.0,
        mmproj: Path | None = None,
        keep_on_disk: int = 0,
    ) -> None:
        self._model_path = model_path
        self._mmproj = mmproj
        self._media_marker = MEDIA_MARKER
        self._state_dir = state_dir
        self._llama_server = llama_server
        if llama_server is not None:  # usually built without llguidance; some versions crash on its grammars
            self.capabilities = replace(wire.CAPABILITIES, grammars=False)
        self._log_path = log_path
        self._stall_timeout = stall_timeout
        self._options = {
            "--parallel": slots,
            "--ctx-size": context,
            "--batch-size": BATCH,
            "--ubatch-size": BATCH,
            "--threads": thread_count(threads),
            "--cache-ram": FORMER_PROMPTS,
        }
        self._keep_on_disk = keep_on_disk
        self._files: SlotFiles | None = None
        self._restored = 0  # tokens
        self._generating = 0
        self._room = KvRoom(context)
        self._process: LlamaProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[RuntimeFailure]
        self._http: LocalHttp
        self._tokenizer: LlamaTokenizer
        self.chat_template = ""
        self.bos_token = ""
        self.eos_token = ""
        self.vocab_size = 0

    async def start(self, progress: LoadProgress) -> Limits:
        size = check_gguf(self._model_path)
        progress(f"loading {self._model_path.name} ({size / 1e6:.0f} MB)")
        self._failure = asyncio.get_running_loop().create_future()
        flags = ["--kv-unified", *self._prepare_files()]
        self._process = await LlamaProcess.start(
            llama_server=self._llama_server,
            model_path=self._model_path,
            options=self._options,
            mmproj=self._mmproj,
            flags=flags,
            state_dir=self._state_dir,
            log_path=self._log_path,
        )
        self._http = self._process.http
        self._watcher = asyncio.create_task(self._watch(self._process))
        try:
            limits = await self._read_properties()
            if self._files is not None:
                self._restored = await self._restore(self._files)
                if self._restored:
                    log.info("restored %d tokens of former conversations", self._restored)
            return limits
        except BaseException:
            await self.stop()
            raise

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Prefill | Piece, None]:
        """Generate. It is interrupted when the conversations together outgrow the context, and resumed when there is room."""
        work = Unfinished(prompt, sampling, self._room.size)
        try:
            while not work.finished:
                await self._room.enter(work.stay)
                try:
                    async with aclosing(self._generate(work)) as items:
                        async for item in items:
                            if work.add(item):
                                yield item
                except QueueFull:
                    # Every running generation has lost the cache: pictures took more of it than was counted.
                    if not work.goes_on_alone():
                        raise
                if (last := work.end_early()) is not None:
                    yield last
                await work.fill_in_ids(self.encode)
        finally:
            self._room.leave(work.stay)

    async def _generate(self, work: Unfinished) -> AsyncGenerator[Prefill | Piece, None]:
        """Generate one part of a reply: to its end, or until it is interrupted."""
        sampling = work.sampling
        reader = wire.CompletionReader(sampling.top_logprobs)
        body = wire.completion_body(work.token_ids, sampling)
        if work.prompt.spelled:
            body["prompt"] = await self._with_pictures(work.prompt)
        self._generating += 1
        try:
            with closing(await self._http.events("/completion", body, self._stall_timeout)) as stream:
                work.watch(stream, self._room)
                while events := await stream.read():
                    for event in events:
                        yield reader.feed(event)
            if not reader.finished:
                raise ProtocolError("llama.cpp ended its stream without a finish reason")
        except (HttpError, OSError) as error:
            if not work.stay.interrupted:
                raise await self._meaning(error) from error
        finally:
            self._generating -= 1
            if not reader.finished:
                await self._until_slot_is_free()

    def has_room(self, prompt: Prompt) -> bool:
        return self._room.has_room(len(prompt.token_ids))

    async def warm(self, prompt: Prompt) -> bool:
        if self._restored:  # otherwise the engine would cut a restored conversation down to this prompt
            return False
        async with aclosing(self.generate(prompt, Sampling(max_tokens=0))) as items:
            async for _ in items:
                pass
        return True

    async def _with_pictures(self, prompt: Prompt) -> dict[str, Any]:
        """Make the prompt as text. The engine searches it for special tokens, so a person's text must not contain any."""
        shapes = {
            name for part in prompt.spelled if not part.special for name in SPECIAL_TOKEN_SHAPE.findall(part.text)
        }
        control = await self._tokenizer.single_tokens(shapes) if len(shapes) <= MOST_SHAPES else shapes
        images = [image for message in prompt.request.messages for image in message.images]
        return wire.prompt_with_pictures(prompt.spelled, images, control, self._media_marker, self.bos_token)

    async def failed(self) -> RuntimeFailure:
        return await asyncio.shield(self._failure)

    async def stop(self) -> None:
        if self._process is None:
            return
        try:
            if self._files is not None and not self._failure.done():
                await self._save()
        finally:
            await self._process.stop()

    def _prepare_files(self) -> list[str]:
        """The flags for keeping the slots on disk."""
        if not self._keep_on_disk:
            forget_all(self._state_dir)
            return []
        self._files = SlotFiles(folder_of(self._state_dir, self._model_path, self._keep_on_disk), self._keep_on_disk)
        self._files.prepare()
        return ["--slot-save-path", f"{self._files.folder}{os.sep}"]

    async def _restore(self, files: SlotFiles) -> int:
        """Load the saved slots. Raises Died if the engine dies of one: the next start has no index, and does without."""
        try:
            return await files.restore(self._slot_action, await self._identity())
        except OSError as error:
            raise await self._meaning(error) from error

    async def _save(self) -> None:
        """Save the slots, once, while the engine works. Running generations are not waited for."""
        files, self._files = self._files, None
        try:
            slots = [slot for slot in await self._http.get("/slots", SAVE_WITHIN) if not slot["is_processing"]]
            slots.sort(key=lambda slot: slot.get("id_task", -1), reverse=True)  # most recent first
            held = [(slot["id"], slot.get("n_prompt_tokens", 0)) for slot in slots]
            if files is not None and (kept := await files.save(self._slot_action, await self._identity(), held)):
                log.info("%d tokens of the last conversations are kept in %s", kept, files.folder)
        except (OSError, HttpError) as error:
            log.warning("the last conversations could not be kept on disk: %s", error)

    async def _slot_action(self, path: str, body: Any) -> Any:
        return await self._http.post(path, body, SAVE_WITHIN)

    async def _identity(self) -> str:
        """A digest of everything that must be unchanged for the saved slots to be valid."""
        files = [path for path in (self._model_path, self._mmproj, self._llama_server) if path is not None]
        build = (await self._get("/props")).get("build_info", "")
        version = importlib.metadata.version("xllamacpp") if self._llama_server is None else ""
        return await asyncio.to_thread(identity, files, build, version, sorted(self._options.items()))

    async def encode(self, parts: PromptParts) -> list[int]:
        return await self._tokenizer.encode(parts)

    async def decode(self, token_ids: Sequence[int]) -> str:
        return await self._tokenizer.decode(token_ids)

    async def special_ids(self, names: Iterable[str]) -> dict[str, int]:
        """The ids of the names that are one token each. From now on no text becomes one of them."""
        return await self._tokenizer.special_ids(names)

    async def _watch(self, process: LlamaProcess) -> None:
        self._fail(await process.ended())

    async def _read_properties(self) -> Limits:
        properties = await self._get("/props")
        meta = (await self._get("/v1/models"))["data"][0]["meta"]
        self.chat_template = properties.get("chat_template", "")
        self.bos_token = properties.get("bos_token", "")
        self.eos_token = properties.get("eos_token", "")
        self._media_marker = properties.get("media_marker") or MEDIA_MARKER
        self.vocab_size = meta["n_vocab"]
        self._tokenizer = LlamaTokenizer(self._post, self.vocab_size)
        context = properties["default_generation_settings"]["n_ctx"]
        return Limits(context=context, prompt=context - 1, slots=properties["total_slots"])

    async def _get(self, path: str) -> Any:
        try:
            return await self._http.get(path, self._stall_timeout)
        except (HttpError, OSError) as error:
            raise await self._meaning(error) from error

    async def _post(self, path: str, body: Any) -> Any:
        try:
            return await self._http.post(path, body, self._stall_timeout)
        except (HttpError, OSError) as error:
            raise await self._meaning(error) from error

    async def _meaning(self, error: HttpError | OSError) -> ServiceError:
        """Turn a failure into an error of the service."""
        if isinstance(error, HttpError):
            return wire.refusal(error.status, error_object(error.body))
        if isinstance(error, TimeoutError):
            return self._fail(Stalled(f"llama.cpp gave no sign of life for {self._stall_timeout:.0f} s"))
        done, _ = await asyncio.wait([self._failure], timeout=LAST_WORDS)
        return done.pop().result() if done else ProtocolError(f"the connection to llama.cpp broke: {error}")

    async def _until_slot_is_free(self) -> None:
        """Wait for a free slot: the engine notices a closed connection only at its next step, a token or a batch of the prompt."""
        try:
            async with asyncio.timeout(self._stall_timeout):
                while await self._busy_slots() > self._generating:  # noqa: ASYNC110  # nobody tells, one must ask
                    await asyncio.sleep(STEP)
        except TimeoutError:
            self._fail(Stalled(f"llama.cpp did not stop a generation within {self._stall_timeout:.0f} s"))
        except (OSError, HttpError):
            return  # the engine is lost: failed() reports it

    async def _busy_slots(self) -> int:
        slots = await self._http.get("/slots", self._stall_timeout)
        return sum(slot["is_processing"] for slot in slots)

    def _fail(self, failure: RuntimeFailure) -> RuntimeFailure:
        if not self._failure.done():
            self._failure.set_result(failure)
        return failure


def error_object(body: bytes) -> Any:
    try:
        return orjson.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
