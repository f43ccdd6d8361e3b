//! The promises of `mesh_core::machine`, over random inputs at random times.

#[path = "support/joined.rs"]
#[allow(dead_code, reason = "its lab is for stories")]
mod joined;
#[path = "support/promises.rs"]
mod promises;
mod support;

use std::time::Duration;

use mesh_core::{
    control::{ControlEvent, ControlRequest, Failure, FailureKind, RequestId, types::RegisterResponse},
    dataplane::{Notice, PeerId, Punt},
    derp::RegionId,
    machine::{Deadline, Machine},
    node::{
        Command, CommandId, HostEvent, Input, LinkState, Node, Output, PeerAddressing, PingKind, PingTarget, Prefs,
        RelayEvent,
    },
    path::PathAddr,
    rng::{Rng, Seed},
    time::{Instant, WallAnchor, WallTime},
    wireguard::timers::Edge,
};
use promises::keeps_the_promises;
use serde_json::json;
use support::{address, config, packet, peer};

#[test]
fn a_node_keeps_the_promises() {
    keeps_the_promises(0..60, 100, |_| node(), |node, rng, _, now| node.handle_input(input(rng), now));
}

#[test]
fn a_node_with_a_control_server_keeps_the_promises() {
    keeps_the_promises(0..60, 120, member, |member, rng, _, now| {
        let input = member.input(rng);
        member.handle_input(input, now);
    });
}

fn node() -> Node {
    let mut peers: Vec<_> = (2..6).map(peer).collect();
    peers[1].persistent_keepalive = Some(Duration::from_secs(25));
    peers[2].addressing = PeerAddressing::Roaming { endpoint: None };
    Node::new(config(1, peers), Instant::from_secs(1000)).expect("the configuration is good")
}

fn input(rng: &mut Rng) -> Input {
    let id = PeerId::new(rng.below(6) as u32);
    let source = PathAddr::Udp(address(rng.below(6) as u8));
    match rng.below(11) {
        0 | 1 => Input::Punt(Punt::Unsent { peer: id, packet: packet(1, 2, b"x") }),
        2 | 3 => Input::Punt(Punt::Handshake { source, datagram: initiation(rng) }),
        4 => Input::Punt(Punt::Handshake { source, datagram: rng.bytes::<92>().to_vec() }),
        5 => Input::Punt(Punt::EchoReply { peer: id, packet: packet(2, 1, b"y") }),
        6 => {
            let edges = [Edge::DataSent, Edge::DataReceived, Edge::Confirmed, Edge::Rekey, Edge::Moved];
            let edge = edges[rng.below(edges.len() as u64) as usize];
            Input::Notice(Notice { peer: id, edge, source: Some(source) })
        }
        7 => Input::Host(match rng.below(3) {
            0 => HostEvent::Resumed { slept: Duration::from_secs(rng.below(1000)), entropy: None },
            1 => HostEvent::Links(LinkState::default()),
            _ => {
                let wall = WallTime::from_unix_secs(rng.below(2_000_000_000));
                HostEvent::ClockStepped(WallAnchor { at: Instant::from_secs(1000), wall })
            }
        }),
        8 => {
            let timeout = Duration::from_millis(rng.below(3000));
            let target = PingTarget::Address([10, 0, 0, rng.below(8) as u8].into());
            Input::Command(CommandId(rng.u64()), Command::Ping { target, kind: PingKind::Icmp, timeout })
        }
        9 => Input::Punt(Punt::Stray { source }),
        _ => {
            let peers = (2..6).filter(|_| rng.below(4) > 0).map(peer).collect();
            Input::Command(CommandId(rng.u64()), Command::SetPeers(peers))
        }
    }
}

/// A good initiation by one of the peers, or one by a stranger.
fn initiation(rng: &mut Rng) -> Vec<u8> {
    let number = 2 + rng.below(6) as u8;
    let mut settings = config(number, vec![peer(1)]);
    settings.seed = Seed::from_bytes(rng.bytes());
    let mut end = support::End::new(number, settings, Instant::from_nanos(rng.below(1 << 40)));
    end.send(&packet(number, 1, b"x"), Instant::from_nanos(rng.below(1 << 40)));
    end.sent.pop_front().expect("a first packet makes an initiation").1
}

/// A node with a control server, and what it asked last.
struct Member {
    node: Node,
    /// The newest last.
    asked: Vec<ControlRequest>,
}

