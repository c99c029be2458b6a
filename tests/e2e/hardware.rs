//! What a machine tells of itself: labels, conditions, and what was in use over time.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Block, Node, PATIENCE, eventually, hello, succeed};

/// A node keeps a point for each minute.
const POINT: Duration = Duration::from_secs(150);

/// A board whose sensors say what the files say.
fn machine(root: &Path, files: &[(&str, &str)]) {
    for (file, text) in files {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    }
}

fn document(command: &mut std::process::Command) -> Value {
    serde_json::from_str(&succeed(command)).unwrap()
}

/// Goal: a board in trouble says so in its Node, and what it is like in labels that go when it does not
/// tell any more; `top --since` has figures of the time asked for. Method: a folder in the place of
/// `/proc` and `/sys`; its node is started, changed while it is down, and started again.
#[test]
fn a_board_tells_of_its_troubles_and_of_what_was_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("machine");
    machine(
        &root,
        &[
            ("proc/device-tree/model", "Raspberry Pi 4"),
            ("sys/class/power_supply/BAT0/type", "Battery"),
            ("sys/class/power_supply/BAT0/status", "Discharging"),
            ("sys/class/hwmon/hwmon0/name", "rpi_volt"),
            ("sys/class/hwmon/hwmon0/in0_lcrit_alarm", "1"),
            ("sys/class/thermal/thermal_zone0/temp", "88000"),
        ],
    );
    let flags = ["--machine-root", root.to_str().unwrap()];
    let address = Block::take().address(1);
    let labelled = [&flags[..], &["--node-label", "edgeorc.io/spot=barn"]].concat();
    let mut node = Node::start_with(folder.path(), "one", address, None, &labelled);
    node.wait_ready();
    let told = eventually("the conditions", PATIENCE, || {
        let node = document(&mut node.kubectl(&["get", "node", "one", "-o", "json"]));
        let status = |kind: &str| {
            let conditions = node["status"]["conditions"].as_array().unwrap().iter();
            conditions.clone().find(|c| c["type"] == kind).map(|c| c["status"].clone())
        };
        let are_there =
            ["UnderVoltage", "Overheated"].map(|kind| status(kind) == Some("True".into()));
        if are_there == [true, true] { Ok(node) } else { Err(node) }
    });
    let label = |node: &Value, name: &str| {
        node["metadata"]["labels"].get(format!("edgeorc.io/{name}")).cloned().unwrap_or_default()
    };
    let labels = ["model", "power", "temperature"].map(|name| label(&told, name));
    assert_eq!(labels, ["Raspberry-Pi-4", "battery", "hot"].map(Value::from));
    assert_eq!(label(&told, "spot"), "barn");
    let shown = succeed(&mut node.kubectl(&["describe", "node", "one"]));
    assert!(shown.contains("TemperatureTooHigh") && shown.contains("SupplyTooWeak"), "{shown}");

    // Figures of the last minute, of the machine and of a container.
    let file = hello().to_str().unwrap().to_owned();
    succeed(&mut node.edgeorc(&["deploy", &file, "--name", "web"]));
    for what in ["nodes", "pods"] {
        eventually(&format!("figures of {what}"), POINT, || {
            let told = document(&mut node.edgeorc(&["top", what, "--since", "1m", "-o", "json"]));
            let first = told["items"][0].clone();
            let points = |key: &str| first[key].as_array().map_or(0, Vec::len);
            let used = first["memoryKiB"][0].as_i64().unwrap_or(0);
            let is_it = (points("cpuMillis"), points("memoryKiB")) == (1, 1) && used > 0;
            if is_it { Ok(()) } else { Err(told) }
        });
    }
    let shown = succeed(&mut node.edgeorc(&["top", "nodes", "--since", "15m"]));
    assert!(shown.starts_with("NODE   CPU"), "{shown}");

    // The battery is taken out while the node is down, and the flag is: nobody tells of them any more.
    node.process.signal("TERM");
    node.process.end(PATIENCE);
    std::fs::remove_dir_all(root.join("sys/class/power_supply")).unwrap();
    let node = Node::start_with(folder.path(), "one", address, None, &flags);
    node.wait_ready();
    eventually("the label goes", PATIENCE, || {
        let node = document(&mut node.kubectl(&["get", "node", "one", "-o", "json"]));
        match format!("{}{}", label(&node, "power"), label(&node, "spot")).as_str() {
            "nullnull" => Ok(()),
            told => Err(told.to_owned()),
        }
    });
}
