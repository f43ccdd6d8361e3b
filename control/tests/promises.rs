//! The promises of `mesh_core::machine`, kept by a server whose clients and operators do anything in any order.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

#[path = "../../mesh-core/tests/support/promises.rs"]
mod promises;
mod support;

use std::{collections::BTreeSet, sync::Arc};

use control::{
    coordinator::{
        AdminId, Command, ConnId, Coordinator, Endpoint, Input, Output, Reply, Request, RequestId, Response, StreamId,
    },
    render::MapUpdate,
    store::{Principal, Rows},
};
use mesh_core::{
    control::types::{MapRequest, RegisterAuth, RegisterRequest},
    key::{DiscoPublic, MachinePublic, NodePublic},
    machine::{Deadline, Machine},
    rng::{Rng, Seed},
    time::{Instant, WallAnchor, WallTime},
};
use promises::keeps_the_promises;

#[test]
fn a_coordinator_keeps_the_promises() {
    keeps_the_promises(0..60, 250, server, |server, rng, step, now| {
        let input = server.input(rng, step);
        server.handle_input(input, now);
    });
}

/// A server, and what clients and operators have of it.
struct Server {
    coordinator: Coordinator,
    auth_keys: Vec<String>,
    codes: Vec<String>,
    /// The newest last.
    streams: Vec<StreamId>,
}

fn server(seed: u64) -> Server {
    let seed = Seed::from_number(seed).child("promises", 0);
    let now = Instant::from_secs(1000);
    let coordinator = Coordinator::restore(support::config(), Rows::default(), &seed, support::anchor(), now).unwrap();
    Server { coordinator, auth_keys: Vec::new(), codes: Vec::new(), streams: Vec::new() }
}

/// One of `all`, the newer the likelier.
fn one_of<T: Clone>(all: &[T], rng: &mut Rng) -> Option<T> {
    all.iter().rev().nth(rng.below(6) as usize).or(all.last()).cloned()
}

impl Server {
    fn input(&self, rng: &mut Rng, step: u8) -> Input {
        let conn = ConnId(rng.below(5));
        // Each connection is of one machine; some ask with the key of another.
        let machine = MachinePublic::from_bytes(support::bytes(conn.0 as u32, 1));
        let owner = if rng.below(10) == 0 { rng.below(5) } else { conn.0 };
        let node_key = NodePublic::from_bytes(support::bytes(owner as u32, 2 + rng.below(2) as u8));
        let (from, id) = ([192, 0, 2, conn.0 as u8].into(), RequestId(step.into()));
        let request = |request| Input::Request { conn, machine, from, id, request };
        match rng.below(16) {
            0..=2 => self.admin(step, self.command(rng)),
            3..=5 => request(Request::Register(Box::new(self.registration(node_key, rng)))),
            6..=9 => request(Request::Map(Box::new(map_request(node_key, rng)))),
            10 => Input::Closed { conn },
            11 => Input::Aborted { conn, id: RequestId(rng.below(u64::from(step) + 1)) },
            12 | 13 => Input::Writable { stream: one_of(&self.streams, rng).unwrap_or(StreamId(0)) },
            14 if rng.below(4) == 0 => {
                let wall = WallTime::from_unix_secs(1_800_000_000 + rng.below(200 * 24 * 3600));
                Input::ClockStepped(WallAnchor { at: Instant::from_secs(1000), wall })
            }
            14 => Input::Relays(Arc::new(support::derp_map(&[900, 901 + rng.below(2) as i64]))),
            _ => request(Request::Other { endpoint: Endpoint::AuditLog, node_key }),
        }
    }

    fn admin(&self, step: u8, command: Command) -> Input {
        Input::Admin { id: AdminId(step.into()), by: Principal::Operator("root".into()), command }
    }

    fn command(&self, rng: &mut Rng) -> Command {
        // As nodes are called that do not say a name.
        let node = ["node", "node-1", "node-2"][rng.below(3) as usize].to_owned();
        let user = "alice@example.com".to_owned();
        match rng.below(10) {
            0 | 1 => Command::CreateUser { login: user },
            2 | 3 => {
                let tags = if rng.below(2) == 0 { BTreeSet::new() } else { BTreeSet::from(["tag:a".to_owned()]) };
                let (reusable, ephemeral) = (rng.below(2) == 0, rng.below(3) == 0);
                Command::CreateKey { user, reusable, ephemeral, tags, expiry: None }
            }
            4 => Command::SetPolicy { text: support::ALL.into() },
            5 => Command::SetPolicy { text: r#"{"tagOwners": {"tag:a": []}, "acls": []}"#.into() },
            6 => Command::RegisterNode { code: one_of(&self.codes, rng).unwrap_or_default(), user },
            7 => Command::ExpireNode { node },
            8 => Command::DeleteNode { node },
            _ => Command::RenameNode { node, name: format!("name{}", rng.below(3)) },
        }
    }

    fn registration(&self, node_key: NodePublic, rng: &mut Rng) -> RegisterRequest {
        let auth_key = one_of(&self.auth_keys, rng).filter(|_| rng.below(4) > 0);
        RegisterRequest {
            version: support::VERSION,
            node_key,
            auth: auth_key.map(|auth_key| RegisterAuth { auth_key }),
            expiry: (rng.below(12) == 0).then_some(support::BEGIN),
            followup: one_of(&self.codes, rng).filter(|_| rng.below(3) == 0).unwrap_or_default(),
            ..RegisterRequest::default()
        }
    }
}

fn map_request(node_key: NodePublic, rng: &mut Rng) -> MapRequest {
    let stream = rng.below(2) == 0;
    MapRequest {
        version: support::VERSION,
        node_key,
        stream,
        keep_alive: stream,
        omit_peers: rng.below(3) > 0,
        disco_key: Some(DiscoPublic::from_bytes([1 + rng.below(4) as u8; 32])),
        endpoints: vec![format!("192.0.2.{}:41641", rng.below(200)).parse().unwrap()],
        endpoint_types: vec![1],
        ..MapRequest::default()
    }
}

fn json(update: &MapUpdate) -> String {
    String::from_utf8(update.render().to_json()).unwrap()
}

impl Machine for Server {
    type Input<'a> = Input;
    type Output = String;

    fn handle_input(&mut self, input: Input, now: Instant) {
        self.coordinator.handle_input(input, now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.coordinator.handle_timeout(now);
    }

    /// What is said in words: of a map what the node reads.
    fn poll_output(&mut self) -> Option<String> {
        let output = self.coordinator.poll_output()?;
        match &output {
            Output::Admin { result: Ok(Reply::NewKey { text, .. }), .. } => self.auth_keys.push(text.0.clone()),
            Output::Respond { response: Response::Stream(stream), .. } => self.streams.push(*stream),
            Output::Respond { response: Response::Register(response), .. } if !response.auth_url.is_empty() => {
                self.codes.push(response.auth_url.clone());
            }
            Output::Push(update) => return Some(json(update)),
            Output::Respond { response: Response::Once(update), .. } => return Some(json(update)),
            _ => {}
        }
        Some(format!("{output:?}"))
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        self.coordinator.poll_timeout()
    }
}
