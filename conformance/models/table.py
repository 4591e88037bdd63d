"""Prints quality.json as the Markdown table of docs/quality.md."""

import json
from pathlib import Path


def main():
    quality = json.loads((Path(__file__).parent / "quality.json").read_text())
    variants = quality["variants"]
    seeds = [f"seed {seed}" for seed in variants["gqa"]["seeds"]]
    print("| |", " | ".join([*seeds, "mean", "variance", "standard deviation"]), "| cached elements |")
    print("|---|" + "---:|" * (len(seeds) + 4))
    for name, variant in variants.items():
        cells = [f"{bits:.4f}" for bits in variant["heldout"]]
        cells += [f"{variant['heldout_mean']:.4f}", f"{variant['heldout_variance']:.6f}"]
        cells += [f"{variant['heldout_sample_std']:.4f}"]
        cells += [str(variant["cache_elements_per_token_per_layer"])]
        print(f"| {name.upper()} |", " | ".join(cells), "|")
    means = [variant["heldout_mean"] for variant in variants.values()]
    apart = [max(variant["heldout"]) - min(variant["heldout"]) for variant in variants.values()]
    print()
    print(f"* Largest difference between two seeds of one variant: {max(apart):.4f}.")
    print(f"* Largest difference between the means of two variants: {max(means) - min(means):.4f}.")
    print(f"* Standard deviation over seeds, pooled: {quality['pooled_std_over_seeds']:.4f}.")


main()
