//! Which server makes which code: rendezvous hashing.

use sha2::{Digest as _, Sha256};

use crate::apiserver::compiled::Key;

/// The servers in the order in which they should make the code. Every server comes to the same order,
/// and a server that comes or goes changes the first of few codes only.
pub(super) fn rank(mut servers: Vec<String>, key: &Key) -> Vec<String> {
    servers.sort_by_cached_key(|server| {
        let mut hash = Sha256::new();
        for part in [server, &key.engine, &key.component] {
            hash.update(part);
            hash.update([0]);
        }
        hash.finalize().to_vec()
    });
    servers
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn all_servers_rank_alike_and_each_is_first_for_its_share() {
        let servers = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut firsts: BTreeMap<String, u32> = BTreeMap::new();
        for n in 0..300 {
            let key = Key { engine: "e".to_owned(), component: n.to_string() };
            let ranked = rank(servers(&["a", "b", "c"]), &key);
            assert_eq!(ranked, rank(servers(&["c", "a", "b"]), &key));
            // Without the last, the first stays.
            let fewer = rank(ranked[..2].to_vec(), &key);
            assert_eq!(fewer[0], ranked[0]);
            *firsts.entry(ranked[0].clone()).or_default() += 1;
        }
        assert!(firsts.len() == 3 && firsts.values().all(|share| *share > 60), "{firsts:?}");
    }
}
