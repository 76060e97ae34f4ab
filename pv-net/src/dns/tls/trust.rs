//! The authorities whose certificates are trusted. Their file is read when a connection is made, if it has changed.

use super::super::device::{Stamp, stamp};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, KeyProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// The system's file, by distribution: Debian, Alpine and Arch; Fedora; openSUSE; Alpine again.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Most bytes that are read of it.
const MAX_BYTES: u64 = 4 << 20;
/// How long the file system may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Sessions that are kept to be resumed: a handshake is shorter then.
const SESSIONS: usize = 16;
/// For how long they are kept: a server's certificate is not checked again when its session is resumed.
const SESSIONS_FOR: Duration = Duration::from_secs(3600);

/// Why a server cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// Its certificate is for another name.
    OtherName,
    /// Its certificate has expired.
    Expired,
    /// Its certificate is not valid yet.
    NotYetValid,
    /// Nobody known has signed its certificate.
    UnknownAuthority,
    /// Its certificate is wrong in another way.
    Certificate,
    /// It does not speak TLS, or no version or cipher that is spoken here.
    Protocol,
    /// There is no file with authorities.
    NoAuthorities,
}

impl Distrust {
    /// A text for people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::OtherName => "its certificate is for another name",
            Self::Expired => "its certificate has expired",
            Self::NotYetValid => "its certificate is not valid yet, or the device's clock is wrong",
            Self::UnknownAuthority => "its certificate is of no known authority",
            Self::Certificate => "its certificate is not valid",
            Self::Protocol => "it does not speak TLS 1.2 or 1.3",
            Self::NoAuthorities => "the file with the certificates of authorities cannot be read, or has none",
        }
    }

    /// Why a handshake failed, if that is a matter of trust and not of the network.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        use CertificateError as Wrong;
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        let rustls::Error::InvalidCertificate(wrong) = error else { return Some(Self::Protocol) };
        Some(match wrong {
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => Self::OtherName,
            Wrong::Expired | Wrong::ExpiredContext { .. } => Self::Expired,
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => Self::NotYetValid,
            Wrong::UnknownIssuer => Self::UnknownAuthority,
            _ => Self::Certificate,
        })
    }
}

impl std::fmt::Display for Distrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// The authorities, as they were read last.
#[derive(Debug, Default)]
pub(super) struct Trust {
    loaded: Arc<Mutex<Option<Loaded>>>,
}

#[derive(Debug)]
struct Loaded {
    path: PathBuf,
    stamp: Stamp,
    at: Instant,
    config: Arc<ClientConfig>,
}

impl Trust {
    /// How to connect, with the authorities of the file `named`, or of the system's.
    ///
    /// # Errors
    /// [`Distrust::NoAuthorities`] when the file cannot be read, or has no certificate.
    pub async fn config(&self, named: Option<PathBuf>) -> Result<Arc<ClientConfig>, Distrust> {
        let looked = async {
            let mut loaded = self.loaded.clone().lock_owned().await;
            // The thread has the lock, so that a file system that does not answer takes up one thread.
            spawn_blocking(move || look(&mut loaded, named)).await
        };
        match timeout(PATIENCE, looked).await {
            Ok(Ok(Some(config))) => Ok(config),
            _ => Err(Distrust::NoAuthorities),
        }
    }
}

fn look(loaded: &mut Option<Loaded>, named: Option<PathBuf>) -> Option<Arc<ClientConfig>> {
    let path = named.or_else(|| SYSTEM.iter().map(PathBuf::from).find(|path| path.exists()))?;
    // Taken before the file is read, so that a change in between is seen the next time.
    let stamp = stamp(&path);
    let is_same =
        |loaded: &&Loaded| (&loaded.path, loaded.stamp) == (&path, stamp) && loaded.at.elapsed() < SESSIONS_FOR;
    if let Some(loaded) = loaded.as_ref().filter(is_same) {
        return Some(loaded.config.clone());
    }
    let config = match read(&path) {
        Ok(roots) if !roots.is_empty() => config(roots)?,
        Ok(_) => return None,
        Err(e) => {
            tracing::debug!(file = %path.display(), error = %e, "not read");
            return None;
        }
    };
    let config = Arc::new(config);
    *loaded = Some(Loaded { path, stamp, at: Instant::now(), config: config.clone() });
    Some(config)
}

/// The certificates of the file. Those that cannot be read are left out: bundles have some of unusual forms.
fn read(path: &Path) -> io::Result<RootCertStore> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok));
    Ok(roots)
}

/// The daemon has no certificate of its own, so it never signs; the code for that is left out of the binary.
#[derive(Debug)]
struct NoKeys;

impl KeyProvider for NoKeys {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Err(rustls::Error::General("the daemon has no key".to_owned()))
    }
}

fn config(roots: RootCertStore) -> Option<ClientConfig> {
    let provider = CryptoProvider { key_provider: &NoKeys, ..ring::default_provider() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_safe_default_protocol_versions().ok()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Some(config)
}
