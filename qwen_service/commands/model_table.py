"""What an owner asks of a catalog: does it run here, how fast, how much does it remember, what can it do."""

from collections.abc import Callable, Mapping, Sequence

from qwen_service.install.progress import human_bytes
from qwen_service.models.installed import InstalledModel
from qwen_service.models.machine import Machine
from qwen_service.models.spec import ModelSpec

LONG = 8192  # tokens
PURPOSES: Mapping[str, Callable[[ModelSpec], bool]] = {
    "tools": lambda spec: "tools" in spec.capabilities,
    "pictures": lambda spec: "vision" in spec.capabilities,
    "documents": lambda spec: "embedding" in spec.capabilities,
    "long": lambda spec: (spec.context or 0) >= LONG,
    "voice": lambda _spec: False,  # a voice is no chat model
}
# The vendor's speech models are no chat models: they have programs of their own. Times as its pages give them.
VOICE = """\
Hearing and speaking is done by programs beside the model, on the same card (docs/clients.md, "Speech"):
  SenseVoice   speech to text   asr_server   0.04 of the time that the recording lasts
  Whisper      speech to text   asr_server   not measured
  Kokoro       text to speech   tts_server   0.09 to 0.37 of the time that the speech lasts"""
HEADINGS = ("NAME", "RUNS ON", "SIZE", "MEMORY", "CONTEXT", "CAN", "SPEED")
NOT_MEASURED = "not measured"


def print_table(
    models: Sequence[tuple[ModelSpec, InstalledModel | None]], machine: Machine, card_kib: int | None = None
) -> None:
    """SIZE is of what is installed; `-` where it is not. MEMORY is the card's; `card_kib`: how much this machine's has."""
    if not models:
        return
    print_columns([HEADINGS, *(_row(spec, model, machine, card_kib) for spec, model in models)])


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def speed(spec: ModelSpec) -> str:
    """The speed, always with its machine: the same card is three times slower behind the PCIe of a Raspberry Pi 5."""
    parts = [f"{spec.decode_rate:g} tokens/s"] if spec.decode_rate else []
    parts += [f"prompt {spec.prefill_rate:g} tokens/s"] if spec.prefill_rate else []
    return f"{', '.join(parts)} ({spec.measured_on})" if parts and spec.measured_on else ", ".join(parts)


def fits(spec: ModelSpec, card_kib: int | None) -> bool | None:
    """Whether the card has the memory for it; None where one of the two is not known."""
    return None if spec.card_memory_kib is None or card_kib is None else spec.card_memory_kib <= card_kib


def memory(spec: ModelSpec, card_kib: int | None) -> str:
    if not spec.card_memory_kib:
        return NOT_MEASURED
    need = human_bytes(spec.card_memory_kib * 1024)
    if card_kib is None:
        return need
    have = human_bytes(card_kib * 1024)
    return f"{need}, fits ({have})" if fits(spec, card_kib) else f"{need}, too large ({have})"


def _row(spec: ModelSpec, model: InstalledModel | None, machine: Machine, card_kib: int | None) -> tuple[str, ...]:
    abilities = (model.capabilities if model else spec.capabilities) - {"completion"}
    return (
        spec.name,
        ("card" if spec.needs_npu else "CPU") + (" (not here)" if spec.obstacle(machine) else ""),
        human_bytes(model.size) if model else "-",
        memory(spec, card_kib) if spec.needs_npu else "-",
        str(spec.context) if spec.context else "?",
        ", ".join(sorted(abilities)) or "chat",
        speed(spec) or NOT_MEASURED,
    )
