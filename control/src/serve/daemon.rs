//! The server from its first file to its end.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    future::pending,
    io,
    net::SocketAddr,
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, RwLock, atomic::AtomicU64},
    time::Duration,
};

use mesh_core::rng::Seed;
use relay::serve::{
    Ask,
    embedded::{Embedded, Place},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tracing::{info, warn};
use transports::{
    clock::Clock,
    notify,
    program::{Exit, Failure, Signalled, Signals, cannot_start, listener::tcp, log, open_files, print},
};

use super::{
    Flags,
    cli::read_policy,
    config::{Config, FirstPolicy, RelayConfig},
    desk::{Desk, No, Owner},
    identity::{self, KeyFile},
    limits,
    listen::{self, Shop, Wire},
    metrics,
    pass::Door,
    relays::{self, Admission},
    render_pool::RenderPool,
    socket::AdminSocket,
    sql::{SqlStore, StoreError},
};
use crate::{
    coordinator::{self, Command, Coordinator, Input, Reply},
    store::Principal,
};

/// For the last commit at the end: one that failed is tried once more. What was answered as done is on disk before.
const GRACE: Duration = limits::COMMIT_AGAIN.saturating_add(Duration::from_secs(2));

/// Serves until a signal says to end.
pub(super) fn serve(flags: &Flags, socket: &Path) -> Result<(), Failure> {
    let config = flags.config()?;
    log(&config.log, config.log_format, "control::coordinator=debug")?;
    if let Err(error) = transports::private::keep_memory() {
        warn!(%error, "a core dump would hold the key");
    }
    let seed = transports::entropy::seed()
        .map_err(|error| Failure::new(Exit::Bug, "entropy", format!("the system has no randomness: {error}")))?;
    let key = KeyFile::open(&config.state_dir, &seed)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(run(flags, config, socket, &key, seed));
    // Connections end with it.
    runtime.shutdown_background();
    ended
}

async fn run(flags: &Flags, config: Config, socket: &Path, key: &KeyFile, seed: Seed) -> Result<(), Failure> {
    let signals = Signals::new()?;
    let tls = config.tls.as_ref().map(identity::tls).transpose()?;
    let admission = Arc::new(Admission::default());
    let relay = config.relay.as_ref().map(|relay| start_relay(relay, &config, &admission, &seed)).transpose()?;
    let derp_map = relays::derp_map(config.derp_map.as_deref(), relay.as_ref().map(Embedded::region))?;
    let (owner, desk) = restore(&config, derp_map, &seed).await?;
    admission.open(desk.clone());
    let (close, closing) = watch::channel(false);

    let main_wire = if tls.is_some() { Wire::Tls } else { Wire::Plain };
    let main = tcp(config.listen)?;
    let beside = config.http_listen.map(tcp).transpose()?;
    let metrics_listener = config.metrics_listen.map(tcp).transpose()?;
    let admin = AdminSocket::bind(socket).await?;
    let name = |wire| if wire == Wire::Tls { "https" } else { "http" };
    let mut ready = format!("ready {}={}", name(main_wire), address(&main)?);
    for (name, listener) in [("http", &beside), ("metrics", &metrics_listener)] {
        if let Some(listener) = listener {
            ready += &format!(" {name}={}", address(listener)?);
        }
    }
    if let Some((derp, stun)) = relay.as_ref().map(Embedded::addresses) {
        ready += &format!(" derp={derp} stun={stun}");
    }
    ready += &format!(" socket={}", socket.display());

    let shop = Arc::new(Shop {
        public: key.key.public(),
        key: key.key.clone(),
        dice: Mutex::new(seed.stream("connections", 0)),
        server_url: config.server_url.clone(),
        desk: desk.clone(),
        pool: RenderPool::new(),
        // Each node is an open file, and so is what else the server does.
        door: Door::new(open_files() / 2),
        tls: RwLock::new(tls),
        accepted: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        conns: AtomicU64::new(0),
        relay,
    });
    // What is made of it goes on by itself: past handshakes are not to be worked out from it.
    drop(seed);
    let owner = tokio::spawn(owner.run(closing));
    see_to_policy(config.first_policy.as_ref(), &shop.desk).await?;
    tokio::spawn(listen::accept(main, main_wire, Arc::clone(&shop)));
    if let Some(beside) = beside {
        tokio::spawn(listen::accept(beside, Wire::Beside, Arc::clone(&shop)));
    }
    if let Some(metrics_listener) = metrics_listener {
        tokio::spawn(metrics::serve(metrics_listener, Arc::clone(&shop)));
    }
    let admin = tokio::spawn(admin.serve(desk));
    warn_of_plain_http(&config);
    print(&ready);
    notify::ready();
    info!(url = config.server_url, "{ready}");

    let ended = until_the_end(signals, owner, flags, &config, &shop).await;
    info!("ending");
    notify::stopping();
    admin.abort();
    // The socket's file goes with it.
    let _ = admin.await;
    let owner = match ended {
        Ok(owner) => owner,
        Err(failure) => return Err(failure),
    };
    let _ = close.send(true);
    match timeout(GRACE, owner).await {
        Ok(Ok(Some(store))) => {
            if let Err(error) = store.close().await {
                warn!(%error, "the database was not closed well; nothing that was answered is lost");
            }
            Ok(())
        }
        Ok(Ok(None)) | Err(_) => {
            warn!("the last changes could not be stored; nobody was told that they are");
            Ok(())
        }
        Ok(Err(error)) => Err(Failure::new(Exit::Bug, "panic", format!("the coordinator ended by a bug: {error}"))),
    }
}

type OwnerTask = JoinHandle<Option<SqlStore>>;

/// Waits for a signal to end; gives the owner back unless a part of the server ended by itself.
async fn until_the_end(
    mut signals: Signals,
    mut owner: OwnerTask,
    flags: &Flags,
    config: &Config,
    shop: &Shop,
) -> Result<OwnerTask, Failure> {
    let lost = async {
        match &shop.relay {
            Some(relay) => relay.lost().await,
            None => pending().await,
        }
    };
    let mut lost = pin!(lost);
    loop {
        tokio::select! {
            signalled = signals.next() => match signalled {
                Signalled::End => return Ok(owner),
                Signalled::Reload => reload(flags, config, shop).await,
            },
            failure = &mut lost => return Err(failure),
            ended = &mut owner => {
                let why = ended.map_or_else(|error| error.to_string(), |_| "nobody asked it to".to_owned());
                return Err(Failure::new(Exit::Bug, "lost-owner", format!("the coordinator ended by a bug: {why}")));
            }
        }
    }
}

fn start_relay(
    relay: &RelayConfig,
    config: &Config,
    admission: &Arc<Admission>,
    seed: &Seed,
) -> Result<Embedded, Failure> {
    let place =
        Place { state_dir: &config.state_dir, host: &relay.host, listen: relay.listen, stun_listen: relay.stun_listen };
    let ask: Arc<dyn Ask> = Arc::<Admission>::clone(admission);
    Embedded::start(&place, ask, seed.child("relay", 0))
}

async fn restore(
    config: &Config,
    derp_map: Arc<mesh_core::derp::DerpMap>,
    seed: &Seed,
) -> Result<(Owner, Desk), Failure> {
    let path = config.state_dir.join("control.db");
    let broken = |error: StoreError| store_failure(&path, &error);
    let mut store = SqlStore::open(&path).await.map_err(broken)?;
    let rows = store.load().await.map_err(broken)?;
    let clock = Clock::new();
    let settings = coordinator::Config {
        server_url: config.server_url.clone(),
        base_domain: config.base_domain.clone(),
        derp_map,
    };
    let seed = seed.child("coordinator", 0);
    let coordinator = Coordinator::restore(settings, rows, &seed, clock.anchor(), clock.now()).map_err(|error| {
        Failure::new(Exit::Usage, "bad-config", error.to_string())
            .hint("see --base-domain, --derp-map and --relay in mesh-control serve --help")
    })?;
    Ok(Owner::new(coordinator, clock, store))
}

fn store_failure(path: &Path, error: &StoreError) -> Failure {
    let shown = path.display();
    let exit = match error {
        StoreError::File(error) if error.kind() == io::ErrorKind::PermissionDenied => Exit::NotPermitted,
        _ => Exit::Usage,
    };
    let hint = match error {
        StoreError::Newer(_) => "use the mesh-control that wrote it, or a later one".to_owned(),
        _ if error.is_full() => format!("make room where {shown} is, or give another directory with --state-dir"),
        StoreError::File(error) if error.kind() != io::ErrorKind::IsADirectory => {
            "make it readable and writable, or give another directory with --state-dir".to_owned()
        }
        _ => format!(
            "restore {shown} from a backup, with {shown}-wal if that has one; or move away everything that begins with \
             {shown}: the server then starts with an empty network, and nodes have to join again"
        ),
    };
    Failure::new(exit, "store", format!("cannot use {shown}: {error}")).hint(hint)
}

/// What `--first-policy own` stands for.
const OWN: &str = r#"// Everybody reaches the machines that are theirs, and nothing else.
{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}
"#;

/// What `--first-policy all` stands for.
const ALL: &str = r#"// Everybody reaches everything.
{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}
"#;

/// Stores the first policy where none is stored. One that is stored stays, whatever was given: it may have been changed
/// since.
async fn see_to_policy(first: Option<&FirstPolicy>, desk: &Desk) -> Result<(), Failure> {
    let ask =
        async |command| match desk.command(Principal::Server, command).await {
            Err(No::Refused(error)) => Ok(Err(error)),
            Err(No::Ending(error)) => Err(Failure::new(Exit::Bug, "lost-owner", error.to_string())),
            Err(no @ (No::NotYet(_) | No::NotNow(_))) => Err(Failure::new(Exit::Refused, "not_stored", no.to_string())
                .hint("make room where the state directory is")),
            Ok(reply) => Ok(Ok(reply)),
        };
    let is_stored = matches!(ask(Command::GetPolicy).await?, Ok(Reply::Policy(Some(_))));
    let text = match first {
        Some(_) if is_stored => {
            info!("a policy is stored: --first-policy is not used");
            return Ok(());
        }
        None if is_stored => return Ok(()),
        None => {
            warn!("no policy is stored: nothing is allowed; store one with mesh-control policy set FILE");
            return Ok(());
        }
        Some(FirstPolicy::Own) => OWN.to_owned(),
        Some(FirstPolicy::All) => ALL.to_owned(),
        Some(FirstPolicy::File(file)) => read_policy(file)?,
    };
    match ask(Command::SetPolicy { text }).await? {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(Exit::Usage, error.code(), error.to_string()).about_text()),
    }
}

