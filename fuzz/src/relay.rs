//! The relay: frames, and a whole relay with clients that send what they like.

use std::collections::BTreeMap;

use mesh_core::{
    crypto::nacl::BoxKey,
    derp::{Frame, PeerGoneReason},
    key::{NodePrivate, NodePublic},
    machine::{Machine, settle},
    rng::Seed,
    stun,
    time::Instant,
};
use relay::{
    Config, ConnId, Input, Output, Rate, Relay,
    admission::{Admission, Policy},
    greeting::{self, Seen},
    stats::Stats,
};

use crate::script::Script;

/// A frame that is read is the same when it was written and read again, wherever the bytes end.
///
/// # Panics
/// When it is not.
pub fn frames(data: &[u8]) {
    let Ok(Some((frame, length))) = Frame::decode(data) else { return };
    assert!(length <= data.len());
    assert_eq!(Frame::decode(&data[..length]), Ok(Some((frame, length))));
    let mut written = Vec::new();
    frame.encode(&mut written);
    // Bytes that a later version may add behind what is known are not kept. Older ones leave out the last byte of two
    // frames, which then is zero, and is written.
    let left_out = match frame {
        Frame::PeerGone { reason: PeerGoneReason::Disconnected, .. }
        | Frame::PeerPresent { address: Some(_), flags: 0, .. } => 1,
        _ => 0,
    };
    assert!(written.len() <= length + left_out);
    assert_eq!(Frame::decode(&written), Ok(Some((frame, written.len()))));
}

/// Nobody is greeted who does not hold the key, nobody twice with one greeting, and a greeting changed on the way is none;
/// what is answered opens at the client. A datagram is answered when it asks, with where it came from and nothing more.
/// The first byte is the number of the client, what follows is inside the box.
///
/// # Panics
/// When that is not so.
pub fn strangers(data: &[u8]) {
    let Some((number, inside)) = data.split_first() else { return };
    let (number, mut seen) = (number % 5, Seen::default());
    assert!(greeting::open(&server(), &key(number), data, &mut seen).is_err(), "nobody sealed it");

    let nonce = [number; 24];
    let shared = BoxKey::new(&private(number).to_bytes(), server().public().as_bytes()).expect("keys are good");
    let sealed = [&nonce[..], &shared.seal(&nonce, inside)].concat();
    let info = serde_json::from_slice::<serde_json::Value>(inside).ok();
    // A list of its fields is an object, too.
    let version = info.as_ref().and_then(|info| info.get("version").or_else(|| info.get(0)));
    let is_right = version.is_some_and(|version| *version == 2);
    match greeting::open(&server(), &key(number), &sealed, &mut seen) {
        Ok((_, shared_too)) => {
            // What is skipped may be no text.
            assert!(is_right || info.is_none(), "{inside:?}");
            assert!(greeting::open(&server(), &key(number), &sealed, &mut seen).is_err(), "twice");
            let mut answer = Vec::new();
            greeting::answer(&shared_too, &mut Seed::from_number(1).stream("answer", 0), &mut answer);
            let Ok(Some((Frame::ServerInfo { sealed }, _))) = Frame::decode(&answer) else { panic!("an answer") };
            let (nonce, sealed) = sealed.split_first_chunk().expect("a nonce");
            shared.open(nonce, sealed).expect("it is for this client");
        }
        Err(_) => assert!(greeting::open(&server(), &key(number), &sealed, &mut seen).is_err()),
    }
    assert!(greeting::open(&server(), &key((number + 1) % 5), &sealed, &mut seen).is_err(), "somebody else");

    let (stats, from) = (Stats::default(), ([192, 0, 2, number], 7).into());
    if let Some(answer) = relay::stun::answer(data, from, &stats) {
        let (tx, _) = stun::parse_request(data).expect("it asks");
        assert_eq!(stun::parse_response(&answer), Ok((tx, from)));
        assert!(answer.len() <= data.len(), "nobody is flooded by it");
    }
}

/// Clients of a relay, a few of them well behaved: steps are connections that come and go, bytes of any kind, frames that
/// are well made, streams that take no more, verdicts, and time.
///
/// # Panics
/// When the relay says something that is no frame, delivers what nobody sent, spins, or keeps something of clients that
/// have left.
pub fn clients(data: &[u8]) {
    let mut script = Script::new(data);
    let first = script.byte();
    let policy = if first & 1 == 0 { Policy::Open } else { Policy::Ask };
    let rate = (first & 2 != 0).then_some(Rate { bytes_per_second: 1000, burst_bytes: 0 });
    let config = Config { key: server(), policy, rate, seed: Seed::from_number(1) };
    let mut lab = Lab { relay: Relay::new(config), now: Instant::from_secs(1000), conns: BTreeMap::new(), next: 0 };
    for _ in 0..120 {
        if script.is_done() {
            break;
        }
        lab.step(&mut script);
    }
    let conns: Vec<_> = lab.conns.keys().copied().collect();
    for conn in conns {
        lab.input(Input::Closed { conn });
    }
    assert_eq!(lab.relay.poll_timeout(), None, "nobody is left to wait for");
}

