//! What boards say of themselves: a supply that is too weak, a processor that is too hot.
//!
//! A Raspberry Pi tells of its supply by the sensor `rpi_volt`, every board of its temperature by
//! thermal zones with the marks at which the kernel slows down. Where there is no such thing, there is
//! no condition.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Where the kernel shows its sensors.
const SENSORS: &str = "sys/class";
/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(15);
/// A condition lasts this long after its last sign: supplies dip with every load.
const LASTS: Duration = Duration::from_secs(300);
/// A processor without marks of its own is too hot from here on, in thousandths of a degree.
const HOT_DEFAULT: i64 = 85_000;
/// Zones and sensors that are looked at.
const SENSORS_MAX: usize = 64;

/// What the Node's conditions say; `None`: there is no sensor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hardware {
    /// `UnderVoltage`.
    pub(crate) under_voltage: Option<bool>,
    /// `Overheated`.
    pub(crate) overheated: Option<bool>,
}

/// Keeps `told` up to date until `cancel`, by what is under `root`.
pub(crate) async fn follow(
    root: PathBuf,
    told: watch::Sender<Hardware>,
    cancel: CancellationToken,
) {
    let sensors = root.join(SENSORS);
    let mut signs = Signs::default();
    let looking = async {
        loop {
            let seen = look(&sensors);
            let now = signs.note(seen, Instant::now());
            told.send_if_modified(|had| {
                let is_news = *had != now;
                if is_news && (now.under_voltage == Some(true) || now.overheated == Some(true)) {
                    warn!(?now, "the hardware is in trouble");
                }
                *had = now;
                is_news
            });
            if seen == Hardware::default() {
                // There are no sensors, and none will come.
                return std::future::pending::<()>().await;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = cancel.run_until_cancelled(looking).await;
}

/// When each trouble was seen last.
#[derive(Debug, Default)]
struct Signs {
    under_voltage: Option<Instant>,
    overheated: Option<Instant>,
}

impl Signs {
    fn note(&mut self, seen: Hardware, now: Instant) -> Hardware {
        let lasts = |at: &mut Option<Instant>, seen: Option<bool>| {
            if seen == Some(true) {
                *at = Some(now);
            }
            seen.map(|_| at.is_some_and(|at| now.saturating_duration_since(at) < LASTS))
        };
        Hardware {
            under_voltage: lasts(&mut self.under_voltage, seen.under_voltage),
            overheated: lasts(&mut self.overheated, seen.overheated),
        }
    }
}

/// What the sensors say now. Reads files of the kernel, which answers from memory.
fn look(root: &Path) -> Hardware {
    let volts = folders(&root.join("hwmon"));
    let supply = volts.iter().find(|folder| text(&folder.join("name")) == "rpi_volt");
    let zones = folders(&root.join("thermal"));
    let heats: Vec<bool> = zones.iter().filter_map(|zone| is_hot(zone)).collect();
    Hardware {
        under_voltage: supply.map(|folder| text(&folder.join("in0_lcrit_alarm")) == "1"),
        overheated: (!heats.is_empty()).then(|| heats.contains(&true)),
    }
}

/// Whether a zone is at the mark at which the kernel slows the machine down; `None`: no thermometer.
fn is_hot(zone: &Path) -> Option<bool> {
    let temperature: i64 = text(&zone.join("temp")).parse().ok()?;
    let mark = |at: usize| {
        let kind = text(&zone.join(format!("trip_point_{at}_type")));
        let degrees: i64 = text(&zone.join(format!("trip_point_{at}_temp"))).parse().ok()?;
        // `active` is a fan, which is there to turn.
        matches!(kind.as_str(), "passive" | "hot" | "critical").then_some(degrees)
    };
    let lowest = (0..SENSORS_MAX)
        .map_while(|at| zone.join(format!("trip_point_{at}_type")).exists().then(|| mark(at)));
    // Zones without a mark, or with one that cannot be meant, have the default.
    let lowest = lowest.flatten().filter(|degrees| *degrees > 40_000).min();
    Some(temperature >= lowest.unwrap_or(HOT_DEFAULT))
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).take(SENSORS_MAX).collect();
    found.sort();
    found
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, file: &str, content: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{content}\n")).unwrap();
    }

    #[test]
    fn a_board_says_what_its_sensors_say_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(look(root), Hardware::default());
        put(root, "hwmon/hwmon0/name", "cpu_thermal");
        put(root, "hwmon/hwmon1/name", "rpi_volt");
        put(root, "hwmon/hwmon1/in0_lcrit_alarm", "0");
        put(root, "thermal/cooling_device0/type", "gpio-fan");
        put(root, "thermal/thermal_zone0/temp", "61000");
        let fine = Hardware { under_voltage: Some(false), overheated: Some(false) };
        assert_eq!(look(root), fine);
        put(root, "hwmon/hwmon1/in0_lcrit_alarm", "1");
        put(root, "thermal/thermal_zone0/temp", "85100");
        let bad = Hardware { under_voltage: Some(true), overheated: Some(true) };
        assert_eq!(look(root), bad);
        for (at, kind, degrees) in
            [(0, "active", "50000"), (1, "passive", "90000"), (2, "critical", "110000")]
        {
            put(root, &format!("thermal/thermal_zone0/trip_point_{at}_type"), kind);
            put(root, &format!("thermal/thermal_zone0/trip_point_{at}_temp"), degrees);
        }
        assert_eq!(look(root).overheated, Some(false), "below its own mark");
        put(root, "thermal/thermal_zone1/temp", "90000");
        assert_eq!(look(root).overheated, Some(true), "one zone is enough");
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_lasts_for_a_while_after_its_last_sign() {
        let mut signs = Signs::default();
        let seen = |under_voltage| Hardware { under_voltage, overheated: None };
        let mut after = |seconds, under_voltage| {
            let now = Instant::now() + Duration::from_secs(seconds);
            signs.note(seen(under_voltage), now).under_voltage
        };
        assert_eq!(after(0, None), None);
        assert_eq!(after(1, Some(false)), Some(false));
        assert_eq!(after(2, Some(true)), Some(true));
        assert_eq!(after(301, Some(false)), Some(true));
        assert_eq!(after(302, Some(false)), Some(false));
    }
}
