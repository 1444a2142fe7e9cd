"""The pipeline: find the model, fit the conversation, wait for a turn, generate, parse, yield events."""

import dataclasses
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from qwen_service.chat import ChatRequest, Event, Sampling, Started
from qwen_service.engine import Engine
from qwen_service.engines.manager import ModelManager
from qwen_service.engines.served import ServedModel
from qwen_service.engines.waiting_room import Patience
from qwen_service.errors import Unsupported
from qwen_service.models.personas import Persona
from qwen_service.pipeline.beginnings import Exchange
from qwen_service.pipeline.cancellation import Cancellations
from qwen_service.pipeline.conversation import Fitted, SessionManager, continued
from qwen_service.pipeline.fairness import Priorities
from qwen_service.pipeline.pictures import PictureBounds, check_pictures
from qwen_service.pipeline.reply import Reply, SeenByClient
from qwen_service.pipeline.scheduler import Scheduler, Turn
from qwen_service.pipeline.stable_prefix import StablePrefix
from qwen_service.pipeline.structured import as_rendered, structured
from qwen_service.pipeline.warming import Warmer
from qwen_service.request_record import recording
from qwen_service.runtime import Capabilities
from qwen_service.text.output_parser import OutputFormat, OutputParser

log = logging.getLogger(__name__)

# Sampling fields that shape the text; the others are limits or constraints with rules of their own.
SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
)


class ChatCompletion:
    def __init__(
        self,
        models: ModelManager,
        sessions: SessionManager,
        scheduler: Scheduler,
        *,
        priorities: Priorities | None = None,
        cancellations: Cancellations | None = None,
        warmer: Warmer | None = None,
        stable_prefix: StablePrefix | None = None,
        log_prompts: bool = False,
        pictures: PictureBounds | None = None,
    ) -> None:
        self._models = models
        self._sessions = sessions
        self._scheduler = scheduler
        self._priorities = priorities or Priorities(())
        self._cancellations = cancellations or Cancellations()
        self._warmer = warmer
        self._stable_prefix = stable_prefix
        self._log_prompts = log_prompts
        self._pictures = pictures or PictureBounds()

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Events of one reply: Started, then deltas and calls, then Finished. Raises ServiceError at any point.

        Close the iterator to stop the generation and give up its place.
        """
        with recording() as record, self._cancellations.cancellable(record.id):
            request = self._priorities.apply(request, record.priority, record.client)
            request = dataclasses.replace(request, session=record.session or request.session)
            if (persona := self._models.persona(request.model)) is not None:
                request = persona.applied(request)
            began, patience = time.monotonic(), self._models.room.arrive()
            model = await self._models.obtain(request.model, patience)
            check_pictures(request, model, self._pictures, self._models.installed)
            with model.in_use():
                model.rest.keep(request.keep_alive)
                engine = await model.ready(self._models.room, patience)
                arrival = _Arrival(request.sampling, patience, load=time.monotonic() - began)
                reply = structured(
                    await continued(engine.text, self._complete(request, model, engine)),
                    partial(self._generate, model, engine, arrival),
                    output_format=engine.text.output_format,
                    capabilities=engine.runtime.capabilities,
                )
                async with aclosing(reply) as events:
                    async for event in events:
                        yield event if persona is None else _as_persona(event, persona)

    async def count(self, request: ChatRequest) -> int:
        """The tokens of the request's prompt, rendered as stream() renders it, before anything is trimmed."""
        with recording() as record, self._cancellations.cancellable(record.id):
            if (persona := self._models.persona(request.model)) is not None:
                request = persona.applied(request)
            patience = self._models.room.arrive()
            model = await self._models.obtain(request.model, patience)
            check_pictures(request, model, self._pictures, self._models.installed)
            with model.in_use():
                engine = await model.ready(self._models.room, patience)
                rendered = as_rendered(
                    self._complete(request, model, engine, only_count=True),
                    output_format=engine.text.output_format,
                    capabilities=engine.runtime.capabilities,
                )
                return await self._sessions.count(model, engine.text, engine.limits, rendered)

    def _complete(
        self, request: ChatRequest, model: ServedModel, engine: Engine, *, only_count: bool = False
    ) -> ChatRequest:
        request = _with_defaults(request, model, engine)
        if self._stable_prefix is None or request.prompt is not None:
            return request
        late_system = engine.text.template.takes_late_system
        return self._stable_prefix.applied(request, late_system=late_system, only_count=only_count)

    async def _generate(
        self, model: ServedModel, engine: Engine, arrival: "_Arrival", request: ChatRequest
    ) -> AsyncGenerator[Event, None]:
        fitted = await self._sessions.fit(model, engine.text, engine.limits, request)
        if self._log_prompts:
            log.info("prompt: %s", fitted.prompt.request.prompt or _said(fitted.prompt.request))
        sampling = dataclasses.replace(request.sampling, max_tokens=fitted.max_tokens)
        parser = _parser(engine, request, fitted)
        with SeenByClient(self._warmer, Exchange(model, fitted.prompt)) as seen:
            async with self._scheduler.turn(model, fitted.prompt, arrival.patience) as turn:
                reply = Reply(recording(), load=arrival.load, queue=turn.waited, pictures=bool(fitted.prompt.spelled))
                seen.began(turn, reply)
                yield reply.begin(_started(model, turn, arrival.asked, fitted))
                async with aclosing(turn.engine.runtime.generate(fitted.prompt, sampling)) as pieces:
                    async for piece in pieces:
                        for event in parser.feed(reply.add(piece)):
                            yield reply.note(event)
                        if parser.stopped:
                            break
            for event in parser.finish(reply.reason):
                yield reply.note(event)
            if reply.ids_are_exact and not parser.stopped:
                self._sessions.remember(model, fitted.prompt, reply.message(), reply.token_ids)
                seen.exchange.remembered = True
            yield reply.finished(fitted, parser)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """What the request asked for before defaults were filled in, how long it still waits, and how long it has, for its model."""

    asked: Sampling
    patience: Patience
    load: float  # seconds


