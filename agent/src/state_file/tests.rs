use std::{os::unix::fs::PermissionsExt, sync::Arc};

use mesh_core::{
    control::{
        session::Registration,
        types::{Login, RegisterRequest, User},
    },
    derp::DerpMap,
    key::MachinePublic,
};

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
        assert_eq!((failure.exit(), failure.code()), (Exit::Refused, "bad-state"));
        assert!(failure.what_to_do().contains("state.json.bad-"), "{failure}");
        assert!(!directory.join(NAME).exists());
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn states_of_earlier_programs_are_read() {
    // Each form that was ever in use has a file here, written by the program of its time. A change of form adds one
    // and edits none.
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut forms: Vec<_> = fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
    forms.sort();
    assert!(!forms.is_empty());
    for form in forms {
        let directory = scratch("form");
        fs::create_dir_all(&directory).unwrap();
        fs::copy(&form, directory.join(NAME)).unwrap();
        let state = State::open(&directory, &Seed::from_number(1)).unwrap();
        let saved = &state.saved;
        assert_eq!(saved.node_key.public().to_string(), LAPTOP, "{}", form.display());
        assert_eq!((saved.prefs.hostname.as_str(), saved.prefs.accept_routes), ("laptop", true), "{}", form.display());
        let registration = saved.registration.as_ref().unwrap();
        assert_eq!(registration.server_key.to_string(), SERVER, "{}", form.display());
        let map = saved.map.as_ref().unwrap();
        assert_eq!(map.node.as_ref().unwrap().name, "laptop.example.com.", "{}", form.display());
        assert_eq!(map.peers[0].name, "www.example.com.", "{}", form.display());
        // And written in today's form.
        state.write().unwrap();
        assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved, *saved, "{}", form.display());
        fs::remove_dir_all(directory).unwrap();
    }
}

const LAPTOP: &str = "nodekey:89e19c8fcef811d91241e731e1e65744a56884a6fdfcb2f3bda64790c1e10b22";
const SERVER: &str = "mkey:721aeda35aeddc3f60e8b1abe898f9a7e3686dc5f65485d6651e1b6ec93f5f29";

