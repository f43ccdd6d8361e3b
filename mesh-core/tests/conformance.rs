//! The promises of `mesh_core::machine`, over random inputs at random times.

mod support;

use std::time::Duration;

use mesh_core::{
    dataplane::{Notice, PeerId, Punt},
    machine::{Machine, settle},
    node::{Command, CommandId, HostEvent, Input, LinkState, Node, PeerAddressing, PingKind, PingTarget},
    path::PathAddr,
    rng::{Rng, Seed},
    time::{Instant, WallAnchor, WallTime},
    wireguard::timers::Edge,
};
use support::{address, config, packet, peer};

#[test]
fn a_node_keeps_the_promises() {
    for seed in 0..60 {
        keeps_the_promises(seed, node, input);
    }
}

/// Drives a machine with random inputs and checks that it never spins, that an older `now` is harmless, and that the
/// same inputs give the same outputs.
fn keeps_the_promises<M>(seed: u64, make: impl Fn() -> M, input: impl Fn(&mut Rng) -> M::Input<'static>)
where
    M: Machine,
    M::Output: std::fmt::Debug,
{
    let run = |jumps_back: bool| {
        let mut rng = Seed::from_number(seed).stream("conformance", 0);
        let mut machine = make();
        let mut now = Instant::from_secs(1000);
        let mut trace = Vec::new();
        for _ in 0..100 {
            let input = input(&mut rng);
            let magnitude = rng.below(16);
            now += Duration::from_millis(rng.below(1 << magnitude));
            machine.handle_input(input, now);
            // Outputs are drained, then the machine waits.
            trace.extend(settle(&mut machine, now).iter().map(|output| format!("{output:?}")));
            if jumps_back {
                machine.handle_timeout(Instant::ZERO);
                trace.extend(settle(&mut machine, Instant::ZERO).iter().map(|output| format!("{output:?}")));
            }
            let deadline = machine.poll_timeout();
            assert!(deadline.is_none_or(|d| d.at > now), "seed {seed} spins at {now}: {deadline:?}");
            if let Some(deadline) = deadline
                && rng.below(2) == 0
            {
                now = deadline.at;
                trace.extend(settle(&mut machine, now).iter().map(|output| format!("{output:?}")));
                let again = machine.poll_timeout();
                assert!(again.is_none_or(|d| d.at > now), "seed {seed} spins at {now}: {again:?}");
            }
        }
        trace
    };
    let trace = run(false);
    assert!(trace.len() > 10, "seed {seed} says nothing");
    assert_eq!(trace, run(false), "seed {seed} is not repeatable");
    assert_eq!(trace, run(true), "seed {seed}: an older now makes a difference");
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
