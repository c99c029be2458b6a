//! Services as their users see them: from the host by name, by node port and by load balancer, and
//! through every change of their type.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::{Value, json};

use crate::support::{Block, Node, PATIENCE, eventually, get, hello, succeed};

/// Port of the node's DNS server.
const DNS_PORT: u16 = 1053;
/// Longest wait for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A node that serves names, with one app of two pods: `hello`.
struct Fixture {
    node: Node,
    address: IpAddr,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let block = Block::take();
        let address = block.address(1);
        let upstream = upstream(block.address(2));
        let (bind, upstream) = (format!("{address}:{DNS_PORT}"), upstream.to_string());
        let flags = ["--dns-bind", &bind, "--dns-upstream", &upstream];
        let node = Node::start_with(folder.path(), "one", address, None, &flags);
        node.wait_ready();
        let app = hello();
        let deploy = ["deploy", app.to_str().unwrap(), "--replicas", "2", "--wait"];
        succeed(&mut node.edgeorc(&deploy));
        Self { node, address, _folder: folder }
    }

    fn apply(&self, object: &Value) {
        let mut command = self.node.kubectl(&["apply", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "apply {object}");
    }

    fn apply_service(&self, name: &str, spec: &Value) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec,
        }));
    }

    fn read(&self, what: &str, jsonpath: &str) -> String {
        let path = format!("jsonpath={jsonpath}");
        succeed(&mut self.node.kubectl(&["get", what, "-o", &path]))
    }

    /// What a look at the object says, once it says `wanted`.
    fn until(&self, what: &str, jsonpath: &str, wanted: impl Fn(&str) -> bool) -> String {
        eventually(&format!("{what} {jsonpath}"), PATIENCE, || {
            let said = self.read(what, jsonpath);
            if wanted(&said) { Ok(said) } else { Err(said) }
        })
    }

    fn ask(&self, name: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.metadata.id = 99;
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let socket = UdpSocket::bind((self.address, 0)).unwrap();
        socket.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
        socket.send_to(&query.to_vec().unwrap(), (self.address, DNS_PORT)).unwrap();
        let mut buffer = [0; 4096];
        let size = socket.recv(&mut buffer).unwrap();
        let answer = Message::from_vec(&buffer[..size]).unwrap();
        assert_eq!(answer.metadata.id, 99);
        answer
    }

    /// The data of each answer, once there are `count`.
    fn said(&self, name: &str, kind: RecordType, count: usize) -> Vec<String> {
        eventually(&format!("{name} {kind}"), PATIENCE, || {
            let answer = self.ask(name, kind);
            let said: Vec<String> = answer.answers.iter().map(|one| one.data.to_string()).collect();
            if said.len() == count { Ok(said) } else { Err(said) }
        })
    }
}

/// Knows `web.example` and nothing else.
fn upstream(ip: IpAddr) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let at = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((size, from)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..size]).unwrap();
            let mut answer = Message::response(query.metadata.id, OpCode::Query);
            let asked = query.queries[0].clone();
            if asked.name().to_ascii() == "web.example." {
                let data = RData::A(A::new(192, 0, 2, 7));
                answer.add_answer(Record::from_rdata(asked.name().clone(), 60, data));
            } else {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            answer.add_query(asked);
            socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
        }
    });
    at
}

#[test]
fn a_client_on_the_host_finds_services_by_name() {
    let one = Fixture::start();
    let selector = json!({"app.kubernetes.io/name": "hello"});
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    one.apply_service("heads", &json!({"clusterIP": "None", "selector": selector, "ports": ports}));
    one.apply_service("named", &json!({"selector": selector, "ports": ports}));
    let out = json!({"type": "ExternalName", "externalName": "web.example"});
    one.apply_service("out", &out);
    let ip = one.read("service/named", "{.spec.clusterIP}");
    let named = "named.default.svc.cluster.local.";
    assert_eq!(one.said(named, RecordType::A, 1), std::slice::from_ref(&ip));
    // Of IPv6 there is nothing, but the name is there.
    let six = one.ask(named, RecordType::AAAA);
    assert_eq!((six.metadata.response_code, six.answers.len()), (ResponseCode::NoError, 0));
    let place = one.said(&format!("_http._tcp.{named}"), RecordType::SRV, 1);
    assert_eq!(place, [format!("0 100 80 {named}")]);
    let mut reversed: Vec<&str> = ip.split('.').collect();
    reversed.reverse();
    let arpa = format!("{}.in-addr.arpa.", reversed.join("."));
    assert_eq!(one.said(&arpa, RecordType::PTR, 1), [named]);
    let mut pods: Vec<String> =
        one.read("pods", "{.items[*].status.podIP}").split(' ').map(str::to_owned).collect();
    let mut found = one.said("heads.default.svc.cluster.local.", RecordType::A, 2);
    pods.sort();
    found.sort();
    assert_eq!(found, pods);
    let out = "out.default.svc.cluster.local.";
    assert_eq!(one.said(out, RecordType::CNAME, 1), ["web.example."]);
    assert_eq!(one.said(out, RecordType::A, 2), ["web.example.", "192.0.2.7"]);
    assert_eq!(one.said("web.example.", RecordType::A, 1), ["192.0.2.7"]);
    let none = one.ask("none.default.svc.cluster.local.", RecordType::A);
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(one.said("dns-version.cluster.local.", RecordType::TXT, 1), ["1.1.0"]);
    assert_eq!(one.said("kubernetes.default.svc.cluster.local.", RecordType::A, 1), ["10.43.0.1"]);
    by_tcp(&one);
}

