use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use mesh_core::{
    control::types::{Hostinfo, NodeId, UserId},
    key::{DiscoPublic, MachinePublic, NodePublic},
    time::WallTime,
};

use super::*;
use crate::{
    policy::Role,
    store::{AuditRow, KeyRow, NodeRow, PolicyRow, Principal, UserRow},
};

#[tokio::test(flavor = "current_thread")]
async fn every_row_comes_back_as_it_was_put() {
    let folder = Folder::new("round");
    let mut mutations = vec![
        Mutation::PutUser(user()),
        Mutation::PutNode(Box::new(full_node())),
        Mutation::PutNode(Box::new(bare_node())),
        Mutation::PutKey(key()),
        Mutation::PutPolicy(PolicyRow { text: "{} // 'ü\u{0}".to_owned(), stored: WallTime::from_unix_secs(7) }),
        Mutation::PutNext(Sequence::Nodes, 3),
        Mutation::PutNext(Sequence::Users, 2),
    ];
    let audit = [Principal::Server, Principal::Operator("root".to_owned())].map(audit_row);
    mutations.extend(audit.clone().map(Mutation::Audit));
    let mut expected = Rows::default();
    mutations.iter().filter(|m| !matches!(m, Mutation::Audit(_))).for_each(|m| expected.apply(m.clone()));

    let mut store = SqlStore::open(&folder.file()).await.unwrap();
    store.commit(&mutations).await.unwrap();
    assert_eq!(store.load().await.unwrap(), expected);
    store.close().await.unwrap();
    let mut store = SqlStore::open(&folder.file()).await.unwrap();
    assert_eq!(store.load().await.unwrap(), expected);
    assert_eq!(store.audit().await.unwrap(), audit);

    let later = [
        Mutation::PutUser(UserRow { login: "other".to_owned(), ..user() }),
        Mutation::DeleteNode(NodeId(1)),
        Mutation::DeleteKey(key().id),
        Mutation::PutNext(Sequence::Nodes, 9),
    ];
    later.iter().for_each(|mutation| expected.apply(mutation.clone()));
    store.commit(&later).await.unwrap();
    assert_eq!(store.load().await.unwrap(), expected);
    store.commit(&[Mutation::DeleteUser(UserId(1))]).await.unwrap();
    assert!(store.load().await.unwrap().users.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn the_record_of_who_changed_what_is_bounded() {
    let folder = Folder::new("audit");
    let mut store = SqlStore::open(&folder.file()).await.unwrap();
    let row = |name: &str| audit_row(Principal::Operator(name.to_owned()));
    store.commit(&["a", "b"].map(|name| Mutation::Audit(row(name)))).await.unwrap();
    // As though there were all rows that there may be.
    let text = "UPDATE \"audit\" SET \"number\" = $1 WHERE \"number\" = 2";
    run(&mut store.connection, query(text).bind(limits::AUDIT_ROWS)).await.unwrap();
    assert_eq!(store.audit().await.unwrap(), ["a", "b"].map(row));
    store.commit(&[Mutation::Audit(row("c"))]).await.unwrap();
    assert_eq!(store.audit().await.unwrap(), ["b", "c"].map(row));
}

#[tokio::test(flavor = "current_thread")]
async fn a_commit_that_fails_leaves_nothing_behind() {
    let folder = Folder::new("atomic");
    let mut store = SqlStore::open(&folder.file()).await.unwrap();
    run(&mut store.connection, query("DROP TABLE auth_keys")).await.unwrap();
    assert!(store.commit(&[Mutation::PutUser(user()), Mutation::PutKey(key())]).await.is_err());
    run(&mut store.connection, query(&KEYS.create())).await.unwrap();
    assert_eq!(store.load().await.unwrap(), Rows::default());
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_committed_after_a_full_disk_is_there_for_others() {
    let folder = Folder::new("room");
    let mut store = SqlStore::open(&folder.file()).await.unwrap();
    run(&mut store.connection, query("PRAGMA max_page_count = 1")).await.unwrap();
    let policy = PolicyRow { text: "x".repeat(64 << 10), stored: WallTime::from_unix_secs(7) };
    let mutations = [Mutation::PutUser(user()), Mutation::PutPolicy(policy)];
    for _ in 0..3 {
        let error = store.commit(&mutations).await.unwrap_err();
        assert!(error.is_full(), "{error}");
    }
    run(&mut store.connection, query("PRAGMA max_page_count = 100000")).await.unwrap();
    store.commit(&mutations).await.unwrap();
    let seen = SqlStore::open(&folder.file()).await.unwrap().load().await.unwrap();
    assert!(seen.policy.is_some() && seen.users.len() == 1);
}

#[tokio::test(flavor = "current_thread")]
async fn all_files_are_for_their_owner_alone() {
    let folder = Folder::new("rights");
    let mut store = SqlStore::open(&folder.file()).await.unwrap();
    store.commit(&[Mutation::PutUser(user())]).await.unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder.0).unwrap().map(Result::unwrap) {
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        names.push(entry.file_name().into_string().unwrap());
    }
    assert!(names.contains(&"control.db-wal".to_owned()), "{names:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_later_program_wrote_is_refused() {
    let folder = Folder::new("later");
    let mut store = SqlStore::open(&folder.file()).await.unwrap();
    let row = serde_json::json!({ "name": SCHEMA_ROW, "next": SCHEMA + 1 });
    run(&mut store.connection, SEQUENCES.put(&row)).await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(SqlStore::open(&folder.file()).await, Err(StoreError::Newer(_))));
}

fn user() -> UserRow {
    UserRow {
        id: UserId(1),
        stable_id: "u1CNTRL".to_owned(),
        login: "alice@example.com".to_owned(),
        display_name: "Alice \"A\"".to_owned(),
        role: Role::ItAdmin,
        created: WallTime::from_unix_nanos(1_234_567_890_123_456_789),
    }
}

fn full_node() -> NodeRow {
    NodeRow {
        id: NodeId(1),
        stable_id: "n1CNTRL".to_owned(),
        machine: MachinePublic::from_bytes([1; 32]),
        key: NodePublic::from_bytes([2; 32]),
        nl_key: "nlpub:1".to_owned(),
        disco: Some(DiscoPublic::from_bytes([3; 32])),
        user: Some(UserId(1)),
        tags: ["tag:a".to_owned(), "tag:b".to_owned()].into(),
        name: "web".to_owned(),
        name_is_fixed: true,
        ipv4: "100.64.0.1".parse().unwrap(),
        ipv6: "fd7a:115c:a1e0::1".parse().unwrap(),
        created: WallTime::from_unix_secs(5),
        key_expiry: Some(WallTime::from_unix_secs(6)),
        ephemeral: true,
        auth_key: Some("k1CNTRL".to_owned()),
        approved_routes: ["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()].into(),
        hostinfo: Box::new(Hostinfo { hostname: "web".to_owned(), ..Hostinfo::default() }),
        cap: 119,
        last_seen: Some(WallTime::from_unix_secs(7)),
        announced: true,
    }
}

fn bare_node() -> NodeRow {
    NodeRow {
        id: NodeId(2),
        key: NodePublic::from_bytes([4; 32]),
        disco: None,
        user: None,
        tags: Default::default(),
        key_expiry: None,
        ephemeral: false,
        name_is_fixed: false,
        auth_key: None,
        approved_routes: Default::default(),
        last_seen: None,
        announced: false,
        ..full_node()
    }
}

fn key() -> KeyRow {
    KeyRow {
        id: "k1CNTRL".to_owned(),
        hash: [9; 32],
        user: UserId(1),
        reusable: true,
        ephemeral: false,
        tags: ["tag:a".to_owned()].into(),
        created: WallTime::from_unix_secs(8),
        expires: WallTime::from_unix_secs(9),
        revoked: Some(WallTime::from_unix_secs(10)),
        uses: 3,
    }
}

fn audit_row(actor: Principal) -> AuditRow {
    AuditRow {
        at: WallTime::from_unix_secs(11),
        actor,
        action: "node.expire".to_owned(),
        target: "n1CNTRL".to_owned(),
        before: Value::Null,
        after: serde_json::json!({ "a": [1, "two"] }),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_log_of_a_database_that_is_gone_is_not_taken_for_that_of_a_new_one() {
    let folder = Folder::new("log");
    for ending in ["-wal", "-journal"] {
        let log = PathBuf::from(format!("{}{ending}", folder.file().display()));
        fs::write(&log, "of another").unwrap();
        let refused = SqlStore::open(&folder.file()).await.err().unwrap();
        assert!(matches!(&refused, StoreError::Damaged(why) if why.contains(ending)), "{refused}");
        assert!(log.exists() && !folder.file().exists());
        fs::remove_file(log).unwrap();
    }
    SqlStore::open(&folder.file()).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn an_empty_or_damaged_file_is_refused_and_stays() {
    let folder = Folder::new("damage");
    fs::write(folder.file(), "").unwrap();
    assert!(matches!(SqlStore::open(&folder.file()).await, Err(StoreError::Damaged(_))));
    fs::remove_file(folder.file()).unwrap();
    SqlStore::open(&folder.file()).await.unwrap().close().await.unwrap();
    let good = fs::read(folder.file()).unwrap();
    for page in 0..good.len() / 4096 {
        let mut bytes = good.clone();
        // The kind of a page of a tree; before it, on the first, the header.
        bytes[4096 * page + if page == 0 { 100 } else { 0 }] ^= 0x40;
        fs::write(folder.file(), bytes).unwrap();
        assert!(SqlStore::open(&folder.file()).await.is_err(), "page {page}");
    }
    fs::write(folder.file(), &good[..good.len() / 2]).unwrap();
    assert!(SqlStore::open(&folder.file()).await.is_err());
    fs::write(folder.file(), &good).unwrap();
    assert!(SqlStore::open(&folder.file()).await.is_ok());
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mesh-sql-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("control.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
