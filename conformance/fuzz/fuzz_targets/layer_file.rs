//! Layer files: an error or a layer that can be computed in both forms, which agree; never a panic,
//! and no more memory than the file has a right to.
//!
//! An input that begins with 0 is a file behind that byte; any other describes a legal file and what
//! is done to it.
#![no_main]

use arbitrary::{Result, Unstructured};
use grouped_attention_conformance::file::{Form, LayerFile, Writer};
use grouped_attention_fuzz::file::{File, corrupt};
use grouped_attention_fuzz::memory::within;
use libfuzzer_sys::fuzz_target;

struct Weights<'a> {
    file: File,
    prefix: &'static str,
    format: u8,
    seed: u64,
    input: &'a mut Unstructured<'a>,
}

impl Weights<'_> {
    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, bias: bool) {
        self.seed = self.seed.wrapping_mul(0xd129_0d3e_a3b9_2d1d).wrapping_add(7);
        let weight = format!("{}{name}.weight", self.prefix);
        self.file.floats(&weight, self.format, &[outputs, inputs], self.seed);
        if bias {
            self.file.floats(
                &format!("{}{name}.bias", self.prefix),
                self.format,
                &[outputs],
                !self.seed,
            );
        }
    }

    fn norm(&mut self, name: &str, width: usize) {
        let weight = format!("{}{name}.weight", self.prefix);
        self.file.floats(&weight, self.format, &[width], self.seed ^ 1);
    }

    fn size(&mut self, most: usize) -> Result<usize> {
        self.input.int_in_range(1..=most)
    }

    fn layer(&mut self) -> Result<()> {
        let (d, h, group) = (self.size(6)?, self.size(2)?, self.size(3)?);
        let (h_q, bias) = (h * group, self.input.arbitrary()?);
        let r = 2 * self.size(2)?;
        let interleaved: bool = self.input.arbitrary()?;
        let common = format!(
            "\"hidden_size\":{d},\"num_attention_heads\":{h_q},\"attention_bias\":{bias},\
             \"rope_interleaved\":{interleaved},\"rope_theta\":100.0"
        );
        let kind = *self.input.choose(&["gqa", "gta", "mla", "gla"])?;
        let keys = match kind {
            "gqa" => {
                for (name, outputs) in [("q_proj", h_q * r), ("k_proj", h * r), ("v_proj", h * r)] {
                    self.linear(name, outputs, d, bias);
                }
                self.linear("o_proj", d, h_q * r, bias);
                format!("\"num_key_value_heads\":{h},\"head_dim\":{r}")
            }
            "gta" => {
                let s = 2 * r;
                self.linear("q_proj", h_q * s, d, bias);
                self.linear("kv_proj", h * s, d, bias);
                self.linear("W_rope_k", r, d, false);
                self.linear("o_proj", d, h_q * s, bias);
                format!("\"num_key_value_heads\":{h},\"head_dim\":{s}")
            }
            _ => self.latent(kind, [d, h, group, r], bias)?,
        };
        self.file.metadata.insert("kind".to_owned(), kind.to_owned());
        self.file.metadata.insert("config".to_owned(), format!("{{{common},{keys}}}"));
        let (b, length) = (self.input.int_in_range(0..=2)?, self.input.int_in_range(0..=4)?);
        self.file.floats("hidden_states", self.format / 4, &[b, length, d], self.seed);
        Ok(())
    }

    fn latent(&mut self, kind: &str, [d, h, group, r]: [usize; 4], bias: bool) -> Result<String> {
        let (d_c, d_h, d_v) = (self.size(4)?, self.size(3)?, self.size(3)?);
        let h_c = if kind == "mla" { 1 } else { h };
        let h_q = h * group;
        let direct: bool = self.input.arbitrary()?;
        let names = match kind {
            "mla" => ["q_a_proj", "q_a_layernorm", "q_b_proj"],
            _ => ["W_dQ", "q_norm", "W_uQ_rope"],
        };
        let mut rank = "null".to_owned();
        if direct {
            self.linear("q_proj", h_q * (d_h + r), d, kind == "gla" && bias);
        } else {
            self.linear(names[0], 3, d, kind == "mla" && bias);
            self.norm(names[1], 3);
            self.linear(names[2], h_q * (d_h + r), 3, false);
            rank = "3".to_owned();
        }
        if kind == "mla" {
            self.linear("kv_a_proj_with_mqa", d_c + r, d, bias);
            self.norm("kv_a_layernorm", d_c);
            self.linear("kv_b_proj", h_q * (d_h + d_v), d_c, false);
        } else {
            self.linear("W_dKV", h_c * d_c + r, d, false);
            for g in 1..=h_c {
                self.norm(&format!("kv_norm_{g}"), d_c);
                self.linear(&format!("W_ukv_{g}"), h_q / h_c * (d_h + d_v), d_c, false);
            }
        }
        self.linear("o_proj", d, h_q * d_v, bias);
        Ok(format!(
            "\"num_latent_heads\":{h_c},\"kv_lora_rank\":{d_c},\"qk_nope_head_dim\":{d_h},\
             \"qk_rope_head_dim\":{r},\"v_head_dim\":{d_v},\"q_lora_rank\":{rank}"
        ))
    }
}

/// The file, and whether it must be accepted.
fn file(data: &[u8]) -> Option<(Vec<u8>, bool)> {
    let (&kind, rest) = data.split_first()?;
    if kind == 0 {
        return Some((rest.to_vec(), false));
    }
    let (&options, rest) = rest.split_first()?;
    let (described, changes) = rest.split_at(rest.len() / 2);
    let mut input = Unstructured::new(described);
    let prefix = if options & 1 == 0 { "" } else { "model.layers.3.self_attn." };
    let mut weights =
        Weights { file: File::default(), prefix, format: options, seed: 5, input: &mut input };
    weights.layer().ok()?;
    let mut file = weights.file;
    let mut changes = Unstructured::new(changes);
    let mutations = usize::from(kind % 4);
    for _ in 0..mutations {
        file.mutate(&mut changes).ok()?;
    }
    let edits = usize::from(kind / 4 % 4);
    let mut bytes = file.to_bytes();
    corrupt(&mut bytes, edits, &mut changes).ok()?;
    // Halves are drawn as bits, and some of those are not finite or overflow in a norm.
    Some((bytes, mutations + edits == 0 && options % 4 != 2))
}

fuzz_target!(|data: &[u8]| {
    let Some((bytes, must)) = file(data) else { return };
    within(bytes.len(), || {
        let layer = match LayerFile::parse(&bytes, None) {
            Ok(layer) => layer,
            Err(error) => {
                assert!(!must, "{error}");
                assert!(!error.to_string().is_empty());
                return;
            }
        };
        let trained = layer.run(Form::Trained).expect("what parses can be computed");
        let absorbed = layer.run(Form::Absorbed).expect("what parses can be computed");
        let mut writer = Writer::new();
        trained.write_to(&mut writer);
        writer.to_bytes();
        assert_eq!(trained.output().len(), absorbed.output().len());
        if must {
            let largest = trained.output().iter().fold(1.0, |max: f64, x| max.max(x.abs()));
            for (a, b) in trained.output().iter().zip(absorbed.output()) {
                assert!((a - b).abs() <= 1e-9 * largest, "{a} as trained, {b} absorbed");
            }
        }
    });
});