def _with_defaults(request: ChatRequest, model: ServedModel, engine: Engine) -> ChatRequest:
    """The model's own defaults where the request is silent. Raises Unsupported."""
    if request.tools and not engine.text.template.supports_tools:
        raise Unsupported(
            f"{model.name} does not support tools: its chat template has no place for them.", param="tools"
        )
    if request.must_think and not engine.text.template.supports_thinking:
        raise Unsupported(
            f'"{request.model}" does not support thinking: send the request without `think`.', param="think"
        )
    if request.sampling.top_logprobs is not None and not engine.runtime.capabilities.logprobs:
        raise Unsupported(f"{model.name} does not support logprobs: its engine does not report them.", param="logprobs")
    given, defaults = request.sampling, model.spec.sampling
    missing = {name: getattr(defaults, name) for name in SAMPLING_FIELDS if getattr(given, name) is None}
    thinking = model.spec.thinking if request.thinking is None else request.thinking
    return dataclasses.replace(request, sampling=dataclasses.replace(given, **missing), thinking=thinking)


def _parser(engine: Engine, request: ChatRequest, fitted: Fitted) -> OutputParser:
    plain = OutputFormat() if request.prompt is not None else engine.text.output_format
    return OutputParser(
        plain,
        stop=request.stop,
        tools=bool(request.tools),
        tool_names=[tool.name for tool in request.tools],
        parallel_tool_calls=request.parallel_tool_calls,
        starts_in_reasoning=fitted.starts_in_reasoning,
    )


def _as_persona(event: Event, persona: Persona) -> Event:
    """Answers bear the name that was asked for, unless another model stood in."""
    if isinstance(event, Started) and not event.fallback:
        return dataclasses.replace(event, model=persona.name)
    return event


def _started(model: ServedModel, turn: Turn, asked: Sampling, fitted: Fitted) -> Started:
    return Started(
        model=model.name,
        trimmed_messages=fitted.trimmed,
        ignored_parameters=ignored_parameters(turn.engine.runtime.capabilities, asked),
        served_by=f"{model.spec.runtime} (fallback)" if model.is_fallback else model.spec.runtime,
        fallback=model.is_fallback,
        prompt_tokens=len(fitted.prompt.token_ids),
        moved_lines=fitted.prompt.request.moved_lines,
    )


def ignored_parameters(capabilities: Capabilities, asked: Sampling) -> tuple[str, ...]:
    """What the request set and this runtime cannot honour."""
    names = [name for name in SAMPLING_FIELDS if getattr(asked, name) is not None and name not in capabilities.sampling]
    if asked.logit_bias and "logit_bias" not in capabilities.sampling:
        names.append("logit_bias")
    return tuple(names)


def _said(request: ChatRequest) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in request.messages]
