//! `mesh status`.

use super::print;
use crate::{
    failure::{Exit, Failure},
    local_api::{
        client::Client,
        types::{Peer, Status},
    },
};

pub(super) async fn run(client: &Client, json: bool) -> Result<(), Failure> {
    let status: Status = client.get("status").await?;
    if json {
        let text = serde_json::to_string_pretty(&status);
        print(text.map_err(|error| Failure::new(Exit::Bug, "json", error))?);
    } else {
        lines(&status).iter().for_each(print);
    }
    Ok(())
}

/// The columns of the stock client: address, name, owner, system, what goes on. Static peers have neither name nor
/// owner, so the short form of the key stands for the name.
fn lines(status: &Status) -> Vec<String> {
    let first = |addresses: &[core::net::IpAddr]| addresses.first().map_or("-".to_owned(), ToString::to_string);
    let own = (first(&status.tailscale_ips), format!("{:?}", status.own.public_key), "-".to_owned());
    let peers = status.peer.values().map(|peer| {
        let address = match (peer.tailscale_ips.as_slice(), peer.allowed_ips.first()) {
            ([], Some(prefix)) => prefix.to_string(),
            (addresses, _) => first(addresses),
        };
        (address, format!("{:?}", peer.public_key), state(peer))
    });
    let rows: Vec<_> = core::iter::once(own).chain(peers).collect();
    let width = rows.iter().map(|(address, _, _)| address.len()).max().unwrap_or(0);
    rows.into_iter().map(|(address, key, state)| format!("{address:width$}  {key}  static  -  {state}")).collect()
}

fn state(peer: &Peer) -> String {
    let what = match (peer.active, peer.online) {
        (true, _) => "active",
        (false, true) => "idle",
        (false, false) => "-",
    };
    let traffic = (peer.tx_bytes, peer.rx_bytes);
    let mut text = what.to_owned();
    if what != "-" && !peer.cur_addr.is_empty() {
        text += &format!("; direct {}", peer.cur_addr);
    }
    if traffic != (0, 0) {
        text += &format!(", tx {} rx {}", traffic.0, traffic.1);
    }
    text
}
