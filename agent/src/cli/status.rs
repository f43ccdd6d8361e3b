//! `mesh status`.

use transports::program::{Exit, Failure};

use super::{print, print_object};
use crate::local_api::{
    client::Client,
    status::{Member, Status},
};

pub(super) async fn run(client: &Client, json: bool) -> Result<(), Failure> {
    let status: Status = client.get("status").await?;
    if json {
        let text = serde_json::to_string_pretty(&status);
        print_object(text.map_err(|error| Failure::new(Exit::Bug, "json", error))?);
        return Ok(());
    }
    if let Some(failure) = not_running(&status) {
        health(&status).iter().for_each(print);
        return Err(failure);
    }
    lines(&status).iter().chain(&health(&status)).for_each(print);
    Ok(())
}

/// What to say in place of peers that are not there.
fn not_running(status: &Status) -> Option<Failure> {
    let failure = match status.backend_state.as_str() {
        "Stopped" => {
            Failure::new(Exit::Refused, "stopped", "this node is disconnected").hint("connect it with mesh up")
        }
        "NeedsLogin" if status.auth_url.is_empty() => {
            Failure::new(Exit::SignIn, "signed-out", "this node is signed out")
                .hint("sign in with mesh up, as root or the user that meshd runs as")
        }
        "NeedsLogin" => Failure::new(Exit::SignIn, "sign-in-needed", "somebody has to sign in")
            .hint(format_args!("visit {}", status.auth_url)),
        "NeedsMachineAuth" => Failure::new(Exit::Refused, "needs-approval", "this node is not admitted yet")
            .hint("an administrator of the network has to admit it"),
        "Starting" if status.peer.is_empty() && status.tailscale_ips.is_empty() => {
            let why =
                if status.control_problem.is_empty() { "there is no network map yet" } else { &status.control_problem };
            Failure::new(Exit::Refused, "starting", format!("this node is not up yet: {why}"))
        }
        _ => return None,
    };
    Some(failure)
}

