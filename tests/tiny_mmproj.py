"""A vision encoder of one small layer and random weights, as llama.cpp reads it: it sees nothing, but it is one.

With it a real model takes real pictures: the whole way through the engine can be tried without a download.
"""

import random
import struct
from array import array
from pathlib import Path
from typing import Any

ALIGNMENT = 32
SIZE, PATCH, WIDTH, HEADS = 56, 14, 32, 4  # of the encoder: an image of 4 x 4 patches
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9  # GGUF's types of values


def write_mmproj(path: Path, model_width: int) -> None:
    """For a language model with embeddings of that width: LLaVA's two-layer projector."""
    patches = (SIZE // PATCH) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "v.class_embd": (WIDTH,),
        "v.patch_embd.weight": (PATCH, PATCH, 3, WIDTH),
        "v.position_embd.weight": (WIDTH, patches + 1),
        "v.pre_ln.weight": (WIDTH,),
        "v.pre_ln.bias": (WIDTH,),
        "mm.0.weight": (WIDTH, model_width),
        "mm.0.bias": (model_width,),
        "mm.2.weight": (model_width, model_width),
        "mm.2.bias": (model_width,),
    }
    for name, (to, out) in {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH, WIDTH),
        "attn_v": (WIDTH, WIDTH),
        "attn_out": (WIDTH, WIDTH),
        "ffn_up": (WIDTH, 2 * WIDTH),
        "ffn_down": (2 * WIDTH, WIDTH),
    }.items():
        shapes |= {f"v.blk.0.{name}.weight": (to, out), f"v.blk.0.{name}.bias": (out,)}
    for name in ("ln1", "ln2"):
        shapes |= {f"v.blk.0.{name}.weight": (WIDTH,), f"v.blk.0.{name}.bias": (WIDTH,)}
    values: dict[str, Any] = {
        "general.architecture": "clip",
        "general.name": "tiny",
        "general.file_type": 0,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.image_size": SIZE,
        "clip.vision.patch_size": PATCH,
        "clip.vision.embedding_length": WIDTH,
        "clip.vision.feed_forward_length": 2 * WIDTH,
        "clip.vision.projection_dim": model_width,
        "clip.vision.block_count": 1,
        "clip.vision.attention.head_count": HEADS,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }
    rng = random.Random(1)
    head, data = bytearray(), bytearray()
    for name, shape in shapes.items():
        head += _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", 0, len(data))  # 0: 32 bit floats
        count = 1
        for size in shape:
            count *= size
        data += array("f", (rng.gauss(0, 0.02) for _ in range(count))).tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    begin = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(values))
    whole = begin + b"".join(_string(key) + _value(value) for key, value in values.items()) + head
    path.write_bytes(whole + bytes(-len(whole) % ALIGNMENT) + data)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
        case _:
            return struct.pack("<IIQ", ARRAY, FLOAT32, len(value)) + struct.pack(f"<{len(value)}f", *value)
