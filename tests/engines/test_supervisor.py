import asyncio
from collections.abc import Awaitable, Callable

import pytest

from qwen_service.engine import BringUp, Engine
from qwen_service.engines.supervisor import Backoff, Phase, Supervisor
from qwen_service.errors import ChecksumMismatch, Died, ServiceError, Stalled, StartFailed
from qwen_service.runtime import LoadProgress
from tests.fakes import Script, ScriptedRuntime
from tests.serving import brings_up, model_text, says_hi

QUICK = Backoff(first=0.01, longest=0.02)


class Watched:
    """A supervisor and the phases it went through."""

    def __init__(self, bring_up: BringUp, second_chance: float = 60) -> None:
        self.phases: list[Phase] = []
        self.changed = asyncio.Event()
        self.supervisor = Supervisor("m", bring_up, on_change=self.note, backoff=QUICK, second_chance=second_chance)

    def note(self) -> None:
        self.phases.append(self.supervisor.phase)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def engine(self) -> Engine:
        await self.until(lambda: self.supervisor.engine is not None and self.supervisor.phase == "ready")
        assert self.supervisor.engine is not None
        return self.supervisor.engine


def fails(*failures: Exception) -> Callable[[LoadProgress], Awaitable[Engine]]:
    """Each start fails in its way; the one after the last succeeds."""
    left = list(failures)

    async def bring_up(progress: LoadProgress) -> Engine:
        if left:
            raise left.pop(0)
        return await brings_up(lambda: ScriptedRuntime(says_hi))(progress)

    return bring_up


def test_the_pause_doubles_up_to_its_bound_and_starts_again_after_a_good_time() -> None:
    backoff = Backoff(first=0.5, longest=3, good_time=60)
    assert [backoff.after(0) for _ in range(5)] == [0.5, 1, 2, 3, 3]
    assert [backoff.after(59), backoff.after(60), backoff.after(0)] == [3, 0.5, 1]


async def test_a_model_is_loaded_and_ready_and_stopped() -> None:
    runtime = ScriptedRuntime(says_hi)
    watched = Watched(brings_up(lambda: runtime))
    watched.supervisor.start()
    engine = await watched.engine()
    assert engine.runtime is runtime
    await watched.supervisor.stop()
    assert runtime.stopped == 1
    assert watched.phases == ["loading", "ready", "stopped"]
    assert watched.supervisor.engine is None


async def test_an_engine_that_dies_is_replaced() -> None:
    runtimes: list[ScriptedRuntime] = []

    def make() -> ScriptedRuntime:
        runtimes.append(ScriptedRuntime(says_hi))
        return runtimes[-1]

    watched = Watched(brings_up(make))
    watched.supervisor.start()
    await watched.engine()
    runtimes[0].fail_with(Died("killed by signal 9"))
    await watched.until(lambda: watched.supervisor.phase == "restarting")
    assert watched.supervisor.engine is None
    assert (await watched.engine()).runtime is runtimes[1]
    assert runtimes[0].stopped == 1
    assert watched.supervisor.restarts == 1
    assert watched.supervisor.last_error == "killed by signal 9"
    await watched.supervisor.stop()


async def test_a_failure_that_a_generation_saw_takes_the_engine_out_of_service_at_once() -> None:
    watched = Watched(brings_up(lambda: ScriptedRuntime(says_hi)))
    watched.supervisor.start()
    first = await watched.engine()
    watched.supervisor.report(first, Stalled("no token for 60 s"))
    assert watched.supervisor.engine is None
    second = await watched.engine()
    assert second is not first
    watched.supervisor.report(first, Stalled("the same, seen by another request"))
    assert watched.supervisor.engine is second
    await watched.supervisor.stop()


async def test_a_start_that_fails_is_tried_again() -> None:
    watched = Watched(fails(StartFailed("out of memory"), StartFailed("again")))
    watched.supervisor.start()
    await watched.engine()
    assert watched.phases[:3] == ["loading", "restarting", "restarting"]
    assert watched.supervisor.restarts == 2
    await watched.supervisor.stop()


@pytest.mark.parametrize(
    "failure",
    [StartFailed("/dev/axcl_host is missing", permanent=True), ChecksumMismatch("tokenizer.json is broken")],
    ids=["for ever", "broken files"],
)
async def test_what_no_restart_cures_is_given_up_with_its_reason(failure: ServiceError) -> None:
    watched = Watched(fails(failure))
    watched.supervisor.start()
    await watched.supervisor.finished_loading()
    assert watched.supervisor.phase == "failed"
    assert watched.supervisor.last_error == failure.message
    await watched.supervisor.stop()


