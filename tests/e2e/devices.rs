//! Devices of a node as a user sees them: told, claimed, given to the containers that name them.

use std::os::unix::fs::FileTypeExt as _;

use crate::kubectl::push;
use crate::support::{Block, Node, PATIENCE, both, eventually, guest, succeed};

const CLASS_AND_TEMPLATES: &str = r#"apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: own}
spec:
  selectors:
  - cel: {expression: 'device.driver == "edgeorc.io"'}
"#;

fn template(name: &str, model: &str) -> String {
    format!(
        "---\napiVersion: resource.k8s.io/v1\nkind: ResourceClaimTemplate\nmetadata: {{name: {name}}}\nspec:\n  spec:\n    devices:\n      requests:\n      - name: one\n        exactly:\n          deviceClassName: own\n          selectors:\n          - cel: {{expression: 'device.attributes[\"edgeorc.io\"].model == \"{model}\"'}}\n"
    )
}

/// A pod with a claim from `template`; its container `with` names the claim, `without` does not.
fn pod(name: &str, image: &str, template: &str, script: &str) -> String {
    let container = |name: &str, more: &str| {
        format!("  - name: {name}\n    image: {image}\n    command: [sh, -c, {script:?}]\n{more}")
    };
    let with = container("with", "    resources: {claims: [{name: it}]}\n");
    let without = container("without", "");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  resourceClaims: [{{name: it, resourceClaimTemplateName: {template}}}]\n  containers:\n{with}{without}"
    )
}

fn apply(node: &Node, name: &str, text: &str) {
    let file = node.data_dir.with_extension(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
}

fn until(node: &Node, what: &[&str], wanted: &str) {
    eventually(&format!("{what:?} gives {wanted}"), PATIENCE, || {
        let got = both(&node.kubectl(what).output().unwrap());
        if got.contains(wanted) { Ok(()) } else { Err(got) }
    });
}

fn until_running(node: &Node, pod: &str) {
    until(node, &["get", "pod", pod, "-o", "jsonpath={.status.phase}"], "Running");
}

/// Goal: a device is given to one pod at a time, and of that pod to the container that names it.
/// Method: a folder as a device, and `/dev/zero`, whose node only root can make.
#[test]
fn devices_are_told_claimed_one_at_a_time_and_given_to_who_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = folder.path().join("shelf");
    std::fs::create_dir(&shelf).unwrap();
    std::fs::write(shelf.join("label"), "on the shelf\n").unwrap();
    let shelf_flag = format!("shelf={},model=b", shelf.display());
    let flags = ["--device", "zero=/dev/zero,model=a", "--device", &shelf_flag];
    let node = Node::start_with(folder.path(), "one", Block::take().address(1), None, &flags);
    node.wait_ready();
    let image = push(&node, guest("busybox").to_str().unwrap());

    let names = "jsonpath={.spec.devices[*].name}";
    let told = ["get", "resourceslice", "one-edgeorc.io", "-o", names];
    until(&node, &told, "shelf zero");
    let kinds = "jsonpath={.spec.devices[*].attributes.kind.string}";
    let told_kinds = ["get", "resourceslice", "one-edgeorc.io", "-o", kinds];
    until(&node, &told_kinds, "folder character");

    let templates = [template("shelf", "b"), template("zero", "a")].concat();
    apply(&node, "class", &format!("{CLASS_AND_TEMPLATES}{templates}"));
    let read = format!("cat {}/label; sleep 600", shelf.display());
    apply(&node, "first", &pod("first", &image, "shelf", &read));
    until_running(&node, "first");
    until(&node, &["logs", "first", "-c", "with"], "on the shelf");
    until(&node, &["logs", "first", "-c", "without"], "cat:");
    let log = succeed(&mut node.kubectl(&["logs", "first", "-c", "without"]));
    assert!(!log.contains("on the shelf"), "{log}");

    // The only one that is like that is taken.
    apply(&node, "second", &pod("second", &image, "shelf", &read));
    until(&node, &["describe", "pod", "second"], "cannot allocate all claims");
    let why = succeed(&mut node.edgeorc(&["why", "second"]));
    assert!(why.contains("cannot allocate all claims"), "{why}");
    succeed(&mut node.kubectl(&["delete", "pod", "first"]));
    until_running(&node, "second");
    until(&node, &["logs", "second", "-c", "with"], "on the shelf");

    // A character device is a node of the same device in a folder of the container's own.
    let write = "echo x > /dev/zero && echo wrote; head -c 3 /dev/zero; echo read; sleep 600";
    apply(&node, "third", &pod("third", &image, "zero", write));
    until(&node, &["logs", "third", "-c", "with"], "\0\0\0read");
    let uid = ["get", "pod", "third", "-o", "jsonpath={.metadata.uid}"];
    let uid = succeed(&mut node.kubectl(&uid));
    // It stands in the folder of `/dev`, beside the last words.
    let own = node.data_dir.join("agent/pods").join(uid).join("termination");
    let kind = std::fs::metadata(own.join("with/zero")).unwrap().file_type();
    assert!(kind.is_char_device(), "{kind:?}");
    assert!(!own.join("without/zero").exists() || own.join("without/zero").is_file());
}