/// Reads the configuration again and takes over what can change under way: the certificate and the relays.
async fn reload(flags: &Flags, old: &Config, shop: &Shop) {
    let read = || {
        let new = flags.config()?;
        for name in old.fixed_changes(&new) {
            warn!("{name}: the change counts from the next start");
        }
        let tls = old.tls.as_ref().map(identity::tls).transpose()?;
        let region = shop.relay.as_ref().map(Embedded::region);
        Ok::<_, Failure>((tls, relays::derp_map(old.derp_map.as_deref(), region)?))
    };
    match read() {
        Ok((tls, derp_map)) => {
            if let Some(tls) = tls {
                shop.set_tls(tls);
            }
            shop.desk.tell(Input::Relays(derp_map)).await;
            info!("configuration read again");
        }
        Err(failure) => {
            warn!(error = failure.message(), "configuration not read again; everything stays as it is");
        }
    }
}

fn warn_of_plain_http(config: &Config) {
    if config.tls.is_some() {
        return;
    }
    let is_private = match config.host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(ip)) => ip.is_private() || ip.is_loopback(),
        Ok(std::net::IpAddr::V6(ip)) => ip.is_unique_local() || ip.is_loopback(),
        Err(_) => config.host == "localhost",
    };
    if is_private {
        warn!("plain HTTP: whoever sits between a node and this server can take the server's place; for tests only");
    } else {
        warn!(
            "plain HTTP: whoever sits between a node and this server can take the server's place, and stock clients \
             force TLS when they connect again within two minutes, so they will not come back; give --tls-cert and \
             --tls-key"
        );
    }
}

fn address(listener: &std::net::TcpListener) -> Result<SocketAddr, Failure> {
    listener.local_addr().map_err(|error| cannot_start(&error))
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread().enable_all().build().map_err(|error| cannot_start(&error))
}
