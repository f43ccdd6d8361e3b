//! Durations, rates, sizes, shares and seeds as scenario files write them. Decimal, in integers throughout.

use core::time::Duration;

use mesh_core::time::Instant;

use crate::kernel::dice::Probability;

/// Most seeds of one scenario.
const SEEDS_MAX: u64 = 1_000_000;

/// `250ms`, `1.5s`, `10m`, `8h`; also `us` and `ns`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let unit = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    Some(Duration::from_nanos(scaled(number, unit)?))
}

/// A duration since the start.
pub(super) fn instant(text: &str) -> Option<Instant> {
    Some(Instant::ZERO + duration(text)?)
}

/// `180s..275s`.
pub(super) fn window(text: &str) -> Option<(Instant, Instant)> {
    let (from, to) = text.split_once("..")?;
    let window = (instant(from)?, instant(to)?);
    (window.0 < window.1).then_some(window)
}

/// Bits a second: `20Mbit`, `256kbit`, `1Gbit`.
pub(super) fn rate(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let unit = match unit {
        "bit" => 1,
        "kbit" => 1_000,
        "Mbit" => 1_000_000,
        "Gbit" => 1_000_000_000,
        _ => return None,
    };
    scaled(number, unit).filter(|rate| *rate > 0)
}

/// Bytes: `1500`, `200kB`, `1MB`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let unit = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        _ => return None,
    };
    scaled(number, unit)
}

/// A share from `0` to `1`.
pub(super) fn share(text: &str) -> Option<Probability> {
    let parts = scaled(text, u64::from(Probability::ONE.parts()))?;
    let parts = u32::try_from(parts).ok()?;
    (parts <= Probability::ONE.parts()).then(|| Probability::from_parts(parts))
}

/// Seeds: a half-open range `0..200`, or numbers separated by commas.
///
/// # Errors
/// What is expected instead.
pub fn parse_seeds(text: &str) -> Result<Vec<u64>, String> {
    const EXPECTED: &str = "expected a half-open range of seeds as \"0..200\", or numbers separated by commas";
    if let Some((from, to)) = text.split_once("..") {
        let (Ok(from), Ok(to)) = (from.trim().parse::<u64>(), to.trim().parse::<u64>()) else {
            return Err(EXPECTED.to_owned());
        };
        if from >= to {
            return Err(format!("the range {from}..{to} is empty; its end is not part of it"));
        }
        if to - from > SEEDS_MAX {
            return Err(format!("{} seeds are more than {SEEDS_MAX}", to - from));
        }
        return Ok((from..to).collect());
    }
    text.split(',').map(|part| part.trim().parse().map_err(|_| EXPECTED.to_owned())).collect()
}

fn split_unit(text: &str) -> Option<(&str, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (at > 0).then(|| text.split_at(at))
}

/// A decimal number times `unit`, exactly; `None` when something would be left over.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') || fraction.contains('.') {
        return None;
    }
    let mut value = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit);
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = fraction.parse::<u128>().ok()?.checked_mul(u128::from(unit))?;
        if !part.is_multiple_of(scale) {
            return None;
        }
        value += part / scale;
    }
    u64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_windows() {
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("10m"), Some(Duration::from_secs(600)));
        for wrong in ["", "ms", "5", "5 s", "-1s", "1..s", "1.2.3s", "0.5ns", "99999999999h"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
        assert_eq!(window("1s..2s"), Some((Instant::from_secs(1), Instant::from_secs(2))));
        assert_eq!((window("2s..1s"), window("1s")), (None, None));
    }

    #[test]
    fn rates_sizes_and_shares() {
        assert_eq!(
            (rate("20Mbit"), rate("0.5kbit"), rate("20mbit"), rate("0bit")),
            (Some(20_000_000), Some(500), None, None)
        );
        assert_eq!((bytes("1500"), bytes("200kB"), bytes("1KB")), (Some(1500), Some(200_000), None));
        assert_eq!(share("0.01"), Some(Probability::from_basis_points(100)));
        assert_eq!((share("1"), share("1.0"), share("1.1")), (Some(Probability::ONE), Some(Probability::ONE), None));
    }

    #[test]
    fn seeds_are_ranges_or_lists() {
        assert_eq!(parse_seeds("2..5"), Ok(vec![2, 3, 4]));
        assert_eq!(parse_seeds("7, 9"), Ok(vec![7, 9]));
        assert!(parse_seeds("5..5").is_err() && parse_seeds("x").is_err() && parse_seeds("0..99999999999").is_err());
    }
}
