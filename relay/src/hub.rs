//! What all connections of one relay share, on however many cores they are.

use core::{fmt, time::Duration};
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use mesh_core::{
    key::{NodePrivate, NodePublic},
    rng::Seed,
    time::Instant,
};

use crate::{
    admission::{Admission, Admissions, Policy, Verdict},
    directory::Directory,
    gate::Gate,
    greeting::Seen,
    stats::Stats,
};

/// What an operator decides about a relay.
#[derive(Clone, Debug)]
pub struct Config {
    /// The relay's key.
    pub key: NodePrivate,
    /// Who may connect.
    pub policy: Policy,
    /// How fast one client may send; `None`: as fast as it can.
    pub rate: Option<Rate>,
    /// All randomness of the relay.
    pub seed: Seed,
}

/// How fast one client may send. Over it, reading is delayed and nothing is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run; at least one.
    pub bytes_per_second: u64,
    /// At once.
    pub burst_bytes: u64,
}

impl Rate {
    /// How long `bytes` take at this rate.
    #[must_use]
    pub fn time_for(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What all connections share.
pub struct Hub {
    /// The relay's key.
    pub key: NodePrivate,
    /// Its public half.
    pub public: NodePublic,
    /// Who is here.
    pub directory: Directory,
    /// What was counted.
    pub stats: Stats,
    pub(crate) seed: Seed,
    /// Bytes a second; 0 is no bound. Read for each frame.
    rate: AtomicU64,
    burst: AtomicU64,
    gate: Mutex<Gate>,
    admissions: Mutex<Admissions>,
    seen: Mutex<Seen>,
}

impl Hub {
    /// A relay without connections.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let Config { key, policy, rate, seed } = config;
        let hub = Self {
            public: key.public(),
            key,
            directory: Directory::new(&mut seed.stream("directory", 0)),
            stats: Stats::default(),
            seed,
            rate: AtomicU64::new(0),
            burst: AtomicU64::new(0),
            gate: Mutex::default(),
            admissions: Mutex::new(Admissions::new(policy)),
            seen: Mutex::default(),
        };
        hub.set_rate(rate);
        hub
    }

    /// How fast one client may send.
    #[must_use]
    pub fn rate(&self) -> Option<Rate> {
        let bytes_per_second = self.rate.load(Relaxed);
        (bytes_per_second > 0).then(|| Rate { bytes_per_second, burst_bytes: self.burst.load(Relaxed) })
    }

    /// From now on, also for clients that are here.
    pub fn set_rate(&self, rate: Option<Rate>) {
        self.burst.store(rate.map_or(0, |rate| rate.burst_bytes), Relaxed);
        self.rate.store(rate.map_or(0, |rate| rate.bytes_per_second.max(1)), Relaxed);
    }

    /// Has room for so many connections at once, and [`limits::CONNECTIONS`](crate::limits::CONNECTIONS) at most. For a
    /// relay that has none yet.
    pub fn set_room(&self, room: usize) {
        *self.gate() = Gate::new(room);
    }

    /// How many connections there are, and how many of them have not let their client in.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        self.gate().counts()
    }

    pub(crate) fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn verdict(&self, node: &NodePublic, now: Instant) -> Verdict {
        self.admissions().verdict(node, now)
    }

    pub(crate) fn handle_admission(&self, node: NodePublic, admission: Admission, now: Instant) -> bool {
        self.admissions().handle_admission(node, admission, now)
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        // Each change is one insertion; a panic leaves nothing half done that matters.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admissions(&self) -> MutexGuard<'_, Admissions> {
        self.admissions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hub({:?}, {:?})", self.public, self.directory)
    }
}
