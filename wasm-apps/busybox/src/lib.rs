//! The usual tools in one command: `argv[0]` says which, or the first argument of `busybox`.
//!
//! They do what scripts and `kubectl cp` need of them, not all that the originals do. A pod has no
//! processes: pipelines run one tool after the other, with what it wrote kept in memory.
//!
//! A reactor that exports `wasi:cli/run`, because `wget` and `nslookup` use interfaces beside WASI 0.1: a
//! command of older linkers runs all constructors again whenever the host hands bytes over.

mod cx;
mod dd;
mod expr;
mod files;
mod filters;
mod find;
#[cfg(target_family = "wasm")]
mod memory;
mod nc;
mod net;
mod nslookup;
mod pattern;
mod print;
mod sed;
mod sh;
mod sizes;
mod tar;
mod text;
mod wget;

use cx::Cx;

wasip2::cli::command::export!(Busybox);

struct Busybox;

impl wasip2::exports::cli::run::Guest for Busybox {
    fn run() -> Result<(), ()> {
        match main() {
            0 => Ok(()),
            1 => Err(()),
            code => std::process::exit(code),
        }
    }
}

/// A tool: takes its arguments with its own name first, and says its exit code.
type Applet = fn(&mut Cx, &[String]) -> i32;

/// All tools by name.
const APPLETS: &[(&str, Applet)] = &[
    ("[", files::test),
    ("base64", filters::base64),
    ("basename", files::basename),
    ("cat", text::cat),
    ("chmod", files::nothing),
    ("chown", files::nothing),
    ("cp", files::cp),
    ("cut", filters::cut),
    ("date", text::date),
    ("dd", dd::main),
    ("dirname", files::dirname),
    ("du", sizes::du),
    ("echo", text::echo),
    ("egrep", text::grep),
    ("env", text::env),
    ("expr", expr::main),
    ("false", |_, _| 1),
    ("fgrep", text::grep),
    ("find", find::main),
    ("grep", text::grep),
    ("head", text::head),
    ("hostname", text::hostname),
    ("id", text::id),
    ("ls", files::ls),
    ("mkdir", files::mkdir),
    ("mktemp", files::mktemp),
    ("mv", files::mv),
    ("nc", nc::main),
    ("nslookup", nslookup::main),
    ("printenv", text::env),
    ("printf", print::printf),
    ("pwd", text::pwd),
    ("readlink", files::readlink),
    ("rm", files::rm),
    ("rmdir", files::rmdir),
    ("sed", sed::main),
    ("seq", text::seq),
    ("sha256sum", filters::sha256sum),
    ("sh", sh::main),
    ("sleep", text::sleep),
    ("sort", text::sort),
    ("stat", sizes::stat),
    ("tail", text::tail),
    ("tar", tar::main),
    ("tee", filters::tee),
    ("test", files::test),
    ("touch", files::touch),
    ("tr", filters::tr),
    ("true", |_, _| 0),
    ("uname", text::uname),
    ("uniq", filters::uniq),
    ("wc", text::wc),
    ("wget", wget::main),
    ("which", files::which),
    ("whoami", text::whoami),
    ("xargs", filters::xargs),
    ("yes", filters::yes),
];

/// The tool of a name, with or without a folder before it.
pub fn applet(name: &str) -> Option<Applet> {
    let name = name.rsplit('/').next().unwrap_or(name);
    APPLETS.iter().find(|(known, _)| *known == name).map(|(_, applet)| *applet)
}

/// The options of tools that take letters. What is not among them would be ignored, and the tool would do
/// something else than it was asked for.
const OPTIONS: &[(&str, &str)] = &[
    ("cat", "u"),
    ("cp", "Rafprv"),
    ("date", "u"),
    ("du", "ahkms"),
    ("egrep", "EFcehinoqsvx"),
    ("fgrep", "EFcehinoqsvx"),
    ("grep", "EFcehinoqsvx"),
    ("id", "Ggnu"),
    ("ls", "1ACFadhlnp"),
    ("mkdir", "pv"),
    ("mktemp", "dq"),
    ("mv", "fv"),
    ("readlink", "fn"),
    ("rm", "Rfrv"),
    ("rmdir", ""),
    ("sha256sum", "b"),
    ("sort", "nru"),
    ("tee", "a"),
    ("touch", "am"),
    ("tr", "Ccds"),
    ("uname", "amnrsv"),
    ("uniq", "cd"),
    ("wc", "clw"),
];

/// Runs a tool, unless it is given an option that it does not have; its exit code. `None`: there is no such tool.
pub fn run_applet(cx: &mut Cx, args: &[String]) -> Option<i32> {
    let name = args.first()?;
    let applet = applet(name)?;
    let own = name.rsplit('/').next().unwrap_or(name);
    if let Some((_, known)) = OPTIONS.iter().find(|(tool, _)| *tool == own)
        && let Some(unknown) = cx::letters(args).0.chars().find(|letter| !known.contains(*letter))
    {
        let options = if known.is_empty() { "none".to_owned() } else { format!("-{known}") };
        cx.say(&format!("{own}: invalid option -- '{unknown}' (there are: {options})"));
        return Some(2);
    }
    Some(applet(cx, args))
}

/// Gives the exit code.
fn main() -> i32 {
    let mut args: Vec<String> = std::env::args().collect();
    if args.first().is_none_or(|name| applet(name).is_none()) && !args.is_empty() {
        args.remove(0);
    }
    let mut cx = Cx::of_process();
    let code = match run_applet(&mut cx, &args) {
        Some(code) => code,
        None => {
            let names: Vec<&str> = APPLETS.iter().map(|(name, _)| *name).collect();
            cx.say(&format!("usage: busybox TOOL [ARGUMENT]...\ntools: {}", names.join(" ")));
            if args.is_empty() { 0 } else { 127 }
        }
    };
    cx.flush();
    code & 0xff
}
