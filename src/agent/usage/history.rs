//! The last hour of CPU and memory, a point for each minute: some hundred bytes for each container.

use std::collections::VecDeque;

use serde_json::{Value, json};

/// Points that are kept.
pub(super) const POINTS_MAX: usize = 60;
/// Seconds that a point stands for.
pub(super) const POINT_SECONDS: u64 = 60;

/// One minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    /// Mean, in thousandths of a core.
    cpu_millis: u32,
    /// Most, in KiB.
    memory_kib: u32,
}

/// The minutes of one thing that is measured, oldest first, without gaps.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    points: VecDeque<Point>,
    /// The minute that goes on: its number, the sum and number of its looks, and the most memory.
    minute: u64,
    sum_millis: u64,
    looks: u64,
    memory_kib: u32,
}

impl History {
    /// Takes note of a look in `minute`, which never goes back.
    pub(super) fn note(&mut self, minute: u64, cpu_millis: u64, memory_bytes: u64) {
        if self.looks > 0 && minute > self.minute {
            self.close(minute - self.minute);
        }
        self.minute = minute;
        self.sum_millis = self.sum_millis.saturating_add(cpu_millis);
        self.looks += 1;
        let memory_kib = u32::try_from(memory_bytes / 1024).unwrap_or(u32::MAX);
        self.memory_kib = self.memory_kib.max(memory_kib);
    }

    /// Ends the minute; those that nobody looked in are as this one.
    fn close(&mut self, minutes: u64) {
        let mean = self.sum_millis / self.looks.max(1);
        let cpu_millis = u32::try_from(mean).unwrap_or(u32::MAX);
        let point = Point { cpu_millis, memory_kib: self.memory_kib };
        let count = usize::try_from(minutes).unwrap_or(POINTS_MAX).min(POINTS_MAX);
        for _ in 0..count {
            if self.points.len() == POINTS_MAX {
                self.points.pop_front();
            }
            self.points.push_back(point);
        }
        (self.sum_millis, self.looks, self.memory_kib) = (0, 0, 0);
    }

    /// As JSON: a list for each figure, oldest first; the minute that goes on is the last.
    pub(super) fn to_value(&self) -> Value {
        let mut now = self.clone();
        if now.looks > 0 {
            now.close(1);
        }
        let cpu: Vec<u32> = now.points.iter().map(|point| point.cpu_millis).collect();
        let memory: Vec<u32> = now.points.iter().map(|point| point.memory_kib).collect();
        json!({ "cpuMillis": cpu, "memoryKiB": memory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut history = History::default();
        assert_eq!(history.to_value(), json!({ "cpuMillis": [], "memoryKiB": [] }));
        history.note(0, 100, 1 << 20);
        history.note(0, 300, 2 << 20);
        assert_eq!(history.to_value(), json!({ "cpuMillis": [200], "memoryKiB": [2048] }));
        history.note(3, 50, 1 << 20);
        assert_eq!(
            history.to_value(),
            json!({ "cpuMillis": [200, 200, 200, 50], "memoryKiB": [2048, 2048, 2048, 1024] })
        );
        for minute in 4..500 {
            history.note(minute, minute, 0);
        }
        let cpu = history.to_value()["cpuMillis"].as_array().unwrap().clone();
        assert_eq!((cpu.len(), cpu[0].as_u64(), cpu[59].as_u64()), (60, Some(440), Some(499)));
        history.note(100_000, 1, 0);
        assert_eq!(history.to_value()["cpuMillis"].as_array().unwrap().len(), 60);
    }
}
