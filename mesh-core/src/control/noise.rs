//! The control connection: a Noise handshake, then records. Sans-IO: whoever owns the byte stream owns these.
//!
//! `Noise_IK_25519_ChaChaPoly_BLAKE2s` as the control protocol frames it. The node knows the server's key from `/key`.
//! It sends an *initiation* of 101 bytes (in a header of the upgrade request), gets a *response* of 51 bytes or an
//! *error frame*, and from then on both ends write *records* of at most 4,096 bytes. The initiation says a protocol
//! version in clear, and the prologue binds it. The machine key of the node is who it is to the server; the handshake
//! alone admits nobody.
//!
//! * the node: [`Initiator::start`], then [`Initiator::read`] with what arrives
//! * the server: [`Initiation::open`], then [`Initiation::respond`]
//! * both: [`Sealer`] and [`Opener`], one direction each
//! * [`EarlyNoise`]: what a server may say before HTTP/2 begins
//!
//! Records carry a stream: they have nothing to do with the borders of what is in them. What does not fit is final: the
//! connection is to be closed. `control-protocol.md` §2.6 to §2.8; stock nodes: package `controlbase`.
//!
//! ```
//! use mesh_core::{control::noise::{Initiation, Initiator, Progress}, key::MachinePrivate, rng::Seed};
//!
//! let mut rng = Seed::from_number(1).stream("doc", 0);
//! let (node, server) = (MachinePrivate::generate(&mut rng), MachinePrivate::generate(&mut rng));
//!
//! let (initiator, initiation) = Initiator::start(119, &node, &server.public(), &mut rng)?;
//! let opened = Initiation::open(&initiation, &server)?;
//! assert_eq!((opened.machine(), opened.version()), (node.public(), 119));
//! let (response, mut to_node, _) = opened.respond(&mut rng)?;
//!
//! let Progress::Done { mut opener, used, .. } = initiator.read(&response)? else { unreachable!() };
//! assert_eq!(used, response.len());
//! let (mut wire, mut plaintext) = (Vec::new(), Vec::new());
//! to_node.seal(b"hello", &mut wire)?;
//! opener.open(&wire, &mut plaintext)?;
//! assert_eq!(plaintext, b"hello");
//! # Ok::<(), mesh_core::control::noise::NoiseError>(())
//! ```
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod early;
mod record;
#[cfg(test)]
mod tests;

use core::fmt;

use zeroize::Zeroizing;

use crate::{
    crypto::{aead::ForgedError, noise::SymmetricState, x25519::SharedSecret},
    key::{MachinePrivate, MachinePublic},
    printable,
    rng::Rng,
};

pub use early::{Early, EarlyNoise, EarlyReader};
pub use record::{Opener, Sealer};

/// Bytes of an initiation with its header.
pub const INITIATION_BYTES: usize = 101;

/// Bytes of a response with its header.
pub const RESPONSE_BYTES: usize = 51;

/// Bytes of a record at most, with its header.
pub const RECORD_BYTES: usize = 4_096;

/// Bytes of plaintext in one record at most.
pub const PLAINTEXT_BYTES: usize = RECORD_BYTES - HEADER - TAG;

/// Noise protocol name.
const CONSTRUCTION: &[u8] = b"Noise_IK_25519_ChaChaPoly_BLAKE2s";

/// Type and length, of all frames but the initiation, which has a version before them.
const HEADER: usize = 3;
const TAG: usize = 16;

const TYPE_INITIATION: u8 = 1;
const TYPE_RESPONSE: u8 = 2;
const TYPE_ERROR: u8 = 3;
const TYPE_RECORD: u8 = 4;

/// Bytes of an error frame's text that are read. A hint for people, not authenticated. At the bound: the rest is cut off.
const ERROR_TEXT_BYTES: usize = 512;

/// Why a control connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoiseError {
    /// Another kind of frame than can come now.
    #[error("expected a frame of type {expected}, got type {got}")]
    Type {
        /// What can come.
        expected: u8,
        /// What came.
        got: u8,
    },
    /// A frame of a length that none of its kind has.
    #[error("a frame of type {kind} with {bytes} bytes")]
    Length {
        /// The frame's type.
        kind: u8,
        /// What it said.
        bytes: usize,
    },
    /// The other end does not have the key that it should have, or somebody changed what was sent.
    #[error("the other end has another key, or what it sent was changed on the way")]
    Forged,
    /// A key with which no handshake is possible.
    #[error("a key of the handshake is no usable point of the curve")]
    WeakKey,
    /// The server's own words. Not authenticated.
    #[error("the server refused the handshake: {0}")]
    Refused(String),
    /// 2^64 - 1 records were sent.
    #[error("the connection has carried as many records as it can")]
    Exhausted,
    /// The first thing the server said is longer than it may be.
    #[error("early payload of {0} bytes")]
    EarlyLength(usize),
    /// The first thing the server said is not what it should be.
    #[error("early payload: {0}")]
    Early(String),
}

