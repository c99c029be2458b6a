//! The words of `--help` are part of the product: each change of them is seen in review.

use std::path::Path;

use crate::support::{edgeorc, succeed};

/// Every command, as a user types it.
const COMMANDS: &[&str] = &[
    "",
    "up",
    "node",
    "node start",
    "node token",
    "node token create",
    "deploy",
    "push",
    "apply",
    "get",
    "describe",
    "logs",
    "top",
    "events",
    "why",
    "scale",
    "rollout",
    "rollout status",
    "rollout restart",
    "rollout history",
    "rollout undo",
    "wait",
    "delete",
    "bundle",
    "bundle create",
    "bundle load",
    "kubeconfig",
    "doctor",
    "version",
    "completions",
];
/// Set to renew the files.
const UPDATE: &str = "UPDATE_GOLDEN";

#[test]
fn the_help_of_every_command_is_as_reviewed_and_has_an_example() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut changed = Vec::new();
    for command in COMMANDS {
        let words: Vec<_> = command.split_whitespace().collect();
        let help = succeed(edgeorc().args(&words).arg("--help").env("COLUMNS", "100"));
        assert!(!help.contains('\u{1b}'), "{command}: colours without a terminal");
        let is_leaf = !help.contains("Commands:") || command.is_empty();
        assert!(!is_leaf || help.contains("Example"), "`edgeorc {command} --help` has no example");
        let name = ["help"].into_iter().chain(words).collect::<Vec<_>>().join("-");
        let path = folder.join(format!("{name}.txt"));
        if std::env::var_os(UPDATE).is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &help).unwrap();
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != help {
            changed.push(path);
        }
    }
    assert!(changed.is_empty(), "not as in {changed:?}: read them, then set {UPDATE}=1 to renew");
}

#[test]
fn the_list_of_commands_is_complete() {
    for command in ["", "node", "node token", "rollout"] {
        let help = succeed(edgeorc().args(command.split_whitespace()).arg("--help"));
        let list = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
        for line in list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
            let verb = line.split_whitespace().next().unwrap();
            let whole = format!("{command} {verb}");
            assert!(COMMANDS.contains(&whole.trim()), "{whole:?} is missing in COMMANDS");
        }
    }
}
