//! `mesh status`.

use mesh_core::key::NodePublic;

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

/// The columns of the stock client: address, name, owner, system, what goes on; then what is wrong. Static peers have
/// neither name nor owner, so the short form of the key stands for the name.
fn lines(status: &Status) -> Vec<String> {
    let first = |addresses: &[core::net::IpAddr]| addresses.first().map_or("-".to_owned(), ToString::to_string);
    let named = |name: &str, key: &NodePublic| if name.is_empty() { format!("{key:?}") } else { name.to_owned() };
    let own_name = named(&status.own.host_name, &status.own.public_key);
    let own = (first(&status.tailscale_ips), own_name, "-".to_owned());
    let peers = status.peer.values().map(|peer| {
        let address = match (peer.tailscale_ips.as_slice(), peer.allowed_ips.first()) {
            ([], Some(prefix)) => prefix.to_string(),
            (addresses, _) => first(addresses),
        };
        (address, named(&peer.host_name, &peer.public_key), state(peer))
    });
    let rows: Vec<_> = core::iter::once(own).chain(peers).collect();
    let width = |column: fn(&(String, String, String)) -> &String| rows.iter().map(column).map(String::len).max();
    let (addresses, names) = (width(|row| &row.0).unwrap_or(0), width(|row| &row.1).unwrap_or(0));
    let owner = if status.own.host_name.is_empty() { "static" } else { "-" };
    let mut lines: Vec<_> = rows
        .iter()
        .map(|(address, name, state)| format!("{address:addresses$}  {name:names$}  {owner}  -  {state}"))
        .collect();
    if !status.health.is_empty() {
        lines.push(String::new());
        lines.push("# Health check:".to_owned());
        lines.extend(status.health.iter().map(|problem| format!("#     - {problem}")));
    }
    lines
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
        if let Some(millis) = peer.latency_ms {
            text += &format!(", {millis:.1}ms");
        }
    } else if what != "-" && !peer.relay.is_empty() {
        text += &format!("; relay \"{}\"", peer.relay);
    }
    if traffic != (0, 0) {
        text += &format!(", tx {} rx {}", traffic.0, traffic.1);
    }
    text
}
