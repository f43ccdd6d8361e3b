//! The command line's end of the local API.

use std::{
    io,
    path::{Path, PathBuf},
};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::PREFIX;
use transports::program::{Exit, Failure};

/// Asks one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Asks the daemon whose socket is `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for the object `what`.
    ///
    /// # Errors
    /// When the daemon is not there, or says no.
    pub async fn get<T: serde::de::DeserializeOwned>(&self, what: &str) -> Result<T, Failure> {
        let bytes = self.request(Method::GET, what, Bytes::new()).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.strange(&error))
    }

    /// Asks for the text `what`.
    ///
    /// # Errors
    /// When the daemon is not there, or says no.
    pub async fn text(&self, what: &str) -> Result<String, Failure> {
        let bytes = self.request(Method::GET, what, Bytes::new()).await?;
        String::from_utf8(bytes.to_vec()).map_err(|error| self.strange(&error))
    }

    /// Has `what` done.
    ///
    /// # Errors
    /// When the daemon is not there, or says no.
    pub async fn post<T: serde::de::DeserializeOwned>(&self, what: &str) -> Result<T, Failure> {
        let bytes = self.request(Method::POST, what, Bytes::new()).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.strange(&error))
    }

    /// Has `what` done as `body` says.
    ///
    /// # Errors
    /// When the daemon is not there, or says no.
    pub async fn send<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        what: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::new(Exit::Bug, "json", error))?;
        let bytes = self.request(method, what, body.into()).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.strange(&error))
    }

    async fn request(&self, method: Method, what: &str, body: Bytes) -> Result<Bytes, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let lost = |error: hyper::Error| {
            Failure::new(Exit::Unreachable, "connection-lost", format!("the connection to meshd was lost: {error}"))
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{what}"))
            .header(HOST, "local-meshd.sock")
            .body(Full::new(body))
            .map_err(|error| Failure::new(Exit::Usage, "bad-request", error))?;
        let response = sender.send_request(request).await.map_err(lost)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(lost)?.to_bytes();
        driver.abort();
        if status.is_success() { Ok(body) } else { Err(self.refused(status, &body)) }
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Failure::new(Exit::NotPermitted, "not-permitted", format!("not permitted to open {socket}"))
            }
            _ => Failure::new(Exit::Unreachable, "not-running", format!("meshd is not reachable at {socket}: {error}"))
                .hint("start it with \"meshd\", or name its socket with --socket"),
        }
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> Failure {
        let exit = match status {
            StatusCode::UNAUTHORIZED => Exit::SignIn,
            StatusCode::FORBIDDEN => Exit::NotPermitted,
            StatusCode::SERVICE_UNAVAILABLE => Exit::Unreachable,
            StatusCode::BAD_REQUEST => Exit::Usage,
            _ => Exit::Refused,
        };
        Failure::of_json(exit, body).unwrap_or_else(|| self.strange(&format_args!("status {status}")))
    }

    fn strange(&self, problem: &dyn core::fmt::Display) -> Failure {
        let message = format!("{} answered what this mesh does not understand: {problem}", self.socket.display());
        Failure::new(Exit::Bug, "strange-answer", message).hint("are mesh and meshd of the same version?")
    }
}