/// The same server by TCP.
fn by_tcp(one: &Fixture) {
    let mut query = Message::query();
    let name = Name::from_ascii("heads.default.svc.cluster.local.").unwrap();
    query.add_query(Query::query(name, RecordType::A));
    let bytes = query.to_vec().unwrap();
    let mut stream = TcpStream::connect((one.address, DNS_PORT)).unwrap();
    stream.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
    stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 2);
}

#[test]
fn a_service_changes_its_type_and_gives_back_what_it_no_longer_needs() {
    let one = Fixture::start();
    let spec = |kind: &str| {
        json!({"type": kind, "selector": {"app.kubernetes.io/name": "hello"},
            "ports": [{"name": "http", "port": 8099, "targetPort": 8080}]})
    };
    one.apply_service("web", &spec("NodePort"));
    let ip = one.read("service/web", "{.spec.clusterIP}");
    let port = |one: &Fixture| one.read("service/web", "{.spec.ports[0].nodePort}");
    let node_port: u16 = port(&one).parse().unwrap();
    let ask = |one: &Fixture, port: u16| {
        get(SocketAddr::new(one.address, port), "web", "/", ANSWER_LIMIT).map(|answer| answer.code)
    };
    eventually("the node port answers", PATIENCE, || match ask(&one, node_port) {
        Ok(200) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    one.apply_service("web", &spec("LoadBalancer"));
    let addresses = "{.status.loadBalancer.ingress[*].ip}";
    one.until("service/web", addresses, |said| said == one.address.to_string());
    assert_eq!(port(&one), node_port.to_string());
    eventually("the load balancer's port answers", PATIENCE, || match ask(&one, 8099) {
        Ok(200) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    one.apply_service("web", &spec("ClusterIP"));
    one.until("service/web", addresses, str::is_empty);
    assert_eq!(one.read("service/web", "{.spec.clusterIP}"), ip);
    assert_eq!(port(&one), "");
    eventually("the ports are closed", PATIENCE, || {
        let open: Vec<u16> =
            [node_port, 8099].into_iter().filter(|port| ask(&one, *port).is_ok()).collect();
        if open.is_empty() { Ok(()) } else { Err(open) }
    });
    one.apply_service(
        "web",
        &json!({"type": "ExternalName", "externalName": "web.example",
        "clusterIP": null, "clusterIPs": null, "selector": null, "ports": null}),
    );
    assert_eq!(one.read("service/web", "{.spec.clusterIP}"), "");
    // The address is free for another.
    one.apply_service("heir", &json!({"clusterIP": ip, "ports": [{"port": 80}]}));
    assert_eq!(one.read("service/heir", "{.spec.clusterIP}"), ip);
    one.apply_service("web", &spec("ClusterIP"));
    let again = one.read("service/web", "{.spec.clusterIP}");
    assert!(again.parse::<IpAddr>().is_ok() && again != ip, "{again}");
}

#[test]
fn endpoints_that_a_user_writes_become_slices_and_names() {
    let one = Fixture::start();
    one.apply_service("db", &json!({"ports": [{"name": "sql", "port": 5432}]}));
    one.apply_service(
        "bare",
        &json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
    );
    for name in ["db", "bare"] {
        one.apply(&json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name},
            "subsets": [{"addresses": [{"ip": "192.0.2.9", "hostname": "primary"}],
                "ports": [{"name": "sql", "port": 5433}]}],
        }));
    }
    let slices = |one: &Fixture, name: &str| {
        let label = format!("kubernetes.io/service-name={name}");
        let path = "jsonpath={.items[*].endpoints[*].addresses[0]}";
        let args = ["get", "endpointslices", "-l", &label, "-o", path];
        succeed(&mut one.node.kubectl(&args))
    };
    eventually("the slice is there", PATIENCE, || match slices(&one, "db").as_str() {
        "192.0.2.9" => Ok(()),
        other => Err(other.to_owned()),
    });
    let host = "primary.bare.default.svc.cluster.local.";
    assert_eq!(one.said(host, RecordType::A, 1), ["192.0.2.9"]);
    let place = one.said("_sql._tcp.bare.default.svc.cluster.local.", RecordType::SRV, 1);
    assert_eq!(place, [format!("0 100 5433 {host}")]);
    succeed(&mut one.node.kubectl(&["delete", "endpoints", "db"]));
    eventually("the slice is gone", PATIENCE, || match slices(&one, "db").as_str() {
        "" => Ok(()),
        other => Err(other.to_owned()),
    });
    // The API's own endpoints are told in both ways, and only once.
    assert_eq!(slices(&one, "kubernetes"), one.address.to_string());
    let told = one.read("endpoints/kubernetes", "{.subsets[*].addresses[*].ip}");
    assert_eq!(told, one.address.to_string());
}
