//! `mesh ping`.

use core::time::Duration;
use std::time::Instant;

use transports::program::{Exit, Failure};

use super::{duration, peer_parameter, print, print_object};
use crate::local_api::{client::Client, types::PingResult};

/// From one request to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// A peer that has just joined is in our map a moment after its own `mesh up` has returned. How long it may be unknown,
/// and how often it is looked for.
const HEARD_OF_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

/// What to ping, and how.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many requests
    #[arg(short, default_value_t = 10, value_name = "N")]
    count: u32,
    /// Stop when a direct path is found, and fail when none was; without effect with --icmp and static peers
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    until_direct: bool,
    /// How long to wait for each answer, such as 5s or 500ms
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
    /// ICMP echo inside the tunnel, answered by the peer's host; static peers are pinged so anyway
    #[arg(long)]
    icmp: bool,
    /// TSMP ping inside the tunnel, answered by the peer itself
    #[arg(long, conflicts_with = "icmp")]
    tsmp: bool,
    /// Name, overlay address or public key
    peer: String,
}

pub(super) async fn run(client: &Client, json: bool, arguments: &Arguments) -> Result<(), Failure> {
    let timeout = arguments.timeout.as_millis();
    let mut patience = HEARD_OF_WITHIN.min(arguments.timeout);
    let kind = match (arguments.icmp, arguments.tsmp) {
        (true, _) => "ICMP",
        (false, true) => "TSMP",
        (false, false) => "disco",
    };
    let ask = async || {
        let peer = peer_parameter(client, &arguments.peer).await?;
        client.post::<PingResult>(&format!("ping?{peer}&type={kind}&timeout={timeout}")).await
    };
    let (mut answered, mut relayed) = (0, 0);
    for index in 0..arguments.count {
        if index > 0 {
            tokio::time::sleep(INTERVAL).await;
        }
        match once_known(core::mem::take(&mut patience), &ask).await {
            Ok(result) => {
                answered += 1;
                relayed += u32::from(result.is_disco && result.derp_region_id.is_some());
                if json {
                    print_object(serde_json::json!(result));
                } else {
                    print(line(&result));
                }
                if arguments.until_direct && result.is_disco && result.endpoint.is_some() {
                    return Ok(());
                }
            }
            Err(failure) if matches!(failure.code(), "timeout" | "no-way") => {
                if !json {
                    print(format_args!("ping \"{}\" {}", arguments.peer, what(&failure)));
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    if answered == 0 {
        let message = format!("no answer from {} to {} requests", arguments.peer, arguments.count);
        return Err(Failure::new(Exit::Refused, "no-answer", message)
            .hint("mesh status shows when there was a handshake last, and where its datagrams go"));
    }
    if arguments.until_direct && relayed > 0 {
        return Err(Failure::new(Exit::Refused, "not-direct", "direct connection not established")
            .hint("mesh debug paths PEER shows what was tried"));
    }
    Ok(())
}

/// Asks until the peer is known, or has been unknown for so long.
async fn once_known<T>(patience: Duration, ask: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
    let began = Instant::now();
    loop {
        match ask().await {
            Err(failure) if failure.code() == "no-peer" && began.elapsed() < patience => tokio::time::sleep(LOOK).await,
            answer => return answer,
        }
    }
}

fn what(failure: &Failure) -> &str {
    if failure.code() == "timeout" { "timed out" } else { failure.message() }
}

/// The line of the stock client.
fn line(result: &PingResult) -> String {
    // At least 1: "in 0ms" reads like a mistake.
    let millis = (result.latency_seconds * 1e3).round().max(1.0);
    let via = match (&result.endpoint, &result.derp_region_code) {
        _ if result.is_tsmp => "TSMP".to_owned(),
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(code)) => format!("DERP({code})"),
        (None, None) => "ICMP".to_owned(),
    };
    format!("pong from {} ({}) via {via} in {millis}ms", result.node_name, result.node_ip)
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_peer_is_waited_for_that_is_not_heard_of_yet() {
        let asked = Cell::new(0);
        let third = async || {
            asked.set(asked.get() + 1);
            match asked.get() {
                3 => Ok("pong"),
                _ => Err(Failure::new(Exit::Refused, "no-peer", "nobody")),
            }
        };
        let failure = once_known(Duration::ZERO, &third).await.unwrap_err();
        assert_eq!((failure.code(), asked.get()), ("no-peer", 1));
        assert_eq!(once_known(Duration::from_secs(3_600), &third).await.unwrap(), "pong");
        // What else goes wrong is said at once.
        let other = async || Err::<(), _>(Failure::new(Exit::Refused, "timeout", "nothing"));
        assert_eq!(once_known(Duration::from_secs(3_600), other).await.unwrap_err().code(), "timeout");
    }

    #[test]
    fn the_line_is_the_stock_one() {
        let result = PingResult {
            node_ip: "10.0.0.2".parse().unwrap(),
            node_name: "[abcde]".into(),
            latency_seconds: 0.0031,
            endpoint: Some("203.0.113.7:41641".into()),
            is_tsmp: false,
            is_disco: true,
            derp_region_id: None,
            derp_region_code: None,
        };
        assert_eq!(line(&result), "pong from [abcde] (10.0.0.2) via 203.0.113.7:41641 in 3ms");
        let inside = PingResult { is_tsmp: true, is_disco: false, ..result.clone() };
        assert_eq!(line(&inside), "pong from [abcde] (10.0.0.2) via TSMP in 3ms");
        let relayed =
            PingResult { endpoint: None, derp_region_id: Some(900), derp_region_code: Some("mesh".into()), ..result };
        assert_eq!(line(&relayed), "pong from [abcde] (10.0.0.2) via DERP(mesh) in 3ms");
    }
}
