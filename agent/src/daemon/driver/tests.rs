use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_core::{
    key::NodePrivate,
    node::{NodeConfig, PeerConfig, PingKind, PingTarget},
    rng::Seed,
};
use transports::tun::MemoryTun;

use super::*;

#[tokio::test(flavor = "current_thread")]
async fn packets_go_from_tun_to_tun_in_order_and_pings_are_answered_by_the_other_host() {
    let (mut a, host_a, mut b, host_b) = two_drivers();
    let ((ask_a, mut requests_a), (ask_b, mut requests_b)) = (mpsc::channel(4), mpsc::channel(4));
    let both = async { tokio::join!(a.run(&mut requests_a), b.run(&mut requests_b)) };
    let story = async {
        // More than wait for a session, in two goes: the first brings it up.
        host_a.send(&packet(0)).unwrap();
        assert_eq!(receive(&host_b).await, packet(0));
        for index in 1..200 {
            host_a.send(&packet(index)).unwrap();
            assert_eq!(receive(&host_b).await, packet(index));
        }
        let (reply, status) = oneshot::channel();
        ask_a.send(Request::Status(reply)).await.unwrap();
        let status = status.await.unwrap();
        assert_eq!((status.tun.read, status.status.peers.len()), (200, 1));
        assert!(status.status.peers[0].has_session);

        // Nobody answers behind a memory TUN, so the ping times out, and says so.
        let (reply, pong) = oneshot::channel();
        let target = PingTarget::Address(address(2));
        ask_a
            .send(Request::Command(
                Command::Ping { target, kind: PingKind::Icmp, timeout: Duration::from_millis(20) },
                reply,
            ))
            .await
            .unwrap();
        assert!(matches!(pong.await.unwrap(), Err(CommandError::TimedOut { .. })));
        for ask in [ask_a, ask_b] {
            ask.send(Request::Stop).await.unwrap();
        }
    };
    let story = async { tokio::join!(both, story) };
    let ((ended, _), ()) = tokio::time::timeout(Duration::from_secs(20), story).await.unwrap();
    assert_eq!(ended, Ok(()));
}

/// Two drivers with a host each; the first knows where the second is.
fn two_drivers() -> (Driver<MemoryTun>, MemoryTun, Driver<MemoryTun>, MemoryTun) {
    let key = |index| NodePrivate::from_bytes([index; 32]);
    let start = |index: u8, endpoint| {
        let other = 3 - index;
        let peer = PeerConfig {
            key: key(other).public(),
            preshared_key: None,
            allowed_ips: vec![mesh_core::ip::prefix::Prefix::host(address(other))],
            addressing: mesh_core::node::PeerAddressing::Roaming { endpoint },
            persistent_keepalive: None,
        };
        let clock = Clock::new();
        let config = NodeConfig {
            key: key(index),
            disco_key: mesh_core::key::DiscoPrivate::from_bytes([index; 32]),
            addresses: vec![(address(index), 32)],
            mtu_bytes: 1420,
            listen_port: 0,
            peers: vec![peer],
            control: None,
            seed: Seed::from_number(index.into()),
            epoch: clock.anchor(),
        };
        let node = Node::new(config, clock.now()).unwrap();
        let (tun, host) = MemoryTun::pair().unwrap();
        (Driver::start(node, clock, tun, None, None, None, 1420).unwrap(), host)
    };
    let (b, host_b) = start(2, None);
    let (a, host_a) = start(1, Some(SocketAddr::from(([127, 0, 0, 1], b.port()))));
    (a, host_a, b, host_b)
}

fn address(index: u8) -> IpAddr {
    IpAddr::from([10, 7, 0, index])
}

/// An IPv4 packet from the first to the second, of a protocol for experiments (RFC 3692).
fn packet(index: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 253, 0, 0, 10, 7, 0, 1, 10, 7, 0, 2];
    packet.resize(40, index);
    packet
}

async fn receive(host: &MemoryTun) -> Vec<u8> {
    let mut room = [0; 2000];
    loop {
        match host.recv(&mut room) {
            Ok(length) => return room[..length].to_vec(),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}
