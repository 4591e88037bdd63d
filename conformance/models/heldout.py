"""Bits per byte of a text: windows of 2048 bytes that do not overlap, each one starting afresh.

The first byte of a window has no context and is not scored, so a full window scores 2047 bytes; a
shorter last window is scored the same way. The figure is the mean over all scored bytes.
"""

import math

import torch
import torch.nn.functional as F

from model import LanguageModel

WINDOW = 2048


@torch.no_grad()
def bits_per_byte(model: LanguageModel, text: torch.Tensor, batch: int = 16) -> float:
    """text: [bytes], uint8, on the model's device. Losses are summed in float64."""
    whole = text.numel() // WINDOW
    batches = list(text[: whole * WINDOW].view(whole, WINDOW).split(batch))
    if text.numel() - whole * WINDOW > 1:
        batches.append(text[None, whole * WINDOW :])
    nats, scored = 0.0, 0
    for tokens in batches:
        tokens = tokens.long()
        logits = model(tokens[:, :-1]).float()
        losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        nats += losses.double().sum().item()
        scored += losses.numel()
    return nats / scored / math.log(2)
