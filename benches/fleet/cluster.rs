//! Three servers, the processes with agents, and the API as the bench asks it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use edgeorc::client;
use http::{Method, Request};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::gauge::{Changes, Reading, count_changes};
use crate::support::{binary, run};

/// Why the bench did not get to its end.
pub(crate) type Failed = String;

/// Names and addresses of the servers.
const SERVERS: [(&str, &str); 3] =
    [("server-1", "127.99.0.1"), ("server-2", "127.99.0.2"), ("server-3", "127.99.0.3")];
/// Room for 16,384 nodes.
const POD_CIDR: &str = "10.128.0.0/10";
/// How long a server may take to be there.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// The image of all pods.
pub(crate) const IMAGE: &str = "registry.edgeorc.local/fleet:v1";

pub(crate) struct Server {
    pub(crate) name: &'static str,
    child: Child,
    kubeconfig: PathBuf,
    client: kube::Client,
}

pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
    pub(crate) agents: Vec<Child>,
    folder: tempfile::TempDir,
    memory: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let servers = self.servers.iter_mut().map(|server| &mut server.child);
        for child in servers.chain(&mut self.agents) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Asks until there is an answer.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, Failed> {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(why) if began.elapsed() > limit => {
                return Err(format!("{what}: not within {limit:?}: {why}"));
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

impl Cluster {
    /// Three voters, which take no pods.
    pub(crate) async fn start() -> Result<Self, Failed> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = tempfile::tempdir_in(target).unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut cluster = Self { servers: Vec::new(), agents: Vec::new(), folder, memory };
        for (name, address) in SERVERS {
            let token = cluster.servers.first().map(|first| {
                let create = ["node", "token", "create", "--kubeconfig"];
                run(Command::new(binary()).args(create).arg(&first.kubeconfig))
            });
            let server = start_server(cluster.folder.path(), name, address, token).await?;
            cluster.servers.push(server);
        }
        until("three voters", PATIENCE, async || {
            let text = metrics(&cluster.servers[0].client).await?;
            let voters = text.lines().find(|line| line.starts_with("edgeorc_store_voters "));
            let voters = voters.unwrap_or_default();
            voters.ends_with(" 3").then_some(()).ok_or(voters.to_owned())
        })
        .await?;
        for (name, _) in SERVERS {
            let cordon = json!({"spec": {"unschedulable": true}});
            until("a server's node", PATIENCE, async || {
                cluster.patch(&format!("/api/v1/nodes/{name}"), &cordon).await.map(drop)
            })
            .await?;
        }
        cluster.push_image().await?;
        Ok(cluster)
    }

    pub(crate) fn client(&self) -> &kube::Client {
        &self.servers[0].client
    }

    /// `VERB path` with a body.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        media: &str,
        body: Vec<u8>,
    ) -> Result<Value, String> {
        send(self.client(), method, path, media, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, String> {
        self.send(Method::GET, path, "application/json", Vec::new()).await
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Value, String> {
        self.send(Method::POST, path, "application/json", object.to_string().into_bytes()).await
    }

    pub(crate) async fn patch(&self, path: &str, patch: &Value) -> Result<Value, String> {
        let media = "application/merge-patch+json";
        self.send(Method::PATCH, path, media, patch.to_string().into_bytes()).await
    }

    /// A component as small as one can be: the nodes do not look at it.
    async fn push_image(&self) -> Result<(), Failed> {
        let blob = b"\0asm\x0d\0\x01\0".to_vec();
        let (digest, size) = (format!("sha256:{}", hex::encode(Sha256::digest(&blob))), blob.len());
        let path = format!("/v2/fleet/blobs/uploads/?digest={digest}");
        push(self.client(), Method::POST, &path, "application/octet-stream", blob).await?;
        let manifest = json!({"schemaVersion": 2,
            "layers": [{"mediaType": "application/wasm", "digest": digest, "size": size}]});
        let media = "application/vnd.oci.image.manifest.v1+json";
        let body = manifest.to_string().into_bytes();
        push(self.client(), Method::PUT, "/v2/fleet/manifests/v1", media, body).await
    }

    /// Makes a token for each of `count` nodes.
    pub(crate) async fn make_tokens(&self, count: usize) -> Result<(), Failed> {
        let ca = self.get("/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt").await?;
        let pem = ca.pointer("/data/ca.crt").and_then(Value::as_str).unwrap_or_default();
        let mut tokens = String::new();
        for _ in 0..count {
            let token = edgeorc::roles::new_join_token(pem, Duration::from_secs(7200)).unwrap();
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": token.secret_name, "namespace": "kube-system"},
                "type": "bootstrap.kubernetes.io/token", "stringData": token.secret_data,
            });
            self.post("/api/v1/namespaces/kube-system/secrets", &secret).await?;
            tokens.push_str(&token.token);
            tokens.push('\n');
        }
        std::fs::write(self.memory.path().join("tokens"), tokens).unwrap();
        Ok(())
    }

    /// Starts a process with `count` nodes.
    pub(crate) fn start_agents(&mut self, first: usize, count: usize) {
        let servers: Vec<String> = SERVERS.iter().map(|(_, at)| format!("{at}:6443")).collect();
        let child = Command::new(std::env::current_exe().unwrap())
            .arg("agents")
            .arg(self.memory.path())
            .args([servers.join(","), first.to_string(), count.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.agents.push(child);
    }

    /// Kills the last process with agents, without a word to anybody.
    pub(crate) fn lose_agents(&mut self) {
        let mut lost = self.agents.pop().unwrap();
        lost.kill().unwrap();
        lost.wait().unwrap();
    }

    /// Which server leads.
    pub(crate) async fn leader(&self) -> Result<usize, Failed> {
        until("a leader", PATIENCE, async || {
            for (at, server) in self.servers.iter().enumerate() {
                let text = metrics(&server.client).await?;
                if text.lines().any(|line| line == "edgeorc_store_is_leader 1") {
                    return Ok(at);
                }
            }
            Err("nobody leads".to_owned())
        })
        .await
    }

    /// Kills a server. The first of those that are left is asked from now on.
    pub(crate) fn lose_server(&mut self, at: usize) -> &'static str {
        let mut lost = self.servers.remove(at);
        lost.child.kill().unwrap();
        lost.child.wait().unwrap();
        lost.name
    }

    /// What all servers were asked to change so far.
    pub(crate) async fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        for server in &self.servers {
            count_changes(&metrics(&server.client).await.unwrap_or_default(), &mut changes);
        }
        changes
    }

    pub(crate) fn reading(&self) -> Reading {
        let servers: Vec<u32> = self.servers.iter().map(|server| server.child.id()).collect();
        let agents: Vec<u32> = self.agents.iter().map(Child::id).collect();
        Reading::take(&servers, &agents)
    }
}

async fn start_server(
    folder: &Path,
    name: &'static str,
    address: &str,
    token: Option<String>,
) -> Result<Server, Failed> {
    let dir = folder.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let log_path = std::env::var_os("FLEET_LOGS").map_or_else(|| dir.clone(), PathBuf::from);
    let log = std::fs::File::create(log_path.join(format!("{name}.log"))).unwrap();
    let mut command = Command::new(binary());
    command
        .args(["node", "start", "--node-name", name, "--bind-address", address])
        .args(["--cluster-cidr", POD_CIDR, "--data-dir"])
        .arg(&dir);
    if let Some(token) = token {
        command.args(["--join", &format!("{}:6443", SERVERS[0].1), "--token", token.trim()]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let kubeconfig = dir.join("admin.kubeconfig");
    let client = until(name, PATIENCE, async || {
        let connected = client::from_kubeconfig(Some(&kubeconfig), None).await;
        let client = connected.map_err(|err| err.to_string())?.client;
        metrics(&client).await.map(|_| client)
    })
    .await;
    match client {
        Ok(client) => Ok(Server { name, child, kubeconfig, client }),
        Err(why) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(why)
        }
    }
}

async fn metrics(client: &kube::Client) -> Result<String, String> {
    let request = Request::get("/metrics").body(Vec::new()).unwrap();
    client.request_text(request).await.map_err(|err| err.to_string())
}

async fn send(
    client: &kube::Client,
    method: Method,
    path: &str,
    media: &str,
    body: Vec<u8>,
) -> Result<Value, String> {
    let request = Request::builder().method(method).uri(path).header("content-type", media);
    let request = request.body(body).unwrap();
    client.request(request).await.map_err(|err| err.to_string())
}

/// To the registry, which answers without a body.
async fn push(
    client: &kube::Client,
    method: Method,
    path: &str,
    media: &str,
    body: Vec<u8>,
) -> Result<(), Failed> {
    let request = Request::builder().method(method).uri(path).header("content-type", media);
    let request = request.body(body).unwrap();
    client.request_text(request).await.map(drop).map_err(|err| format!("{path}: {err}"))
}
