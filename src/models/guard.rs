//! Where other libraries meet input: a panic of theirs becomes an error that names the input.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

use crate::{Error, Result};

thread_local! {
    /// Whether a panic of this thread will be told as an error.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns; if it panics, an [`Error::Invalid`] about `path` that names the `library`
/// and holds the panic's message.
///
/// A process that is built to abort on panics still aborts. Memory that cannot be had is no panic:
/// sizes are checked before a library is called.
///
/// # Errors
/// A panic of `work`.
pub(crate) fn guarded<T>(
    path: &Path,
    library: &'static str,
    work: impl FnOnce() -> T,
) -> Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                usual(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    // What a panic may leave half done is dropped with the error: callers give up the file.
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    result.map_err(|panic| {
        let message = message(&*panic);
        Error::invalid(path, "", format!("the library {library} fails on it: {message}"))
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it gave no reason").to_owned()
}

#[cfg(test)]
mod tests {
    use super::guarded;
    use std::path::Path;

    #[test]
    fn a_panic_names_the_file_and_later_calls_work() {
        let path = Path::new("x.json");
        let error = guarded(path, "tokenizers", || panic!("no {}", "entry")).unwrap_err();
        assert_eq!(error.to_string(), "x.json: the library tokenizers fails on it: no entry");
        let nested = guarded(path, "a", || {
            guarded(path, "b", || std::hint::black_box(Vec::<u8>::new())[0]).map(drop)
        });
        let error = nested.unwrap().unwrap_err().to_string();
        assert!(error.contains("library b") && error.contains("index out of bounds"), "{error}");
        assert_eq!(guarded(path, "a", || 3).unwrap(), 3);
    }
}
