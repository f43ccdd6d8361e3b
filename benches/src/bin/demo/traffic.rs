//! The demo's own traffic: a TCP transfer, run as subcommands of the demo inside the namespaces.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Bytes handed to the kernel at once.
const CHUNK: usize = 256 * 1024;

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

#[expect(clippy::print_stdout, reason = "the parent process reads it")]
fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}
