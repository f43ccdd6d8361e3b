//! A blocking DERP client over TLS, as light as can be: it shares its cores with the relay that is measured.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::{Arc, LazyLock},
};

use anyhow::{Context, Result, bail};
use mesh_core::{
    crypto::nacl::BoxKey,
    derp::Frame,
    key::{NodePrivate, NodePublic},
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use socket2::{Domain, Socket, Type};

/// A client that is in.
pub(crate) struct Client {
    pub(crate) key: NodePublic,
    tls: ClientConnection,
    socket: TcpStream,
    unread: Vec<u8>,
    scratch: Vec<u8>,
}

impl Client {
    /// Connects from an address of the loopback that depends on `number`, by the slow start.
    pub(crate) fn connect(relay: SocketAddr, number: u32) -> Result<Self> {
        Self::connect_from(relay, Ipv4Addr::new(127, 0, 1, 1 + (number % 50) as u8), number)
    }

    /// Connects from an address, by the slow start. `number` says with which key.
    pub(crate) fn connect_from(relay: SocketAddr, from: Ipv4Addr, number: u32) -> Result<Self> {
        let mut client = Self::open(relay, from, number)?;
        client.greet(number)?;
        Ok(client)
    }

    /// A connection on which nothing was said yet, not even of TLS.
    pub(crate) fn open(relay: SocketAddr, from: Ipv4Addr, number: u32) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.connect(&relay.into())?;
        socket.set_tcp_nodelay(true)?;
        let tls =
            ClientConnection::new(Arc::clone(&CONFIG), ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into()))?;
        let key = private(number).public();
        Ok(Self { key, tls, socket: socket.into(), unread: Vec::new(), scratch: Vec::new() })
    }

    fn greet(&mut self, number: u32) -> Result<()> {
        self.push(b"GET /derp HTTP/1.1\r\nHost: r\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")?;
        self.flush()?;
        while !self.unread.windows(4).any(|four| four == b"\r\n\r\n") {
            self.fill()?;
        }
        let head = self.unread.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_default() + 4;
        self.unread.drain(..head);
        let server = loop {
            match Frame::decode(&self.unread)? {
                Some((Frame::ServerKey(server), length)) => {
                    self.unread.drain(..length);
                    break server;
                }
                Some((other, _)) => bail!("{other:?} for a key"),
                None => self.fill()?,
            }
        };
        let mut nonce = [0; 24];
        nonce[..4].copy_from_slice(&number.to_be_bytes());
        let shared = BoxKey::new(&private(number).to_bytes(), server.as_bytes()).context("the server's key")?;
        let sealed = [&nonce[..], &shared.seal(&nonce, br#"{"version":2,"CanAckPings":true}"#)].concat();
        let mut greeting = Vec::new();
        Frame::ClientInfo { key: self.key, sealed: &sealed }.encode(&mut greeting);
        self.push(&greeting)?;
        self.flush()?;
        loop {
            match Frame::decode(&self.unread)? {
                Some((Frame::ServerInfo { .. }, length)) => {
                    self.unread.drain(..length);
                    return Ok(());
                }
                Some((other, _)) => bail!("{other:?} before the client is in"),
                None => self.fill()?,
            }
        }
    }

    /// Takes a record for writing: a real client makes one of each packet.
    pub(crate) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(record)
    }

    /// Writes what was taken.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Reads some and calls `each` with every packet that is whole.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(&[u8])) -> Result<()> {
        self.fill()?;
        let mut used = 0;
        while let Some((frame, length)) = Frame::decode(&self.unread[used..])? {
            if let Frame::RecvPacket { packet, .. } = frame {
                each(packet);
            }
            used += length;
        }
        self.unread.drain(..used);
        Ok(())
    }

    /// The socket, to end a wait from another thread.
    pub(crate) fn socket(&self) -> io::Result<TcpStream> {
        self.socket.try_clone()
    }

    fn fill(&mut self) -> Result<()> {
        // Before anything can be read, the handshake wants to write.
        self.flush()?;
        self.scratch.resize(64 << 10, 0);
        let count = self.socket.read(&mut self.scratch)?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut read = &self.scratch[..count];
        while !read.is_empty() {
            self.tls.read_tls(&mut read)?;
            let plain = self.tls.process_new_packets()?.plaintext_bytes_to_read();
            if plain > 0 {
                let start = self.unread.len();
                self.unread.resize(start + plain, 0);
                self.tls.reader().read_exact(&mut self.unread[start..])?;
            }
        }
        self.flush()?;
        Ok(())
    }

    /// Gives room back: idle clients are many.
    pub(crate) fn shrink(&mut self) {
        (self.unread, self.scratch) = (Vec::new(), Vec::new());
    }
}

/// The key of a client.
fn private(number: u32) -> NodePrivate {
    let mut bytes = [5; 32];
    bytes[1..5].copy_from_slice(&number.to_be_bytes());
    NodePrivate::from_bytes(bytes)
}

static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    // As stock clients on this machine offer them.
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let verifier = Trusting(Arc::new(provider.clone()));
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Arc::new(config)
});

/// Believes every certificate: what is measured is the relay.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
