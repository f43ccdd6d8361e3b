//! Every bound of the policy room: the number, why it is that number, and what happens at the bound.

/// Longest policy text, in bytes. Larger than any policy seen, and parsed within a second. At the bound: the text is
/// refused.
pub const TEXT_BYTES: usize = 4 << 20;

/// Problems that are told about one text. More help nobody. At the bound: the rest is left out.
pub const PROBLEMS: usize = 100;

/// Ranges in one list of ports. At the bound: the text is refused.
pub const PORT_RANGES: usize = 1_024;
