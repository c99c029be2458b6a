//! A node with nothing but the runtime, and guests to run on it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use edgeorc_runtime::{
    Body, BodyError, BoxIo, Container, ContainerConfig, Datagrams, HttpError, Machine,
    MemoryKeyValue, Mount, Pod, PodConfig, PodId, PodRuntime, RuntimeConfig, Uplink,
    VirtualNetwork, WasmRuntime, compatibility_hash_for, compile_file_for,
};
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Nothing here takes longer unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An address whose ports are those of this machine's loopback: what a guest finds outside.
pub(crate) const OUTSIDE: &str = "192.0.2.1";

/// A mesh of one node: every other address is a pod here.
struct OneNode {
    network: Arc<VirtualNetwork>,
    names: BTreeMap<String, Vec<IpAddr>>,
}

#[async_trait]
impl Uplink for OneNode {
    async fn connect(
        &self,
        _from: &PodId,
        source: SocketAddr,
        to: SocketAddr,
    ) -> std::io::Result<BoxIo> {
        if to.ip() == ip(OUTSIDE) {
            let host = SocketAddr::new(ip("127.0.0.1"), to.port());
            return Ok(Box::new(tokio::net::TcpStream::connect(host).await?));
        }
        self.network.connect_from(source, to).await
    }

    async fn datagrams(
        &self,
        _from: &PodId,
        source: SocketAddr,
        to: SocketAddr,
        flow: Datagrams,
    ) -> std::io::Result<()> {
        self.network.datagrams(source, to, flow).await
    }

    async fn resolve(&self, _from: &PodId, name: &str) -> Vec<IpAddr> {
        self.names.get(name.trim_end_matches('.')).cloned().unwrap_or_default()
    }

    async fn http(
        &self,
        from: &PodId,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, BodyError> {
        let authority = request.uri().authority().ok_or("no authority")?;
        let port = authority.port_u16().unwrap_or(80);
        let ip = match authority.host().parse() {
            Ok(ip) => ip,
            Err(_) => *self.resolve(from, authority.host()).await.first().ok_or("no such name")?,
        };
        Ok(self.network.http(SocketAddr::new(ip, port), request).await?)
    }
}

/// A runtime with a network.
pub(crate) struct Node {
    pub(crate) runtime: WasmRuntime,
    pub(crate) network: Arc<VirtualNetwork>,
    dir: TempDir,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// With other settings.
    pub(crate) fn start_with(change: impl FnOnce(&mut RuntimeConfig)) -> Self {
        let network = Arc::new(VirtualNetwork::new());
        let names = BTreeMap::from([
            ("web".to_owned(), vec![ip("10.0.0.1")]),
            ("example.com".to_owned(), vec![ip(OUTSIDE), ip("2001:db8::1")]),
        ]);
        let uplink = Arc::new(OneNode { network: Arc::clone(&network), names });
        let mut config = RuntimeConfig::new(Arc::new(|| SystemTime::UNIX_EPOCH));
        config.guest_threads = Some(1);
        config.keyvalue = Arc::new(MemoryKeyValue::default());
        change(&mut config);
        let runtime = WasmRuntime::new(config, uplink, Arc::clone(&network)).unwrap();
        Self { runtime, network, dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) async fn pod(&self, address: &str) -> Arc<dyn Pod> {
        self.pod_with_memory(address, None).await
    }

    /// A container that runs one of the probes with these arguments.
    pub(crate) fn probe(&self, name: &str, probe: &str, args: &[&str]) -> ContainerConfig {
        let mut config = self.container(name, app(probe));
        config.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        config
    }

    pub(crate) async fn pod_with_memory(&self, address: &str, max: Option<u64>) -> Arc<dyn Pod> {
        self.pod_with(&[address], max).await
    }

    /// A pod with several addresses.
    pub(crate) async fn pod_with(&self, addresses: &[&str], max: Option<u64>) -> Arc<dyn Pod> {
        let address = addresses.first().unwrap();
        let id = PodId {
            namespace: "default".to_owned(),
            name: format!("pod-{address}"),
            uid: (*address).to_owned(),
        };
        let hostname = id.name.clone();
        let pod = PodConfig {
            id,
            ips: addresses.iter().map(|address| ip(address)).collect(),
            hostname,
            memory_bytes_max: max,
            hosts: Vec::new(),
            searches: Vec::new(),
            ndots: 1,
        };
        self.runtime.create(pod).await.unwrap()
    }

    /// A container with this name and code, and defaults for the rest.
    pub(crate) fn container(&self, name: &str, compiled: PathBuf) -> ContainerConfig {
        ContainerConfig {
            name: name.to_owned(),
            compiled,
            args: vec![name.to_owned()],
            env: Arc::new(vec![("POD_NAME".to_owned(), "p".to_owned())]),
            mounts: Vec::new(),
            memory_bytes_max: None,
            cpu_millis_max: None,
            cpu_millis: None,
            may_run: None,
            config: None,
            buckets: None,
            log_bytes_per_second_max: 64 << 20,
            http_port: 8080,
            fresh_instance_per_request: false,
            log_path: self.log_path(name),
            log_bytes_max: 1 << 20,
        }
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).join("0.log")
    }

