"""Checks pictures before an engine decodes them: whether the model sees, their number, their size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen_service.chat import ChatRequest
from qwen_service.engines.served import ServedModel
from qwen_service.errors import RequestTooLarge, Unsupported
from qwen_service.models.installed import InstalledModel

VISION = "vision"


@dataclass(frozen=True, slots=True)
class PictureBounds:
    """The bounds: number of pictures in a request, pixels and bytes of each."""

    count: int = 16
    bytes: int = 4_194_304
    pixels: int = 16_777_216


def check_pictures(
    request: ChatRequest, model: ServedModel, bounds: PictureBounds, installed: Callable[[], Sequence[InstalledModel]]
) -> None:
    """Check the pictures. Raises Unsupported, which names installed models that see, or RequestTooLarge."""
    pictures = [image for message in request.messages for image in message.images]
    if not pictures:
        return
    if VISION not in model.installed.capabilities:
        seeing = ", ".join(other.name for other in installed() if VISION in other.capabilities)
        none = "No model here can; `qwen-service list --for pictures` shows those to install"
        instead = f"Models here that can: {seeing}" if seeing else none
        raise Unsupported(f"{model.name} cannot see images. {instead}.", param="messages")
    if len(pictures) > bounds.count:
        raise _too_large(f"The request has {len(pictures)} pictures", bounds.count, "max_images")
    for image in pictures:
        if len(image.data) > bounds.bytes:
            raise _too_large(f"A picture has {len(image.data)} bytes", bounds.bytes, "max_image_bytes")
        if image.width * image.height > bounds.pixels:
            raise _too_large(f"A picture has {image.width} x {image.height} pixels", bounds.pixels, "max_image_pixels")


def _too_large(found: str, most: int, setting: str) -> RequestTooLarge:
    return RequestTooLarge(f"{found}; at most {most} are allowed ({setting}).", param="messages")
