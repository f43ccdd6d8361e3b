//! Requests about joining a network: preferences, up, down, logout, and who has an address.

use core::net::{IpAddr, SocketAddr};

use http_body_util::{BodyExt, Limited};
use hyper::{Request, StatusCode, body::Incoming};
use mesh_core::{
    control::{
        AuthKey,
        types::{PeerNode, UserProfile},
    },
    node::{Command, Prefs, Reply, Up},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::server::{Answer, Answered, Context, command, json, snapshot, stopping, value};
use transports::program::{Exit, Failure};

/// A request's body. Prefixes and tags of a large network fit many times.
const BODY_BYTES: usize = 256 << 10;

/// What `up` asks for.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UpRequest {
    /// These are the preferences from now on.
    pub prefs: Prefs,
    /// A key to register with. A secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_key: Option<String>,
    /// Sign in anew, even where that is not needed.
    pub force_reauth: bool,
}

/// How `up` ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpResult {
    /// `Running`, or `NeedsMachineAuth`.
    pub backend_state: String,
}

/// Who has an address; the names are those of `tailscale whois --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Whois {
    /// The node.
    pub node: PeerNode,
    /// Whose it is.
    pub user_profile: UserProfile,
}

pub(super) async fn up(request: Request<Incoming>, context: &Context) -> Answered {
    let UpRequest { prefs, auth_key, force_reauth } = body(request).await?;
    let up = Up { prefs, auth_key: auth_key.map(AuthKey), force_reauth };
    match command(Command::Up(Box::new(up)), context).await? {
        Reply::Up(state) => json(&UpResult { backend_state: state.to_string() }),
        _ => Err(stopping()),
    }
}

/// Changes the preferences that the body has, and no others.
pub(super) async fn set(request: Request<Incoming>, context: &Context) -> Answered {
    let changes: serde_json::Map<String, serde_json::Value> = body(request).await?;
    let bad = |error: &dyn core::fmt::Display| {
        (StatusCode::BAD_REQUEST, Failure::new(Exit::Usage, "bad-prefs", format!("these are no preferences: {error}")))
    };
    let prefs = snapshot(context).await?.status.prefs;
    let mut prefs = serde_json::to_value(prefs).map_err(|error| bad(&error))?;
    for (name, value) in changes {
        let known = prefs.get_mut(&name).ok_or_else(|| bad(&format_args!("there is no {name}")))?;
        *known = value;
    }
    let prefs: Prefs = serde_json::from_value(prefs).map_err(|error| bad(&error))?;
    command(Command::SetPrefs(Box::new(prefs)), context).await?;
    Ok(Answer::nothing())
}

/// Does what has no parameters.
pub(super) async fn simple(wanted: Command, context: &Context) -> Answered {
    command(wanted, context).await?;
    Ok(Answer::nothing())
}

/// The address that a text is, with or without a port.
pub(crate) fn overlay_address(text: &str) -> Result<IpAddr, Failure> {
    let address = text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.ok_or_else(|| {
        Failure::new(Exit::Usage, "bad-address", format!("\"{text}\" is no overlay address"))
            .hint("ask for an address such as 100.64.0.1, with or without a port")
    })
}

pub(super) async fn whois(query: &str, context: &Context) -> Answered {
    let text = value(query, "addr").unwrap_or_default();
    let address = overlay_address(text).map_err(|failure| (StatusCode::BAD_REQUEST, failure))?;
    let status = snapshot(context).await?.status;
    let nodes = status.peers.iter().filter_map(|peer| peer.node.as_deref()).chain(status.node.as_deref());
    let has = |node: &&PeerNode| node.addresses.iter().any(|prefix| prefix.address() == address);
    let Some(node) = nodes.into_iter().find(has) else {
        let failure = Failure::new(Exit::Refused, "no-peer", format!("no node that we know has the address {address}"));
        return Err((StatusCode::NOT_FOUND, failure.hint("mesh status lists all peers")));
    };
    let user_profile = status.users.get(&node.user).cloned().unwrap_or_default();
    json(&Whois { node: node.clone(), user_profile })
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, (StatusCode, Failure)> {
    let bad = |error: &dyn core::fmt::Display| {
        (
            StatusCode::BAD_REQUEST,
            Failure::new(Exit::Usage, "bad-request", format!("the request makes no sense: {error}")),
        )
    };
    let body = Limited::new(request.into_body(), BODY_BYTES).collect().await.map_err(|error| bad(&error))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(&error))
}
