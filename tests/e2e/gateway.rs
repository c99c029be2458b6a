//! Goal: kubectl applies a Gateway with a certificate and routes; clients reach the pods, and the
//! status says so.

use std::process::Command;

use crate::support::{Block, Node, PATIENCE, both, eventually, get, hello, succeed};

/// Port of the HTTPS ingress.
const HTTPS_PORT: u16 = 8443;

const MANIFEST: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: edgeorc
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: own, port: 9099, protocol: HTTP}
  - name: https
    port: 443
    protocol: HTTPS
    hostname: secure.test
    tls: {certificateRefs: [{name: web-tls}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{name: web}]
  hostnames: [route.test, secure.test]
  rules:
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}, statusCode: 301}
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: x-route, value: web}]}
    backendRefs: [{name: hello, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: astray}
spec:
  parentRefs: [{name: web, sectionName: none}]
  rules: [{backendRefs: [{name: hello, port: 80}]}]
"#;

#[test]
fn kubectl_applies_a_gateway_and_clients_reach_the_pods() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let hello = hello();
    succeed(&mut node.edgeorc(&["deploy", hello.to_str().unwrap(), "--wait"]));
    let port = succeed(&mut node.kubectl(&[
        "get",
        "service",
        "hello",
        "-o",
        "jsonpath={.spec.ports[0].port}",
    ]));

    let manifest = folder.path().join("gateway.yaml");
    std::fs::write(&manifest, MANIFEST.replace("port: 80}]", &format!("port: {port}}}]"))).unwrap();
    let (key, cert) = (folder.path().join("tls.key"), folder.path().join("tls.crt"));
    succeed(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args([
                "-nodes",
                "-subj",
                "/CN=secure.test",
                "-addext",
                "subjectAltName=DNS:secure.test",
            ])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&cert),
    );
    succeed(&mut node.kubectl(&["apply", "-f", manifest.to_str().unwrap()]));
    let missing = eventually("the listener lacks its certificate", PATIENCE, || {
        let listener = ".status.listeners[?(@.name=='https')]";
        let path = format!("jsonpath={{{listener}.conditions[?(@.type=='ResolvedRefs')].reason}}");
        let reason = succeed(&mut node.kubectl(&["get", "gateway", "web", "-o", &path]));
        if reason.is_empty() { Err(reason) } else { Ok(reason) }
    });
    assert_eq!(missing, "InvalidCertificateRef");
    let secret = succeed(&mut node.kubectl(&[
        "create",
        "secret",
        "tls",
        "web-tls",
        "--cert",
        cert.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
        "--dry-run=client",
        "-o",
        "yaml",
    ]));
    let file = folder.path().join("secret.yaml");
    std::fs::write(&file, secret).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
    let answer = |at, path: &str| {
        let answer = get(at, "route.test", path, PATIENCE).map_err(|err| err.to_string())?;
        if answer.code == 404 || answer.code >= 500 {
            Err(format!("{answer:?}"))
        } else {
            Ok(answer)
        }
    };
    let first = eventually("the route answers", PATIENCE, || answer(node.ingress(), "/"));
    assert_eq!(first.code, 200);
    let moved = answer(node.ingress(), "/old/x").unwrap();
    assert_eq!(moved.code, 301);
    let own = std::net::SocketAddr::new(node.address, 9099);
    assert_eq!(eventually("the own port answers", PATIENCE, || answer(own, "/")).code, 200);

    let secure = eventually("TLS answers with the certificate", PATIENCE, || {
        let to = format!("secure.test:443:{}:{HTTPS_PORT}", node.address);
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--include", "--max-time", "10"])
            .args(["--connect-to", &to, "https://secure.test/", "--cacert"])
            .arg(&cert)
            .output()
            .unwrap();
        if output.status.success() { Ok(both(&output)) } else { Err(both(&output)) }
    });
    assert!(secure.contains("HTTP/2 200") || secure.contains("HTTP/1.1 200"), "{secure}");
    assert!(secure.contains("x-route: web"), "{secure}");

    eventually("the gateway is programmed", PATIENCE, || {
        let text = succeed(&mut node.kubectl(&["get", "gateways,httproutes,gatewayclasses"]));
        let is_so = text.lines().any(|line| {
            line.starts_with("gateway.gateway.networking.k8s.io/web")
                && line.contains("True")
                && line.contains(&node.address.to_string())
        });
        if is_so { Ok(text) } else { Err(text) }
    });
    let reason = |route: &str, kind: &str| {
        let path =
            format!("jsonpath={{.status.parents[0].conditions[?(@.type=='{kind}')].reason}}");
        succeed(&mut node.kubectl(&["get", "httproute", route, "-o", &path]))
    };
    assert_eq!(reason("web", "Accepted"), "Accepted");
    assert_eq!(reason("web", "ResolvedRefs"), "ResolvedRefs");
    assert_eq!(reason("astray", "Accepted"), "NoMatchingParent");
    let ip = succeed(&mut node.kubectl(&[
        "get",
        "ingress",
        "hello",
        "-o",
        "jsonpath={.status.loadBalancer.ingress[0].ip}",
    ]));
    assert_eq!(ip, node.address.to_string());
}
