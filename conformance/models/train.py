"""Trains the four models, all variants and seeds side by side on one GPU.

    python3 train.py --data DIR --out DIR --variants gqa,gta,mla,gla --seeds 0,1 --minutes 6.3

DIR is what prepare_data.py wrote. Every run takes the same number of steps: `--steps`, or fewer if
the slowest run, timed with all of them at work, would not fit into `--minutes`. The checkpoint with
the lowest validation loss is kept and rounded to bfloat16; only then is it measured on the held-out
text, which decides nothing. The first seed's models are written as <variant>.safetensors.
"""

import argparse
import hashlib
import json
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import save_file

from heldout import bits_per_byte
from model import CONFIGS, LanguageModel

CALIBRATION_STEPS = 60
WARMUP_STEPS = 200
VALIDATIONS = 24
# Seconds kept back for rounding, measuring on the held-out text and saving.
CLOSING = 15.0


@dataclass(frozen=True)
class Settings:
    data: Path
    out: Path
    device: str
    steps: int
    deadline: float
    batch: int
    context: int
    peak_rate: float
    dropout: float
    weight_decay: float
    compile: bool
    writes_seed: int


@dataclass(frozen=True)
class Run:
    kind: str
    seed: int
    index: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.seed}"


class Pace:
    """Agrees on one step count for all runs, from times measured while all of them are at work."""

    def __init__(self, context, runs: int, settings: Settings):
        self.barrier = context.Barrier(runs)
        self.times = context.Array("d", runs)
        self.steps = context.Value("i", 0)
        self.settings = settings

    def wait(self) -> None:
        try:
            self.barrier.wait(timeout=150)
        except threading.BrokenBarrierError:
            pass  # a run has died; the others keep to the deadline by themselves

    def agree(self, run: Run, seconds_per_step: float) -> int:
        self.times[run.index] = seconds_per_step
        self.wait()
        # 0.9: validation takes about a tenth beside the steps.
        left = self.settings.deadline - CLOSING - time.time()
        steps = min(self.settings.steps, CALIBRATION_STEPS + int(0.9 * left / max(self.times)))
        with self.steps.get_lock():
            self.steps.value = self.steps.value or steps  # whoever comes first decides for all
            return self.steps.value


