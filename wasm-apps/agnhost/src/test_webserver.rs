//! Serves the pod's files: of a guest's root only the volumes are there.

use std::path::Path;

use crate::Failure;
use crate::files::respond;
use crate::flags::{Given, value};
use crate::http::{Request, handler, serve};
use crate::rt;

pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let port = Given::read(args, &[value("port")])?.number("port", 80)?;
    let answer = |request: Request| async move { respond(Path::new("/"), &request) };
    Err(Failure::Failed(rt::run(serve(port, handler(answer)))))
}
