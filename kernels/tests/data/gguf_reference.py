"""Prints `format hex-of-blocks hex-of-f32s` lines: random blocks dequantised by the PyPI package `gguf`.

usage: gguf_reference.py SEED BLOCKS
The fixture gguf_blocks.txt beside this file is its output for `1 2`.
"""

import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

# Name, bytes of a block, offsets of its f16 fields: those must be finite, any other byte may be anything.
FORMATS = [
    ("f32", T.F32, 64, None),
    ("f16", T.F16, 32, range(0, 32, 2)),
    ("bf16", T.BF16, 32, None),
    ("q4_0", T.Q4_0, 18, [0]),
    ("q4_1", T.Q4_1, 20, [0, 2]),
    ("q5_0", T.Q5_0, 22, [0]),
    ("q5_1", T.Q5_1, 24, [0, 2]),
    ("q8_0", T.Q8_0, 34, [0]),
    ("q4_k", T.Q4_K, 144, [0, 2]),
    ("q5_k", T.Q5_K, 176, [0, 2]),
    ("q6_k", T.Q6_K, 210, [208]),
]

seed, blocks = int(sys.argv[1]), int(sys.argv[2])
random = np.random.default_rng(seed)
for name, qtype, size, halves in FORMATS:
    for index in range(blocks):
        if halves is None:
            # Every exponent but that of infinities and NaN.
            values = random.standard_normal(16) * 10.0 ** random.integers(-37, 37, 16)
            words = values.astype(np.float32).view(np.uint32)
            data = words if name == "f32" else (words >> 16).astype(np.uint16)
            data = data.view(np.uint8)
        else:
            data = random.integers(0, 256, size, dtype=np.uint8)
            for at in halves:
                # Subnormals and both signs among them.
                half = np.float16(random.standard_normal() * 10.0 ** random.integers(-7, 3))
                data[at : at + 2] = np.frombuffer(half.tobytes(), np.uint8)
        out = dequantize(data, qtype).astype(np.float32)
        print(name, data.tobytes().hex(), out.tobytes().hex())
