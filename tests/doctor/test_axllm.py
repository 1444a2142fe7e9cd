from pathlib import Path

import pytest

from qwen_service.doctor.host import Host
from qwen_service.models.catalog import Catalog
from tests.doctor.examined import findings, only, the
from tests.recorded_machine import RecordedMachine
from tests.runtimes.axllm.test_program import build, model_folder


def on_path(pi: RecordedMachine, folder: Path) -> Host:
    """The recorded machine with these programs only."""
    host = pi.host()
    return Host(host.root, host.machine, str(folder), now=host.now)


async def test_what_was_found_is_told_with_its_version(pi: RecordedMachine, models: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        model_folder(models / name)
    right = build(tmp_path / "bin" / "axllm", "AXCL")
    right.chmod(0o755)
    (finding,) = await the("axllm", pi, models, on_path(pi, right.parent))
    assert (finding.level, finding.text) == ("ok", f"{right}: axllm 1.4 backend: AXCL")


async def test_a_wrong_build_is_refused_by_name_with_where_to_get_the_right_one(
    pi: RecordedMachine, models: Path, tmp_path: Path
) -> None:
    wrong = build(model_folder(models / "one") / "bin" / "axllm", "AX650")
    wrong.chmod(0o755)
    finding = only(await the("axllm", pi, models, on_path(pi, tmp_path)))
    assert finding.level == "fail"
    assert f"{wrong} is a build for the AX650 board (AX650), but this machine is a host with a card" in finding.text
    assert "github.com/AXERA-TECH/ax-llm" in finding.cure


@pytest.mark.parametrize(("card", "level"), [(True, "fail"), (False, "warn")])
async def test_none_is_a_failure_where_there_is_a_card(
    card: bool, level: str, pi: RecordedMachine, models: Path, tmp_path: Path
) -> None:
    model_folder(models / "one")
    if not card:
        pi.remove("dev/axcl_host")
    finding = only(await the("axllm", pi, models, on_path(pi, tmp_path)))
    assert (finding.level, finding.text) == (
        level,
        "one has no program that could run it: there is no axllm",
    )


async def test_nothing_is_said_where_no_model_needs_it(pi: RecordedMachine, models: Path) -> None:
    assert [finding for finding in await findings(pi, models) if finding.area == "axllm"] == []


async def test_a_model_that_is_fed_token_by_token_is_told_of_its_quicker_form(
    pi: RecordedMachine, models: Path
) -> None:
    spec = Catalog.load(models).find("qwen2.5-1.5b-instruct")
    for file in spec.files:
        path = models / spec.name / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as there:
            there.truncate(file.size or 1)
    (finding,) = await the("axllm", pi, models)
    assert finding.level == "ok"
    assert finding.text.startswith(
        "qwen2.5-1.5b-instruct is fed its prompt token by token: 150 tokens take 10 s before the first word."
        " qwen2.5-1.5b-instruct-axllm is the same model under axllm, which takes 128 at once;"
        " `qwen-service pull qwen2.5-1.5b-instruct-axllm` installs it"
    )
    model_folder(models / "qwen2.5-1.5b-instruct-axllm")
    texts = [finding.text for finding in await the("axllm", pi, models)]
    assert "`model_aliases: {" in texts[0]
    assert ": qwen2.5-1.5b-instruct-axllm}` serves it under that name" in texts[0]