    /// The container's log, without the stamps, up to its last whole line: a flood may be read in
    /// the midst of one.
    pub(crate) fn log(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.log_path(name)).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| format!("{}\n", line.split_once(' ').unwrap().1)).collect()
    }

    /// Waits until the log has a text.
    pub(crate) async fn logged(&self, name: &str, text: &str) {
        let wait = async {
            while !self.log(name).contains(text) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let is_there = tokio::time::timeout(PATIENCE, wait).await;
        assert!(is_there.is_ok(), "no {text:?} in {}", self.log(name));
    }

    /// A folder of the host, mounted at `/data`.
    pub(crate) fn mount(&self, is_read_only: bool) -> (PathBuf, Mount) {
        let host_path = self.dir.path().join("data");
        std::fs::create_dir_all(&host_path).unwrap();
        let guest_path = "/data".to_owned();
        let mount = Mount {
            host_path: host_path.clone(),
            pin: None,
            guest_path,
            is_read_only,
            limit: None,
        };
        (host_path, mount)
    }

    pub(crate) async fn get(&self, to: &str, path: &str) -> Result<(u16, String), HttpError> {
        self.send(to, path, "").await
    }

    pub(crate) async fn send(
        &self,
        to: &str,
        path: &str,
        body: &str,
    ) -> Result<(u16, String), HttpError> {
        let sent = self.network.http(to.parse().unwrap(), request(path, body));
        let response = tokio::time::timeout(PATIENCE, sent).await.unwrap()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn request(path: &str, body: &str) -> http::Request<Body> {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
    let body = body.map_err(|never| match never {}).boxed_unsync();
    http::Request::builder().uri(path).header("host", "test").body(body).unwrap()
}

/// Waits for the end of a container.
pub(crate) async fn exit(container: &Arc<dyn Container>) -> edgeorc_runtime::Exit {
    tokio::time::timeout(PATIENCE, container.wait()).await.unwrap()
}

/// Compiles, or takes what another test of this build compiled.
pub(crate) fn compiled(wasm: &[u8]) -> PathBuf {
    compiled_for(Machine::probe(), wasm)
}

/// The same for the interpreter, in addresses of at most so many bits.
pub(crate) fn interpreted(bits: Option<u32>, wasm: &[u8]) -> PathBuf {
    compiled_for(Machine::probe().with_address_bits_max(bits).interpreted(), wasm)
}

/// A guest, compiled for another machine.
pub(crate) fn compiled_for(machine: Machine, wasm: &[u8]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // Another build of this program may compile differently.
    static BUILD: LazyLock<String> = LazyLock::new(|| {
        let program = std::fs::metadata(std::env::current_exe().unwrap()).unwrap();
        format!("{:?}", program.modified().unwrap())
    });
    let mut key = Sha256::new();
    key.update(wasm);
    key.update(BUILD.as_bytes());
    key.update(compatibility_hash_for(machine));
    let name: String = key.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (input, output) =
        (folder.join(format!("{name}.wasm")), folder.join(format!("{name}.cwasm")));
    let _one = ONE_AT_A_TIME.lock();
    if !output.exists() {
        std::fs::write(&input, wasm).unwrap();
        compile_file_for(machine, &input, &output).unwrap();
    }
    output
}

/// A guest in WAT, compiled.
pub(crate) fn wat(text: &str) -> PathBuf {
    compiled(&wat::parse_str(text).unwrap())
}

/// Bytes of a guest of `wasm-apps/`.
pub(crate) fn app_bytes(name: &str) -> Vec<u8> {
    let apps = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wasm-apps");
    let path = match name {
        // Committed, so that it is there without a toolchain for guests.
        "hello" => apps.join("hello.wasm"),
        _ => apps.join("dist").join(format!("{name}.wasm")),
    };
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; build the guests first: wasm-apps/build", path.display())
    })
}

/// A guest of `wasm-apps/`, compiled.
pub(crate) fn app(name: &str) -> PathBuf {
    compiled(&app_bytes(name))
}
