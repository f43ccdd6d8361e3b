use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use mesh_core::rng::Seed;

use super::*;
use crate::{coordinator, store::Rows};

fn machine() -> MachinePublic {
    MachinePublic::from_bytes([1; 32])
}

fn localhost() -> IpAddr {
    core::net::Ipv4Addr::LOCALHOST.into()
}

/// A disk that is full now and then.
struct Disk {
    full: Arc<AtomicBool>,
    rows: Arc<std::sync::Mutex<Rows>>,
}

impl Store for Disk {
    async fn commit(&mut self, mutations: &[Mutation]) -> Result<(), StoreError> {
        if self.full.load(Relaxed) {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into());
        }
        let mut rows = self.rows.lock().unwrap();
        mutations.iter().cloned().for_each(|mutation| rows.apply(mutation));
        Ok(())
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_full_disk_refuses_changes_answers_questions_and_goes_on_by_itself() {
    let (full, rows) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let disk = Disk { full: Arc::clone(&full), rows: Arc::clone(&rows) };
    let clock = Clock::new();
    let relays = r#"{"Regions": {"1": {"RegionID": 1, "Nodes": [{"Name": "1a", "RegionID": 1, "HostName": "r"}]}}}"#;
    let derp_map = Arc::new(serde_json::from_str(relays).unwrap());
    let config = coordinator::Config { server_url: "http://c".into(), base_domain: "example.com".into(), derp_map };
    let (anchor, now) = (clock.anchor(), clock.now());
    let coordinator = Coordinator::restore(config, Rows::default(), &Seed::from_number(1), anchor, now).unwrap();
    let (owner, desk) = Owner::new(coordinator, clock, disk);
    let (_open, closing) = watch::channel(false);
    tokio::spawn(owner.run(closing));
    let create = |login: &str| desk.command(Principal::Server, Command::CreateUser { login: login.into() });
    let logins = async || match desk.command(Principal::Server, Command::ListUsers).await {
        Ok(Reply::Users(users)) => users.into_iter().map(|user| user.login).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };

    create("before").await.unwrap();
    full.store(true, Relaxed);
    assert!(matches!(create("under-way").await, Err(No::NotYet(_))));
    assert!(matches!(create("never").await, Err(No::NotNow(_))));
    // A map would be opened, or say what changed: neither could be told.
    let map = Request::Map(Box::default());
    let answer = desk.ask(ConnId(1), (machine(), localhost()), RequestId(1), map).await.unwrap();
    assert!(matches!(answer, Answer::Refused(Refusal { status: 503, .. })));
    assert_eq!(logins().await, ["before", "under-way"]);
    assert!(desk.look().await.unwrap().stuck);
    assert_eq!(rows.lock().unwrap().users.len(), 1);
    full.store(false, Relaxed);
    while desk.look().await.unwrap().stuck {
        tokio::time::sleep(limits::COMMIT_AGAIN).await;
    }
    create("after").await.unwrap();
    // While the first commit that fails is under way, only what it would store is "not yet".
    full.store(true, Relaxed);
    let (last, again, seen) = tokio::join!(create("last"), create("after"), logins());
    assert!(matches!(last, Err(No::NotYet(_))));
    assert!(matches!(again, Err(No::Refused(_))), "{again:?}");
    assert_eq!(seen, ["before", "under-way", "after", "last"]);
    let stored: Vec<_> = rows.lock().unwrap().users.values().map(|user| user.login.clone()).collect();
    assert_eq!(stored, ["before", "under-way", "after"]);
}