impl From<ForgedError> for NoiseError {
    fn from(_: ForgedError) -> Self {
        Self::Forged
    }
}

/// The node's side: an initiation was made, and the answer is waited for.
pub struct Initiator {
    ephemeral: MachinePrivate,
    machine: MachinePrivate,
    state: SymmetricState,
}

/// How far the answer to an initiation has come.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "moved once for a connection")]
pub enum Progress {
    /// More bytes are needed.
    Waiting(Initiator),
    /// The server has the key that it should have.
    Done {
        /// For what we say.
        sealer: Sealer,
        /// For what the server says.
        opener: Opener,
        /// How many of the bytes were the answer; the rest are records.
        used: usize,
    },
}

impl Initiator {
    /// Begins a handshake with the server that has the key `server`.
    ///
    /// `version` is our capability version.
    ///
    /// # Errors
    /// [`NoiseError::WeakKey`] when no handshake is possible with the server's key.
    pub fn start(
        version: u16,
        machine: &MachinePrivate,
        server: &MachinePublic,
        rng: &mut Rng,
    ) -> Result<(Self, [u8; INITIATION_BYTES]), NoiseError> {
        let mut state = begin(version, server);
        let ephemeral = MachinePrivate::generate(rng);
        state.mix_hash(ephemeral.public().as_bytes());
        let mut sealed_machine = [0; 48];
        let key = state.mix_key(&agree(&ephemeral, server)?);
        state.seal(&key, machine.public().as_bytes(), &mut sealed_machine);
        let mut sealed_nothing = [0; TAG];
        let key = state.mix_key(&agree(machine, server)?);
        state.seal(&key, &[], &mut sealed_nothing);

        let [v0, v1] = version.to_be_bytes();
        let message = joined(&[
            &[v0, v1, TYPE_INITIATION, 0, 96],
            ephemeral.public().as_bytes(),
            &sealed_machine,
            &sealed_nothing,
        ]);
        Ok((Self { ephemeral, machine: machine.clone(), state }, message))
    }

    /// Reads the answer from the beginning of what the server has sent since the upgrade.
    ///
    /// # Errors
    /// When it is not the answer of the server that has the key.
    pub fn read(mut self, bytes: &[u8]) -> Result<Progress, NoiseError> {
        let Some(([kind, h1, h2], body)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(Progress::Waiting(self));
        };
        let length = usize::from(u16::from_be_bytes([*h1, *h2]));
        if *kind == TYPE_ERROR {
            let Some(text) = body.get(..length.min(ERROR_TEXT_BYTES)) else { return Ok(Progress::Waiting(self)) };
            // Nothing vouches for it, so it is shown as it is and not obeyed.
            let text = String::from_utf8_lossy(text);
            return Err(NoiseError::Refused(printable::line(&text).into_owned()));
        }
        if *kind != TYPE_RESPONSE {
            return Err(NoiseError::Type { expected: TYPE_RESPONSE, got: *kind });
        }
        if length != RESPONSE_BYTES - HEADER {
            return Err(NoiseError::Length { kind: *kind, bytes: length });
        }
        let Some((ephemeral, rest)) = body.split_first_chunk::<32>() else { return Ok(Progress::Waiting(self)) };
        let Some((sealed_nothing, _)) = rest.split_first_chunk::<TAG>() else { return Ok(Progress::Waiting(self)) };

        let ephemeral = MachinePublic::from_bytes(*ephemeral);
        self.state.mix_hash(ephemeral.as_bytes());
        self.state.mix_chain(agree(&self.ephemeral, &ephemeral)?.as_bytes());
        let key = self.state.mix_key(&agree(&self.machine, &ephemeral)?);
        let [] = self.state.open(&key, sealed_nothing)?;
        let keys = Zeroizing::new(self.state.split());
        let [send, receive] = &*keys;
        Ok(Progress::Done { sealer: Sealer::new(send), opener: Opener::new(receive), used: RESPONSE_BYTES })
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator([private])")
    }
}

