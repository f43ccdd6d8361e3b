//! Disco messages, and the small ones inside the tunnel.

use mesh_core::{
    disco::{self, Disco, Message, OpenError},
    ip::{packet::IpPacket, tsmp::Tsmp},
    key::DiscoPrivate,
    rng::Seed,
};

/// A message that is read says the same when it is written and read again, and arrives so at the one for whom it is
/// sealed. Changed on the way, or at anybody else, it is refused; and so is whatever was sealed by nobody.
///
/// # Panics
/// When that is not so.
pub fn messages(data: &[u8]) {
    let [mut alice, mut bob, mut eve] = [1, 2, 3].map(end);
    match bob.open(data) {
        // Made with the keys of this test, perhaps.
        Ok((from, _)) => assert_eq!(from, alice.public()),
        Err(OpenError::NotDisco) => assert_eq!(disco::sender(data), None),
        Err(OpenError::Sealed | OpenError::Message(_)) => assert!(disco::sender(data).is_some()),
    }

    let Ok(message) = Message::parse(data) else { return };
    let Some(written) = message.emit() else {
        assert!(matches!(message, Message::PeerRelay(_)) && alice.seal(bob.public(), &message).is_none());
        return;
    };
    let message = match message {
        // Padding is sent behind a node key alone.
        Message::Ping(mut ping) if ping.node.is_none() => {
            ping.padding_bytes = 0;
            Message::Ping(ping)
        }
        other => other,
    };
    assert_eq!(Message::parse(&written).as_ref(), Ok(&message));
    let packet = alice.seal(bob.public(), &message).expect("the key is good");
    assert_eq!(disco::sender(&packet), Some(alice.public()));
    assert_eq!(bob.open(&packet), Ok((alice.public(), message)));
    assert_eq!(eve.open(&packet), Err(OpenError::Sealed));
    // Behind magic and sender every bit counts.
    let at = 38 + usize::from(data[0]) % (packet.len() - 38);
    let mut changed = packet;
    changed[at] ^= data.last().copied().unwrap_or_default().max(1);
    assert_eq!(bob.open(&changed), Err(OpenError::Sealed));
}

/// A message inside the tunnel that is read is the same when it is built and read again.
///
/// # Panics
/// When it is not.
pub fn tsmp(data: &[u8]) {
    let Ok(packet) = IpPacket::parse(data) else { return };
    let Some(message) = Tsmp::parse(&packet) else { return };
    let built = message.packet(packet.source(), packet.destination());
    assert_eq!(built.is_none(), message == Tsmp::Other);
    let Some(built) = built else { return };
    let view = IpPacket::parse(&built).expect("what we build is a packet");
    assert_eq!((view.source(), view.destination()), (packet.source(), packet.destination()));
    assert_eq!(Tsmp::parse(&view), Some(message));
}

fn end(number: u8) -> Disco {
    let seed = Seed::from_number(u64::from(number));
    Disco::new(DiscoPrivate::from_bytes([number; 32]), seed.stream("disco", 0))
}
