//! Clients of the cluster's own registry: `edgeorc push`, and Debian's skopeo as one that knows nothing
//! of edgeorc.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::support::{API_PORT, Block, Node, both, guest, hello, succeed};

/// What the admin kubeconfig has, in the files that clients of registries look for.
fn certificates(node: &Node, folder: &Path) -> PathBuf {
    let folder = folder.join("certs.d");
    std::fs::create_dir_all(&folder).unwrap();
    for (file, place) in [
        ("ca.crt", "{.clusters[0].cluster.certificate-authority-data}"),
        ("client.cert", "{.users[0].user.client-certificate-data}"),
        ("client.key", "{.users[0].user.client-key-data}"),
    ] {
        let output = format!("jsonpath={place}");
        let data = succeed(&mut node.kubectl(&["config", "view", "--raw", "-o", &output]));
        std::fs::write(folder.join(file), STANDARD.decode(data.trim()).unwrap()).unwrap();
    }
    folder
}

fn skopeo(args: &[&str]) -> Command {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").args(args);
    command
}

#[test]
fn what_is_pushed_runs_and_other_clients_read_copy_and_delete_it() {
    let is_here = Command::new("skopeo").arg("--version").output().is_ok();
    assert!(is_here, "skopeo is missing: run ./test.sh, or apt-get install skopeo");
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let wasm = hello();
    let wasm = wasm.to_str().unwrap();

    let pushed = succeed(&mut node.edgeorc(&["push", wasm, "shop/cart:v1", "-o", "json"]));
    let pushed: serde_json::Value = serde_json::from_str(&pushed).unwrap();
    assert_eq!(pushed["image"], "registry.edgeorc.local/shop/cart:v1");
    let digest = pushed["digest"].as_str().unwrap();
    let again = succeed(&mut node.edgeorc(&["push", wasm, "shop/cart", "-o", "name"]));
    assert_eq!(again, "registry.edgeorc.local/shop/cart:latest\n");
    let output = node.edgeorc(&["push", wasm, "shop/cart:v2"]).output().unwrap();
    let text = both(&output);
    assert!(text.starts_with("registry.edgeorc.local/shop/cart:v2 pushed\n"), "{text}");
    assert!(text.contains("the component is there") && text.contains(digest), "{text}");
    let refused = node.edgeorc(&["push", wasm, "ghcr.io/shop/cart"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));

    let certificates = certificates(&node, folder.path());
    let certificates = certificates.to_str().unwrap();
    let at = |name: &str| format!("docker://{}:{API_PORT}/shop/{name}", node.address);
    let seen = ["inspect", "--raw", "--cert-dir", certificates, &at("cart:v1")];
    assert!(succeed(&mut skopeo(&seen)).contains("application/wasm"));
    let tags = ["list-tags", "--cert-dir", certificates, &at("cart")];
    let tags: serde_json::Value = serde_json::from_str(&succeed(&mut skopeo(&tags))).unwrap();
    assert_eq!(tags["Tags"], serde_json::json!(["latest", "v1", "v2"]));

    // Out of the registry, and into another repository of it.
    let layout = format!("oci:{}:v1", folder.path().join("layout").display());
    let from =
        ["copy", "--preserve-digests", "--src-cert-dir", certificates, &at("cart:v1"), &layout];
    succeed(&mut skopeo(&from));
    let to =
        ["copy", "--preserve-digests", "--dest-cert-dir", certificates, &layout, &at("other:v1")];
    succeed(&mut skopeo(&to));
    succeed(&mut node.kubectl(&["run", "web", "--image=shop/other:v1"]));
    succeed(&mut node.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]));
    let id = "jsonpath={.status.containerStatuses[0].imageID}";
    let id = succeed(&mut node.kubectl(&["get", "pod", "web", "-o", id]));
    assert_eq!(id, format!("registry.edgeorc.local/shop/other@{digest}"));

    // The token of a service account is a password to read with, and to read only.
    let file = folder.path().join("token.json");
    let request = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}"#;
    std::fs::write(&file, request).unwrap();
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let made = succeed(&mut node.kubectl(&["create", "--raw", path, "-f", file.to_str().unwrap()]));
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let creds = format!("anybody:{}", made["status"]["token"].as_str().unwrap());
    let authority = folder.path().join("authority");
    std::fs::create_dir_all(&authority).unwrap();
    std::fs::copy(Path::new(certificates).join("ca.crt"), authority.join("ca.crt")).unwrap();
    let authority = authority.to_str().unwrap();
    let read = ["inspect", "--raw", "--cert-dir", authority, "--creds", &creds, &at("other:v1")];
    succeed(&mut skopeo(&read));
    let strange = ["inspect", "--raw", "--cert-dir", authority, &at("other:v1")];
    assert!(!skopeo(&strange).output().unwrap().status.success());
    let write =
        ["copy", "--dest-cert-dir", authority, "--dest-creds", &creds, &layout, &at("no:v1")];
    assert!(!skopeo(&write).output().unwrap().status.success());

    let delete = ["delete", "--cert-dir", certificates, &at("other:v1")];
    succeed(&mut skopeo(&delete));
    let gone = ["inspect", "--raw", "--cert-dir", certificates, &at("other:v1")];
    assert!(!skopeo(&gone).output().unwrap().status.success());
}

