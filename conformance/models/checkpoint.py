"""Reads a committed model: variant, configuration and bfloat16 values, raised exactly."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from model import Config, LanguageModel


def load(path: Path, dtype: torch.dtype) -> LanguageModel:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name).to(dtype) for name in file.keys()}
    model = LanguageModel(metadata["kind"], Config.from_json(metadata["config"])).to(dtype)
    model.load_state_dict(weights)
    return model.eval()


def training(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["training"])
