//! The pitfalls of the control protocol (control-protocol, chapter 9.8), each as a test of its number.
//!
//! Not here, because they are not the coordinator's:
//!
//! * p17 (proxies that do not pass upgrades), p18 (upgrades by WebSocket), p26 (compression or a length on the stream), p27
//!   (windows of HTTP/2), p44 (`/key` kept by a cache), p45 (another Noise key): of the shell, which owns the listeners and the
//!   key
//! * p28 (URLs for Noise that begin with http), p29 (delegate URLs written anew): the server sends neither; there are no
//!   requests to nodes and no SSH checks yet
//! * p35 (a node with tailnet lock of another server): has to be reset at the node; this server has no tailnet lock and
//!   says nothing of it, which [`registration::p36_no_signature_is_ever_asked_for`] checks for registrations
//! * p20 (region numbers that move): the operator's; what the server does with a home that is gone is in p19
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod maps;
mod registration;
#[path = "../support/mod.rs"]
mod support;