/// What `docker save` writes of `FROM scratch`, `COPY busybox.wasm /` and a few lines that say how it is
/// started.
fn docker_archive(folder: &Path) -> PathBuf {
    let (root, image) = (folder.join("root"), folder.join("image"));
    std::fs::create_dir_all(&root).unwrap();
    std::fs::create_dir_all(&image).unwrap();
    std::fs::copy(guest("busybox"), root.join("busybox.wasm")).unwrap();
    let tar = |file: &Path, of: &Path| {
        succeed(Command::new("tar").arg("-cf").arg(file).arg("-C").arg(of).arg("."));
    };
    let layer = image.join("layer.tar");
    tar(&layer, &root);
    let digest = hex::encode(Sha256::digest(std::fs::read(&layer).unwrap()));
    let config = serde_json::json!({
        "architecture": "wasm", "os": "wasip1",
        "config": {
            "Env": ["MODE=of the image", "KEPT=it"], "Entrypoint": ["sh", "-c"],
            "Cmd": ["echo $MODE $KEPT in $PWD"], "WorkingDir": "/data",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    std::fs::write(image.join("config.json"), config.to_string()).unwrap();
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": ["tools:v1"], "Layers": ["layer.tar"]},
    ]);
    std::fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = folder.join("image.tar");
    tar(&archive, &image);
    archive
}

/// Goal: an image that was made by docker is started as its config says, where the pod says nothing else.
/// Method: skopeo pushes what `docker save` writes.
#[test]
fn an_image_that_docker_built_is_started_as_its_config_says() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let certificates = certificates(&node, folder.path());
    let from = format!("docker-archive:{}", docker_archive(folder.path()).display());
    let to = format!("docker://{}:{API_PORT}/shop/tools:v1", node.address);
    succeed(&mut skopeo(&["copy", "--dest-cert-dir", certificates.to_str().unwrap(), &from, &to]));
    let run = ["run", "--image=shop/tools:v1", "--restart=Never"];
    for (name, more, said) in [
        ("plain", &[][..], "of the image it in /data\n"),
        ("env", &["--env=MODE=of the pod"], "of the pod it in /data\n"),
        ("args", &["--", "echo args $KEPT"], "args it\n"),
        ("command", &["--command", "--", "echo", "no sh"], "no sh\n"),
    ] {
        succeed(&mut node.kubectl(&[&run, &[name][..], more].concat()));
        let phase = "--for=jsonpath={.status.phase}=Succeeded";
        succeed(&mut node.kubectl(&["wait", phase, &format!("pod/{name}"), "--timeout=60s"]));
        assert_eq!(succeed(&mut node.kubectl(&["logs", name])), said, "{name}");
    }
}
