//! From a host's name or addresses to a TCP connection.
//!
//! Addresses of both families are tried side by side, the preferred one 200 ms ahead; literals do not wait for DNS.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::{collections::VecDeque, io};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::debug;

use crate::{
    net::{Net, TcpOptions, TcpStream},
    resolve,
    udp::Family,
};

/// How far an address is ahead of the next. Stock nodes: 200 ms for IPv6.
const HEAD_START: Duration = Duration::from_millis(200);
/// Addresses of one host that are tried.
const ADDRESSES: usize = 8;

/// A host that is to be connected to.
#[derive(Clone, Debug)]
pub(crate) struct Target<'t> {
    /// Its name, for DNS.
    pub(crate) host: &'t str,
    pub(crate) port: u16,
    /// Addresses that are known already.
    pub(crate) literals: Vec<IpAddr>,
    /// Whether DNS is to be asked for addresses of IPv4.
    pub(crate) v4_by_dns: bool,
    /// The same of IPv6.
    pub(crate) v6_by_dns: bool,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// There are no addresses.
    NoAddress,
    /// DNS does not know.
    Resolve(io::Error),
    /// The address that failed last.
    Refused { address: SocketAddr, source: io::Error },
}

impl Target<'_> {
    /// The first TCP connection that comes about. Bounded in time by the caller.
    ///
    /// # Errors
    /// When no address can be connected to.
    pub(crate) async fn connect(self, net: Net, first: Family, options: TcpOptions) -> Result<TcpStream, ConnectError> {
        let Self { host, port, literals, v4_by_dns, v6_by_dns } = self;
        let mut is_resolving = v4_by_dns || v6_by_dns;
        let lookup = resolve::addresses(host);
        tokio::pin!(lookup);
        let mut waiting = VecDeque::from(in_turn(literals, port, first));
        let mut attempts = JoinSet::new();
        let mut next_at = Instant::now();
        let mut failure = ConnectError::NoAddress;
        loop {
            if !is_resolving && waiting.is_empty() && attempts.is_empty() {
                return Err(failure);
            }
            tokio::select! {
                found = &mut lookup, if is_resolving => {
                    is_resolving = false;
                    match found {
                        Ok(found) => {
                            let wanted = found.into_iter().filter(|ip| if ip.is_ipv4() { v4_by_dns } else { v6_by_dns });
                            waiting.extend(in_turn(wanted.collect(), port, first));
                            waiting.truncate(ADDRESSES);
                        }
                        Err(source) => {
                            debug!(host, error = %source, "host is not resolved");
                            failure = ConnectError::Resolve(source);
                        }
                    }
                }
                Some(attempt) = attempts.join_next() => match attempt {
                    Ok((_, Ok(socket))) => return Ok(socket),
                    Ok((address, Err(source))) => {
                        failure = ConnectError::Refused { address, source };
                        next_at = Instant::now();
                    }
                    // Only by a panic, which the runtime has said.
                    Err(_) => {}
                },
                () = sleep_until(next_at), if !waiting.is_empty() => {
                    if let Some(address) = waiting.pop_front() {
                        attempts.spawn(async move { (address, net.connect(address, options).await) });
                        next_at = Instant::now() + HEAD_START;
                    }
                }
            }
        }
    }
}

/// Both families in turn, beginning with `first`.
fn in_turn(addresses: Vec<IpAddr>, port: u16, first: Family) -> Vec<SocketAddr> {
    let is_first = |address: &IpAddr| address.is_ipv6() == (first == Family::V6);
    let (preferred, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_first);
    let places = preferred.len().max(others.len());
    let turns = (0..places).flat_map(|place| [preferred.get(place), others.get(place)]).flatten();
    turns.map(|address| SocketAddr::new(*address, port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let all: Vec<IpAddr> = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|text| text.parse().unwrap()).into();
        let expected = of(&["[2001:db8::1]:1", "192.0.2.1:1", "192.0.2.2:1"]);
        assert_eq!(in_turn(all.clone(), 1, Family::V6), expected);
        assert_eq!(in_turn(all, 1, Family::V4), of(&["192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.2:1"]));
        assert_eq!(in_turn(Vec::new(), 1, Family::V4), []);
    }
}