def load(path: Path, device: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).to(device)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    progress = min(1.0, (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    def __init__(self, run: Run, settings: Settings):
        self.run, self.settings = run, settings
        device = settings.device
        torch.manual_seed(run.seed)
        self.model = LanguageModel(run.kind, CONFIGS[run.kind], settings.dropout).to(device)
        self.text = load(settings.data / "train.bin", device)
        self.validation = load(settings.data / "validation.bin", device)
        self.offsets = torch.Generator().manual_seed(run.seed)
        self.optimizer = torch.optim.AdamW(
            self.parameter_groups(), betas=(0.9, 0.95), fused=device == "cuda"
        )
        self.best, self.best_bits = None, math.inf
        self.curve: list[dict] = []

    def parameter_groups(self) -> list[dict]:
        weights = list(self.model.parameters())
        matrices = [w for w in weights if w.dim() == 2]
        gains = [w for w in weights if w.dim() == 1]
        decay = self.settings.weight_decay
        return [{"params": matrices, "weight_decay": decay}, {"params": gains, "weight_decay": 0.0}]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.settings.device, dtype=torch.bfloat16)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        span = self.settings.context + 1
        shape = (self.settings.batch, 1)
        starts = torch.randint(self.text.numel() - span, shape, generator=self.offsets)
        places = starts + torch.arange(span)
        window = self.text[places.to(self.text.device, non_blocking=True)].long()
        return window[:, :-1], window[:, 1:]

    def step(self, rate: float) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = self.batch()
        with self.autocast():
            logits = self.model(inputs)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def compile(self) -> bool:
        """Compiles one layer (all six share the code); goes on without if that fails."""
        layers = self.model.model.layers
        for layer in layers:
            layer.compile()
        try:
            with self.autocast():
                logits = self.model(self.batch()[0])
            logits.float().logsumexp(-1).sum().backward()
            return True
        except Exception as error:  # a compiler's failure can be of any type
            print(f"{self.run}: not compiled: {str(error)[:400]}", flush=True)
            for layer in layers:
                layer._compiled_call_impl = None
            return False
        finally:
            self.model.zero_grad(set_to_none=True)

    def validate(self, step: int, train_bits: float, started: float) -> None:
        self.model.eval()
        compiled = [layer._compiled_call_impl for layer in self.model.model.layers]
        # Compiling the inference graph as well would cost more than these few passes do.
        for layer in self.model.model.layers:
            layer._compiled_call_impl = None
        with self.autocast():
            bits = bits_per_byte(self.model, self.validation)
        for layer, call in zip(self.model.model.layers, compiled):
            layer._compiled_call_impl = call
        self.model.train()
        if bits < self.best_bits:
            self.best_bits = bits
            self.best = {
                n: w.detach().to(torch.bfloat16) for n, w in self.model.named_parameters()
            }
            self.keep_for_a_crash()
        seconds = round(time.time() - started, 1)
        point = {"step": step, "train": train_bits, "validation": bits, "seconds": seconds}
        self.curve.append(point)
        print(f"{self.run}: {json.dumps(point)}", flush=True)

    def partial_path(self) -> Path:
        return self.settings.out / f"{self.run.kind}.partial.safetensors"

    def keep_for_a_crash(self) -> None:
        """The best so far, without the held-out figures that a finished file carries."""
        if self.run.seed == self.settings.writes_seed:
            weights = {name: w.cpu().contiguous() for name, w in self.best.items()}
            metadata = {"kind": self.run.kind, "config": CONFIGS[self.run.kind].to_json()}
            save_file(weights, self.partial_path(), metadata=metadata)

    def train(self, pace: Pace) -> dict:
        settings, started = self.settings, time.time()
        self.model.train()
        compiled = settings.compile and self.compile()
        self.step(0.0)
        pace.wait()
        steps, begun, losses, every = settings.steps, time.time(), [], 0
        step = 0
        while step < steps and time.time() < settings.deadline - CLOSING:
            losses.append(self.step(learning_rate(step, steps, settings.peak_rate)))
            step += 1
            if step == CALIBRATION_STEPS:
                losses[-1].item()  # waits for the device
                steps = pace.agree(self.run, (time.time() - begun) / step)
                every = max(1, steps // VALIDATIONS)
            if step == steps or (every and step % every == 0):
                bits = torch.stack(losses).mean().item() / math.log(2)
                self.validate(step, bits, started)
                losses = []
            elif step % 8 == 0:
                losses[-1].item()  # keeps the clock that ends the loop honest
        if losses:
            self.validate(step, torch.stack(losses).mean().item() / math.log(2), started)
        return {
            "steps": step,
            "planned_steps": steps,
            "compiled": compiled,
            "training_seconds": round(time.time() - started, 1),
            "validation_bits_per_byte": self.best_bits,
        }


def kept_model(trainer: Trainer) -> LanguageModel:
    """A float32 model that has exactly the kept bfloat16 values."""
    model = LanguageModel(trainer.run.kind, CONFIGS[trainer.run.kind])
    model.load_state_dict({name: w.float() for name, w in trainer.best.items()})
    return model.to(trainer.settings.device).eval()


def work(run: Run, settings: Settings, pace: Pace) -> None:
    if settings.device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        torch.set_num_threads(1)
    trainer = Trainer(run, settings)
    result = trainer.train(pace)
    model = kept_model(trainer)
    sample = load(settings.data / "heldout.txt", settings.device)
    heldout = load(settings.data / "heldout.bin", settings.device)
    facts = json.loads((settings.data / "data.json").read_text())
    result = {
        "kind": run.kind,
        "seed": run.seed,
        "parameters": model.parameter_count(),
        **result,
        "batch": settings.batch,
        "context": settings.context,
        "heldout_bits_per_byte": bits_per_byte(model, heldout),
        "heldout_txt_bits_per_byte": bits_per_byte(model, sample),
        "data_sha256": facts["corpus"]["sha256"],
    }
    if run.seed == settings.writes_seed:
        path = settings.out / f"{run.kind}.safetensors"
        metadata = {
            "kind": run.kind,
            "config": CONFIGS[run.kind].to_json(),
            "training": json.dumps(result, sort_keys=True),
        }
        weights = {name: w.cpu().contiguous() for name, w in trainer.best.items()}
        save_file(weights, path, metadata=metadata)
        trainer.partial_path().unlink()
        result["file_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    report = settings.out / "runs" / f"{run}.json"
    report.write_text(json.dumps({**result, "curve": trainer.curve}))
    print(f"{run}: done {json.dumps(result)}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", default="gqa,gta,mla,gla")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--minutes", type=float, default=6.5)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--peak-rate", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    (args.out / "runs").mkdir(parents=True, exist_ok=True)
    settings = Settings(
        data=args.data,
        out=args.out,
        device=args.device,
        steps=args.steps,
        deadline=time.time() + 60 * args.minutes,
        batch=args.batch,
        context=args.context,
        peak_rate=args.peak_rate,
        dropout=args.dropout,
        weight_decay=args.weight_decay,
        compile=args.compile,
        writes_seed=seeds[0],
    )
    kinds = args.variants.split(",")
    runs = [Run(k, s, i) for i, (s, k) in enumerate((s, k) for s in seeds for k in kinds)]
    context = mp.get_context("spawn")
    pace = Pace(context, len(runs), settings)
    workers = [context.Process(target=work, args=(run, settings, pace)) for run in runs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    reports = [settings.out / "runs" / f"{run}.json" for run in runs]
    results = [json.loads(path.read_text()) for path in reports if path.exists()]
    (args.out / "training.json").write_text(json.dumps(results, indent=1) + "\n")
    for r in results:
        print(
            f"{r['kind']} seed {r['seed']}: {r['parameters']} parameters, {r['steps']} steps, "
            f"held out {r['heldout_bits_per_byte']:.4f}, heldout.txt "
            f"{r['heldout_txt_bits_per_byte']:.4f}, validation "
            f"{r['validation_bits_per_byte']:.4f} bits per byte"
        )
    if len(results) < len(runs):
        raise SystemExit(f"{len(runs) - len(results)} of {len(runs)} runs failed")


if __name__ == "__main__":
    main()
