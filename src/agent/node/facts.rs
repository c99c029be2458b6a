//! What this machine is like, as labels that pods can choose by: model, memory, power, link, heat.
//!
//! What changes is told in words with room between them, so that an idle machine says the same thing
//! all day.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Prefix of the labels.
const PREFIX: &str = "edgeorc.io/";
/// Bytes of a label's value.
const VALUE_BYTES_MAX: usize = 63;
/// From these on a machine is warm, or hot, in thousandths of a degree Celsius.
const WARM: i64 = 60_000;
const HOT: i64 = 75_000;
/// It has to be this much cooler to be called so again.
const COOLER_BY: i64 = 5_000;

/// The labels of the machine whose `/proc` and `/sys` are under `root`. `before` is what it said last.
pub(super) fn labels(root: &Path, before: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let last_heat = before.get(&format!("{PREFIX}temperature")).map(String::as_str);
    [
        ("model", model(root)),
        ("memory", memory(root)),
        ("power", power(root).map(str::to_owned)),
        ("link", link(root).map(str::to_owned)),
        ("temperature", heat(root, last_heat).map(str::to_owned)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((format!("{PREFIX}{name}"), label_value(&value?)?)))
    .collect()
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    (!text.is_empty()).then(|| text.to_owned())
}

/// The entries of a folder, in order.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// What the maker calls the machine.
fn model(root: &Path) -> Option<String> {
    read(&root.join("proc/device-tree/model"))
        .or_else(|| read(&root.join("sys/class/dmi/id/product_name")))
}

/// RAM as it was sold: the system keeps some of it, so the next half power of two.
fn memory(root: &Path) -> Option<String> {
    let info = read(&root.join("proc/meminfo"))?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    let mib = kib.div_ceil(1024).max(1);
    let power = mib.next_power_of_two();
    let sold = if mib <= power / 4 * 3 && power >= 4 { power / 4 * 3 } else { power };
    Some(if sold.is_multiple_of(1024) { format!("{}Gi", sold / 1024) } else { format!("{sold}Mi") })
}

/// Where its current comes from.
fn power(root: &Path) -> Option<&'static str> {
    let mut has_mains = false;
    let mut is_discharging = false;
    for supply in entries(&root.join("sys/class/power_supply")) {
        match read(&supply.join("type")).as_deref() {
            Some("Battery") => {
                is_discharging |= read(&supply.join("status")).as_deref() == Some("Discharging");
            }
            Some(_) => has_mains |= read(&supply.join("online")).as_deref() == Some("1"),
            None => {}
        }
    }
    if is_discharging {
        Some("battery")
    } else if has_mains {
        Some("mains")
    } else {
        None
    }
}

/// What its way to the world is.
fn link(root: &Path) -> Option<&'static str> {
    let routes = read(&root.join("proc/net/route"))?;
    let default = routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.next() == Some("00000000")).then_some(name)
    })?;
    let device = root.join("sys/class/net").join(default);
    Some(if device.join("wireless").exists() {
        "wireless"
    } else if default.starts_with("wwan") || default.starts_with("ppp") {
        "cellular"
    } else {
        "wired"
    })
}

/// How warm the warmest part is.
fn heat(root: &Path, last: Option<&str>) -> Option<&'static str> {
    let zones = entries(&root.join("sys/class/thermal"));
    let degrees = zones.iter().filter_map(|zone| read(&zone.join("temp"))?.parse::<i64>().ok());
    let most = degrees.max()?;
    let bound = |bound: i64, is_held: bool| if is_held { bound - COOLER_BY } else { bound };
    Some(if most >= bound(HOT, last == Some("hot")) {
        "hot"
    } else if most >= bound(WARM, matches!(last, Some("warm" | "hot"))) {
        "warm"
    } else {
        "cool"
    })
}

/// The text as the value of a label; `None` if nothing is left of it.
fn label_value(text: &str) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let value: String = text.chars().map(plain).take(VALUE_BYTES_MAX).collect();
    let value = value.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn told(files: &[(&str, &str)], before: &[(&str, &str)]) -> Vec<String> {
        let before =
            before.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned())).collect();
        let labels = labels(machine(files).path(), &before);
        labels.iter().map(|(k, v)| format!("{}={v}", &k[PREFIX.len()..])).collect()
    }

    #[test]
    fn a_machine_says_what_it_is() {
        let pi = [
            ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
            ("proc/meminfo", "MemTotal:        3884360 kB\nMemFree: 1 kB\n"),
            ("proc/net/route", "Iface\tDestination\nwlan0\t00000000\t0101A8C0\n"),
            ("sys/class/net/wlan0/wireless/x", ""),
            ("sys/class/thermal/thermal_zone0/temp", "48312\n"),
        ];
        assert_eq!(
            told(&pi, &[]),
            [
                "link=wireless",
                "memory=4Gi",
                "model=Raspberry-Pi-4-Model-B-Rev-1.4",
                "temperature=cool"
            ]
        );
        let laptop = [
            ("sys/class/dmi/id/product_name", "ThinkPad (X1)\n"),
            ("proc/meminfo", "MemTotal: 24530000 kB\n"),
            ("sys/class/power_supply/AC/type", "Mains\n"),
            ("sys/class/power_supply/AC/online", "0\n"),
            ("sys/class/power_supply/BAT0/type", "Battery\n"),
            ("sys/class/power_supply/BAT0/status", "Discharging\n"),
        ];
        assert_eq!(told(&laptop, &[]), ["memory=24Gi", "model=ThinkPad--X1", "power=battery"]);
        assert_eq!(told(&[], &[]), Vec::<String>::new());
    }

    #[test]
    fn heat_around_a_bound_is_not_told_again_and_again() {
        let at = |milli: &str, last: &str| {
            let files = [("sys/class/thermal/thermal_zone0/temp", milli)];
            told(&files, &[("temperature", last)]).remove(0)
        };
        assert_eq!(at("61000", "cool"), "temperature=warm");
        assert_eq!(at("58000", "warm"), "temperature=warm");
        assert_eq!(at("54000", "warm"), "temperature=cool");
        assert_eq!(at("76000", "warm"), "temperature=hot");
        assert_eq!(at("71000", "hot"), "temperature=hot");
        assert_eq!(at("69000", "hot"), "temperature=warm");
    }
}
