"""Continues a prompt greedily with the committed models, in float32, without any cache.

    python3 sample.py --prompt "In the beginning" --bytes 160

Also prints the smallest gap between the two largest logits on the way: below about 1e-3 another
order of float32 sums may choose the other byte.
"""

import argparse
from pathlib import Path

import torch

from checkpoint import load
from model import KINDS

HERE = Path(__file__).parent


@torch.no_grad()
def continue_greedily(model: torch.nn.Module, prompt: bytes, count: int) -> tuple[bytes, float]:
    tokens = torch.tensor([list(prompt)])
    margin = float("inf")
    for _ in range(count):
        values, places = model(tokens)[0, -1].topk(2)
        margin = min(margin, (values[0] - values[1]).item())
        tokens = torch.cat([tokens, places[:1].view(1, 1)], dim=1)
    return bytes(tokens[0].tolist()), margin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt", default="In the beginning")
    parser.add_argument("--bytes", type=int, default=160)
    args = parser.parse_args()
    for kind in KINDS:
        model = load(HERE / f"{kind}.safetensors", torch.float32)
        text, margin = continue_greedily(model, args.prompt.encode(), args.bytes)
        print(f"[{kind}, smallest margin {margin:.4f}]\n{text.decode(errors='replace')}\n")


if __name__ == "__main__":
    main()