#[test]
fn every_bit_that_is_another_is_found() {
    let directory = scratch("bits");
    State::open(&directory, &Seed::from_number(1)).unwrap();
    let good = fs::read(directory.join(NAME)).unwrap();
    let first = CHECKSUM.len();
    for place in first..good.len() - 1 {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        fs::write(directory.join(NAME), bytes).unwrap();
        let failure = State::open(&directory, &Seed::from_number(1)).unwrap_err();
        assert_eq!(failure.code(), "bad-state", "byte {place}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn one_daemon_alone_has_a_directory() {
    let directory = scratch("claim");
    let first = Claim::new(&directory).unwrap();
    let failure = Claim::new(&directory).unwrap_err();
    assert_eq!((failure.exit(), failure.code()), (Exit::Refused, "already-running"));
    drop(first);
    drop(Claim::new(&directory).unwrap());
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "it leaves nothing");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_could_not_be_kept_is_kept_by_itself_later() {
    let directory = scratch("later");
    let state = State::open(&directory, &Seed::from_number(1)).unwrap();
    let mut saved = state.saved.clone();
    let mut keeper = Keeper::new(state).unwrap();
    fill(&directory);
    saved.prefs.hostname = "alice".to_owned();
    keeper.keep(saved.clone()).unwrap_err();
    assert!(keeper.lost().is_some() && keeper.problem().is_some());
    make_room(&directory);
    while keeper.problem().is_some() {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(keeper.lost(), None);
    assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved, saved);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_was_taken_back_is_not_what_is_kept_later() {
    let directory = scratch("back");
    let state = State::open(&directory, &Seed::from_number(1)).unwrap();
    let up = state.saved.clone();
    let mut keeper = Keeper::new(state).unwrap();
    for end in ["another", "the end"] {
        fill(&directory);
        let mut down = up.clone();
        down.prefs.hostname = end.to_owned();
        down.registration = Some(Registration {
            server: "https://control.example.com".parse().unwrap(),
            server_key: MachinePublic::from_bytes([7; 32]),
            user: User::default(),
            login: Login::default(),
        });
        let desk = Arc::clone(&keeper.desk);
        let waiting = || {
            // Not while it is tried again.
            let _file = lock(&desk.file);
            lock(&desk.waiting).state.as_ref().map(|state| state.saved.clone())
        };
        keeper.keep(down.clone()).unwrap_err();
        if end == "another" {
            keeper.keep(up.clone()).unwrap_err();
            assert_eq!(waiting(), Some(up.clone()));
        } else {
            let map = MapResponse { domain: "example.com".to_owned(), ..MapResponse::default() };
            keeper.keep_map(Some(map.clone())).unwrap_err();
            let newest = SavedState { map: Some(Arc::new(map)), ..down };
            assert_eq!(waiting(), Some(newest));
        }
        make_room(&directory);
        keeper.keep(up.clone()).unwrap();
        assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved, up);
        assert!(waiting().is_none() && keeper.problem().is_none());
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_the_node_keeps_comes_back() {
    let directory = scratch("keep");
    let state = State::open(&directory, &Seed::from_number(1)).unwrap();
    let mut saved = state.saved.clone();
    let mut keeper = Keeper::new(state).unwrap();
    saved.prefs.hostname = "alice".to_owned();
    let derp_map = DerpMap { regions: Some([(900, None)].into()), ..DerpMap::default() };
    let map = MapResponse { domain: "example.com".to_owned(), derp_map: Some(derp_map), ..MapResponse::default() };
    saved.map = Some(Arc::new(map));
    keeper.keep(saved.clone()).unwrap();
    assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved, saved);
    // Whose map another one would be is not known.
    keeper.keep_map(Some(MapResponse::default())).unwrap();
    drop(keeper);
    assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved, saved);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn control_hears_of_no_key_that_is_not_on_disk() {
    let directory = scratch("full");
    let state = State::open(&directory, &Seed::from_number(1)).unwrap();
    let (known, mut keeper) = (state.saved.clone(), Keeper::new(state).unwrap());
    let register = |key: &NodePrivate| ControlRequest::Register {
        id: control::RequestId(7),
        request: Box::new(RegisterRequest { node_key: key.public(), ..RegisterRequest::default() }),
    };
    let fresh = NodePrivate::from_bytes([9; 32]);
    fill(&directory);
    keeper.keep(SavedState { node_key: fresh.clone(), ..known.clone() }).unwrap_err();
    let Some(ControlEvent::Failed { id, failure }) = keeper.hold_back(&register(&fresh)) else { panic!("it went") };
    assert_eq!(id, control::RequestId(7));
    assert!(failure.text.starts_with("what the next run needs is not kept: "), "{}", failure.text);
    assert_eq!(keeper.hold_back(&register(&known.node_key)), None, "this one is on disk");
    assert_eq!(keeper.hold_back(&ControlRequest::Disconnect), None);
    make_room(&directory);
    assert_eq!(keeper.hold_back(&register(&fresh)), None, "there is room again");
    assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved.node_key.public(), fresh.public());
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn maps_do_not_wait_for_the_disk_and_what_is_newer_than_they_are_is_not_lost() {
    let directory = scratch("maps");
    let state = State::open(&directory, &Seed::from_number(1)).unwrap();
    let mut saved = state.saved.clone();
    let mut keeper = Keeper::new(state).unwrap();
    let map = |name: &str| Some(Arc::new(MapResponse { domain: name.to_owned(), ..MapResponse::default() }));
    {
        // A disk that takes for ever.
        let desk = Arc::clone(&keeper.desk);
        let _slow = lock(&desk.file);
        for name in ["a.example.com", "b.example.com"] {
            saved.map = map(name);
            keeper.keep(saved.clone()).unwrap();
        }
        assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved.map, None);
    }
    saved.prefs.hostname = "alice".to_owned();
    keeper.keep(saved.clone()).unwrap();
    assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved, saved, "it is there on return");
    saved.map = map("c.example.com");
    keeper.keep(saved.clone()).unwrap();
    drop(keeper);
    assert_eq!(State::open(&directory, &Seed::from_number(2)).unwrap().saved, saved, "and maps in the end");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_has_not_changed_is_not_written() {
    let directory = scratch("same");
    let state = State::open(&directory, &Seed::from_number(1)).unwrap();
    let saved = state.saved.clone();
    let mut keeper = Keeper::new(state).unwrap();
    fs::remove_file(directory.join(NAME)).unwrap();
    keeper.keep(saved).unwrap();
    drop(keeper);
    assert!(!directory.join(NAME).exists());
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

/// From now on the state cannot be written: nothing can be renamed to what is a directory.
fn fill(directory: &Path) {
    let file = directory.join(NAME);
    fs::rename(&file, directory.join("aside")).unwrap();
    fs::create_dir_all(file.join("full")).unwrap();
}

/// It can be written again; until it is there is none.
fn make_room(directory: &Path) {
    fs::remove_dir_all(directory.join(NAME)).unwrap();
}

fn scratch(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("meshd-state-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    directory
}
