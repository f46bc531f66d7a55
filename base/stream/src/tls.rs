use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

/// Where Debian, Fedora and others keep the authorities that a host trusts.
const SYSTEM_AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Why TLS cannot be set up.
#[derive(Debug)]
pub struct TlsError(String);

impl std::fmt::Display for TlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TLS: {}", self.0)
    }
}

impl std::error::Error for TlsError {}

fn refused(what: impl std::fmt::Display) -> TlsError {
    TlsError(what.to_string())
}

/// TLS of the side that connects.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// TLS of the side that listens.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
}

impl ClientTls {
    /// For a server called `host`. `folder` holds `ca-cert.pem`, and `client-cert.pem` with `client-key.pem` if the server
    /// asks who we are; without it the system's authorities decide.
    pub fn new(host: &str, folder: Option<&Path>) -> Result<Self, TlsError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| refused(format!("{host:?} is no name that a certificate could have")))?;
        let roots = match folder {
            Some(folder) => authorities(&folder.join("ca-cert.pem"))?,
            None => {
                let found = SYSTEM_AUTHORITIES
                    .iter()
                    .map(Path::new)
                    .find(|path| path.exists());
                authorities(
                    found.ok_or_else(|| refused("this host has no list of certificate authorities"))?,
                )?
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_root_certificates(roots);
        let identity = folder.map(|folder| (folder.join("client-cert.pem"), folder.join("client-key.pem")));
        let config = match identity.filter(|(certificate, _)| certificate.exists()) {
            Some((certificate, key)) => builder
                .with_client_auth_cert(chain(&certificate)?, private_key(&key)?)
                .map_err(refused)?,
            None => builder.with_no_client_auth(),
        };
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    pub(crate) fn connect(&self) -> Result<Connection, rustls::Error> {
        ClientConnection::new(self.config.clone(), self.name.clone()).map(Connection::Client)
    }
}

impl ServerTls {
    /// `folder` holds `server-cert.pem` and `server-key.pem`. If it holds `ca-cert.pem` too, clients must have a certificate
    /// of that authority.
    pub fn new(folder: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(refused)?;
        let authority = folder.join("ca-cert.pem");
        let builder = if authority.exists() {
            let roots = Arc::new(authorities(&authority)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(refused)?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let certificates = chain(&folder.join("server-cert.pem"))?;
        let key = private_key(&folder.join("server-key.pem"))?;
        let config = builder.with_single_cert(certificates, key).map_err(refused)?;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    pub(crate) fn accept(&self) -> Result<Connection, rustls::Error> {
        ServerConnection::new(self.config.clone()).map(Connection::Server)
    }
}

fn unreadable(path: &Path) -> impl Fn(rustls::pki_types::pem::Error) -> TlsError {
    let path: PathBuf = path.to_owned();
    move |error| refused(format!("{}: {error}", path.display()))
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(unreadable(path))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(unreadable(path))?;
    if certificates.is_empty() {
        return Err(refused(format!("{} has no certificate in it", path.display())));
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(unreadable(path))
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (known, _) = roots.add_parsable_certificates(chain(path)?);
    if known == 0 {
        return Err(refused(format!(
            "{} has no authority that can be used",
            path.display()
        )));
    }
    Ok(roots)
}
