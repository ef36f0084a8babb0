//! The one error type of the crate.

use std::path::PathBuf;

/// Result with [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. Every message names the place, the value seen and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An op was called with an argument outside its contract. Nothing was computed.
    #[error("{op}: {what} is {got}, expected {expected}")]
    Argument {
        /// The op, as `pool` or `cosine::rows`.
        op: &'static str,
        /// The argument or quantity.
        what: &'static str,
        /// The value seen.
        got: String,
        /// What the contract asks for.
        expected: String,
    },

    /// A call of the CUDA driver failed.
    #[error("{op}: {what} failed: {message}")]
    Device {
        /// The op, as `cuda::pool`.
        op: &'static str,
        /// What was being done, or the kernel's name.
        what: &'static str,
        /// The driver's status and its text.
        message: String,
    },

    /// Something has no room. On a GPU the driver's own status may say so instead: see [`Error::is_out_of_memory`].
    #[error("out of memory: {what} needs {needed} bytes, and {free} are free")]
    Memory {
        /// What was to be allocated.
        what: &'static str,
        /// Its bytes.
        needed: u64,
        /// What there is.
        free: u64,
    },

    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),

    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A file was read, but what it holds is not usable.
    #[error("{}{}{at}: {message}", path.display(), if at.is_empty() { "" } else { ": " })]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where in it: `line 7`, `field sampling.rho`, `tensor model.norm.weight`, or empty.
        at: String,
        /// The value seen and what was expected.
        message: String,
    },

    /// Well-formed, but something that this build or version does not do.
    #[error("{what} is not supported: {message}")]
    Unsupported {
        /// The format, architecture or option.
        what: String,
        /// Why, and what to use instead.
        message: String,
    },

    /// A run's store does not fit this run, or cannot be used.
    #[error("{}: {message}", path.display())]
    Store {
        /// The database file or run folder.
        path: PathBuf,
        /// What does not fit.
        message: String,
    },

    /// A process that had a part of a run failed.
    #[error("{worker}: {message}")]
    Worker {
        /// Its device and its part.
        worker: String,
        /// What it said, or how it ended.
        message: String,
        /// Its exit code; none if a signal ended it.
        code: Option<i32>,
    },

    /// The user asked for a stop. What was committed by then is kept.
    #[error("interrupted")]
    Interrupted,
}

/// So that `?` works in functions that return candle's `Result`. An error that came from candle is given back as it was.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => Self::wrap(other),
        }
    }
}

impl Error {
    /// Whether less at a time may succeed: [`Error::Memory`], or the driver's status for a full GPU.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Memory { .. } => true,
            Self::Device { .. } | Self::Candle(_) => {
                let text = self.to_string();
                text.contains("OUT_OF_MEMORY") || text.contains("out of memory")
            }
            _ => false,
        }
    }

    /// An [`Error::Argument`].
    pub fn argument(
        op: &'static str,
        what: &'static str,
        got: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Self::Argument { op, what, got: got.to_string(), expected: expected.to_string() }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(
        path: impl Into<PathBuf>,
        at: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::Invalid { path: path.into(), at: at.into(), message: message.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), message: message.into() }
    }

    /// Names the file of an [`Error::Invalid`] that was made by code that knows the line, but not the file.
    #[cfg(feature = "toolkit")]
    pub(crate) fn in_file(self, file: &std::path::Path) -> Self {
        match self {
            Self::Invalid { at, message, path } if path.as_os_str().is_empty() => {
                Self::Invalid { path: file.into(), at, message }
            }
            error => error,
        }
    }

    /// Turns an I/O error into one that names its file; for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn candle_functions_pass_errors_on() {
        fn candle(error: Error) -> candle_core::Result<()> {
            Err(error)?
        }
        let own = candle(Error::argument("x", "y", 1, 2)).unwrap_err();
        assert!(own.to_string().starts_with("x: y is 1, expected 2"), "{own}");
        let inner = candle_core::Error::Msg("shape mismatch".into());
        assert!(matches!(candle(Error::Candle(inner)).unwrap_err(), candle_core::Error::Msg(_)));
    }

    #[test]
    fn full_memory_is_recognised() {
        let device =
            |message: &str| Error::Device { op: "x", what: "allocating", message: message.into() };
        let candle = |text: &str| Error::Candle(candle_core::Error::Msg(text.into()));
        for full in [
            Error::Memory { what: "x", needed: 2, free: 1 },
            device("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
            candle("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
        ] {
            assert!(full.is_out_of_memory(), "{full}");
        }
        for other in [
            device(
                "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")",
            ),
            candle("shape mismatch"),
            Error::argument("x", "y", "out of memory", "z"),
        ] {
            assert!(!other.is_out_of_memory(), "{other}");
        }
    }
}
