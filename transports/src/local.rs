//! A unix socket on which a daemon hears programs of the same host.

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::debug;

/// Pause after an accept that failed: out of files, most likely, and trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that is bound; its file goes when this is dropped.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Somebody listens on it.
    #[error("another {program} listens on {}", path.display())]
    Taken {
        /// Who would.
        program: &'static str,
        /// Which.
        path: PathBuf,
    },
    /// The path cannot be used.
    #[error("cannot open the socket {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl ClaimError {
    /// The name of the problem in the programs' JSON.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Taken { .. } => "already-running",
            Self::Io { .. } => "socket",
        }
    }

    /// What the user may do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Taken { .. } => "stop it, or choose another with --socket",
            Self::Io { .. } => "choose another with --socket",
        }
    }

    /// Whether another user could.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl LocalSocket {
    /// Claims `path` for `program`, and for whom `mode` lets in. A socket that nobody listens on is what a killed daemon left, and is replaced.
    ///
    /// # Errors
    /// When somebody listens there, or the path cannot be used.
    pub async fn claim(program: &'static str, path: &Path, mode: u32) -> Result<Self, ClaimError> {
        if UnixStream::connect(path).await.is_ok() {
            return Err(ClaimError::Taken { program, path: path.to_owned() });
        }
        Self::replace(path, mode).map_err(|source| ClaimError::Io { path: path.to_owned(), source })
    }

    fn replace(path: &Path, mode: u32) -> io::Result<Self> {
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(path)?;
        }
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::create_dir_all(directory)?;
        }
        let socket = Self { listener: UnixListener::bind(path)?, path: path.to_owned() };
        set_mode(path, mode)?;
        Ok(socket)
    }

    /// Hands every connection to `connection`, until dropped. There are `most` places, and a quarter of them is for users who
    /// may change things. Where there is no place for one of those, new connections wait; others are closed.
    pub async fn serve<F: Future<Output = ()> + Send + 'static>(
        self,
        most: usize,
        connection: impl Fn(UnixStream) -> F,
    ) {
        let places = Places::new(most);
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let user = peer(&stream);
                    let Some(place) = places.take(may_change(user)).await else {
                        debug!(user, "no place is left for users who may not change things");
                        continue;
                    };
                    let connection = connection(stream);
                    tokio::spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// How many may be connected.
struct Places {
    everybody: Arc<Semaphore>,
    /// For users who may change things: nobody else keeps them out.
    kept: Arc<Semaphore>,
}

impl Places {
    fn new(most: usize) -> Self {
        let kept = most / 4;
        Self { everybody: Arc::new(Semaphore::new(most - kept)), kept: Arc::new(Semaphore::new(kept)) }
    }

    /// A place, until it is dropped; `None` where there is none.
    async fn take(&self, may_change: bool) -> Option<OwnedSemaphorePermit> {
        match Arc::clone(&self.everybody).try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) if may_change => Arc::clone(&self.kept).acquire_owned().await.ok(),
            Err(_) => None,
        }
    }
}

/// Sets who may connect. Where the directory is somebody else's, something else may stand there by now: a link is not
/// followed, and what has another name elsewhere is left alone.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let found = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    let about = found.metadata()?;
    if !about.file_type().is_socket() || about.nlink() != 1 {
        return Err(io::Error::other("somebody put something else in its place"));
    }
    fs::set_permissions(format!("/proc/self/fd/{}", found.as_raw_fd()), fs::Permissions::from_mode(mode))
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // It may be gone already, which is as well.
        let _ = fs::remove_file(&self.path);
    }
}

/// The user at the other end; without credentials, nobody in particular.
#[must_use]
pub fn peer(stream: &UnixStream) -> u32 {
    stream.peer_cred().map_or(u32::MAX, |credentials| credentials.uid())
}

/// Whether a user may change things: root, and whom this program runs as.
#[must_use]
pub fn may_change(user: u32) -> bool {
    user == 0 || fs::metadata("/proc/self").is_ok_and(|own| own.uid() == user)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener as Listener};

    use super::*;

    #[test]
    fn the_mode_of_the_socket_is_set_and_of_nothing_else() {
        let directory = std::env::temp_dir().join(format!("mesh-socket-mode-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let (socket, file, link) = (directory.join("socket"), directory.join("file"), directory.join("link"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let _listener = Listener::bind(&socket).unwrap();
        for wanted in [0o666, 0o600] {
            set_mode(&socket, wanted).unwrap();
            assert_eq!(mode(&socket), wanted);
        }

        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        for target in [&file, &socket] {
            symlink(target, &link).unwrap();
            assert!(set_mode(&link, 0o666).is_err());
            fs::remove_file(&link).unwrap();
        }
        assert!(set_mode(&file, 0o666).is_err());
        fs::hard_link(&socket, &link).unwrap();
        assert!(set_mode(&link, 0o666).is_err());
        assert_eq!((mode(&file), mode(&socket)), (0o600, 0o600));
        fs::remove_dir_all(directory).unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn others_leave_places_to_those_who_may_change_things() {
        let places = Places::new(8);
        let mut taken = Vec::new();
        while let Some(place) = places.take(false).await {
            taken.push(place);
        }
        assert_eq!(taken.len(), 6);
        for _ in 0..2 {
            taken.push(places.take(true).await.unwrap());
        }
        // Both kinds are gone: one of the others makes room for the others, and no more than that.
        assert!(places.take(false).await.is_none());
        drop(taken.remove(0));
        assert!(places.take(false).await.is_some());
    }
}
