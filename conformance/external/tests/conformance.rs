use grouped_attention_conformance::engine;
use std::process::ExitCode;

fn main() -> ExitCode {
    grouped_attention_conformance::main(vec![engine("naive", || Ok(naive_attention::Naive))], "")
}
