//! Text forms of keys: `nodekey:`, `mkey:`, `discokey:` and `privkey:` with 64 hex digits, as stock
//! clients and servers write them, and the base64 of WireGuard tools.

use core::{fmt, str::FromStr};

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{DiscoPrivate, DiscoPublic, MachinePrivate, MachinePublic, NodePrivate, NodePublic, PresharedKey};

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// The part before the colon is another one.
    #[error("a key of this kind starts with \"{0}\"")]
    Prefix(&'static str),
    /// Not 64 hexadecimal digits.
    #[error("expected 64 hexadecimal digits after the colon")]
    Hex,
    /// Not the base64 of 32 bytes.
    #[error("expected the base64 of 32 bytes: 44 characters ending in \"=\"")]
    Base64,
}

macro_rules! public_text {
    ($public:ident, $prefix:literal) => {
        impl fmt::Display for $public {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), HEXLOWER.encode(self.as_bytes()))
            }
        }

        /// A short prefix, as logs show it.
        impl fmt::Debug for $public {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "[{}]", &BASE64.encode(self.as_bytes())[..5])
            }
        }

        impl FromStr for $public {
            type Err = ParseKeyError;

            fn from_str(text: &str) -> Result<Self, ParseKeyError> {
                parse_hex(text, $prefix).map(Self::from_bytes)
            }
        }

        impl Serialize for $public {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $public {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

public_text!(NodePublic, "nodekey:");
public_text!(MachinePublic, "mkey:");
public_text!(DiscoPublic, "discokey:");

macro_rules! private_text {
    ($private:ident) => {
        impl $private {
            /// `privkey:` and 64 hex digits, for a state file. The text is a secret.
            #[must_use]
            pub fn to_secret_text(&self) -> String {
                format!("privkey:{}", HEXLOWER.encode(&self.to_bytes()))
            }

            /// Reads what [`Self::to_secret_text`] wrote.
            ///
            /// # Errors
            /// When the text is not of that form.
            pub fn from_secret_text(text: &str) -> Result<Self, ParseKeyError> {
                parse_hex(text, "privkey:").map(Self::from_bytes)
            }
        }
    };
}

private_text!(NodePrivate);
private_text!(MachinePrivate);
private_text!(DiscoPrivate);

impl NodePublic {
    /// The base64 that WireGuard tools write.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.as_bytes())
    }

    /// Reads the base64 that WireGuard tools write.
    ///
    /// # Errors
    /// When the text is not the base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, ParseKeyError> {
        parse_base64(text).map(Self::from_bytes)
    }
}

impl NodePrivate {
    /// The base64 that WireGuard tools write. The text is a secret.
    #[must_use]
    pub fn to_secret_base64(&self) -> String {
        BASE64.encode(&self.to_bytes())
    }

    /// Reads the base64 that WireGuard tools write.
    ///
    /// # Errors
    /// When the text is not the base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, ParseKeyError> {
        parse_base64(text).map(Self::from_bytes)
    }
}

impl PresharedKey {
    /// Reads the base64 that WireGuard tools write.
    ///
    /// # Errors
    /// When the text is not the base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, ParseKeyError> {
        parse_base64(text).map(Self::from_bytes)
    }
}

fn parse_hex(text: &str, prefix: &'static str) -> Result<[u8; 32], ParseKeyError> {
    let hex = text.strip_prefix(prefix).ok_or(ParseKeyError::Prefix(prefix))?;
    let bytes = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).map_err(|_| ParseKeyError::Hex)?;
    bytes.try_into().map_err(|_| ParseKeyError::Hex)
}

fn parse_base64(text: &str) -> Result<[u8; 32], ParseKeyError> {
    // The decoder also takes padded pieces one behind the other, so that one key would have many texts.
    if text.find('=') != Some(43) {
        return Err(ParseKeyError::Base64);
    }
    let bytes = BASE64.decode(text.as_bytes()).map_err(|_| ParseKeyError::Base64)?;
    bytes.try_into().map_err(|_| ParseKeyError::Base64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_come_back() {
        let private = NodePrivate::from_bytes([3; 32]);
        let public = private.public();
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(NodePublic::from_base64(&public.to_base64()), Ok(public));
        assert_eq!(NodePrivate::from_secret_text(&private.to_secret_text()), Ok(private.clone()));
        assert_eq!(NodePrivate::from_base64(&private.to_secret_base64()), Ok(private));
    }

    #[test]
    fn wrong_texts_say_what_is_wrong() {
        let machine = MachinePrivate::from_bytes([3; 32]).public().to_string();
        assert_eq!(machine.parse::<NodePublic>(), Err(ParseKeyError::Prefix("nodekey:")));
        assert_eq!("nodekey:00".parse::<NodePublic>(), Err(ParseKeyError::Hex));
        assert_eq!(NodePublic::from_base64("AAAA"), Err(ParseKeyError::Base64));
        for pieces in ["AAA=".to_owned() + &"A".repeat(40), "AAA=".repeat(16), "A".repeat(43) + "=AAA="] {
            assert_eq!(NodePublic::from_base64(&pieces), Err(ParseKeyError::Base64), "{pieces}");
        }
    }

    #[test]
    fn json_is_the_text_form() {
        let key = NodePublic::from_bytes([1; 32]);
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(json, format!("\"{key}\""));
        assert_eq!(serde_json::from_str::<NodePublic>(&json).unwrap(), key);
    }
}
