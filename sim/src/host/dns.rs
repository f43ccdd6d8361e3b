//! Questions and answers of DNS (RFC 1035): one question, addresses alone.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where questions go.
pub const DNS_PORT: u16 = 53;

const RESPONSE: u8 = 0x80;
const RECURSION: u8 = 1;
const INTERNET: u16 = 1;
const HEADER: usize = 12;
/// The name of the question, pointed at.
const SAME_NAME: [u8; 2] = [0xc0, HEADER as u8];

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// IPv4.
    A,
    /// IPv6.
    Aaaa,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rcode {
    /// These are the addresses.
    Ok,
    /// The server cannot say.
    Failed,
    /// There is no such name.
    NoName,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Chosen by who asks.
    pub id: u16,
    /// The name, without a dot at the end.
    pub name: String,
    /// Which addresses.
    pub kind: Kind,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// To which question.
    pub id: u16,
    /// How it went.
    pub rcode: Rcode,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

impl Question {
    /// The datagram that asks; `None` when the name is none.
    #[must_use]
    pub fn emit(&self) -> Option<Vec<u8>> {
        let mut bytes = header(self.id, [RECURSION, 0], 0);
        for label in self.name.split('.') {
            let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
            bytes.push(length);
            bytes.extend(label.bytes());
        }
        bytes.push(0);
        bytes.extend(self.kind.number().to_be_bytes());
        bytes.extend(INTERNET.to_be_bytes());
        (self.name.len() < 254).then_some(bytes)
    }

    /// The question in a datagram.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let [i0, i1, flags, _, 0, 1, _, _, _, _, _, _, rest @ ..] = datagram else { return None };
        if flags & RESPONSE != 0 {
            return None;
        }
        let (labels, rest) = labels(rest)?;
        let [k0, k1, 0, 1, ..] = rest else { return None };
        let kind = [Kind::A, Kind::Aaaa].into_iter().find(|kind| kind.number() == u16::from_be_bytes([*k0, *k1]))?;
        Some(Self { id: u16::from_be_bytes([*i0, *i1]), name: labels.join("."), kind })
    }

    /// The datagram that answers; addresses of the other family are left out.
    #[must_use]
    pub fn answer(&self, rcode: Rcode, addresses: &[IpAddr]) -> Option<Vec<u8>> {
        let fitting: Vec<_> = addresses.iter().filter(|address| address.is_ipv4() == (self.kind == Kind::A)).collect();
        let asked = self.emit()?;
        let mut bytes = header(self.id, [RESPONSE | RECURSION, 0x80 | rcode.number()], fitting.len() as u16);
        bytes.extend(asked.get(HEADER..)?);
        for address in fitting {
            bytes.extend(SAME_NAME);
            bytes.extend(self.kind.number().to_be_bytes());
            bytes.extend(INTERNET.to_be_bytes());
            bytes.extend(60_u32.to_be_bytes());
            match address {
                IpAddr::V4(v4) => {
                    bytes.extend([0, 4]);
                    bytes.extend(v4.octets());
                }
                IpAddr::V6(v6) => {
                    bytes.extend([0, 16]);
                    bytes.extend(v6.octets());
                }
            }
        }
        Some(bytes)
    }
}

impl Answer {
    /// The answer in a datagram.
    #[must_use]
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let [i0, i1, flags, status, 0, 1, c0, c1, _, _, _, _, rest @ ..] = datagram else { return None };
        if flags & RESPONSE == 0 {
            return None;
        }
        let rcode = [Rcode::Ok, Rcode::Failed, Rcode::NoName].into_iter().find(|code| code.number() == status & 15)?;
        let (_, rest) = labels(rest)?;
        let mut rest = rest.get(4..)?;
        let mut addresses = Vec::new();
        for _ in 0..u16::from_be_bytes([*c0, *c1]) {
            let [0xc0, _, _, _, _, _, _, _, _, _, 0, length, tail @ ..] = rest else { return None };
            let (address, tail) = tail.split_at_checked(usize::from(*length))?;
            rest = tail;
            if let Ok(octets) = <[u8; 4]>::try_from(address) {
                addresses.push(Ipv4Addr::from(octets).into());
            } else if let Ok(octets) = <[u8; 16]>::try_from(address) {
                addresses.push(Ipv6Addr::from(octets).into());
            }
        }
        Some(Self { id: u16::from_be_bytes([*i0, *i1]), rcode, addresses })
    }
}

impl Kind {
    const fn number(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Aaaa => 28,
        }
    }
}

impl Rcode {
    const fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 2,
            Self::NoName => 3,
        }
    }
}

/// The labels of a name, and what is behind it.
fn labels(mut rest: &[u8]) -> Option<(Vec<String>, &[u8])> {
    let mut labels = Vec::new();
    loop {
        let (length, tail) = rest.split_first()?;
        if *length == 0 {
            return Some((labels, tail));
        }
        let (label, tail) = tail.split_at_checked(usize::from(*length)).filter(|_| *length < 64)?;
        labels.push(String::from_utf8(label.to_vec()).ok()?);
        rest = tail;
    }
}

fn header(id: u16, flags: [u8; 2], answers: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend(flags);
    bytes.extend([0, 1]);
    bytes.extend(answers.to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_keep_their_form() {
        let addresses: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        for (kind, address) in [(Kind::A, addresses[0]), (Kind::Aaaa, addresses[1])] {
            let question = Question { id: 0x1234, name: "relay-eu.example".to_owned(), kind };
            let asked = question.emit().unwrap();
            assert_eq!(Question::parse(&asked), Some(question.clone()));
            assert_eq!(Answer::parse(&asked), None);
            let answer = question.answer(Rcode::Ok, &addresses).unwrap();
            assert_eq!(Answer::parse(&answer), Some(Answer { id: 0x1234, rcode: Rcode::Ok, addresses: vec![address] }));
            assert_eq!(Question::parse(&answer), None);
            for cut in 0..answer.len() {
                assert_eq!(Answer::parse(&answer[..cut]), None);
            }
            let refused = question.answer(Rcode::NoName, &[]).unwrap();
            assert_eq!(Answer::parse(&refused).map(|answer| answer.rcode), Some(Rcode::NoName));
        }
    }

    #[test]
    fn a_label_may_hold_anything() {
        let question = Question { id: 1, name: "a\0\0b.c".to_owned(), kind: Kind::A };
        assert_eq!(Question::parse(&question.emit().unwrap()), Some(question.clone()));
        let address = [192, 0, 2, 1].into();
        let answer = question.answer(Rcode::Ok, &[address]).unwrap();
        assert_eq!(Answer::parse(&answer).map(|answer| answer.addresses), Some(vec![address]));
    }

    #[test]
    fn names_that_are_none_are_not_asked_for() {
        for name in ["", "a..b", &"x".repeat(64), &"x.".repeat(200)] {
            assert_eq!(Question { id: 1, name: name.to_owned(), kind: Kind::A }.emit(), None, "{name}");
        }
    }
}