/// The columns of the stock client: address, name, owner, system, what goes on. Static peers have neither name nor
/// owner, so the short form of the key stands for the name.
fn lines(status: &Status) -> Vec<String> {
    let own = std::iter::once((&status.own, "-".to_owned()));
    let peers = status.peer.values().map(|peer| (peer, state(peer)));
    let rows: Vec<_> = own.chain(peers).map(|(member, state)| row(status, member, state)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [addresses, names, owners, systems] = [width(0), width(1), width(2), width(3)];
    rows.iter()
        .map(|[address, name, owner, system, state]| {
            format!("{address:addresses$}  {name:names$}  {owner:owners$}  {system:systems$}  {state}")
        })
        .collect()
}

fn row(status: &Status, member: &Member, state: String) -> [String; 5] {
    let address = match (member.tailscale_ips.first(), member.allowed_ips.first()) {
        (Some(address), _) => address.to_string(),
        (None, Some(prefix)) => prefix.to_string(),
        (None, None) => "-".to_owned(),
    };
    let name = match member.short_name() {
        "" => format!("{:?}", member.public_key),
        name => name.to_owned(),
    };
    let system = if member.os.is_empty() { "-".to_owned() } else { member.os.clone() };
    [address, name, owner(status, member), system, state]
}

/// As the stock client has it: the sign-in name as far as its `@`.
fn owner(status: &Status, member: &Member) -> String {
    if !member.tags.is_empty() {
        return "tagged-devices".to_owned();
    }
    let Some(user) = status.user.get(&member.user_id) else {
        return if status.own.in_network_map { "-" } else { "static" }.to_owned();
    };
    match user.login_name.split_once('@') {
        Some((name, _)) => format!("{name}@"),
        None => user.login_name.clone(),
    }
}

/// What is wrong.
fn health(status: &Status) -> Vec<String> {
    if status.health.is_empty() {
        return Vec::new();
    }
    let problems = status.health.iter().map(|problem| format!("#     - {problem}"));
    [String::new(), "# Health check:".to_owned()].into_iter().chain(problems).collect()
}

fn state(peer: &Member) -> String {
    let offline = if peer.online { "" } else { "; offline" };
    let has_traffic = (peer.tx_bytes, peer.rx_bytes) != (0, 0);
    let mut text = match (peer.active, has_traffic) {
        (true, _) => "active".to_owned(),
        (false, true) => "idle".to_owned(),
        (false, false) if !peer.online => return "offline".to_owned(),
        (false, false) => "-".to_owned(),
    };
    if text != "-" && !peer.cur_addr.is_empty() {
        text += &format!("; direct {}", peer.cur_addr);
        if let Some(millis) = peer.latency_ms {
            text += &format!(", {millis:.1}ms");
        }
    } else if text != "-" && !peer.relay.is_empty() {
        text += &format!("; relay \"{}\"", peer.relay);
    }
    text += offline;
    if has_traffic {
        text += &format!(", tx {} rx {}", peer.tx_bytes, peer.rx_bytes);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_are_those_of_the_stock_client() {
        let mut status = status();
        assert_eq!(
            lines(&status),
            [
                "100.64.0.2  a  lab     linux  -",
                "100.64.0.1  b  alice@  linux  active; direct 203.0.113.102:41640, tx 940 rx 828"
            ]
        );
        for peer in status.peer.values_mut() {
            (peer.online, peer.active, peer.rx_bytes, peer.tx_bytes) = (false, false, 0, 0);
            peer.tags = vec!["tag:a".to_owned()];
        }
        assert_eq!(lines(&status)[1], "100.64.0.1  b  tagged-devices  linux  offline");
        status.health = vec!["bad".to_owned()];
        assert_eq!(health(&status), ["", "# Health check:", "#     - bad"]);
    }

    #[test]
    fn a_node_that_does_not_run_says_why_and_what_to_do() {
        let with = |state: &str, url: &str| Status { backend_state: state.into(), auth_url: url.into(), ..status() };
        let code =
            |status: &Status| not_running(status).map(|failure| (failure.code().to_owned(), failure.exit() as u8));
        let ended = |code: &str, exit| Some((code.to_owned(), exit));
        assert_eq!(code(&status()), None);
        assert_eq!(code(&with("Stopped", "")), ended("stopped", 1));
        assert_eq!(code(&with("NeedsLogin", "")), ended("signed-out", 5));
        assert_eq!(code(&with("NeedsLogin", "https://x/y")), ended("sign-in-needed", 5));
        let waiting = with("NeedsLogin", "https://x/y");
        assert!(not_running(&waiting).is_some_and(|failure| failure.what_to_do().contains("https://x/y")));
        // Others are not told the page: who visits it signs the node in.
        assert_eq!(waiting.clone().shown_to(true), waiting);
        assert_eq!(code(&waiting.shown_to(false)), ended("signed-out", 5));
        assert_eq!(code(&with("NeedsMachineAuth", "")), ended("needs-approval", 1));
        // With what was kept it carries packets already.
        assert_eq!(code(&with("Starting", "")), None);
    }

    #[test]
    fn what_others_say_of_themselves_is_shown_and_not_obeyed() {
        let mut status = status();
        for peer in status.peer.values_mut() {
            peer.os = "linux\x1b]52;c;eA==\x07".to_owned();
            peer.dns_name = "b\n100.64.0.9\u{202e}.tail.lab.".to_owned();
        }
        status.health = vec!["relay \u{9b}2J".to_owned()];
        let all: Vec<_> = lines(&status).iter().chain(&health(&status)).map(super::super::shown).collect();
        assert!(all[1].contains("b\\n100") && all[1].contains("linux\\u{1b}]52;c;eA==\\u{7}"), "{all:?}");
        assert!(all.iter().all(|line| !line.contains(|c: char| c.is_control() || c == '\u{202e}')), "{all:?}");
    }

    fn status() -> Status {
        let key = |digit: &str| format!("nodekey:{}", digit.repeat(64));
        let common = serde_json::json!({"ExitNode": false, "ExitNodeOption": false, "Online": true, "OS": "linux", "InNetworkMap": true});
        let member = |own: serde_json::Value| {
            let mut member = common.clone();
            member.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
            member
        };
        let own =
            member(serde_json::json!({"PublicKey": key("1"), "DNSName": "a.tail.lab.", "TailscaleIPs": ["100.64.0.2"],
            "UserID": 1, "RxBytes": 828, "TxBytes": 940}));
        let peer = member(
            serde_json::json!({"PublicKey": key("2"), "DNSName": "b.tail.lab.", "TailscaleIPs": ["100.64.0.1"],
            "UserID": 2, "RxBytes": 828, "TxBytes": 940, "CurAddr": "203.0.113.102:41640", "Relay": "lab", "Active": true}),
        );
        serde_json::from_value(
            serde_json::json!({"Version": "0", "TUN": true, "BackendState": "Running", "HaveNodeKey": true,
            "AuthURL": "", "TailscaleIPs": ["100.64.0.2"], "Self": own, "Health": [], "Peer": {key("2"): peer},
            "User": {"1": {"ID": 1, "LoginName": "lab"}, "2": {"ID": 2, "LoginName": "alice@example.com"}}}),
        )
        .unwrap()
    }
}
