//! Processes of this program that work for another one, each on a device of its own.
//!
//! A worker (`--worker`, [`super::worker`]) ends when its stdin does: whatever ends the process that started it, nothing is left at
//! work.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{ui::Bars, worker::Message};
use crate::{
    Error, Result,
    config::Config,
    engine::{Progress, checkpoint},
    models::device,
    store::{Shard, Store},
    sweep,
};

/// How long processes of a run that was killed have to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two looks at who is still at work.
const LOOK: Duration = Duration::from_millis(200);

/// Threads for each of `count` workers, together those of this process.
pub(super) fn threads(count: usize) -> impl Iterator<Item = usize> {
    let all = rayon::current_num_threads();
    (0..count).map(move |i| (all / count + usize::from(i < all % count)).max(1))
}

/// Carries out a run in as many parts as devices, a process each, and waits for them. Only their stores are left to be merged then.
/// One that fails does not stop the others.
///
/// # Errors
/// The first worker's that failed, with its device; a device that is not there; a requested stop.
pub(super) fn divide(config: &Config, devices: &[String], bars: &Bars) -> Result<()> {
    config.validate()?;
    devices.iter().try_for_each(|name| device::check(name).map(|_| ()))?;
    let count = devices.len() as u32;
    sweep::divide(config, count)?;
    let settings = serde_json::to_string(config)
        .map_err(|error| Error::invalid("configuration", "", error.to_string()))?;
    let mut workers = Workers::new();
    for ((index, device), threads) in (0..count).zip(devices).zip(threads(devices.len())) {
        let store = sweep::store_path(config, Shard::Part { index, count });
        Store::await_writer(store, PATIENCE)?;
        let part = format!("{}/{count}", index + 1);
        let name = format!("{device}, part {part}");
        let arguments = ["--shard".as_ref(), part.as_ref()];
        workers.start(name, device, threads, &arguments, Some(&settings))?;
    }
    bars.begin(&format!("generating on {count} devices"), None);
    workers.watch(bars, &mut |message| match message {
        Some((_, Message::Advance(steps))) => bars.advance(steps),
        Some((worker, Message::Warn(text))) => bars.warn(&format!("{worker}: {text}")),
        None => {}
    })
}

/// Called with each message and the name of its worker, and with `None` at every poll.
type OnMessage<'a> = dyn FnMut(Option<(&str, Message)>) + 'a;

/// Running worker processes. Dropping this kills those that still run; work they committed is kept.
pub(super) struct Workers {
    list: Vec<Worker>,
    receiver: Receiver<(usize, Message)>,
    /// Cloned for each worker, and dropped once all are started.
    sender: Option<Sender<(usize, Message)>>,
}

struct Worker {
    name: String,
    child: Child,
    /// What it said on stderr.
    said: Option<JoinHandle<String>>,
}

impl Workers {
    pub(super) fn new() -> Self {
        let (sender, receiver) = channel();
        Self { list: Vec::new(), receiver, sender: Some(sender) }
    }

    /// Starts `bdhs sweep` with some arguments on a device.
    pub(super) fn start(
        &mut self,
        name: String,
        device: &str,
        threads: usize,
        arguments: &[&OsStr],
        settings: Option<&str>,
    ) -> Result<()> {
        let program = std::env::current_exe().map_err(Error::io("this program"))?;
        let mut command = Command::new(&program);
        command.args(["sweep", "--worker", "--device", device, "--threads", &threads.to_string()]);
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::io(program))?;
        // The pipe stays open in `child` until this process ends or drops it.
        if let (Some(stdin), Some(settings)) = (&mut child.stdin, settings) {
            // One that is gone already is noticed by its exit code, with what it said.
            let _ = writeln!(stdin, "{settings}");
        }
        let index = self.list.len();
        if let (Some(stdout), Some(sender)) = (child.stdout.take(), self.sender.clone()) {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                    if let Ok(message) = serde_json::from_str(&line)
                        && sender.send((index, message)).is_err()
                    {
                        return;
                    }
                }
            });
        }
        let said = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                // What was read until then is what there is.
                let _ = stderr.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        self.list.push(Worker { name, child, said });
        Ok(())
    }

    /// Waits for all workers and calls `on_message`. A failure is reported while the others are still at work.
    pub(super) fn watch(&mut self, bars: &Bars, on_message: &mut OnMessage) -> Result<()> {
        self.sender = None;
        let mut failed: BTreeMap<usize, Error> = BTreeMap::new();
        let (mut first, mut looked) = (None, Instant::now());
        loop {
            checkpoint(bars)?;
            let received = self.receiver.recv_timeout(LOOK);
            // All have closed stdout, so they have ended or are about to.
            let over = matches!(received, Err(RecvTimeoutError::Disconnected));
            if let Ok((i, message)) = received {
                on_message(Some((&self.list[i].name, message)));
            }
            if !over && looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            on_message(None);
            for (i, worker) in self.list.iter_mut().enumerate() {
                if !failed.contains_key(&i)
                    && let Some(error) = worker.failure(over)?
                {
                    if !over {
                        bars.warn(&format!("{error}; the others go on"));
                    }
                    first.get_or_insert(i);
                    failed.insert(i, error);
                }
            }
            if over {
                return first.and_then(|i| failed.remove(&i)).map_or(Ok(()), Err);
            }
        }
    }
}

impl Worker {
    /// How it failed, if it has ended and did; with `wait`, its end is waited for.
    fn failure(&mut self, wait: bool) -> Result<Option<Error>> {
        let status = match wait {
            true => self.child.wait().map(Some),
            false => self.child.try_wait(),
        };
        let Some(status) = status.map_err(Error::io("a worker"))? else { return Ok(None) };
        if status.success() {
            return Ok(None);
        }
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        // Before the error it may have told that it heard Ctrl-C.
        let said = said.split_once("error: ").map_or(said.as_str(), |(_, error)| error).trim();
        let message = if said.is_empty() { format!("ended by {status}") } else { said.to_owned() };
        Ok(Some(Error::Worker { worker: self.name.clone(), message, code: status.code() }))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.list {
            // One that has ended already cannot be ended again, which is as good.
            let _ = worker.child.kill();
            let _ = worker.child.wait();
        }
    }
}