async def test_what_was_given_up_is_tried_again_after_a_while_and_told_only_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = StartFailed("/dev/axcl_host is missing", permanent=True)
    watched = Watched(fails(missing, missing, missing), second_chance=0.01)
    watched.supervisor.start()
    await watched.engine()
    assert watched.phases == ["loading", "failed", "failed", "failed", "ready"]
    assert watched.supervisor.restarts == 0
    assert caplog.text.count("cannot run: /dev/axcl_host is missing") == 1
    await watched.supervisor.stop()


async def test_a_defect_of_ours_is_shown_and_given_up_like_what_no_restart_cures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Watched(fails(KeyError("oops")))
    watched.supervisor.start()
    await watched.supervisor.finished_loading()
    assert watched.supervisor.phase == "failed"
    assert "KeyError('oops')" in watched.supervisor.last_error
    assert "Traceback" in caplog.text
    await watched.supervisor.stop()


async def test_an_error_that_nobody_expected_is_told_once_and_may_pass(caplog: pytest.LogCaptureFixture) -> None:
    full = OSError(28, "No space left on device")
    watched = Watched(fails(full, full), second_chance=0.01)
    watched.supervisor.start()
    await watched.engine()
    assert watched.phases == ["loading", "failed", "failed", "ready"]
    assert caplog.text.count("Traceback") == 1
    await watched.supervisor.stop()


async def test_progress_of_the_load_is_shown_until_it_ends() -> None:
    go_on = asyncio.Event()

    async def slow(progress: LoadProgress) -> Engine:
        progress("loading 17/31")
        await go_on.wait()
        runtime = ScriptedRuntime(says_hi)
        return Engine(runtime, runtime.limits, model_text())

    watched = Watched(slow)
    watched.supervisor.start()
    await asyncio.sleep(0)
    assert (watched.supervisor.phase, watched.supervisor.progress) == ("loading", "loading 17/31")
    go_on.set()
    await watched.engine()
    assert watched.supervisor.progress == ""
    await watched.supervisor.stop()


async def test_stopping_interrupts_a_load() -> None:
    interrupted = asyncio.Event()

    async def endless(progress: LoadProgress) -> Engine:
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()
        raise AssertionError

    watched = Watched(endless)
    watched.supervisor.start()
    await asyncio.sleep(0)
    await watched.supervisor.stop()
    assert interrupted.is_set()
    assert watched.phases == ["loading", "stopped"]


class SlowToStop(ScriptedRuntime):
    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.stopping = asyncio.Event()

    async def stop(self) -> None:
        self.stopping.set()
        await asyncio.sleep(0.05)
        await super().stop()


async def test_stopping_waits_for_an_engine_that_is_being_stopped_already() -> None:
    runtime = SlowToStop(says_hi)
    watched = Watched(brings_up(lambda: runtime))
    watched.supervisor.start()
    await watched.engine()
    runtime.fail_with(Died("killed"))
    await watched.until(lambda: watched.supervisor.phase == "restarting")
    await watched.supervisor.stop()
    assert runtime.stopped == 1


async def test_stopping_again_waits_for_a_stop_whose_caller_has_gone() -> None:
    runtime = SlowToStop(says_hi)
    watched = Watched(brings_up(lambda: runtime))
    watched.supervisor.start()
    await watched.engine()
    runtime.fail_with(Died("killed"))
    await runtime.stopping.wait()
    impatient = asyncio.create_task(watched.supervisor.stop())
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait([impatient])
    await watched.supervisor.stop()
    assert runtime.stopped == 1


async def test_a_failure_that_is_seen_while_it_is_being_stopped_does_not_bring_it_back() -> None:
    watched = Watched(brings_up(lambda: SlowToStop(says_hi)))
    watched.supervisor.start()
    engine = await watched.engine()
    stopping = asyncio.create_task(watched.supervisor.stop())
    await watched.until(lambda: watched.supervisor.phase == "stopped")
    watched.supervisor.report(engine, Died("killed"))
    await stopping
    assert (watched.supervisor.phase, watched.supervisor.engine) == ("stopped", None)


async def test_a_supervisor_that_was_never_started_can_be_stopped() -> None:
    watched = Watched(fails())
    await watched.supervisor.stop()
    assert watched.supervisor.phase == "stopped"


async def test_a_model_that_has_run_is_never_given_up() -> None:
    vanished = StartFailed("No card was found", permanent=True)
    runtimes: list[ScriptedRuntime] = []

    async def bring_up(progress: LoadProgress) -> Engine:
        if len(runtimes) == 1 and watched.supervisor.restarts < 3:
            raise vanished
        runtimes.append(ScriptedRuntime(says_hi))
        return await brings_up(lambda: runtimes[-1])(progress)

    watched = Watched(bring_up)
    watched.supervisor.start()
    await watched.engine()
    runtimes[0].fail_with(Died("its card was rebooted"))
    await watched.until(lambda: len(runtimes) == 2)
    await watched.engine()
    assert "failed" not in watched.phases
    assert watched.supervisor.last_error == "No card was found"
    await watched.supervisor.stop()
