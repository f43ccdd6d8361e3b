//! The network map from a file, for tests and labs: at the start, and again whenever the file changes.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
};

use mesh_core::{
    control::{netmap, types::MapResponse},
    node::Command,
};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tracing::{info, warn};

use super::driver::Request;
use transports::program::{Exit, Failure};

/// Largest map file that is read.
const FILE_BYTES: u64 = 256 << 20;

/// The file.
#[derive(Clone, Debug)]
pub struct MapFile {
    /// Where.
    pub path: PathBuf,
}

impl MapFile {
    /// Reads the map; `None` while there is no file.
    ///
    /// # Errors
    /// When it cannot be read, or is no map.
    pub fn load(&self) -> Result<Option<MapResponse>, Failure> {
        let length = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.refuse(&error)),
        };
        if length > FILE_BYTES {
            return Err(self.refuse(&"larger than any map can be"));
        }
        let bytes = std::fs::read(&self.path).map_err(|error| self.refuse(&error))?;
        netmap::decode(&bytes, None).map(Some).map_err(|error| self.refuse(&error))
    }

    /// Reads the map again and tells the driver.
    ///
    /// # Errors
    /// When there is none, or it is wrong; nothing changes then.
    pub async fn run(&self, requests: &mpsc::Sender<Request>) -> Result<(), Failure> {
        let map = self.load()?.ok_or_else(|| {
            Failure::new(Exit::Usage, "no-map-file", format!("{} does not exist", self.path.display()))
        })?;
        self.apply(map, requests).await
    }

    /// Tells the driver of a map that was read.
    ///
    /// # Errors
    /// When it is wrong; nothing changes then.
    pub(super) async fn apply(&self, map: MapResponse, requests: &mpsc::Sender<Request>) -> Result<(), Failure> {
        let gone = || Failure::new(Exit::Unreachable, "stopping", "meshd is about to end");
        let (reply, answer) = oneshot::channel();
        requests.send(Request::Command(Command::ReplaceMap(Box::new(map)), reply)).await.map_err(|_| gone())?;
        match answer.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.refuse(&error)),
            Err(_) => Err(gone()),
        }
    }

    pub(super) fn refuse(&self, problem: &dyn Display) -> Failure {
        Failure::new(Exit::Usage, "bad-map-file", format!("{}: {problem}", self.path.display()))
    }

    /// Reads the map again whenever the file changes, until aborted.
    ///
    /// # Errors
    /// When the system cannot tell about changes.
    pub(super) fn watch(self, requests: mpsc::Sender<Request>) -> Result<JoinHandle<()>, Failure> {
        let cannot = |error: &dyn Display| {
            Failure::new(Exit::Refused, "map-file", format!("cannot watch {}: {error}", self.path.display()))
        };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(|error| cannot(&error))?;
        // The directory, because whoever replaces a file properly renames another one to its name.
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(directory, flags).map_err(|error| cannot(&error))?;
        let name = self.path.file_name().map(ToOwned::to_owned);
        // One change that waits stands for all that follow until it is looked at.
        let (told, mut changes) = mpsc::channel(1);
        let wait = move || {
            while let Ok(events) = inotify.read_events() {
                if events.iter().any(|event| event.name == name) && told.blocking_send(()).is_err() {
                    return;
                }
            }
        };
        // Its own thread: it waits for ever, and ends with the program.
        std::thread::Builder::new().name("map-file".to_owned()).spawn(wait).map_err(|error| cannot(&error))?;
        Ok(tokio::spawn(async move {
            while changes.recv().await.is_some() {
                match self.run(&requests).await {
                    Ok(()) => info!(path = %self.path.display(), "map file read"),
                    Err(failure) => warn!(%failure, "map file not used; everything stays as it is"),
                }
            }
        }))
    }
}
