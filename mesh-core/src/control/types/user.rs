//! Users, as far as a node sees them.

use serde::{Deserialize, Serialize};

use super::json::{is_zero, or_zero, time};
use crate::time::WallTime;

/// A user's number, above 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub i64);

/// What peers are shown of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UserProfile {
    /// Who.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// The name they sign in with, such as `alice@example.net`.
    #[serde(deserialize_with = "or_zero")]
    pub login_name: String,
    /// A name for people.
    #[serde(deserialize_with = "or_zero")]
    pub display_name: String,
    /// A picture.
    #[serde(rename = "ProfilePicURL", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub profile_pic_url: String,
    /// Groups of the policy that they are in, where the server tells.
    #[serde(deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub groups: Vec<String>,
}

/// The user whom a node was registered for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct User {
    /// Who.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// A name for people.
    #[serde(deserialize_with = "or_zero")]
    pub display_name: String,
    /// A picture.
    #[serde(rename = "ProfilePicURL", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub profile_pic_url: String,
    /// Since when.
    #[serde(with = "time", skip_serializing_if = "is_zero")]
    pub created: Option<WallTime>,
}

/// How a user signed in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Login {
    /// A number; no client uses it.
    #[serde(rename = "ID", deserialize_with = "or_zero")]
    pub id: i64,
    /// Who vouched.
    #[serde(deserialize_with = "or_zero")]
    pub provider: String,
    /// The name they sign in with, such as `alice@example.net`.
    #[serde(deserialize_with = "or_zero")]
    pub login_name: String,
    /// A name for people.
    #[serde(deserialize_with = "or_zero")]
    pub display_name: String,
    /// A picture.
    #[serde(rename = "ProfilePicURL", deserialize_with = "or_zero", skip_serializing_if = "is_zero")]
    pub profile_pic_url: String,
}
