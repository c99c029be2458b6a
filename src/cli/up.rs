//! `edgeorc up`: one node, one app, one URL.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::api::Session;
use super::args::Up;
use super::exit::{self, Failure};
use super::manifest::App;
use super::progress::Progress;
use super::wait::{self, Patience};
use super::{deploy, node, output, push};
use crate::config::{Environment, NodeFlags, NodeSettings};
use crate::roles;
use crate::rt::WallClock;

/// The app that runs when none is named.
const HELLO: &[u8] = include_bytes!("../../wasm-apps/hello.wasm");
/// How long the app has to answer; the first start may compile.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);
/// How long a command without an HTTP handler has: perhaps it listens itself.
const COMMAND_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two tries to reach the app.
const PROBE_PAUSE: Duration = Duration::from_millis(10);

/// Starts the node, deploys the app, prints its URL, and runs until told to stop.
pub(super) async fn run(up: Up, environment: &Environment) -> Result<(), Failure> {
    let (name, wasm) = match &up.app {
        Some(path) => (deploy::name_of(path)?, deploy::read_component(path)?),
        None => ("hello".to_owned(), HELLO.to_vec()),
    };
    let serves_http = roles::serves_http(&wasm);
    let env = deploy::parse_env(&up.env)?;
    let scratch = Scratch::open(up.data_dir.as_deref())?;
    // What a folder that has been in use tells of pods is of before, until they are back.
    let since =
        scratch.dir.join(roles::ADMIN_KUBECONFIG).exists().then(|| WallClock::system().now());
    let flags = NodeFlags {
        bind_address: Some(up.bind_address),
        data_dir: Some(scratch.dir.clone()),
        api_port: up.api_port,
        ingress_port: up.ingress_port,
        ..NodeFlags::default()
    };
    let settings = NodeSettings::build(flags, environment)
        .map_err(|cause| Failure::with(exit::USAGE, cause.to_string()))?;
    let mut progress = Progress::start("starting the node");
    let url = format!("http://{}/", settings.ingress_address());
    let address = settings.ingress_address();
    let stop = node::stop_signal()?;
    let running = node::start(settings).await?;
    let session = Session { client: running.client(), namespace: "default".to_owned() };
    let serve = async {
        progress.step(&format!("deploying {name}"));
        let image = push::push(&session, &name, &wasm).await?;
        let app = App {
            host: format!("{name}.default.localhost"),
            name: name.clone(),
            namespace: session.namespace.clone(),
            image,
            port: up.port,
            env,
            replicas: Some(up.replicas),
            sidecars: Vec::new(),
        };
        deploy::apply(&session, &app).await?;
        let ready = wait::until_ready(&session, &name, patience(since), &mut progress).await;
        ready.map_err(|failure| if serves_http { failure } else { of_command(&failure) })?;
        progress.step(&format!("waiting for {url}"));
        let limit = if serves_http { ANSWER_DEADLINE } else { COMMAND_DEADLINE };
        match answers(address, &name, limit).await {
            Err(_) if !serves_http => output::words(&format!(
                "{name} is a command, it has no HTTP handler: it runs, and nothing answers at {url}. A command that is to be reached there has to listen on port {} itself",
                up.port
            )),
            answered => answered?,
        }
        progress.finish();
        output::words(&format!(
            "{name} runs. kubectl --kubeconfig {} get pods\nCtrl-C stops everything.",
            scratch.dir.join(roles::ADMIN_KUBECONFIG).display()
        ));
        output::data_line(&url)
    };
    tokio::pin!(stop);
    let served = tokio::select! {
        served = serve => served,
        () = &mut stop => {
            return node::end(running).await;
        }
    };
    if let Err(failure) = served {
        node::end(running).await?;
        return Err(failure);
    }
    node::run_until(running, stop).await
}

/// How long the app's pods have; `since` is when the node started that had run before.
fn patience(since: Option<Timestamp>) -> Patience {
    let settle = if since.is_some() { wait::SETTLE } else { Duration::ZERO };
    Patience { limit: ANSWER_DEADLINE, settle, since }
}

/// Waits until the ingress answers for the app with something other than a server error.
async fn answers(
    address: std::net::SocketAddr,
    name: &str,
    limit: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    loop {
        if matches!(probe(address).await, Some(code) if code < 500 && code != 404) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::with(
                exit::TIMEOUT,
                format!("{name} does not answer at http://{address}/ after {} s", limit.as_secs()),
            ));
        }
        sleep(PROBE_PAUSE).await;
    }
}

/// A Deployment's pods run for ever; a command that ends is started again and again.
fn of_command(failure: &Failure) -> Failure {
    Failure::with(
        failure.code,
        format!(
            "{failure}; it is a command, it has no HTTP handler, and `up` is for apps that serve. Run one that ends with `edgeorc push` and `kubectl run --restart=Never`"
        ),
    )
}

/// One GET of `/`; the status code, or nothing when nobody answers.
async fn probe(address: std::net::SocketAddr) -> Option<u16> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = http::Request::builder()
        .uri("/")
        .header(http::header::HOST, address.to_string())
        .body(Empty::<bytes::Bytes>::new())
        .ok()?;
    let answer = async { sender.send_request(request).await.ok().map(|a| a.status().as_u16()) };
    tokio::select! {
        code = answer => code,
        _ = connection => None,
    }
}

/// The data directory: the user's, or one of our own that is removed at the end.
struct Scratch {
    dir: PathBuf,
    is_temporary: bool,
}

impl Scratch {
    fn open(named: Option<&Path>) -> Result<Self, Failure> {
        if let Some(dir) = named {
            return Ok(Self { dir: dir.to_owned(), is_temporary: false });
        }
        let name = format!("edgeorc-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).map_err(|cause| {
            Failure::with(
                exit::NODE,
                format!("cannot create {}: {cause}; name a folder with --data-dir", dir.display()),
            )
        })?;
        Ok(Self { dir, is_temporary: true })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_temporary {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
