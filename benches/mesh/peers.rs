//! The peers: `wasmtime serve`, and proxies in front of it.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{PEER, until_answers};

/// Where the proxies listen.
const NGINX: &str = "127.31.0.4:8080";
const HAPROXY: &str = "127.31.0.5:8080";

/// Running peers; they end when this is dropped.
pub(crate) struct Peers {
    children: Vec<Child>,
    proxies: Vec<(&'static str, String)>,
}

impl Peers {
    pub(crate) fn start(folder: &Path, wasmtime: &Path, component: &Path) -> Self {
        let mut this = Self { children: Vec::new(), proxies: Vec::new() };
        let mut serve = Command::new(wasmtime);
        serve.args(["serve", "--addr", PEER, "-Scli", "--max-instance-reuse-count", "1000000000"]);
        serve.args(["--idle-instance-timeout", "5s"]).arg(component);
        this.spawn(&mut serve);
        until_answers(PEER, "x");
        let nginx = folder.join("nginx.conf");
        std::fs::write(&nginx, nginx_conf(folder)).unwrap();
        this.proxy(
            "nginx",
            NGINX,
            program("NGINX", "nginx").arg("-p").arg(folder).arg("-c").arg(nginx),
        );
        let haproxy = folder.join("haproxy.cfg");
        std::fs::write(&haproxy, haproxy_cfg()).unwrap();
        this.proxy(
            "haproxy",
            HAPROXY,
            program("HAPROXY", "haproxy").arg("-db").arg("-f").arg(haproxy),
        );
        this
    }

    pub(crate) fn proxies(&self) -> Vec<(&'static str, String)> {
        self.proxies.clone()
    }

    fn proxy(&mut self, name: &'static str, at: &str, command: &mut Command) {
        self.spawn(command);
        until_answers(at, "x");
        self.proxies.push((name, at.to_owned()));
    }

    fn spawn(&mut self, command: &mut Command) {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let why = |err| panic!("{command:?}: {err}; see `just bench-mesh`");
        self.children.push(child.unwrap_or_else(why));
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // In order, so that the workers of a proxy end with it.
            let _ = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

/// A program by the environment or by its name.
fn program(variable: &str, name: &str) -> Command {
    Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()))
}

fn nginx_conf(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "daemon off; worker_processes auto; pid {folder}/nginx.pid; error_log /dev/null;
        events {{ worker_connections 4096; }}
        http {{
          access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
          fastcgi_temp_path {folder}/fcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
          keepalive_requests 1000000000;
          upstream serve {{ server {PEER}; keepalive 64; keepalive_requests 1000000000; }}
          server {{
            listen {NGINX};
            location / {{ proxy_pass http://serve; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
          }}
        }}"
    )
}

fn haproxy_cfg() -> String {
    format!(
        "global\n  maxconn 4096\ndefaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  \
         timeout connect 5s\n  http-reuse always\nfrontend f\n  bind {HAPROXY}\n  default_backend b\n\
         backend b\n  server s {PEER}\n"
    )
}