fn member(seed: u64) -> Member {
    let node = joined::Lab::new(joined::fresh(), seed).node;
    Member { node, asked: Vec::new() }
}

impl Member {
    fn input(&mut self, rng: &mut Rng) -> Input {
        let id = CommandId(rng.u64());
        match rng.below(24) {
            0 => Input::Command(id, joined::up(Some("tskey-auth-1"), Prefs::default())),
            1 => Input::Command(id, joined::up(None, Prefs { accept_routes: rng.below(2) == 0, ..Prefs::default() })),
            2 if rng.below(2) == 0 => Input::Command(id, Command::Down),
            3 if rng.below(4) == 0 => Input::Command(id, Command::Logout),
            4 => {
                let wall = WallTime::from_unix_secs(1_790_000_000 + rng.below(20_000_000));
                Input::Host(HostEvent::ClockStepped(WallAnchor { at: Instant::from_secs(1000), wall }))
            }
            5 => Input::Host(HostEvent::Links(if rng.below(3) == 0 { LinkState::default() } else { joined::links() })),
            6 | 7 => Input::Relay(relay_event(rng)),
            8 => Input::Punt(Punt::Unsent { peer: PeerId::new(rng.below(3) as u32), packet: packet(1, 2, b"x") }),
            _ => Input::Control(self.answer(rng)),
        }
    }

    /// An answer to one of the newest requests, or to none.
    fn answer(&self, rng: &mut Rng) -> ControlEvent {
        let newest = self.asked.iter().rev().take(4).collect::<Vec<_>>();
        let asked = newest.get(rng.below(newest.len().max(1) as u64) as usize);
        let id = asked.and_then(|request| request.id()).unwrap_or_else(|| RequestId(rng.below(50)));
        if rng.below(6) == 0 {
            let kinds = [
                FailureKind::Unreachable,
                FailureKind::Malformed,
                FailureKind::Status { code: 404, retry_after: None },
                FailureKind::Status { code: 503, retry_after: Some(Duration::from_secs(rng.below(100))) },
            ];
            let failure = Failure { kind: kinds[rng.below(4) as usize], text: "it does not work".to_owned() };
            return ControlEvent::Failed { id, failure };
        }
        match asked {
            Some(ControlRequest::FetchKey { .. }) => ControlEvent::Key { id, key: joined::server_key() },
            Some(ControlRequest::Register { .. }) => {
                let response = match rng.below(6) {
                    0 => RegisterResponse { node_key_expired: true, ..RegisterResponse::default() },
                    1 => {
                        let auth_url = "https://control.example.com/register/abc".to_owned();
                        RegisterResponse { auth_url, ..RegisterResponse::default() }
                    }
                    2 => RegisterResponse { error: "no".to_owned(), ..RegisterResponse::default() },
                    _ => *joined::welcome(),
                };
                ControlEvent::Registered { id, response: Box::new(response) }
            }
            Some(ControlRequest::StreamMap { .. }) => match rng.below(6) {
                0 => ControlEvent::Closed { id },
                1 => ControlEvent::Opened { id },
                2 => joined::map_event(id, &json!({"KeepAlive": true})),
                3 => {
                    joined::map_event(id, &json!({"ControlTime": joined::time(1_790_000_000 + rng.below(20_000_000))}))
                }
                _ => {
                    let expiry = 1_800_000_000 + rng.below(100_000);
                    joined::map_event(id, &joined::first_map(self.node.status(Instant::ZERO).key, expiry))
                }
            },
            _ => ControlEvent::Updated { id },
        }
    }
}

fn relay_event(rng: &mut Rng) -> RelayEvent {
    let region = RegionId::new(joined::REGION).expect("it is no 0");
    match rng.below(3) {
        0 => RelayEvent::Connected { region },
        1 => RelayEvent::Failed { region, reason: "it does not answer".to_owned() },
        _ => RelayEvent::Restarting { region, reconnect_in: Duration::from_millis(rng.below(5000)) },
    }
}

impl Machine for Member {
    type Input<'a> = Input;
    type Output = Output;

    fn handle_input(&mut self, input: Input, now: Instant) {
        self.node.handle_input(input, now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.node.handle_timeout(now);
    }

    fn poll_output(&mut self) -> Option<Output> {
        let output = self.node.poll_output()?;
        if let Output::Control(request) = &output {
            self.asked.push(request.clone());
        }
        Some(output)
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        self.node.poll_timeout()
    }
}
