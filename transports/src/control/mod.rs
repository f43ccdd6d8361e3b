//! The connection to a control server: the driver's half of [`ControlRequest`] and [`ControlEvent`].
//!
//! [`ControlLink`] has a task for each request under way. They share one connection: Noise inside TCP or TLS, and
//! HTTP/2 inside Noise, made when a request needs it and there is none. What comes is queued for the driver, a few
//! events deep; when the queue is full the map stream is not read, so HTTP/2's own windows are what fills.
//!
//! A request is tried once: when it fails it says so. Whether and when to ask again is the node's to say. What this
//! module decides by itself is the order of the ways to a server, and that a connection on which the server keeps a
//! request waiting for too long is dead.
//!
//! [`ControlRequest`]: mesh_core::control::ControlRequest
//! [`ControlEvent`]: mesh_core::control::ControlEvent

mod channel;
mod dial;
mod link;
mod map_stream;
mod noise_io;
mod ways;

pub use dial::{ControlDialer, ControlError};
pub use link::ControlLink;
pub use noise_io::NoiseIo;