/// The server's side: an initiation that could be opened, so that it is known who asks.
pub struct Initiation {
    version: u16,
    machine: MachinePublic,
    ephemeral: MachinePublic,
    state: SymmetricState,
}

impl Initiation {
    /// Opens an initiation with the server's key. Costs two Diffie-Hellman.
    ///
    /// # Errors
    /// When it is none, or was made for another server. Only the first is to be answered, by [`error_frame`].
    pub fn open(message: &[u8], server: &MachinePrivate) -> Result<Self, NoiseError> {
        let Some(([v0, v1, kind, l0, l1], body)) = message.split_first_chunk::<5>() else {
            return Err(NoiseError::Length { kind: TYPE_INITIATION, bytes: message.len() });
        };
        if *kind != TYPE_INITIATION {
            return Err(NoiseError::Type { expected: TYPE_INITIATION, got: *kind });
        }
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let wrong = NoiseError::Length { kind: *kind, bytes: length };
        let Some((ephemeral, rest)) = body.split_first_chunk::<32>() else { return Err(wrong) };
        let Some((sealed_machine, rest)) = rest.split_first_chunk::<48>() else { return Err(wrong) };
        let Ok(sealed_nothing) = <[u8; TAG]>::try_from(rest) else { return Err(wrong) };
        if length != body.len() {
            return Err(wrong);
        }

        let version = u16::from_be_bytes([*v0, *v1]);
        let mut state = begin(version, &server.public());
        let ephemeral = MachinePublic::from_bytes(*ephemeral);
        state.mix_hash(ephemeral.as_bytes());
        let key = state.mix_key(&agree(server, &ephemeral)?);
        let machine = MachinePublic::from_bytes(state.open(&key, sealed_machine)?);
        let key = state.mix_key(&agree(server, &machine)?);
        let [] = state.open(&key, &sealed_nothing)?;
        Ok(Self { version, machine, ephemeral, state })
    }

    /// The node's capability version, a first estimate: what its requests say counts.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Who asks. It has shown that it holds the key.
    #[must_use]
    pub fn machine(&self) -> MachinePublic {
        self.machine
    }

    /// The response, and the two directions of the connection: what the server says, and what the node says.
    ///
    /// # Errors
    /// [`NoiseError::WeakKey`] when one of the node's keys is not usable.
    pub fn respond(mut self, rng: &mut Rng) -> Result<([u8; RESPONSE_BYTES], Sealer, Opener), NoiseError> {
        let ephemeral = MachinePrivate::generate(rng);
        self.state.mix_hash(ephemeral.public().as_bytes());
        self.state.mix_chain(agree(&ephemeral, &self.ephemeral)?.as_bytes());
        let key = self.state.mix_key(&agree(&ephemeral, &self.machine)?);
        let mut sealed_nothing = [0; TAG];
        self.state.seal(&key, &[], &mut sealed_nothing);
        let keys = Zeroizing::new(self.state.split());
        let [receive, send] = &*keys;

        let message = joined(&[&[TYPE_RESPONSE, 0, 48], ephemeral.public().as_bytes(), &sealed_nothing]);
        Ok((message, Sealer::new(send), Opener::new(receive)))
    }
}

impl fmt::Debug for Initiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Initiation({:?}, version {})", self.machine, self.version)
    }
}

/// What a server answers, in place of a response, to what is no initiation. Texts are cut at 512 bytes.
#[must_use]
pub fn error_frame(text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().take(ERROR_TEXT_BYTES).collect();
    let length = u16::try_from(text.len()).unwrap_or_default().to_be_bytes();
    [[TYPE_ERROR].as_slice(), &length, &text].concat()
}

/// The state after the pre-message: the server's key is known.
fn begin(version: u16, server: &MachinePublic) -> SymmetricState {
    let prologue = format!("Tailscale Control Protocol v{version}");
    let mut state = SymmetricState::new(CONSTRUCTION, prologue.as_bytes());
    state.mix_hash(server.as_bytes());
    state
}

fn agree(private: &MachinePrivate, public: &MachinePublic) -> Result<SharedSecret, NoiseError> {
    private.diffie_hellman(public).ok_or(NoiseError::WeakKey)
}

/// A message of parts that are `N` bytes together.
fn joined<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut message = [0; N];
    for (to, from) in message.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
    message
}
