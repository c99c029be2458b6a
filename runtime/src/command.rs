//! Runs commands to their end, and keeps reactors.

use std::sync::Arc;

use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime::component::InstancePre;

use crate::code::Entry;
use crate::guest::{Guest, Template, exit_of_code, exit_of_error, is_out_of_slots, killed};
use crate::hold::Metered;
use crate::types::{Exit, StartError};

/// Told once the guest's code runs, or why it does not.
pub(crate) type Started = oneshot::Sender<Result<(), StartError>>;

/// Instantiates the component and runs it until it ends or the container is killed.
pub(crate) async fn run(
    template: Arc<Template>,
    pre: InstancePre<Guest>,
    entry: Entry,
    started: Started,
) -> Exit {
    let mut store = match template.store() {
        Ok(store) => store,
        Err(error) => {
            let text = format!("cannot set up the guest: {error:#}");
            let _ = started.send(Err(StartError::Host(text.clone())));
            return Exit { message: text, ..exit_of_code(1) };
        }
    };
    let kill = template.kill().clone();
    let burst = Arc::clone(store.data().burst());
    let running = Metered::new(burst, enter(&mut store, &pre, entry, started));
    let result = kill.run_until_cancelled(running).await;
    let exit = match result {
        None => killed(),
        Some(Err(_)) if kill.is_cancelled() => killed(),
        Some(Ok(code)) => exit_of_code(code),
        Some(Err(error)) => {
            let exit = exit_of_error(&store, &error);
            template.trapped(&exit);
            exit
        }
    };
    // Tells its listeners that they go with it, and not by its guest's wish.
    kill.cancel();
    // Writes the last unfinished lines.
    drop(store);
    template.log.flush().await;
    exit
}

/// Says whether an instance could be made. A guest that fails by itself has started; only a pool
/// without room means that it has not.
fn announce<T>(started: Started, result: &wasmtime::Result<T>) {
    let outcome = match result {
        Err(error) if is_out_of_slots(error) => Err(StartError::Host(format!("{error:#}"))),
        _ => Ok(()),
    };
    // Nobody waits any more if the start was given up.
    let _ = started.send(outcome);
}

async fn enter(
    store: &mut Store<Guest>,
    pre: &InstancePre<Guest>,
    entry: Entry,
    started: Started,
) -> wasmtime::Result<i32> {
    use wasmtime_wasi::{p2, p3};

    match entry {
        Entry::CommandP2 => {
            let pre = p2::bindings::CommandPre::new(pre.clone())?;
            let command = pre.instantiate_async(&mut *store).await;
            announce(started, &command);
            let result = command?.wasi_cli_run().call_run(&mut *store).await?;
            Ok(i32::from(result.is_err()))
        }
        Entry::CommandP3 => {
            let pre = p3::bindings::CommandPre::new(pre.clone())?;
            let command = pre.instantiate_async(&mut *store).await;
            announce(started, &command);
            let command = command?;
            let result = store
                .run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await)
                .await??;
            Ok(i32::from(result.is_err()))
        }
        Entry::Reactor | Entry::HttpP2 | Entry::HttpP3 => {
            // wit-component makes `_initialize` part of instantiation.
            let instance = pre.instantiate_async(&mut *store).await;
            announce(started, &instance);
            let _kept = instance?;
            std::future::pending().await
        }
    }
}
