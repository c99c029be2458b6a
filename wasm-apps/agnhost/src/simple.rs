//! The subcommands of a few lines.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::Failure;
use crate::flags::Given;

/// One sleep of `pause`. WASI counts nanoseconds in 64 bits, so it cannot be without end.
const SLEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// Sleeps until it is stopped.
pub(crate) fn pause(args: &[String]) -> Result<(), Failure> {
    Given::read(args, &[])?;
    println!("Paused");
    loop {
        sleep(SLEEP);
    }
}

/// Prints all arguments, the name of the program first, in the brackets of Go's `%v`.
pub(crate) fn entrypoint_tester(_: &[String]) -> Result<(), Failure> {
    println!("[{}]", std::env::args().collect::<Vec<_>>().join(" "));
    Ok(())
}

/// Prints the hosts file.
pub(crate) fn etc_hosts(args: &[String]) -> Result<(), Failure> {
    Given::read(args, &[])?;
    print!("{}", read("/etc/hosts")?);
    Ok(())
}

/// Prints the search list of the resolver, with commas.
pub(crate) fn dns_suffix(args: &[String]) -> Result<(), Failure> {
    Given::read(args, &[])?;
    println!("{}", entries(&read("/etc/resolv.conf")?, "search").join(","));
    Ok(())
}

/// Prints the name servers, with commas.
pub(crate) fn dns_server_list(args: &[String]) -> Result<(), Failure> {
    Given::read(args, &[])?;
    println!("{}", entries(&read("/etc/resolv.conf")?, "nameserver").join(","));
    Ok(())
}

fn read(path: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|why| Failure::Failed(format!("cannot read {path}: {why}")))
}

fn entries(file: &str, keyword: &str) -> Vec<String> {
    let lines = file.lines().map(str::split_whitespace);
    let entries = lines.filter_map(|mut words| (words.next() == Some(keyword)).then_some(words));
    entries.flatten().map(str::to_owned).collect()
}
