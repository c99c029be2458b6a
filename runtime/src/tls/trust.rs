//! Whom a container trusts: the certificates in its `SSL_CERT_FILE`, else those of the node.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustls::client::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, RootCertStore};
use tokio::sync::OnceCell;

use crate::tasks::Guests;
use crate::types::{ContainerConfig, Mount};
use crate::wasm::WallClock;

/// Variable of a container's environment that names a file in the pod with the certificates that it
/// trusts, as OpenSSL and others have it.
const CERT_FILE: &str = "SSL_CERT_FILE";
/// Largest file of certificates, in bytes. All that Mozilla trusts are some 250 kB.
const CERT_FILE_BYTES_MAX: u64 = 2 << 20;

/// The certificates that the node's system trusts; looked at when a guest first needs them.
#[derive(Default)]
pub(crate) struct NodeTrust(OnceCell<Arc<RootCertStore>>);

impl NodeTrust {
    async fn roots(&self, guests: &Guests) -> Arc<RootCertStore> {
        let load = || async {
            let loading = guests.spawn_blocking(|| {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Arc::new(roots)
            });
            loading.await.unwrap_or_else(|_| Arc::new(RootCertStore::empty()))
        };
        Arc::clone(self.0.get_or_init(load).await)
    }
}

/// Whom one container trusts. What its file says when it is first needed holds until the container
/// ends, as it does for most programs.
pub(crate) struct Trust {
    node: Arc<NodeTrust>,
    guests: Arc<Guests>,
    clock: WallClock,
    cert_file: Option<String>,
    mounts: Vec<Mount>,
    made: OnceCell<Arc<ClientConfig>>,
}

impl Trust {
    pub(crate) fn new(
        node: Arc<NodeTrust>,
        guests: Arc<Guests>,
        clock: WallClock,
        config: &ContainerConfig,
    ) -> Arc<Self> {
        let named = config.env.iter().rev().find(|(name, _)| name == CERT_FILE);
        let cert_file = named.map(|(_, path)| path.clone()).filter(|path| !path.is_empty());
        let mounts = if cert_file.is_some() { config.mounts.clone() } else { Vec::new() };
        Arc::new(Self { node, guests, clock, cert_file, mounts, made: OnceCell::new() })
    }

    /// Settings for sessions of this container. They share nothing with those of other containers,
    /// not even what makes a second session with a server faster.
    ///
    /// # Errors
    ///
    /// For people: the file that cannot be used. It is looked at again the next time.
    pub(crate) async fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let make = || async {
            let roots = match &self.cert_file {
                Some(path) => self.roots_of(path.clone()).await,
                None => Ok(self.node.roots(&self.guests).await),
            }?;
            let provider = Arc::new(ring::default_provider());
            let clock = Arc::new(NodeClock(Arc::clone(&self.clock)));
            let config = ClientConfig::builder_with_details(provider, clock)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(roots)
                .with_no_client_auth();
            Ok(Arc::new(config))
        };
        self.made.get_or_try_init(make).await.map(Arc::clone)
    }

    async fn roots_of(&self, path: String) -> Result<Arc<RootCertStore>, String> {
        let mounts = self.mounts.clone();
        let reading = self.guests.spawn_blocking(move || {
            read_roots(&mounts, &path)
                .map_err(|error| format!("cannot use the certificates in {path}: {error}"))
        });
        reading.await.map_err(|error| error.to_string())?.map(Arc::new)
    }

    /// Why a handshake failed, with what would help.
    pub(crate) fn explain(&self, error: &io::Error) -> String {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        let is_untrusted = matches!(
            cause,
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))
        );
        if !is_untrusted {
            return error.to_string();
        }
        match &self.cert_file {
            Some(path) => format!("{error}: no certificate in {path} vouches for it"),
            None => format!(
                "{error}: no certificate of the node's system vouches for it; {CERT_FILE} in the \
                 container's environment names a file in the pod with others"
            ),
        }
    }
}

/// Tells rustls the time that the guests are told.
struct NodeClock(WallClock);

impl fmt::Debug for NodeClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeClock")
    }
}

impl TimeProvider for NodeClock {
    fn current_time(&self) -> Option<UnixTime> {
        (self.0)().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// Reads certificates from a file of the pod. Blocks on the file system.
fn read_roots(mounts: &[Mount], path: &str) -> io::Result<RootCertStore> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut bytes = Vec::new();
    open(mounts, path)?.take(CERT_FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > CERT_FILE_BYTES_MAX {
        return Err(invalid(format!("larger than {} MiB", CERT_FILE_BYTES_MAX >> 20)));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
        roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
    }
    if roots.is_empty() { Err(invalid("no certificate in it".to_owned())) } else { Ok(roots) }
}

/// Opens a file as the guest would: what it links to must be in the same mount.
fn open(mounts: &[Mount], path: &str) -> io::Result<File> {
    let (mount, rest) = locate(mounts, path).ok_or(io::ErrorKind::NotFound)?;
    let folder = File::open(&mount.host_path)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(folder, rest, flags, Mode::empty(), resolve)?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// The mount that a path of the guest is in, and the rest of the path.
fn locate<'a>(mounts: &'a [Mount], path: &str) -> Option<(&'a Mount, PathBuf)> {
    let path = plain(path)?;
    let below = |mount: &'a Mount| {
        let rest = path.strip_prefix(plain(&mount.guest_path)?).ok()?;
        (!rest.as_os_str().is_empty()).then(|| (mount, rest.to_owned()))
    };
    // The deepest mount is the one that is seen.
    mounts.iter().filter_map(below).min_by_key(|(_, rest)| rest.components().count())
}

/// A path from the root, without detours.
fn plain(path: &str) -> Option<PathBuf> {
    let mut plain = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mount(host: &Path, guest: &str) -> Mount {
        Mount {
            host_path: host.to_owned(),
            pin: None,
            guest_path: guest.to_owned(),
            is_read_only: true,
            limit: None,
        }
    }

    #[test]
    fn a_file_is_found_in_the_deepest_mount_and_never_beside_it() {
        let (outer, inner) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(outer.path().join("certs")).unwrap();
        std::fs::write(outer.path().join("certs/ca.pem"), "outer").unwrap();
        std::fs::write(inner.path().join("real.pem"), "inner").unwrap();
        symlink("real.pem", inner.path().join("ca.pem")).unwrap();
        symlink(outer.path().join("certs/ca.pem"), inner.path().join("out.pem")).unwrap();
        let mounts = [mount(outer.path(), "/data"), mount(inner.path(), "/data/certs/")];
        let read = |path: &str| open(&mounts, path).and_then(io::read_to_string);
        assert_eq!(read("/data/certs/ca.pem").unwrap(), "inner");
        assert_eq!(read("data/./certs/ca.pem").unwrap(), "inner");
        for path in
            ["/data/certs/out.pem", "/data/certs/../x", "/etc/passwd", "/data", "/data/certs"]
        {
            assert!(read(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_no_silent_distrust() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = [mount(dir.path(), "/c")];
        let failed = |text: &[u8]| {
            std::fs::write(dir.path().join("ca.pem"), text).unwrap();
            read_roots(&mounts, "/c/ca.pem").unwrap_err().to_string()
        };
        assert_eq!(failed(b""), "no certificate in it");
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(!failed(broken).contains("no certificate"));
        assert_eq!(failed(&[b'\n'; (2 << 20) + 1]), "larger than 2 MiB");
    }
}
