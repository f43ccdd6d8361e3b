//! What a relay is given to do, and what it makes of it.

use std::{
    net::Shutdown,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use mesh_core::derp::Frame;

use crate::{client::Client, server::Server};

/// How often a sender looks whether it is behind.
const TICK: Duration = Duration::from_millis(1);
/// What is on its way gets this long to arrive.
const DRAIN: Duration = Duration::from_millis(500);
/// Idle clients are held this long before memory is read.
const HOLD: Duration = Duration::from_secs(3);
/// Threads that connect idle clients.
const CONNECTING: u32 = 4;

/// A load of pairs.
pub(crate) struct Load {
    pub(crate) pairs: u32,
    pub(crate) bytes: usize,
    /// By all pairs together.
    pub(crate) mbit: u32,
    pub(crate) seconds: u32,
}

/// What was carried.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    offered_mbit: f64,
    goodput_mbit: f64,
    loss: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_seconds_per_gb: f64,
    cpu_cores: f64,
}

/// A row of the table: its head, and how it is read.
type Row = (&'static str, fn(&Carried) -> f64);

impl Carried {
    pub(crate) const ROWS: [Row; 7] = [
        ("offered Mbit/s", |c| c.offered_mbit),
        ("goodput Mbit/s", |c| c.goodput_mbit),
        ("loss %", |c| c.loss * 100.0),
        ("delay p50 ms", |c| c.p50_ms),
        ("delay p99 ms", |c| c.p99_ms),
        ("relay CPU s/GB", |c| c.cpu_seconds_per_gb),
        ("relay cores", |c| c.cpu_cores),
    ];
}

/// Idle clients.
#[derive(Clone, Debug)]
pub(crate) struct Idle {
    pub(crate) kib_each: f64,
    pub(crate) connections_per_second: f64,
}

/// Sends through the relay from the first of each pair to the second.
pub(crate) fn carry(server: &Server, load: &Load) -> Result<Carried> {
    let pairs: Vec<(Client, Client)> = (0..load.pairs)
        .map(|pair| Ok((Client::connect(server.address, 2 * pair)?, Client::connect(server.address, 2 * pair + 1)?)))
        .collect::<Result<_>>()?;
    let began = Instant::now();
    let ends = began + Duration::from_secs(load.seconds.into());
    let cpu_before = server.cpu_seconds()?;
    let mbit_each = f64::from(load.mbit) / f64::from(load.pairs);
    let sent = AtomicU64::new(0);

    let (mut sockets, mut senders, mut receivers) = (Vec::new(), Vec::new(), Vec::new());
    for (sender, receiver) in pairs {
        sockets.extend([sender.socket()?, receiver.socket()?]);
        receivers.push((receiver.key, receiver));
        senders.push(sender);
    }
    let (cpu, delays) = thread::scope(|scope| -> Result<_> {
        let mut receiving = Vec::new();
        let mut sending = Vec::new();
        for (mut sender, (key, mut receiver)) in senders.into_iter().zip(receivers) {
            let sent = &sent;
            sending.push(scope.spawn(move || -> Result<()> {
                let mut packet = vec![0; load.bytes];
                let mut frame = Vec::new();
                let per_second = mbit_each * 1e6 / 8.0 / load.bytes as f64;
                let mut count = 0;
                while Instant::now() < ends {
                    let due = (began.elapsed().as_secs_f64() * per_second) as u64;
                    // A sender that was held up does not make up for all of it: that is what congestion control does.
                    count = count.max(due.saturating_sub(64));
                    while count < due {
                        packet[..8].copy_from_slice(&(began.elapsed().as_nanos() as u64).to_be_bytes());
                        frame.clear();
                        Frame::SendPacket { to: key, packet: &packet }.encode(&mut frame);
                        sender.push(&frame)?;
                        count += 1;
                        sent.fetch_add(1, Relaxed);
                        if count % 8 == 0 {
                            sender.flush()?;
                        }
                    }
                    sender.flush()?;
                    thread::sleep(TICK);
                }
                // Kept open until what it sent has arrived.
                thread::sleep(DRAIN);
                Ok(())
            }));
            receiving.push(scope.spawn(move || {
                let mut delays: Vec<u32> = Vec::new();
                let mut each = |packet: &[u8]| {
                    let stamp = packet.first_chunk().map_or(0, |stamp| u64::from_be_bytes(*stamp));
                    let micros = (began.elapsed().as_nanos() as u64).saturating_sub(stamp) / 1000;
                    delays.push(u32::try_from(micros).unwrap_or(u32::MAX));
                };
                // Ends when its socket is shut down below.
                while receiver.receive(&mut each).is_ok() {}
                delays
            }));
        }
        thread::sleep(ends.saturating_duration_since(Instant::now()));
        let cpu = server.cpu_seconds()? - cpu_before;
        thread::sleep(DRAIN);
        for socket in &sockets {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in sending {
            // A relay may close a sender; what was carried says enough.
            let _ = thread.join();
        }
        let delays: Vec<u32> = receiving.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect();
        Ok((cpu, delays))
    })?;
    let mut delays = delays;
    delays.sort_unstable();
    let at =
        |part: f64| delays.get((delays.len() as f64 * part) as usize).map_or(f64::NAN, |micros| f64::from(*micros));
    let (sent, received) = (sent.load(Relaxed) as f64, delays.len() as f64);
    let gigabytes = received * load.bytes as f64 / 1e9;
    let mbit = |packets: f64| packets * load.bytes as f64 * 8.0 / 1e6 / f64::from(load.seconds);
    Ok(Carried {
        offered_mbit: mbit(sent),
        goodput_mbit: mbit(received),
        loss: 1.0 - received / sent.max(1.0),
        p50_ms: at(0.5) / 1000.0,
        p99_ms: at(0.99) / 1000.0,
        cpu_seconds_per_gb: cpu / gigabytes,
        cpu_cores: cpu / f64::from(load.seconds),
    })
}

/// Connects clients that say nothing, and holds them.
pub(crate) fn hold(server: &Server, clients: u32) -> Result<Idle> {
    // One first: what the relay needs once is not counted for each.
    let _first = Client::connect(server.address, u32::MAX)?;
    let before = server.resident_kib()?;
    let began = Instant::now();
    let held = thread::scope(|scope| {
        let connecting: Vec<_> = (0..CONNECTING)
            .map(|part| {
                scope.spawn(move || {
                    let mine = (0..clients).filter(|number| number % CONNECTING == part);
                    mine.map(|number| {
                        let mut client = Client::connect(server.address, number)?;
                        client.shrink();
                        Ok(client)
                    })
                    .collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        connecting
            .into_iter()
            .map(|thread| thread.join().ok().context("a thread of the generator panicked")?)
            .collect::<Result<Vec<_>>>()
    })?;
    let seconds = began.elapsed().as_secs_f64();
    thread::sleep(HOLD);
    let after = server.resident_kib()?;
    drop(held);
    Ok(Idle { kib_each: (after - before) / f64::from(clients), connections_per_second: f64::from(clients) / seconds })
}
