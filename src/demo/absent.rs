//! What a build without the feature `demo` has in place of the embedded models and their judge: an error that says so.

use crate::Error;

/// The error where `what` is asked for.
pub(super) fn absent(what: &str) -> Error {
    Error::Unsupported {
        what: what.to_owned(),
        message: "this build is without the feature `demo`; enable it, or name models, data and a \
            judge of your own"
            .to_owned(),
    }
}

/// The judge's interface; there is none to run.
pub mod judge {
    pub use super::super::JUDGE as MODEL;
    use crate::Result;

    /// A service that no build without the feature can have.
    pub enum Service {}

    impl Service {
        /// Refuses.
        ///
        /// # Errors
        /// Always: the judge is part of the feature `demo`.
        pub fn start(_port: u16) -> Result<Self> {
            Err(super::absent(MODEL))
        }

        /// The address, for `OPENAI_BASE_URL`.
        pub fn url(&self) -> &str {
            match *self {}
        }
    }
}
