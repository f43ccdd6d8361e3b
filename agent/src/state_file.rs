//! What survives a restart: `state.json` in the state directory.
//!
//! It is written to a new file, synced and renamed, so that there is always a whole one. One that does not parse is kept
//! under another name and said, never overwritten: it holds the identity of the node.
//!
//! [`Keeper`] keeps what the node says is to be kept. Keys, preferences and the registration are rare, and what follows
//! hangs on them: control must not hear of a key that a crash could lose. They are on disk when [`Keeper::keep`] returns.
//! Network maps are large and many, and nothing hangs on them but how new the map of the next start is: a thread writes
//! them, the newest only, and packets go on meanwhile. What could not be written, as on a full disk, the thread tries
//! again until it is.
//!
//! A [`Claim`] keeps a second daemon from the same directory: two with one node key would take each other's packets.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::{
    control::{self, ControlEvent, ControlRequest, FailureKind, types::MapResponse},
    crypto::hash::blake2s,
    key::{DiscoPrivate, NodePrivate},
    node::SavedState,
    rng::Seed,
};
use serde::Serialize;
use tracing::{error, info, warn};
use transports::private;

use transports::program::{Exit, Failure};

/// The file's name.
const NAME: &str = "state.json";

/// Largest state file that is read: several times what the largest network map needs.
const FILE_BYTES: u64 = 256 << 20;

/// The version of the form on disk.
const VERSION: u32 = 1;

/// After a write that failed, until the thread tries again.
const AGAIN: Duration = Duration::from_secs(1);

/// A state directory that is ours alone, as long as this is there.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "the lock goes when it is closed")] File);

impl Claim {
    /// Claims a directory, which is made where there is none, and finds out whether it can be written.
    ///
    /// # Errors
    /// When another daemon has it, or nothing can be written there. A full disk is none: a node with a state comes up
    /// from it, and says what it cannot keep.
    pub fn new(directory: &Path) -> Result<Self, Failure> {
        private::make_directory(directory).map_err(|error| cannot("make", directory, &error))?;
        let file = File::open(directory).map_err(|error| cannot("open", directory, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("another meshd uses {}", directory.display());
                return Err(Failure::new(Exit::Refused, "already-running", message)
                    .hint("stop it, or choose another directory with --state-dir"));
            }
            Err(TryLockError::Error(error)) => return Err(cannot("lock", directory, &error)),
        }
        let path = directory.join(NAME);
        match private::try_out(&path) {
            Err(error) if private::is_full(&error) => {
                warn!(%error, path = %path.display(), "what changes will not be kept")
            }
            result => result.map_err(|error| cannot("write", &path, &error))?,
        }
        Ok(Self(file))
    }
}

/// What survives a restart, and where it is kept.
#[derive(Clone, Debug)]
pub struct State {
    /// Keys, preferences, registration, and the last network map.
    pub saved: SavedState,
    /// What disco messages are sealed with where the network map comes from a file. A node with a control server has a
    /// new one for each run.
    pub disco_key: DiscoPrivate,
    directory: PathBuf,
}

/// The form on disk, as it is written. It is read in parts: flattened, serde takes no numbers as keys of maps.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Stored<'a> {
    version: u32,
    disco_key: String,
    #[serde(flatten)]
    saved: &'a SavedState,
}

impl State {
    /// Reads the state, or makes one with new keys and writes it.
    ///
    /// # Errors
    /// When the directory cannot be used, or the file is none of ours; that file is then kept beside as
    /// `state.json.bad-<time>`.
    pub fn open(directory: &Path, seed: &Seed) -> Result<Self, Failure> {
        let path = directory.join(NAME);
        match read(&path) {
            Ok(text) => Self::parse(&text, directory, seed).map_err(|problem| set_aside(&path, &problem)),
            // Bytes that are no text are damage like any other.
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(set_aside(&path, &error.to_string())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let state = Self {
                    saved: SavedState::new(&mut seed.stream("saved-keys", 0)),
                    disco_key: DiscoPrivate::generate(&mut seed.stream("disco-key", 0)),
                    directory: directory.to_owned(),
                };
                state.write()?;
                Ok(state)
            }
            Err(error) => Err(cannot("read", &path, &error)),
        }
    }

    fn write(&self) -> Result<(), Failure> {
        let path = self.directory.join(NAME);
        let stored = Stored { version: VERSION, disco_key: self.disco_key.to_secret_text(), saved: &self.saved };
        let text = serde_json::to_string(&stored).map_err(|error| cannot("write", &path, &error.into()))?;
        let text = with_checksum(&text) + "\n";
        private::make_directory(&self.directory)
            .and_then(|()| private::write(&path, &text))
            .map_err(|error| cannot("write", &path, &error))
    }

