//! Lines of cases: an error or a case that prints as a line which is read and prints the same.
#![no_main]

use grouped_attention_conformance::Case;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    if let Ok(case) = line.parse::<Case>() {
        let printed = case.to_string();
        let again = printed.parse::<Case>().expect("a printed case is a case");
        assert_eq!(again.to_string(), printed);
    }
});
