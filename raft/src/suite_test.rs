//! openraft's own storage suite on our log and state machine.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::log::{FsDisk, LogStore, Wal};
use crate::state::{Db, Snapshots, StateMachine};
use crate::tasks::Tasks;
use crate::type_config::TypeConfig;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, (TempDir, Tasks)> for Builder {
    async fn build(
        &self,
    ) -> Result<((TempDir, Tasks), LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::default();
        let disk = |name: &str| Arc::new(FsDisk::new(dir.path().join(name)).unwrap());
        let (wal, recovered) = Wal::open(disk("log"), 7).unwrap();
        let log = LogStore::start(wal, recovered, &tasks);
        let snapshots = Arc::new(Snapshots::open(disk("snapshots")).unwrap());
        let (db, mvcc, meta) = Db::open(&dir.path().join("state.redb")).unwrap();
        let (machine, _) = StateMachine::new(Arc::new(db), snapshots, mvcc, meta).unwrap();
        Ok(((dir, tasks), log, machine))
    }
}

#[tokio::test]
async fn openraft_accepts_our_storage() {
    Suite::test_all(Builder).await.unwrap();
}
