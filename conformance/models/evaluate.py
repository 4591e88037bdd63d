"""Measures the committed models again, in float32 on the CPU.

    python3 evaluate.py                  # heldout.txt: seconds
    python3 evaluate.py --data DIR       # and heldout.bin, which prepare_data.py writes: minutes

Fails if a figure differs from the one the file carries by more than 1e-4 bits per byte; what may
differ is the order of float32 sums on a GPU and on a CPU.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch

from checkpoint import load, training
from heldout import bits_per_byte
from model import KINDS

HERE = Path(__file__).parent
TOLERANCE = 1e-4


def read(path: Path) -> torch.Tensor:
    """A text, refused unless it is the one that data.json names."""
    content = path.read_bytes()
    expected = json.loads((HERE / "data.json").read_text())[path.name]["sha256"]
    if hashlib.sha256(content).hexdigest() != expected:
        raise SystemExit(f"{path.name} is not the text that the figures were measured on")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder with heldout.bin")
    args = parser.parse_args()

    texts = [("heldout_txt_bits_per_byte", read(HERE / "heldout.txt"))]
    if args.data:
        texts.append(("heldout_bits_per_byte", read(args.data / "heldout.bin")))
    failed = False
    for kind in KINDS:
        path = HERE / f"{kind}.safetensors"
        model, recorded = load(path, torch.float32), training(path)
        for name, text in texts:
            measured = bits_per_byte(model, text, batch=4)
            agrees = abs(measured - recorded[name]) <= TOLERANCE
            failed |= not agrees
            verdict = "agrees" if agrees else "DIFFERS"
            figures = f"{measured:.6f}, file {recorded[name]:.6f}"
            print(f"{kind} {name}: {figures}, {verdict}", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
