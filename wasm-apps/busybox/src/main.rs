//! The usual tools in one command: `argv[0]` says which, or the first argument of `busybox`.
//!
//! They do what scripts and `kubectl cp` need of them, not all that the originals do. A pod has no
//! processes: pipelines run one tool after the other, with what it wrote kept in memory.

mod cx;
mod files;
#[cfg(target_family = "wasm")]
mod memory;
mod net;
mod nslookup;
mod sh;
mod tar;
mod text;
mod wget;

use std::process::ExitCode;

use cx::Cx;

/// A tool: takes its arguments with its own name first, and says its exit code.
type Applet = fn(&mut Cx, &[String]) -> i32;

/// All tools by name.
const APPLETS: &[(&str, Applet)] = &[
    ("[", files::test),
    ("basename", files::basename),
    ("cat", text::cat),
    ("cp", files::cp),
    ("date", text::date),
    ("dirname", files::dirname),
    ("echo", text::echo),
    ("env", text::env),
    ("false", |_, _| 1),
    ("grep", text::grep),
    ("head", text::head),
    ("hostname", text::hostname),
    ("id", text::id),
    ("ls", files::ls),
    ("mkdir", files::mkdir),
    ("mv", files::mv),
    ("nslookup", nslookup::main),
    ("printenv", text::env),
    ("pwd", text::pwd),
    ("rm", files::rm),
    ("seq", text::seq),
    ("sh", sh::main),
    ("sleep", text::sleep),
    ("sort", text::sort),
    ("tail", text::tail),
    ("tar", tar::main),
    ("test", files::test),
    ("touch", files::touch),
    ("true", |_, _| 0),
    ("uname", text::uname),
    ("wc", text::wc),
    ("wget", wget::main),
    ("whoami", text::whoami),
];

/// The tool of a name, with or without a folder before it.
pub fn applet(name: &str) -> Option<Applet> {
    let name = name.rsplit('/').next().unwrap_or(name);
    APPLETS.iter().find(|(known, _)| *known == name).map(|(_, applet)| *applet)
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().collect();
    if args.first().is_none_or(|name| applet(name).is_none()) && !args.is_empty() {
        args.remove(0);
    }
    let mut cx = Cx::of_process();
    let code = match args.first().and_then(|name| applet(name)) {
        Some(applet) => applet(&mut cx, &args),
        None => {
            let names: Vec<&str> = APPLETS.iter().map(|(name, _)| *name).collect();
            cx.say(&format!("usage: busybox TOOL [ARGUMENT]...\ntools: {}", names.join(" ")));
            if args.is_empty() { 0 } else { 127 }
        }
    };
    cx.flush();
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}
