//! Answers of upstreams, kept for as long as they say.

use std::collections::BTreeMap;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Answers kept at most; those that end first make room.
const ANSWERS_MAX: usize = 4096;
/// Records of an answer that is kept; longer ones are asked for again.
const RECORDS_MAX: usize = 64;
/// Longest time that an answer is kept.
const TTL_MAX: u32 = 3600;
/// Longest time that "there is none" is kept (RFC 2308 allows more).
const NEGATIVE_TTL_MAX: u32 = 300;

/// A name in lower case, and the type asked for.
type Key = (String, RecordType);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cache {
    kept: Mutex<BTreeMap<Key, Kept>>,
}

#[derive(Debug)]
struct Kept {
    answer: Message,
    since: Instant,
    until: Instant,
}

impl Cache {
    /// The answer, if there is one that is still true, with its times counted down.
    pub(super) fn get(&self, name: &str, asked: RecordType) -> Option<Message> {
        let now = Instant::now();
        let key = (name.to_owned(), asked);
        let mut kept = self.kept.lock();
        let found = kept.get(&key)?;
        if found.until <= now {
            kept.remove(&key);
            return None;
        }
        let mut answer = found.answer.clone();
        let age = u32::try_from(now.duration_since(found.since).as_secs()).unwrap_or(u32::MAX);
        let Message { answers, authorities, additionals, .. } = &mut answer;
        for record in answers.iter_mut().chain(authorities).chain(additionals) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    /// Keeps an answer for as long as it says.
    pub(super) fn put(&self, name: &str, asked: RecordType, answer: &Message) {
        let Some(seconds) = ttl(answer).filter(|seconds| *seconds > 0) else { return };
        let now = Instant::now();
        let until = now + Duration::from_secs(seconds.into());
        let mut kept = self.kept.lock();
        let key = (name.to_owned(), asked);
        if kept.len() >= ANSWERS_MAX && !kept.contains_key(&key) {
            make_room(&mut kept, now);
        }
        kept.insert(key, Kept { answer: answer.clone(), since: now, until });
    }
}

/// Drops what has ended; if that is little, the half that ends first.
fn make_room(kept: &mut BTreeMap<Key, Kept>, now: Instant) {
    kept.retain(|_, one| one.until > now);
    if kept.len() * 2 < ANSWERS_MAX {
        return;
    }
    let mut ends: Vec<Instant> = kept.values().map(|one| one.until).collect();
    let middle = ends.len() / 2;
    if middle < ends.len() {
        let median = *ends.select_nth_unstable(middle).1;
        kept.retain(|_, one| one.until > median);
    }
}

/// How long an answer may be kept, in seconds; `None` for one that may not.
fn ttl(answer: &Message) -> Option<u32> {
    let count = answer.answers.len() + answer.authorities.len() + answer.additionals.len();
    if answer.metadata.truncation || count > RECORDS_MAX {
        return None;
    }
    match answer.metadata.response_code {
        ResponseCode::NoError if !answer.answers.is_empty() => {
            answer.answers.iter().map(|record| record.ttl).min().map(|ttl| ttl.min(TTL_MAX))
        }
        // RFC 2308: the authority says how long "no" is true.
        ResponseCode::NoError | ResponseCode::NXDomain => {
            answer.authorities.iter().find_map(negative).map(|ttl| ttl.min(NEGATIVE_TTL_MAX))
        }
        _ => None,
    }
}

fn negative(record: &Record) -> Option<u32> {
    match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn answer(ttl: u32) -> Message {
        let mut answer = Message::response(1, OpCode::Query);
        let data = RData::A(A::new(192, 0, 2, 1));
        answer.add_answer(Record::from_rdata(name("a.example."), ttl, data));
        answer
    }

    fn none(ttl: u32, minimum: u32) -> Message {
        let mut answer = Message::response(1, OpCode::Query);
        answer.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(name("ns.example."), name("h.example."), 1, 1, 1, 1, minimum);
        answer.add_authority(Record::from_rdata(name("example."), ttl, RData::SOA(soa)));
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_and_counted_down_until_its_time_is_over() {
        let cache = Cache::default();
        cache.put("a.example", RecordType::A, &answer(60));
        tokio::time::advance(Duration::from_secs(20)).await;
        let found = cache.get("a.example", RecordType::A).unwrap();
        assert_eq!(found.answers[0].ttl, 40);
        assert!(cache.get("a.example", RecordType::AAAA).is_none());
        tokio::time::advance(Duration::from_secs(40)).await;
        assert!(cache.get("a.example", RecordType::A).is_none());
        assert!(cache.kept.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn that_there_is_none_is_kept_as_long_as_the_authority_says() {
        let cache = Cache::default();
        cache.put("b.example", RecordType::A, &none(900, 30));
        tokio::time::advance(Duration::from_secs(29)).await;
        let found = cache.get("b.example", RecordType::A).unwrap();
        assert_eq!(found.metadata.response_code, ResponseCode::NXDomain);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.get("b.example", RecordType::A).is_none());
        let mut bare = none(1, 1);
        bare.authorities.clear();
        let mut failed = answer(60);
        failed.metadata.response_code = ResponseCode::ServFail;
        let mut cut = answer(60);
        cut.metadata.truncation = true;
        for other in [bare, failed, cut, answer(0)] {
            cache.put("c.example", RecordType::A, &other);
            assert!(cache.get("c.example", RecordType::A).is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_answers_is_bounded() {
        let cache = Cache::default();
        for at in 0..3 * ANSWERS_MAX {
            let ttl = 60 + u32::try_from(at % 1000).unwrap();
            cache.put(&format!("{at}.example"), RecordType::A, &answer(ttl));
            assert!(cache.kept.lock().len() <= ANSWERS_MAX);
        }
    }
}
