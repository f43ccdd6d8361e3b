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
    sync::Semaphore,
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
    #[error("somebody listens on {}", .0.display())]
    Taken(PathBuf),
    /// The path cannot be used.
    #[error("cannot open the socket {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl LocalSocket {
    /// Claims `path`, for whom `mode` lets in. A socket that nobody listens on is what a killed daemon left, and is replaced.
    ///
    /// # Errors
    /// When somebody listens there, or the path cannot be used.
    pub async fn claim(path: &Path, mode: u32) -> Result<Self, ClaimError> {
        if UnixStream::connect(path).await.is_ok() {
            return Err(ClaimError::Taken(path.to_owned()));
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

    /// Hands every connection to `connection`, until dropped. At `most` at once new ones wait.
    pub async fn serve<F: Future<Output = ()> + Send + 'static>(
        self,
        most: usize,
        connection: impl Fn(UnixStream) -> F,
    ) {
        let permits = Arc::new(Semaphore::new(most));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let connection = connection(stream);
                    tokio::spawn(async move {
                        connection.await;
                        drop(permit);
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
}
