"""One small byte-level transformer, and the four attention variants that fill its attention slot.

Everything but attention is a Llama block (RMSNorm before, SwiGLU, tied embedding). Parameter names
are the published ones: Llama's, DeepSeek-V2/V3's for MLA, and those of the paper's model files for
GTA and GLA. This is the form that is trained: keys and values of every head are built in full.
"""

import json
import math
from dataclasses import asdict, dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("gqa", "gta", "mla", "gla")


@dataclass(frozen=True)
class Config:
    """HuggingFace's keys, None where a variant has no use for one.

    `kv_lora_rank` is the width of ONE latent head.
    """

    intermediate_size: int
    num_key_value_heads: int | None = None
    num_latent_heads: int | None = None
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int = 32
    head_dim: int = 32
    rope_interleaved: bool = False
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    vocab_size: int = 256
    rope_theta: float = 10000.0
    rope_scaling: None = None
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    hidden_act: str = "silu"

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Config":
        return Config(**json.loads(text))


# The MLP width makes up for what attention does not use, in multiples of 8: the four totals lie
# within 0.4 % of each other.
CONFIGS = {
    "gqa": Config(
        intermediate_size=568, num_key_value_heads=4, qk_nope_head_dim=0, qk_rope_head_dim=32
    ),
    "gta": Config(
        intermediate_size=608, num_key_value_heads=4, qk_nope_head_dim=16, qk_rope_head_dim=16
    ),
    "mla": Config(
        intermediate_size=528,
        num_latent_heads=1,
        kv_lora_rank=128,
        q_lora_rank=96,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        rope_interleaved=True,
    ),
    "gla": Config(
        intermediate_size=568,
        num_latent_heads=2,
        kv_lora_rank=64,
        q_lora_rank=96,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
    ),
}


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@cache
def rope_table(
    width: int, length: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin, [length, width / 2] each; angles are formed in float64 and rounded once."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = torch.outer(torch.arange(length, dtype=torch.float64), theta**-exponents)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def rotate_half_split(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs are (i, i + r/2). x: [batch, heads, length, r]."""
    cos, sin = rope
    a, b = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def rotate_interleaved(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs are (2i, 2i + 1), and stay there. x: [batch, heads, length, r]."""
    cos, sin = rope
    a, b = x.to(cos.dtype)[..., 0::2], x.to(cos.dtype)[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * d] -> [batch, heads, length, d]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Query head i reads cached head floor(i / g)."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, scale 1/sqrt(width of K); heads are joined again: [batch, length, h_q * d_v]."""
    # Flash attention asks for one width; zero columns of V give zero columns of the output.
    widened = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
    scale = 1.0 / math.sqrt(k.shape[-1])
    out = F.scaled_dot_product_attention(q, k, widened, is_causal=True, scale=scale)
    return out[..., : v.shape[-1]].transpose(1, 2).flatten(2)


class Gqa(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.h_q, self.h_kv = c.num_attention_heads, c.num_key_value_heads
        self.q_proj = linear(c.hidden_size, self.h_q * c.head_dim)
        self.k_proj = linear(c.hidden_size, self.h_kv * c.head_dim)
        self.v_proj = linear(c.hidden_size, self.h_kv * c.head_dim)
        self.o_proj = linear(self.h_q * c.head_dim, c.hidden_size)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q = rotate_half_split(split_heads(self.q_proj(x), self.h_q), rope)
        k = rotate_half_split(split_heads(self.k_proj(x), self.h_kv), rope)
        v = split_heads(self.v_proj(x), self.h_kv)
        return self.o_proj(attend(q, repeat_heads(k, self.h_q), repeat_heads(v, self.h_q)))


class Gta(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.h_q, self.h_kv = c.num_attention_heads, c.num_key_value_heads
        self.n, self.r = c.qk_nope_head_dim, c.qk_rope_head_dim
        self.q_proj = linear(c.hidden_size, self.h_q * c.head_dim)
        self.kv_proj = linear(c.hidden_size, self.h_kv * c.head_dim)
        self.W_rope_k = linear(c.hidden_size, self.r)
        self.o_proj = linear(self.h_q * c.head_dim, c.hidden_size)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q_nope, q_rope = split_heads(self.q_proj(x), self.h_q).split([self.n, self.r], dim=-1)
        q = torch.cat([q_nope, rotate_half_split(q_rope, rope)], dim=-1)
        v = repeat_heads(split_heads(self.kv_proj(x), self.h_kv), self.h_q)
        k_rope = rotate_half_split(split_heads(self.W_rope_k(x), 1), rope)
        k = torch.cat([v[..., : self.n], repeat_heads(k_rope, self.h_q)], dim=-1)
        return self.o_proj(attend(q, k, v))


class Mla(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.h_q, self.d_c = c.num_attention_heads, c.kv_lora_rank
        self.n, self.r, self.d_v = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        self.q_a_proj = linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RmsNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = linear(c.q_lora_rank, self.h_q * (self.n + self.r))
        self.kv_a_proj_with_mqa = linear(c.hidden_size, self.d_c + self.r)
        self.kv_a_layernorm = RmsNorm(self.d_c, c.rms_norm_eps)
        self.kv_b_proj = linear(self.d_c, self.h_q * (self.n + self.d_v))
        self.o_proj = linear(self.h_q * self.d_v, c.hidden_size)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q = split_heads(self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))), self.h_q)
        q_nope, q_rope = q.split([self.n, self.r], dim=-1)
        q = torch.cat([q_nope, rotate_interleaved(q_rope, rope)], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.d_c, self.r], dim=-1)
        kv = split_heads(self.kv_b_proj(self.kv_a_layernorm(latent)), self.h_q)
        k_nope, v = kv.split([self.n, self.d_v], dim=-1)
        k_rope = rotate_interleaved(split_heads(k_rope, 1), rope)
        k = torch.cat([k_nope, repeat_heads(k_rope, self.h_q)], dim=-1)
        return self.o_proj(attend(q, k, v))


class Gla(nn.Module):
    """Two latent heads: the first serves the first half of the query heads, the second the rest."""

    def __init__(self, c: Config):
        super().__init__()
        self.h_q, self.d_c = c.num_attention_heads, c.kv_lora_rank
        self.n, self.r, self.d_v = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        group = self.h_q // c.num_latent_heads
        self.W_dQ = linear(c.hidden_size, c.q_lora_rank)
        self.q_norm = RmsNorm(c.q_lora_rank, c.rms_norm_eps)
        self.W_uQ_rope = linear(c.q_lora_rank, self.h_q * (self.n + self.r))
        self.W_dKV = linear(c.hidden_size, c.num_latent_heads * self.d_c + self.r)
        self.kv_norm_1 = RmsNorm(self.d_c, c.rms_norm_eps)
        self.kv_norm_2 = RmsNorm(self.d_c, c.rms_norm_eps)
        self.W_ukv_1 = linear(self.d_c, group * (self.n + self.d_v))
        self.W_ukv_2 = linear(self.d_c, group * (self.n + self.d_v))
        self.o_proj = linear(self.h_q * self.d_v, c.hidden_size)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q = split_heads(self.W_uQ_rope(self.q_norm(self.W_dQ(x))), self.h_q)
        q_nope, q_rope = q.split([self.n, self.r], dim=-1)
        q = torch.cat([q_nope, rotate_half_split(q_rope, rope)], dim=-1)
        latent_1, latent_2, k_rope = self.W_dKV(x).split([self.d_c, self.d_c, self.r], dim=-1)
        kv_1 = self.W_ukv_1(self.kv_norm_1(latent_1))
        kv_2 = self.W_ukv_2(self.kv_norm_2(latent_2))
        kv = split_heads(torch.cat([kv_1, kv_2], dim=-1), self.h_q)
        k_nope, v = kv.split([self.n, self.d_v], dim=-1)
        k_rope = rotate_half_split(split_heads(k_rope, 1), rope)
        k = torch.cat([k_nope, repeat_heads(k_rope, self.h_q)], dim=-1)
        return self.o_proj(attend(q, k, v))


ATTENTION = {"gqa": Gqa, "gta": Gta, "mla": Mla, "gla": Gla}


class Mlp(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = linear(c.hidden_size, c.intermediate_size)
        self.up_proj = linear(c.hidden_size, c.intermediate_size)
        self.down_proj = linear(c.intermediate_size, c.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, kind: str, c: Config, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = ATTENTION[kind](c)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Mlp(c)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), rope)
        x = x + F.dropout(attended, self.dropout, self.training)
        widened = self.mlp(self.post_attention_layernorm(x))
        return x + F.dropout(widened, self.dropout, self.training)


class Model(nn.Module):
    """What a checkpoint calls `model.`: embedding, layers, last norm."""

    def __init__(self, kind: str, c: Config, dropout: float):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(kind, c, dropout) for _ in range(c.num_hidden_layers))
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps)


class LanguageModel(nn.Module):
    def __init__(self, kind: str, config: Config, dropout: float = 0.0):
        super().__init__()
        self.kind, self.config = kind, config
        self.model = Model(kind, config, dropout)
        self.initialise()

    def initialise(self) -> None:
        """1/sqrt(fan-in), and the two maps into the residual stream smaller by sqrt(2 * layers)."""
        depth = math.sqrt(2 * self.config.num_hidden_layers)
        for name, weight in self.named_parameters():
            if "embed_tokens" in name:
                nn.init.normal_(weight, std=0.05)
            elif weight.dim() == 2:
                shrink = depth if "o_proj" in name or "down_proj" in name else 1.0
                nn.init.normal_(weight, std=1.0 / (math.sqrt(weight.shape[1]) * shrink))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [batch, length] -> logits: [batch, length, 256]"""
        weight = self.model.embed_tokens.weight
        c, length = self.config, tokens.shape[1]
        rope = rope_table(c.qk_rope_head_dim, length, c.rope_theta, weight.device, weight.dtype)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, rope)
        return F.linear(self.model.norm(x), weight)

    def parameter_count(self) -> int:
        return sum(weight.numel() for weight in self.parameters())
