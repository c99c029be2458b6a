//! Prints lines at an even rate, each of its own kind, about a hundred bytes long.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::flags::{Flag, Given};
use crate::{Failure, host};

const METHODS: [&str; 3] = ["GET", "PUT", "POST"];
const NAMESPACES: [&str; 3] = ["kube-system", "default", "ns"];
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// Shortest and longest random name.
const NAME_LETTERS: std::ops::Range<u64> = 3..6;

pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let known = [
        Flag { name: "log-lines-total", short: "t", is_switch: false },
        Flag { name: "run-duration", short: "d", is_switch: false },
    ];
    let given = Given::read(args, &known)?;
    let lines: u32 = given.number("log-lines-total", 0)?;
    let time = given.duration("run-duration")?.unwrap_or_default();
    if lines == 0 || time.is_zero() {
        return Err(Failure::Usage("both -t LINES and -d DURATION are needed".to_owned()));
    }
    let (start, pause) = (Instant::now(), time / lines);
    let mut dice = Dice(host::seed());
    for id in 0..lines {
        println!("{} {id} {}", host::now(), line(&mut dice));
        // By the clock of the start: pauses that are a little long do not add up.
        let due = pause.checked_mul(id + 1).unwrap_or(Duration::MAX);
        sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(())
}

fn line(dice: &mut Dice) -> String {
    let method = dice.one_of(&METHODS).unwrap_or_default();
    let namespace = dice.one_of(&NAMESPACES).unwrap_or_default();
    let length = NAME_LETTERS.start + dice.below(NAME_LETTERS.end - NAME_LETTERS.start);
    let name: String = (0..length).filter_map(|_| dice.one_of(LETTERS)).map(char::from).collect();
    let number = 200 + dice.below(400);
    format!("{method} /api/v1/namespaces/{namespace}/endpoints/{name} {number}")
}

/// Random enough for logs (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }

    fn one_of<T: Copy>(&mut self, things: &[T]) -> Option<T> {
        let index = self.below(u64::try_from(things.len()).unwrap_or(1));
        usize::try_from(index).ok().and_then(|index| things.get(index)).copied()
    }
}
