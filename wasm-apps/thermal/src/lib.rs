//! A plugin of the scheduler: no pod goes to a hot machine, and cool ones come before warm ones. Pods
//! that are labelled `edgeorc.io/heat: any` go wherever there is room.
//!
//! What it goes by is the label `edgeorc.io/temperature`, which nodes with a thermometer have. Who
//! knows better labels the node `edgeorc.io/heat: cool`, `warm` or `hot`.

mod bindings {
    wit_bindgen::generate!({
        path: "../../runtime/wit/scheduler.wit",
        world: "edgeorc:scheduler/scheduler-plugin",
    });
}

use bindings::exports::edgeorc::scheduler::plugin::{Guest, Node, Pod};

bindings::export!(Thermal with_types_in bindings);

/// What people say of heat.
const HEAT: &str = "edgeorc.io/heat";

struct Thermal;

impl Guest for Thermal {
    fn filter(pod: Pod, node: Node) -> Result<(), String> {
        if temperature(&node) == "hot" && value(&pod.labels, HEAT) != "any" {
            return Err("too hot".to_owned());
        }
        Ok(())
    }

    fn score(_: Pod, node: Node) -> i64 {
        match temperature(&node) {
            "cool" => 100,
            "warm" => 30,
            "hot" => 0,
            // It has no thermometer: neither praised nor blamed.
            _ => 60,
        }
    }
}

fn temperature(node: &Node) -> &str {
    match value(&node.labels, HEAT) {
        "" => value(&node.labels, "edgeorc.io/temperature"),
        said => said,
    }
}

fn value<'a>(labels: &'a [(String, String)], wanted: &str) -> &'a str {
    let found = labels.iter().find(|(name, _)| name == wanted);
    found.map_or("", |(_, value)| value.as_str())
}
