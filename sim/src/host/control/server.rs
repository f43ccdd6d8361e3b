//! The program of a control server: the real coordinator, a disk, and the outputs that wait for it.
//!
//! Outputs are carried out in order. What is to be stored is on the disk a while later, with all that had gathered until
//! then, and nothing behind it is carried out before. A crash is the end between two steps: what was stored is there at
//! the next start, everything else is not.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use control::{
    coordinator::{AdminId, Command, Config, Coordinator, Input, Output, Reply, Secret},
    store::{Mutation, Principal, Rows},
};
use mesh_core::{
    machine::{Deadline, Machine as _},
    rng::Seed,
    time::{Instant, WallAnchor, earliest},
};

use super::{KeySetup, Preparation};

/// A coordinator and what it wants done.
#[derive(Debug)]
pub(super) struct Server {
    coordinator: Coordinator,
    queue: VecDeque<Output>,
    commit: Option<Commit>,
    /// How long the disk takes.
    takes: Duration,
    /// Steps until it crashes.
    crash_after: Option<u64>,
}

#[derive(Debug)]
struct Commit {
    mutations: Vec<Mutation>,
    until: Instant,
}

/// A server is no more: what it had not stored is lost.
#[derive(Debug)]
pub(super) struct Crashed;

impl Server {
    /// A server that starts from what was stored.
    ///
    /// # Panics
    /// When the coordinator refuses its configuration or what it stored.
    pub(super) fn new(
        config: Config,
        rows: &Rows,
        seed: &Seed,
        clock: WallAnchor,
        takes: Duration,
        now: Instant,
    ) -> Self {
        let coordinator = Coordinator::restore(config, rows.clone(), seed, clock, now)
            .expect("the configuration is good, and so is what was stored");
        Self { coordinator, queue: VecDeque::new(), commit: None, takes, crash_after: None }
    }

    /// Something happened.
    pub(super) fn handle_input(&mut self, input: Input, now: Instant) {
        self.coordinator.handle_input(input, now);
    }

    /// Lets due timers act.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.coordinator.handle_timeout(now);
    }

    /// It crashes after so many further steps.
    pub(super) fn crash_after(&mut self, steps: u64) {
        self.crash_after = Some(steps);
    }

    /// The coordinator, to be looked at.
    pub(super) fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// The coordinator, to be asked.
    pub(super) fn coordinator_mut(&mut self) -> &mut Coordinator {
        &mut self.coordinator
    }

    /// When something is due next.
    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let commit = self.commit.as_ref().map(|commit| Deadline::new(commit.until, "commit"));
        earliest(self.coordinator.poll_timeout(), commit)
    }

    /// What is to be carried out next; nothing before something happens when `None`.
    ///
    /// # Errors
    /// When the server crashes instead.
    pub(super) fn next_output(&mut self, rows: &mut Rows, now: Instant) -> Result<Option<Output>, Crashed> {
        loop {
            self.queue.extend(core::iter::from_fn(|| self.coordinator.poll_output()));
            if self.commit.as_ref().is_some_and(|commit| commit.until > now) {
                return Ok(None);
            }
            if self.commit.is_none() && self.queue.is_empty() {
                return Ok(None);
            }
            match &mut self.crash_after {
                Some(0) => return Err(Crashed),
                Some(steps) => *steps -= 1,
                None => {}
            }
            if let Some(commit) = self.commit.take() {
                commit.mutations.into_iter().for_each(|mutation| rows.apply(mutation));
                continue;
            }
            match self.queue.pop_front() {
                Some(Output::Persist(first)) => {
                    let mut mutations = first;
                    for output in &mut self.queue {
                        if let Output::Persist(more) = output {
                            mutations.append(more);
                        }
                    }
                    self.queue.retain(|output| !matches!(output, Output::Persist(_)));
                    self.commit = Some(Commit { mutations, until: now + self.takes });
                }
                Some(output) => return Ok(Some(output)),
                None => return Ok(None),
            }
        }
    }
}

/// Sets a server up before the world begins: its users, its auth keys, its policy. Says what the keys are.
///
/// # Panics
/// When the server refuses one of them.
pub(super) fn prepare(
    config: Config,
    preparation: &Preparation,
    seed: &Seed,
    clock: WallAnchor,
    now: Instant,
) -> (Rows, BTreeMap<String, String>) {
    let mut rows = Rows::default();
    let mut server = Server::new(config, &rows, seed, clock, Duration::ZERO, now);
    let mut number = 0;
    let mut command = |command: Command| {
        number += 1;
        let by = Principal::Operator("scenario".to_owned());
        server.handle_input(Input::Admin { id: AdminId(number), by, command: command.clone() }, now);
        let mut answer = None;
        while let Ok(Some(output)) = server.next_output(&mut rows, now) {
            if let Output::Admin { result, .. } = output {
                answer = Some(result.unwrap_or_else(|error| panic!("{command:?} is refused: {error}")));
            }
        }
        answer.unwrap_or_else(|| panic!("{command:?} is not answered"))
    };
    for login in &preparation.users {
        command(Command::CreateUser { login: login.clone() });
    }
    if let Some(text) = &preparation.policy {
        command(Command::SetPolicy { text: text.clone() });
    }
    let mut keys = BTreeMap::new();
    for KeySetup { name, user, reusable, ephemeral, tags, expiry } in &preparation.keys {
        let create = Command::CreateKey {
            user: user.clone(),
            reusable: *reusable,
            ephemeral: *ephemeral,
            tags: tags.iter().cloned().collect(),
            expiry: *expiry,
        };
        let Reply::NewKey { text: Secret(text), .. } = command(create) else { panic!("an auth key without a text") };
        keys.insert(name.clone(), text);
    }
    (rows, keys)
}
