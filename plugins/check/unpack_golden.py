"""Turns the golden attention vectors (compressed .npz) into flat files that C++ reads directly.

    python plugins/check/unpack_golden.py ../shared/golden build/golden

A file holds int32 head_dim, heads, batch, static rows, real-time rows, candidate rows; float32
alpha, inv_n; int32 static, real-time, candidate offsets and real-time, candidate visible lengths;
float32 q, k, v, out [rows, heads, head_dim].
"""

import sys
from pathlib import Path

import numpy as np


def unpack(source: Path, target: Path) -> None:
    with np.load(source) as golden:
        rows, heads, head_dim = golden["q"].shape
        visible = [golden["rt_visible"], golden["candidate_visible"]]
        segments = [rows - sum(map(len, visible)), *map(len, visible)]
        batch = len(golden["static_offsets"]) - 1
        parts = [
            np.array([head_dim, heads, batch, *segments], np.int32),
            np.array([golden["alpha"], golden["inv_n"]], np.float32),
            *(golden[f"{name}_offsets"] for name in ("static", "rt", "candidate")),
            *visible,
            *(golden[name].astype(np.float32) for name in ("q", "k", "v", "out")),
        ]
        target.write_bytes(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))


def main(source: Path, target: Path) -> None:
    files = sorted(source.glob("attention_*.npz"))
    if not files:
        sys.exit(f"{source}: no attention_*.npz")
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        unpack(file, target / f"{file.stem}.bin")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
