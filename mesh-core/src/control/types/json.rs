//! What Go's JSON encoder does and serde does not do by itself.

use core::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};
use std::borrow::Cow;

use serde::{Deserialize, Deserializer, de::Error as _};
use tracing::debug;

use crate::{
    ip::prefix::Prefix,
    key::{DiscoPublic, MachinePublic, NodePublic},
};

/// Whether a field is left out.
pub(super) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Null is the zero value.
pub(super) fn or_zero<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A key that may be all zeros for none.
pub(super) trait Key: Copy {
    /// Whether it is.
    fn is_none(&self) -> bool;
}

macro_rules! keys {
    ($($key:ty),*) => {
        $(impl Key for $key {
            fn is_none(&self) -> bool {
                self.is_zero()
            }
        })*
    };
}

keys!(NodePublic, MachinePublic, DiscoPublic);

/// A key, where null and zeros are none.
pub(super) fn key<'de, D: Deserializer<'de>, K: Key + Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<K>, D::Error> {
    Ok(Option::<K>::deserialize(deserializer)?.filter(|key| !key.is_none()))
}

/// No key is written as zeros.
pub(super) mod key_or_zeros {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Key;

    pub(in super::super) fn serialize<S: Serializer, K: Key + Default + Serialize>(
        key: &Option<K>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        key.unwrap_or_default().serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>, K: Key + Deserialize<'de>>(
        deserializer: D,
    ) -> Result<Option<K>, D::Error> {
        super::key(deserializer)
    }
}

/// Bytes are base64; none are null.
pub(super) mod bytes {
    use data_encoding::BASE64;
    use serde::{Deserializer, Serializer, de::Error as _};

    pub(in super::super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        if bytes.is_empty() { serializer.serialize_none() } else { serializer.serialize_str(&BASE64.encode(bytes)) }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let Some(text) = super::text(deserializer)? else { return Ok(Vec::new()) };
        BASE64.decode(text.as_bytes()).map_err(|_| D::Error::custom("expected base64 with padding"))
    }
}

/// A time in RFC 3339. Go's zero, the first second of the year 1, is none.
pub(super) mod time {
    use ::time::{OffsetDateTime, format_description::well_known::Rfc3339};
    use serde::{Deserializer, Serializer, de::Error as _, ser::Error as _};

    use crate::time::WallTime;

    /// How Go writes that a time is not set.
    const ZERO: &str = "0001-01-01T00:00:00Z";

    pub(in super::super) fn serialize<S: Serializer>(
        time: &Option<WallTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let Some(time) = time else { return serializer.serialize_str(ZERO) };
        let time = OffsetDateTime::from_unix_timestamp_nanos(time.as_unix_nanos().into());
        let text = time.map_err(S::Error::custom)?.format(&Rfc3339).map_err(S::Error::custom)?;
        serializer.serialize_str(&text)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<WallTime>, D::Error> {
        let Some(text) = super::text(deserializer)? else { return Ok(None) };
        parse(&text).ok_or_else(|| D::Error::custom("expected a time such as 2026-08-23T10:00:00Z"))
    }

    /// `None` when it is no time. What lies before 1970 or behind 2554 is taken as that.
    pub(in super::super) fn parse(text: &str) -> Option<Option<WallTime>> {
        let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let nanos = time.unix_timestamp_nanos();
        let is_zero = time == OffsetDateTime::parse(ZERO, &Rfc3339).ok()?;
        let bounded = u64::try_from(nanos.max(0)).unwrap_or(u64::MAX);
        Some((!is_zero).then(|| WallTime::from_unix_nanos(bounded)))
    }
}

/// UDP endpoints. Those that no peer can use are left out: with a zone, link-local in IPv6, or Go's empty zero value.
pub(super) fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let is_odd = |text: &str| text.is_empty() || text.contains('%');
    let mut endpoints: Vec<SocketAddr> = list(deserializer, is_odd)?;
    for endpoint in &mut endpoints {
        endpoint.set_ip(endpoint.ip().to_canonical());
    }
    endpoints.retain(|endpoint| match endpoint {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(v6) => !v6.ip().is_unicast_link_local(),
    });
    Ok(endpoints)
}

/// UDP endpoints, where null is none at all.
pub(super) fn some_endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<SocketAddr>>, D::Error> {
    struct Endpoints(Vec<SocketAddr>);
    impl<'de> Deserialize<'de> for Endpoints {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            endpoints(deserializer).map(Self)
        }
    }
    Ok(Option::<Endpoints>::deserialize(deserializer)?.map(|endpoints| endpoints.0))
}

/// Prefixes. Those with host bits set are left out, as stock nodes do.
pub(super) fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Prefix>, D::Error> {
    list(deserializer, |text| text.is_empty() || has_host_bits(text))
}

/// Prefixes, where null is none at all.
pub(super) fn some_prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Prefix>>, D::Error> {
    struct Prefixes(Vec<Prefix>);
    impl<'de> Deserialize<'de> for Prefixes {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            prefixes(deserializer).map(Self)
        }
    }
    Ok(Option::<Prefixes>::deserialize(deserializer)?.map(|prefixes| prefixes.0))
}

/// An address, where null and the empty text are none.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = text(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| parse(&text)).transpose().map_err(D::Error::custom)
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'de, str>>, D::Error> {
    Option::deserialize(deserializer)
}

/// What the texts of a list say; null is an empty list. Odd texts are left out.
fn list<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    deserializer: D,
    is_odd: impl Fn(&str) -> bool,
) -> Result<Vec<T>, D::Error> {
    let texts = Option::<Vec<Cow<'de, str>>>::deserialize(deserializer)?.unwrap_or_default();
    let mut values = Vec::with_capacity(texts.len());
    for text in texts {
        if is_odd(&text) {
            debug!(%text, "left out of a list");
            continue;
        }
        values.push(parse(&text).map_err(D::Error::custom)?);
    }
    Ok(values)
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

fn has_host_bits(text: &str) -> bool {
    let address: Option<IpAddr> = text.split_once('/').and_then(|(address, _)| address.parse().ok());
    matches!((address, text.parse::<Prefix>()), (Some(address), Ok(prefix)) if prefix.address() != address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::WallTime;

    #[test]
    fn times_are_read_in_every_zone_and_zero_is_none() {
        let nanos = |text: &str| time::parse(text).unwrap().map(WallTime::as_unix_nanos);
        assert_eq!(nanos("1970-01-01T00:02:03Z"), Some(123_000_000_000));
        assert_eq!(nanos("1970-01-01T02:00:00.000000001+02:00"), Some(1));
        assert_eq!(nanos("0001-01-01T00:00:00Z"), None);
        assert_eq!(nanos("0001-01-01T01:00:00+01:00"), None);
        assert_eq!(nanos("1960-01-01T00:00:00Z"), Some(0));
        assert_eq!(nanos("9999-12-31T23:59:59Z"), Some(u64::MAX));
        assert_eq!(time::parse("tomorrow"), None);
    }

    #[test]
    fn a_prefix_with_host_bits_is_told_from_one_without() {
        assert!(has_host_bits("10.0.0.1/8"));
        assert!(!has_host_bits("10.0.0.0/8"));
        assert!(!has_host_bits("10.0.0.1/32"));
        assert!(!has_host_bits("nonsense/8"));
    }
}