    fn parse(text: &str, directory: &Path, seed: &Seed) -> Result<Self, String> {
        if !is_whole(text.trim_end()) {
            return Err("its checksum is wrong: it was damaged, or changed by hand".to_owned());
        }
        let mut stored: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match stored.get("Version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                return Err(format!("version {version} is not known to this program, which writes {VERSION}"));
            }
            None => return Err("it has no version".to_owned()),
        }
        if stored.get("MachineKey").is_none() {
            // Before there were control servers there was no need for one.
            let fresh = SavedState::new(&mut seed.stream("saved-keys", 0));
            stored["MachineKey"] = fresh.machine_key.to_secret_text().into();
        }
        let disco_key = stored.get("DiscoKey").and_then(serde_json::Value::as_str).unwrap_or_default();
        let disco_key = DiscoPrivate::from_secret_text(disco_key).map_err(|error| format!("DiscoKey: {error}"))?;
        let saved = serde_json::from_value(stored).map_err(|error| error.to_string())?;
        Ok(Self { saved, disco_key, directory: directory.to_owned() })
    }
}

/// Writes the state whenever it is another.
#[derive(Debug)]
pub struct Keeper {
    state: State,
    /// What could not be written, and is tried again.
    unkept: Option<SavedState>,
    desk: Arc<Desk>,
    writer: Option<JoinHandle<()>>,
}

/// What [`Keeper`] and its thread share.
#[derive(Debug, Default)]
struct Desk {
    /// Held by whoever writes the file. Taken before `waiting`.
    file: Mutex<()>,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// What the thread is to do.
#[derive(Debug, Default)]
struct Waiting {
    /// To be written. A newer one takes its place.
    state: Option<State>,
    /// Why the last write failed.
    problem: Option<Failure>,
    /// The thread ends when nothing waits.
    is_over: bool,
}

impl Keeper {
    /// For a state that is on disk.
    ///
    /// # Errors
    /// When the system has no thread for it.
    pub fn new(state: State) -> Result<Self, Failure> {
        let desk = Arc::new(Desk::default());
        let writer = thread::Builder::new().name("state".to_owned()).spawn({
            let desk = Arc::clone(&desk);
            move || desk.work()
        });
        let writer = writer.map_err(|error| cannot("write", &state.directory.join(NAME), &error))?;
        Ok(Self { state, unkept: None, desk, writer: Some(writer) })
    }

    /// Keeps what the node says is to be kept. It is on disk on return, but for a network map: that is soon.
    ///
    /// # Errors
    /// When the file cannot be written; the one before is still there then.
    pub fn keep(&mut self, saved: SavedState) -> Result<(), Failure> {
        self.take_in();
        // What waits is another than what is on disk, and may be written any time: the file is what this says, or the error.
        let waits = self.unkept.take().is_some();
        let before = core::mem::replace(&mut self.state.saved, saved);
        let saved = &self.state.saved;
        if !waits && before == *saved {
            return Ok(());
        }
        if !waits && (SavedState { map: saved.map.clone(), ..before.clone() }) == *saved {
            lock(&self.desk.waiting).state = Some(self.state.clone());
            self.desk.changed.notify_one();
            return Ok(());
        }
        let _file = lock(&self.desk.file);
        let written = self.state.write();
        let mut waiting = lock(&self.desk.waiting);
        // What waits is older.
        waiting.state = written.is_err().then(|| self.state.clone());
        waiting.note(&written);
        if written.is_err() {
            // So that the next time is none for which the keys are there already.
            self.unkept = Some(core::mem::replace(&mut self.state.saved, before));
            self.desk.changed.notify_one();
        }
        written
    }

    /// What could not be written may be by now.
    fn take_in(&mut self) {
        if lock(&self.desk.waiting).problem.is_none()
            && let Some(kept) = self.unkept.take()
        {
            self.state.saved = kept;
        }
    }

    /// Why the next run would not know what this one does.
    #[must_use]
    pub fn problem(&self) -> Option<Failure> {
        lock(&self.desk.waiting).problem.clone()
    }

    /// The same, but for network maps.
    pub fn lost(&mut self) -> Option<Failure> {
        self.take_in();
        self.unkept.as_ref().and_then(|_| self.problem())
    }

    /// The end of a registration that must not begin: of a key that is not on disk, which control would know and the next
    /// run would not. What could not be written is tried again before.
    pub fn hold_back(&mut self, request: &ControlRequest) -> Option<ControlEvent> {
        let ControlRequest::Register { id, request } = request else { return None };
        self.take_in();
        let unkept = self.unkept.take()?;
        let failure = self.keep(unkept).err()?;
        let saved = &self.state.saved;
        let is_kept = |key: &NodePrivate| key.public() == request.node_key;
        if is_kept(&saved.node_key) || saved.next_node_key.as_ref().is_some_and(is_kept) {
            return None;
        }
        let text = format!("what the next run needs is not kept: {failure}");
        Some(ControlEvent::Failed { id: *id, failure: control::Failure { kind: FailureKind::Unreachable, text } })
    }

