//! Where the network comes from.

use std::fmt::Display;

use tokio::sync::mpsc;

use super::{driver::Request, map_file::MapFile, peers::Reload};
use transports::program::{Exit, Failure};

/// Where the network comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file in the form of wg-quick.
    Static(Reload),
    /// A file with a network map.
    Map(MapFile),
    /// A control server.
    Control,
}

impl Source {
    /// What is wrong with it, for people.
    #[must_use]
    pub fn refuse(&self, problem: &dyn Display) -> Failure {
        match self {
            Self::Static(file) => file.refuse(problem),
            Self::Map(file) => file.refuse(problem),
            Self::Control => {
                Failure::new(Exit::Usage, "bad-state", format!("what an earlier run kept is wrong: {problem}"))
            }
        }
    }

    /// Reads the file again and tells the driver.
    ///
    /// # Errors
    /// When the file is wrong; nothing changes then.
    pub async fn reload(&self, requests: &mpsc::Sender<Request>) -> Result<(), Failure> {
        match self {
            Self::Static(file) => file.run(requests).await,
            Self::Map(file) => file.run(requests).await,
            Self::Control => Err(Failure::new(Exit::Usage, "no-file", "the network does not come from a file")
                .hint("the control server says when something changes")),
        }
    }
}
