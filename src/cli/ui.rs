//! What a person sees while a command works.

use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    Global,
    worker::{Message, end_with_stdin},
};
use crate::{Error, Result, engine::Progress};

/// Progress bars on a terminal, lines for another process in a worker, silence elsewhere; hears Ctrl-C.
pub(super) struct Bars {
    bar: Mutex<Option<ProgressBar>>,
    visible: bool,
    worker: bool,
    stop: Arc<AtomicBool>,
}

impl Bars {
    /// Starts listening for Ctrl-C: the first asks for a stop at the next safe point, the second ends
    /// the process at once (which loses at most the wave that was not yet committed).
    pub(super) fn new(global: &Global) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let heard = stop.clone();
        // A handler is set once a process; a second `Bars` (in tests) simply does not hear Ctrl-C.
        let _ = ctrlc::set_handler(move || {
            if heard.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("stopping at the next safe point; once more ends at once");
        });
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
        bar.set_message(stage.to_owned());
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

/// Prints one JSON document, and nothing else, to stdout.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Io {
        path: "stdout".into(),
        source: std::io::Error::other(error),
    })?;
    print_text(&text)
}

/// Prints to stdout; a reader that has gone away (a closed pipe) is not a failure.
pub(super) fn print_text(text: &str) -> Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Io { path: "stdout".into(), source: error })
        }
        _ => Ok(()),
    }
}
