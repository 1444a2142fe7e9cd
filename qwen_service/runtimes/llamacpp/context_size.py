"""How long a context llama.cpp is started with where nobody has said: what the model was trained for, as far as memory goes."""

from qwen_service.runtimes.llamacpp.gguf import GgufShape

SMALLEST = 256  # tokens; llama.cpp rounds up to a multiple of it
LEAST = 4096  # tokens; an assistant with tools does not work with less
GOOD = 8192  # tokens; what Home Assistant asks for, and coding agents begin with
UNKNOWN = 4096  # where the file does not tell what a token takes
KEPT_FREE = 0.1  # of the memory, for the compute buffers and the prompts of former conversations


def default_context(shape: GgufShape, weights: int, available: int) -> int:
    """Tokens. `weights` and `available` in bytes; 0: not known.

    Up to GOOD the context may take what the weights leave of the memory, beyond that half of it: other programs live here
    too. It is one of few round numbers, so that a start with somewhat less memory comes to the same.
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
    """The next lower of 4096, 6144, 8192, 12288, 16384 and so on."""
    if tokens < LEAST:
        return tokens
    power = 1 << (tokens.bit_length() - 1)
    return power + power // 2 if tokens >= power + power // 2 else power
