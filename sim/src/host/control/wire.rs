//! What is inside the control channel, in place of HTTP/2.
//!
//! Both ends write frames: a length, a kind, the number of the request that it is about, and what there is to say. A
//! request is `id, path, JSON`; a map stream's body is cut into [`ToNode::Data`] and has a framing of its own, a length
//! and plain JSON, as it has in HTTP. Before the channel stand two requests of HTTP/1: for the server's key, and for the
//! channel itself.

use core::time::Duration;

use data_encoding::BASE64;
use mesh_core::{
    control::noise::{INITIATION_BYTES, NoiseError, Opener, Sealer},
    limits::MAP_MESSAGE_BYTES,
};

/// The port of a control server.
pub const CONTROL_PORT: u16 = 443;

/// Bytes of a frame at most: a map message and what stands around it. At the bound the channel is closed.
const FRAME_BYTES: usize = MAP_MESSAGE_BYTES + 64;

/// Length, kind, number.
const HEAD_BYTES: usize = 4 + 1 + 8;

/// What a request of HTTP/1 is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// The server's key; the stream ends after the answer.
    Key,
    /// A channel: the first message of the handshake.
    Channel([u8; INITIATION_BYTES]),
}

impl Greeting {
    /// The request to a host.
    #[must_use]
    pub fn emit(&self, host: &str) -> Vec<u8> {
        match self {
            Self::Key => format!("GET /key?v=119 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
            Self::Channel(initiation) => format!(
                "POST /ts2021 HTTP/1.1\r\nHost: {host}\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
                 X-Tailscale-Handshake: {}\r\n\r\n",
                BASE64.encode(initiation)
            ),
        }
        .into_bytes()
    }

    /// What a head asks for, if it is one of these.
    #[must_use]
    pub fn parse(head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        match lines.next()? {
            "GET /key?v=119 HTTP/1.1" => Some(Self::Key),
            "POST /ts2021 HTTP/1.1" => {
                let text = lines.find_map(|line| line.strip_prefix("X-Tailscale-Handshake: "))?;
                Some(Self::Channel(BASE64.decode(text.as_bytes()).ok()?.try_into().ok()?))
            }
            _ => None,
        }
    }
}

/// The answer to a request for a channel; the handshake's second message follows.
pub const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n";

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToControl {
    /// It asks something.
    Request {
        /// Names it on this channel.
        id: u64,
        /// The path.
        path: String,
        /// The body.
        json: Vec<u8>,
    },
    /// It gives a request up, or its answer.
    Cancel {
        /// Which.
        id: u64,
    },
    /// It wants to know whether anybody is there.
    Ping,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToNode {
    /// The answer to a request.
    Answer {
        /// To which.
        id: u64,
        /// As in HTTP.
        status: u16,
        /// Ask again after so long; zero says nothing of it. Whole seconds.
        retry_after: Duration,
        /// The body.
        body: Vec<u8>,
    },
    /// The answer to a request has begun: 200, and a body that goes on.
    Opened {
        /// To which.
        id: u64,
    },
    /// More of a body.
    Data {
        /// Of which.
        id: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A body is over.
    End {
        /// Which.
        id: u64,
    },
    /// Somebody is there.
    Pong,
}

/// A frame that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame;

impl ToControl {
    fn emit(&self) -> Vec<u8> {
        match self {
            Self::Request { id, path, json } => {
                frame(0, *id, &[&(path.len() as u16).to_le_bytes(), path.as_bytes(), json])
            }
            Self::Cancel { id } => frame(1, *id, &[]),
            Self::Ping => frame(2, 0, &[]),
        }
    }

    fn parse(kind: u8, id: u64, rest: &[u8]) -> Result<Self, BadFrame> {
        match (kind, rest) {
            (0, [p0, p1, rest @ ..]) => {
                let length = usize::from(u16::from_le_bytes([*p0, *p1]));
                let (path, json) = rest.split_at_checked(length).ok_or(BadFrame)?;
                let path = core::str::from_utf8(path).map_err(|_| BadFrame)?.to_owned();
                Ok(Self::Request { id, path, json: json.to_vec() })
            }
            (1, []) => Ok(Self::Cancel { id }),
            (2, []) => Ok(Self::Ping),
            _ => Err(BadFrame),
        }
    }
}

impl ToNode {
    fn emit(&self) -> Vec<u8> {
        match self {
            Self::Answer { id, status, retry_after, body } => {
                let seconds = retry_after.as_secs() as u32;
                frame(0, *id, &[&status.to_le_bytes(), &seconds.to_le_bytes(), body])
            }
            Self::Opened { id } => frame(1, *id, &[]),
            Self::Data { id, bytes } => frame(2, *id, &[bytes]),
            Self::End { id } => frame(3, *id, &[]),
            Self::Pong => frame(4, 0, &[]),
        }
    }

    fn parse(kind: u8, id: u64, rest: &[u8]) -> Result<Self, BadFrame> {
        match (kind, rest) {
            (0, [s0, s1, r0, r1, r2, r3, body @ ..]) => Ok(Self::Answer {
                id,
                status: u16::from_le_bytes([*s0, *s1]),
                retry_after: Duration::from_secs(u32::from_le_bytes([*r0, *r1, *r2, *r3]).into()),
                body: body.to_vec(),
            }),
            (1, []) => Ok(Self::Opened { id }),
            (2, bytes) => Ok(Self::Data { id, bytes: bytes.to_vec() }),
            (3, []) => Ok(Self::End { id }),
            (4, []) => Ok(Self::Pong),
            _ => Err(BadFrame),
        }
    }
}

fn frame(kind: u8, id: u64, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEAD_BYTES + length);
    frame.extend_from_slice(&(length as u32).to_le_bytes());
    frame.push(kind);
    frame.extend_from_slice(&id.to_le_bytes());
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

/// An end of a channel after the handshake: records outside, frames inside.
#[derive(Debug)]
pub struct Channel {
    sealer: Sealer,
    opener: Opener,
    plaintext: Vec<u8>,
}

impl Channel {
    /// From what the handshake left.
    #[must_use]
    pub fn new(sealer: Sealer, opener: Opener) -> Self {
        Self { sealer, opener, plaintext: Vec::new() }
    }

    /// Records of a plaintext that is no frame.
    ///
    /// # Errors
    /// When the channel has carried as many as it can.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        self.sealer.seal(plaintext, out)
    }

    /// Records of what a node says.
    ///
    /// # Errors
    /// When the channel has carried as many as it can.
    pub fn say_to_control(&mut self, said: &ToControl, out: &mut Vec<u8>) -> Result<(), NoiseError> {
        self.seal(&said.emit(), out)
    }

    /// Records of what a server says.
    ///
    /// # Errors
    /// When the channel has carried as many as it can.
    pub fn say_to_node(&mut self, said: &ToNode, out: &mut Vec<u8>) -> Result<(), NoiseError> {
        self.seal(&said.emit(), out)
    }

    /// Takes bytes of the stream.
    ///
    /// # Errors
    /// When they are no records of this channel; that is final.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), NoiseError> {
        self.opener.open(bytes, &mut self.plaintext)
    }

    /// Takes what has been opened out, before frames begin.
    pub fn take_plaintext(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.plaintext)
    }

