//! Asks a URL whether a node may connect: a POST, as derper does it, to headscale's or our own `/verify`.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    error::Error,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode, Uri,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tracing::warn;

use mesh_core::key::NodePublic;
use transports::program::{Exit, Failure, Told};
use transports::roots;

use crate::{admission::Admission, limits};

/// Bytes that the body of an answer may have. derper: 4 KiB.
const ANSWER_BYTES: usize = 4 << 10;

/// Why there is no answer. What a person wants to know is in its text.
type Problem = Box<dyn Error + Send + Sync>;

/// Who is asked.
#[derive(Clone)]
pub(super) enum Asker {
    /// A URL.
    Url(Verifier),
    /// The program that the relay is a part of.
    Program(Arc<dyn Ask>),
}

/// Somebody who knows who may connect.
pub trait Ask: Send + Sync {
    /// Whether a node may.
    fn ask(&self, node: NodePublic) -> Pin<Box<dyn Future<Output = Admission> + Send + '_>>;
}

impl Asker {
    /// Asks. What is not a clear answer in time is none.
    pub(super) async fn ask(&self, node: &NodePublic, source: IpAddr) -> Admission {
        match self {
            Self::Url(verifier) => verifier.ask(node, source).await,
            Self::Program(program) => {
                timeout(limits::ADMISSION, program.ask(*node)).await.unwrap_or(Admission::Unreachable)
            }
        }
    }
}

/// Where to ask.
#[derive(Clone)]
pub(super) struct Verifier {
    url: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Places for questions.
    questions: Arc<Semaphore>,
    /// Whoever connects has a question asked: what is wrong with the answers could fill the log.
    told: Arc<Mutex<Told>>,
}

impl Verifier {
    /// Reads a URL. For https the system's roots are read, and those of the file that `SSL_CERT_FILE` names.
    pub(super) fn new(url: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::new(Exit::Usage, "bad-verify-url", format!("\"{url}\" cannot be asked: {why}"))
                .hint("give a URL such as https://control.example.com/verify")
        };
        let url: Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        let https = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it begins with neither https:// nor http://")),
        };
        let authority = url.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("names and passwords are not sent"));
        }
        if authority.as_str().len() > authority.host().len() && authority.port_u16().is_none() {
            return Err(wrong("its port is no number up to 65535"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let tls = if https {
            let name = ServerName::try_from(host.clone()).map_err(|_| wrong("its host is no name of TLS"))?;
            Some((connector().map_err(|why| wrong(&why.to_string()))?, name))
        } else {
            None
        };
        let questions = Arc::new(Semaphore::new(limits::QUESTIONS));
        Ok(Self { url, host, port, tls, questions, told: Arc::default() })
    }

    /// Asks. What is not a clear answer in time is none.
    async fn ask(&self, node: &NodePublic, source: IpAddr) -> Admission {
        let question = async {
            let _place = self.questions.acquire().await?;
            self.exchange(node, source).await
        };
        match timeout(limits::ADMISSION, question).await {
            Ok(Ok((status, body))) => read(status, &body).unwrap_or_else(|problem| {
                self.tell(&problem);
                Admission::Unclear
            }),
            Ok(Err(problem)) => {
                self.tell(&format!("nobody can be asked: {problem}"));
                Admission::Unreachable
            }
            Err(_) => Admission::Unreachable,
        }
    }

    fn tell(&self, problem: &str) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
        if let Some(left_out) = told {
            warn!(problem, left_out, "it is not known who may connect");
        }
    }

    async fn exchange(&self, node: &NodePublic, source: IpAddr) -> Result<(StatusCode, Bytes), Problem> {
        let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            Some((connector, name)) => self.post(connector.connect(name.clone(), socket).await?, node, source).await,
            None => self.post(socket, node, source).await,
        }
    }

    async fn post(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        node: &NodePublic,
        source: IpAddr,
    ) -> Result<(StatusCode, Bytes), Problem> {
        let body = serde_json::json!({ "NodePublic": node, "Source": source.to_string() }).to_string();
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::post(path)
            .header(HOST, self.url.authority().map_or("", |authority| authority.as_str()))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer: `sender` is dropped here.
        let connection = tokio::spawn(connection);
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            // What is too long is no verdict.
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            Ok((status, body.map(|body| body.to_bytes()).unwrap_or_default()))
        };
        let answer = answer.await;
        connection.abort();
        answer
    }
}

/// What a whole answer means, or what is wrong with it. derper refuses whatever is not a verdict.
fn read(status: StatusCode, body: &[u8]) -> Result<Admission, String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(rename = "Allow")]
        allow: bool,
    }
    if status != StatusCode::OK {
        return Err(format!("the answer is an error: {}", status.as_u16()));
    }
    match serde_json::from_slice(body) {
        Ok(Answer { allow: true }) => Ok(Admission::Allowed),
        Ok(Answer { allow: false }) => Ok(Admission::Refused),
        Err(error) => Err(format!("the answer is no verdict: {error}")),
    }
}

/// A client of TLS that trusts the system's roots and those of `SSL_CERT_FILE`.
fn connector() -> Result<TlsConnector, Problem> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots::load()?)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_verdict_counts() {
        let check = |status: u16, body: &str, expected| {
            let read = read(StatusCode::from_u16(status).unwrap(), body.as_bytes());
            assert_eq!(read.ok(), expected, "{status} {body}");
        };
        check(200, "{\"Allow\":true}", Some(Admission::Allowed));
        check(200, " {\"Allow\":false, \"Why\":{}} ", Some(Admission::Refused));
        check(500, "{\"Allow\":true}", None);
        check(204, "", None);
        check(200, "{}", None);
        check(200, "", None);
    }

    #[test]
    fn urls_are_read() {
        let read =
            |url: &str| Verifier::new(url).map(|verifier| (verifier.host, verifier.port, verifier.tls.is_some()));
        assert_eq!(read("http://control:8080/verify").unwrap(), ("control".to_owned(), 8080, false));
        assert_eq!(read("http://control").unwrap(), ("control".to_owned(), 80, false));
        assert_eq!(read("http://[::1]:9/verify").unwrap(), ("::1".to_owned(), 9, false));
        for url in
            ["control/verify", "ftp://control/", "http:///verify", "http://a b/", "http://u@h/", "https://a_b:0x/"]
        {
            assert!(Verifier::new(url).is_err(), "{url}");
        }
    }
}
