//! What a test asks of WASI 0.3, by the first argument:
//!
//! ```text
//! tls NAME             a session with the server NAME, which is at the other end of the standard
//!                      streams: sends "hello", says on stderr what comes back
//! volume               how much the first folder takes, in several ways
//! exit-with-code CODE  ends with this exit code
//! ```

mod tls;
mod volume;

use wasip3::cli::environment::get_arguments;
use wasip3::cli::exit;

wasip3::cli::command::export!(Probe);

struct Probe;

impl wasip3::exports::cli::run::Guest for Probe {
    async fn run() -> Result<(), ()> {
        let args = get_arguments();
        let args: Vec<_> = args.iter().skip(1).map(String::as_str).collect();
        let done = match args.as_slice() {
            ["tls", name] => tls::session(name).await,
            ["volume"] => volume::fill().await,
            ["exit-with-code", code] => {
                exit::exit_with_code(code.parse().unwrap_or(255));
                Ok(())
            }
            _ => Err("wrong arguments".to_owned()),
        };
        done.map_err(|words| eprintln!("probe-p3: {words}"))
    }
}
