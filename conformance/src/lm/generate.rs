//! Generating text, with or without speculation.

use super::decoder::{DecodeError, Timing};
use super::draft::prompt_lookup;
use super::model::{Model, VOCABULARY};
use super::sample::{Sampler, margin};
use super::session::Session;
use grouped_attention::{Backend, Dtype};

/// How text is generated.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes to generate.
    pub tokens: usize,
    /// 0 takes the likeliest byte each time.
    pub temperature: f64,
    /// Decides the draws.
    pub seed: u64,
    /// Tokens per page.
    pub page_size: usize,
    /// Longest draft that is checked in one step; 0 decodes byte by byte.
    pub speculate: usize,
    /// Format of queries and caches.
    pub dtype: Dtype,
}

/// What came out, and what it took.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The bytes after the prompt.
    pub text: Vec<u8>,
    /// Steps after the prompt's own.
    pub steps: usize,
    /// Drafted bytes that were checked.
    pub drafted: usize,
    /// Drafted bytes that were accepted.
    pub accepted: usize,
    /// Time of the prompt's step.
    pub prompt: Timing,
    /// Time of the steps after it.
    pub decode: Timing,
    /// The closest that any greedy choice was, in logits: below this difference between engines
    /// all of them choose the same bytes.
    pub margin: f64,
}

/// Continues `prompt`, handing each byte to `emit` as soon as it is certain.
///
/// A draft of up to `speculate` bytes is checked together with the last certain byte in one step of
/// several queries. Each byte is drawn from the logits before it, in order, exactly as without
/// drafts; the draft is accepted as far as it agrees, and the rest is truncated from the caches. So
/// the text is the same for any `speculate`, sampling included, if the engine gives a row the same bits whatever stands
/// beside it; if it adds up in another order then, up to the first choice that is closer than that rounding, see
/// [`Generation::margin`].
///
/// # Errors
/// A failing engine. An empty prompt is continued from a newline.
pub fn generate<B: Backend>(
    model: &Model,
    backend: &B,
    prompt: &[u8],
    options: &Options,
    mut emit: impl FnMut(u8),
) -> Result<Generation, DecodeError> {
    let mut text = if prompt.is_empty() { vec![b'\n'] } else { prompt.to_vec() };
    let start = text.len();
    let room = start + options.tokens + options.speculate;
    let mut session = Session::new(model, backend, options.dtype, options.page_size, room)?;
    let mut sampler = Sampler::new(options.temperature, options.seed);
    let mut logits = session.step(&text)?; // [T, 256]
    let mut out = Generation {
        text: Vec::new(),
        steps: 0,
        drafted: 0,
        accepted: 0,
        prompt: session.timing(),
        decode: Timing::default(),
        margin: f64::INFINITY,
    };
    // Logits of the certain bytes' last one, then those of each drafted byte.
    let mut draft: Vec<u8> = Vec::new();
    loop {
        let certain = text.len();
        let rows = logits.len() / VOCABULARY - draft.len() - 1;
        for row in rows.. {
            if text.len() == start + options.tokens {
                break;
            }
            let logits = &logits[row * VOCABULARY..][..VOCABULARY];
            let byte = sampler.next(logits);
            out.margin = out.margin.min(margin(logits));
            text.push(byte);
            emit(byte);
            match draft.get(row - rows) {
                Some(&drafted) if drafted == byte => out.accepted += 1,
                _ => break,
            }
        }
        if text.len() == start + options.tokens {
            break;
        }
        // The last byte drawn has no row in the caches yet; everything before it agrees.
        session.truncate(text.len() - 1)?;
        debug_assert!(text.len() > certain);
        let most = options.speculate.min(start + options.tokens - text.len() - 1);
        draft = prompt_lookup(&text, most).to_vec();
        let fresh: Vec<u8> = text[text.len() - 1..].iter().chain(&draft).copied().collect();
        logits = session.step(&fresh)?;
        out.steps += 1;
        out.drafted += draft.len();
    }
    out.text = text.split_off(start);
    let total = session.timing();
    out.decode = Timing {
        attention: total.attention - out.prompt.attention,
        dense: total.dense - out.prompt.dense,
    };
    Ok(out)
}
