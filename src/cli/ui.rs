//! What a person sees while a command works.

use std::{
    borrow::Cow,
    io::{IsTerminal, Write},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    Global,
    worker::{Message, end_with_stdin},
};
use crate::{Error, Result, engine::Progress};

/// Time from a request to stop to the end of the process, whatever it computes: a part of what schedulers grant.
const GRACE: Duration = Duration::from_secs(8);

/// Whether this command, started again, goes on from what it has finished.
static RESUMES: OnceLock<bool> = OnceLock::new();

/// Says of this process's command whether it goes on from what it has finished.
pub(super) fn resumes(resumes: bool) {
    let _ = RESUMES.set(resumes);
}

/// What an interrupted command leaves.
pub(super) fn interrupted() -> &'static str {
    match RESUMES.get() {
        Some(true) => "interrupted; what was finished is kept, the same command resumes",
        _ => "interrupted; this command keeps nothing until it has finished",
    }
}

/// Text for a terminal: control characters, which could change what it shows, are escaped.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if text.chars().all(harmless) {
        return text.into();
    }
    let escaped = |c: char| match harmless(c) {
        true => c.to_string(),
        false => c.escape_default().to_string(),
    };
    text.chars().map(escaped).collect::<String>().into()
}

/// Progress bars on a terminal, lines for another process in a worker, silence elsewhere; hears Ctrl-C.
pub(super) struct Bars {
    bar: Mutex<Option<ProgressBar>>,
    visible: bool,
    worker: bool,
    stop: Arc<AtomicBool>,
}

impl Bars {
    /// Starts listening for Ctrl-C, SIGTERM and SIGHUP: the first asks for a stop at the next safe point, and ends the process after
    /// [`GRACE`] where none comes; the second ends it at once. Either loses at most what was not yet committed, as a kill does.
    pub(super) fn new(global: &Global) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let heard = stop.clone();
        let listen = move || {
            if heard.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            let seconds = GRACE.as_secs();
            eprintln!(
                "stopping at the next safe point, in {seconds} seconds at most; once more ends at once"
            );
            std::thread::spawn(|| {
                std::thread::sleep(GRACE);
                eprintln!("error: {}", interrupted());
                std::process::exit(130);
            });
        };
        let ignored = hangup::is_ignored();
        // A handler is set once a process; a second `Bars` (in tests) simply does not hear Ctrl-C.
        let _ = ctrlc::set_handler(listen);
        if ignored {
            hangup::ignore();
        }
        if global.worker {
            end_with_stdin();
        }
        let visible =
            !global.quiet && !global.json && !global.worker && std::io::stderr().is_terminal();
        Self { bar: Mutex::new(None), visible, worker: global.worker, stop }
    }

    /// Removes the bar, before a result is printed.
    pub(super) fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn begin(&self, stage: &str, steps: Option<u64>) {
        self.clear();
        if !self.visible {
            return;
        }
        let (bar, template) = match steps {
            Some(steps) => (
                ProgressBar::new(steps),
                "{msg:<28} {wide_bar:.cyan/dim} {pos}/{len} {elapsed} left {eta}",
            ),
            None => (ProgressBar::new_spinner(), "{msg:<28} {spinner} {pos} {elapsed}"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(printable(stage).into_owned());
        if let Ok(mut current) = self.bar.lock() {
            *current = Some(bar);
        }
    }

    fn advance(&self, steps: u64) {
        if self.worker {
            Message::Advance(steps).send();
        }
        if let Ok(bar) = self.bar.lock()
            && let Some(bar) = bar.as_ref()
        {
            bar.inc(steps);
        }
    }

    fn warn(&self, message: &str) {
        if self.worker {
            return Message::Warn(message.to_owned()).send();
        }
        let message = printable(message);
        match self.bar.lock() {
            Ok(bar) if bar.is_some() => {
                if let Some(bar) = bar.as_ref() {
                    bar.suspend(|| eprintln!("warning: {message}"));
                }
            }
            _ => eprintln!("warning: {message}"),
        }
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// SIGHUP under `nohup`, which starts programs that are to outlive their terminal with the signal ignored.
#[cfg(unix)]
mod hangup {
    /// Whether it is ignored.
    pub(super) fn is_ignored() -> bool {
        // SAFETY: all bytes zero are a `sigaction`, and the call only writes the present one into it.
        unsafe {
            let mut present: libc::sigaction = std::mem::zeroed();
            let read = libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut present);
            read == 0 && present.sa_sigaction == libc::SIG_IGN
        }
    }

    /// Ignores it.
    pub(super) fn ignore() {
        // SAFETY: no handler is set, so nothing can be called in a wrong state.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
        }
    }
}

#[cfg(not(unix))]
mod hangup {
    pub(super) fn is_ignored() -> bool {
        false
    }

    pub(super) fn ignore() {}
}

/// Prints one JSON document, and nothing else, to stdout.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Io {
        path: "stdout".into(),
        source: std::io::Error::other(error),
    })?;
    print(&text)
}

/// Prints text for people to stdout, as [`printable`] has it.
pub(super) fn print_text(text: &str) -> Result<()> {
    print(&printable(text))
}

/// Prints to stdout; a reader that has gone away (a closed pipe) is not a failure.
fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Io { path: "stdout".into(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_are_shown_and_do_nothing() {
        let text = "a\u{1b}]0;title\u{7} \u{9b}2J b\n\tc \u{e9}\r";
        assert_eq!(printable(text), "a\\u{1b}]0;title\\u{7} \\u{9b}2J b\n\tc \u{e9}\\r");
        assert!(matches!(printable("plain \u{e9}\n"), std::borrow::Cow::Borrowed(_)));
    }
}
