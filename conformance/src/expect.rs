//! Known failures, as data: an engine, a trial, a reason.
//!
//! An entry is for a failure that is understood and cannot be mended now. It does not loosen
//! anything: the trial runs, and when it passes the entry is what fails. An entry that no trial
//! has the name of fails too.
//!
//! ```toml
//! [[failure]]
//! trial = "cuda/gla/page-of-one-token"
//! reason = "driver 999 miscompiles it: link"
//! ```

use serde::Deserialize;

/// One known failure.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownFailure {
    /// Full name of the trial.
    pub trial: String,
    /// Why it fails, and where that is followed up.
    pub reason: String,
}

/// All known failures of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownFailures {
    #[serde(default)]
    failure: Vec<KnownFailure>,
}

impl KnownFailures {
    /// Reads entries.
    ///
    /// # Errors
    /// Text that is not TOML of this form; an entry without a reason.
    pub fn parse(text: &str) -> Result<KnownFailures, String> {
        let known: KnownFailures = toml::from_str(text).map_err(|error| error.to_string())?;
        match known.failure.iter().find(|failure| failure.reason.trim().is_empty()) {
            Some(failure) => Err(format!("{} has no reason", failure.trial)),
            None => Ok(known),
        }
    }

    /// Why a trial is known to fail, if it is.
    pub fn reason(&self, trial: &str) -> Option<&str> {
        let known = self.failure.iter().find(|failure| failure.trial == trial);
        known.map(|failure| failure.reason.as_str())
    }

    /// Entries that name none of these trials.
    pub fn stale<'a>(&'a self, trials: &'a [String]) -> impl Iterator<Item = &'a str> {
        let names = self.failure.iter().map(|failure| failure.trial.as_str());
        names.filter(|name| !trials.iter().any(|trial| trial == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[failure]]\ntrial = 'a/b/c'\nreason = 'because'";

    #[test]
    fn entries_are_found_by_name_and_stale_ones_named() {
        let known = KnownFailures::parse(ONE).unwrap();
        assert_eq!(known.reason("a/b/c"), Some("because"));
        assert_eq!(known.reason("a/b"), None);
        assert_eq!(known.stale(&["a/b/c".into()]).count(), 0);
        assert_eq!(known.stale(&["a/b/d".into()]).collect::<Vec<_>>(), ["a/b/c"]);
    }

    #[test]
    fn an_entry_needs_a_reason() {
        assert!(KnownFailures::parse("[[failure]]\ntrial = 'a'\nreason = ' '").is_err());
        assert!(KnownFailures::parse("[[failure]]\ntrial = 'a'").is_err());
        assert!(KnownFailures::parse("").unwrap().failure.is_empty());
    }
}
