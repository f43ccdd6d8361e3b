//! What nobody else may read: files of keys and what stands beside them, and the memory of a daemon.

use std::{
    fs::{DirBuilder, File, OpenOptions, remove_file, rename},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Makes a directory, and those above it that are missing, for its owner alone. One that is there stays as it is.
///
/// # Errors
/// When it cannot be made.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Finds out whether [`write()`] could write this file, and leaves nothing behind.
///
/// # Errors
/// When it could not.
pub fn try_out(path: &Path) -> io::Result<()> {
    let (fresh, _) = make_beside(path)?;
    remove_file(&fresh)
}

/// Writes a file that only its owner may read: to a new one beside it that is synced and renamed, so that there is always
/// a whole one.
///
/// # Errors
/// When it cannot be written; the one before is still there then.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let (fresh, mut file) = make_beside(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    rename(&fresh, path)?;
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
        Some(_) | None => File::open(".")?.sync_all(),
    }
}

/// Makes an empty file beside the one that it is to become, which only its owner may read.
///
/// # Errors
/// When it cannot be made.
pub fn make_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    // What a crash left, or somebody put there: neither its mode nor where it leads is ours.
    match remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    Ok((fresh, file))
}

/// Whether there is an error because there is no room.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Keeps what this process knows out of core dumps, also of those that a program takes, and from other programs of the same
/// user. Root can still look. Stock nodes do not do this.
///
/// # Errors
/// When the kernel refuses, which it has no reason to.
#[expect(unsafe_code, reason = "std has no prctl")]
pub fn keep_memory() -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: it takes numbers alone, and sets a flag of this process.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, zero, zero, zero, zero) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "std has no prctl")]
    fn a_process_that_keeps_its_memory_leaves_no_core_dump() {
        keep_memory().unwrap();
        // SAFETY: it reads a flag of this process.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }, 0);
        // It still finds its own files.
        assert!(fs::read_dir("/proc/self/fd").unwrap().count() > 0);
    }

    #[test]
    fn what_stands_at_the_new_name_is_neither_followed_nor_kept() {
        let directory = std::env::temp_dir().join(format!("mesh-private-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        make_directory(&directory).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        let (path, fresh, other) = (directory.join("key"), directory.join("key.new"), directory.join("other"));

        fs::write(&other, "other").unwrap();
        symlink(&other, &fresh).unwrap();
        write(&path, "secret").unwrap();
        assert_eq!((fs::read_to_string(&other).unwrap().as_str(), mode(&path)), ("other", 0o600));

        fs::write(&fresh, "half").unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o644)).unwrap();
        try_out(&path).unwrap();
        assert!(!fresh.exists());
        fs::write(&fresh, "half").unwrap();
        write(&path, "secret again").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("secret again", 0o600));
        assert!(!fresh.exists());
        fs::remove_dir_all(directory).unwrap();
    }
}
