//! `mesh debug`.

use clap::Subcommand;
use serde_json::json;
use transports::program::Failure;

use super::{peer_parameter, print, print_object};
use crate::local_api::{client::Client, types::PeerPaths};

/// What can be looked at.
#[derive(Debug, Subcommand)]
pub enum What {
    /// This node as a control server would show it to its peers
    #[command(name = "self")]
    Own,
    /// How a peer is reached
    Paths {
        /// Name, overlay address or public key
        peer: String,
    },
    /// Counters and gauges as Prometheus text
    Metrics,
    /// Have meshd read its static file or map file again
    Reload,
    /// The network map, as the first message of a map stream
    Map,
}

pub(super) async fn run(client: &Client, json: bool, what: &What) -> Result<(), Failure> {
    match what {
        What::Own => {
            let own: serde_json::Value = client.get("debug-self").await?;
            print_object(if json { own.to_string() } else { format!("{own:#}") });
        }
        What::Paths { peer } => {
            let paths: PeerPaths = client.get(&format!("debug-paths?{}", peer_parameter(client, peer).await?)).await?;
            print_object(if json { json!(paths).to_string() } else { format!("{:#}", json!(paths)) });
        }
        What::Metrics => client.text("metrics").await?.lines().for_each(print),
        What::Reload => {
            let _done: serde_json::Value = client.post("reload-config").await?;
        }
        What::Map => {
            let map: serde_json::Value = client.get("debug-map").await?;
            print_object(if json { map.to_string() } else { format!("{map:#}") });
        }
    }
    Ok(())
}
