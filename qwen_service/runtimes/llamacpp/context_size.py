"""The default context of llama.cpp: what the model was trained for, as far as memory allows."""

from qwen_service.runtimes.llamacpp.gguf import GgufShape

SMALLEST = 256  # tokens; llama.cpp rounds up to a multiple of it
LEAST = 4096  # tokens; the least with which an assistant with tools works
GOOD = 8192  # tokens; enough for Home Assistant and for coding agents
UNKNOWN = 4096  # tokens, when the file does not say how much memory a token takes
KEPT_FREE = 0.1  # share of the memory for compute buffers and the cached prompts of former conversations


def default_context(shape: GgufShape, weights: int, available: int) -> int:
    """The context in tokens. `weights` and `available` are in bytes; 0: unknown.

    Up to GOOD the context may use all memory beside the weights, above that half of it, because other programs run here,
    too. The result is one of few round numbers, so that a start with slightly less memory gives the same.
    """
    trained = shape.train_context or UNKNOWN
    if not shape.bytes_per_token or not available:
        return min(trained, UNKNOWN)
    left = max(0, available - weights)
    half = left // 2 // shape.bytes_per_token
    all_but_reserve = int(left - KEPT_FREE * available) // shape.bytes_per_token
    bearable = half if half >= GOOD else min(GOOD, all_but_reserve)
    return min(trained, max(LEAST, _round(bearable)))


def _round(tokens: int) -> int:
    """Round down to 4096, 6144, 8192, 12288, 16384 and so on."""
    if tokens < LEAST:
        return tokens
    power = 1 << (tokens.bit_length() - 1)
    return power + power // 2 if tokens >= power + power // 2 else power
