//! `wasi:tls`: sessions of guests with a real server, and whom they trust.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use edgeorc_runtime::Stdio;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, channel};
use tokio_rustls::TlsAcceptor;

use crate::support::{Node, OUTSIDE, app, exit};

/// A server that answers what it hears.
struct Server {
    acceptor: TlsAcceptor,
    /// What its clients must trust, as PEM.
    certificate: String,
}

impl Server {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["server.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificate: made.cert.pem() }
    }

    /// Serves one connection; the error is the handshake's.
    async fn serve(&self, io: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let mut session = self.acceptor.accept(io).await?;
        let mut heard = [0; 5];
        session.read_exact(&mut heard).await?;
        session.write_all(b"heard ").await?;
        session.write_all(&heard).await?;
        session.shutdown().await
    }
}

/// A node that knows what time it is, and a folder with certificates.
fn node(server: &Server) -> (Node, PathBuf, edgeorc_runtime::Mount) {
    let node = Node::start_with(|config| {
        config.wall_clock = Arc::new(|| UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    });
    let (folder, mut mount) = node.mount(true);
    mount.guest_path = "/certs".to_owned();
    std::fs::write(folder.join("ca.pem"), &server.certificate).unwrap();
    (node, folder, mount)
}

#[tokio::test]
async fn a_guest_talks_to_a_server_that_its_pod_trusts() {
    let server = Server::new();
    let (node, _, mount) = node(&server);
    let pod = node.pod("10.0.0.1").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let session = async |name: &str, cert_file: Option<&str>, server_name: &str| {
        let mut config = node.container(name, app("probe"));
        config.args.extend(["tls", OUTSIDE, &port, server_name].map(str::to_owned));
        config.mounts.push(mount.clone());
        Arc::make_mut(&mut config.env)
            .extend(cert_file.map(|path| ("SSL_CERT_FILE".to_owned(), path.to_owned())));
        let container = pod.start(config).await.unwrap();
        let (io, _) = listener.accept().await.unwrap();
        let (served, exit) = tokio::join!(server.serve(io), exit(&container));
        assert_eq!(served.is_ok(), exit.code == 0, "{served:?}");
        (exit.code, node.log(name))
    };
    let trusted = session("trusted", Some("/certs/ca.pem"), "server.test").await;
    assert!(trusted.0 == 0 && trusted.1.contains("heard hello"), "{trusted:?}");
    let (code, log) = session("unknown", None, "server.test").await;
    assert_eq!(code, 1);
    assert!(log.contains("UnknownIssuer") && log.contains("SSL_CERT_FILE"), "{log}");
    let (code, log) = session("other", Some("/certs/ca.pem"), "other.test").await;
    assert!(code == 1 && log.contains("not valid for name"), "{log}");
    let (code, log) = session("none", Some("/certs/none.pem"), "server.test").await;
    assert!(code == 1 && log.contains("cannot use the certificates in /certs/none.pem"), "{log}");
    let (code, log) = session("name", Some("/certs/ca.pem"), "no name").await;
    assert!(code == 1 && log.contains("not the name"), "{log}");
}

async fn all(mut receiver: Receiver<Bytes>) -> String {
    let mut text = Vec::new();
    while let Some(bytes) = receiver.recv().await {
        text.extend_from_slice(&bytes);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_session_of_wasi_0_3_runs_over_any_streams() {
    let server = Server::new();
    let (node, _, mount) = node(&server);
    let pod = node.pod("10.0.0.1").await;
    for (path, wanted) in [("/certs/ca.pem", "heard hello"), ("/certs/none.pem", "cannot use")] {
        let (stdin, near) = tokio::io::duplex(1 << 10);
        let (far, mut out) = tokio::io::duplex(1 << 10);
        let (stdout, mut sent) = channel(1);
        let (stderr, said) = channel(1);
        let stdio = Stdio { stdin: Some(Box::new(stdin)), stdout, stderr, is_terminal: false };
        let mut config = node.container("p3", app("probe-p3"));
        config.args.extend(["tls", "server.test"].map(str::to_owned));
        config.mounts.push(mount.clone());
        Arc::make_mut(&mut config.env).push(("SSL_CERT_FILE".to_owned(), path.to_owned()));
        let command = pod.exec(config, stdio).await.unwrap();
        let pumping = async {
            while let Some(bytes) = sent.recv().await {
                if out.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            drop(out);
        };
        let serving = server.serve(tokio::io::join(far, near));
        let ((), _, said, exit) = tokio::join!(pumping, serving, all(said), exit(&command));
        assert!(said.contains(wanted), "{said}");
        assert_eq!(exit.code == 0, wanted == "heard hello", "{said}");
    }
}

#[tokio::test]
async fn an_interface_beside_the_clients_is_named_with_what_there_is() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let needy = r#"(component
        (import "wasi:tls/server@0.3.0-draft" (instance (export "listen" (func))))
        (core module $m (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $exports (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $exports)))"#;
    let refused = pod.start(node.container("needy", crate::support::wat(needy))).await;
    let words = refused.err().unwrap().to_string();
    assert!(words.contains("wasi:tls/server@0.3.0-draft, which edgeorc does not"), "{words}");
    assert!(words.contains("wasi:tls 0.2.0-draft and 0.3.0-draft (clients)"), "{words}");
}
