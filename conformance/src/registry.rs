//! Engines under test.

use grouped_attention::{AnyBackend, Backend, EngineError};
use std::fmt;
use std::sync::{Arc, OnceLock};

type Build = Box<dyn Fn() -> Result<AnyBackend, EngineError> + Send + Sync>;

/// An engine, or one configuration of an engine, under a name.
pub struct Registered {
    name: String,
    build: Build,
    built: OnceLock<Result<Arc<AnyBackend>, EngineError>>,
    sparse: bool,
}

/// Registers an engine. It is built once, when the run begins.
///
/// ```
/// use grouped_attention::Reference;
/// use grouped_attention_conformance::engine;
/// let engines = vec![engine("reference", || Ok(Reference::new()))];
/// ```
pub fn engine<B: Backend + 'static>(
    name: &str,
    build: impl Fn() -> Result<B, EngineError> + Send + Sync + 'static,
) -> Registered {
    Registered {
        name: name.to_owned(),
        build: Box::new(move || build().map(|engine| -> AnyBackend { Box::new(engine) })),
        built: OnceLock::new(),
        sparse: false,
    }
}

impl Registered {
    /// The same engine, whose caches take memory only where they are written, so that cases with
    /// pages past 2^31 elements can be run on it.
    pub fn sparse(self) -> Registered {
        Registered { sparse: true, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_sparse(&self) -> bool {
        self.sparse
    }

    /// The engine, built on first use.
    ///
    /// # Errors
    /// What its constructor says.
    pub fn build(&self) -> Result<Arc<AnyBackend>, EngineError> {
        self.built.get_or_init(|| (self.build)().map(Arc::new)).clone()
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registered { name, sparse, built, .. } = self;
        f.debug_struct("Registered")
            .field("name", name)
            .field("sparse", sparse)
            .field("built", built)
            .finish_non_exhaustive()
    }
}
