"""Writes vectors.safetensors: logits of every committed model for one text, in float64.

    python3 vectors.py

`<kind>.tokens` is i32 [48], `<kind>.logits` f64 [48, 256]. Weights are the file's bfloat16 values
and every operation, norms, rope angles and softmax included, is carried out in float64.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from checkpoint import load
from model import KINDS

HERE = Path(__file__).parent
TEXTS = {
    "gqa": b"And the LORD spake unto Moses, saying, Go in unt",
    "gta": b"ROMEO.\nBut, soft! what light through yonder wind",
    "mla": b"Blessed are the meek: for they shall inherit the",
    "gla": b"In the beginning was the Word, and the Word was ",
}


@torch.no_grad()
def main() -> None:
    tensors = {}
    for kind in KINDS:
        tokens = torch.tensor(list(TEXTS[kind]), dtype=torch.int32)
        model = load(HERE / f"{kind}.safetensors", torch.float64)
        tensors[f"{kind}.tokens"] = tokens
        tensors[f"{kind}.logits"] = model(tokens[None].long())[0].contiguous()
    save_file(tensors, HERE / "vectors.safetensors")


if __name__ == "__main__":
    main()
