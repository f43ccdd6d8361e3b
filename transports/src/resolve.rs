//! Host names to addresses, as the host resolves them.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::io;

use tokio::{net::lookup_host, time::timeout};

/// How long is waited for the host's resolver. Its own patience is 5 s and more for each server.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of a name that are looked at; what follows is left out.
const ADDRESSES: usize = 16;

/// The addresses of `host`, in the order in which the host's resolver prefers them.
///
/// # Errors
/// When the name has none, or nobody says within 5 s. The lookup itself cannot be taken back: it ends on a thread of the
/// runtime, unheard.
pub async fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let found = timeout(TIMEOUT, lookup_host((host, 0))).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let addresses: Vec<_> = found.map(|address: SocketAddr| address.ip()).take(ADDRESSES).collect();
    if addresses.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn literals_need_no_resolver_and_nonsense_has_no_address() {
        assert_eq!(addresses("192.0.2.1").await.unwrap(), [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(addresses("::1").await.unwrap().len(), 1);
        assert!(addresses("no name").await.is_err());
    }
}