    /// Puts back what was not needed.
    pub fn put_back(&mut self, rest: Vec<u8>) {
        self.plaintext.splice(..0, rest);
    }

    /// The next frame of a node.
    ///
    /// # Errors
    /// When there is none and never will be.
    pub fn next_from_node(&mut self) -> Result<Option<ToControl>, BadFrame> {
        self.next(ToControl::parse)
    }

    /// The next frame of a server.
    ///
    /// # Errors
    /// When there is none and never will be.
    pub fn next_from_control(&mut self) -> Result<Option<ToNode>, BadFrame> {
        self.next(ToNode::parse)
    }

    fn next<T>(&mut self, parse: impl FnOnce(u8, u64, &[u8]) -> Result<T, BadFrame>) -> Result<Option<T>, BadFrame> {
        let Some((head, rest)) = self.plaintext.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [l0, l1, l2, l3, kind, id @ ..] = *head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > FRAME_BYTES {
            return Err(BadFrame);
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let frame = parse(kind, u64::from_le_bytes(id), body)?;
        self.plaintext.drain(..HEAD_BYTES + length);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{
        control::noise::{Initiation, Initiator, Progress},
        key::MachinePrivate,
        rng::Seed,
    };

    use super::*;

    #[test]
    fn what_one_end_says_the_other_hears_in_whatever_pieces() {
        let (mut node, mut server) = channels();
        let requests = [
            ToControl::Request { id: 7, path: "/machine/map".to_owned(), json: b"{}".to_vec() },
            ToControl::Cancel { id: 7 },
            ToControl::Ping,
        ];
        let mut wire = Vec::new();
        requests.iter().for_each(|request| node.say_to_control(request, &mut wire).unwrap());
        let mut heard = Vec::new();
        for byte in wire {
            server.receive(&[byte]).unwrap();
            heard.extend(server.next_from_node().unwrap());
        }
        assert_eq!(heard, requests);

        let answers = [
            ToNode::Answer { id: 1, status: 429, retry_after: Duration::from_secs(3), body: b"later".to_vec() },
            ToNode::Opened { id: 2 },
            ToNode::Data { id: 2, bytes: vec![0; 9000] },
            ToNode::End { id: 2 },
            ToNode::Pong,
        ];
        let mut wire = Vec::new();
        answers.iter().for_each(|answer| server.say_to_node(answer, &mut wire).unwrap());
        node.receive(&wire).unwrap();
        let heard: Vec<_> = core::iter::from_fn(|| node.next_from_control().unwrap()).collect();
        assert_eq!(heard, answers);
    }

    #[test]
    fn a_frame_of_another_kind_is_refused() {
        let (mut node, mut server) = channels();
        let mut wire = Vec::new();
        node.seal(&frame(9, 0, &[]), &mut wire).unwrap();
        server.receive(&wire).unwrap();
        assert_eq!(server.next_from_node(), Err(BadFrame));
    }

    #[test]
    fn greetings_are_read_as_written() {
        for greeting in [Greeting::Key, Greeting::Channel([9; INITIATION_BYTES])] {
            let text = String::from_utf8(greeting.emit("control.example")).unwrap();
            assert_eq!(Greeting::parse(text.trim_end()), Some(greeting));
        }
        assert_eq!(Greeting::parse("GET / HTTP/1.1"), None);
    }

    fn channels() -> (Channel, Channel) {
        let mut rng = Seed::from_number(1).stream("test", 0);
        let (node, server) = (MachinePrivate::generate(&mut rng), MachinePrivate::generate(&mut rng));
        let (initiator, initiation) = Initiator::start(119, &node, &server.public(), &mut rng).unwrap();
        let opened = Initiation::open(&initiation, &server).unwrap();
        let (response, sealer, server_opener) = opened.respond(&mut rng).unwrap();
        let Progress::Done { sealer: node_sealer, opener, .. } = initiator.read(&response).unwrap() else {
            panic!("a whole response")
        };
        (Channel::new(node_sealer, opener), Channel::new(sealer, server_opener))
    }
}
