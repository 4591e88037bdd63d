//! Named cases, kept as data: every bug becomes one.
//!
//! A file of the corpus is TOML, one table a case:
//!
//! ```toml
//! [[case]]
//! name = "empty-rows-before-the-first-token"
//! why = "q_len > kv_len under causal leaves the first rows with nothing to see [S-3.8]"
//! line = "mqa h_q=3 h=1 d_k=4 d_v=4 page=2 q=5 kv=3 scale=0.5"
//! ```

use crate::case::{Case, InvalidCase};
use serde::Deserialize;

/// A case with a name and a reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Unique within the corpus.
    pub name: String,
    /// What goes wrong without it.
    pub why: String,
    /// The case.
    pub case: Case,
}

/// Files of the corpus, by theme.
const FILES: [(&str, &str); 7] = [
    ("heads", include_str!("../../corpus/heads.toml")),
    ("paging", include_str!("../../corpus/paging.toml")),
    ("sizes", include_str!("../../corpus/sizes.toml")),
    ("speculative", include_str!("../../corpus/speculative.toml")),
    ("empty", include_str!("../../corpus/empty.toml")),
    ("numbers", include_str!("../../corpus/numbers.toml")),
    ("regression", include_str!("../../corpus/regression.toml")),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    case: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    why: String,
    line: String,
}

/// Every case of the corpus.
///
/// # Errors
/// A file that is not TOML of this form, a line that is no case, a name that is there twice.
pub fn corpus() -> Result<Vec<Named>, InvalidCorpus> {
    let mut all: Vec<Named> = Vec::new();
    for (file, text) in FILES {
        for named in parse(file, text)? {
            if all.iter().any(|other| other.name == named.name) {
                return Err(InvalidCorpus::Twice { name: named.name });
            }
            all.push(named);
        }
    }
    Ok(all)
}

/// The case of this name.
///
/// # Errors
/// As [`corpus`]; no such name.
pub fn find(name: &str) -> Result<Named, InvalidCorpus> {
    let unknown = InvalidCorpus::Unknown { name: name.to_owned() };
    corpus()?.into_iter().find(|named| named.name == name).ok_or(unknown)
}

fn parse(file: &'static str, text: &str) -> Result<Vec<Named>, InvalidCorpus> {
    let parsed: File = toml::from_str(text)
        .map_err(|error| InvalidCorpus::Toml { file, message: error.to_string() })?;
    let named = |Entry { name, why, line }: Entry| match line.parse::<Case>() {
        Ok(case) => Ok(Named { name, why, case }),
        Err(error) => Err(InvalidCorpus::Case { name, error: Box::new(error) }),
    };
    parsed.case.into_iter().map(named).collect()
}

/// Why files are not a corpus.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCorpus {
    /// Not TOML, or not of this form.
    #[error("corpus/{file}.toml: {message}")]
    Toml {
        /// The file.
        file: &'static str,
        /// The parser's words.
        message: String,
    },
    /// A line that is no case.
    #[error("{name}: {error}")]
    Case {
        /// The entry.
        name: String,
        /// What is wrong with its line.
        error: Box<InvalidCase>,
    },
    /// Two cases of one name.
    #[error("{name} is in the corpus twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// No case of this name.
    #[error("{name} is not in the corpus")]
    Unknown {
        /// The name.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Script;

    #[test]
    fn every_entry_is_a_legal_case_with_a_reason() {
        let all = corpus().unwrap();
        assert!(all.len() >= 40, "{}", all.len());
        for Named { name, why, case } in &all {
            assert!(why.len() > 20, "{name} has no reason");
            assert!(
                name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
            );
            assert!(case.far || Script::new(case).is_ok(), "{name}: {:?}", Script::new(case).err());
            assert_eq!(case.to_string().parse::<Case>().as_ref(), Ok(case), "{name}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = parse("heads", "[[case]]\nname='a'\nwhy='b'\nlines='c'").unwrap_err();
        assert!(matches!(error, InvalidCorpus::Toml { file: "heads", .. }));
    }
}
