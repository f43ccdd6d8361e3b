//! Registration: what a node asks, and what it is told.
//!
//! The machine key is in neither: it is the Noise peer.

use core::fmt;

use serde::{Deserialize, Serialize};

use super::{
    hostinfo::Hostinfo,
    json::{bytes, is_zero, key_or_zeros, or_zero, time},
    user::{Login, User},
};
use crate::{key::NodePublic, time::WallTime};

/// Register, refresh, change the key, or log out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterRequest {
    /// Capability version of the node.
    #[serde(deserialize_with = "or_zero")]
    pub version: i64,
    /// The key to register.
    #[serde(deserialize_with = "or_zero")]
    pub node_key: NodePublic,
    /// The key before it, when the key changes.
    #[serde(with = "key_or_zeros")]
    pub old_node_key: Option<NodePublic>,
    /// The node's key for tailnet lock, `nlpub:` and 64 hex digits.
    #[serde(rename = "NLKey", deserialize_with = "or_zero")]
    pub nl_key: String,
    /// What it shows for itself.
    #[serde(skip_serializing_if = "is_zero")]
    pub auth: Option<RegisterAuth>,
    /// `None`: no wish. Past: log out. Future: shorten the key's life.
    #[serde(with = "time")]
    pub expiry: Option<WallTime>,
    /// The URL that it was given before; the answer may wait until somebody has signed in there.
    #[serde(deserialize_with = "or_zero")]
    pub followup: String,
    /// What it says of itself.
    pub hostinfo: Option<Box<Hostinfo>>,
    /// To be forgotten soon after it is gone.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub ephemeral: bool,
    /// Signature of `node_key` under tailnet lock.
    #[serde(with = "bytes")]
    pub node_key_signature: Vec<u8>,
    /// How the request is signed by a certificate of the device.
    #[serde(skip_serializing_if = "is_zero")]
    pub signature_type: Option<serde_json::Value>,
    /// When it was signed.
    #[serde(with = "time", skip_serializing_if = "is_zero")]
    pub timestamp: Option<WallTime>,
    /// The device's certificate.
    #[serde(with = "bytes", skip_serializing_if = "is_zero")]
    pub device_cert: Vec<u8>,
    /// Signature by the device's certificate.
    #[serde(with = "bytes", skip_serializing_if = "is_zero")]
    pub signature: Vec<u8>,
    /// The tailnet it wants to be in; binding with `required:` in front.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub tailnet: String,
}

/// What a node shows for itself. Never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterAuth {
    /// A key that a user was given for it. A secret.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub auth_key: String,
}

impl fmt::Debug for RegisterAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegisterAuth([private])")
    }
}

/// How a registration ended. All fields are always written: some clients have no defaults for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterResponse {
    /// Whose the node is.
    #[serde(deserialize_with = "or_zero")]
    pub user: User,
    /// How they signed in.
    #[serde(deserialize_with = "or_zero")]
    pub login: Login,
    /// The node is to make a new key and come again.
    #[serde(deserialize_with = "or_zero")]
    pub node_key_expired: bool,
    /// For information; the node's own entry in the map decides.
    #[serde(deserialize_with = "or_zero")]
    pub machine_authorized: bool,
    /// Not empty: somebody has to go there.
    #[serde(rename = "AuthURL", deserialize_with = "or_zero")]
    pub auth_url: String,
    /// Not empty: the node is to sign a new key. Without tailnet lock it must be empty.
    #[serde(with = "bytes")]
    pub node_key_signature: Vec<u8>,
    /// Not empty: it failed, and this is shown to the user.
    #[serde(deserialize_with = "or_zero")]
    pub error: String,
}
