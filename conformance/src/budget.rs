//! How much a run does, and which environment variables say so.
//!
//! | variable | effect |
//! |---|---|
//! | `GROUPED_ATTENTION_EXTENSIVE=1` | the long run: larger bounds everywhere |
//! | `GROUPED_ATTENTION_SEED=n` | seed of the random and grid cases; 0 by default |
//! | `GROUPED_ATTENTION_RANDOM_CASES=n` | random cases per engine and variant |
//! | `GROUPED_ATTENTION_CASE='line'` | run this case, and nothing else |
//! | `GROUPED_ATTENTION_REQUIRE_ENGINES=a,b` | these engines must be there |
//! | `GROUPED_ATTENTION_TIGHTNESS=file` | how close each engine came to its bounds, as Markdown |

use std::env;

/// How much a run does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// True for the long run.
    pub extensive: bool,
    /// Seed of generated cases.
    pub seed: u64,
    /// Random cases per engine and variant.
    pub random_cases: u32,
    /// The only case to run.
    pub case: Option<String>,
    /// Engines that must be there.
    pub required: Vec<String>,
    /// Where the table of tightness goes.
    pub tightness: Option<String>,
}

/// The default run.
impl Default for Budget {
    fn default() -> Budget {
        Budget {
            extensive: false,
            seed: 0,
            random_cases: 240,
            case: None,
            required: Vec::new(),
            tightness: None,
        }
    }
}

impl Budget {
    /// As the environment says.
    ///
    /// # Errors
    /// A number that is none.
    pub fn from_env() -> Result<Budget, String> {
        let extensive = text("EXTENSIVE").is_some_and(|value| value != "0");
        let standard = Budget::default();
        Ok(Budget {
            extensive,
            seed: number("SEED")?.unwrap_or(standard.seed),
            random_cases: number("RANDOM_CASES")?.unwrap_or(if extensive {
                4_000
            } else {
                standard.random_cases
            }),
            case: text("CASE"),
            required: text("REQUIRE_ENGINES")
                .map(|names| names.split(',').map(|name| name.trim().to_owned()).collect())
                .unwrap_or_default(),
            tightness: text("TIGHTNESS"),
        })
    }
}

fn text(name: &str) -> Option<String> {
    env::var(format!("GROUPED_ATTENTION_{name}")).ok().filter(|value| !value.is_empty())
}

fn number<T: std::str::FromStr>(name: &str) -> Result<Option<T>, String> {
    let Some(value) = text(name) else { return Ok(None) };
    let parsed =
        value.parse().map_err(|_| format!("GROUPED_ATTENTION_{name}={value} is no number"));
    parsed.map(Some)
}
