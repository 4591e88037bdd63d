//! Lines of cases: an error or a case that prints as a line which is read as the same case.
#![no_main]

use grouped_attention_conformance::Case;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    if let Ok(case) = line.parse::<Case>() {
        let printed = case.to_string();
        assert_eq!(printed.parse::<Case>().as_ref(), Ok(&case), "{printed}");
    }
});