struct Lab {
    relay: Relay,
    now: Instant,
    conns: BTreeMap<ConnId, Heard>,
    next: u64,
}

/// What one connection heard.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    /// Its stream takes nothing; a write that is owed an answer waits.
    holds: bool,
    owed: bool,
}

impl Lab {
    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        let number = script.byte() % 5;
        let count = self.conns.len().max(1);
        let pick = usize::from(script.byte()) % count;
        let conn = self.conns.keys().nth(pick).copied().unwrap_or(ConnId(u64::MAX));
        match what % 12 {
            0 | 1 if self.conns.len() < 8 => {
                let conn = ConnId(self.next);
                self.next += 1;
                self.conns.insert(conn, Heard::default());
                self.input(Input::Accepted { conn, from: ([192, 0, 2, number], 7).into() });
                if what & 16 != 0 {
                    self.input(Input::Received { conn, bytes: &greeting(number, self.next) });
                }
            }
            2 => self.input(Input::Received { conn, bytes: &greeting(number, self.next) }),
            3 => self.input(Input::Received { conn, bytes: script.chunk() }),
            4..=6 => {
                let mut bytes = Vec::new();
                let packet = script.chunk();
                match what / 12 % 8 {
                    0 => Frame::Ping(script.array()).encode(&mut bytes),
                    1 => Frame::NotePreferred(number > 2).encode(&mut bytes),
                    2 => Frame::Unknown(script.byte()).encode(&mut bytes),
                    _ => Frame::SendPacket { to: key(number), packet }.encode(&mut bytes),
                }
                self.input(Input::Received { conn, bytes: &bytes });
            }
            7 => {
                if let Some(heard) = self.conns.get_mut(&conn) {
                    heard.holds = !heard.holds;
                    if !heard.holds && core::mem::take(&mut heard.owed) {
                        self.input(Input::Writable { conn });
                    }
                }
            }
            8 => self.input(Input::Progress { conn }),
            9 => {
                let verdicts = [Admission::Allowed, Admission::Refused, Admission::Unclear, Admission::Unreachable];
                self.input(Input::Admitted { conn, verdict: verdicts[usize::from(number) % 4] });
            }
            10 => {
                self.conns.remove(&conn);
                self.input(Input::Closed { conn });
            }
            _ => {
                self.now += core::time::Duration::from_millis(u64::from(script.short()));
                self.drain();
            }
        }
    }

    fn input(&mut self, input: Input<'_>) {
        self.relay.handle_input(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            let outputs = settle(&mut self.relay, self.now);
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                match output {
                    Output::Write { conn, bytes } => self.write(conn, &bytes),
                    Output::Close { conn, .. } => drop(self.conns.remove(&conn)),
                    Output::Pause { .. } | Output::Resume { .. } | Output::Transmit { .. } | Output::Admit { .. } => {}
                }
            }
        }
        assert!(self.relay.poll_timeout().is_none_or(|deadline| deadline.at > self.now), "the relay spins");
    }

    fn write(&mut self, conn: ConnId, bytes: &[u8]) {
        let Some(heard) = self.conns.get_mut(&conn) else { return };
        assert!(!heard.owed, "a write while another is under way");
        heard.bytes.extend_from_slice(bytes);
        let mut used = 0;
        while let Some((frame, length)) = Frame::decode(&heard.bytes[used..]).expect("the relay speaks DERP") {
            match frame {
                Frame::RecvPacket { from, .. } => assert!((0..5).any(|number| key(number) == from), "from nobody"),
                Frame::ServerKey(key) => assert_eq!(key, server().public()),
                Frame::ServerInfo { .. }
                | Frame::KeepAlive
                | Frame::Pong(_)
                | Frame::Health(_)
                | Frame::PeerGone { .. } => {}
                other => panic!("a client has no use for {other:?}"),
            }
            used += length;
        }
        assert_eq!(used, heard.bytes.len(), "writes are whole frames");
        heard.bytes.clear();
        if heard.holds {
            heard.owed = true;
        } else {
            self.relay.handle_input(Input::Writable { conn }, self.now);
        }
    }
}

fn greeting(number: u8, nonce: u64) -> Vec<u8> {
    let mut bytes = [number; 24];
    bytes[..8].copy_from_slice(&nonce.to_be_bytes());
    let shared = BoxKey::new(&private(number).to_bytes(), server().public().as_bytes()).expect("keys are good");
    let sealed = [&bytes[..], &shared.seal(&bytes, br#"{"version":2}"#)].concat();
    let mut frame = Vec::new();
    Frame::ClientInfo { key: key(number), sealed: &sealed }.encode(&mut frame);
    frame
}

fn key(number: u8) -> NodePublic {
    private(number).public()
}

fn private(number: u8) -> NodePrivate {
    NodePrivate::from_bytes([number + 1; 32])
}

fn server() -> NodePrivate {
    NodePrivate::from_bytes([100; 32])
}
