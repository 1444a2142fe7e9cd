"""Finds the models of the catalog that this machine can run, and the one to recommend."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_service.install.progress import human_bytes
from qwen_service.install.staging import SPARE_BYTES
from qwen_service.models.catalog import Catalog
from qwen_service.models.machine import Machine
from qwen_service.models.spec import AXLLM, ModelSpec

CACHE_BYTES = 400_000_000  # bytes that a CPU model needs beside its weights: KV cache, buffers, the service
BIG = 8_000_000_000  # bytes of memory from which on a PC gets a larger model
LARGER = 1_500_000_000  # bytes of weights with which a PC's processor still generates at reading speed


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of memory that the machine has, and bytes free on the disk of the models."""

    memory: int
    disk: int


@dataclass(frozen=True, slots=True)
class Offer:
    spec: ModelSpec
    installed: bool
    obstacle: str  # why this machine cannot run it; empty when it can

    @property
    def size(self) -> str:
        return human_bytes(self.spec.size) if self.spec.size else "size unknown"

    @property
    def place(self) -> str:
        return "card" if self.spec.needs_npu else "CPU"

    @property
    def can(self) -> str:
        """Beside talking."""
        words = {"tools": "tools", "vision": "pictures", "thinking": "thinking"}
        return ", ".join(word for name, word in words.items() if name in self.spec.capabilities) or "-"

    @property
    def speed(self) -> str:
        """The measured speed, and the machine it was measured on."""
        if not self.spec.decode_rate:
            return "not measured"
        return f"{self.spec.decode_rate:g} tokens/s on a {self.spec.measured_on or 'card'}"


def offers(catalog: Catalog, machine: Machine, space: Space) -> list[Offer]:
    """All models: those that the machine can run first, the card's before the CPU's, stopgaps last."""
    installed = {model.name for model in catalog.installed()}
    known = [spec for spec in catalog.specs if spec.chats and (spec.source is not None or spec.name in installed)]
    found = [
        Offer(spec, spec.name in installed, _obstacle(spec, machine, space, spec.name in installed)) for spec in known
    ]
    return sorted(found, key=lambda offer: (bool(offer.obstacle), bool(offer.spec.stopgap), not offer.spec.needs_npu))


def recommended(found: Sequence[Offer], machine: Machine, space: Space) -> Offer | None:
    """The recommended one: for a card its first; on a CPU the smallest that can chat; on a large PC the largest that is quick."""
    possible = [offer for offer in found if not offer.obstacle]
    talking = [offer for offer in possible if not offer.spec.stopgap]
    on_cpu = sorted((o for o in talking if not o.spec.needs_npu), key=lambda offer: offer.spec.size or 0)
    if machine.arch == "x86_64" and space.memory >= BIG:
        on_cpu = sorted(on_cpu, key=lambda offer: -(offer.spec.size or 0) if (offer.spec.size or 0) <= LARGER else 1)
    on_card = sorted((o for o in talking if o.spec.needs_npu), key=lambda offer: -(offer.spec.decode_rate or 0))
    return next(iter([*on_card, *on_cpu, *possible]), None)


def _obstacle(spec: ModelSpec, machine: Machine, space: Space, installed: bool) -> str:
    size = spec.size or 0
    if spec.needs_npu and not machine.has_npu:
        return "an Axera card is needed"
    if reason := spec.obstacle(machine):
        return reason
    if spec.runtime == "axllm" and shutil.which(AXLLM) is None:
        return "the vendor's program axllm is needed on PATH"
    if not spec.needs_npu and size + CACHE_BYTES > space.memory:
        return f"{human_bytes(size + CACHE_BYTES)} of memory are needed"
    if not installed and size + SPARE_BYTES > space.disk:
        return f"{human_bytes(size + SPARE_BYTES)} on the disk are needed"
    return ""