    /// Keeps this network map beside the rest. A node says a while after it changed that it is to be kept; when the program
    /// ends, that is now. Without a registration there is none to be kept.
    ///
    /// # Errors
    /// Those of [`Self::keep`].
    pub fn keep_map(&mut self, map: Option<MapResponse>) -> Result<(), Failure> {
        self.take_in();
        let newest = self.unkept.as_ref().unwrap_or(&self.state.saved);
        if map.is_none() || newest.registration.is_none() {
            return Ok(());
        }
        self.keep(SavedState { map: map.map(Arc::new), ..newest.clone() })
    }
}

impl Drop for Keeper {
    /// What waits is written before.
    fn drop(&mut self) {
        lock(&self.desk.waiting).is_over = true;
        self.desk.changed.notify_one();
        if let Some(writer) = self.writer.take() {
            // It panics in no case; what it could not write it has said.
            let _ = writer.join();
        }
    }
}

impl Desk {
    /// What the thread does.
    fn work(&self) {
        loop {
            let waiting = lock(&self.waiting);
            let is_idle = |waiting: &mut Waiting| waiting.state.is_none() && !waiting.is_over;
            let waiting = self.changed.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
            let is_early = |waiting: &mut Waiting| waiting.problem.is_some() && !waiting.is_over;
            let (waiting, _) =
                self.changed.wait_timeout_while(waiting, AGAIN, is_early).unwrap_or_else(PoisonError::into_inner);
            let is_over = waiting.is_over;
            drop(waiting);
            let file = lock(&self.file);
            // Nothing, if a whole state came in between.
            let state = lock(&self.waiting).state.take();
            if let Some(state) = state {
                let written = state.write();
                let mut waiting = lock(&self.waiting);
                waiting.note(&written);
                if written.is_err() && !is_over {
                    // The newest one: newer ones wait for the file.
                    waiting.state.get_or_insert(state);
                }
            }
            drop(file);
            if is_over && lock(&self.waiting).state.is_none() {
                return;
            }
        }
    }
}

impl Waiting {
    /// How a write ended. A disk that stays full is told once.
    fn note(&mut self, written: &Result<(), Failure>) {
        match (written, &self.problem) {
            (Ok(()), Some(_)) => info!("what the next run needs is kept again"),
            (Err(failure), None) => error!(%failure, "what the next run needs is not kept; it is tried again"),
            (Ok(()), None) | (Err(_), Some(_)) => {}
        }
        self.problem = written.as_ref().err().cloned();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES {
        return Err(ErrorKind::FileTooLarge.into());
    }
    fs::read_to_string(path)
}

/// How a state begins that has a checksum. Those of earlier programs have none.
const CHECKSUM: &str = "{\"Checksum\":\"";

/// An object with a checksum of the rest as its first field: a key in which one letter is another would be a key, too.
fn with_checksum(object: &str) -> String {
    let rest = object.strip_prefix('{').unwrap_or(object);
    format!("{CHECKSUM}{}\",{rest}", checksum(rest))
}

fn is_whole(text: &str) -> bool {
    let Some((said, rest)) = text.strip_prefix(CHECKSUM).and_then(|text| text.split_once("\",")) else { return true };
    said == checksum(rest)
}

/// It is to find damage, not forgery: half of a hash is plenty.
fn checksum(text: &str) -> String {
    let hash = blake2s(&[text.as_bytes()]);
    hash[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps a file that is no state of ours under another name.
fn set_aside(path: &Path, problem: &str) -> Failure {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let kept = PathBuf::from(format!("{}.bad-{seconds}", path.display()));
    let message = format!("{} is not usable: {problem}", path.display());
    match fs::rename(path, &kept) {
        Ok(()) => Failure::new(Exit::Refused, "bad-state", message)
            .hint(format!("it was kept as {}; the next start makes a new identity", kept.display())),
        Err(error) => Failure::new(Exit::Refused, "bad-state", message)
            .hint(format!("it could not be set aside either ({error}); move it away by hand")),
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    let exit = if error.kind() == ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Refused };
    let hint = match error.kind() {
        _ if private::is_full(error) => "make room there, or choose another directory with --state-dir",
        ErrorKind::IsADirectory => "move that directory away: the state is a file",
        ErrorKind::ReadOnlyFilesystem => "make it writable, or choose another directory with --state-dir",
        ErrorKind::FileTooLarge => "it is none that meshd wrote: move it away",
        _ => "choose another directory with --state-dir",
    };
    Failure::new(exit, "state", format!("cannot {what} {}: {error}", path.display())).hint(hint)
}

#[cfg(test)]
mod tests;
