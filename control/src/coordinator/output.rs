//! What the coordinator wants done.

use core::time::Duration;

use mesh_core::control::types::RegisterResponse;

use super::{
    command::{AdminError, Reply},
    input::{AdminId, ConnId, RequestId, StreamId},
};
use crate::{render::MapUpdate, store::Mutation};

/// One thing to do. They are carried out in order; nothing overtakes a [`Self::Persist`].
#[derive(Debug)]
pub enum Output {
    /// On disk, wholly, before anything after it is carried out.
    Persist(Vec<Mutation>),
    /// Answer a request.
    Respond {
        /// On which connection.
        conn: ConnId,
        /// Which request.
        id: RequestId,
        /// With what.
        response: Response,
    },
    /// Render a message and write it to its stream; [`Input::Writable`](super::Input::Writable) is owed then. There is one
    /// at a time, but for the last: [`MapUpdate::is_last`] may come while another is being written, and a close follows.
    Push(MapUpdate),
    /// Write `{"KeepAlive":true}`, always the same bytes. Nothing is owed. It may be left out while a message is being
    /// written.
    KeepAlive {
        /// To which.
        stream: StreamId,
    },
    /// Answer a command.
    Admin {
        /// Which.
        id: AdminId,
        /// With what.
        result: Result<Reply, AdminError>,
    },
    /// End a stream after what was pushed to it before. Nothing about it comes after, and nothing is owed.
    Close {
        /// Which.
        stream: StreamId,
    },
}

/// An answer to a node.
#[derive(Debug)]
pub enum Response {
    /// 200 and this as JSON.
    Register(Box<RegisterResponse>),
    /// 200 at once; messages follow until the stream ends.
    Stream(StreamId),
    /// 200 and one framed message, then the end. Nothing is owed.
    Once(Box<MapUpdate>),
    /// 200 with an empty body: an update was taken in.
    Updated,
    /// 200 and `{}`.
    Done,
    /// This status and this text.
    Refused(Refusal),
}

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP's number.
    pub status: u16,
    /// Why, in a sentence for people.
    pub text: String,
    /// Ask again after this long (`Retry-After`).
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal without a hint when to ask again.
    #[must_use]
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), retry_after: None }
    }
}
