//! The demo's own traffic: a TCP transfer and a UDP echo, run as subcommands of the demo inside the namespaces.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Bytes handed to the kernel at once.
const CHUNK: usize = 256 * 1024;
/// Time between two probes.
pub(crate) const PROBE_EVERY: Duration = Duration::from_millis(20);

/// Takes one connection, reads to its end, and answers with the number of bytes.
pub(crate) fn sink(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    say("listening");
    let (mut stream, _) = listener.accept()?;
    let mut buffer = vec![0; CHUNK];
    let mut total = 0u64;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        total += count as u64;
    }
    stream.write_all(&total.to_be_bytes())?;
    Ok(())
}

/// Sends for `duration`, waits until all has arrived, and prints megabits a second.
pub(crate) fn source(to: SocketAddr, duration: Duration) -> Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&to, Duration::from_secs(5)).with_context(|| format!("no TCP to {to}"))?;
    let buffer = vec![0x5a; CHUNK];
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < duration {
        stream.write_all(&buffer)?;
        sent += buffer.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).context("the other end did not confirm the transfer")?;
    let arrived = u64::from_be_bytes(answer);
    anyhow::ensure!(arrived == sent, "{sent} bytes were sent and {arrived} arrived");
    say(&format!("{:.0}", arrived as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64()));
    Ok(())
}

/// Sends every datagram back.
pub(crate) fn echo(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    say("listening");
    let mut buffer = [0; 64];
    loop {
        let (count, from) = socket.recv_from(&mut buffer)?;
        // A send may fail while the tunnel's device changes; the next probe asks again.
        let _ = socket.send_to(&buffer[..count], from);
    }
}

/// Sends a numbered probe every [`PROBE_EVERY`] and prints a line per answer: when it arrived, in nanoseconds of the
/// monotonic clock, and when its probe was sent.
pub(crate) fn probe(to: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    let mut next = Instant::now();
    let mut buffer = [0; 64];
    loop {
        // Answers to a closed port or an unreachable host are errors of the socket, and end nothing.
        let _ = socket.send(&monotonic_nanos().to_be_bytes());
        next += PROBE_EVERY;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            if let Ok(8) = socket.recv(&mut buffer) {
                let sent = u64::from_be_bytes(buffer[..8].try_into()?);
                say(&format!("{} {sent}", monotonic_nanos()));
            }
        }
    }
}

/// The monotonic clock, which all processes of a host share.
pub(crate) fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    clock_gettime(&mut now);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[expect(unsafe_code, reason = "std's Instant cannot be compared between processes")]
fn clock_gettime(now: &mut libc::timespec) {
    // SAFETY: `now` is a valid timespec for the call to fill.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, now) };
    assert_eq!(result, 0, "CLOCK_MONOTONIC always exists on Linux");
}

#[expect(clippy::print_stdout, reason = "the parent process reads it")]
fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}
