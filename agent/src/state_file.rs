//! What survives a restart: `state.json` in the state directory.
//!
//! It is written to a new file, synced and renamed, so that there is always a whole one. One that does not parse is kept
//! under another name and said, never overwritten: it holds the identity of the node.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_core::{control::types::MapResponse, key::DiscoPrivate, node::SavedState, rng::Seed};
use serde::Serialize;
use transports::private;

use crate::failure::{Exit, Failure};

/// The file's name.
const NAME: &str = "state.json";

/// Largest state file that is read: several times what the largest network map needs.
const FILE_BYTES: u64 = 256 << 20;

/// The version of the form on disk.
const VERSION: u32 = 1;

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
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
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

    /// Keeps what the node says is to be kept.
    ///
    /// # Errors
    /// When the file cannot be written; the one before is still there then.
    pub fn save(&mut self, saved: SavedState) -> Result<(), Failure> {
        self.saved = saved;
        self.write()
    }

    /// Keeps this network map beside the rest. A node says a while after it changed that it is to be kept; when the program
    /// ends, that is now. Without a registration there is none to be kept.
    ///
    /// # Errors
    /// When the file cannot be written; the one before is still there then.
    pub fn keep_map(&mut self, map: Option<MapResponse>) -> Result<(), Failure> {
        let map = map.map(Arc::new);
        if map.is_none() || map == self.saved.map || self.saved.registration.is_none() {
            return Ok(());
        }
        self.saved.map = map;
        self.write()
    }

    fn write(&self) -> Result<(), Failure> {
        let path = self.directory.join(NAME);
        let stored = Stored { version: VERSION, disco_key: self.disco_key.to_secret_text(), saved: &self.saved };
        let text = serde_json::to_string(&stored).map_err(|error| cannot("write", &path, &error.into()))? + "\n";
        private::make_directory(&self.directory)
            .and_then(|()| private::write(&path, &text))
            .map_err(|error| cannot("write", &path, &error))
    }

    fn parse(text: &str, directory: &Path, seed: &Seed) -> Result<Self, String> {
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

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read_to_string(path)
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
    let exit = if error.kind() == io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Refused };
    Failure::new(exit, "state", format!("cannot {what} {}: {error}", path.display()))
        .hint("choose another directory with --state-dir")
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, sync::Arc};

    use mesh_core::derp::DerpMap;

    use super::*;

    #[test]
    fn keys_are_made_once_and_nobody_else_may_read_them() {
        let directory = scratch("once");
        let first = State::open(&directory, &Seed::from_number(1)).unwrap();
        let second = State::open(&directory, &Seed::from_number(2)).unwrap();
        assert_eq!(first.saved, second.saved);
        assert_eq!(first.disco_key.public(), second.disco_key.public());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join(NAME))), (0o700, 0o600));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_is_no_state_is_kept_and_named() {
        let directory = scratch("bad");
        fs::create_dir_all(&directory).unwrap();
        for text in ["", "{", "{\"Version\":2,\"NodeKey\":\"\",\"DiscoKey\":\"\"}", "{\"Version\":1}"] {
            fs::write(directory.join(NAME), text).unwrap();
            let failure = State::open(&directory, &Seed::from_number(1)).unwrap_err();
            assert_eq!((failure.exit, failure.code), (Exit::Refused, "bad-state"));
            assert!(failure.hint.contains("state.json.bad-"), "{}", failure.hint);
            assert!(!directory.join(NAME).exists());
        }
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_the_node_keeps_comes_back() {
        let directory = scratch("keep");
        let mut state = State::open(&directory, &Seed::from_number(1)).unwrap();
        let mut saved = state.saved.clone();
        saved.prefs.hostname = "alice".to_owned();
        let derp_map = DerpMap { regions: Some([(900, None)].into()), ..DerpMap::default() };
        let map = MapResponse { domain: "example.com".to_owned(), derp_map: Some(derp_map), ..MapResponse::default() };
        saved.map = Some(Arc::new(map));
        state.save(saved.clone()).unwrap();
        assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved, saved);
        // Whose map another one would be is not known.
        state.keep_map(Some(MapResponse::default())).unwrap();
        assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved, saved);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn keys_from_before_there_were_control_servers_are_kept() {
        let directory = scratch("old");
        let first = State::open(&directory, &Seed::from_number(1)).unwrap();
        let (node, disco) = (first.saved.node_key.to_secret_text(), first.disco_key.to_secret_text());
        let text = format!(r#"{{"Version":1,"NodeKey":"{node}","DiscoKey":"{disco}"}}"#);
        fs::write(directory.join(NAME), text).unwrap();
        let second = State::open(&directory, &Seed::from_number(2)).unwrap();
        assert_eq!(second.saved.node_key.public(), first.saved.node_key.public());
        assert_ne!(second.saved.machine_key.public(), first.saved.machine_key.public());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_a_crash_left_does_not_matter() {
        let directory = scratch("crash");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("state.json.new"), "half").unwrap();
        assert!(State::open(&directory, &Seed::from_number(1)).is_ok());
        assert!(!directory.join("state.json.new").exists());
        fs::remove_dir_all(directory).unwrap();
    }

    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("meshd-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        directory
    }
}
